"""The recovered share against planted truth, against noise that is really sampled, and against naive folds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import multivariate_normal

from mikit.core.errors import InputError
from mikit.functional.flow.log_determinants import corrected_log_determinant
from mikit.functional.flow.moments import centered, cross_products, factor_layer, factored_cka, principal_axes
from mikit.functional.flow.recovery import Recovery, recover, recovered_share


def _chain(d: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A Gaussian teacher layer, a noisy student map of half its width, and their true moments."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d)) * np.arange(1, d + 1) ** -0.5
    reading = rng.standard_normal((d // 2, d)) / np.sqrt(d)
    variance = float((mix**2).sum()) / d
    t = rng.standard_normal((n, d)) @ mix.T
    s = t @ reading.T + 0.3 * np.sqrt(variance) * rng.standard_normal((n, d // 2))
    s_tt = mix @ mix.T
    s_ss = reading @ s_tt @ reading.T + 0.09 * variance * np.eye(d // 2)
    return s, t, s_ss, s_tt, reading @ s_tt


def _truth(s_ss: np.ndarray, s_tt: np.ndarray, s_st: np.ndarray, noise: float, student_noise: float) -> tuple:
    a, b = np.trace(s_ss) / len(s_ss), np.trace(s_tt) / len(s_tt)
    ss = s_ss / a + student_noise**2 * np.eye(len(s_ss))
    tt = s_tt / b + noise**2 * np.eye(len(s_tt))
    st_ = s_st / np.sqrt(a * b)
    joint = np.block([[ss, st_], [st_.T, tt]])
    information = 0.5 * sum(sign * np.linalg.slogdet(m)[1] for sign, m in ((1, ss), (1, tt), (-1, joint)))
    return information, 0.5 * np.log1p(np.linalg.eigvalsh(s_tt / b) / noise**2).sum()


@pytest.mark.parametrize(("d", "draws"), [(32, 4), (128, 4), pytest.param(512, 1, marks=pytest.mark.slow)])
def test_planted_truth(d: int, draws: int) -> None:
    errors = []
    for seed in range(draws):
        s, t, *moments = _chain(d, 5000, seed)
        (found,) = recovered_share(s, t, noise=[0.3], seed=seed)
        information, ceiling = _truth(*moments, 0.3, 0.03)
        assert abs(found.share - information / ceiling) < 0.01
        assert found.held_out < found.in_sample
        assert found.ceiling == pytest.approx(ceiling, rel=0.02)
        errors.append([v / information - 1 for v in (found.held_out, found.information, found.in_sample)])
    low, middle, high = np.mean(errors, axis=0)
    # The mean over the draws: one sample's own error is about sqrt(d / 2n) nats, 0.5 % at d = 32.
    assert abs(middle) < 0.005
    assert low < 0 < high


@pytest.mark.parametrize("level", [0.0, 0.5, 4.0])
def test_few_rows_leave_no_bias(level: float) -> None:
    """At 10 rows a column the plug-in value is off by far more than its scatter, unless one layer is a function of the
    other; the corrected information and ceiling are not."""
    rng = np.random.default_rng(3)
    mix, reading = rng.standard_normal((60, 60)) * np.arange(1, 61) ** -0.5, rng.standard_normal((30, 60)) / np.sqrt(60)
    s_tt = mix @ mix.T
    extra = level**2 * float(np.trace(s_tt)) / 60
    s_ss = reading @ s_tt @ reading.T + extra * np.eye(30)
    information, ceiling = _truth(s_ss, s_tt, reading @ s_tt, 0.3, 0.03)
    found = []
    for _ in range(12):
        t = rng.standard_normal((900, 60)) @ mix.T
        s = t @ reading.T + np.sqrt(extra) * rng.standard_normal((900, 30))
        found.append(recovered_share(s, t, noise=[0.3])[0])
    values = np.array([one.information for one in found])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - information) < 4 * error
    assert level == 0 or abs(np.mean([one.in_sample for one in found]) - information) > 10 * error
    assert np.mean([one.share for one in found]) == pytest.approx(information / ceiling, abs=0.002)
    assert np.mean([one.ceiling for one in found]) == pytest.approx(ceiling, rel=0.004)


def test_permuted_rows_give_nothing() -> None:
    s, t, *_ = _chain(32, 5000, seed=1)
    (found,) = recovered_share(s, t[np.random.default_rng(0).permutation(5000)], noise=[0.3])
    assert abs(found.corrected) < 0.02
    assert abs(found.information) < 0.02
    assert found.held_out < 0 < found.in_sample
    assert abs(found.share) < 0.01


def test_held_out_score_is_that_of_noise_really_added() -> None:
    """Noise added to copies of the rows, and the Gaussians' densities evaluated one by one, give the same mean."""
    s, t, *_ = _chain(4, 240, seed=2)
    parts = np.array_split(np.random.default_rng(3).permutation(240), 3)
    a, b = centered(s), centered(t)
    fs, ft = factor_layer(a, parts), factor_layer(b, parts)
    (found,) = recover(fs, ft, cross_products(a, b, parts), noise=[0.5], student_noise=0.4)
    x, y = s / fs.scale, t / ft.scale
    rng = np.random.default_rng(4)
    scores = []
    for report in parts:
        fit = np.setdiff1d(np.arange(240), report)
        joint = np.cov(np.hstack([x[fit], y[fit]]).T, bias=True)
        joint += np.diag([0.4**2] * 2 + [0.5**2] * 4)
        mean = np.hstack([x[fit], y[fit]]).mean(axis=0)
        copies = 4000
        noisy = np.hstack([np.repeat(x[report], copies, axis=0), np.repeat(y[report], copies, axis=0)])
        noisy += rng.standard_normal(noisy.shape) * ([0.4] * 2 + [0.5] * 4)
        ratio = multivariate_normal(mean, joint).logpdf(noisy)
        ratio -= multivariate_normal(mean[:2], joint[:2, :2]).logpdf(noisy[:, :2])
        ratio -= multivariate_normal(mean[2:], joint[2:, 2:]).logpdf(noisy[:, 2:])
        scores.append(ratio)
    drawn = np.concatenate(scores)
    assert abs(found.held_out - drawn.mean()) < 4 * drawn.std() / np.sqrt(len(drawn))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), d_s=st.integers(1, 5), d_t=st.integers(1, 5), folds=st.integers(2, 6))
