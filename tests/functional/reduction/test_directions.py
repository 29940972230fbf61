"""Directions found in wide rows, and neighbors set right by Gaussian samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit import InputError
from mikit.functional.gaussian.canonical import gaussian_mi
from mikit.functional.neighbors.anchored import anchored_ksg, anchored_ksg_pointwise
from mikit.functional.neighbors.ksg import ksg
from mikit.functional.reduction.axes import PrincipalAxes
from mikit.functional.reduction.code_maps import CodeMap
from mikit.functional.reduction.directions import Reduction, contrast_evidence, informative_directions


def _planted(n: int, latents: int, rho: float, d: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Latents seen linearly in half of the columns, noise in all."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, latents, generator=g)
    w = rho * z + math.sqrt(1 - rho**2) * torch.randn(n, latents, generator=g)
    sides = []
    for latent in (z, w):
        seen = latent @ torch.randn(latents, d // 2, generator=g)
        sides.append(torch.cat([seen, torch.zeros(n, d - d // 2)], 1) + noise * torch.randn(n, d, generator=g))
    return sides[0], sides[1]


def _found(x: Tensor, y: Tensor, fit: int, select: int, seed: int = 0, **settings: bool) -> Reduction:
    g = torch.Generator().manual_seed(seed)
    stop = fit + select
    return informative_directions(x[:fit], y[:fit], x[fit:stop], y[fit:stop], generator=g, **settings)


def test_the_number_of_planted_latents_is_found_and_their_information_kept() -> None:
    x, y = _planted(2500, 5, 0.8, 300, seed=1)
    found = _found(x, y, 900, 400)
    assert found.pairs == 5
    truth = -2.5 * math.log(1 - 0.64)
    value = float(gaussian_mi(found.codes(x[1300:]), found.codes_y(y[1300:])))
    # 0.08 is the standard error √(5 ρ² / 1,200) taken twice; noise on 150 columns costs 1 % of a latent's variance.
    assert truth - 0.25 < value < truth + 0.12


def test_more_columns_than_rows_and_no_dependence_give_nothing() -> None:
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(700, 900, generator=g), torch.randn(700, 800, generator=g)
    found = _found(x, y, 300, 150)
    assert found.evidence < 0.1
    a, b = found.codes(x[450:]), found.codes_y(y[450:])
    # With k pairs and n rows, 2 n I ~ χ²(k²): its mean is subtracted, five of its deviations are allowed.
    assert abs(float(gaussian_mi(a, b))) < 5 * math.sqrt(2) * found.pairs / (2 * 250)


def test_more_columns_than_rows_still_show_planted_latents() -> None:
    x, y = _planted(1000, 2, 0.9, 1500, seed=3, noise=2.0)
    found = _found(x, y, 400, 200)
    assert found.pairs in (2, 3)
    assert float(gaussian_mi(found.codes(x[600:]), found.codes_y(y[600:]))) > 0.85 * -math.log(1 - 0.81)


def test_even_dependence_needs_codes_that_are_not_linear() -> None:
    g = torch.Generator().manual_seed(4)
    z = torch.randn(2000, 1, generator=g)
    w = z.abs() + 0.2 * torch.randn(2000, 1, generator=g)
    x = z @ torch.randn(1, 40, generator=g) + 0.3 * torch.randn(2000, 40, generator=g)
    y = w @ torch.randn(1, 40, generator=g) + 0.3 * torch.randn(2000, 40, generator=g)
    blind, seeing = _found(x, y, 1000, 500, nonlinear=False), _found(x, y, 1000, 500)
    assert blind.evidence < 0.1
    assert seeing.evidence > 0.5


def test_straightened_codes_undo_a_quadratic_bend() -> None:
    g = torch.Generator().manual_seed(5)
    z = torch.randn(6000, 3, generator=g)
    w = 0.8 * z + 0.6 * torch.randn(6000, 3, generator=g)
    # A gradient field, bent along random axes: the part of a bend that third moments show.
    turn = torch.linalg.qr(torch.randn(3, 3, generator=g))[0]
    x, y = ((one + 0.15 * ((one @ turn).square() - 1) @ turn.T) for one in (z, w))
    linear, found = _found(x, y, 2000, 1000, nonlinear=False), _found(x, y, 2000, 1000)
    assert found.description == f"{linear.description}, straightened"
    before, after = (
        contrast_evidence(one.codes(x[3000:]), one.codes_y(y[3000:]), (one.pairs,))[0] for one in (linear, found)
    )
    assert after > before + 0.05


def test_the_scale_and_offset_of_columns_do_not_matter() -> None:
    x, y = _planted(900, 2, 0.8, 60, seed=6)
    g = torch.Generator().manual_seed(7)
    scale = torch.exp(4 * torch.randn(60, generator=g)).double()
    first = _found(x.double(), y.double(), 500, 200)
    second = _found(x.double() * scale + 100 * scale, y.double(), 500, 200)
    assert first.description == second.description
    one, other = first.codes(x.double()), second.codes(x.double() * scale + 100 * scale)
    torch.testing.assert_close(one.abs(), other.abs(), rtol=1e-3, atol=1e-3)


def test_one_seed_gives_one_reduction_and_the_global_generator_is_left_alone() -> None:
    x, y = _planted(600, 2, 0.8, 50, seed=8)
    state = torch.random.get_rng_state()
    first, second = _found(x, y, 300, 150), _found(x, y, 300, 150)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.codes(x), second.codes(x))
    assert first.evidence == second.evidence


def test_a_side_that_never_varies_has_no_codes() -> None:
    y = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    found = _found(torch.full((60, 4), 2.5), y, 30, 20)
    assert found.pairs == 0
    assert found.codes(torch.full((7, 4), 2.5)).shape == (7, 0)
    assert found.evidence == 0.0


def test_principal_axes_of_wide_tall_and_large_rows_agree_with_the_singular_values() -> None:
    g = torch.Generator().manual_seed(9)
    for n, d in ((80, 200), (200, 80), (1300, 1250)):
        rows = torch.randn(n, 6, generator=g) @ torch.randn(6, d, generator=g) * 3 + torch.randn(n, d, generator=g)
        axes = PrincipalAxes.of(rows, torch.Generator().manual_seed(0))
        z = (rows - rows.mean(0)) / (rows - rows.mean(0)).square().mean(0).sqrt()
        exact = torch.linalg.svdvals(z.double()).square() / n
        torch.testing.assert_close(axes.variances[:6], exact[:6], rtol=1e-4, atol=1e-4)
        coordinates = axes.project(rows)[:, :6].double()
        expected = torch.diag(exact[:6])
        torch.testing.assert_close(coordinates.T @ coordinates / n, expected, rtol=1e-3, atol=1e-2)


def test_the_contrast_is_infonce_with_the_gaussian_score() -> None:
    g = torch.Generator().manual_seed(10)
    a = torch.randn(60, 3, generator=g, dtype=torch.float64)
    b = 0.7 * a + 0.7 * torch.randn(60, 3, generator=g, dtype=torch.float64)
    seen = contrast_evidence(a, b, (2, 3))
    z = [(c - c.mean(0)) / (c - c.mean(0)).square().mean(0).sqrt() for c in (a, b)]
    for k, value in zip((2, 3), seen, strict=True):
        total = 0.0
        rho = (z[0] * z[1]).mean(0)
        s = torch.zeros(60, 60, dtype=torch.float64)
        for i in range(60):
            for j in range(60):
                for c in range(k):
                    p, q, r = z[0][i, c], z[1][j, c], rho[c]
                    s[i, j] += (r * p * q - r**2 * (p**2 + q**2) / 2) / (1 - r**2)
        for i in range(60):
            total += float(s[i, i] - 0.5 * (s[i].logsumexp(0) + s[:, i].logsumexp(0))) / 60
        assert value == pytest.approx(total + math.log(60) - k / 60, abs=1e-5)


def test_the_contrast_does_not_count_a_code_and_its_square_twice() -> None:
    g = torch.Generator().manual_seed(11)
    a = torch.randn(1000, 1, generator=g)
    b = 0.95 * a + math.sqrt(1 - 0.95**2) * torch.randn(1000, 1, generator=g)
    once, twice = contrast_evidence(torch.cat([a, a.square()], 1), torch.cat([b, b.square()], 1), (1, 2))
    assert twice < once
    assert float(gaussian_mi(torch.cat([a, a.square()], 1), torch.cat([b, b.square()], 1))) > once + 0.5


def test_anchored_neighbors_are_right_for_many_gaussian_columns() -> None:
    g = torch.Generator().manual_seed(12)
    errors = []
    for _ in range(4):
        a = torch.randn(700, 8, generator=g)
        b = 0.7 * a + math.sqrt(0.51) * torch.randn(700, 8, generator=g)
        errors.append(float(anchored_ksg(a, b, draws=4, generator=g)) + 4 * math.log(0.51))
    # √(8 ρ² / 700) = 0.075 a sample; neighbors alone read 1.2 nats too little.
    assert abs(sum(errors) / 4) < 3.5 * 0.085 / 2
    assert float(ksg(a, b)) < 2.0


def test_anchored_neighbors_see_what_has_no_correlation() -> None:
    g = torch.Generator().manual_seed(13)
    a = torch.randn(1500, 1, generator=g)
    b = a * torch.where(torch.rand(1500, 1, generator=g) < 0.5, -0.95, 0.95) + 0.3 * torch.randn(1500, 1, generator=g)
    assert abs(float(gaussian_mi(a, b))) < 0.02
    assert abs(float(anchored_ksg(a, b, generator=g)) - float(ksg(a, b))) < 0.05
    assert float(anchored_ksg(a, b, generator=g)) > 0.4


def test_independent_codes_give_values_about_0() -> None:
    g = torch.Generator().manual_seed(14)
    values = torch.stack(
        [
            anchored_ksg(torch.randn(400, 3, generator=g), torch.randn(400, 3, generator=g), generator=g)
            for _ in range(8)
        ]
    )
    assert abs(float(values.mean())) < 4 * float(values.std()) / 8**0.5
    assert float(values.min()) < 0


def test_contributions_average_to_the_estimate() -> None:
    g = torch.Generator().manual_seed(15)
    a = torch.randn(200, 2, generator=g)
    b = a + torch.randn(200, 2, generator=g)
    each = anchored_ksg_pointwise(a, b, generator=torch.Generator().manual_seed(3))
    whole = anchored_ksg(a, b, generator=torch.Generator().manual_seed(3))
    assert each.shape == (200,)
    assert float(each.mean()) == pytest.approx(float(whole), abs=1e-12)


def test_what_cannot_be_reduced_is_refused() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="most is 0"):
        informative_directions(x, x, x, x, most=0)
    with pytest.raises(InputError, match="x_fit has 3 features and x_select has 2"):
        informative_directions(x, x, x[:, :2], x)
    with pytest.raises(InputError, match="y_fit has shape"):
        informative_directions(x, x[:, 0], x, x[:, 0])
    with pytest.raises(InputError, match="x_select contains"):
        informative_directions(x, x, x.new_full((40, 3), torch.nan), x)
    with pytest.raises(InputError, match="at least 4"):
        informative_directions(x[:2], x[:2], x, x)
    with pytest.raises(InputError, match="equal"):
        contrast_evidence(x, x[:, :2], (1,))
    none = x[:2, :0]
    code_map = CodeMap(x.mean(0), x[:3, :2], none, none[0], none, torch.eye(2), torch.zeros(2))
    with pytest.raises(InputError, match="width 3"):
        code_map(x[:, :2])
    with pytest.raises(InputError, match="draws is 0"):
        anchored_ksg(x, x, draws=0, generator=torch.Generator())
    with pytest.raises(InputError, match=r"6 samples for 3 \+ 3 codes"):
        anchored_ksg(x[:6], x[:6], generator=torch.Generator())
