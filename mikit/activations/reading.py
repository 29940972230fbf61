"""Reading activations from files of several formats, without trusting the files."""

from __future__ import annotations

import difflib
import math
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from mikit.activations.store.array_files import NPY_MAGIC, map_npy, map_tensor, read_npy_header, tensor_entries
from mikit.activations.store.store import ActivationStore
from mikit.core.errors import InputError

__all__ = ["StoredArray", "read_array"]

# An archive is unpacked into memory, so its ratio is checked first: activations compress by a factor of a few, zeros
# by 1000.
_LARGEST_ARCHIVE = 8 << 30
_SUSPICIOUS_RATIO = 200
_HARMLESS_SIZE = 16 << 20

_SUPPORTED = ".npy, .npz, .safetensors, .pt and .pth files, and folders of an activation store"


@final
@dataclass(frozen=True)
class StoredArray:
    """An array from a file, with its source; an input of :func:`mikit.measure`.

    Attributes:
        values: The array, ``(n, ...)``, read-only; mapped into memory if the format allows it.
        ids: Sample ids, ``(n,)``, if the array comes from a store; else None.
        source: The path, and the key after a ``#`` if there is one.

    Pitfalls:
        A mapped array reads from its file on access: do not overwrite the file meanwhile.

    Example:
        >>> StoredArray(np.zeros((2, 3)), None, "a.npy").values.shape
        (2, 3)
    """

    values: np.ndarray
    ids: np.ndarray | None
    source: str


def read_array(path: str | os.PathLike[str], *, key: str | None = None) -> StoredArray:
    """Read one array from a file or an activation store.

    The format is recognized by the content, not by the name. No format is read in a way that could run code: pickles
    are refused under any name. Sizes are compared with the file before memory is allocated.

    Args:
        path: A ``.npy`` file (mapped), ``.npz`` archive, ``.safetensors`` file (mapped), ``.pt`` or ``.pth`` file with
            a tensor or a dict of tensors (mapped; read by torch with ``weights_only=True``), or the folder of a store
            (mapped).
        key: Name of the array if there are several. In a store ``"layer"`` for its last phase or ``"layer@phase"``.

    Returns:
        The array, with sample ids if it comes from a store. bfloat16 becomes float32.

    Raises:
        InputError: If the file is missing, unreadable, truncated, damaged or of another format, if a key is missing, or
            if an archive would unpack to a suspiciously large size.

    Cost: Only headers are read of mapped formats. A ``.npz`` member is unpacked into memory, up to 8 GiB.

    Pitfalls:
        Only a store contains sample ids; the samples of two plain files are paired by their order, without any check.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(folder + "/student.npy", np.ones((4, 2)))
        ...     read_array(folder + "/student.npy").values.shape
        (4, 2)
    """
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{text!r} is not a path. Pass the name of a file or of a store's folder.")
    place = Path(text)
    source = f"The file {text!r}"
    try:
        if place.is_dir():
            return _from_store(place, key)
        with open(place, "rb") as file:
            start = file.read(16)
        if start.startswith(NPY_MAGIC):
            _refuse_key(key, source)
            return StoredArray(map_npy(place, source), None, text)
        if start.startswith(b"PK\x03\x04"):
            return _from_zip(place, key, source)
        if start[8:9] == b"{":
            entries = tensor_entries(place, source)
            name = _chosen(entries, key, source)
            return StoredArray(map_tensor(place, entries[name], source), None, f"{text}#{name}")
    except FileNotFoundError as cause:
        raise InputError(f"There is no file or folder {text!r}. Check the path.") from cause
    except OSError as cause:
        raise InputError(f"{source} cannot be read: {cause}.") from cause
    raise InputError(_why_not(start, place, source))


def _why_not(start: bytes, path: Path, source: str) -> str:
    if not start:
        return f"{source} is empty: 0 bytes. Write it again, or restore it from a copy."
    if start[0] == 0x80 and len(start) > 1 and start[1] in range(2, 6):
        return (
            f"{source} is a pickle, as written by pickle.dump and by torch.save before PyTorch 1.6. Reading one can "
            "run any code, so mikit never does. If you trust it, load it yourself and save the array with numpy.save."
        )
    if start.startswith(b"\x89HDF"):
        return f"{source} is an HDF5 file. Save the array with numpy.save, or append it to an ActivationStore."
    return (
        f"{source} is not in a supported format: it begins with {start[:8]!r} and is {path.stat().st_size} bytes long. "
        f"Supported are {_SUPPORTED}."
    )


def _from_store(path: Path, key: str | None) -> StoredArray:
    store = ActivationStore.open(path)
    if not store.phases:
        raise InputError(f"The store {str(path)!r} contains no activations.")
    layer, phase = key, store.phases[-1]
    if key is not None and key not in store.layers and "@" in key:
        layer, _, number = key.rpartition("@")
        if not number.isdecimal():
            raise InputError(f'The key {key!r} ends in {number!r}, which is not a phase. Write it as "layer@3".')
        phase = int(number)
    name = _chosen(store.layers, layer, f"The store {str(path)!r}")
    return StoredArray(store.read(name, phase), store.ids(phase), f"{path}#{name}@{phase}")


