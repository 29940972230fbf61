"""The files of an activation store: a manifest and a folder of data, changed under a lock."""

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
from mikit.activations.store.manifest import Layer, Manifest, Phase, Shard, StoredFile
from mikit.activations.store.validation import agreed_id_kind, agreed_layers, shown_id
from mikit.core.errors import InputError
from mikit.core.files import TEMPORARY_PREFIX, file_sha256, locked, sync_folder, write_atomically

__all__ = ["MANIFEST_NAME", "StoreFolder", "absolute_folder"]

MANIFEST_NAME = "manifest.json"
"""The file that identifies a folder as a store."""

_LOCK, _DATA, _TENSOR = ".lock", "data", "activations"
_NUMBERED = re.compile(r"\d{6,}-")
_NOT_SAFE = re.compile(r"[^0-9A-Za-z_.]+")


@final
class StoreFolder:
    """A folder whose manifest is replaced last, so that the files it lists are always complete.

    File names start with a number that only increases. A file that the manifest does not list belongs to an interrupted
    change; the next writer removes it. ``manifest`` is the state that was read last; it is the newest only inside
    :meth:`writing`.

    Args:
        root: The folder; created if it has no manifest.
        metadata: Fields of the manifest if it is created.
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
        """Hold the lock for one change of the newest state.

        Raises:
            InputError: If another process keeps the lock, or the disk cannot be written.
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
                f"The store {str(self.root)!r} could not be written: {cause}. Its earlier content is not lost; "
                "remove the cause and try again."
            ) from cause

    def commit(self, **changes: Any) -> None:
        """Replace the manifest by one with these fields changed; this makes a change take effect."""
        sync_folder(self.data)
        changed = replace(self.manifest, writes=self.manifest.writes + 1, **changes)
        self._save(changed)
        self.manifest = changed

    def append(self, phase: int, ids: np.ndarray, arrays: Mapping[str, np.ndarray], layers: tuple[Layer, ...]) -> None:
        """Append validated samples of all layers to a phase; only inside :meth:`writing`.

        Raises:
            InputError: If the layers differ from those of the store, or an id is already in the phase.
        """
        layers = agreed_layers(self.manifest.layers, layers)
        id_kind = agreed_id_kind(self.manifest.id_kind, ids)
        shards = next((stored.shards for stored in self.manifest.phases if stored.phase == phase), ())
        for shard in shards:
            known = ids[np.isin(ids, self.small_array(shard.ids))]
            if known.size:
                raise InputError(
                    f"{known.size} of {ids.size} sample ids are already in phase {phase}; the first is "
                    f"{shown_id(known[0])}. Append each sample once, or discard the phase to record it again."
                )
        added = Shard(
            ids.shape[0],
            self.write_small("ids", ids),
            tuple(self._write_rows(index, layer, arrays[layer.name]) for index, layer in enumerate(layers)),
        )
        others = tuple(stored for stored in self.manifest.phases if stored.phase != phase)
        phases = sorted((*others, Phase(phase, (*shards, added))), key=lambda stored: stored.phase)
        self.commit(layers=layers, id_kind=id_kind, phases=tuple(phases))

    def discard(self, phase: int) -> None:
        """Delete the activations and notes of a phase; only inside :meth:`writing`."""
        manifest = self.manifest
        phases = tuple(stored for stored in manifest.phases if stored.phase != phase)
        others = phases or manifest.labels or manifest.training_ids
        self.commit(
            phases=phases,
            notes={number: notes for number, notes in manifest.notes.items() if number != phase},
            layers=manifest.layers if phases else (),
            id_kind=manifest.id_kind if others else None,
        )
        self.remove_strays()

    def labels_of(self, ids: np.ndarray) -> np.ndarray | None:
        """Return the label of each id; None if the store has no labels.

        Raises:
            InputError: If an id has no label.
        """
        if self.manifest.labels is None:
            return None
        known, labels = (self.small_array(file) for file in self.manifest.labels)
        missing = ids[~np.isin(ids, known)]
        if missing.size:
            raise InputError(
                f"{missing.size} of {ids.size} sample ids have no label in {str(self.root)!r}; the first is "
                f"{shown_id(missing[0])}. Set the labels of all samples."
            )
        order = np.argsort(known, kind="stable")
        return labels[order[np.searchsorted(known, ids, sorter=order)]]

    def remove_strays(self) -> None:
        """Remove the files that the manifest on disk does not list; only under the lock."""
        self.manifest = self._load()
        named = {file.name for file in self.manifest.files()}
        for folder in (self.root, self.data):
            for entry in os.listdir(folder):
                unnamed = folder == self.data and _NUMBERED.match(entry) and entry not in named
                if entry.startswith(TEMPORARY_PREFIX) or unnamed:
                    (folder / entry).unlink(missing_ok=True)

    def write_small(self, what: str, array: np.ndarray) -> StoredFile:
        """Write an array of ids or labels for the next commit."""
        return self._write_npy(f"{self._number()}-{what}.npy", array)

    def _write_rows(self, index: int, layer: Layer, array: np.ndarray) -> StoredFile:
        """Write the activations of one layer for the next commit."""
        # The numbers make the name unique; the name of the layer is only for human readers.
        slug = _NOT_SAFE.sub("-", layer.name)[:40].strip(".-") or "layer"
        stem = f"{self._number()}-{index:03d}-{slug}"
        if self.manifest.format == "npy":
            return self._write_npy(f"{stem}.npy", array)
        content = save({_TENSOR: array})
        return self._write_bytes(f"{stem}.safetensors", content)

    def small_array(self, file: StoredFile) -> np.ndarray:
        """Return ids or labels, cached after the first read."""
        if file.name not in self._small_arrays:
            path = self.path_of(file)
            array = np.array(map_npy(path, f"The file {str(path)!r}"))
            array.flags.writeable = False
            self._small_arrays[file.name] = array
        return self._small_arrays[file.name]

    def rows(self, shard: Shard, index: int) -> np.ndarray:
        """Map the activations of one layer read-only.

        Raises:
            InputError: If the file is missing, truncated, or does not match the manifest.
        """
        layer = self.manifest.layers[index]
        path = self.path_of(shard.layers[index])
        source = f"The file {str(path)!r}"
        if self.manifest.format == "npy":
            array = map_npy(path, source)
        else:
            entries = tensor_entries(path, source)
            if _TENSOR not in entries:
                raise InputError(f"{source} does not contain the tensor {_TENSOR!r}. Restore it from a copy.")
            array = map_tensor(path, entries[_TENSOR], source)
        if array.shape != (shard.rows, *layer.shape) or array.dtype != np.dtype(layer.dtype):
            raise InputError(
                f"{source} contains {array.dtype} of shape {array.shape}, but the manifest {layer.dtype} of shape "
                f"{(shard.rows, *layer.shape)}. Restore it from a copy."
            )
        return array

    def path_of(self, file: StoredFile) -> Path:
        """Return the path of a file, after a check of its length.

        Raises:
            InputError: If it is missing, truncated, too long, or outside the folder.
        """
        path = self.data / file.name
        if not path.resolve().is_relative_to(self.data.resolve()):
            raise InputError(f"The file {str(path)!r} is a link out of the store. Restore it from a copy.")
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
            # A killed creation leaves only these files.
            foreign = sorted(
                entry
                for entry in os.listdir(self.root)
                if entry not in (_LOCK, _DATA, MANIFEST_NAME) and not entry.startswith(TEMPORARY_PREFIX)
            )
            if foreign:
                raise InputError(
                    f"The folder {str(self.root)!r} is not a store and not empty: it contains {foreign[0]!r}. Choose a "
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
    """Return the absolute path, which does not depend on later changes of the working directory.

    Raises:
        InputError: If it is empty or not a valid path.
    """
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{text!r} is not a path. Pass the folder of the store.")
    return Path(text).absolute()
