"""Exact Wasserstein distances against POT, all permutations, sorting, closed forms and gradients."""

from __future__ import annotations

import builtins
import itertools
import math
from typing import Any

import ot
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.transport.exact import identity_fraction, wasserstein, wasserstein2
from mikit.functional.transport.plans import optimal_plan, transport_potentials


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _weights(n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def _by_all_permutations(x: Tensor, y: Tensor, p: float) -> float:
    costs = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").pow(p)
    own = range(x.shape[0])
    return min(float(costs[own, list(order)].mean()) for order in itertools.permutations(own))


def _by_pot(x: Tensor, y: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
    costs = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").pow(p)
    value: Tensor = ot.emd2(a / a.sum(), b / b.sum(), costs)
    return value


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize(("n", "d"), [(6, 3), (5, 1), (2, 4), (1, 2)])
def test_the_value_is_the_least_over_all_permutations(n: int, d: int, p: float) -> None:
    x, y = _rows(n, d, 0), _rows(n, d, 1, 0.5)
    least = _by_all_permutations(x, y, p)
    assert wasserstein(x, y, p=p).item() == pytest.approx(least ** (1 / p), rel=1e-12)
    if p == 2:
        assert wasserstein2(x, y).item() == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("n", "m", "weighted"), [(40, 40, False), (40, 25, False), (30, 30, True), (17, 40, True)])
def test_value_and_gradient_equal_those_of_pot(n: int, m: int, weighted: bool, p: float) -> None:
    x, y = _rows(n, 5, 0).requires_grad_(), _rows(m, 5, 1, 0.3).requires_grad_()
    a, b = (_weights(size, size) if weighted else torch.ones(size, dtype=torch.float64) for size in (n, m))
    theirs = _by_pot(x, y, a, b, p)
    given_weights = {"weights_x": a, "weights_y": b} if weighted else {}
    ours = wasserstein(x, y, p=p, **given_weights) ** p
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    for own, other in zip(torch.autograd.grad(ours, (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True):
        assert torch.allclose(own, other, atol=1e-10)


def test_one_column_is_a_matter_of_sorting() -> None:
    x, y = _rows(60, 1, 0), 2 * _rows(60, 1, 1) + 1
    gaps = x.sort(dim=0).values - y.sort(dim=0).values
    assert wasserstein2(x, y).item() == pytest.approx(float(gaps.square().mean()), rel=1e-12)
    assert wasserstein(x, y, p=1).item() == pytest.approx(float(gaps.abs().mean()), rel=1e-12)
    assert wasserstein2(x, y[:23]).item() == pytest.approx(ot.emd2_1d(x.numpy(), y[:23].numpy()), rel=1e-10)


def test_values_known_in_closed_form() -> None:
    x = _rows(30, 4, 0)
    shift = torch.tensor([1.0, -2.0, 0.0, 2.0], dtype=torch.float64)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    for p in (1.0, 2.0, 4.0):
        assert wasserstein(x, x[order] + shift, p=p).item() == pytest.approx(3.0)
        assert wasserstein(x, x[order], p=p).item() == pytest.approx(0.0, abs=1e-12)
    # The map 3 x is the gradient of a convex function, so the plan follows it.
    assert wasserstein2(x, 3 * x).item() == pytest.approx(4 * float(x.square().sum(dim=1).mean()))
    assert wasserstein2(x, x.mean(dim=0, keepdim=True)).item() == pytest.approx(float(x.var(dim=0, correction=0).sum()))


def test_large_normal_samples_come_close_to_the_gaussian_distance() -> None:
    # W2² of N(0, 1) and N(1, 2²) is 1 + 1; the sampling error is that of 20 pairs of 400 rows.
    values = [wasserstein2(_rows(400, 1, seed), 2 * _rows(400, 1, 100 + seed) + 1).item() for seed in range(20)]
    mean = sum(values) / 20
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / 19 / 20)
    # The bias of a sample of 400 on the line is below 0.02.
    assert abs(mean - 2) < 3 * error + 0.02


@pytest.mark.parametrize(("d", "expected"), [(2, 0.17), (16, 14.5), (64, 89.9), (512, 911)])
def test_two_samples_of_one_law_are_as_far_apart_as_stated(d: int, expected: float) -> None:
    values = torch.tensor([wasserstein2(_rows(128, d, seed), _rows(128, d, 1000 + seed)).item() for seed in range(20)])
    # The stated figures are single draws, which spread by 24 % of the mean in two columns and by 2 % and less above.
    assert abs(float(values.mean()) - expected) < max(0.05 * expected, float(values.std()))


@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from([1.0, 1.5, 2.0]))
@settings(max_examples=40, deadline=None)
def test_it_is_a_metric(seed: int, n: int, p: float) -> None:
    x, y, z = (_rows(n, 2, 3 * seed + i, i) for i in range(3))
    there, back = wasserstein(x, y, p=p).item(), wasserstein(y, x, p=p).item()
    assert there == pytest.approx(back, rel=1e-12)
    assert there <= wasserstein(x, z, p=p).item() + wasserstein(z, y, p=p).item() + 1e-12
    assert wasserstein(x, x, p=p).item() == 0
    assert wasserstein(x, y, p=1).item() <= wasserstein(x, y, p=2).item() + 1e-12


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 4)])
def test_gradients_are_derivatives(n: int, m: int, p: float) -> None:
    x, y = _rows(n, 3, 0).requires_grad_(), _rows(m, 3, 1, 0.4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: wasserstein(a, b, p=p), (x, y))
    weights = _weights(n, 5)
    assert torch.autograd.gradcheck(lambda a, b: wasserstein2(a, b, weights_x=weights), (x, y))