def _from_zip(path: Path, key: str | None, source: str) -> StoredArray:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _refuse_bomb(members, source)
            if any(member.filename.rpartition("/")[2] == "data.pkl" for member in members):
                compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            elif members and all(member.filename.endswith(".npy") for member in members):
                return _from_npz(archive, {member.filename[:-4]: member for member in members}, key, path, source)
            else:
                raise InputError(f"{source} is a zip archive, but not one of NumPy or PyTorch.")
    except (InputError, OSError):
        raise
    except Exception as cause:  # A damaged archive can raise almost any exception.
        actual = path.stat().st_size
        raise InputError(
            f"{source} is a damaged or truncated archive ({cause}); it is {actual} bytes long. Write it again, or "
            "restore it from a copy."
        ) from cause
    if path.suffix.lower() not in (".pt", ".pth") or compressed:
        raise InputError(
            f"{source} contains a pickle, as written by torch.save, "
            + ("but compressed" if compressed else f"with the ending {path.suffix!r}")
            + ". Only files of torch.save with the ending .pt or .pth are read; do not rename or compress them."
        )
    return _from_torch(path, key, source)


def _refuse_bomb(members: list[zipfile.ZipInfo], source: str) -> None:
    for member in members:
        ratio = member.file_size / max(1, member.compress_size)
        if member.file_size > _HARMLESS_SIZE and ratio > _SUSPICIOUS_RATIO:
            raise InputError(
                f"{source} would unpack {member.filename!r} from {member.compress_size} to {member.file_size} bytes, "
                f"{ratio:.0f} times as much, which is not plausible for activations. If they are almost constant, save "
                "them with numpy.save."
            )
    total = sum(member.file_size for member in members)
    if total > _LARGEST_ARCHIVE:
        raise InputError(
            f"{source} would unpack to {total} bytes; the limit for an archive is {_LARGEST_ARCHIVE} bytes. Save its "
            "arrays with numpy.save, whose files are mapped into memory."
        )


def _from_npz(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], key: str | None, path: Path, source: str
) -> StoredArray:
    name = _chosen(members, key, source)
    member = members[name]
    with archive.open(member) as file:
        stream: Any = file
        shape, fortran, dtype = read_npy_header(stream, f"{source}, array {name!r},")
        size = math.prod(shape) * dtype.itemsize
        expected = file.tell() + size
        if expected != member.file_size:
            raise InputError(
                f"{source} is damaged: the header of its array {name!r} declares shape {shape} and dtype {dtype}, "
                f"{expected} bytes, but it has {member.file_size} bytes. Write it again."
            )
        content = file.read(size)
        if len(content) != size:
            raise InputError(
                f"{source} is truncated: its array {name!r} should have {size} bytes after the header, but has "
                f"{len(content)}. Write it again."
            )
        file.read(1)  # Reading to the end verifies the checksum.
    flat: np.ndarray = np.frombuffer(content, dtype=dtype)
    return StoredArray(flat.reshape(shape, order="F" if fortran else "C"), None, f"{path}#{name}")


def _from_torch(path: Path, key: str | None, source: str) -> StoredArray:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as cause:
        raise InputError(
            f"{source} contains more than tensors, and unpickling it could run code. Save a tensor, or a dict of "
            "tensors, with torch.save."
        ) from cause
    except Exception as cause:  # A damaged file can raise almost any exception.
        first_line = str(cause).partition("\n")[0]
        raise InputError(
            f"{source} cannot be read by torch ({type(cause).__name__}: {first_line}); it is {path.stat().st_size} "
            "bytes long. Write it again, or restore it from a copy."
        ) from cause
    name = ""
    if not isinstance(content, Tensor):
        tensors = (
            {str(entry): value for entry, value in content.items() if isinstance(value, Tensor)}
            if isinstance(content, Mapping)
            else {}
        )
        if not tensors:
            raise InputError(
                f"{source} contains a {type(content).__name__} without tensors. Save a tensor, or a dict of tensors."
            )
        name = _chosen(tensors, key, source)
        content = tensors[name]
    else:
        _refuse_key(key, source)
    tensor = content.detach()
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{source} contains a tensor that is not dense. Save a dense one.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(
            f"{source} contains a tensor of shape {tuple(tensor.shape)} in {tensor.untyped_storage().nbytes()} bytes, "
            "which repeats the same values. Save tensor.contiguous()."
        )
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    try:
        values = tensor.numpy()
    except TypeError as cause:
        raise InputError(
            f"{source} contains {tensor.dtype}, which is not supported. Save it as float16 or wider."
        ) from cause
    values.flags.writeable = False
    return StoredArray(values, None, f"{path}#{name}" if name else str(path))


def _chosen(names: Iterable[str], key: str | None, source: str) -> str:
    known = list(names)
    shown = ", ".join(repr(name) for name in known[:20]) + (", ..." if len(known) > 20 else "")
    if key is None:
        if len(known) == 1:
            return known[0]
        raise InputError(f"{source} contains {len(known)} arrays: {shown}. Select one with key=.")
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"{source} contains no array {key!r}; it contains {shown}.{hint}")
    return key


def _refuse_key(key: str | None, source: str) -> None:
    if key is not None:
        raise InputError(f"{source} contains a single array without a name, not {key!r}. Leave out key=.")
