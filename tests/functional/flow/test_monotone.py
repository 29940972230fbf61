"""Monotone alignment against every way there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import mikit
from mikit.functional.flow.monotone import monotone_alignment


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (3, 5), (5, 4)])
def test_no_way_that_never_goes_back_is_cheaper(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs = rng.standard_normal(shape)
        found = monotone_alignment(costs)
        ways = [w for w in product(range(shape[1]), repeat=shape[0]) if list(w) == sorted(w)]
        assert found == min(ways, key=lambda way: sum(costs[i, j] for i, j in enumerate(way)))


def test_equals_fall_to_the_earliest_and_forbidden_cells_are_left():
    assert monotone_alignment(np.zeros((3, 4))) == (0, 0, 0)
    costs = np.zeros((2, 3))
    costs[0, 0] = costs[1, 1] = np.inf
    assert monotone_alignment(costs) == (1, 2)
    with pytest.raises(mikit.InputError, match="forbid every monotone path"):
        monotone_alignment(np.array([[np.inf, 0.0], [0.0, np.inf]]))
    with pytest.raises(mikit.InputError, match="without NaN"):
        monotone_alignment(np.array([[np.nan]]))
