"""Sliced Wasserstein distances against exact transport on lines, POT, loops and gradients."""

from __future__ import annotations

import ot
import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.transport import sliced as transport
from mikit.functional.transport.sliced import sliced_wasserstein, sliced_wasserstein2


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _directions(count: int, d: int, seed: int = 9) -> Tensor:
    return torch.nn.functional.normalize(_rows(count, d, seed), dim=1)


def _by_linear_programs(x: Tensor, y: Tensor, directions: Tensor, p: float) -> float:
    """Return the mean over directions of the p-th power of the exact distance, by a solver that does not sort."""
    total = 0.0
    for direction in directions:
        cost = (x @ direction)[:, None].sub(y @ direction).abs().pow(p).numpy()
        total += ot.emd2([], [], cost)
    return total / len(directions)


def _gradients(x: Tensor, y: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    first, second = torch.autograd.grad(sliced_wasserstein2(x, y, directions=directions), (x, y))
    return first, second


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 8), (7, 15), (1, 6), (5, 1), (1, 1)])
def test_the_value_equals_exact_transport_on_every_line(n: int, m: int, p: float) -> None:
    x, y, directions = _rows(n, 3, 0), _rows(m, 3, 1, 0.5), _directions(5, 3)
    exact = _by_linear_programs(x, y, directions, p)
    assert sliced_wasserstein(x, y, directions=directions, p=p).item() == pytest.approx(exact ** (1 / p), rel=1e-10)
    if p == 2:
        assert sliced_wasserstein2(x, y, directions=directions).item() == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 31)])
def test_value_and_gradient_equal_those_of_pot(n: int, m: int) -> None:
    directions = _directions(16, 6)
    x, y = _rows(n, 6, 0).requires_grad_(), _rows(m, 6, 1, 0.3).requires_grad_()
    theirs = ot.sliced_wasserstein_distance(x, y, projections=directions.T)
    ours = sliced_wasserstein(x, y, directions=directions)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    for own, other in zip(torch.autograd.grad(ours, (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True):
        assert torch.allclose(own, other, atol=1e-12)


@pytest.mark.parametrize("p", [1.5, 2, 3])
@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 4)])
def test_gradients_are_derivatives(n: int, m: int, p: float) -> None:
    x, y = _rows(n, 3, 0).requires_grad_(), _rows(m, 3, 1, 0.4).requires_grad_()
    directions = _directions(4, 3)
    assert torch.autograd.gradcheck(lambda a, b: sliced_wasserstein(a, b, directions=directions, p=p), (x, y))
    assert torch.autograd.gradcheck(lambda a, b: sliced_wasserstein2(a, b, directions=directions), (x, y))


def test_values_known_in_closed_form() -> None:
    x, directions = _rows(40, 5, 0), _directions(64, 5)
    shift = torch.linspace(-1, 2, 5, dtype=torch.float64)
    assert sliced_wasserstein2(x, x + shift, directions=directions).item() == pytest.approx(
        float((directions @ shift).square().mean())
    )
    column, other = _rows(30, 1, 1), _rows(20, 1, 2)
    exact = ot.emd2_1d(column.numpy(), other.numpy())
    assert sliced_wasserstein2(column, other, projections=3).item() == pytest.approx(exact)
    # The mean of the squared cosine over directions in d dimensions is 1 / d; its error over 4000 is about 0.003.
    drawn = sliced_wasserstein2(x, x + 1, projections=4000, generator=torch.Generator().manual_seed(0))
    assert drawn.item() == pytest.approx(1.0, abs=0.1)


