"""The input contract: what is cast, what is refused, and that nothing of the caller's is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from mikit.core.errors import InputError
from mikit.core.inputs import as_group_codes, as_labels, as_rows


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, np.uint16, np.uint64, np.bool_, np.float64])
def test_whole_numbers_become_float64(dtype: type) -> None:
    array = np.array([[1, 0], [1, 1]], dtype=dtype)
    assert as_rows(array).dtype == torch.float64
    assert torch.equal(as_rows(array), torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("value", [torch.ones(3, 2).half(), torch.ones(3, 2).bfloat16(), np.ones((3, 2), np.float16)])
def test_half_precision_becomes_float32(value: object) -> None:
    assert as_rows(value).dtype == torch.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 3, 9])
def test_the_first_bad_row_is_named(bad: float, row: int) -> None:
    array = np.zeros((10, 3))
    array[row:, 1] = bad
    with pytest.raises(
        InputError, match=rf"teacher contains {10 - row} .* in {10 - row} of 10 samples; the first is row {row}\b"
    ):
        as_rows(array, "teacher")


def test_nan_and_infinity_are_counted_apart() -> None:
    with pytest.raises(InputError, match="1 NaN and 2 infinite values in 2 of 3 samples"):
        as_rows([[np.nan, np.inf], [0.0, 0.0], [np.inf, 0.0]])


def test_large_finite_values_whose_sum_overflows_are_accepted() -> None:
    array = np.full((4, 2), 3e38, dtype=np.float32)
    assert as_rows(array).shape == (4, 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.ones((3, 2), complex), "complex"),
        (np.array([["a", "b"]]), "not numeric"),
        (np.zeros((0, 3)), "empty"),
        (np.float64(3.0), "single number"),
        ([[1.0, 2.0], [3.0]], "not a rectangular array"),
        (np.array([{}, {}]), "not numeric"),
    ],
)
def test_what_holds_no_rows_of_numbers_is_refused(value: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        as_rows(value)


def test_layout_does_not_matter_and_the_input_is_untouched(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    readonly = array.copy()
    readonly.flags.writeable = False
    variants = {
        "fortran": np.asfortranarray(array),
        "reversed twice": array[::-1][::-1],
        "read-only": readonly,
        "memory map": np.load(tmp_path / "a.npy", mmap_mode="r"),
        "big-endian": array.astype(">f4"),
    }
    for name, variant in variants.items():
        before = variant.tobytes()
        assert torch.equal(as_rows(variant), torch.from_numpy(array)), name
        assert variant.tobytes() == before, name
    assert torch.equal(as_rows(array[::-1]), torch.from_numpy(array[::-1].copy()))


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_labels_become_indices_in_sorted_order(values: list[int]) -> None:
    codes = as_labels(values)
    distinct = sorted(set(values))
    assert [distinct[code] for code in codes.tolist()] == values


def test_labels_may_be_words_or_whole_floats() -> None:
    assert as_labels(np.array(["dog", "cat", "dog"])).tolist() == [1, 0, 1]
    assert as_labels(torch.tensor([2.0, 0.0, 2.0])).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([0.5, 1.0], "not categorical: row 0"),
        (np.eye(3), "one-hot"),
        ([], "empty"),
        ([1.0, np.nan], "1 NaN"),
        (np.array([1j, 2j]), "not a type of labels"),
    ],
)
def test_what_is_no_label_is_refused(value: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        as_labels(value)


def test_groups_must_match_the_rows() -> None:
    with pytest.raises(InputError, match="3 entries but there are 4 samples"):
        as_group_codes([0, 1, 1], 4)
