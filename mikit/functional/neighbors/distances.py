"""Float64 distances of all pairs of samples, and how many of them lie within a radius."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "EPSILON",
    "METRICS",
    "Integers",
    "Metric",
    "chebyshev_distances",
    "count_within",
    "gram_sides",
    "smallest_entries",
]

Metric = Literal["euclidean", "chebyshev"]
METRICS = ("euclidean", "chebyshev")
Integers = npt.NDArray[np.int64]

BLOCK = 64  # columns that one minimum represents while the nearest are selected
EPSILON = float(np.finfo(np.float64).eps)


def gram_sides(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product contains the squared Euclidean distances of all pairs of rows."""
    # |a - b|² = -2 a.b + |a|² + |b|²: with the squared lengths appended as columns, one matrix product adds all three
    # terms, and no second pass over the n x n result is needed.
    squares, ones = rows.square().sum(dim=1, keepdim=True), rows.new_ones(rows.shape[0], 1)
    left = torch.cat([-2 * rows, squares, ones], dim=1)
    return left, torch.cat([rows, ones, squares], dim=1).T.contiguous()


def chebyshev_distances(queries: Tensor, across: Tensor, out: Tensor, scratch: Tensor) -> None:
    """Write to ``out`` the distances of the rows of ``queries`` from the columns of ``across``."""
    torch.sub(queries[:, :1], across[0], out=out).abs_()
    for column in range(1, across.shape[0]):
        torch.sub(queries[:, column, None], across[column], out=scratch).abs_()
        torch.maximum(out, scratch, out=out)


def smallest_entries(distances: Tensor, k: int) -> Tensor:
    """Return the k smallest entries of each row, ascending; rows have a multiple of ``BLOCK`` entries."""
    # The k smallest lie in the k blocks of columns with the smallest minima: each of those blocks contains at least one
    # entry that is no larger than any entry outside of them. Selecting among n / 64 minima and then among 64 k entries
    # is faster than selecting among n.
    blocks = distances.view(distances.shape[0], -1, BLOCK)
    count = min(k, blocks.shape[1])
    chosen = blocks.amin(dim=2).topk(count, dim=1, largest=False, sorted=False).indices
    candidates = blocks.gather(1, chosen[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    smallest: Tensor = candidates.topk(k, dim=1, largest=False, sorted=True).values
    return smallest


def count_within(distances: Tensor, radius: Tensor, mask: Tensor) -> Tensor:
    """Return how many entries of each row are at most the ``radius`` of that row."""
    if distances.device.type != "cpu":
        return (distances <= radius[:, None]).sum(dim=1)
    # NumPy counts a row of booleans several times faster than torch sums it.
    flags = mask.numpy()
    np.less_equal(distances.numpy(), radius.numpy()[:, None], out=flags)
    return torch.tensor([np.count_nonzero(row) for row in flags])
