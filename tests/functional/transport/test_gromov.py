"""Gromov-Wasserstein discrepancies against the four-fold sum, all permutations, POT and gradients."""

from __future__ import annotations

import itertools

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.transport.gromov import gromov_plan, gromov_wasserstein2

COSTS = ("euclidean", "squared euclidean", "cosine")


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _weights(n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def _costs(rows: Tensor, cost: str) -> Tensor:
    if cost == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(rows[:, None], rows, dim=2)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances if cost == "euclidean" else distances.square()


def _by_four_loops(c_x: Tensor, c_y: Tensor, plan: Tensor) -> float:
    total, (n, m) = 0.0, plan.shape
    for i, j, s, t in itertools.product(range(n), range(m), range(n), range(m)):
        total += float((c_x[i, s] - c_y[j, t]) ** 2 * plan[i, j] * plan[s, t])
    return total


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("n", "m", "weighted"), [(6, 6, False), (7, 5, False), (5, 6, True), (1, 4, False)])
def test_the_value_is_the_sum_under_the_plan(n: int, m: int, weighted: bool, cost: str) -> None:
    x, y = _rows(n, 3, 0, 1.0), _rows(m, 2, 1, 1.0)
    a, b = (_weights(size, size) if weighted else torch.ones(size, dtype=torch.float64) for size in (n, m))
    solution = gromov_plan(x, y, cost=cost, weights_x=a, weights_y=b)
    assert torch.allclose(solution.plan.sum(dim=1), a / a.sum())
    assert torch.allclose(solution.plan.sum(dim=0), b / b.sum())
    value = gromov_wasserstein2(x, y, cost=cost, weights_x=a, weights_y=b).item()
    assert value == pytest.approx(_by_four_loops(_costs(x, cost), _costs(y, cost), solution.plan), abs=1e-12)
    assert value == pytest.approx(min(solution.starts), abs=1e-12)


def test_it_is_close_to_the_least_over_all_permutations() -> None:
    gaps = []
    for seed in range(20):
        x, y = _rows(6, 3, seed), _rows(6, 2, 100 + seed)
        c_x, c_y = _costs(x, "euclidean"), _costs(y, "euclidean")
        least = min(
            float((c_x - c_y[list(order)][:, list(order)]).square().mean())
            for order in itertools.permutations(range(6))
        )
        gaps.append(gromov_wasserstein2(x, y).item() / least - 1)
    # Plans that split rows can be better than any permutation; a local minimum can be worse.
    assert min(gaps) > -0.5
    assert sorted(gaps)[10] < 0.25


@pytest.mark.parametrize("cost", COSTS)
def test_it_is_never_worse_than_pot_from_its_own_start(cost: str) -> None:
    for seed in range(5):
        x, y = _rows(30, 4, seed), _rows(25, 3, 50 + seed)
        c_x, c_y = (_costs(rows, cost).numpy() for rows in (x, y))
        theirs = ot.gromov_wasserstein2(c_x, c_y, np.full(30, 1 / 30), np.full(25, 1 / 25))
        solution = gromov_plan(x, y, cost=cost)
        assert solution.starts[0] == pytest.approx(float(theirs), rel=1e-6)
        assert min(solution.starts) <= theirs * (1 + 1e-6)


