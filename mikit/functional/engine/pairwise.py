"""Streamed computation of any quantity over all pairs of rows: blocks of pairs, one at a time, in reused memory.

Such a quantity is a loop: for each block of scores (or of squared distances) overwrite the entries with a function of
them, sum them, and pass the derivatives to a :class:`Gradient`. No ``n x m`` tensor is ever allocated. Pass rows in the
dtype to compute in, and center them before asking for distances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.core import require
from mikit.functional.engine.epilogues import Epilogue, Scratch
from mikit.functional.engine.operators import unwanted

__all__ = ["Block", "Gradient", "scores", "spans", "squared_distances", "sum_over_pairs"]

# Rows of a block on a CPU: enough to keep the matrix product efficient, few enough that the block stays in the cache,
# and fewer yet where a block would take more than 32 MiB of float32. A GPU needs more work per launch.
_CACHED_ENTRIES, _FEWEST_ROWS, _MOST_ROWS, _MOST_ENTRIES = 2**20, 256, 512, 2**23
_ENTRIES_ON_GPU = 2**26


@final
class Block(NamedTuple):
    """Some rows of the matrix of all pairs.

    Attributes:
        rows: Which rows of the first sample.
        columns: Which rows of the second: all, or with ``symmetric`` those from the first of ``rows`` on.
        values: One entry per pair, a view of a buffer that the next block reuses. It may be overwritten.
    """

    rows: slice
    columns: slice
    values: Tensor

    def diagonal_of(self, values: Tensor) -> Tensor:
        """Return the entries of the pairs ``(i, i)`` as a view of ``values``, which have the block's shape."""
        return values.diagonal(self.rows.start - self.columns.start)

    @property
    def beyond(self) -> int:
        """With ``symmetric``: the first column whose pairs also stand for their mirror images."""
        width: int = self.rows.stop - self.columns.start
        return width


def scores(a: Tensor, b: Tensor, *, symmetric: bool = False, strip: int | None = None) -> Iterator[Block]:
    """Yield the scores ``a_i . b_j`` of all pairs of rows, in blocks that share one buffer.

    With ``symmetric``, where ``b`` is ``a``, each unordered pair is visited once, in half the time. ``strip`` is the
    number of rows of a block; None chooses.

    Example:
        >>> a = torch.arange(6.0).reshape(3, 2)
        >>> [(block.rows, block.values.tolist()) for block in scores(a, a[:2], strip=2)]
        [(slice(0, 2, None), [[1.0, 3.0], [3.0, 13.0]]), (slice(2, 3, None), [[5.0, 23.0]])]
    """
    n, m = a.shape[0], b.shape[0]
    columns = b.T.contiguous()
    buffer = a.new_empty(0)
    for rows in spans(n, m, strip, a.device):
        # A symmetric block starts at the column of its first row. The square on its diagonal contains both orders of
        # its pairs; the pairs beyond it appear in this order only.
        first = rows.start if symmetric else 0
        shape = rows.stop - rows.start, m - first
        if not buffer.numel():
            buffer = a.new_empty(shape[0] * shape[1])  # the first block is the largest
        values = buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(a[rows], columns[:, first:], out=values)
        yield Block(rows, slice(first, m), values)


def squared_distances(
    a: Tensor, b: Tensor, *, scale: float = 1.0, symmetric: bool = False, strip: int | None = None
) -> Iterator[Block]:
    """Yield ``scale |a_i - b_j|²`` for all pairs of rows of centered samples, never of the wrong sign.

    A ``scale`` of ``-1 / 2σ²`` gives the exponent of a Gaussian kernel; the other arguments are those of
    :func:`scores`. A distance is lost in rounding where it is much smaller than the norms of its rows.

    Example:
        >>> a = torch.tensor([[0.0], [3.0]])
        >>> [block.values.tolist() for block in squared_distances(a, a)]
        [[[0.0, 9.0], [9.0, 0.0]]]
    """
    # |a - b|² = |a|² - 2 a . b + |b|², with both norms as further columns of the factors: one matrix product gives the
    # distances, with no second pass over the entries to add the norms.
    ones_a, ones_b = a.new_ones(a.shape[0], 1), b.new_ones(b.shape[0], 1)
    left = torch.cat([a * (-2 * scale), a.square().sum(dim=1, keepdim=True) * scale, ones_a], dim=1)
    right = torch.cat([b, ones_b, b.square().sum(dim=1, keepdim=True) * scale], dim=1)
    for block in scores(left, right, symmetric=symmetric, strip=strip):
        # Rounding may turn a small distance negative, and a square root of it into NaN.
        block.values.clamp_(max=0) if scale < 0 else block.values.clamp_(min=0)
        if symmetric:
            block.diagonal_of(block.values).zero_()
        yield block


