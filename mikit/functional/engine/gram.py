"""The Gram matrix of few wide rows, such as whole feature maps, read once for the value and once for the gradient.

Columns are processed a block at a time. Division and centering happen in a small buffer that stays in the cache, so the
rows are never copied as a whole, and the products of the blocks are summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.operators import full_precision
from mikit.functional.engine.samples import require_rows, working_dtype

__all__ = ["gram"]

# Numbers in a block: two MiB of float32 on a CPU. A GPU needs more work per launch.
_CACHED_ENTRIES, _ENTRIES_ON_GPU = 2**19, 2**26


def gram(rows: Tensor, *, over: Tensor | None = None, center: bool = False) -> Tensor:
    """Return the products ``x_i . x_j`` of all pairs of rows ``(n, d)``, in float64; differentiable once.

    ``over`` ``(n, 1)`` divides each row first and gets no gradient; ``center`` subtracts the mean row. Meant for ``d``
    above ``n``. Products are rounded in the dtype of the rows, float32 at least; only their sums are float64, so a
    distance computed from the result loses its digits where the rows are much longer than it: center first.

    Example:
        >>> gram(torch.tensor([[1.0, 2.0, 0.0, 2.0], [3.0, 0.0, 4.0, 0.0]]))
        tensor([[ 9.,  3.],
                [ 3., 25.]], dtype=torch.float64)
    """
    require_rows(rows, "rows")
    if over is not None and over.shape != (rows.shape[0], 1):
        raise InputError(f"over has shape {tuple(over.shape)}; pass one number per row, ({rows.shape[0]}, 1).")
    products: Tensor = _products(rows, None if over is None else over.detach(), center)
    return products


@torch.library.custom_op("mikit::gram", mutates_args=())
def _products(rows: Tensor, over: Tensor | None, center: bool) -> Tensor:
    n = rows.shape[0]
    with full_precision(rows.device):
        total = rows.new_zeros(n, n, dtype=torch.float64)
        products = rows.new_empty(n, n, dtype=working_dtype(rows))
        for _, block in _blocks(rows, over, center):
            total += torch.mm(block, block.T, out=products)
        return _double_centered(total) if center else total


@torch.library.custom_op("mikit::gram_gradient", mutates_args=())
def _gradient(incoming: Tensor, rows: Tensor, over: Tensor | None, center: bool) -> Tensor:
    with full_precision(rows.device):
        # With G = Z Zᵀ the gradient in Z is (dG + dGᵀ) Z. Centering is symmetric and idempotent, so applying it to
        # the small weights replaces centering the wide result.
        weights = incoming + incoming.T
        if center:
            weights = _double_centered(weights)
        weights = weights.to(working_dtype(rows))
        found = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for columns, block in _blocks(rows, over, center):
            if found.dtype == block.dtype and over is None:
                torch.mm(weights, block, out=found[:, columns])
            else:
                part = weights @ block
                found[:, columns] = part if over is None else part.div_(over)
        return found


@_products.register_fake
def _(rows: Tensor, over: Tensor | None, center: bool) -> Tensor:
    return rows.new_empty(rows.shape[0], rows.shape[0], dtype=torch.float64)


@_gradient.register_fake
def _(incoming: Tensor, rows: Tensor, over: Tensor | None, center: bool) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None, bool], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.center = inputs[2]


def _backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None]:
    return _gradient(incoming, *ctx.saved_tensors, ctx.center), None, None


def _refuse(ctx: Any, incoming: Tensor) -> tuple[Tensor, ...]:
    raise NotImplementedError(
        "The gradient of gram was differentiated again. It is computed in blocks and has no derivative of its own. "
        "Write the quantity in plain torch operations where you need a second derivative."
    )


_products.register_autograd(_backward, setup_context=_keep)
_gradient.register_autograd(_refuse)


def _blocks(rows: Tensor, over: Tensor | None, center: bool) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of columns, divided and centered, in memory that the next block reuses."""
    n, d = rows.shape
    entries = _CACHED_ENTRIES if rows.device.type == "cpu" else _ENTRIES_ON_GPU
    width = min(max(entries // n, 1), d)
    buffer = rows.new_empty(n * width, dtype=working_dtype(rows))
    for start in range(0, d, width):
        part = rows[:, start : start + width]
        block = buffer[: part.numel()].view(part.shape)
        if over is None:
            block.copy_(part)
        else:
            torch.div(part, over, out=block)
        if center:
            # This mean is rounded, but the error is the same for all rows, so double centering removes it later.
            block -= block.mean(dim=0)
        yield slice(start, start + part.shape[1]), block


def _double_centered(matrix: Tensor) -> Tensor:
    """Return a symmetric matrix less the means of its columns and of its rows."""
    by_column = matrix.mean(dim=0, keepdim=True)
    return matrix - by_column - by_column.T + by_column.mean()