@pytest.mark.parametrize(("n", "m"), [(9, 9), (9, 6)])
def test_rows_may_come_in_any_order(n: int, m: int) -> None:
    x, y, order = _rows(n, 3, 0), _rows(m, 3, 1), torch.arange(n).flip(0)
    assert wasserstein2(x[order], y).item() == pytest.approx(wasserstein2(x, y).item(), rel=1e-12)
    weights = _weights(n, 3)
    plan, turned = (
        optimal_plan(rows, y, weights_x=w).dense() for rows, w in ((x, weights), (x[order], weights[order]))
    )
    assert torch.allclose(plan[order], turned, atol=1e-15)


def test_weights_count_as_copies_and_rows_without_weight_do_not_count() -> None:
    x, y = _rows(5, 3, 0), _rows(8, 3, 1)
    counts = torch.tensor([1, 3, 0, 2, 2])
    copied = x.repeat_interleave(counts, dim=0)
    assert wasserstein2(x, y, weights_x=counts).item() == pytest.approx(wasserstein2(copied, y).item(), rel=1e-12)
    assert wasserstein2(x, y[:5], weights_x=torch.full((5,), 7)).item() == wasserstein2(x, y[:5]).item()
    rows = x.clone().requires_grad_()
    wasserstein2(rows, y, weights_x=counts).backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad[2], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize(("n", "m", "weighted"), [(30, 30, False), (30, 20, False), (12, 12, True), (1, 1, False)])
def test_potentials_are_optimal_for_the_dual(n: int, m: int, weighted: bool, p: float) -> None:
    x, y = _rows(n, 3, 0), _rows(m, 3, 1, 0.2)
    a, b = (_weights(size, size + 1) if weighted else torch.ones(size, dtype=torch.float64) for size in (n, m))
    potentials = transport_potentials(x, y, p=p, weights_x=a, weights_y=b)
    dual = float((a / a.sum()) @ potentials.of_x + (b / b.sum()) @ potentials.of_y)
    assert dual == pytest.approx(_by_pot(x, y, a, b, p).item(), rel=1e-9)
    slack = torch.cdist(x, y).pow(p) - potentials.of_x[:, None] - potentials.of_y
    assert float(slack.min()) > -1e-9


def test_potentials_give_the_sampling_error() -> None:
    values, squares = [], []
    for seed in range(60):
        x, y = _rows(100, 3, seed, 1.0), _rows(100, 3, 500 + seed)
        f, g = transport_potentials(x, y)
        values.append(wasserstein2(x, y).item())
        squares.append(float(f.var() + g.var()) / 100)
    spread = torch.tensor(values).std().item()
    # The spread of 60 values is known to a tenth.
    assert math.sqrt(sum(squares) / 60) == pytest.approx(spread, rel=0.3)


def test_the_plan_has_the_weights_for_sums() -> None:
    x, y, weights = _rows(12, 3, 0), _rows(7, 3, 1), _weights(12, 2)
    plan = optimal_plan(x, y, weights_x=weights)
    dense = plan.dense()
    assert len(plan.mass) <= 12 + 7 - 1
    assert torch.allclose(dense.sum(dim=1), weights / weights.sum(), atol=1e-14)
    assert torch.allclose(dense.sum(dim=0), torch.full((7,), 1 / 7, dtype=torch.float64), atol=1e-14)
    cost = float((dense * torch.cdist(x, y).square()).sum())
    assert cost == pytest.approx(wasserstein2(x, y, weights_x=weights).item(), rel=1e-10)


