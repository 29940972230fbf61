"""Neighbor counts in several spaces at once, for conditional information and for information about class labels.

The rule is that of :mod:`mikit.functional.neighbors.ksg`, and every count includes the sample itself. All pairs are
compared in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mikit.functional.neighbors.distances import (
    BLOCK,
    EPSILON,
    Integers,
    Metric,
    chebyshev_distances,
    count_within,
    gram_sides,
    smallest_entries,
)

__all__ = ["counts_in_subspaces"]


def counts_in_subspaces(
    spaces: Sequence[Tensor],
    k: Tensor,
    subspaces: Sequence[Sequence[int]],
    metric: Metric,
    offset: float,
    *,
    codes: Tensor | None = None,
    strip: int | None = None,
) -> tuple[Integers, list[Integers]]:
    """Count the samples strictly nearer than the k-th neighbor, in all spaces together and in each subspace.

    The distance of two samples is the largest of their distances in the float64, centered ``spaces``. ``k`` has one
    entry per sample. ``subspaces`` lists the indices of the spaces that each further count uses. ``offset`` is how far
    the columns were from the origin before centering. With class ``codes`` the k-th neighbor is searched for, and the
    first count made, within the sample's class.
    """
    n, device = spaces[0].shape[0], spaces[0].device
    size, share = _rounding(spaces, metric, offset)
    sides = [gram_sides(space) if metric == "euclidean" else (space, space.T.contiguous()) for space in spaces]
    if strip is None:
        width = sum(space.shape[1] for space in spaces)
        strip = max(2**18 // n, min(width, 256) // 2) if device.type == "cpu" else 2**26 // n
    strip, most = max(1, min(strip, n)), int(k.max())
    padded = -(-n // BLOCK) * BLOCK
    buffers = [torch.empty(strip, n, dtype=torch.float64, device=device) for _ in range(len(spaces) + 1)]
    joint_buffer = torch.full((strip, padded), torch.inf, dtype=torch.float64, device=device)
    mask = torch.empty(strip, n, dtype=torch.bool, device=device)
    together = torch.empty(n, dtype=torch.int64, device=device)
    counts = torch.empty(len(subspaces), n, dtype=torch.int64, device=device)
    for start in range(0, n, strip):
        own = torch.arange(start, min(start + strip, n), device=device)
        rows = own.shape[0]
        here, joint = torch.arange(rows, device=device), joint_buffer[:rows, :n]
        *between, scratch = (buffer[:rows] for buffer in buffers)
        for (left, right), distances in zip(sides, between, strict=True):
            if metric == "chebyshev":
                chebyshev_distances(left[own], right, distances, scratch)
            else:
                torch.mm(left[own], right, out=distances)
            distances[here, own] = torch.inf
        _largest(between, joint)
        if codes is not None:
            joint.masked_fill_(codes[own, None] != codes[None, :], torch.inf)
        kth = smallest_entries(joint_buffer[:rows], most).gather(1, k[own, None] - 1)[:, 0]
        # "Strictly nearer" means nearer by more than rounding: equal distances may come out unequal in float64. Where k
        # samples coincide with this one, kth is rounding itself, and the radius must still include those copies.
        within = share * (size[own] + kth)
        radius = torch.maximum(kth - within, within)
        together[own] = count_within(joint, radius, mask[:rows])
        for count, chosen in zip(counts, subspaces, strict=True):
            if len(chosen) == 1:
                count[own] = count_within(between[chosen[0]], radius, mask[:rows])
            else:
                _largest([between[space] for space in chosen], scratch)
                count[own] = count_within(scratch, radius, mask[:rows])
    return (together + 1).cpu().numpy(), list((counts + 1).cpu().numpy())


def _rounding(spaces: Sequence[Tensor], metric: Metric, offset: float) -> tuple[Tensor, float]:
    """Return the size of each sample, and the fraction of it and of a distance that is rounding."""
    if metric == "chebyshev":
        return torch.stack([space.abs().amax(dim=1) for space in spaces]).amax(dim=0) + offset, 8 * EPSILON
    size = torch.stack([space.square().sum(dim=1) for space in spaces]).amax(dim=0)
    return size, (8 + max(space.shape[1] for space in spaces) ** 0.5) * EPSILON


def _largest(distances: Sequence[Tensor], out: Tensor) -> None:
    out.copy_(distances[0])
    for other in distances[1:]:
        torch.maximum(out, other, out=out)
