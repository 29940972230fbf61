"""Rows joined by id, dealt into folds, and permuted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from mikit.core.errors import InputError
from mikit.core.rows import joined_order, permuted_rows, recoded, split_folds


@given(st.permutations(range(12)))
def test_rows_are_joined_by_id(order: list[int]) -> None:
    ids = np.array([f"sample-{i}" for i in range(12)])
    other = ids[order]
    assert (other[joined_order(ids, other, "x", "y")] == ids).all()


def test_an_id_on_one_side_only_is_an_error() -> None:
    with pytest.raises(InputError, match=r"1 of the 3 sample ids of x are not in y; the first is 3[.]"):
        joined_order([1, 2, 3], [1, 2, 7], "x", "y")
    with pytest.raises(InputError, match=r"2 of the 3 sample ids of x are not in y; the first is 2[.]"):
        joined_order([1, 2, 3], [1], "x", "y")


def test_a_repeated_id_is_an_error() -> None:
    with pytest.raises(InputError, match="The sample id 2 occurs 2 times in y"):
        joined_order([1, 2], [2, 2], "x", "y")


@given(st.integers(3, 50), st.integers(3, 10), st.integers(0, 100))
def test_folds_partition_the_rows(n: int, folds: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    if n < folds:
        with pytest.raises(InputError, match="fewer than"):
            split_folds(n, folds, generator=generator)
        return
    parts = split_folds(n, folds, generator=generator)
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    assert max(len(p) for p in parts) - min(len(p) for p in parts) <= 1


@given(st.lists(st.integers(0, 8), min_size=20, max_size=60))
def test_a_group_stays_in_one_fold(codes: list[int]) -> None:
    groups = recoded(torch.tensor(codes))
    if int(groups.max()) + 1 < 3:
        with pytest.raises(InputError, match="groups, fewer than"):
            split_folds(len(codes), 3, groups=groups, generator=torch.Generator())
        return
    parts = split_folds(len(codes), 3, groups=groups, generator=torch.Generator())
    homes = [set(groups[part].tolist()) for part in parts]
    assert homes[0].isdisjoint(homes[1] | homes[2])
    assert homes[1].isdisjoint(homes[2])
    assert sorted(torch.cat(parts).tolist()) == list(range(len(codes)))


def test_equal_groups_trade_places_whole() -> None:
    groups = torch.arange(6).repeat_interleave(4)
    order = permuted_rows(24, groups=groups, generator=torch.Generator().manual_seed(1))
    assert sorted(order.tolist()) == list(range(24))
    moved = groups[order].reshape(6, 4)
    assert (moved == moved[:, :1]).all()
    assert not torch.equal(moved[:, 0], torch.arange(6))
