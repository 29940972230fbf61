"""Float32 distances of all pairs of samples in two spaces, in tiles, with bounds on their rounding error."""

from __future__ import annotations

import math
from typing import NamedTuple, Self, final

import numpy as np
import torch
from torch import Tensor

from mikit.functional.neighbors.distances import BLOCK, EPSILON, Metric, chebyshev_distances

__all__ = ["EdgePairs", "Screen", "Spaces"]

_UNIT = 2.0**-24  # largest relative error of rounding to float32
_UNDERFLOW = 2.0**-126  # largest absolute error where float32 runs out of exponents
_NARROW = 2.0**-11  # TF32 and bfloat16 cannot distinguish 1 + this from 1
_OUTSIDE = 1e30  # distance of the columns that fill up the last tile; true ones are at most 4 there
_TILE = 8192  # columns whose distances stay in cache between two steps
_SUMMED = 258  # products summed in one go: fewer mean less rounding, and more passes over the distances


@final
class Spaces(NamedTuple):
    """Two spaces in float64; distances (squared, if Euclidean) round by ``share * (size + distance)``."""

    x: Tensor
    y: Tensor
    metric: Metric
    size: Tensor
    share: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, metric: Metric, offset: float) -> Self:
        """Return centered spaces whose columns were ``offset`` from the origin before."""
        if metric == "chebyshev":
            return cls(x, y, metric, torch.maximum(x.abs().amax(dim=1), y.abs().amax(dim=1)) + offset, 8 * EPSILON)
        size = torch.maximum(x.square().sum(dim=1), y.square().sum(dim=1))
        return cls(x, y, metric, size, (8 + math.sqrt(max(x.shape[1], y.shape[1]))) * EPSILON)

    def radius(self, rows: Tensor | slice, kth: Tensor) -> Tensor:
        """Return the largest distance that is inside the balls of ``rows`` whose k-th neighbors are at ``kth``."""
        within = self.share * (self.size[rows] + kth)
        return torch.maximum(kth - within, within)


@final
class EdgePairs(NamedTuple):
    """Pairs at the edge of the ball in one space: their places in the tiles, and their distances in the other space."""

    place: Tensor
    other: Tensor


