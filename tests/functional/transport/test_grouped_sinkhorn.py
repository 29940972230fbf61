"""Sinkhorn divergences of many groups at once against those of one group after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mikit.core.errors import ConvergenceWarning, InputError
from mikit.functional import sinkhorn_divergence
from mikit.functional.transport.grouped_sinkhorn import grouped_sinkhorn_divergence

COUNTS_X, COUNTS_Y = [1, 4, 15, 60], [3, 1, 29, 40]  # too unlike to iterate together
COUNTS = list(zip(COUNTS_X, COUNTS_Y, strict=True))
SHARES = [0.1, 0.2, 0.3, 0.4]


def _samples(d: int = 3, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(sum(COUNTS_X), d, generator=g, dtype=torch.float64) + offset
    return x.requires_grad_(), (1.3 * torch.randn(sum(COUNTS_Y), d, generator=g).double() + offset).requires_grad_()


def _one_by_one(x: Tensor, y: Tensor, epsilon: float, *, relative: bool = False) -> Tensor:
    total = x.new_zeros(())
    for share, a, b in zip(SHARES, x.split(COUNTS_X), y.split(COUNTS_Y), strict=True):
        cost = (torch.cdist(a.detach(), b.detach()) ** 2 / 2).mean().item() if relative else 1.0
        total = total + share * sinkhorn_divergence(a, b, epsilon=epsilon * cost, tolerance=1e-10)
    return total


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_it_equals_one_group_after_the_other(relative: bool, offset: float) -> None:
    x, y = _samples(offset=offset)
    expected = _one_by_one(x, y, 0.3, relative=relative)
    slopes = torch.autograd.grad(expected, (x, y))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float64, 3e-4), (torch.float32, 3e-4)):
        if dtype == torch.float32 and offset:
            continue  # rows that are rounded by 1e-3 of their spread are other rows
        a, b = (rows.detach().to(dtype).requires_grad_() for rows in (x, y))

        def of(a: Tensor, b: Tensor, tolerance: float = tolerance) -> Tensor:
            return grouped_sinkhorn_divergence(
                a, b, COUNTS, shares=SHARES, epsilon=0.3, relative=relative, tolerance=tolerance
            )

        value = of(a, b)
        assert value.dtype == dtype
        # The error of the value is of second order in the tolerance, that of the gradient of first.
        assert value.item() == pytest.approx(expected.item(), rel=1e-10 if tolerance == 1e-12 else 1e-6)
        for found, exact in zip(torch.autograd.grad(value, (a, b)), slopes, strict=True):
            assert (found - exact).norm() < (1e-9 if tolerance == 1e-12 else tolerance) * exact.norm()
        (alone,) = torch.autograd.grad(of(a, b.detach()), a)
        assert torch.equal(alone, torch.autograd.grad(of(a, b), a)[0])


def test_gradients() -> None:
    x, y = _samples()
    assert torch.autograd.gradcheck(
        lambda a, b: grouped_sinkhorn_divergence(
            a, b, [(1, 4), (9, 3)], shares=[0.3, 0.7], epsilon=0.5, tolerance=1e-13
        ),
        (x[:10].detach().requires_grad_(), y[:7].detach().requires_grad_()),
    )


def test_rounding_in_single_precision_far_from_the_origin() -> None:
    x, y = (rows.detach().float() + 1e4 for rows in _samples())
    value = grouped_sinkhorn_divergence(x, y, COUNTS, shares=SHARES, epsilon=0.1, relative=True)
    assert value.item() == pytest.approx(_one_by_one(x.double(), y.double(), 0.1, relative=True).item(), rel=1e-5)


def test_half_precision_and_nan() -> None:
    x, y = (rows.detach().bfloat16() for rows in _samples())
    value = grouped_sinkhorn_divergence(x, y, COUNTS, shares=SHARES, epsilon=0.3)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(_one_by_one(x.double(), y.double(), 0.3).item(), rel=1e-5)
    x[2] = float("nan")
    with pytest.warns(ConvergenceWarning):
        value = grouped_sinkhorn_divergence(x, y, COUNTS, shares=SHARES, epsilon=0.3, relative=True)
    assert value.isnan()


def test_refusals_and_the_warning() -> None:
    x, y = _samples()
    with pytest.raises(InputError, match="describe 4 groups with 79 rows of x in total"):
        grouped_sinkhorn_divergence(x, y, list(zip([1, 4, 15, 59], COUNTS_Y, strict=True)), shares=SHARES, epsilon=1.0)
    with pytest.raises(InputError, match="describe 1 groups with 80 rows of x"):
        grouped_sinkhorn_divergence(x, y, [(80, 72)], shares=SHARES, epsilon=1.0)
    with pytest.raises(InputError, match="describe 4 groups with 72 rows of y in total"):
        grouped_sinkhorn_divergence(x, y, list(zip(COUNTS_X, [3, 1, 29, 39], strict=True)), shares=SHARES, epsilon=1.0)
    with pytest.raises(InputError, match="epsilon is 0"):
        grouped_sinkhorn_divergence(x, y, COUNTS, shares=SHARES, epsilon=0)
    with pytest.raises(InputError, match="tolerance is 0"):
        grouped_sinkhorn_divergence(x, y, COUNTS, shares=SHARES, epsilon=1.0, tolerance=0)
    alike = x.detach()[:1].expand(2, 3)
    with pytest.raises(InputError, match="All rows of a group are equal"):
        grouped_sinkhorn_divergence(alike, alike, [(1, 1), (1, 1)], shares=[1, 1], epsilon=0.1, relative=True)
    with pytest.warns(ConvergenceWarning, match="of a group stopped with a marginal error"):
        grouped_sinkhorn_divergence(x, y, COUNTS, shares=SHARES, epsilon=0.01, max_iterations=3)
