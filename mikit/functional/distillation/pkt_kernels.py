"""The kernels of PKT: probabilities of being a neighbour, a strip of rows at a time, and what their slopes give back.

Each kernel is had from rows; or, where rows are wide, from the matrix of the entries it is a function of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, final

import torch
from torch import Tensor

from mikit.functional.engine.gram import gram
from mikit.functional.engine.operators import unwanted
from mikit.functional.engine.pairwise import Gradient, Strip, scores, spans, squared_distances
from mikit.functional.engine.samples import centred

__all__ = ["Affinities", "affinities", "entries_of"]

# Under the root of a distance, in squared units of the features: rows that coincide have a gradient.
_UNDER_THE_ROOT = 1e-6
# A cosine nearer to -1 than so many machine epsilons is taken to be that far off.
_EPSILONS_FROM_OPPOSITE = 16
# Columns a row from which on the Gram matrix is the shorter way, measured with 128 to 1024 rows.
_WIDE = 2


def entries_of(rows: Tensor, kernel: str, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Return what a kernel is a function of, differentiable, and whether that is a matrix of entries.

    Of rows: directions, or rows around their mean. Of wide ones: the cosines, or the squared distances, of all pairs,
    from their Gram matrix.
    """
    wide = rows.shape[1] >= _WIDE * rows.shape[0]
    if kernel == "student":
        if not wide:
            return centred(rows.to(dtype))[0], False
        products = gram(rows, centre=True)
        squares = products.diagonal()
        return (squares[:, None] + squares - 2 * products).clamp_min(0).to(dtype), True
    # Directions do not change with the length, so a constant factor keeps squares in range, gradient and all.
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
    """The probabilities of one side, and the gradient in what it was made from."""

    def strips(self, strip: int | None) -> Iterator[Strip]:
        """Yield the probabilities, plus epsilon, a strip of whole rows at a time."""

    def add(self, part: Strip, slopes: Tensor, factor: float) -> None:
        """Take in ``factor`` times the derivatives in the kernel, times the sums of the kernel's rows."""

    def gradient(self) -> Tensor:
        """Return the gradient in the rows, or in the entries, if it was wanted."""


def affinities(of: Tensor, kernel: str, *, given: bool, diagonal: bool, epsilon: float, wanted: bool) -> Affinities:
    """Return the affinities of rows, or of ``given`` entries, both as :func:`entries_of` makes them."""
    if kernel == "cosine":
        family = _GivenCosines if given else _Cosines
        return family(of, diagonal=diagonal, epsilon=epsilon, wanted=wanted)
    pairs = _GivenPairs(of, wanted) if given else _DistancesOfRows(of, wanted)
    return _Students(pairs, diagonal=diagonal, epsilon=epsilon)


@final
class _Cosines:
    """Probabilities in proportion to 1 plus the cosine, of rows of length 1.

    The sums of the kernel's rows are linear in the rows, so that they are known before any pair is: the matrix product
    yields probabilities.
    """

    def __init__(self, rows: Tensor, *, diagonal: bool, epsilon: float, wanted: bool) -> None:
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

    def strips(self, strip: int | None) -> Iterator[Strip]:
        for part in scores(self._left, self._right, strip=strip):
            torch.maximum(part.values, self._least[part.rows], out=part.values)
            if not self._diagonal:
                part.own_of(part.values).zero_()
            yield part

    def add(self, part: Strip, slopes: Tensor, factor: float) -> None:
        self._gradient.add(part, slopes, per_row=factor / self._sums[part.rows])

    def gradient(self) -> Tensor:
        one, other = self._gradient.both()
        return one + other