def test_directions_come_from_the_generator() -> None:
    x, y = _rows(20, 4, 0), _rows(20, 4, 1)

    def drawn(seed: int) -> Tensor:
        return sliced_wasserstein(x, y, projections=8, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    torch.manual_seed(3)
    assert torch.equal(sliced_wasserstein(x, y, projections=8), drawn(3))


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 17)])
def test_strips_and_threads_do_not_change_values(n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, directions = _rows(n, 4, 0), _rows(m, 4, 1), _directions(10, 4)
    value, gradients = sliced_wasserstein2(x, y, directions=directions), _gradients(x, y, directions)
    monkeypatch.setattr(transport, "_ENTRIES_ON_CPU", 3 * n)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert sliced_wasserstein2(x, y, directions=directions).item() == pytest.approx(value.item(), rel=1e-13)
        for own, other in zip(_gradients(x, y, directions), gradients, strict=True):
            assert torch.allclose(own, other, atol=1e-14)
    finally:
        torch.set_num_threads(before)


def test_at_distance_zero_and_with_ties() -> None:
    x = _rows(10, 3, 0).float()
    x[1] = x[0]
    for p in (1.0, 2.0):
        near = x.clone().requires_grad_()
        distance = sliced_wasserstein(near, x.flip(0), p=p)
        assert distance.item() == pytest.approx(0, abs=1e-6)
        distance.backward()
        assert near.grad is not None
        assert torch.isfinite(near.grad).all()
    same = x.clone().requires_grad_()
    sliced_wasserstein(same, same.detach().clone()).backward()
    assert same.grad is not None
    assert same.grad.abs().max() == 0


def test_a_large_offset_costs_no_digits() -> None:
    x, y = (torch.round(_rows(200, 8, seed) * 64) / 64 for seed in (0, 1))  # exact in float32 after the shift
    y = y * 2
    directions = _directions(16, 8)
    exact, gradient = sliced_wasserstein2(x, y, directions=directions).item(), _gradients(x, y, directions)[0]
    far_x, far_y = (x + 1e4).float(), (y + 1e4).float()
    assert sliced_wasserstein2(far_x, far_y, directions=directions).item() == pytest.approx(exact, rel=1e-6)
    # Neighbors closer than rounding may swap partners, which moves their gradients by the gap between the partners.
    error = _gradients(far_x, far_y, directions)[0].double() - gradient
    assert float(error.norm() / gradient.norm()) < 1e-3


def test_dtypes_autocast_and_unneeded_gradients() -> None:
    x, y, directions = _rows(10, 4, 0).float(), _rows(12, 4, 1).float(), _directions(6, 4)
    before = x.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sliced_wasserstein(x, y, directions=directions)
    assert torch.equal(inside, sliced_wasserstein(x, y, directions=directions))
    assert inside.dtype == torch.float32
    half = x.half().requires_grad_()
    value = sliced_wasserstein2(half, y, directions=directions)
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == torch.float16
    for first, second, position in ((x.clone().requires_grad_(), y, 0), (x, y.clone().requires_grad_(), 1)):
        sliced_wasserstein2(first, second, directions=directions).backward()
        gradient = (first, second)[position].grad
        assert gradient is not None
        assert torch.allclose(gradient, _gradients(x, y, directions)[position], atol=1e-7)
    assert torch.equal(x, before)


def test_second_derivatives_are_refused() -> None:
    x, y = _rows(6, 3, 0).requires_grad_(), _rows(6, 3, 1)
    (gradient,) = torch.autograd.grad(sliced_wasserstein2(x, y), x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError)):
        gradient.sum().backward()


@pytest.mark.gpu
def test_the_gpu_agrees() -> None:
    x, y, directions = _rows(40, 10, 0), _rows(50, 10, 1), _directions(20, 10)
    own = sliced_wasserstein2(x.cuda(), y.cuda(), directions=directions)
    assert own.item() == pytest.approx(sliced_wasserstein2(x, y, directions=directions).item(), rel=1e-12)
    for first, second in zip(_gradients(x.cuda(), y.cuda(), directions), _gradients(x, y, directions), strict=True):
        assert torch.allclose(first.cpu(), second, atol=1e-12)


def test_what_cannot_be_used_is_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(InputError, match="shape"):
        sliced_wasserstein(torch.zeros(3), x)
    with pytest.raises(InputError, match="features"):
        sliced_wasserstein2(x, torch.zeros(3, 4))
    with pytest.raises(InputError, match=r"p is 0\.5"):
        sliced_wasserstein(x, x, p=0.5)
    with pytest.raises(InputError, match="projections is 0"):
        sliced_wasserstein2(x, x, projections=0)
    with pytest.raises(InputError, match=r"directions has shape \(4, 3\)"):
        sliced_wasserstein2(x, x, directions=torch.zeros(4, 3))