@pytest.mark.parametrize("cost", COSTS)
def test_value_and_gradient_equal_those_of_pot_under_one_plan(cost: str) -> None:
    x, y = _rows(12, 3, 0, 1.0).requires_grad_(), _rows(9, 4, 1, 1.0).requires_grad_()
    plan = gromov_plan(x, y, cost=cost).plan
    ours = gromov_wasserstein2(x, y, cost=cost)
    # POT's envelope gradient, at our plan: that of the four-fold sum.
    c_x, c_y = _costs(x, cost), _costs(y, cost)
    gaps = (c_x[:, None, :, None] - c_y[None, :, None, :]).square()
    theirs = (gaps * plan[:, :, None, None] * plan).sum()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    for own, other in zip(torch.autograd.grad(ours, (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True):
        assert torch.allclose(own, other.nan_to_num(), atol=1e-10)


@pytest.mark.parametrize("cost", COSTS)
def test_gradients_are_derivatives(cost: str) -> None:
    x, y = _rows(6, 3, 0, 1.0).requires_grad_(), _rows(5, 2, 1, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: gromov_wasserstein2(a, b, cost=cost), (x, y))


def test_it_sees_neither_rotations_nor_shifts_nor_order_nor_width() -> None:
    x = _rows(20, 3, 0)
    turn = torch.linalg.qr(_rows(3, 3, 1)).Q
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    moved = torch.nn.functional.pad(x[order] @ turn + 5, (0, 2))
    assert gromov_wasserstein2(x, moved).item() == pytest.approx(0, abs=1e-12)
    assert gromov_wasserstein2(x, 3 * x, cost="cosine").item() == pytest.approx(0, abs=1e-12)
    y = _rows(15, 2, 2)
    value = gromov_wasserstein2(x, y).item()
    assert gromov_wasserstein2(moved, y).item() == pytest.approx(value, rel=1e-9)
    assert gromov_wasserstein2(y, x).item() == pytest.approx(value, rel=1e-9)


def test_values_known_in_closed_form() -> None:
    x = _rows(12, 3, 0)
    squares = _costs(x, "squared euclidean")
    # Each distance twice as long, and the identity is the best plan: the mean squared distance.
    assert gromov_wasserstein2(x, 2 * x).item() == pytest.approx(float(squares.mean()), rel=1e-9)
    # One point against a sample leaves one plan.
    assert gromov_wasserstein2(x, x[:1]).item() == pytest.approx(float(squares.mean()), rel=1e-12)
    assert gromov_wasserstein2(1e-6 * x, 2e-6 * x).item() == pytest.approx(1e-12 * float(squares.mean()), rel=1e-9)


def test_the_second_start_helps() -> None:
    better = 0
    for seed in range(10):
        first, second = gromov_plan(_rows(60, 3, seed), _rows(60, 3, 30 + seed)).starts
        better += second < first - 1e-9
    assert better >= 5


def test_repeated_rows_and_weights_of_zero() -> None:
    x, y = _rows(6, 3, 0), _rows(5, 2, 1)
    repeated = torch.cat([x, x[:1]]).requires_grad_()
    gromov_wasserstein2(repeated, y).backward()
    assert repeated.grad is not None
    assert torch.isfinite(repeated.grad).all()
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    left_out = gromov_wasserstein2(x, y, weights_x=weights).item()
    assert left_out == pytest.approx(gromov_wasserstein2(x[:4], y).item(), rel=1e-12)


def test_dtypes_and_autocast() -> None:
    x, y = _rows(10, 4, 0).float(), _rows(8, 3, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gromov_wasserstein2(x, y)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, gromov_wasserstein2(x, y))
    assert gromov_wasserstein2(x.double() + 1e6, y.double()).item() == pytest.approx(inside.item(), rel=1e-5)


def test_what_cannot_be_used_is_refused() -> None:
    x = torch.ones(3, 2)
    with pytest.raises(InputError, match='cost is "manhattan"'):
        gromov_wasserstein2(x, x, cost="manhattan")
    with pytest.raises(InputError, match="shape"):
        gromov_wasserstein2(torch.zeros(3), x)
    with pytest.raises(InputError, match="Row 1 of y has length 0"):
        gromov_wasserstein2(x, torch.tensor([[1.0], [0.0]]), cost="cosine")
    with pytest.raises(InputError, match="Row 0 of y contains a number that is not finite"):
        gromov_plan(x, x * float("nan"))
    assert gromov_wasserstein2(x, x * float("nan")).isnan()
    with pytest.raises(InputError, match="weights_x"):
        gromov_wasserstein2(x, x, weights_x=torch.ones(4))
