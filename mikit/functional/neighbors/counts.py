"""How many samples lie in the ball that reaches to the k-th nearest neighbour of each sample, by all pairs.

All pairs are compared in float32 first, with a bound on what rounding can have done to a distance. Pairs whose
distance lies farther than that bound from the edge of the ball are decided; the few others are computed again in
float64. Where many distances lie at the edge (labels, atoms, rows that occur twice) all pairs are compared in float64
instead. The counts are those of float64, up to what rounding decides there itself.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Metric", "counts_by_strips"]

Metric = Literal["euclidean", "chebyshev"]

_BLOCK = 64  # columns whose minimum stands for them while the nearest are selected
_EPSILON = float(np.finfo(np.float64).eps)
_UNIT = 2.0**-24  # largest relative error of rounding to float32
_UNDERFLOW = 2.0**-126  # largest absolute error where float32 runs out of exponents
_NARROW = 2.0**-11  # TF32 and bfloat16 cannot tell 1 + this from 1
_OUTSIDE = 1e30  # distance of the columns that fill up the last tile; true ones are at most 4 there
_TILE = 8192  # columns whose distances stay in cache between two steps
_SUMMED = 258  # products summed in one go: fewer mean less rounding, and more passes over the distances
_SMALL = 2**19  # rows times (columns + 200) up to which float64 is done before float32 has begun
_GIVE_UP = 0.25  # share of undecided rows from which on float64 alone is faster
_PENDING = 2**16  # pairs at the edge that are collected before they are computed again

_Integers = npt.NDArray[np.int64]


class _Spaces(NamedTuple):
    """Two spaces in float64, and what is rounding there: ``share * (size + distance)``. Euclid means squares."""

    x: Tensor
    y: Tensor
    metric: Metric
    size: Tensor
    share: float


def counts_by_strips(
    x: Tensor, y: Tensor, k: int, metric: Metric, offset: float, strip: int | None
) -> tuple[_Integers, _Integers, _Integers]:
    """Count the samples strictly nearer than the k-th neighbour, in the joint space, in x and in y.

    The distance in the joint space is the larger of the two. A sample counts itself. Where k samples or more coincide
    with it, those are counted. Distances that differ by no more than rounding in float64 count as equal.

    Args:
        x: First space, ``(n, d_x)``, float64, centred.
        y: Second space, ``(n, d_y)``, float64, centred.
        k: Number of neighbours, below n.
        metric: Distance inside each space.
        offset: How far the columns were off centre before, in the units they are in now.
        strip: Rows handled at a time; None chooses. The counts do not depend on it.

    Returns:
        Three arrays ``(n,)`` of numbers of samples.

    Cost:
        O(n² (d_x + d_y)) time, in float32 unless many distances tie; O(n · strip) memory.

    Pitfalls:
        A GPU told to multiply float32 at reduced precision (``torch.set_float32_matmul_precision``) has no float32 to
        offer. That is noticed, and all is done in float64, which is slow on most cards.

    Example:
        >>> x = torch.tensor([[-4.0], [-1.0], [0.0], [5.0]], dtype=torch.float64)
        >>> counts_by_strips(x, x, 2, "euclidean", 0.0, None)[0].tolist()
        [2, 2, 2, 2]
    """
    spaces = _Spaces(x, y, metric, *_rounding(x, y, metric, offset))
    counts = torch.empty(3, x.shape[0], dtype=torch.int64, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        left = _decide_in_float32(spaces, k, strip, counts)
        if left.shape[0]:
            _count_in_float64(spaces, left, k, strip, counts)
    found = (counts + 1).cpu().numpy()
    return found[0], found[1], found[2]


def _rounding(x: Tensor, y: Tensor, metric: Metric, offset: float) -> tuple[Tensor, float]:
    """Return the size of each row, and the share of it and of a distance that is rounding (squared, if Euclidean)."""
    if metric == "chebyshev":
        return torch.maximum(x.abs().amax(dim=1), y.abs().amax(dim=1)) + offset, 8 * _EPSILON
    size = torch.maximum(x.square().sum(dim=1), y.square().sum(dim=1))
    return size, (8 + math.sqrt(max(x.shape[1], y.shape[1]))) * _EPSILON


def _edge(spaces: _Spaces, rows: Tensor | slice, kth: Tensor) -> Tensor:
    """Return the largest distance that is inside the balls of ``rows`` whose k-th neighbours are at ``kth``."""
    within = spaces.share * (spaces.size[rows] + kth)
    return torch.maximum(kth - within, within)


# ------------------------------------------------------------------------------------------------------- float64


def _count_in_float64(spaces: _Spaces, rows: Tensor, k: int, strip: int | None, counts: Tensor) -> None:
    """Enter the counts of ``rows``, found from the float64 distances of all pairs."""
    x, y, metric, device = spaces.x, spaces.y, spaces.metric, spaces.x.device
    n = x.shape[0]
    if strip is None:
        # A strip that stays in cache is fastest, unless it is so thin that the matrix product starves.
        strip = max(2**18 // n, min(x.shape[1] + y.shape[1], 256) // 2) if device.type == "cpu" else 2**27 // n
    strip = max(1, min(strip, rows.shape[0]))
    if metric == "euclidean":
        sides_x, sides_y = _gram_sides(x), _gram_sides(y)
    else:
        across_x, across_y = x.T.contiguous(), y.T.contiguous()
    padded = -(-n // _BLOCK) * _BLOCK
    buffer_x, buffer_y = x.new_empty(strip, n), x.new_empty(strip, n)
    buffer = x.new_full((strip, padded), torch.inf)
    mask = torch.empty(strip, n, dtype=torch.bool, device=device)
    for start in range(0, rows.shape[0], strip):
        own = rows[start : start + strip]
        here = torch.arange(own.shape[0], device=device)
        between_x, between_y, nearest = buffer_x[: len(own)], buffer_y[: len(own)], buffer[: len(own)]
        if metric == "euclidean":
            torch.mm(sides_x[0][own], sides_x[1], out=between_x)
            torch.mm(sides_y[0][own], sides_y[1], out=between_y)
        else:
            # The buffer of the joint distances is free until both spaces are done.
            _chebyshev(x[own], across_x, between_x, nearest[:, :n])
            _chebyshev(y[own], across_y, between_y, nearest[:, :n])
        for between in (between_x, between_y):
            between[here, own] = torch.inf
        joint = torch.maximum(between_x, between_y, out=nearest[:, :n])
        smallest = _smallest(nearest, k)
        radius = _edge(spaces, own, smallest[:, -1])
        together = (smallest <= radius[:, None]).sum(dim=1)
        atoms = (together == k).nonzero()[:, 0]  # k samples or more coincide with these
        if atoms.shape[0]:
            together[atoms] = (joint[atoms] <= radius[atoms, None]).sum(dim=1)
        counts[0, own] = together
        counts[1, own] = _at_most(between_x, radius, mask[: len(own)])
        counts[2, own] = _at_most(between_y, radius, mask[: len(own)])


def _gram_sides(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product holds the squared distances of all pairs of rows."""
    squares, ones = rows.square().sum(dim=1, keepdim=True), rows.new_ones(rows.shape[0], 1)
    left = torch.cat([-2 * rows, squares, ones], dim=1)
    return left, torch.cat([rows, ones, squares], dim=1).T.contiguous()


