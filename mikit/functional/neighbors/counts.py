"""Neighbor counts from all pairs of samples, by float32 distances with a bound on their rounding error.

All pairs are compared in float32 first. A pair whose distance is farther from the edge of the ball than rounding could
move it is decided; the few others are computed again in float64. Where many distances lie at the edge (labels, atoms,
repeated rows), all pairs are compared in float64 instead. The counts are those of float64, up to its own rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikit.functional.neighbors.distances import (
    BLOCK,
    Integers,
    Metric,
    chebyshev_distances,
    count_within,
    gram_sides,
    smallest_entries,
)
from mikit.functional.neighbors.screen import EdgePairs, Screen, Spaces

__all__ = ["counts_of_all_pairs"]

_SMALL = 2**19  # rows times (columns + 200) up to which float64 finishes before float32 would have started
_GIVE_UP = 0.25  # fraction of undecided rows above which float64 alone is faster
_PENDING = 2**16  # pairs at the edge that are collected before they are computed again


def counts_of_all_pairs(
    x: Tensor, y: Tensor, k: int, metric: Metric, offset: float, strip: int | None
) -> tuple[Integers, Integers, Integers]:
    """Count the samples strictly nearer than the k-th neighbor, in the joint space, in x and in y.

    ``x`` and ``y`` are float64 and centered; ``offset`` is how far their columns were from the origin before. The
    distance in the joint space is the larger of the two. A sample counts itself, and where k samples or more coincide
    with it, those are counted. Distances that differ by no more than float64 rounding count as equal.

    If ``torch.set_float32_matmul_precision`` reduces the precision of products on a GPU, float32 cannot be used. This
    is detected, and all pairs are compared in float64, which is slow on most cards.
    """
    spaces = Spaces.of(x, y, metric, offset)
    counts = torch.empty(3, x.shape[0], dtype=torch.int64, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        left = _decide_in_float32(spaces, k, strip, counts)
        if left.shape[0]:
            _count_in_float64(spaces, left, k, strip, counts)
    found = (counts + 1).cpu().numpy()
    return found[0], found[1], found[2]


# ------------------------------------------------------------------------------------------------------- float64


def _count_in_float64(spaces: Spaces, rows: Tensor, k: int, strip: int | None, counts: Tensor) -> None:
    """Enter the counts of ``rows``, found from the float64 distances of all pairs."""
    x, y, metric, device = spaces.x, spaces.y, spaces.metric, spaces.x.device
    n = x.shape[0]
    if strip is None:
        # A block of rows that stays in cache is fastest, unless it is so thin that the matrix product starves.
        strip = max(2**18 // n, min(x.shape[1] + y.shape[1], 256) // 2) if device.type == "cpu" else 2**27 // n
    strip = max(1, min(strip, rows.shape[0]))
    if metric == "euclidean":
        sides_x, sides_y = gram_sides(x), gram_sides(y)
    else:
        across_x, across_y = x.T.contiguous(), y.T.contiguous()
    padded = -(-n // BLOCK) * BLOCK
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
            chebyshev_distances(x[own], across_x, between_x, nearest[:, :n])
            chebyshev_distances(y[own], across_y, between_y, nearest[:, :n])
        for between in (between_x, between_y):
            between[here, own] = torch.inf
        joint = torch.maximum(between_x, between_y, out=nearest[:, :n])
        smallest = smallest_entries(nearest, k)
        radius = spaces.radius(own, smallest[:, -1])
        # All samples inside the ball are among the k smallest, except where k or more coincide with the center. More
        # than k may be inside then, so the whole row is counted.
        together = (smallest <= radius[:, None]).sum(dim=1)
        atoms = (together == k).nonzero()[:, 0]
        if atoms.shape[0]:
            together[atoms] = (joint[atoms] <= radius[atoms, None]).sum(dim=1)
        counts[0, own] = together
        counts[1, own] = count_within(between_x, radius, mask[: len(own)])
        counts[2, own] = count_within(between_y, radius, mask[: len(own)])


# ------------------------------------------------------------------------------------------------------- float32


class _Progress(NamedTuple):
    """Results of the float32 comparison so far.

    ``counts`` are the counts of samples surely inside, ``ends`` the limits between which float32 cannot decide, and
    ``undecided`` the rows that are left to float64.
    """

    counts: Tensor
    ends: Tensor
    undecided: Tensor


def _decide_in_float32(spaces: Spaces, k: int, strip: int | None, counts: Tensor) -> Tensor:
    """Enter the counts of the rows that float32, and a few distances in float64, can decide; return the other rows."""
    n, device = spaces.x.shape[0], spaces.x.device
    screen = _screen(spaces, strip)
    if screen is None:
        return torch.arange(n, device=device)
    crowd = max(64, n // 32)  # pairs at the edge above which the whole row is cheaper in float64
    ends = torch.empty(2, n, dtype=torch.float32, device=device)
    progress = _Progress(counts, ends, torch.zeros(n, dtype=torch.bool, device=device))
    undecided = progress.undecided
    pending: list[tuple[EdgePairs, EdgePairs]] = []
    begun = waiting = 0
    hopeless = False
    for start in range(0, n, screen.strip):
        own = slice(start, min(start + screen.strip, n))
        nearest = screen.compare(own, k)
        ends[:, own] = screen.edges(own, nearest[:, -1])
        counts[0, own] = (nearest <= ends[0, own, None]).sum(dim=1)
        at_edge = screen.count(own, ends[:, own], counts[1:, own])
        met = sum(found.place.shape[0] for found in at_edge)
        if met > crowd:
            rows = [screen.pairs(found.place)[0] for found in at_edge]
            undecided[own] = torch.bincount(torch.cat(rows) - start, minlength=own.stop - start) > crowd
            kept = [~undecided[row] for row in rows]
            in_x, in_y = (EdgePairs(f.place[keep], f.other[keep]) for f, keep in zip(at_edge, kept, strict=True))
            at_edge = (in_x, in_y)
            hopeless = bool(undecided[: own.stop].sum() > _GIVE_UP * own.stop)
        pending.append(at_edge)
        waiting += met
        # Settling has a fixed cost per call, so the pairs of several blocks are collected first.
        if waiting > _PENDING or hopeless or own.stop == n:
            in_x, in_y = (
                EdgePairs(*(torch.cat(part) for part in zip(*f, strict=True))) for f in zip(*pending, strict=True)
            )
            _settle(spaces, screen, slice(begun, own.stop), k, in_x, in_y, progress)
            pending, waiting, begun = [], 0, own.stop
        if hopeless:
            undecided[own.stop :] = True
            break
    return undecided.nonzero()[:, 0]


def _screen(spaces: Spaces, strip: int | None) -> Screen | None:
    """Return the float32 distances; None where float64 alone is faster or float32 is not usable."""
    n = spaces.x.shape[0]
    norm = spaces.size.sqrt()
    if spaces.metric == "chebyshev":
        norm = torch.maximum(spaces.x.abs().amax(dim=1), spaces.y.abs().amax(dim=1))
    farthest = float(norm.max())
    small = n * (spaces.x.shape[1] + spaces.y.shape[1] + 200) <= _SMALL
    if small or not 1e-100 < farthest < 1e100:  # beyond, scaling by a power of two would leave float64
        return None
    screen = Screen(spaces, norm, 0.5 ** math.frexp(farthest)[1], strip)
    return screen if screen.multiplies_exactly() else None


def _settle(
    spaces: Spaces, screen: Screen, own: slice, k: int, in_x: EdgePairs, in_y: EdgePairs, progress: _Progress
) -> None:
    """Add the pairs at the edge that are inside to the counts of the rows ``own``, from their float64 distances."""
    counts, (low, high), undecided = progress
    (row_x, column_x), (row_y, column_y) = screen.pairs(in_x.place), screen.pairs(in_y.place)
    from_x = _between(spaces.x, row_x, column_x, spaces.metric)
    from_y = _between(spaces.y, row_y, column_y, spaces.metric)
    # A joint distance is the larger of two, so it is at the edge in two cases: the one in x is at the edge and the one
    # in y is at most there as well, or the one in y is at the edge and the one in x is surely inside. The second case
    # takes only those below `low`, so that no pair is entered twice.
    joint = from_x.clone()
    both = ((in_x.other > low[row_x]) & (in_x.other <= high[row_x])).nonzero()[:, 0]
    joint[both] = torch.maximum(from_x[both], _between(spaces.y, row_x[both], column_x[both], spaces.metric))
    by_x, by_y = in_x.other <= high[row_x], in_y.other <= low[row_y]
    row, joint = torch.cat([row_x[by_x], row_y[by_y]]), torch.cat([joint[by_x], from_y[by_y]])
    order = joint.argsort()
    order = order[row[order].argsort(stable=True)]
    row, joint = row[order], joint[order]
    decided = own.start + (~undecided[own]).nonzero()[:, 0]
    # counts[0] samples are nearer than the edge for certain. The exact k-th distance is therefore the one at place
    # k - counts[0] among the pairs at the edge, which contain it by the construction of `ends`.
    kth = joint[torch.searchsorted(row, decided) + (k - 1 - counts[0, decided])]
    within = spaces.share * (spaces.size[decided] + kth)
    rows = own.stop - own.start
    radius, doubt = joint.new_zeros(rows), joint.new_zeros(rows)
    radius[decided - own.start] = spaces.radius(decided, kth)
    doubt[decided - own.start] = 0.75 * within
    # The full float64 comparison uses matrix products, and these distances do not. A distance so close to the edge that
    # the rounding of the product decides there must be decided by the product here as well, so the row is left to it.
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
