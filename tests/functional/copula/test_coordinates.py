"""Canonical coordinates and second-order features: fitted on the fit rows alone, and nothing seen where nothing is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit.functional.copula.coordinates import anchored_coordinates, log_radius, second_order_variates


def _planted(n: int, rho: list[float], d_x: int, d_y: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rotated normal columns of which the first few pairs correlate."""
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, d, generator=g, dtype=torch.float64) for d in (d_x, d_y))
    for column, one in enumerate(rho):
        y[:, column] = one * x[:, column] + math.sqrt(1 - one**2) * y[:, column]
    turns = (torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q for d in (d_x, d_y))
    return tuple(side @ turn for side, turn in zip((x, y), turns, strict=True))


def _folded(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=g, dtype=torch.float64)
    y = x.abs() + 0.3 * noise
    return x, (y - y.mean(0)) / y.std(0)


def test_other_rows_than_the_fit_rows_do_not_change_the_map() -> None:
    x, y = _planted(900, [0.8, 0.5], 4, 3)
    y[:, 0] += x[:, 1].abs()
    fit = torch.arange(0, 900, 2)
    other = torch.ones(900, dtype=torch.bool).index_fill(0, fit, False)
    before = anchored_coordinates(x, y, fit)
    moved_x, moved_y = x.clone(), y.clone()
    moved_x[other], moved_y[other] = 7 - 3 * x[other], y[other].flip(0) ** 3
    after = anchored_coordinates(moved_x, moved_y, fit)
    assert torch.equal(before.correlations, after.correlations)
    for name in ("x", "y", "features_x", "features_y"):
        one, two = getattr(before, name), getattr(after, name)
        torch.testing.assert_close(one[fit], two[fit], rtol=0, atol=1e-5)
        assert not torch.allclose(one[other], two[other]), "the test moved nothing"