def test_matrix_form_is_the_plain_formula(seed: int, d_s: int, d_t: int, folds: int) -> None:
    """For any widths, uncentred rows and unequal folds: moments of each fold, inverted as they stand."""
    rng = np.random.default_rng(seed)
    s, t = rng.standard_normal((101, d_s)) + 2, rng.standard_normal((101, d_t)) - 1
    s[:, 0] += t[:, 0]
    parts = np.array_split(rng.permutation(101), folds)
    fs, ft = factor_layer(s, parts), factor_layer(t, parts)
    (found,) = recover(fs, ft, cross_products(s, t, parts), noise=[0.3], student_noise=0.1)
    assert fs.scale == pytest.approx(np.sqrt(s.var(axis=0).mean()))
    rows = np.hstack([s / fs.scale, t / ft.scale])
    extra = np.diag([0.1**2] * d_s + [0.3**2] * d_t)

    def score(fit: np.ndarray, report: np.ndarray) -> float:
        mean = rows[fit].mean(axis=0)
        model = (rows[fit] - mean).T @ (rows[fit] - mean) / len(fit) + extra
        seen = (rows[report] - mean).T @ (rows[report] - mean) / len(report) + extra
        total = 0.0
        for sign, block in ((1, slice(None)), (-1, slice(d_s)), (-1, slice(d_s, None))):
            m = model[block, block]
            total -= sign * 0.5 * (np.linalg.slogdet(m)[1] + np.trace(np.linalg.inv(m) @ seen[block, block]))
        return total

    everything = np.arange(101)
    held_out = sum(score(np.setdiff1d(everything, p), p) * len(p) for p in parts) / 101
    assert found.held_out == pytest.approx(held_out, abs=1e-9)
    assert found.in_sample == pytest.approx(score(everything, everything), abs=1e-9)
    spectrum = np.linalg.eigvalsh(np.atleast_2d(np.cov(rows[:, d_s:].T, bias=True)))
    assert found.ceiling == pytest.approx(0.5 * corrected_log_determinant(spectrum * 1.01 / 0.09, 100))
    joint = np.cov((rows / np.sqrt(np.diag(extra))).T)
    blocks = (joint[:d_s, :d_s], joint[d_s:, d_s:], joint)
    s_, t_, both = (corrected_log_determinant(np.clip(np.linalg.eigvalsh(block), 0, None), 100) for block in blocks)
    assert found.information == pytest.approx(0.5 * (s_ + t_ - both), abs=2e-4)