def _chebyshev(queries: Tensor, across: Tensor, out: Tensor, scratch: Tensor) -> None:
    """Write to ``out`` the distances of the rows of ``queries`` from the columns of ``across``."""
    torch.sub(queries[:, :1], across[0], out=out).abs_()
    for column in range(1, across.shape[0]):
        torch.sub(queries[:, column, None], across[column], out=scratch).abs_()
        torch.maximum(out, scratch, out=out)


def _smallest(distances: Tensor, k: int) -> Tensor:
    """Return the k smallest entries of each row, ascending.

    They lie in the k blocks of columns with the smallest minima, so only those are searched.
    """
    blocks = distances.view(distances.shape[0], -1, _BLOCK)
    count = min(k, blocks.shape[1])
    chosen = blocks.amin(dim=2).topk(count, dim=1, largest=False, sorted=False).indices
    candidates = blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    smallest: Tensor = candidates.topk(k, dim=1, largest=False, sorted=True).values
    return smallest


def _at_most(distances: Tensor, radius: Tensor, mask: Tensor) -> Tensor:
    """Return how many entries of each row are at most ``radius`` of that row."""
    if distances.device.type != "cpu":
        return (distances <= radius[:, None]).sum(dim=1)
    # NumPy counts a row of booleans several times faster than torch sums it.
    flags = mask.numpy()
    np.less_equal(distances.numpy(), radius.numpy()[:, None], out=flags)
    return torch.tensor([np.count_nonzero(row) for row in flags])