@final
class _GivenCosines:
    """Probabilities in proportion to 1 plus given cosines."""

    def __init__(self, cosines: Tensor, *, diagonal: bool, epsilon: float, wanted: bool) -> None:
        self._pairs, self._diagonal, self._epsilon = _GivenPairs(cosines, wanted), diagonal, epsilon
        self._least = _EPSILONS_FROM_OPPOSITE * torch.finfo(cosines.dtype).eps
        self._sums = cosines.new_empty(cosines.shape[0], 1)

    def strips(self, strip: int | None) -> Iterator[Strip]:
        for part in self._pairs.strips(strip):
            part.values.add_(1).clamp_(min=self._least)
            _normalise(part, self._sums, self._diagonal, self._epsilon)
            yield part

    def add(self, part: Strip, slopes: Tensor, factor: float) -> None:
        self._pairs.add(part, slopes * (factor / self._sums[part.rows]))

    def gradient(self) -> Tensor:
        return self._pairs.gradient()


@final
class _Students:
    """Probabilities in proportion to Student's t of the distance."""

    def __init__(self, pairs: _Pairs, *, diagonal: bool, epsilon: float) -> None:
        self._pairs, self._diagonal, self._epsilon = pairs, diagonal, epsilon
        self._sums = pairs.of.new_empty(pairs.of.shape[0], 1)

    def strips(self, strip: int | None) -> Iterator[Strip]:
        for part in self._pairs.strips(strip):
            part.own_of(part.values).zero_()
            part.values.add_(_UNDER_THE_ROOT).sqrt_().add_(1).reciprocal_()
            _normalise(part, self._sums, self._diagonal, self._epsilon)
            yield part

    def add(self, part: Strip, slopes: Tensor, factor: float) -> None:
        sums = self._sums[part.rows]
        kernel = (part.values - self._epsilon).mul_(sums)
        # The kernel falls by K³ / 2 (1 - K) for a unit of the squared distance.
        weights = kernel.pow(3).div_(1 - kernel).mul_(slopes).mul_(-factor / 2 / sums)
        part.own_of(weights).zero_()
        self._pairs.add(part, weights)

    def gradient(self) -> Tensor:
        return self._pairs.gradient()


def _normalise(part: Strip, sums: Tensor, diagonal: bool, epsilon: float) -> None:
    """Make probabilities, plus epsilon, of a strip of the kernel, in place, and keep the sums of its rows."""
    if not diagonal:
        part.own_of(part.values).zero_()
    torch.sum(part.values, dim=1, keepdim=True, out=sums[part.rows])
    part.values.div_(sums[part.rows])
    if epsilon:
        part.values.add_(epsilon)


# ---------------------------------------------------------------------------------------------- where pairs come from


class _Pairs(Protocol):
    of: Tensor

    def strips(self, strip: int | None) -> Iterator[Strip]:
        """Yield the entries, which may be written over, a strip of whole rows at a time."""

    def add(self, part: Strip, weights: Tensor) -> None:
        """Take in the derivatives in one strip's entries."""

    def gradient(self) -> Tensor:
        """Return the gradient, if it was wanted."""


@final
class _DistancesOfRows:
    """Squared distances of centred rows."""

    def __init__(self, rows: Tensor, wanted: bool) -> None:
        self.of = rows
        self._gradient = Gradient(rows, rows, (wanted, wanted), scale=1.0)

    def strips(self, strip: int | None) -> Iterator[Strip]:
        return squared_distances(self.of, self.of, strip=strip)

    def add(self, part: Strip, weights: Tensor) -> None:
        self._gradient.add(part, weights)

    def gradient(self) -> Tensor:
        one, other = self._gradient.both()
        return one + other


@final
class _GivenPairs:
    """The strips of a matrix."""

    def __init__(self, entries: Tensor, wanted: bool) -> None:
        self.of = entries
        self._slopes = torch.empty_like(entries) if wanted else unwanted(entries)

    def strips(self, strip: int | None) -> Iterator[Strip]:
        n = self.of.shape[0]
        for rows in spans(n, n, strip, self.of.device):
            yield Strip(rows, slice(0, n), self.of[rows].clone())

    def add(self, part: Strip, weights: Tensor) -> None:
        self._slopes[part.rows] = weights

    def gradient(self) -> Tensor:
        return self._slopes