@pytest.mark.parametrize(("d", "rho", "expected"), [(512, 0.2, 1.00), (64, 0.5, 1.00), (64, 0.2, 0.13), (8, 0.8, 0.65)])
def test_the_identity_fraction_of_correlated_pairs(d: int, rho: float, expected: float) -> None:
    shares = []
    for seed in range(10):
        x, noise = _rows(128, d, seed), _rows(128, d, 100 + seed)
        found = identity_fraction(x, rho * x + math.sqrt(1 - rho**2) * noise)
        shares.append(found.share)
        assert found.chance == 1 / 128
    spread = torch.tensor(shares).std().item() / math.sqrt(10)
    assert abs(sum(shares) / 10 - expected) < 3 * spread + 0.04  # the stated figures are single draws


def test_the_distance_is_at_most_that_of_the_pairs() -> None:
    x, y = _rows(50, 6, 0), _rows(50, 6, 1)
    assert wasserstein2(x, y).item() < float((x - y).square().sum(dim=1).mean())
    assert identity_fraction(x, x.flip(0)).share == 0
    assert identity_fraction(x, x + 1e-3 * y).share == 1


def test_a_large_offset_costs_no_digits() -> None:
    x, y = (torch.round(_rows(100, 8, seed) * 64) / 64 for seed in (0, 1))  # exact in float32 after the shift
    exact = wasserstein2(x, y).item()
    assert wasserstein2((x + 1e4).float(), (y + 1e4).float()).item() == pytest.approx(exact, rel=1e-6)


def test_dtypes_autocast_and_unneeded_gradients() -> None:
    x, y = _rows(10, 4, 0).float(), _rows(10, 4, 1).float()
    before = x.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = wasserstein2(x, y)
    assert torch.equal(inside, wasserstein2(x, y))
    assert inside.dtype == torch.float32
    half = x.half().requires_grad_()
    wasserstein(half, y).backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.float16
    for own, other in ((y, x), (y[:7], x)):
        rows = own.clone().requires_grad_()
        wasserstein2(other, rows).backward()
        both = own.clone().requires_grad_(), other.clone().requires_grad_()
        wasserstein2(both[1], both[0]).backward()
        assert rows.grad is not None
        assert both[0].grad is not None
        assert torch.equal(rows.grad, both[0].grad)
    assert torch.equal(x, before)


def test_at_distance_zero_and_among_numbers_that_are_not() -> None:
    x = _rows(6, 3, 0)
    for p in (1.0, 2.0, 3.0):
        near = x.clone().requires_grad_()
        wasserstein(near, x.flip(0), p=p).backward()
        assert near.grad is not None
        assert near.grad.abs().max() == 0
    broken = x.clone()
    broken[4, 1] = math.nan
    assert math.isnan(wasserstein2(broken, x).item())
    with pytest.raises(InputError, match="Row 4 of y"):
        optimal_plan(x, broken)


def test_second_derivatives_are_refused() -> None:
    x, y = _rows(6, 3, 0).requires_grad_(), _rows(6, 3, 1)
    (gradient,) = torch.autograd.grad(wasserstein2(x, y), x, create_graph=True)
    with pytest.raises(NotImplementedError):
        gradient.sum().backward()


def test_without_pot_samples_of_one_size_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ot":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    x, y = _rows(6, 3, 0), _rows(6, 3, 1)
    assert wasserstein(x, y, p=1).item() > 0
    assert len(transport_potentials(x, y).of_x) == 6
    with pytest.raises(InputError, match=r"pip install 'mikit\[transport\]'"):
        wasserstein2(x, y[:5])


@pytest.mark.gpu
def test_the_gpu_agrees() -> None:
    x, y = _rows(40, 10, 0), _rows(50, 10, 1)
    assert wasserstein2(x.cuda(), y.cuda()).item() == pytest.approx(wasserstein2(x, y).item(), rel=1e-12)


def test_what_cannot_be_used_is_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(InputError, match="shape"):
        wasserstein(torch.zeros(3), x)
    with pytest.raises(InputError, match="features"):
        wasserstein2(x, torch.zeros(3, 4))
    with pytest.raises(InputError, match=r"p is 0\.5"):
        wasserstein(x, x, p=0.5)
    with pytest.raises(InputError, match="weights_x has shape"):
        wasserstein2(x, x, weights_x=torch.ones(2))
    with pytest.raises(InputError, match="weights_y must be finite"):
        wasserstein2(x, x, weights_y=torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(InputError, match="3 samples and y has 2"):
        identity_fraction(x, x[:2])
    with pytest.raises(InputError, match="weight 0"):
        transport_potentials(x, x, weights_x=torch.tensor([1.0, 0.0, 1.0]))
