"""Neighbor counts by k-d trees under the Chebyshev distance, for samples of few columns."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from mikit.functional.neighbors.distances import EPSILON, Integers

__all__ = ["TREE_WIDTH", "Floats", "counts_by_tree", "distinct_rows", "near_counts"]

TREE_WIDTH = 4  # joint columns up to which a k-d tree is faster than comparing all pairs

Floats = npt.NDArray[np.float64]


def counts_by_tree(x: Floats, y: Floats, k: int, offset: float) -> tuple[Integers, Integers, Integers]:
    """Count the samples strictly nearer than the k-th neighbor in the joint space, in x and in y.

    The rule is that of :mod:`mikit.functional.neighbors.ksg`. ``offset`` is how far the columns were from the origin
    before centering, which adds to their rounding.
    """
    points = np.concatenate([x, y], axis=1)
    # Samples that coincide are searched for once, and only k + 1 of them are kept as neighbors: further copies change
    # no k-th distance, but would turn one leaf of the tree into a search through all of them.
    first, codes, copies = distinct_rows(points)
    queries = points[first]
    tree = cKDTree(np.repeat(queries, np.minimum(copies, k + 1), axis=0), balanced_tree=False)
    distances = np.asarray(tree.query(queries, k=k + 1, p=np.inf, workers=torch.get_num_threads())[0])
    # Neighbors at equal distances come out unequal by the rounding of their columns, which the slack removes.
    slack = 8 * EPSILON * (np.abs(queries).max(axis=1) + distances[:, k] + offset)
    radius = np.maximum(distances[:, k] - slack, 0.0)
    joint = np.where(distances[:, k] > 0, (distances <= radius[:, None]).sum(axis=1), copies)
    radius = radius[codes]
    return joint[codes], near_counts(x, radius), near_counts(y, radius)


def near_counts(space: Floats, radius: Floats) -> Integers:
    """Return how many samples lie within ``radius[i]`` of sample i, including itself."""
    if space.shape[1] == 1:
        return _near_on_line(space[:, 0], radius)
    counts = cKDTree(space).query_ball_point(
        space, radius, p=np.inf, return_length=True, workers=torch.get_num_threads()
    )
    return cast("Integers", np.asarray(counts, dtype=np.int64))


def _near_on_line(values: Floats, radius: Floats) -> Integers:
    """Return :func:`near_counts` of one column, by binary search among its sorted values."""
    order = np.argsort(values, kind="stable")
    ordered, reach = values[order], radius[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    distinct, below = ordered[starts], np.append(starts, values.shape[0])
    # Rounding of value ± radius can put a sample at distance radius on the wrong side of an edge. None is there: the
    # k-th neighbor is farther by more than that rounding, or the radius is 0 and nothing is rounded.
    low = np.searchsorted(distinct, ordered - reach, side="left")
    high = np.searchsorted(distinct, ordered + reach, side="right")
    counts = np.empty(values.shape[0], dtype=np.int64)
    counts[order] = below[high] - below[low]
    return counts


def distinct_rows(points: Floats) -> tuple[Integers, Integers, Integers]:
    """Return the first occurrence of every distinct row, the distinct row of each row, and how often each occurs."""
    n = points.shape[0]
    codes = np.zeros(n, dtype=np.int64)
    count = 1
    # Column after column rather than np.unique(axis=0): a single column without ties shows that all rows are distinct,
    # and for continuous data that is the first one.
    for column in points.T:
        if np.unique(column).shape[0] == n:
            return np.arange(n), np.arange(n), np.ones(n, dtype=np.int64)
        values, inverse = np.unique(column, return_inverse=True)
        distinct, codes = np.unique(codes * values.shape[0] + inverse, return_inverse=True)
        count = distinct.shape[0]
    first = np.empty(count, dtype=np.int64)
    first[codes[::-1]] = np.arange(n)[::-1]
    return first, codes, np.bincount(codes, minlength=count)
