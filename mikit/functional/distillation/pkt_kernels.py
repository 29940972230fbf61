"""The kernels of PKT: neighbor probabilities, a block of rows at a time, and gradients from their derivatives.

Each kernel is computed from features, or, for wide features, from the matrix of the entries it is a function of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, final

import torch
from torch import Tensor

from mikit.functional.engine.gram import gram
from mikit.functional.engine.operators import unwanted
from mikit.functional.engine.pairwise import Block, Gradient, scores, spans, squared_distances
from mikit.functional.engine.samples import centered

__all__ = ["Affinities", "affinities", "entries_of"]

# Added under the root of a distance, in squared units of the features, so that equal rows have a gradient.
_UNDER_THE_ROOT = 1e-6
# A cosine closer to -1 than this many machine epsilons is clamped there.
_EPSILONS_FROM_OPPOSITE = 16
# Columns per row from which on the Gram matrix is faster, measured with 128 to 1024 rows.
_WIDE = 2


def entries_of(rows: Tensor, kernel: str, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Return the differentiable input of a kernel, and whether it is a matrix of entries.

    For narrow features: their directions, or the features minus their mean. For wide ones: the cosines or squared
    distances of all pairs, from the Gram matrix.
    """
    # From the features themselves, every pass over the pairs costs n² d, and value and gradient take several. The Gram
    # matrix costs n² d once, and once more for its gradient; after that only n² entries are read.
    wide = rows.shape[1] >= _WIDE * rows.shape[0]
    if kernel == "student":
        if not wide:
            return centered(rows.to(dtype))[0], False
        products = gram(rows, center=True)
        squares = products.diagonal()
        return (squares[:, None] + squares - 2 * products).clamp_min(0).to(dtype), True
    # A constant factor does not change directions or their gradients; dividing by the largest entry keeps the squares
    # in range.
    fixed = rows.detach()
    largest = torch.maximum(fixed.amax(dim=1, keepdim=True), -fixed.amin(dim=1, keepdim=True)).to(dtype)
    if not wide:
        rows = rows.to(dtype) / torch.where(largest > 0, largest, 1.0)
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return rows * torch.where(largest > 0, 1 / torch.where(largest > 0, length, 1.0), 0.0), False
    products = gram(rows, over=torch.where(largest > 0, largest, 1.0))
    square = products.diagonal()[:, None]
    inverse = torch.where(largest > 0, torch.where(largest > 0, square, 1.0).rsqrt(), 0.0)
    return (products * inverse * inverse.T).to(dtype), True


class Affinities(Protocol):
    """The probabilities of one side, and the gradient in the input they were computed from."""

    def blocks(self, strip: int | None) -> Iterator[Block]:
        """Yield the probabilities, plus epsilon, one block of whole rows at a time."""

    def add(self, part: Block, slopes: Tensor, factor: float) -> None:
        """Add ``factor`` times the derivatives in the kernel, which are multiplied by the kernel's row sums."""

    def gradient(self) -> Tensor:
        """Return the gradient in the features or entries, if it was requested."""


def affinities(
    entries: Tensor, kernel: str, *, given: bool, diagonal: bool, epsilon: float, wanted: bool
) -> Affinities:
    """Return the affinities of features, or of ``given`` entries, both as :func:`entries_of` returns them."""
    if kernel == "cosine":
        family = _GivenCosines if given else _Cosines
        return family(entries, diagonal=diagonal, epsilon=epsilon, wanted=wanted)
    pairs = _GivenPairs(entries, wanted) if given else _DistancesOfRows(entries, wanted)
    return _Students(pairs, diagonal=diagonal, epsilon=epsilon)


@final
class _Cosines:
    """Probabilities proportional to 1 plus the cosine, of rows of length 1."""

    def __init__(self, rows: Tensor, *, diagonal: bool, epsilon: float, wanted: bool) -> None:
        # The sums of the kernel's rows are linear in the rows, so they are known before any pair is computed. With the
        # sums divided into the left factor, the matrix product yields probabilities directly, and no second pass over
        # a block is needed. In float64, since the differences between probabilities are small.
        exact = rows.to(torch.float64)
        sums = exact @ exact.sum(dim=0) + exact.shape[0]
        if not diagonal:
            sums -= exact.square().sum(dim=1) + 1
        least = _EPSILONS_FROM_OPPOSITE * torch.finfo(rows.dtype).eps
        sums = sums.clamp_min(least * (rows.shape[0] - (not diagonal)))
        self._diagonal, self._sums = diagonal, sums[:, None].to(rows.dtype)
        self._least = least / self._sums + epsilon
        self._left = torch.cat([rows / self._sums, 1 / self._sums + epsilon], dim=1)
        self._right = torch.cat([rows, torch.ones_like(self._sums)], dim=1)
        self._gradient = Gradient(rows, rows, (wanted, wanted))

    def blocks(self, strip: int | None) -> Iterator[Block]:
        for part in scores(self._left, self._right, strip=strip):
            torch.maximum(part.values, self._least[part.rows], out=part.values)
            if not self._diagonal:
                part.diagonal_of(part.values).zero_()
            yield part

    def add(self, part: Block, slopes: Tensor, factor: float) -> None:
        self._gradient.add(part, slopes, per_row=factor / self._sums[part.rows])

    def gradient(self) -> Tensor:
        one, other = self._gradient.both()
        return one + other


