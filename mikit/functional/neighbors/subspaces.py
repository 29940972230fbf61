"""Counts of neighbours in several spaces at once, for information given a third variable or between rows and classes.

The rule is that of :mod:`mikit.functional.neighbors.ksg`: around every sample lies a ball that reaches to, but does not
include, its k-th nearest neighbour; where k samples or more coincide with it, the ball is that point alone. Every count
includes the sample at the centre. All pairs are compared, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mikit.functional.neighbors.counts import _BLOCK, Metric, _at_most, _chebyshev, _gram_sides, _smallest

__all__ = ["counts_in_subspaces"]

_EPSILON = float(np.finfo(np.float64).eps)

_Integers = npt.NDArray[np.int64]


def counts_in_subspaces(
    spaces: Sequence[Tensor],
    k: Tensor,
    subspaces: Sequence[Sequence[int]],
    metric: Metric,
    offset: float,
    *,
    codes: Tensor | None = None,
    strip: int | None = None,
) -> tuple[_Integers, list[_Integers]]:
    """Count the samples strictly nearer than the k-th neighbour in the space of all columns and in parts of it.

    The distance of two samples is the largest of their distances in the spaces. Distances that differ by no more than
    rounding in float64 count as equal.

    Args:
        spaces: Float64 tensors ``(n, d)``, centred, on one device.
        k: For each row, which neighbour the ball reaches to, ``(n,)``, at least 1.
        subspaces: For each count, the indices of the spaces whose largest distance counts.
        metric: Distance inside each space.
        offset: How far the columns were off centre before, in the units they are in now.
        codes: Classes ``(n,)``. Where given, the k-th neighbour is sought, and the first count made, among the rows of
            the same class; each class then has at least ``k + 1`` rows.
        strip: Rows handled at a time; None chooses. The counts do not depend on it.

    Returns:
        The count in all spaces together, and that in each subspace, arrays ``(n,)``.

    Cost:
        O(n² Σd) time in float64 and O(n · strip) memory, on the device of the spaces.

    Pitfalls:
        None beyond those of the measures it serves.

    Example:
        >>> x = torch.tensor([[-4.0], [-1.0], [0.0], [5.0]], dtype=torch.float64)
        >>> together, (alone,) = counts_in_subspaces([x, x], torch.full((4,), 2), [[0]], "euclidean", 0.0)
        >>> together.tolist(), alone.tolist()
        ([2, 2, 2, 2], [2, 2, 2, 2])
    """
    n, device, widths = spaces[0].shape[0], spaces[0].device, [space.shape[1] for space in spaces]
    if metric == "chebyshev":
        size = torch.stack([space.abs().amax(dim=1) for space in spaces]).amax(dim=0) + offset
        share = 8 * _EPSILON
        sides = [(space, space.T.contiguous()) for space in spaces]
    else:
        size = torch.stack([space.square().sum(dim=1) for space in spaces]).amax(dim=0)
        share = (8 + max(widths) ** 0.5) * _EPSILON
        sides = [_gram_sides(space) for space in spaces]
    if strip is None:
        strip = max(2**18 // n, min(sum(widths), 256) // 2) if device.type == "cpu" else 2**26 // n
    strip, most = max(1, min(strip, n)), int(k.max())
    padded = -(-n // _BLOCK) * _BLOCK
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
                _chebyshev(left[own], right, distances, scratch)
            else:
                torch.mm(left[own], right, out=distances)
            distances[here, own] = torch.inf
        _largest(between, joint)
        if codes is not None:
            joint.masked_fill_(codes[own, None] != codes[None, :], torch.inf)
        kth = _smallest(joint_buffer[:rows], most).gather(1, k[own, None] - 1)[:, 0]
        within = share * (size[own] + kth)
        radius = torch.maximum(kth - within, within)
        together[own] = _at_most(joint, radius, mask[:rows])
        for count, chosen in zip(counts, subspaces, strict=True):
            if len(chosen) == 1:
                count[own] = _at_most(between[chosen[0]], radius, mask[:rows])
            else:
                _largest([between[space] for space in chosen], scratch)
                count[own] = _at_most(scratch, radius, mask[:rows])
    return (together + 1).cpu().numpy(), list((counts + 1).cpu().numpy())


def _largest(distances: Sequence[Tensor], out: Tensor) -> None:
    out.copy_(distances[0])
    for other in distances[1:]:
        torch.maximum(out, other, out=out)