@final
class Gradient:
    """The gradient of a sum over all pairs, from the derivative ``w_ij`` of each pair's term in its entry.

    For scores ``∂/∂a_i = Σ_j w_ij b_j``. For squared distances times ``scale``
    ``∂/∂a_i = 2 scale Σ_j w_ij (a_i - b_j)``. Those in ``b`` are the same with the roles exchanged.

    ``a``, ``b``, ``scale`` (None for scores) and ``symmetric`` are as given to the blocks, and ``wants`` states which
    gradients to compute. With ``symmetric`` the weights are symmetric, the sum runs over ordered pairs, and the
    gradient in ``a`` includes both of its roles; the one in ``b`` is not computed. Each gradient costs ``2 n m d``
    operations, half of that if symmetric.
    """

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        wants: Sequence[bool],
        *,
        scale: float | None = None,
        symmetric: bool = False,
    ) -> None:
        self._a, self._b, self._scale, self._symmetric = a, b, scale, symmetric
        self._wants = (wants[0], wants[1] and not symmetric)
        # A block has all columns of its rows, so what it adds to the rows is final and overwrites; what it adds to the
        # columns accumulates. That sum is kept transposed, because the product adds to it faster in this layout.
        self._by_row = a.new_zeros(a.shape) if wants[0] else None
        self._by_column = b.new_zeros(b.shape[1], b.shape[0]) if wants[0 if symmetric else 1] else None
        self._weights_by_row, self._weights_by_column = (t.new_zeros(t.shape[0], dtype=torch.float64) for t in (a, b))

    def add(self, block: Block, weights: Tensor, per_row: Tensor | None = None) -> None:
        """Add the derivatives of one block's terms, ``(rows, columns)``.

        ``per_row`` ``(rows, 1)`` multiplies the derivatives of each row. It is applied to the thin factors, which saves
        a pass over the block. It would make the weights of symmetric pairs asymmetric, which raises ``ValueError``.
        """
        if self._symmetric and per_row is not None:
            raise ValueError("A factor for each row makes symmetric weights asymmetric. Multiply the weights instead.")
        rows, beyond = block.rows, slice(block.rows.stop if self._symmetric else 0, None)
        # Of a symmetric block only the columns beyond its diagonal square add to the columns: the square itself
        # contains both orders of its pairs, and both were counted by its rows.
        others = weights[:, block.beyond :] if self._symmetric else weights
        if self._by_row is not None:
            torch.mm(weights, self._b[block.columns], out=self._by_row[rows])
            if per_row is not None:
                self._by_row[rows] *= per_row
            if self._scale is not None:
                sums = weights.sum(dim=1)
                self._weights_by_row[rows] = sums if per_row is None else sums * per_row[:, 0]
        if self._by_column is not None:
            thin = self._a[rows] if per_row is None else self._a[rows] * per_row
            self._by_column[:, beyond].addmm_(thin.T, others)
            if self._scale is not None:
                self._weights_by_column[beyond] += others.sum(dim=0) if per_row is None else others.T @ per_row[:, 0]

    def rescale(self, factor: Tensor) -> None:
        """Multiply everything added so far by a 0-dim tensor: for weights relative to a maximum that has changed."""
        for sums in (self._by_row, self._by_column, self._weights_by_row, self._weights_by_column):
            if sums is not None:
                sums *= factor

    def both(self) -> tuple[Tensor, Tensor]:
        """Return the two gradients, those of distances in float64; an empty tensor for one not computed."""
        first, second = unwanted(self._a), unwanted(self._b)
        if self._symmetric and self._by_row is not None and self._by_column is not None:
            sums = self._by_row.add_(self._by_column.T)
            # Twice: a row appears on both sides of every ordered pair.
            first = self._finished(self._a, sums, self._weights_by_row + self._weights_by_column).mul_(2)
        elif self._by_row is not None:
            first = self._finished(self._a, self._by_row, self._weights_by_row)
        if self._wants[1] and self._by_column is not None:
            second = self._finished(self._b, self._by_column.T.contiguous(), self._weights_by_column)
        return first, second

    def _finished(self, rows: Tensor, sums: Tensor, weights: Tensor) -> Tensor:
        if self._scale is None:
            return sums
        # Σ_j w_ij a_i and Σ_j w_ij b_j nearly cancel where near pairs dominate, hence the float64 weights.
        return (rows * weights[:, None]).sub_(sums).mul_(2 * self._scale)