@final
class _GivenCosines:
    """Probabilities proportional to 1 plus given cosines."""

    def __init__(self, cosines: Tensor, *, diagonal: bool, epsilon: float, wanted: bool) -> None:
        self._pairs, self._diagonal, self._epsilon = _GivenPairs(cosines, wanted), diagonal, epsilon
        self._least = _EPSILONS_FROM_OPPOSITE * torch.finfo(cosines.dtype).eps
        self._sums = cosines.new_empty(cosines.shape[0], 1)

    def blocks(self, strip: int | None) -> Iterator[Block]:
        for part in self._pairs.blocks(strip):
            part.values.add_(1).clamp_(min=self._least)
            _normalize(part, self._sums, self._diagonal, self._epsilon)
            yield part

    def add(self, part: Block, slopes: Tensor, factor: float) -> None:
        self._pairs.add(part, slopes * (factor / self._sums[part.rows]))

    def gradient(self) -> Tensor:
        return self._pairs.gradient()


@final
class _Students:
    """Probabilities proportional to Student's t of the distance."""

    def __init__(self, pairs: _Pairs, *, diagonal: bool, epsilon: float) -> None:
        self._pairs, self._diagonal, self._epsilon = pairs, diagonal, epsilon
        self._sums = pairs.entries.new_empty(pairs.entries.shape[0], 1)

    def blocks(self, strip: int | None) -> Iterator[Block]:
        for part in self._pairs.blocks(strip):
            part.diagonal_of(part.values).zero_()
            part.values.add_(_UNDER_THE_ROOT).sqrt_().add_(1).reciprocal_()
            _normalize(part, self._sums, self._diagonal, self._epsilon)
            yield part

    def add(self, part: Block, slopes: Tensor, factor: float) -> None:
        sums = self._sums[part.rows]
        kernel = (part.values - self._epsilon).mul_(sums)
        # dK / d(distance²) = -K³ / (2 (1 - K)), with K recovered from the probabilities: no block of distances is kept.
        weights = kernel.pow(3).div_(1 - kernel).mul_(slopes).mul_(-factor / 2 / sums)
        part.diagonal_of(weights).zero_()
        self._pairs.add(part, weights)

    def gradient(self) -> Tensor:
        return self._pairs.gradient()


def _normalize(part: Block, sums: Tensor, diagonal: bool, epsilon: float) -> None:
    """Turn a block of the kernel into probabilities plus epsilon, in place, and store the sums of its rows."""
    if not diagonal:
        part.diagonal_of(part.values).zero_()
    torch.sum(part.values, dim=1, keepdim=True, out=sums[part.rows])
    part.values.div_(sums[part.rows])
    if epsilon:
        part.values.add_(epsilon)


class _Pairs(Protocol):
    """A matrix over all pairs of rows, in blocks."""

    entries: Tensor

    def blocks(self, strip: int | None) -> Iterator[Block]:
        """Yield the entries, which may be overwritten, one block of whole rows at a time."""

    def add(self, part: Block, weights: Tensor) -> None:
        """Add the derivatives in the entries of one block."""

    def gradient(self) -> Tensor:
        """Return the gradient, if it was requested."""


@final
class _DistancesOfRows:
    """Squared distances of centered rows."""

    def __init__(self, rows: Tensor, wanted: bool) -> None:
        self.entries = rows
        self._gradient = Gradient(rows, rows, (wanted, wanted), scale=1.0)

    def blocks(self, strip: int | None) -> Iterator[Block]:
        return squared_distances(self.entries, self.entries, strip=strip)

    def add(self, part: Block, weights: Tensor) -> None:
        self._gradient.add(part, weights)

    def gradient(self) -> Tensor:
        one, other = self._gradient.both()
        return one + other


@final
class _GivenPairs:
    """The blocks of a matrix."""

    def __init__(self, entries: Tensor, wanted: bool) -> None:
        self.entries = entries
        self._slopes = torch.empty_like(entries) if wanted else unwanted(entries)

    def blocks(self, strip: int | None) -> Iterator[Block]:
        n = self.entries.shape[0]
        for rows in spans(n, n, strip, self.entries.device):
            yield Block(rows, slice(0, n), self.entries[rows].clone())

    def add(self, part: Block, weights: Tensor) -> None:
        self._slopes[part.rows] = weights

    def gradient(self) -> Tensor:
        return self._slopes
