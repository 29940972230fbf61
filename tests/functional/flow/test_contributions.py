"""Contributions of single rows: against a naive loop, against the whole, and their errors against new draws."""

from __future__ import annotations

import numpy as np
import pytest

import mikit
from mikit.functional.flow.contributions import cka_influence, recovery_scores, whitened_rows
from mikit.functional.flow.moments import centered, cross_products, factor_layer, factored_cka
from mikit.functional.flow.recovery import recover

PARTS = [slice(0, 200), slice(200, 400), slice(400, 600)]


def layers(seed=0, n=600, widths=(5, 3)):
    rng = np.random.default_rng(seed)
    s = rng.standard_normal((n, widths[0])) * np.linspace(0.5, 2, widths[0]) + 3
    t = s[:, : widths[1]] @ np.ones((widths[1], widths[1])) + rng.standard_normal((n, widths[1]))
    return centered(s), centered(t)


def scores_of(s, t, source_noise=0.05, target_noise=0.3, parts=PARTS):
    a, b = factor_layer(s, parts), factor_layer(t, parts)
    white = whitened_rows(s, a, parts, source_noise), whitened_rows(t, b, parts, target_noise)
    noise = {"source_noise": source_noise, "target_noise": target_noise}
    return recovery_scores(a, b, cross_products(s, t, parts), *white, parts, **noise)


def log_normal(x, mean, covariance):
    gap = x - mean
    return -0.5 * (gap @ np.linalg.solve(covariance, gap) + np.linalg.slogdet(2 * np.pi * covariance)[1])


@pytest.mark.parametrize("widths", [(5, 3), (3, 3)])
def test_scores_are_the_log_ratio_of_gaussians_averaged_over_the_noise(widths):
    s, t = layers(widths=widths)
    found = scores_of(s, t)
    rows = np.hstack([s / np.sqrt(s.var(axis=0).mean()), t / np.sqrt(t.var(axis=0).mean())])
    d = widths[0]
    noise = np.diag([0.05**2] * d + [0.3**2] * widths[1])
    for row in (0, 250, 599):
        fit = np.ones(600, dtype=bool)
        fit[PARTS[row // 200]] = False
        mean, law = rows[fit].mean(axis=0), np.cov(rows[fit].T, bias=True) + noise
        # The expectation over noise of a quadratic form in x + z is that at x, plus a trace.
        expected = log_normal(rows[row], mean, law) - 0.5 * np.trace(np.linalg.solve(law, noise))
        for part in (slice(0, d), slice(d, None)):
            inside = law[part, part]
            expected -= log_normal(rows[row, part], mean[part], inside)
            expected += 0.5 * np.trace(np.linalg.solve(inside, noise[part, part]))
        assert found[row] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("widths", [(5, 3), (3, 3)])
def test_the_mean_is_the_held_out_value_of_recover_and_does_not_mind_the_direction(widths):
    s, t = layers(widths=widths)
    found = scores_of(s, t)
    a, b = factor_layer(s, PARTS), factor_layer(t, PARTS)
    whole = recover(a, b, cross_products(s, t, PARTS), noise=[0.3], student_noise=0.05)[0]
    assert found.mean() == pytest.approx(whole.held_out, abs=1e-10)
    assert np.allclose(scores_of(t, s, source_noise=0.3, target_noise=0.05), found, atol=1e-9)


def test_the_influence_is_the_derivative_along_a_row_and_its_error_that_of_new_draws():
    s, t = layers()
    a, b = factor_layer(s, PARTS), factor_layer(t, PARTS)
    value, influence = cka_influence(a, b, cross_products(s, t, PARTS), s, t)
    assert value == pytest.approx(factored_cka(a, b, cross_products(s, t, PARTS)).value)
    assert abs(influence.mean()) < 1e-10

    def weighted(row, step):
        mass = np.full(600, (1 - step) / 600)
        mass[row] += step
        x, y = (z - mass @ z for z in (s, t))
        between, own, other = x.T @ (mass[:, None] * y), x.T @ (mass[:, None] * x), y.T @ (mass[:, None] * y)
        return (between**2).sum() / np.linalg.norm(own) / np.linalg.norm(other)

    for row in (0, 17, 599):
        slope = (weighted(row, 1e-5) - weighted(row, -1e-5)) / 2e-5
        assert influence[row] == pytest.approx(slope, rel=1e-4, abs=1e-6)
    drawn = []
    for seed in range(150):
        x, y = layers(seed + 1)
        fa, fb = factor_layer(x, PARTS), factor_layer(y, PARTS)
        drawn.append(factored_cka(fa, fb, cross_products(x, y, PARTS)).value)
    # A standard deviation from 150 draws is known to 1 / sqrt(300), so four of those are 0.23.
    assert influence.std() / np.sqrt(600) == pytest.approx(np.std(drawn), rel=0.23)


def test_too_few_rows_and_constant_layers_are_refused():
    s, t = layers(n=30, widths=(5, 3))
    short = [slice(0, 10), slice(10, 20), slice(20, 30)]
    with pytest.raises(mikit.InputError, match="30 samples are too few"):
        scores_of(s, t, parts=short)
    s, t = layers()
    still = np.zeros_like(t)
    a, b = factor_layer(s, PARTS), factor_layer(still, PARTS)
    with pytest.raises(mikit.InputError, match="never varies"):
        cka_influence(a, b, cross_products(s, still, PARTS), s, still)