# ------------------------------------------------------------------------------------------------------- float32


class _Hits(NamedTuple):
    """Pairs at the edge of the ball in one space: where they are in the tiles, and how far in the other space."""

    place: Tensor
    other: Tensor


def _decide_in_float32(spaces: _Spaces, k: int, strip: int | None, counts: Tensor) -> Tensor:
    """Enter the counts of the rows that float32, and a few distances in float64, can decide; return the other rows."""
    n, device = spaces.x.shape[0], spaces.x.device
    norm = spaces.size.sqrt()
    if spaces.metric == "chebyshev":
        norm = torch.maximum(spaces.x.abs().amax(dim=1), spaces.y.abs().amax(dim=1))
    farthest = float(norm.max())
    small = n * (spaces.x.shape[1] + spaces.y.shape[1] + 200) <= _SMALL
    if small or not 1e-100 < farthest < 1e100:  # beyond, scaling by a power of two would leave float64
        return torch.arange(n, device=device)
    screen = _Screen(spaces, norm, 0.5 ** math.frexp(farthest)[1], strip)
    if not screen.multiplies_exactly():
        return torch.arange(n, device=device)
    crowd = max(64, n // 32)  # pairs at the edge from which on the whole row is cheaper in float64
    ends = torch.empty(2, n, dtype=torch.float32, device=device)
    undecided = torch.zeros(n, dtype=torch.bool, device=device)
    pending: list[tuple[_Hits, _Hits]] = []
    begun = waiting = 0
    hopeless = False
    for start in range(0, n, screen.strip):
        own = slice(start, min(start + screen.strip, n))
        nearest = screen.compare(own, k)
        ends[:, own] = screen.edges(own, nearest[:, -1])
        counts[0, own] = (nearest <= ends[0, own, None]).sum(dim=1)
        hits = screen.count(own, ends[:, own], counts[1:, own])
        met = sum(found.place.shape[0] for found in hits)
        if met > crowd:
            rows = [screen.pairs(found.place)[0] for found in hits]
            undecided[own] = torch.bincount(torch.cat(rows) - start, minlength=own.stop - start) > crowd
            kept = [~undecided[row] for row in rows]
            in_x, in_y = (_Hits(f.place[keep], f.other[keep]) for f, keep in zip(hits, kept, strict=True))
            hits = (in_x, in_y)
            hopeless = bool(undecided[: own.stop].sum() > _GIVE_UP * own.stop)
        pending.append(hits)
        waiting += met
        if waiting > _PENDING or hopeless or own.stop == n:
            in_x, in_y = (
                _Hits(*(torch.cat(part) for part in zip(*f, strict=True))) for f in zip(*pending, strict=True)
            )
            _settle(spaces, screen, slice(begun, own.stop), k, ends, in_x, in_y, undecided, counts)
            pending, waiting, begun = [], 0, own.stop
        if hopeless:
            undecided[own.stop :] = True
            break
    return undecided.nonzero()[:, 0]


def _settle(
    spaces: _Spaces,
    screen: _Screen,
    own: slice,
    k: int,
    ends: Tensor,
    in_x: _Hits,
    in_y: _Hits,
    undecided: Tensor,
    counts: Tensor,
) -> None:
    """Add the pairs at the edge that are inside to the counts of the rows ``own``, from their float64 distances."""
    low, high = ends
    (row_x, column_x), (row_y, column_y) = screen.pairs(in_x.place), screen.pairs(in_y.place)
    from_x = _between(spaces.x, row_x, column_x, spaces.metric)
    from_y = _between(spaces.y, row_y, column_y, spaces.metric)
    # Joint distances at the edge: in x, where that in y may be at the edge as well; or in y alone.
    joint = from_x.clone()
    both = ((in_x.other > low[row_x]) & (in_x.other <= high[row_x])).nonzero()[:, 0]
    joint[both] = torch.maximum(from_x[both], _between(spaces.y, row_x[both], column_x[both], spaces.metric))
    by_x, by_y = in_x.other <= high[row_x], in_y.other <= low[row_y]
    row, joint = torch.cat([row_x[by_x], row_y[by_y]]), torch.cat([joint[by_x], from_y[by_y]])
    order = joint.argsort()
    order = order[row[order].argsort(stable=True)]
    row, joint = row[order], joint[order]
    decided = own.start + (~undecided[own]).nonzero()[:, 0]
    kth = joint[torch.searchsorted(row, decided) + (k - 1 - counts[0, decided])]
    within = spaces.share * (spaces.size[decided] + kth)
    rows = own.stop - own.start
    radius, doubt = joint.new_zeros(rows), joint.new_zeros(rows)
    radius[decided - own.start] = _edge(spaces, decided, kth)
    doubt[decided - own.start] = 0.75 * within
    # Closer to the edge than this, the rounding of the product decides in float64, so that is asked.
    undecided[decided] |= (kth - 2 * within).abs() < within
    for count, (at, distance) in zip(counts, ((row, joint), (row_x, from_x), (row_y, from_y)), strict=True):
        at = at - own.start
        count[own] += torch.bincount(at[distance <= radius[at]], minlength=rows)
        undecided[own.start + at[(distance - radius[at]).abs() < doubt[at]]] = True


def _between(space: Tensor, rows: Tensor, columns: Tensor, metric: Metric) -> Tensor:
    """Return the distances of pairs of rows (squared, if Euclidean)."""
    found = space.new_empty(rows.shape[0])
    size = max(1, 2**19 // space.shape[1])
    for start in range(0, rows.shape[0], size):
        part = slice(start, start + size)
        difference = space.index_select(0, rows[part]).sub_(space.index_select(0, columns[part]))
        found[part] = difference.square_().sum(dim=1) if metric == "euclidean" else difference.abs_().amax(dim=1)
    return found


@final
class _Screen:
    """The float32 distances of a strip of rows from all rows, in both spaces, and bounds on their rounding.

    Rows are scaled by a power of two to norms of at most 1. Distances lie in tiles of some thousand columns, which
    are still in cache when the next step reads them.
    """

    def __init__(self, spaces: _Spaces, norm: Tensor, scale: float, strip: int | None) -> None:
        n, device, cpu = spaces.x.shape[0], spaces.x.device, spaces.x.device.type == "cpu"
        widest = max(spaces.x.shape[1], spaces.y.shape[1])
        if strip is None:
            # Thin strips stay in cache; wide spaces want thicker ones, for the product.
            strip = min(256, max(64 if widest <= 128 else 256, 2**20 // n)) if cpu else 2**28 // n
        self.strip, self.rows = max(1, min(strip, n)), n
        tiles = max(1, round(n / _TILE)) if cpu else 1
        self.width = _BLOCK * -(-n // (_BLOCK * tiles))
        self.sides = [_Side(space, spaces.metric, scale, tiles, self.width) for space in (spaces.x, spaces.y)]
        self.between = [
            torch.empty(tiles, self.strip, self.width, dtype=torch.float32, device=device) for _ in self.sides
        ]
        self.scratch = torch.empty(self.strip, self.width, dtype=torch.float32, device=device)
        self.minima = torch.empty(self.strip, tiles, self.width // _BLOCK, dtype=torch.float32, device=device)
        self.outwards = torch.tensor([[-torch.inf], [torch.inf]], dtype=torch.float32, device=device)
        self.flags = [torch.empty(self.strip, self.width, dtype=torch.bool) for _ in range(2)] if cpu else []
        self.metric, self.norm = spaces.metric, norm * scale
        self.relative = max(side.relative for side in self.sides)
        self.absolute = 16 * (widest + 2) * _UNDERFLOW
        # What counts as a tie in float64 is at the edge; the share of a distance in it is far below `relative`.
        self.tie = 4 * spaces.share * spaces.size * (scale if spaces.metric == "chebyshev" else scale**2)

    def multiplies_exactly(self) -> bool:
        """Return whether products keep the digits of float32, which settings of torch can take from them."""
        if self.metric == "chebyshev":
            return True
        left = self.scratch.new_full((self.strip, self.sides[0].piece), 1 + _NARROW)
        right = self.scratch.new_zeros(self.sides[0].piece, self.width)
        right[0] = 1 - _NARROW
        return bool((torch.mm(left, right, out=self.scratch) == 1 - _NARROW**2).all())

    def compare(self, own: slice, k: int) -> Tensor:
        """Form the distances of the rows ``own`` and return the k smallest in the joint space, ascending."""
        rows = own.stop - own.start
        scratch, minima = self.scratch[:rows], self.minima[:rows]
        queries = [side.queries(own) for side in self.sides]
        for tile in range(minima.shape[1]):
            for side, left, between in zip(self.sides, queries, self.between, strict=True):
                side.write(left, tile, between[tile, :rows], scratch)
                between[tile, :rows].diagonal(own.start - tile * self.width).fill_(torch.inf)
            torch.maximum(*(between[tile, :rows] for between in self.between), out=scratch)
            minima[:, tile] = scratch.view(rows, -1, _BLOCK).amin(dim=2)
        # The k smallest lie in the k blocks of columns with the smallest minima.
        minima = minima.flatten(1)
        chosen = minima.topk(min(k, minima.shape[1]), dim=1, largest=False, sorted=False).indices
        blocks = self.width // _BLOCK
        here = torch.arange(rows, device=chosen.device)[:, None]
        candidates = torch.maximum(
            *(b.view(-1, self.strip, blocks, _BLOCK)[chosen // blocks, here, chosen % blocks] for b in self.between)
        )
        nearest: Tensor = candidates.flatten(1).topk(k, dim=1, largest=False, sorted=True).values
        return nearest

    def edges(self, own: slice, kth: Tensor) -> Tensor:
        """Return, for each row, the distance up to which a pair is surely inside, and above which surely outside.

        Let A be the norm of a row and d the true distance of another one, whose norm then is at most A + d. Rounding
        moves a squared Euclidean distance by at most ``relative (2 A + d)² + absolute``, a Chebyshev distance by at
        most ``relative (2 A + d) + absolute``. No pair farther than ``reach`` can come out below ``kth``, so the
        true k-th distance differs from ``kth`` by no more than the error at ``reach``, and so does any other distance
        that could be on the wrong side of it.
        """
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

    def count(self, own: slice, ends: Tensor, counts: Tensor) -> tuple[_Hits, _Hits]:
        """Count the pairs surely inside into ``counts``, x first, and return those at the edge in x and in y."""
        rows, tiles = own.stop - own.start, self.minima.shape[1]
        counts.zero_()
        hits: tuple[list[_Hits], list[_Hits]] = ([], [])
        for tile in range(tiles):
            between = [b[tile, :rows] for b in self.between]
            for mine, other, count, found in zip(between, between[::-1], counts, hits, strict=True):
                place = self._split(mine, ends, count)
                found.append(_Hits(place + (tile * self.rows + own.start) * self.width, other.flatten()[place]))
        in_x, in_y = (f[0] if tiles == 1 else _Hits(*(torch.cat(part) for part in zip(*f, strict=True))) for f in hits)
        return in_x, in_y

    def _split(self, between: Tensor, ends: Tensor, count: Tensor) -> Tensor:
        """Add the entries up to the lower end to ``count`` and return where those between the ends are."""
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
        # Few are there, so eight at a time are passed over.
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
    """One space in float32: the operands of its distances, laid out in tiles."""

    def __init__(self, space: Tensor, metric: Metric, scale: float, tiles: int, width: int) -> None:
        self.metric = metric
        depth = space.shape[1] + (2 if metric == "euclidean" else 0)
        pieces = -(-depth // _SUMMED)
        self.piece = -(-depth // pieces)
        # In units of the square of the sum of two norms: rounding of the coordinates (2) and of their squares (1), of
        # each product and sum inside a piece, and of the sum over pieces. The rest is for terms of second order.
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
            _chebyshev(queries, across, out, scratch)
            return
        for start in range(0, across.shape[0], self.piece):
            piece = slice(start, start + self.piece)
            torch.mm(queries[:, piece], across[piece], out=scratch if start else out)
            if start:
                out.add_(scratch)
