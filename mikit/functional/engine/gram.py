"""The Gram matrix of few wide rows, such as whole feature maps: read once for it and once for its gradient.

Columns are taken a block at a time. What a block is divided by and centred with happens in a buffer that stays near the
processor, so that no copy of the rows is made, and what blocks give is added up in float64.
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

# Numbers of a block: two MiB of float32 on a CPU. A GPU needs more work per launch.
_CACHED_ENTRIES, _ENTRIES_ON_GPU = 2**19, 2**26


def gram(rows: Tensor, *, over: Tensor | None = None, centre: bool = False) -> Tensor:
    """Products of all pairs of rows, ``x_i . x_j``, of rows divided by ``over`` or around their mean.

    Formula: ``G = Z Zᵀ`` with ``z_i = x_i / over_i``, and with ``centre`` the mean row taken off each.

    Args:
        rows: ``(n, d)``; meant for ``d`` above ``n``.
        over: ``(n, 1)``, what each row is divided by, a constant for the gradient; None: 1.
        centre: Whether to take the mean row off.

    Returns:
        Tensor ``(n, n)`` of dtype float64, differentiable once in ``rows``. Unit: that of the rows, squared. Kind: a
        matrix of products, positive semi-definite up to rounding.

    Raises:
        InputError: If ``rows`` is not ``(n, d)``, or ``over`` not ``(n, 1)``.
        NotImplementedError: By the backward pass, if it is itself differentiated.

    Cost:
        2 n² d operations, and as many for the gradient. Each reads the rows once and makes no copy; O(n²) memory.

    Pitfalls:
        - Products are rounded in the dtype of the rows, float32 at least, and only their sums are float64.
        - A distance taken from it is lost where it is much smaller than the rows are long: centre first.

    Source:
        A definition.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0, 0.0, 2.0], [3.0, 0.0, 4.0, 0.0]])
        >>> gram(rows)
        tensor([[ 9.,  3.],
                [ 3., 25.]], dtype=torch.float64)
        >>> gram(rows, centre=True)
        tensor([[ 7., -7.],
                [-7.,  7.]], dtype=torch.float64)
    """
    require_rows(rows, "rows")
    if over is not None and over.shape != (rows.shape[0], 1):
        raise InputError(f"over has shape {tuple(over.shape)}; pass one number a row, ({rows.shape[0]}, 1).")
    products: Tensor = _products(rows, None if over is None else over.detach(), centre)
    return products


@torch.library.custom_op("mikit::gram", mutates_args=())
def _products(rows: Tensor, over: Tensor | None, centre: bool) -> Tensor:
    n = rows.shape[0]
    with full_precision(rows.device):
        total = rows.new_zeros(n, n, dtype=torch.float64)
        products = rows.new_empty(n, n, dtype=working_dtype(rows))
        for _, block in _blocks(rows, over, centre):
            total += torch.mm(block, block.T, out=products)
        return _around_its_mean(total) if centre else total


@torch.library.custom_op("mikit::gram_gradient", mutates_args=())
def _gradient(incoming: Tensor, rows: Tensor, over: Tensor | None, centre: bool) -> Tensor:
    with full_precision(rows.device):
        weights = incoming + incoming.T
        if centre:
            weights = _around_its_mean(weights)
        weights = weights.to(working_dtype(rows))
        found = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for columns, block in _blocks(rows, over, centre):
            if found.dtype == block.dtype and over is None:
                torch.mm(weights, block, out=found[:, columns])
            else:
                part = weights @ block
                found[:, columns] = part if over is None else part.div_(over)
        return found


@_products.register_fake
def _(rows: Tensor, over: Tensor | None, centre: bool) -> Tensor:
    return rows.new_empty(rows.shape[0], rows.shape[0], dtype=torch.float64)


@_gradient.register_fake
def _(incoming: Tensor, rows: Tensor, over: Tensor | None, centre: bool) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None, bool], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.centre = inputs[2]


def _backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None]:
    return _gradient(incoming, *ctx.saved_tensors, ctx.centre), None, None


def _refuse(ctx: Any, incoming: Tensor) -> tuple[Tensor, ...]:
    raise NotImplementedError(
        "The gradient of gram was differentiated again. It is formed in blocks and has no derivative of its own. Write "
        "the quantity in plain torch operations where you need a second one."
    )


_products.register_autograd(_backward, setup_context=_keep)
_gradient.register_autograd(_refuse)


def _blocks(rows: Tensor, over: Tensor | None, centre: bool) -> Iterator[tuple[slice, Tensor]]:
    """Yield columns and what the products are taken of, in memory that the next block reuses."""
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
        if centre:
            # Rounded, but the same for all rows. What rounding leaves of the mean is taken off the products.
            block -= block.mean(dim=0)
        yield slice(start, start + part.shape[1]), block


def _around_its_mean(matrix: Tensor) -> Tensor:
    """Return a symmetric matrix with the means of its columns and of its rows taken off."""
    by_column = matrix.mean(dim=0, keepdim=True)
    return matrix - by_column - by_column.T + by_column.mean()
