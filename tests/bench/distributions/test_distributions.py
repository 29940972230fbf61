"""The laws against what is published and against second routes: densities, quadrature, inverses, marginals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln, log_ndtr, logsumexp, ndtr, roots_laguerre

from mikit.bench.distributions import bases, bmi2, copulas, images, maps, networks, own, transfer, traps, wide
from mikit.bench.distributions.channel import flip_for
from mikit.bench.distributions.suites import BEYOND, SUITES, task_named, tasks_of
from mikit.bench.distributions.task import Array, Pair, Task
from mikit.core.errors import InputError

PUBLISHED = {
    "1v1-normal-0.75": 0.413339,
    "normal_cdf-1v1-normal-0.75": 0.413339,
    "1v1-additive-0.1": 1.709438,
    "1v1-additive-0.75": 0.333333,
    "1v1-bimodal-0.75": 0.413339,
    "wiggly-1v1-normal-0.75": 0.413339,
    "half_cube-1v1-normal-0.75": 0.413339,
    "student-identity-1-1-1": 0.224171,
    "asinh-student-identity-1-1-1": 0.224171,
    "swissroll_x-normal_cdf-1v1-normal-0.75": 0.413339,
    "multinormal-dense-2-2-0.5": 0.293893,
    "multinormal-dense-3-3-0.5": 0.413339,
    "multinormal-dense-5-5-0.5": 0.592812,
    "multinormal-dense-25-25-0.5": 1.292184,
    "multinormal-dense-50-50-0.5": 1.624265,
    "student-identity-2-2-1": 0.431946,
    "student-identity-2-2-2": 0.193147,
    "student-identity-3-3-2": 0.290922,
    "student-identity-3-3-3": 0.178712,
    "student-identity-5-5-2": 0.448151,
    "student-identity-5-5-3": 0.298544,
    "asinh-student-identity-2-2-1": 0.431946,
    "asinh-student-identity-3-3-2": 0.290922,
    "asinh-student-identity-5-5-2": 0.448151,
} | {
    f"{prefix}multinormal-sparse-{d}-{d}-2-2.0": 1.021651
    for prefix, widths in (
        ("", (2, 3, 5, 25)),
        *((p, (3, 5, 25)) for p in ("normal_cdf-", "half_cube-", "spiral-", "spiral-normal_cdf-")),
    )
    for d in widths
}
ALL = [law for suite in SUITES for law in tasks_of(suite)]


def of(suite: str, name: str) -> Task:
    return task_named(suite, name)


def agrees(terms: Array, truth: float, sigmas: float = 4.5) -> bool:
    """A Monte Carlo mean within its own error of the truth; the error is required to be small enough to tell."""
    error = terms.std(ddof=1) / math.sqrt(terms.size)
    assert error < 0.02 * max(truth, 0.25)
    return abs(terms.mean() - truth) < sigmas * error


def test_the_forty_published_values() -> None:
    found = {law.name: law.information for law in tasks_of("bmi")}
    assert len(found) == 40
    assert found.keys() == PUBLISHED.keys()
    assert max(abs(found[name] - value) for name, value in PUBLISHED.items()) < 1e-5


@pytest.mark.parametrize("law", ALL, ids=lambda law: f"{law.suite}-{law.name}")
def test_every_law_draws_what_it_says(law: Task) -> None:
    x, y = law.draw(40, seed=3)
    assert x.shape == (40, law.d_x)
    assert y.shape == (40, law.d_y)
    assert x.dtype == y.dtype == np.float64
    assert np.isfinite(x).all()
    assert np.isfinite(y).all()
    again, other = law.draw(40, seed=3), law.draw(40, seed=4)
    assert np.array_equal(again[0], x)
    assert np.array_equal(again[1], y)
    assert not np.array_equal(other[0], x)
    assert law.information >= 0
    if law.kinds[1] == "discrete":
        assert law.d_y == 1
        assert np.array_equal(y, np.round(y))


def test_suites_by_name() -> None:
    assert {law.suite for law in tasks_of("beyond")} == set(BEYOND)
    for suite in SUITES:
        halves = [law.half for law in tasks_of(suite)]
        assert abs(halves.count("develop") - halves.count("report")) <= 1
    with pytest.raises(InputError, match="no suite"):
        tasks_of("nothing")
    with pytest.raises(InputError, match="no task"):
        task_named("bmi", "nothing")
    with pytest.raises(InputError, match="seed at least 0"):
        tasks_of("bmi")[0].draw(10, -1)


def gaussian_terms(covariance: Array, d_x: int, x: Array, y: Array) -> Array:
    both = stats.multivariate_normal(cov=covariance)
    first = stats.multivariate_normal(cov=covariance[:d_x, :d_x])
    second = stats.multivariate_normal(cov=covariance[d_x:, d_x:])
    return both.logpdf(np.hstack([x, y])) - first.logpdf(x) - second.logpdf(y)


@pytest.mark.parametrize("d", [2, 25])
def test_gaussian_laws_by_their_densities(d: int) -> None:
    x, y = of("bmi", f"multinormal-dense-{d}-{d}-0.5").draw(60_000, 1)
    covariance = np.full((2 * d, 2 * d), 0.5) + 0.5 * np.eye(2 * d)
    truth = PUBLISHED[f"multinormal-dense-{d}-{d}-0.5"]
    assert agrees(gaussian_terms(covariance, d, x, y), truth)
    assert np.abs(np.cov(np.hstack([x, y]).T) - covariance).max() < 0.03


def test_gaussian_pairs_by_their_densities() -> None:
    pair = bases.gaussian_pairs([0.9, -0.3], 3, 2)
    x, y = pair.sampler(60_000, np.random.default_rng(0))
    covariance = np.eye(5)
    covariance[[0, 3, 1, 4], [3, 0, 4, 1]] = [0.9, 0.9, -0.3, -0.3]
    assert agrees(gaussian_terms(covariance, 3, x, y), pair.information)
    assert pair.information == pytest.approx(bases.gaussian_information(covariance, 3), abs=1e-12)


@pytest.mark.parametrize(("degrees", "d"), [(1, 1), (2, 2), (3, 5)])
def test_student_by_its_density(degrees: int, d: int) -> None:
    x, y = bases.student(degrees, d, d).sampler(200_000, np.random.default_rng(degrees))
    both, one = (stats.multivariate_t(shape=np.eye(k), df=degrees) for k in (2 * d, d))
    terms = both.logpdf(np.hstack([x, y])) - one.logpdf(x) - one.logpdf(y)
    assert agrees(terms, bases.student_correction(degrees, d, d))
    for column in (x[:, 0], y[:, -1]):
        assert stats.kstest(column[:5000], stats.t(degrees).cdf).pvalue > 1e-3


@pytest.mark.parametrize("reach", [0.1, 0.25, 0.75])
def test_additive_uniform_by_its_density(reach: float) -> None:
    _, y = bases.additive_uniform(reach).sampler(200_000, np.random.default_rng(1))
    density = (np.minimum(1, y + reach) - np.maximum(0, y - reach)) / (2 * reach)
    assert agrees((-math.log(2 * reach) - np.log(density))[:, 0], bases.additive_uniform(reach).information)


def test_log_gamma_exponential_by_its_density() -> None:
    s = 2.0
    x, y = bases.log_gamma_exponential(s).sampler(200_000, np.random.default_rng(2))
    rate, waiting = np.exp(x), np.exp(y)
    a = 1 / s
    # Y without X is Lomax: a / (1 + y)^(a + 1).
    terms = np.log(rate) - rate * waiting - math.log(a) + (a + 1) * np.log1p(waiting)
    assert agrees(terms[:, 0], bases.log_gamma_exponential(s).information)
    assert stats.kstest(rate[:5000, 0], stats.gamma(a).cdf).pvalue > 1e-3


def test_angles_by_their_density() -> None:
    x, y = bases.angles(4.0).sampler(50_000, np.random.default_rng(3))
    between = np.arctan2(y[:, 1], y[:, 0]) - np.arctan2(x[:, 1], x[:, 0])
    terms = stats.vonmises(4.0).logpdf(between) + math.log(2 * math.pi)
    assert agrees(terms, bases.angles(4.0).information)


def counted_information(x: Array, y: Array) -> float:
    counts = np.histogram2d(x, y, bins=[np.arange(-0.5, x.max() + 1), np.arange(-0.5, y.max() + 1)])[0]
    share = counts / counts.sum()
    expected = share.sum(1, keepdims=True) * share.sum(0)
    return float((share[share > 0] * np.log(share[share > 0] / expected[share > 0])).sum())


def test_noisy_symbols_by_counting() -> None:
    # 100,000 rows: the counts' standard error is below 0.004, their bias (K - 1)²/2n below 0.001.
    x, y = bases.noisy_symbols(8, 0.2).sampler(100_000, np.random.default_rng(4))
    assert counted_information(x[:, 0], y[:, 0]) == pytest.approx(bases.symbol_information(8, 0.2), abs=0.015)
    x, y = of("own", "clusters-8").draw(100_000, 0)
    assert counted_information(x.argmax(1), y.argmax(1)) == pytest.approx(
        of("own", "clusters-8").information, abs=0.015
    )
    x, y = of("own", "parity").draw(100_000, 0)
    found = counted_information((x[:, 0] * x[:, 1] > 0).astype(float), (y[:, 0] > 0).astype(float))
    assert found == pytest.approx(of("own", "parity").information, abs=0.01)
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 0.02
    x, y = of("own", "noisy-label").draw(100_000, 0)
    found = counted_information(np.floor(4 * ndtr(x.sum(1) / math.sqrt(3))), y[:, 0])
    assert found == pytest.approx(of("own", "noisy-label").information, abs=0.015)


def on_grid(density: Array, dx: float, dy: float) -> float:
    """The information of a density on a grid; it must have the mass 1 there."""
    assert density.sum() * dx * dy == pytest.approx(1, abs=1e-7)
    first, second = density.sum(1, keepdims=True) * dy, density.sum(0, keepdims=True) * dx
    inside = density > 1e-280
    ratio = density[inside] / (first * second)[inside]
    return float((density[inside] * np.log(ratio)).sum() * dx * dy)


MIXTURES = {
    "X": (bmi2.x_shape(0.9), (0, 1), (-8, 8), (-8, 8)),
    "AI": (bmi2.ai(), (0, 1), (-4, 4), (-4, 4)),
    "waves": (bmi2.waves(), (0, 2), (-3, 20), (-3, 8)),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_by_quadrature(name: str) -> None:
    mixture, columns, reach_x, reach_y = MIXTURES[name]
    xs, ys = np.linspace(*reach_x, 900), np.linspace(*reach_y, 900)
    points = np.stack(np.meshgrid(xs, ys, indexing="ij"), -1)
    density = sum(
        weight * stats.multivariate_normal(mean[list(columns)], cov[np.ix_(columns, columns)]).pdf(points)
        for weight, mean, cov in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    )
    assert on_grid(density, xs[1] - xs[0], ys[1] - ys[0]) == pytest.approx(bmi2.INFORMATION[name], abs=2e-6)


def test_galaxy_by_quadrature() -> None:
    g = np.linspace(-10, 10, 800)
    far = 1.5 * math.sqrt(2)  # Only the direction in which the centres differ tells anything.
    density = sum(0.5 * np.outer(stats.norm(side * far).pdf(g), stats.norm(side * 1.5).pdf(g)) for side in (-1, 1))
    assert on_grid(density, g[1] - g[0], g[1] - g[0]) == pytest.approx(bmi2.INFORMATION["galaxy"], abs=2e-6)


@pytest.mark.parametrize(("d", "rings"), [(3, 5), (5, 5), (3, 10), (5, 10), (25, 5)])
def test_concentric_by_quadrature(d: int, rings: int) -> None:
    # y tells the ring: its noise is a hundredth of the distance between them.
    scale = np.arange(1, rings + 1)[:, None]
    r = np.linspace(1e-9, rings * (math.sqrt(d) + 12), 40_001)
    log_density = (
        (d - 1) * np.log(r) - r**2 / (2 * scale**2) - d * np.log(scale) - (d / 2 - 1) * math.log(2) - gammaln(d / 2)
    )
    mixed = logsumexp(log_density, 0) - math.log(rings)
    found = np.trapezoid(np.exp(log_density) * (log_density - mixed), r, axis=1).mean()
    assert found == pytest.approx(bmi2.INFORMATION[f"concentric {d} {rings}"], abs=2e-6)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_inliers_by_quadrature(share: float) -> None:
    # The log-ratio of two pairs depends on two exponential variables: the squared sums and differences.
    rho, (nodes, weights) = 0.8, roots_laguerre(100)

    def mean(plus: float, minus: float) -> float:
        a, b = np.meshgrid(2 * plus * nodes, 2 * minus * nodes, indexing="ij")
        log_ratio = -math.log(1 - rho**2) + (rho * (a - b) / 2 - rho**2 * (a + b) / 2) / (1 - rho**2)
        return float(
            (np.outer(weights, weights) * np.logaddexp(math.log(1 - share) + log_ratio, math.log(share))).sum()
        )

    found = (1 - share) * mean(1 + rho, 1 - rho) + share * mean(1, 1)
    assert found == pytest.approx(bmi2.INFORMATION[f"inliers {share}"], abs=2e-6)


@pytest.mark.parametrize(
    ("mixture", "key"),
    [
        (bmi2.x_shape(0.9), "X"),
        (bmi2.ai(), "AI"),
        (bmi2.waves(), "waves"),
        (bmi2.galaxy(), "galaxy"),
        (bmi2.concentric(5, 10), "concentric 5 10"),
        (bmi2.concentric(25, 5), "concentric 25 5"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_mixtures_by_their_pointwise_information(mixture: bmi2.Mixture, key: str) -> None:
    x, y = mixture.sample(60_000, np.random.default_rng(5))
    assert agrees(mixture.pointwise(x, y), bmi2.INFORMATION[key])


def test_inliers_by_their_pointwise_information() -> None:
    x, y = of("bmi2", "mult-sparse-w-inliers-5-5-2-2.0-0.2").draw(100_000, 6)
    a, b, rho = x[:, :2], y[:, :2], 0.8
    ratio = (rho * a * b - rho**2 * (a**2 + b**2) / 2) / (1 - rho**2) - math.log(1 - rho**2) / 2
    terms = np.logaddexp(math.log(0.8) + ratio.sum(1), math.log(0.2))
    assert agrees(terms, bmi2.INFORMATION["inliers 0.2"])
    assert np.abs(np.cov(np.hstack([x[:, 2:], y[:, 2:]]).T) - np.eye(6)).max() < 0.03


def clayton(t: float) -> Callable[[Array, Array], Array]:
    def log_density(lu: Array, lv: Array) -> Array:
        both = np.logaddexp(-t * lu, -t * lv)
        inside = both + np.log1p(-np.exp(-both))
        return math.log(1 + t) - (1 + t) * (lu + lv) - (2 + 1 / t) * inside

    return log_density


def gumbel(t: float) -> Callable[[Array, Array], Array]:
    def log_density(lu: Array, lv: Array) -> Array:
        log_x, log_y = np.log(-lu), np.log(-lv)
        log_s = np.logaddexp(t * log_x, t * log_y) / t
        s = np.exp(log_s)
        return -s - lu - lv + (t - 1) * (log_x + log_y) + (1 - 2 * t) * log_s + np.log(s + t - 1)

    return log_density


def skewed(t: float, a: float, b: float) -> Callable[[Array, Array], Array]:
    def log_density(lu: Array, lv: Array) -> Array:
        both = np.logaddexp(-t * a * lu, -t * b * lv)
        inside = both + np.log1p(-np.exp(-both))
        in_u = -(1 / t + 1) * inside - (t + 1) * a * lu
        in_v = -(1 / t + 1) * inside - (t + 1) * b * lv
        parts = (
            math.log((1 - a) * (1 - b)) - a * lu - b * lv - inside / t,
            math.log(a * (1 - b)) - b * lv + in_u,
            math.log((1 - a) * b) - a * lu + in_v,
            math.log(a * b) + clayton(t)(a * lu, b * lv),
        )
        return logsumexp(np.stack(np.broadcast_arrays(*parts)), 0)

    return log_density


COPULAS = {
    "clayton 3": (clayton(3.0), copulas._clayton(3.0)),
    "gumbel 2.5": (gumbel(2.5), copulas._gumbel(2.5)),
    "skewed 6 0.95 0.5": (skewed(6.0, 0.95, 0.5), copulas._skewed(6.0, 0.95, 0.5)),
}


@pytest.mark.parametrize("name", COPULAS)
def test_copulas_by_quadrature_by_their_densities_and_margins(name: str) -> None:
    log_density, sampler = COPULAS[name]
    g = np.linspace(-8, 8, 1001)
    normal, level = stats.norm.logpdf(g), log_ndtr(g)
    log_c = log_density(level[:, None], level[None])
    mass = np.exp(log_c + normal[:, None] + normal[None]) * (g[1] - g[0]) ** 2
    assert mass.sum() == pytest.approx(1, abs=1e-9)
    assert (mass * log_c).sum() == pytest.approx(copulas.INFORMATION[name], abs=2e-6)
    x, y = sampler(100_000, np.random.default_rng(7))
    assert agrees(log_density(log_ndtr(x), log_ndtr(y))[:, 0], copulas.INFORMATION[name])
    for side in (x, y):
        assert stats.kstest(side[:5000, 0], stats.norm.cdf).pvalue > 1e-3


def test_the_other_integrals() -> None:
    # Y = 0.9 |X| + √0.19 e: h(Y) - h(e).
    y, x = np.linspace(-4, 10, 3001)[:, None], np.linspace(0, 9, 3001)
    weight = 2 * stats.norm.pdf(x) * (x[1] - x[0])
    weight[[0, -1]] /= 2
    density = (stats.norm.pdf(y, 0.9 * x, math.sqrt(0.19)) * weight).sum(1)
    found = stats.entropy(density) + math.log(y[1, 0] - y[0, 0]) - stats.norm(0, math.sqrt(0.19)).entropy()
    assert found == pytest.approx(transfer.EVEN_INFORMATION, abs=2e-6)
    # ln |Y| = X + ln |e|; the sign tells nothing.
    spread, w = np.linspace(-8, 8, 401), np.linspace(-40, 12, 12_001)
    log_noise = lambda t: 2 * stats.norm.pdf(np.exp(t)) * np.exp(t)  # noqa: E731
    density = sum(log_noise(w - a) * stats.norm.pdf(a) for a in spread) * (spread[1] - spread[0])
    step = math.log(w[1] - w[0])
    found = (stats.entropy(density) + step) - (stats.entropy(log_noise(w)) + step)
    assert found == pytest.approx(own.VOLATILITY_INFORMATION, abs=1e-5)
    # Y = X₁ X₂ + 0.3 e is normal given X₁.
    y, x = np.linspace(-40, 40, 8001), np.linspace(-8, 8, 1601)
    density = sum(stats.norm.pdf(y, 0, math.sqrt(a * a + 0.09)) * stats.norm.pdf(a) for a in x) * (x[1] - x[0])
    found = stats.entropy(density) + math.log(y[1] - y[0]) - stats.norm(0, 0.3).entropy()
    assert found == pytest.approx(own.PRODUCT_INFORMATION, abs=1e-5)


def test_rectified_pair_by_the_four_parts_of_its_law() -> None:
    x, y = of("traps", "relu-atoms").draw(200_000, 8)
    x, y, rho = x[:, 0], y[:, 0], 0.8
    off = math.sqrt(1 - rho**2)
    both = (rho * x * y - rho**2 * (x**2 + y**2) / 2) / (1 - rho**2) - math.log(1 - rho**2) / 2
    nothing = math.log((0.25 + math.asin(rho) / (2 * math.pi)) / 0.25)
    only_x, only_y = (log_ndtr(-rho * side / off) - math.log(0.5) for side in (x, y))
    terms = np.where(x > 0, np.where(y > 0, both, only_x), np.where(y > 0, only_y, nothing))
    assert agrees(terms, traps.RECTIFIED_INFORMATION)


@pytest.mark.parametrize("place", range(len(networks._TASKS)))
def test_networks_are_undone(place: int) -> None:
    d, pairs, rho, depth, general = networks._TASKS[place]
    law = tasks_of("networks")[place]
    sides = law.draw(2000, 9)
    back = [
        networks.invert_network(side, *networks.layers(d, depth, 1000 + 2 * place + k, general))
        for k, side in enumerate(sides)
    ]
    correlation = np.corrcoef(np.hstack(back).T)
    assert np.abs(np.diag(correlation[:d, d:])[:pairs] - rho).max() < 0.1
    assert law.information == pytest.approx(-pairs / 2 * math.log(1 - rho**2))
    assert stats.kstest(back[0].ravel()[:4000], stats.norm.cdf).pvalue > 1e-4


def test_warps_are_undone() -> None:
    d, seed = 5, 3
    rows = np.random.default_rng(1).standard_normal((200, d))
    bent = maps.warp(d, seed)(rows)
    rng, half = np.random.default_rng(seed), d // 2
    fixed = []
    for _ in range(2):
        turn = maps.rotation(d, rng)
        fixed.append((turn, rng.standard_normal((half, d - half)) / np.sqrt(half), rng.uniform(0, 2 * np.pi, d)))
    for turn, weights, phases in reversed(fixed):
        low, high = bent - 1, bent + 1  # z + 0.5 sin(…) rises: its slope is at least 1/4.
        for _ in range(60):
            middle = (low + high) / 2
            below = middle + 0.5 * np.sin(1.5 * middle + phases) < bent
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        flat = (low + high) / 2
        flat[:, half:] -= np.sin(2 * flat[:, :half] @ weights)
        bent = flat @ turn.T
    assert np.abs(bent - rows).max() < 1e-9


@pytest.mark.parametrize("bend", [maps.wiggly_x, maps.wiggly_y, maps.half_cube, maps.asinh, maps.normal_cdf])
def test_maps_of_columns_rise(bend: Callable[[Array], Array]) -> None:
    assert (np.diff(bend(np.linspace(-5, 5, 20_001)[:, None])[:, 0]) > 0).all()


def test_bimodal_columns_have_their_law() -> None:
    x, y = of("bmi", "1v1-bimodal-0.75").draw(5000, 2)
    of_x, of_y = (
        lambda t: 0.3 * ndtr(t) + 0.7 * ndtr(t - 5),
        lambda t: 0.5 * ndtr(t + 1) + 0.5 * ndtr(t - 3),
    )
    assert stats.kstest(x[:, 0], of_x).pvalue > 1e-3
    assert stats.kstest(y[:, 0], of_y).pvalue > 1e-3
    back = np.corrcoef(stats.norm.ppf(of_x(x[:, 0])), stats.norm.ppf(of_y(y[:, 0])))[0, 1]
    assert back == pytest.approx(0.75, abs=0.03)


def test_spirals_and_the_roll_are_undone() -> None:
    rows = np.random.default_rng(2).standard_normal((100, 3))
    turned = maps.spiral(1, 2)(rows)
    assert np.allclose((turned**2).sum(1), (rows**2).sum(1))  # so the angle can be read off what was turned
    assert np.allclose(maps.spiral(1, 2, -1 / 3)(turned), rows)
    u = np.linspace(0, 1, 1001)[:, None]
    rolled = maps.swiss_roll(u) * 21
    assert np.allclose(np.linalg.norm(rolled, axis=1), 1.5 * np.pi * (1 + 2 * u[:, 0]))


def test_pictures_are_read_back() -> None:
    numbers = np.random.default_rng(3).uniform(0.001, 0.999, (300, 4))
    size = 16
    picture = images.bumps(size)(numbers[:, :2]).reshape(-1, size, size)
    grid = (np.arange(size) + 0.5) / size
    for axis, given in ((1, numbers[:, 0]), (2, numbers[:, 1])):
        logs = np.log(picture.sum(axis))
        slope = np.polyfit(grid, (logs + grid**2 / (2 * 0.2**2)).T, 1)[0]
        assert np.abs(slope * 0.2**2 - given).max() < 1e-9
    picture = images.rectangles(size)(numbers).reshape(-1, size, size)
    for axis, share, place in ((1, numbers[:, 0], numbers[:, 1]), (2, numbers[:, 2], numbers[:, 3])):
        covered = picture.max(axis)
        length = covered.sum(1) / size
        first = covered.argmax(1)  # the first whole or largest pixel; before it lies at most a part of one
        first = np.where(covered[np.arange(300), first - 1] > 0, first - 1, first)
        start = (first + 1 - covered[np.arange(300), first]) / size
        assert np.abs((length - 0.2) / 0.8 - share).max() < 1e-9
        assert np.abs(start / (1 - length) - place).max() < 1e-6


def test_wide_embeddings_are_injective() -> None:
    two = bases.pairs_with_information(2.0, 10)
    x, _ = two.sampler(300, np.random.default_rng(4))
    seen = wide._linear(500, 401)(x)
    assert np.linalg.matrix_rank(seen) == 10
    weights = np.random.default_rng(401).standard_normal((10, 500)) / np.sqrt(10)
    assert np.allclose(np.linalg.lstsq(weights.T, seen.T)[0].T, x)
    rng = np.random.default_rng(403)
    first, second = rng.standard_normal((10, 64)) / np.sqrt(10), rng.standard_normal((64, 500)) / np.sqrt(64)
    inside = np.linalg.lstsq(second.T, np.arctanh(wide._mlp(500, 403)(x)).T)[0].T
    back = np.linalg.lstsq(first.T, np.where(inside > 0, inside, inside / 0.2).T)[0].T
    assert np.abs(back - x).max() < 1e-6


def test_noisy_linear_by_all_its_columns() -> None:
    d, rho, noise = 30, 0.9, 3.0
    a, b = (np.random.default_rng(seed).standard_normal((10, d)) / np.sqrt(10) for seed in (5, 6))
    covariance = np.block([[a.T @ a, rho * a.T @ b], [rho * b.T @ a, b.T @ b]]) + noise**2 * np.eye(2 * d)
    pair = wide.noisy_linear(d, rho, noise, 5)
    assert pair.information == pytest.approx(bases.gaussian_information(covariance, d), abs=1e-10)
    x, y = pair.sampler(20_000, np.random.default_rng(0))
    assert np.abs(np.cov(np.hstack([x, y]).T) - covariance).max() < 0.07 * covariance.max()


def test_the_channel_keeps_its_share() -> None:
    flip = flip_for(0.5)
    assert 1 + flip * math.log2(flip) + (1 - flip) * math.log2(1 - flip) == pytest.approx(0.5, abs=1e-9)
    law = of("channel", "bits-4-kept-0.5")
    x, y = law.draw(3000, 0)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    known = {tuple(row): label for row, label in zip(pixels, labels, strict=True)}
    tiles = [(side.reshape(-1, 64) * 16).round() for side in (x, y)]
    bits = [np.array([known[tuple(tile)] for tile in side]) for side in tiles]
    assert not {tuple(t) for t in tiles[0][:400]} & {tuple(t) for t in tiles[1][:400]}
    assert set(bits[0]) == {0, 1}
    assert (bits[0] != bits[1]).mean() == pytest.approx(flip, abs=0.012)  # 12,000 bits: 4 standard errors
    assert law.information == pytest.approx(4 * 0.5 * math.log(2))


def test_traps_hold_what_they_say() -> None:
    x, y = of("traps", "duplicates-dependent").draw(400, 0)
    assert np.unique(np.hstack([x, y]), axis=0).shape[0] == 100
    x, y = of("traps", "deterministic").draw(50, 0)
    assert np.allclose(y, np.tanh(x[:, :3] + 0.5 * x[:, 1:]))
    x, y = of("traps", "copied-column").draw(50, 0)
    assert np.array_equal(x[:, 2], y[:, 1])
    x, y = of("traps", "misaligned-half").draw(20_000, 0)
    ends = [np.corrcoef(x[rows, 0], y[rows, 0])[0, 1] for rows in (slice(10_000), slice(10_000, None))]
    assert ends[0] == pytest.approx(0.8, abs=0.03)
    assert ends[1] == pytest.approx(0, abs=0.04)
    x, _ = of("traps", "constant-column").draw(50, 0)
    assert (x.std(0) == 0).sum() == 1
    x, y = of("traps", "scaling-turned").draw(50_000, 0)
    turn = maps.rotation(4, np.random.default_rng(503))
    back = x @ turn.T / np.array([1, 1, 1, 1e6])
    assert np.corrcoef(back[:, 0], y[:, 0])[0, 1] == pytest.approx(0.8, abs=0.01)
    x, y = of("traps", "views-of-items").draw(2000, 0)
    assert np.linalg.matrix_rank(np.round(np.hstack([x, y]), 8)) == 6
    assert all(law.is_trap for law in tasks_of("traps"))
    assert not any(law.is_trap for law in ALL if law.suite != "traps")


def paired_correlations(x: Array, y: Array) -> Array:
    d = x.shape[1]
    return np.diag(np.corrcoef(np.hstack([x, y]).T)[:d, d:])


@pytest.mark.parametrize("name", ["gaussian-8", "cubic-8"])
def test_the_staircase_by_its_correlations(name: str) -> None:
    x, y = of("staircase", name).draw(20_000, 0)
    rho = paired_correlations(x, np.cbrt(y) if name.startswith("cubic") else y)
    # The standard error of -½ Σ ln(1 - r²) is √(Σ ρ²/n), here 0.024, its bias Σ ρ²/n.
    assert -np.log1p(-(rho**2)).sum() / 2 == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize("law", tasks_of("high"), ids=lambda law: law.name)
def test_high_information_by_its_correlations(law: Task) -> None:
    x, y = law.draw(20_000, 0)
    if law.name.startswith("logistic"):
        assert stats.kstest(x[:5000, 0], stats.logistic.cdf).pvalue > 1e-3
        x, y = (stats.norm.ppf(stats.logistic.cdf(side)) for side in (x, y))
    rho = paired_correlations(x, y)
    assert -np.log1p(-(rho**2)).sum() / 2 == pytest.approx(law.information, abs=0.5)
    assert law.information == pytest.approx(float(law.name.rpartition("-")[2]), abs=0.005)


def test_own_laws_are_undone() -> None:
    x, y = of("own", "softmax-7").draw(20_000, 0)
    assert np.allclose(x.sum(1), 1)
    back = [np.log(side[:, :-1] / side[:, -1:]) for side in (x, y)]
    assert np.allclose(paired_correlations(*back), [0.8] * 3 + [0] * 3, atol=0.04)
    x, y = of("own", "log-normal-4-turned").draw(20_000, 0)
    back = [np.log(side @ maps.rotation(4, np.random.default_rng(seed)).T) for side, seed in ((x, 309), (y, 310))]
    assert np.allclose(paired_correlations(*back), [0.8] * 3 + [0], atol=0.04)
    x, y = of("own", "circles-3").draw(20_000, 0)
    first, second = (np.arctan2(side[:, 1], side[:, 0]) for side in (x, y))
    assert np.cos(first - second).mean() == pytest.approx(0.8635, abs=0.01)  # I₁(4) / I₀(4)
    radii = [np.linalg.norm(side[:, :2], axis=1) for side in (x, y)]
    assert abs(np.corrcoef(*radii)[0, 1]) < 0.03
    x, y = of("own", "product-2").draw(50_000, 0)
    for k in (0, 1):
        rest = y[:, k] - x[:, 2 * k] * x[:, 2 * k + 1]
        assert rest.std() == pytest.approx(0.3, abs=0.01)
    x, y = of("own", "volatility-2").draw(5000, 0)
    assert stats.kstest((y / np.exp(x)).ravel()[:5000], stats.norm.cdf).pvalue > 1e-3


def test_pictures_share_what_their_numbers_share() -> None:
    x, y = of("images", "bumps-16-pixels-5").draw(20_000, 0)
    centres = []
    grid = (np.arange(16) + 0.5) / 16
    for side in (x, y):
        across = side.reshape(-1, 16, 16).sum(1)
        centres.append(np.polyfit(grid, (np.log(across) + grid**2 / 0.08).T, 1)[0] * 0.04)
    rho = np.corrcoef(*(stats.norm.ppf(centre) for centre in centres))[0, 1]
    assert -math.log1p(-(rho**2)) / 2 == pytest.approx(2.5, abs=0.05)


def test_pairs_side_by_side_add() -> None:
    one, two = bases.gaussian_pairs([0.5], 1), Pair(2, 1, 0.7, bases.independent(2, 1).sampler, error=0.1)
    both = one.beside(two)
    assert (both.d_x, both.d_y) == (3, 2)
    assert both.information == pytest.approx(one.information + 0.7)
    assert two.times(3).error == pytest.approx(0.3)
    assert two.times(3).d_x == 6
    x, y = one.times(2).sampler(20_000, np.random.default_rng(0))
    correlation = np.corrcoef(np.hstack([x, y]).T)
    assert np.allclose(correlation[:2, 2:], 0.5 * np.eye(2), atol=0.04)
    with pytest.raises(InputError, match="n must be at least 1"):
        Task("one", "none", one).draw(0, 0)
