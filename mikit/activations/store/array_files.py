"""Arrays on disk: ``.npy`` and ``.safetensors`` files, mapped into memory after a check of their headers.

A header must match the size of the file, so a truncated or manipulated file is refused before memory is allocated.
Nothing here can run code from a file.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np

from mikit.core.errors import InputError

__all__ = [
    "NPY_MAGIC",
    "TensorEntry",
    "map_npy",
    "map_tensor",
    "pieces",
    "read_npy_header",
    "tensor_entries",
    "write_npy",
]

NPY_MAGIC = b"\x93NUMPY"

_LARGEST_HEADER = 100 << 20  # The limit of the safetensors format.
_AGAIN = "Write it again, or restore it from a copy."
_TENSOR_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}


def write_npy(file: BinaryIO, array: np.ndarray) -> None:
    """Write ``array`` in the ``.npy`` format; NumPy refuses arrays of objects."""
    np.lib.format.write_array(file, array, allow_pickle=False)


def read_npy_header(file: BinaryIO, source: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an ``.npy`` header, up to the first byte of the data.

    Returns:
        The shape, whether the data are in Fortran order, and the dtype.

    Raises:
        InputError: If the header is damaged, or the data are objects or records.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise InputError(f"{source} has version {version} of the .npy format, which contains records, not numbers.")
    except InputError:
        raise
    except Exception as cause:  # The header is a Python literal; a damaged one can raise almost any exception.
        raise InputError(f"{source} is not a readable .npy file: its header is damaged ({cause}). {_AGAIN}") from cause
    if dtype.hasobject:
        raise InputError(
            f"{source} contains Python objects. Reading them could run code from the file, so mikit never does. Save "
            "a plain array of numbers."
        )
    if dtype.kind not in "biufcUS":
        raise InputError(f"{source} contains {dtype}, not numbers. Save a plain array.")
    if any(length < 0 for length in shape):
        raise InputError(f"{source} is damaged: its header gives the shape {shape}. {_AGAIN}")
    return shape, fortran, dtype


def map_npy(path: Path, source: str) -> np.ndarray:
    """Map an ``.npy`` file read-only.

    Raises:
        InputError: If the file is damaged, or its length does not match its header.
    """
    with open(path, "rb") as file:
        shape, fortran, dtype = read_npy_header(file, source)
        offset = file.tell()
        actual = os.fstat(file.fileno()).st_size
    expected = offset + math.prod(shape) * dtype.itemsize
    _require_size(source, expected, actual, shape, str(dtype))
    return _mapped(path, dtype, shape, offset, "F" if fortran else "C")


@final
@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a ``.safetensors`` file: its dtype in the notation of the format, its shape and its offset."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


def tensor_entries(path: Path, source: str) -> dict[str, TensorEntry]:
    """Read and check the header of a ``.safetensors`` file.

    Raises:
        InputError: If it is damaged, or a tensor extends beyond the file.
    """
    actual = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length < 2 or length > _LARGEST_HEADER:
            raise InputError(f"{source} is not a readable .safetensors file: its header length is {length}. {_AGAIN}")
        _require_size(source, 8 + length, actual, None, "header", exact=False)
        text = file.read(length)
    try:
        header = json.loads(text)
        described = {key: value for key, value in header.items() if key != "__metadata__"}
        entries: dict[str, TensorEntry] = {}
        for key, value in described.items():
            first, last = (int(position) for position in value["data_offsets"])
            shape = tuple(int(length) for length in value["shape"])
            entries[key] = TensorEntry(str(value["dtype"]), shape, 8 + length + first)
            if first < 0 or last < first or any(axis < 0 for axis in shape):
                raise ValueError(f"tensor {key!r} has impossible offsets or shape")
            width = _item_size(entries[key].dtype)
            if width is not None and last - first != math.prod(shape) * width:
                raise ValueError(f"tensor {key!r} of shape {shape} cannot be {last - first} bytes long")
            _require_size(source, 8 + length + last, actual, shape, entries[key].dtype, exact=False)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as cause:
        raise InputError(f"{source} is not a readable .safetensors file: {cause!r}. {_AGAIN}") from cause
    return entries


def map_tensor(path: Path, entry: TensorEntry, source: str) -> np.ndarray:
    """Map one tensor of a ``.safetensors`` file read-only; bfloat16, which NumPy lacks, is copied to float32.

    Raises:
        InputError: If NumPy has no such dtype.
    """
    if entry.dtype not in _TENSOR_DTYPES:
        raise InputError(f"{source} contains {entry.dtype}, which is not supported. Save it as float16 or wider.")
    array = _mapped(path, np.dtype(_TENSOR_DTYPES[entry.dtype]), entry.shape, entry.offset, "C")
    if entry.dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        array = np.left_shift(array.astype(np.uint32), 16).view(np.float32)
        array.flags.writeable = False
    return array


def pieces(parts: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Split the concatenation of arrays into pieces of equal length, without concatenating all of it."""
    gathered: list[np.ndarray] = []
    missing = rows
    for part in parts:
        start = 0
        while start < part.shape[0]:
            piece = part[start : start + missing]
            gathered.append(piece)
            start += piece.shape[0]
            missing -= piece.shape[0]
            if missing == 0:
                yield gathered[0] if len(gathered) == 1 else np.concatenate(gathered)
                gathered, missing = [], rows
    if gathered:
        yield gathered[0] if len(gathered) == 1 else np.concatenate(gathered)


def _item_size(dtype: str) -> int | None:
    return np.dtype(_TENSOR_DTYPES[dtype]).itemsize if dtype in _TENSOR_DTYPES else None


def _require_size(
    source: str, expected: int, actual: int, shape: tuple[int, ...] | None, what: str, *, exact: bool = True
) -> None:
    if actual == expected or (actual > expected and not exact):
        return
    declared = f"an array of shape {shape} and dtype {what}" if shape is not None else f"a {what}"
    state = "is truncated" if actual < expected else "has bytes after its array"
    raise InputError(
        f"{source} {state}: its header declares {declared}, {expected} bytes, but it has {actual} bytes. {_AGAIN}"
    )


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, order: Any) -> np.ndarray:
    if math.prod(shape) == 0:
        array = np.empty(shape, dtype)  # An empty range cannot be mapped.
        array.flags.writeable = False
        return array
    mapped = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)
    if mapped.flags.aligned:
        return mapped
    copied = np.array(mapped)
    copied.flags.writeable = False
    return copied