def test_the_map_does_not_depend_on_the_order_of_the_fit_rows() -> None:
    x, y = _planted(600, [0.7], 3, 3)
    one, two = (anchored_coordinates(x, y, fit) for fit in (torch.arange(500), torch.arange(500).flip(0)))
    torch.testing.assert_close(one.correlations, two.correlations, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rho", [[], [0.9], [0.8, 0.6, 0.4]])
def test_the_correlations_kept_are_those_planted(rho: list[float]) -> None:
    x, y = _planted(3000, rho, 5, 4, seed=len(rho))
    fit = torch.arange(2000)
    found = anchored_coordinates(x, y, fit)
    assert found.correlations.shape == (len(rho),)
    for one, truth in zip(found.correlations.tolist(), rho, strict=True):
        # Canonical correlations of a sample lie a little high; d / n is the order of that.
        assert abs(one - truth) < 4 * (1 - truth**2) / math.sqrt(2000) + 9 / 2000
    held = torch.arange(2000, 3000)
    for column, truth in enumerate(rho):
        seen = float(torch.corrcoef(torch.stack([found.x[held, column], found.y[held, column]]))[0, 1])
        assert abs(seen - truth) < 4 * (1 - truth**2) / math.sqrt(1000) + 9 / 2000


def test_coordinates_are_white_on_the_fit_rows_and_every_feature_is_finite() -> None:
    x, y = _planted(1000, [0.8], 4, 3)
    fit = torch.arange(800)
    found = anchored_coordinates(x, y, fit)
    for side in (found.x, found.y):
        torch.testing.assert_close(torch.cov(side[fit].T), torch.eye(side.shape[1]), rtol=0, atol=0.01)
    for features, width in ((found.features_x, 4), (found.features_y, 3)):
        assert features.dtype == torch.float32
        assert features.shape[1] >= width + 2, "leading coordinates and two lengths"
        assert bool(features.isfinite().all())


def test_correlations_of_almost_1_stay_below_1() -> None:
    x, _ = _planted(500, [], 2, 2)
    y = x + 3e-4 * torch.randn(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    correlations = anchored_coordinates(x, y, torch.arange(400)).correlations
    assert correlations.shape == (2,)
    assert float(correlations.max()) == pytest.approx(1 - 1e-6, abs=1e-12), "1 - 5e-8 is held back"


@pytest.mark.parametrize("d", [1, 3])
def test_second_order_variates_see_a_fold(d: int) -> None:
    x, y = _folded(2000, d)
    fit, held = torch.arange(1500), torch.arange(1500, 2000)
    u, v = second_order_variates(x, y, fit)
    assert d <= u.shape[1] <= 8
    assert u.shape == v.shape == (2000, u.shape[1])
    assert float(u.abs().max()) <= 5
    seen = float(torch.corrcoef(torch.stack([u[held, 0], v[held, 0]]))[0, 1])
    assert seen > 0.7, "|x| and x² are nearly one function, and noise of 0.3 takes little"
    plain = torch.corrcoef(torch.stack([x[held, 0], y[held, 0]]))[0, 1]
    assert abs(float(plain)) < 4 / math.sqrt(500)


def test_second_order_variates_see_nothing_in_independent_rows() -> None:
    found = []
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(1000, d, generator=g, dtype=torch.float64) for d in (3, 2))
        found.append(second_order_variates(x, y, torch.arange(800))[0].shape[1])
    # The edge leaves a margin of 3 / sqrt(n): one passing in twenty would already be rare.
    assert sum(found) <= 1


def test_second_order_variates_are_left_out_of_wide_or_few_rows() -> None:
    g = torch.Generator().manual_seed(0)
    wide, narrow = (torch.randn(1500, d, generator=g, dtype=torch.float64) for d in (129, 2))
    assert second_order_variates(wide, narrow, torch.arange(1500))[0].shape == (1500, 0)
    x, y = _folded(2000, 3)
    assert second_order_variates(x, y, torch.arange(47))[0].shape == (2000, 0), "47 rows are fewer than 8 a column"
    assert second_order_variates(x, y, torch.arange(400))[1].shape[1] > 0


def test_a_constant_column_does_no_harm() -> None:
    x, y = _folded(1000, 2)
    x[:, 1] = 0.0
    u, v = second_order_variates(x, y, torch.arange(800))
    assert bool(u.isfinite().all() & v.isfinite().all())


def test_the_radius_is_a_shared_scale_whatever_the_units() -> None:
    g = torch.Generator().manual_seed(13)
    scale = torch.randn(2000, 1, generator=g, dtype=torch.float64).exp()
    rows = scale * torch.randn(2000, 8, generator=g, dtype=torch.float64)
    radius = log_radius(rows)
    assert radius.shape == (2000, 1)
    # The logarithm of a mean of 8 squares has a standard deviation of 0.27 about twice that of the scale, which has 1.
    assert float(torch.corrcoef(torch.cat([radius, scale.log()], 1).T)[0, 1]) > 0.95
    units = torch.logspace(-3, 3, 8, dtype=torch.float64)
    assert torch.allclose(log_radius(rows * units + 5 * units), radius, atol=1e-8)


def test_the_radius_of_columns_that_mostly_stand_still_is_zero() -> None:
    rows = torch.zeros(100, 2)
    rows[:30] = torch.randn(30, 2, generator=torch.Generator().manual_seed(14))
    assert torch.equal(log_radius(rows), torch.zeros(100, 1, dtype=torch.float64))


def test_what_stands_beside_becomes_a_feature_as_it_is() -> None:
    x, y = _planted(300, [0.8], 3, 2)
    own, other = torch.randn(2, 300, 1, generator=torch.Generator().manual_seed(15), dtype=torch.float64)
    plain = anchored_coordinates(x, y, torch.arange(200))
    beside = anchored_coordinates(x, y, torch.arange(200), beside=(own, other))
    assert torch.equal(beside.features_x, torch.cat([plain.features_x, own.float()], 1))
    assert torch.equal(beside.features_y, torch.cat([plain.features_y, other.float()], 1))
