"""Sums of a Gaussian kernel over all pairs of rows, a strip of rows at a time, with their gradient.

Rows are expected around a common centre and in the dtype to compute in; nothing here looks at an autocast region.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["gaussian_kernel", "gaussian_moments", "gaussian_row_sums", "strips"]


def gaussian_row_sums(a: Tensor, b: Tensor, sigma: float, *, hollow: bool = False, strip: int | None = None) -> Tensor:
    """Return, for each row of ``a``, the sum of its Gaussian kernel with all rows of ``b``.

    Args:
        a: Rows, ``(n, d)``.
        b: Rows, ``(m, d)``.
        sigma: Bandwidth: the kernel is ``exp(-|a - b|² / 2σ²)``.
        hollow: Whether to leave out the pairs ``(i, i)``.
        strip: Rows of ``a`` handled at a time; None chooses.

    Returns:
        Float64 tensor ``(n,)``, differentiable once in ``a`` and ``b``.

    Cost:
        O(n m d) time, about twice that for the gradient, which forms the kernel anew; O(strip m) memory.

    Pitfalls:
        Distances come from one matrix product: rows far from the origin lose digits. Centre them first.

    Example:
        >>> gaussian_row_sums(torch.zeros(2, 1), torch.zeros(3, 1), 1.0)
        tensor([3., 3.], dtype=torch.float64)
    """
    with torch.autocast(a.device.type, enabled=False):
        sums: Tensor = _RowSums.apply(a, b, sigma, hollow, strip)  # type: ignore[no-untyped-call]
    return sums


def gaussian_moments(
    a: Tensor, b: Tensor, sigma: float, *, hollow: bool = False, strip: int | None = None
) -> tuple[Tensor, Tensor, float]:
    """Return the row sums ``(n,)``, the column sums ``(m,)`` and the sum of squares of the kernel, without gradient.

    Args:
        a: Rows, ``(n, d)``.
        b: Rows, ``(m, d)``.
        sigma: Bandwidth.
        hollow: Whether to leave out the pairs ``(i, i)``.
        strip: Rows of ``a`` handled at a time; None chooses.

    Returns:
        Two float64 tensors and a number.

    Cost:
        O(n m d) time, O(strip m) memory.

    Pitfalls:
        As :func:`gaussian_row_sums`.

    Example:
        >>> gaussian_moments(torch.zeros(2, 1), torch.zeros(2, 1), 1.0, hollow=True)[2]
        2.0
    """
    rows = torch.empty(a.shape[0], dtype=torch.float64, device=a.device)
    columns = torch.zeros(b.shape[0], dtype=torch.float64, device=a.device)
    squares = 0.0
    for part in strips(a.shape[0], b, strip):
        kernel = gaussian_kernel(a[part], b, sigma)
        if hollow:
            kernel.diagonal(part.start).zero_()
        rows[part] = kernel.sum(dim=1, dtype=torch.float64)
        columns += kernel.sum(dim=0, dtype=torch.float64)
        squares += float(kernel.square_().sum(dtype=torch.float64))
    return rows, columns, squares


def gaussian_kernel(a: Tensor, b: Tensor, sigma: float) -> Tensor:
    """Return the kernel between all rows of ``a`` and of ``b``, ``(n, m)``, in one piece.

    Args:
        a: Rows, ``(n, d)``.
        b: Rows, ``(m, d)``.
        sigma: Bandwidth.

    Returns:
        Tensor ``(n, m)``, without gradient.

    Cost:
        O(n m d) time, O(n m) memory.

    Pitfalls:
        As :func:`gaussian_row_sums`.

    Example:
        >>> gaussian_kernel(torch.tensor([[0.0]]), torch.tensor([[0.0], [2.0]]), 1.0)
        tensor([[1.0000, 0.1353]])
    """
    with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
        squared = torch.mm(a, b.T).mul_(-2).add_(a.square().sum(dim=1, keepdim=True)).add_(b.square().sum(dim=1))
        return squared.clamp_(min=0).mul_(-0.5 / sigma**2).exp_()


def strips(n: int, b: Tensor, strip: int | None) -> Iterator[slice]:
    """Yield the slices that cut ``n`` rows into strips, whose kernels with all of ``b`` fit in a few megabytes.

    Args:
        n: Number of rows.
        b: The rows each strip is compared with.
        strip: Rows of one strip; None chooses.

    Yields:
        Slices with a start and a stop.

    Example:
        >>> list(strips(5, torch.zeros(9, 1), 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    if strip is None:
        strip = (2**20 if b.device.type == "cpu" else 2**26) // b.shape[0]
    rows = max(1, min(strip, n))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


@final
class _RowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, sigma: float, hollow: bool, strip: int | None) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.sigma, ctx.hollow, ctx.strip = sigma, hollow, strip
        sums = torch.empty(a.shape[0], dtype=torch.float64, device=a.device)
        for part in strips(a.shape[0], b, strip):
            kernel = gaussian_kernel(a[part], b, sigma)
            if hollow:
                kernel.diagonal(part.start).zero_()
            sums[part] = kernel.sum(dim=1, dtype=torch.float64)
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        a, b = ctx.saved_tensors
        with torch.autocast(a.device.type, enabled=False):
            weights = (grad / ctx.sigma**2).to(a.dtype)
            grad_a, grad_b, column_sums = torch.empty_like(a), torch.zeros_like(b), b.new_zeros(b.shape[0])
            for part in strips(a.shape[0], b, ctx.strip):
                kernel = gaussian_kernel(a[part], b, ctx.sigma)
                if ctx.hollow:
                    kernel.diagonal(part.start).zero_()
                kernel.mul_(weights[part, None])
                if ctx.needs_input_grad[0]:
                    grad_a[part] = torch.addmm(-kernel.sum(dim=1, keepdim=True) * a[part], kernel, b)
                if ctx.needs_input_grad[1]:
                    grad_b.addmm_(kernel.T, a[part])
                    column_sums += kernel.sum(dim=0)
            grad_b -= column_sums[:, None] * b
        return grad_a if ctx.needs_input_grad[0] else None, grad_b, None, None, None
