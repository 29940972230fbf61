"""What neighbours see beyond a drawn sample: nothing if its law is right, everything if the draw is independent."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit.functional.copula.residual import leading_pairs, neighbor_residual
from mikit.functional.neighbors.entropy import weighted_kl_pointwise
from mikit.functional.neighbors.ksg import ksg, ksg_pointwise


def _gaussian(n: int, d: int, rho: float, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=g, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def _fresh_partners(n: int, d: int, rho: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Twice as many rows: the first half is the data, and its partners are a second draw from the same law given x."""
    x, y = _gaussian(n, d, rho, seed)
    unused, noise = _gaussian(n, d, 0.0, seed + 100)
    fresh = rho * x + math.sqrt(1 - rho**2) * noise
    return torch.cat([x, unused]), torch.cat([y, fresh]), torch.arange(n), torch.arange(n, 2 * n)[:, None]


@pytest.mark.parametrize(("d", "rho", "method"), [(1, 0.8, "weighted"), (2, 0.9, "weighted"), (5, 0.7, "ksg")])
def test_a_fresh_sample_of_the_same_law_leaves_nothing(d: int, rho: float, method: str) -> None:
    found = neighbor_residual(*_fresh_partners(1500, d, rho, seed=d))
    assert found is not None
    assert found.method == method
    assert abs(found.value) < 4 * found.error


def test_an_independent_draw_leaves_the_plain_estimate() -> None:
    n = 1500
    x, y = _gaussian(n, 1, 0.9, seed=3)
    rows, partners = torch.arange(n), torch.randperm(n, generator=torch.Generator().manual_seed(4))[:, None]
    found = neighbor_residual(x, y, rows, partners)
    assert found is not None
    assert found.value > 10 * found.error
    plain = float(weighted_kl_pointwise(x, y).mean())
    assert abs(found.value - plain) < 4 * found.error
    assert abs(found.value + math.log(1 - 0.81) / 2) < 4 * found.error


def test_the_value_is_the_difference_of_the_two_estimates() -> None:
    x, y = _gaussian(600, 5, 0.6, seed=5)
    rows = torch.randperm(600, generator=torch.Generator().manual_seed(6))[:500]
    partners = torch.stack([rows.roll(1), rows.roll(7)], 1)
    found = neighbor_residual(x, y, rows, partners)
    assert found is not None
    own = ksg_pointwise(x[rows], y[rows], 1)
    other = (ksg_pointwise(x[rows], y[rows.roll(1)], 1) + ksg_pointwise(x[rows], y[rows.roll(7)], 1)) / 2
    assert found.value == pytest.approx(float(own.mean() - other.mean()), abs=1e-12)
    assert found.error == pytest.approx(math.sqrt(float(own.var() + other.var()) / 500), rel=1e-9)


def test_a_draw_with_too_much_dependence_leaves_less_than_nothing() -> None:
    x, y = _gaussian(1500, 1, 0.3, seed=7)
    order = torch.empty(1500, dtype=torch.long)
    order[x[:, 0].argsort()] = y[:, 0].argsort()
    found = neighbor_residual(x, y, torch.arange(1500), order[:, None])
    assert found is not None
    assert found.value < -1


@pytest.mark.parametrize(("d_x", "d_y", "asked"), [(10, 10, True), (11, 10, False), (20, 1, False), (1, 20, False)])
def test_above_20_columns_neighbours_are_not_asked(d_x: int, d_y: int, asked: bool) -> None:
    g = torch.Generator().manual_seed(8)
    x, y = (torch.randn(100, d, generator=g) for d in (d_x, d_y))
    assert (neighbor_residual(x, y, torch.arange(100), torch.arange(100).flip(0)[:, None]) is not None) is asked


@pytest.mark.parametrize(("tied", "method"), [(0.0, "weighted"), (0.3, "ksg")])
def test_ties_turn_to_ksg(tied: float, method: str) -> None:
    x, y = _gaussian(1000, 1, 0.8, seed=9)
    x = torch.where(x > x.quantile(tied), x, x.quantile(tied)) if tied else x
    found = neighbor_residual(x, y, torch.arange(1000), torch.arange(1000).flip(0)[:, None])
    assert found is not None
    assert found.method == method
    assert found.value > 5 * found.error


def test_columns_that_follow_from_each_other_turn_to_ksg() -> None:
    x, y = _gaussian(800, 1, 0.8, seed=10)
    twice = torch.cat([x, 2 * x], 1)
    found = neighbor_residual(twice, y, torch.arange(800), torch.arange(800).flip(0)[:, None])
    assert found is not None
    assert found.method == "ksg"
    plain = float(ksg(twice, y, 1))
    assert abs(found.value - plain) < 4 * found.error


@pytest.mark.parametrize(("pairs", "found"), [(0, None), (1, 1), (4, 4), (5, None)])
def test_leading_pairs_are_those_that_are_correlated(pairs: int, found: int | None) -> None:
    x, y = _gaussian(3000, 12, 0.0, seed=11)
    y[:, :pairs] = 0.8 * x[:, :pairs] + 0.6 * y[:, :pairs]
    turned = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(12), dtype=torch.float64))[0]
    leading = leading_pairs(x @ turned, y @ turned.T)
    if found is None:
        assert leading is None
        return
    assert leading is not None
    own, other = leading
    assert own.shape == other.shape == (3000, found)
    correlations = torch.corrcoef(torch.cat([own, other], 1).T)[:found, found:].diagonal().abs()
    # Normal scores of Gaussian columns keep correlations of 0.8, known to about 0.007 each.
    assert torch.allclose(correlations, torch.full_like(correlations, 0.8), atol=0.04)