def sum_over_pairs(
    a: Tensor,
    b: Tensor,
    epilogue: Epilogue,
    *,
    wants: Sequence[bool] = (False, False),
    scale: float | None = None,
    symmetric: bool = False,
    hollow: bool = False,
    strip: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum over ordered pairs of ``epilogue(entry)``, 0-dim in float64, and its gradients in ``a`` and ``b``.

    Entries are scores, or with ``scale`` squared distances times it. With ``symmetric``, where ``b`` is ``a``, each
    unordered pair is visited once and counted twice. ``hollow`` leaves out the pairs ``(i, i)``. Entries are in the
    dtype of the rows: a sum that overflows it is infinite, not an error.

    Example:
        >>> from mikit.functional.engine.epilogues import exponential
        >>> rows = torch.zeros(3, 2)
        >>> float(sum_over_pairs(rows, rows, exponential, scale=-0.5, symmetric=True, hollow=True)[0])
        6.0
    """
    gradient = Gradient(a, b, wants, scale=scale, symmetric=symmetric)
    if scale is None:
        blocks = scores(a, b, symmetric=symmetric, strip=strip)
    else:
        blocks = squared_distances(a, b, scale=scale, symmetric=symmetric, strip=strip)
    sums = []
    spare = Scratch()
    for block in blocks:
        terms, slopes = epilogue(block.values, spare.shaped(block.values)[0], any(wants))
        if hollow:
            block.diagonal_of(terms).zero_()
            block.diagonal_of(slopes).zero_()
        # Rows are summed in the dtype of the entries, which is fast. The sums of rows are added in float64, because
        # their number grows with the sample.
        sums.append(terms.sum(dim=1).sum(dtype=torch.float64))
        if symmetric:
            sums.append(terms[:, block.beyond :].sum(dim=1).sum(dtype=torch.float64))
        if any(wants):
            if symmetric and scale is not None:
                # The distance of a row from itself is constant: its slope would only add rounding.
                block.diagonal_of(slopes).zero_()
            gradient.add(block, slopes)
    return torch.stack(sums).sum(), *gradient.both()


def spans(n: int, m: int, strip: int | None = None, device: torch.device | None = None) -> Iterator[slice]:
    """Yield the slices that divide ``n`` rows into blocks of pairs with ``m`` others.

    ``strip`` is the number of rows of a block; None chooses by ``device``, where None is a CPU.

    Example:
        >>> list(spans(5, 9, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    if strip is not None:
        require.at_least(strip, "strip")
        height = strip
    elif device is None or device.type == "cpu":
        height = min(max(_CACHED_ENTRIES // m, min(_FEWEST_ROWS, _MOST_ENTRIES // m)), _MOST_ROWS)
    else:
        height = _ENTRIES_ON_GPU // m
    height = max(1, min(height, n))
    for start in range(0, n, height):
        yield slice(start, min(start + height, n))
