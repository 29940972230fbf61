"""The cheapest way through a table of costs that never goes back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mikit.core.errors import InputError

__all__ = ["monotone_alignment"]


def monotone_alignment(costs: NDArray[Any]) -> tuple[int, ...]:
    """Choose one column for every row so that columns never go back and the costs add up to the least.

    Formula: ``min Σ_i c[i, κ(i)]`` over ``κ(1) <= κ(2) <= ... <= κ(N)``, by dynamic programming.

    Args:
        costs: ``(rows, columns)``; an infinite cost forbids a cell.

    Returns:
        The column of every row, counted from 0; the earliest of equals.

    Unit: none.

    Kind: a matching.

    Raises:
        InputError: If the costs are no table, hold NaN, or forbid every way.

    Cost:
        O(rows columns).

    Pitfalls:
        Several rows can go with one column, and columns can be left out.

    Source:
        Ours: alignment by dynamic programming.

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
        sums = best + row
        # Of the columns up to j, the one at which the way to this row ends best.
        ends = [0] * depth
        for j in range(1, depth):
            ends[j] = j if sums[j] < sums[ends[j - 1]] else ends[j - 1]
        best = sums[ends]
        choices.append(ends)
    if not np.isfinite(best[-1]):
        raise InputError("Infinite costs forbid every way through the table that never goes back.")
    found = [choices[-1][-1]]
    for ends in reversed(choices[:-1]):
        found.append(ends[found[-1]])
    return tuple(reversed(found))
