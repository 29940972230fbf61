"""Input validation: arrays become checked tensors with one sample per row.

Nothing is repaired. An array that cannot be used is refused, with its name, the number of bad entries, the position of
the first one and what to do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mikit.core.errors import InputError

__all__ = ["as_group_codes", "as_labels", "as_rows", "refuse_non_finite"]


def as_rows(value: Any, name: str = "x") -> Tensor:
    """Return ``value`` as a float tensor with the samples along the first axis.

    Integers and booleans become float64, half precision becomes float32, float32 and float64 stay as they are. A vector
    ``(n,)`` becomes ``(n, 1)``. The array is never modified.
    ``value`` is a NumPy array (memory maps, read-only and non-contiguous arrays included), tensor, or nested sequence.

    Raises:
        InputError: If ``value`` is empty, is not numeric, is complex, or contains NaN or infinity.
    """
    tensor = _as_tensor(value, name)
    if tensor.is_complex():
        raise InputError(
            f"{name} is complex ({tensor.dtype}). Pass real numbers: for example real and imaginary parts as columns."
        )
    if tensor.ndim == 0:
        raise InputError(f"{name} is a single number. Pass one row per sample, shape (n, d).")
    if tensor.ndim == 1:
        tensor = tensor[:, None]
    if tensor.numel() == 0:
        raise InputError(f"{name} is empty: its shape is {tuple(tensor.shape)}. Pass at least one row and one column.")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    elif tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)
    refuse_non_finite(tensor, name)
    return tensor


def refuse_non_finite(tensor: Tensor, name: str) -> None:
    """Raise :class:`~mikit.InputError` if ``tensor`` contains NaN or infinity, and name the first row that does."""
    # The usual case needs one number: a sum is finite only if every term is. Overflow is ruled out below.
    if bool(torch.isfinite(tensor.detach().sum())):
        return
    bad = ~torch.isfinite(tensor.detach())
    count = int(bad.sum())
    if count == 0:
        return
    per_row = bad.reshape(bad.shape[0], -1)
    first = int(per_row.any(dim=1).nonzero()[0, 0])
    nans = int(torch.isnan(tensor.detach()).sum())
    kinds = " and ".join(
        text for text in (f"{nans} NaN" if nans else "", f"{count - nans} infinite" if count > nans else "") if text
    )
    rows = int(per_row.any(dim=1).sum())
    raise InputError(
        f"{name} contains {kinds} value{'s' if count > 1 else ''} in {rows} of {bad.shape[0]} samples; the first is "
        f"row {first}. mikit never fills in or drops values: correct or remove those samples in every array."
    )


def as_labels(value: Any, name: str = "labels") -> Tensor:
    """Return class labels as indices ``0 .. C-1``, in sorted order of the distinct values.

    ``value`` has one label per sample: integers, booleans, strings, or floats that are whole numbers.

    Raises:
        InputError: If the labels are empty, have more than one column, or are not categories.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError as cause:
        raise InputError(f"{name} cannot be read as one label per sample: {cause}.") from cause
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{name} has shape {array.shape}. Pass one label per sample, shape (n,), not one-hot rows.")
    if array.size == 0:
        raise InputError(f"{name} is empty. Pass one label per sample.")
    if array.dtype.kind == "f":
        refuse_non_finite(torch.from_numpy(np.array(array, dtype=np.float64))[:, None], name)
        if not bool(np.all(array == np.round(array))):
            first = int(np.flatnonzero(array != np.round(array))[0])
            raise InputError(
                f"{name} is not categorical: row {first} is {array[first].item()!r}. Pass whole numbers or strings; "
                "pass a continuous target as y instead of as labels."
            )
    if array.dtype.kind not in "biufUS":
        raise InputError(
            f"{name} has dtype {array.dtype}, which is not a type of labels. Pass whole numbers or strings."
        )
    return torch.from_numpy(np.unique(array, return_inverse=True)[1].astype(np.int64))


def as_group_codes(value: Any, n: int) -> Tensor:
    """Return group codes ``(n,)`` for rows that belong together (patches of one image, copies of one item)."""
    codes = as_labels(value, "groups")
    if codes.shape[0] != n:
        raise InputError(f"groups has {codes.shape[0]} entries but there are {n} samples. Pass one group per sample.")
    return codes


def _as_tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise InputError(f"{name} is a sparse tensor ({value.layout}). Pass value.to_dense().")
        return value
    if isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any()):
        masked = int(np.ma.getmaskarray(value).sum())
        raise InputError(
            f"{name} has {masked} masked entries. Correct or remove those samples; mikit never fills in values."
        )
    try:
        array = np.asarray(value)
    except ValueError as cause:
        raise InputError(f"{name} is not a rectangular array: {cause}.") from cause
    if array.dtype.kind not in "biufc":
        raise InputError(
            f"{name} has dtype {array.dtype}, which is not numeric. Pass an array of numbers, one row per sample."
        )
    if (array.dtype.kind == "f" and array.dtype.itemsize > 8) or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
        array = array.astype(np.float64)
    # torch shares memory with a NumPy array only if it is writable, native and has no negative stride.
    if not array.flags.writeable or not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array)