def test_interval_holds_the_truth() -> None:
    """Of 60 samples, binomial(60, .95) leaves fewer than 51 covered once in a thousand times."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        t = rng.standard_normal((1500, 4)) * [2, 1, 1, 0.5]
        s = t[:, :2] + 0.7 * rng.standard_normal((1500, 2))
        (found,) = recovered_share(s, t, noise=[0.3], seed=seed)
        s_tt = np.diag([4, 1, 1, 0.25])
        information, ceiling = _truth(s_tt[:2, :2] + 0.49 * np.eye(2), s_tt, s_tt[:2], 0.3, 0.03)
        low, high = found.interval
        covered += low <= information / ceiling <= high
    assert covered >= 51


def test_noise_levels_are_independent_and_cheap() -> None:
    s, t, *_ = _chain(8, 500, seed=5)
    together = recovered_share(s, t, noise=[0.1, 0.3, 1.0])
    alone = [recovered_share(s, t, noise=[level])[0] for level in (0.1, 0.3, 1.0)]
    assert list(together) == alone
    assert together[0].ceiling > together[1].ceiling > together[2].ceiling


def test_scale_rotation_and_offset_of_a_layer_change_nothing() -> None:
    s, t, *_ = _chain(8, 600, seed=6)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    (plain,) = recovered_share(s, t, noise=[0.3])
    (moved,) = recovered_share(1e-3 * s + 5, 40 * t @ turn - 1e4, noise=[0.3])
    assert moved.share == pytest.approx(plain.share, abs=1e-8)
    # A scale per dimension is another question and gets another answer.
    (other,) = recovered_share(s, t * np.arange(1, 9), noise=[0.3])
    assert abs(other.share - plain.share) > 0.01


def test_single_precision_is_close_to_double() -> None:
    s, t, *_ = _chain(64, 2000, seed=7)
    for low, high in zip(
        recovered_share(s.astype(np.float32) + 100, t.astype(np.float32), noise=[0.1, 1.0]),
        recovered_share(s, t, noise=[0.1, 1.0]),
        strict=True,
    ):
        assert low.midpoint == pytest.approx(high.midpoint, rel=1e-4)


def test_few_rows_are_refused_or_reduced() -> None:
    s, t, *_ = _chain(64, 400, seed=8)
    with pytest.raises(InputError, match=r"400 samples are too few.*at least 480.*reduce=40"):
        recovered_share(s, t)
    (found,) = recovered_share(s, t, noise=[0.3], reduce=8)
    x, y = centered(s), centered(t)
    (expected,) = recovered_share(x @ principal_axes(x, 8), y @ principal_axes(y, 8), noise=[0.3])
    assert found.share == pytest.approx(expected.share, abs=1e-9)


@pytest.mark.parametrize("noise", [0.0, -0.1, float("nan"), [0.1, 0.2]])
def test_noise_must_be_one_positive_number(noise) -> None:
    s, t, *_ = _chain(4, 200, seed=9)
    with pytest.raises(InputError, match="noise level"):
        recovered_share(s, t, noise=[noise])


def test_folds_must_agree() -> None:
    s, t, *_ = _chain(4, 200, seed=10)
    thirds, halves = np.array_split(np.arange(200), 3), np.array_split(np.arange(200), 2)
    a, b = factor_layer(s, thirds), factor_layer(t, halves)
    with pytest.raises(InputError, match="same samples and folds"):
        recover(a, b, cross_products(s, t, thirds), noise=[0.3])
    with pytest.raises(InputError, match="in total do not cover 200 samples"):
        factor_layer(s, thirds[:2])


def test_dead_layers_have_no_share_and_recover_nothing() -> None:
    t = np.random.default_rng(0).standard_normal((200, 3))
    dead = np.full((200, 3), 2.0)
    assert np.isnan(recovered_share(t, dead, noise=[0.3])[0].share)
    (found,) = recovered_share(dead, t, noise=[0.3])
    assert found.share == pytest.approx(0, abs=1e-12)


def test_factored_cka_is_the_textbook_formula() -> None:
    s, t, *_ = _chain(6, 300, seed=11)
    parts = np.array_split(np.arange(300), 5)
    found = factored_cka(factor_layer(s, parts), factor_layer(t, parts), cross_products(s, t, parts))
    a, b = s - s.mean(axis=0), t - t.mean(axis=0)
    k, m = a @ a.T, b @ b.T
    assert found.value == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()), abs=1e-10)
    low, high = found.interval
    assert low < found.value < high


def test_what_is_reported_hangs_together() -> None:
    found = Recovery(0.3, 0.03, 1.4, 1.0, 2.0, 0.5, 2.8, 0.1, 5)
    assert found.midpoint == 1.5
    assert found.share == 0.5
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * 2.7764 * 0.1, abs=1e-4)
