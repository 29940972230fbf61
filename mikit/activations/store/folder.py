"""The files of an activation store: a manifest, a folder of data, and one change at a time."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
from safetensors.numpy import save

from mikit.activations.store.array_files import map_npy, map_tensor, tensor_entries, write_npy
from mikit.activations.store.manifest import Layer, Manifest, Shard, StoredFile
from mikit.core.errors import InputError
from mikit.core.files import TEMPORARY_PREFIX, file_sha256, locked, sync_folder, write_atomically

__all__ = ["MANIFEST_NAME", "StoreFolder", "absolute_folder"]

MANIFEST_NAME = "manifest.json"
"""The file that makes a folder a store."""

_LOCK, _DATA, _TENSOR = ".lock", "data", "activations"
_NUMBERED = re.compile(r"\d{6,}-")
_NOT_SAFE = re.compile(r"[^0-9A-Za-z_.]+")


@final
class StoreFolder:
    """A folder whose manifest is replaced last, so that the files it names are always whole.

    Files are named by a number that counts up, never used twice, and by what they hold; a file that the manifest does
    not name is the rest of an interrupted change, and the next writer removes it.

    Args:
        root: The folder; created if there is no manifest in it.
        metadata: Fields of the manifest, if it is created.

    Raises:
        InputError: If the folder holds something else, or cannot be read or created.

    Cost: Reads the manifest.

    Pitfalls:
        ``manifest`` is the state last read; only inside :meth:`writing` is it sure to be the newest.
    """

    def __init__(self, root: Path, metadata: Mapping[str, Any]) -> None:
        self.root = root
        self.data = root / _DATA
        self._small_arrays: dict[str, np.ndarray] = {}
        self._tidied = False
        if not self._has_manifest():
            self._create(metadata)
        self.manifest = self._load()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock for one change, on top of the newest state.

        Raises:
            InputError: If another process keeps the lock, or the disk refuses.
        """
        try:
            with locked(self.root / _LOCK, self.root):
                self.manifest = self._load()
                if not self._tidied:
                    self.remove_strays()
                    self._tidied = True
                try:
                    yield
                except BaseException:
                    with contextlib.suppress(OSError, InputError):
                        self.remove_strays()
                    raise
        except OSError as cause:
            raise InputError(
                f"The store {str(self.root)!r} could not be written: {cause}. Nothing it held before is lost; mend the "
                "cause and try again."
            ) from cause

    def commit(self, **changes: Any) -> None:
        """Replace the manifest by one with these fields changed: the moment at which a change takes place."""
        sync_folder(self.data)
        changed = replace(self.manifest, writes=self.manifest.writes + 1, **changes)
        self._save(changed)
        self.manifest = changed

    def remove_strays(self) -> None:
        """Remove the files that the manifest on disk does not name; only under the lock."""
        self.manifest = self._load()
        named = {file.name for file in self.manifest.files()}
        for folder in (self.root, self.data):
            for entry in os.listdir(folder):
                unnamed = folder == self.data and _NUMBERED.match(entry) and entry not in named
                if entry.startswith(TEMPORARY_PREFIX) or unnamed:
                    (folder / entry).unlink(missing_ok=True)

    def write_small(self, what: str, array: np.ndarray) -> StoredFile:
        """Write an array of ids or labels, for the next commit."""
        return self._write_npy(f"{self._number()}-{what}.npy", array)

    def write_rows(self, index: int, layer: Layer, array: np.ndarray) -> StoredFile:
        """Write the rows of one layer, for the next commit."""
        # The numbers tell files apart, whatever the layer is called; its name is there for the reader.
        slug = _NOT_SAFE.sub("-", layer.name)[:40].strip(".-") or "layer"
        stem = f"{self._number()}-{index:03d}-{slug}"
        if self.manifest.format == "npy":
            return self._write_npy(f"{stem}.npy", array)
        content = save({_TENSOR: array})
        return self._write_bytes(f"{stem}.safetensors", content)

    def small_array(self, file: StoredFile) -> np.ndarray:
        """Return ids or labels, read once and kept."""
        if file.name not in self._small_arrays:
            path = self.path_of(file)
            array = np.array(map_npy(path, f"The file {str(path)!r}"))
            array.flags.writeable = False
            self._small_arrays[file.name] = array
        return self._small_arrays[file.name]

    def rows(self, shard: Shard, index: int) -> np.ndarray:
        """Map the rows of one layer read-only.

        Raises:
            InputError: If the file is missing, truncated, or not what the manifest says.
        """
        layer = self.manifest.layers[index]
        path = self.path_of(shard.layers[index])
        source = f"The file {str(path)!r}"
        if self.manifest.format == "npy":
            array = map_npy(path, source)
        else:
            entries = tensor_entries(path, source)
            if _TENSOR not in entries:
                raise InputError(f"{source} does not hold the tensor {_TENSOR!r}. Restore it from a copy.")
            array = map_tensor(path, entries[_TENSOR], source)
        if array.shape != (shard.rows, *layer.shape) or array.dtype != np.dtype(layer.dtype):
            raise InputError(
                f"{source} holds {array.dtype} of shape {array.shape}, but the manifest says {layer.dtype} of shape "
                f"{(shard.rows, *layer.shape)}. Restore it from a copy."
            )
        return array

    def path_of(self, file: StoredFile) -> Path:
        """Return where a file lies, after a look at its length.

        Raises:
            InputError: If it is missing, truncated or too long, or leads out of the folder.
        """
        path = self.data / file.name
        if not path.resolve().is_relative_to(self.data.resolve()):
            raise InputError(f"The file {str(path)!r} leads out of the store. Restore it from a copy.")
        try:
            with open(path, "rb") as opened:
                actual = os.fstat(opened.fileno()).st_size
        except OSError as cause:
            raise InputError(
                f"The file {str(path)!r} of the store, {file.bytes} bytes long when written, cannot be read: {cause}. "
                "Restore it from a copy."
            ) from cause
        if actual != file.bytes:
            raise InputError(
                f"The file {str(path)!r} of the store is {'truncated' if actual < file.bytes else 'too long'}: "
                f"{file.bytes} bytes were written, but it is {actual} bytes long. Restore it from a copy, or discard "
                "its phase and record it again."
            )
        return path

    def _number(self) -> str:
        return f"{self.manifest.writes + 1:06d}"

    def _write_npy(self, name: str, array: np.ndarray) -> StoredFile:
        write_atomically(self.data / name, lambda file: write_npy(file, array))
        return self._described(name)

    def _write_bytes(self, name: str, content: bytes) -> StoredFile:
        write_atomically(self.data / name, lambda file: file.write(content))
        return self._described(name)

    def _described(self, name: str) -> StoredFile:
        path = self.data / name
        return StoredFile(name, path.stat().st_size, file_sha256(path))

    def _has_manifest(self) -> bool:
        try:
            return (self.root / MANIFEST_NAME).is_file()
        except OSError as cause:
            raise InputError(f"The store {str(self.root)!r} cannot be read: {cause}.") from cause

    def _create(self, metadata: Mapping[str, Any]) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{str(self.root)!r} is a file. A store is a folder; choose another path.")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # A creation that was killed leaves nothing but these behind.
            foreign = sorted(
                entry
                for entry in os.listdir(self.root)
                if entry not in (_LOCK, _DATA, MANIFEST_NAME) and not entry.startswith(TEMPORARY_PREFIX)
            )
            if foreign:
                raise InputError(
                    f"The folder {str(self.root)!r} is not a store and not empty: it holds {foreign[0]!r}. Choose a "
                    "new folder."
                )
            with locked(self.root / _LOCK, self.root):
                self.data.mkdir(exist_ok=True)
                if not (self.root / MANIFEST_NAME).is_file():
                    self._save(Manifest(**{"format": "npy", **metadata}))
                    sync_folder(self.root.parent)
        except OSError as cause:
            raise InputError(f"The store {str(self.root)!r} cannot be created: {cause}.") from cause

    def _save(self, manifest: Manifest) -> None:
        content = manifest.to_json().encode()
        write_atomically(self.root / MANIFEST_NAME, lambda file: file.write(content))
        sync_folder(self.root)

    def _load(self) -> Manifest:
        path = self.root / MANIFEST_NAME
        try:
            text = path.read_bytes()
        except OSError as cause:
            raise InputError(f"The store {str(self.root)!r} cannot be read: {cause}.") from cause
        return Manifest.from_json(text, f"The file {str(path)!r}")


def absolute_folder(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` absolute, so that a later change of the working directory does not matter.

    Raises:
        InputError: If it is empty or cannot be a path.
    """
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{text!r} is not a path. Pass the folder of the store.")
    return Path(text).absolute()
