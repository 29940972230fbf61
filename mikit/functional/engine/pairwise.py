"""The engine of every quantity over all pairs of rows: strips of pairs, one at a time, in memory that is reused.

A quantity over all pairs is three lines around it: for each strip of scores (or of squared distances) overwrite the
entries with a function of them, sum the rows, and hand the derivatives to a :class:`Gradient`. No tensor of ``n x m``
entries is ever made. Rows are expected in the dtype to compute in; centre them before asking for distances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.epilogues import (
    Epilogue,
    Scratch,
    clipped_exponential,
    exp_,
    exponential,
    gaussians,
    power,
    softplus,
)
from mikit.functional.engine.operators import unwanted

__all__ = [
    "Epilogue",
    "Gradient",
    "Scratch",
    "Strip",
    "clipped_exponential",
    "exp_",
    "exponential",
    "gaussians",
    "power",
    "scores",
    "softplus",
    "spans",
    "squared_distances",
    "sum_over_pairs",
]

# Rows of a strip on a CPU: as many as keep it near the processor, not so few that the matrix product starves, and fewer
# yet where a strip would take more than 32 MiB of float32. A GPU needs more work per launch.
_CACHED_ENTRIES, _FEWEST_ROWS, _MOST_ROWS, _MOST_ENTRIES = 2**20, 256, 512, 2**23
_ENTRIES_ON_GPU = 2**26


@final
class Strip(NamedTuple):
    """Some rows of the matrix of all pairs.

    Args:
        rows: Which rows of the first sample.
        columns: Which rows of the second: all of them, or with ``symmetric`` those from the first of ``rows`` on.
        values: One entry a pair, a view of the buffer that the next strip reuses. Write over it freely.
    """

    rows: slice
    columns: slice
    values: Tensor

    def own_of(self, values: Tensor) -> Tensor:
        """Return the entries of the pairs ``(i, i)``, a view of ``values``, which are shaped as those of the strip."""
        return values.diagonal(self.rows.start - self.columns.start)

    @property
    def beyond(self) -> int:
        """With ``symmetric``: the first column whose pairs no other strip visits in the other order."""
        width: int = self.rows.stop - self.columns.start
        return width


def scores(a: Tensor, b: Tensor, *, symmetric: bool = False, strip: int | None = None) -> Iterator[Strip]:
    """Yield the scores ``a_i . b_j`` of all pairs of rows.

    Args:
        a: Rows, ``(n, d)``.
        b: Rows, ``(m, d)``, of the same dtype.
        symmetric: Whether ``b`` is ``a``, and each unordered pair is to be visited only once.
        strip: Rows of ``a`` handled at a time; None chooses.

    Yields:
        Strips, whose values share one buffer.

    Cost:
        ``2 n m d`` operations, half of it if ``symmetric``; ``O(strip m)`` memory.

    Pitfalls:
        A strip is gone once the next one is asked for.

    Example:
        >>> a = torch.arange(6.0).reshape(3, 2)
        >>> [(strip.rows, strip.values.tolist()) for strip in scores(a, a[:2], strip=2)]
        [(slice(0, 2, None), [[1.0, 3.0], [3.0, 13.0]]), (slice(2, 3, None), [[5.0, 23.0]])]
    """
    n, m = a.shape[0], b.shape[0]
    columns = b.T.contiguous()
    buffer = a.new_empty(0)
    for rows in spans(n, m, strip, a.device):
        first = rows.start if symmetric else 0
        shape = rows.stop - rows.start, m - first
        if not buffer.numel():
            buffer = a.new_empty(shape[0] * shape[1])  # the first strip is the largest
        values = buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(a[rows], columns[:, first:], out=values)
        yield Strip(rows, slice(first, m), values)


def squared_distances(
    a: Tensor, b: Tensor, *, scale: float = 1.0, symmetric: bool = False, strip: int | None = None
) -> Iterator[Strip]:
    """Yield ``scale |a_i - b_j|²`` for all pairs of rows, never of the wrong sign.

    Args:
        a: Rows, ``(n, d)``, around a common centre with those of ``b``.
        b: Rows, ``(m, d)``, of the same dtype.
        scale: What the squared distances are multiplied by; ``-1 / 2σ²`` gives the exponent of a Gaussian kernel.
        symmetric: Whether ``b`` is ``a``, and each unordered pair is to be visited only once. Rows are then at
            distance 0 from themselves exactly.
        strip: Rows of ``a`` handled at a time; None chooses.

    Yields:
        Strips, whose values share one buffer.

    Cost:
        As :func:`scores` with two more columns.

    Pitfalls:
        From one matrix product: a distance is lost in rounding where it is much smaller than the rows are long.

    Example:
        >>> a = torch.tensor([[0.0], [3.0]])
        >>> [strip.values.tolist() for strip in squared_distances(a, a)]
        [[[0.0, 9.0], [9.0, 0.0]]]
    """
    ones_a, ones_b = a.new_ones(a.shape[0], 1), b.new_ones(b.shape[0], 1)
    left = torch.cat([a * (-2 * scale), a.square().sum(dim=1, keepdim=True) * scale, ones_a], dim=1)
    right = torch.cat([b, ones_b, b.square().sum(dim=1, keepdim=True) * scale], dim=1)
    for part in scores(left, right, symmetric=symmetric, strip=strip):
        part.values.clamp_(max=0) if scale < 0 else part.values.clamp_(min=0)
        if symmetric:
            part.own_of(part.values).zero_()
        yield part


@final
class Gradient:
    """The gradient of a sum over all pairs, from the derivative of each pair's term in its entry.

    For scores ``∂/∂a_i = Σ_j w_ij b_j`` and ``∂/∂b_j = Σ_i w_ij a_i``. For squared distances times ``scale``
    ``∂/∂a_i = 2 scale Σ_j w_ij (a_i - b_j)`` and ``∂/∂b_j = 2 scale Σ_i w_ij (b_j - a_i)``.

    Args:
        a: Rows, ``(n, d)``, as given to :func:`scores` or :func:`squared_distances`.
        b: Rows, ``(m, d)``.
        wants: Which of the two gradients to form.
        scale: As given to :func:`squared_distances`; None for :func:`scores`.
        symmetric: As given to the strips. The weights are then symmetric, the sum runs over ordered pairs, and the
            gradient in ``a`` holds both of its roles; the one in ``b`` is not formed.

    Cost:
        ``2 n m d`` operations for each gradient, half of it if ``symmetric``; ``O((n + m) d)`` memory.

    Example:
        >>> a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [5.0]])
        >>> gradient = Gradient(a, b, (True, True))
        >>> for strip in scores(a, b):
        ...     gradient.add(strip, torch.ones_like(strip.values))  # the derivative of the sum of all scores
        >>> [part.tolist() for part in gradient.both()]
        [[[8.0], [8.0]], [[3.0], [3.0]]]
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
        # Sums over a strip's columns fall to its rows; sums over its rows fall to its columns, and stand on their side:
        # the matrix product adds to them faster so.
        self._by_row = a.new_zeros(a.shape) if wants[0] else None
        self._by_column = b.new_zeros(b.shape[1], b.shape[0]) if wants[0 if symmetric else 1] else None
        self._weights_by_row, self._weights_by_column = (t.new_zeros(t.shape[0], dtype=torch.float64) for t in (a, b))

    def add(self, strip: Strip, weights: Tensor, per_row: Tensor | None = None) -> None:
        """Take in the derivatives of one strip's terms.

        Args:
            strip: The strip.
            weights: The derivatives, ``(rows, columns)``.
            per_row: ``(rows, 1)``, what the derivatives of each row are multiplied by. The factor goes into the thin
                matrices. Not where pairs are ``symmetric``.

        Raises:
            ValueError: If a factor is given for symmetric pairs, whose weights it would make asymmetric.
        """
        if self._symmetric and per_row is not None:
            raise ValueError("A factor for each row makes symmetric weights asymmetric. Multiply the weights instead.")
        rows, beyond = strip.rows, slice(strip.rows.stop if self._symmetric else 0, None)
        others = weights[:, strip.beyond :] if self._symmetric else weights
        if self._by_row is not None:
            torch.mm(weights, self._b[strip.columns], out=self._by_row[rows])
            if per_row is not None:
                self._by_row[rows] *= per_row
            if self._scale is not None:
                sums = weights.sum(dim=1)
                self._weights_by_row[rows] = sums if per_row is None else sums * per_row[:, 0]
        if self._by_column is not None:
            own = self._a[rows] if per_row is None else self._a[rows] * per_row
            self._by_column[:, beyond].addmm_(own.T, others)
            if self._scale is not None:
                self._weights_by_column[beyond] += others.sum(dim=0) if per_row is None else others.T @ per_row[:, 0]

    def rescale(self, factor: Tensor) -> None:
        """Multiply everything taken in so far by a 0-dim tensor, for weights that were relative to another number."""
        for sums in (self._by_row, self._by_column, self._weights_by_row, self._weights_by_column):
            if sums is not None:
                sums *= factor

    def both(self) -> tuple[Tensor, Tensor]:
        """Return the two gradients, those of distances in float64; an empty tensor in the place of one not formed."""
        first, second = unwanted(self._a), unwanted(self._b)
        if self._symmetric and self._by_row is not None and self._by_column is not None:
            sums = self._by_row.add_(self._by_column.T)
            first = self._finished(self._a, sums, self._weights_by_row + self._weights_by_column).mul_(2)
        elif self._by_row is not None:
            first = self._finished(self._a, self._by_row, self._weights_by_row)
        if self._wants[1] and self._by_column is not None:
            second = self._finished(self._b, self._by_column.T.contiguous(), self._weights_by_column)
        return first, second

    def _finished(self, rows: Tensor, sums: Tensor, weights: Tensor) -> Tensor:
        if self._scale is None:
            return sums
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
    """Return the sum of a function of every pair's entry, and its gradients.

    Args:
        a: Rows, ``(n, d)``.
        b: Rows, ``(m, d)``.
        epilogue: What each entry contributes, and its derivative.
        wants: Which of the gradients to form.
        scale: Entries are squared distances times this; None: entries are scores.
        symmetric: Whether ``b`` is ``a``. Each unordered pair is then visited once and counted twice, and the
            gradient in ``a`` holds both of its roles.
        hollow: Whether to leave out the pairs ``(i, i)``.
        strip: Rows of ``a`` handled at a time; None chooses.

    Returns:
        The sum over ordered pairs, a 0-dim float64 tensor, and the gradients in ``a`` and in ``b``.

    Cost:
        ``2 n m d`` operations for the value and for each gradient, half of them if ``symmetric``;
        ``O((n + m) d + strip m)`` memory.

    Pitfalls:
        Entries are computed in the dtype of the rows. A sum that overflows it is infinite, not an error.

    Example:
        >>> rows = torch.zeros(3, 2)
        >>> float(sum_over_pairs(rows, rows, exponential, scale=-0.5, symmetric=True, hollow=True)[0])
        6.0
    """
    gradient = Gradient(a, b, wants, scale=scale, symmetric=symmetric)
    if scale is None:
        pairs = scores(a, b, symmetric=symmetric, strip=strip)
    else:
        pairs = squared_distances(a, b, scale=scale, symmetric=symmetric, strip=strip)
    sums = []
    spare = Scratch()
    for strip_of_pairs in pairs:
        terms, slopes = epilogue(strip_of_pairs.values, spare.shaped(strip_of_pairs.values)[0], any(wants))
        if hollow:
            strip_of_pairs.own_of(terms).zero_()
            strip_of_pairs.own_of(slopes).zero_()
        sums.append(terms.sum(dim=1).sum(dtype=torch.float64))
        if symmetric:
            sums.append(terms[:, strip_of_pairs.beyond :].sum(dim=1).sum(dtype=torch.float64))
        if any(wants):
            if symmetric and scale is not None:
                # A row's distance from itself does not change: its slope adds nothing but rounding.
                strip_of_pairs.own_of(slopes).zero_()
            gradient.add(strip_of_pairs, slopes)
    return torch.stack(sums).sum(), *gradient.both()


def spans(n: int, m: int, strip: int | None = None, device: torch.device | None = None) -> Iterator[slice]:
    """Yield the slices that cut ``n`` rows into strips of pairs with ``m`` others.

    Args:
        n: Number of rows.
        m: Number of rows that each is paired with.
        strip: Rows of one strip; None chooses by the device.
        device: Where the strips live; None: on a CPU.

    Yields:
        Slices with a start and a stop. The last may be shorter.

    Raises:
        InputError: If ``strip`` is below 1.

    Example:
        >>> list(spans(5, 9, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    if strip is not None:
        if strip < 1:
            raise InputError(f"strip is {strip}; at least 1 row must be handled at a time.")
        height = strip
    elif device is None or device.type == "cpu":
        height = min(max(_CACHED_ENTRIES // m, min(_FEWEST_ROWS, _MOST_ENTRIES // m)), _MOST_ROWS)
    else:
        height = _ENTRIES_ON_GPU // m
    height = max(1, min(height, n))
    for start in range(0, n, height):
        yield slice(start, min(start + height, n))
