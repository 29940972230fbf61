"""The cheapest monotone path through a table of costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mikit.core.errors import InputError

__all__ = ["monotone_alignment"]


def monotone_alignment(costs: NDArray[Any]) -> tuple[int, ...]:
    """Choose one column for every row so that columns never decrease and the sum of costs is smallest.

    Formula: ``min Σ_i c[i, κ(i)]`` over ``κ(1) <= κ(2) <= ... <= κ(N)``, by dynamic programming. An infinite cost
    forbids a cell; of equal paths the earliest columns are returned. Several rows can share a column, and columns can
    be skipped.

    Example:
        >>> monotone_alignment(np.array([[3.0, 0.0, 9.0], [0.0, 1.0, 9.0]]))  # each row's own best would go back
        (1, 1)
    """
    table = np.asarray(costs, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape or np.isnan(table).any():
        raise InputError(f"The costs have shape {table.shape}; pass a table (rows, columns) without NaN.")
    depth = table.shape[1]
    best = np.zeros(depth)
    choices: list[list[int]] = []
    for row in table:
        # best[j] is the cost of the cheapest path to the previous row that ends at column j or before. Keeping this
        # running minimum instead of the minimum for each column makes a row O(columns), and < keeps the earliest of
        # equals.
        sums = best + row
        ends = [0] * depth
        for j in range(1, depth):
            ends[j] = j if sums[j] < sums[ends[j - 1]] else ends[j - 1]
        best = sums[ends]
        choices.append(ends)
    if not np.isfinite(best[-1]):
        raise InputError("Infinite costs forbid every monotone path through the table.")
    found = [choices[-1][-1]]
    for ends in reversed(choices[:-1]):
        found.append(ends[found[-1]])
    return tuple(reversed(found))