@final
class Screen:
    """The float32 distances of a block of rows from all rows, in both spaces, and bounds on their rounding.

    Rows are scaled by a power of two to norms of at most 1. Distances are stored in tiles of some thousand columns,
    which are still in cache when the next step reads them.
    """

    def __init__(self, spaces: Spaces, norm: Tensor, scale: float, strip: int | None) -> None:
        n, device, cpu = spaces.x.shape[0], spaces.x.device, spaces.x.device.type == "cpu"
        widest = max(spaces.x.shape[1], spaces.y.shape[1])
        if strip is None:
            # Thin blocks stay in cache; wide spaces need thicker ones, for the product.
            strip = min(256, max(64 if widest <= 128 else 256, 2**20 // n)) if cpu else 2**28 // n
        self.strip, self.rows = max(1, min(strip, n)), n
        tiles = max(1, round(n / _TILE)) if cpu else 1
        self.width = BLOCK * -(-n // (BLOCK * tiles))
        self.sides = [_Side(space, spaces.metric, scale, tiles, self.width) for space in (spaces.x, spaces.y)]
        self.between = [
            torch.empty(tiles, self.strip, self.width, dtype=torch.float32, device=device) for _ in self.sides
        ]
        self.scratch = torch.empty(self.strip, self.width, dtype=torch.float32, device=device)
        self.minima = torch.empty(self.strip, tiles, self.width // BLOCK, dtype=torch.float32, device=device)
        self.outwards = torch.tensor([[-torch.inf], [torch.inf]], dtype=torch.float32, device=device)
        self.flags = [torch.empty(self.strip, self.width, dtype=torch.bool) for _ in range(2)] if cpu else []
        self.metric, self.norm = spaces.metric, norm * scale
        self.relative = max(side.relative for side in self.sides)
        self.absolute = 16 * (widest + 2) * _UNDERFLOW
        # What counts as a tie in float64 is at the edge; the fraction of a distance in it is far below `relative`.
        self.tie = 4 * spaces.share * spaces.size * (scale if spaces.metric == "chebyshev" else scale**2)

    def multiplies_exactly(self) -> bool:
        """Return whether products keep the digits of float32, which settings of torch can take from them."""
        if self.metric == "chebyshev":
            return True
        # (1 + e)(1 - e) = 1 - e² is exact in float32. A product whose factors are rounded to fewer digits gives 1 or
        # 1 - e instead. A product is tried because more than one setting of torch reduces its precision.
        left = self.scratch.new_full((self.strip, self.sides[0].piece), 1 + _NARROW)
        right = self.scratch.new_zeros(self.sides[0].piece, self.width)
        right[0] = 1 - _NARROW
        return bool((torch.mm(left, right, out=self.scratch) == 1 - _NARROW**2).all())

    def compare(self, own: slice, k: int) -> Tensor:
        """Compute the distances of the rows ``own`` and return the k smallest in the joint space, ascending."""
        rows = own.stop - own.start
        scratch, minima = self.scratch[:rows], self.minima[:rows]
        queries = [side.queries(own) for side in self.sides]
        for tile in range(minima.shape[1]):
            for side, left, between in zip(self.sides, queries, self.between, strict=True):
                side.write(left, tile, between[tile, :rows], scratch)
                between[tile, :rows].diagonal(own.start - tile * self.width).fill_(torch.inf)
            torch.maximum(*(between[tile, :rows] for between in self.between), out=scratch)
            minima[:, tile] = scratch.view(rows, -1, BLOCK).amin(dim=2)
        # As in `smallest_entries`, but the joint distances are not kept: only those of the chosen blocks are formed
        # again, from the distances in x and in y.
        minima = minima.flatten(1)
        chosen = minima.topk(min(k, minima.shape[1]), dim=1, largest=False, sorted=False).indices
        blocks = self.width // BLOCK
        here = torch.arange(rows, device=chosen.device)[:, None]
        candidates = torch.maximum(
            *(b.view(-1, self.strip, blocks, BLOCK)[chosen // blocks, here, chosen % blocks] for b in self.between)
        )
        nearest: Tensor = candidates.flatten(1).topk(k, dim=1, largest=False, sorted=True).values
        return nearest

    def edges(self, own: slice, kth: Tensor) -> Tensor:
        """Return, for each row, the distance up to which a pair is surely inside, and above which surely outside."""
        # Let A be the norm of a row and d the true distance of another one, whose norm then is at most A + d. Rounding
        # moves a squared Euclidean distance by at most relative (2 A + d)² + absolute, and a Chebyshev distance by at
        # most relative (2 A + d) + absolute. No pair farther than `reach` can come out below `kth`. The true k-th
        # distance therefore differs from `kth` by no more than the error at `reach`, and so does any other distance
        # that could be on the wrong side of it.
        kth, norm = kth.double(), self.norm[own]
        if self.metric == "euclidean":
            root = math.sqrt(self.relative)
            reach = ((kth.clamp(min=0) + self.absolute).sqrt() + 2 * root * norm) / (1 - root)
            error = (2 * norm + reach).square()
        else:
            reach = (kth + self.absolute + 2 * self.relative * norm) / (1 - self.relative)
            error = 2 * norm + reach
        margin = error * (2.001 * self.relative) + (self.tie[own] + 3 * self.absolute)
        ends = torch.stack([kth - margin, kth + margin]).float()
        outwards: Tensor = torch.nextafter(ends, self.outwards)
        return outwards

    def count(self, own: slice, ends: Tensor, counts: Tensor) -> tuple[EdgePairs, EdgePairs]:
        """Count the pairs surely inside into ``counts``, x first, and return those at the edge in x and in y."""
        rows, tiles = own.stop - own.start, self.minima.shape[1]
        counts.zero_()
        at_edge: tuple[list[EdgePairs], list[EdgePairs]] = ([], [])
        for tile in range(tiles):
            between = [b[tile, :rows] for b in self.between]
            for mine, other, count, found in zip(between, between[::-1], counts, at_edge, strict=True):
                place = self._split(mine, ends, count)
                line = (tile * self.rows + own.start) * self.width
                found.append(EdgePairs(place + line, other.flatten()[place]))
        in_x, in_y = (
            f[0] if tiles == 1 else EdgePairs(*(torch.cat(part) for part in zip(*f, strict=True))) for f in at_edge
        )
        return in_x, in_y

    def _split(self, between: Tensor, ends: Tensor, count: Tensor) -> Tensor:
        """Add the entries up to the lower end to ``count`` and return the places of those between the ends."""
        low, high = ends[:, :, None]
        if not self.flags:
            inside = between <= low
            count += inside.sum(dim=1)
            places: Tensor = (inside ^ (between <= high)).flatten().nonzero()[:, 0]
            return places
        # NumPy compares, counts and searches booleans several times faster than torch.
        inside, edge = (flags[: between.shape[0]].numpy() for flags in self.flags)
        np.less_equal(between.numpy(), low.numpy(), out=inside)
        count += torch.tensor([np.count_nonzero(row) for row in inside])
        np.less_equal(between.numpy(), high.numpy(), out=edge)
        np.logical_xor(inside, edge, out=edge)
        # Few entries are at the edge, so eight booleans at a time are read as one integer and skipped if it is 0.
        eights = np.flatnonzero(edge.view(np.uint64) != 0)
        one, place = edge.reshape(-1, 8)[eights].nonzero()
        return torch.from_numpy(eights[one] * 8 + place)

    def pairs(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and the columns of pairs found by :meth:`count`."""
        line = place // self.width
        tile = line // self.rows
        return line - tile * self.rows, place - (line - tile) * self.width


@final
class _Side:
    """One space in float32: the operands of its distances, arranged in tiles."""

    def __init__(self, space: Tensor, metric: Metric, scale: float, tiles: int, width: int) -> None:
        self.metric = metric
        depth = space.shape[1] + (2 if metric == "euclidean" else 0)
        pieces = -(-depth // _SUMMED)
        self.piece = -(-depth // pieces)
        # In units of the square of the sum of two norms: rounding of the coordinates (2) and of their squares (1), of
        # each product and sum inside a piece, and of the sum over pieces. The factor 1.03 covers terms of second order.
        self.relative = 1.03 * _UNIT * (2 if metric == "chebyshev" else 3 + self.piece + pieces)
        n = space.shape[0]
        self.across = torch.zeros(tiles * width, depth, dtype=torch.float32, device=space.device)
        rows = self.across[:n, : space.shape[1]]
        for part in range(0, n, width):
            rows[part : part + width] = space[part : part + width] * scale
        if metric == "euclidean":
            self.across[:n, -2] = 1
            for part in range(0, n, width):
                self.across[part : min(part + width, n), -1] = rows[part : part + width].double().square().sum(dim=1)
        self.across[n:, -1] = _OUTSIDE
        self.tiles = self.across.view(tiles, width, depth).transpose(1, 2)
        if metric == "chebyshev":
            self.tiles = self.tiles.contiguous()

    def queries(self, own: slice) -> Tensor:
        """Return the left operand of the distances of some rows."""
        if self.metric == "chebyshev":
            return self.across[own]
        queries = -2 * self.across[own]
        queries[:, -2] = self.across[own, -1]
        queries[:, -1] = 1
        return queries

    def write(self, queries: Tensor, tile: int, out: Tensor, scratch: Tensor) -> None:
        """Write the distances of the queries from the rows of one tile (squared, if Euclidean)."""
        across = self.tiles[tile]
        if self.metric == "chebyshev":
            chebyshev_distances(queries, across, out, scratch)
            return
        for start in range(0, across.shape[0], self.piece):
            piece = slice(start, start + self.piece)
            torch.mm(queries[:, piece], across[piece], out=scratch if start else out)
            if start:
                out.add_(scratch)
