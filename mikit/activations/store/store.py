"""The activation store: a folder that is appended to atomically and mapped into memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, final

import numpy as np

from mikit.activations.store.array_files import pieces
from mikit.activations.store.folder import MANIFEST_NAME, StoreFolder, absolute_folder
from mikit.activations.store.manifest import FORMATS, Manifest, Phase
from mikit.activations.store.validation import (
    agreed_id_kind,
    checked_batch,
    checked_ids,
    checked_labels,
    checked_notes,
    described_layers,
    phase_number,
)
from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.files import file_sha256

__all__ = ["ActivationStore"]


@final
class ActivationStore:
    """The activations of one network in one run, by layer and phase, on disk.

    A store is a folder with ``manifest.json``, which describes the content, and one file per layer and append in
    ``data/``. Reading maps the files into memory. Appending is atomic: after ``kill -9``, a full disk or a power cut
    the store contains the samples from before the append or all of the new ones. Several processes can append to one
    store; they take turns. Nothing is pickled.

    Args:
        path: The folder. It is created, or opened if it is already a store.
        network: Name of the network in figures and tables.
        seed: Seed of the run.
        model_hash: Hash of the weights (:func:`~mikit.activations.hash_of_model`).
        data_hash: Hash of the samples (:func:`~mikit.activations.hash_of_array`).
        format: ``"npy"`` (the default) or ``"safetensors"`` for the activations.

    Raises:
        InputError: If the folder contains something else, an argument disagrees with the store, the store was written
            by a newer mikit or is damaged, or it cannot be written.

    Cost: Opening reads the manifest, about 200 bytes per layer and append. Appending writes and syncs one file per
        layer and rewrites the manifest: append large batches (thousands of samples) rather than many small ones.

    Pitfalls:
        One store is for one run: use a separate store for each seed. An object sees the state at its opening and its
        own appends; open the store again to see those of other processes. On a network drive the lock is only as
        reliable as that of the drive.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ActivationStore(folder + "/student", network="student", seed=0)
        ...     store.append({"layer1": np.ones((3, 2)), "fc": np.zeros((3, 5))}, ids=[7, 8, 9], phase=0)
        ...     store.note(0, accuracy=0.31)
        ...     store.layers, store.phases, store.ids(0), store.shape("fc", 0), store.notes
        (('layer1', 'fc'), (0,), array([7, 8, 9]), (3, 5), {0: {'accuracy': 0.31}})
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        network: str | None = None,
        seed: int | None = None,
        model_hash: str | None = None,
        data_hash: str | None = None,
        format: Literal["npy", "safetensors"] | None = None,
    ) -> None:
        if format is not None and format not in FORMATS:
            raise InputError(f'format is {format!r}; it must be "npy" or "safetensors".')
        given: dict[str, Any] = {
            "network": network,
            "seed": None if seed is None else int(seed),
            "model_hash": model_hash,
            "data_hash": data_hash,
            "format": format,
        }
        self._folder = StoreFolder(
            absolute_folder(path), {key: value for key, value in given.items() if value is not None}
        )
        for key, value in given.items():
            if value is not None and value != (stored := getattr(self._manifest, key)):
                raise InputError(
                    f"The store {str(self.path)!r} was created with {key}={stored!r}, not {value!r}. Open it without "
                    f"{key}, or use a separate folder for this run."
                )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open an existing store for reading and appending.

        Args:
            path: The folder of the store.

        Returns:
            The store.

        Raises:
            InputError: If there is no store at ``path``, or it cannot be read.
        """
        root = absolute_folder(path)
        if not (root / MANIFEST_NAME).is_file():
            what = "is a folder without a manifest" if root.is_dir() else "does not exist"
            raise InputError(f"There is no activation store at {str(root)!r}: it {what}. Check the path.")
        return cls(root)

    @property
    def _manifest(self) -> Manifest:
        return self._folder.manifest

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.root

    @property
    def network(self) -> str | None:
        """Name of the network."""
        return self._manifest.network

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return self._manifest.seed

    @property
    def model_hash(self) -> str | None:
        """Hash of the network's weights."""
        return self._manifest.model_hash

    @property
    def data_hash(self) -> str | None:
        """Hash of the samples."""
        return self._manifest.data_hash

    @property
    def format(self) -> str:
        """``"npy"`` or ``"safetensors"``."""
        return self._manifest.format

    @property
    def versions(self) -> dict[str, str]:
        """The versions of mikit and its libraries that created the store."""
        return dict(self._manifest.versions)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in the order of the first append."""
        return tuple(layer.name for layer in self._manifest.layers)

    @property
    def phases(self) -> tuple[int, ...]:
        """The phases with activations, in ascending order."""
        return tuple(phase.phase for phase in self._manifest.phases)

    @property
    def notes(self) -> dict[int, dict[str, float]]:
        """The noted scalars by phase."""
        return {phase: dict(notes) for phase, notes in sorted(self._manifest.notes.items())}

    def readout(self, layer: str) -> str:
        """Return the name of the readout of ``layer``."""
        return self._manifest.layers[self._index(layer)].readout

    def shape(self, layer: str, phase: int) -> tuple[int, ...]:
        """Return the shape of ``read(layer, phase)``, from the manifest alone."""
        rows = sum(shard.rows for shard in self._phase(phase).shards)
        return (rows, *self._manifest.layers[self._index(layer)].shape)

    def content(self, layer: str, phase: int) -> str:
        """Return a hash of the activations of ``layer`` at ``phase`` and their ids, from the manifest alone.

        Raises:
            InputError: If there is no such layer or phase, or a file is missing or has another length than when it was
                written.
        """
        index = self._index(layer)
        digest = hashlib.sha256()
        for shard in self._phase(phase).shards:
            for file in (shard.ids, shard.layers[index]):
                self._folder.path_of(file)
                digest.update(file.sha256.encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return (
            f"ActivationStore({str(self.path)!r}, network={self.network!r}, seed={self.seed!r}, "
            f"{len(self.layers)} layers, phases={list(self.phases)})"
        )

    def ids(self, phase: int) -> np.ndarray:
        """Return the sample ids at ``phase``, ``(n,)``, int64 or strings."""
        return np.concatenate([self._folder.small_array(shard.ids) for shard in self._phase(phase).shards])

    def read(self, layer: str, phase: int) -> np.ndarray:
        """Return the activations of ``layer`` at ``phase``, ``(n, ...)``, read-only, in the order of ``ids(phase)``.

        Args:
            layer: Name of the layer.
            phase: The phase.

        Returns:
            A memory map if the phase was appended at once, else a copy in memory.

        Raises:
            InputError: If there is no such layer or phase, or a file is missing, truncated or changed.

        Pitfalls:
            Use :meth:`chunks` for a layer that is larger than memory and was appended in several parts.
        """
        parts = self._shards(layer, phase)
        if len(self._phase(phase).shards) == 1:
            return next(parts)
        whole = np.empty(self.shape(layer, phase), self._manifest.layers[self._index(layer)].dtype)
        start = 0
        for part in parts:
            whole[start : start + part.shape[0]] = part
            start += part.shape[0]
        whole.flags.writeable = False
        return whole

    def chunks(self, layer: str, phase: int, rows: int = 2048) -> Iterator[np.ndarray]:
        """Iterate over the activations in chunks of ``rows`` samples; only one chunk is in memory at a time.

        Raises:
            InputError: As for :meth:`read`, or if ``rows`` is not positive.
        """
        require.at_least(rows, "rows")
        return pieces(self._shards(layer, phase), rows)

    def labels_for(self, ids: Any) -> np.ndarray | None:
        """Return the label of each id, ``(n,)``; None if the store has no labels.

        Raises:
            InputError: If an id has no label.
        """
        return self._folder.labels_of(np.asarray(ids))

    @property
    def training_ids(self) -> np.ndarray | None:
        """Ids of the samples that the network was trained on; None if they were not set."""
        file = self._manifest.training_ids
        return None if file is None else self._folder.small_array(file).copy()

    def verify(self) -> None:
        """Read every file and compare its hash with the manifest.

        Raises:
            InputError: If a file is missing or was changed; it names the first.

        Cost: Reads the whole store once.
        """
        for file in self._manifest.files():
            path = self._folder.path_of(file)
            if file_sha256(path) != file.sha256:
                raise InputError(
                    f"The file {str(path)!r} was changed: its SHA-256 differs from the manifest's. Restore it from a "
                    "copy, or discard its phase and record it again."
                )

    def append(
        self, batch: Mapping[str, Any], *, ids: Any, phase: int, readouts: Mapping[str, str] | str = "as given"
    ) -> None:
        """Append samples of all layers to a phase, atomically.

        Args:
            batch: For each layer an array ``(n, ...)``: NumPy, tensor or nested list. float16, float32 and float64 are
                kept; bfloat16 becomes float32, integers become float64, and a vector becomes one feature.
            ids: One sample id per sample, ``(n,)``: integers (stored as int64) or strings, unique within the phase.
            phase: The phase of training, from 0.
            readouts: Name of the readout that was applied to each layer.

        Raises:
            InputError: If an array contains NaN or infinity, is not numeric, or does not have one sample per id; if
                layers, readout, dtype or sample shape differ from earlier appends; if an id is repeated or already in
                the phase; if another process keeps the store locked; or if the disk cannot be written.

        Cost: Writes the samples once, reads them once for the hash, and syncs one file per layer.
        """
        number = phase_number(phase)
        arrays, rows = checked_batch(batch, ids)
        described = described_layers(arrays, readouts)
        with self._folder.writing():
            self._folder.append(number, rows, arrays, described)

    def set_labels(self, ids: Any, labels: Any) -> None:
        """Set the labels of samples; they replace earlier labels.

        Args:
            ids: Sample ids, ``(n,)``, unique.
            labels: One label per id: integers, booleans or strings.

        Raises:
            InputError: If there is not one label per id, an id is repeated, or the labels are not categories.
        """
        keys = checked_ids(ids, "ids")
        values = checked_labels(labels, keys.shape[0])
        with self._folder.writing():
            id_kind = agreed_id_kind(self._manifest.id_kind, keys)
            files = (self._folder.write_small("ids", keys), self._folder.write_small("labels", values))
            self._folder.commit(labels=files, id_kind=id_kind)

    def set_training_ids(self, ids: Any) -> None:
        """Set the ids of the samples that the network was trained on; they replace earlier ones.

        Args:
            ids: Sample ids, ``(n,)``, unique. An information flow refuses to fit probes on these samples.

        Raises:
            InputError: If an id is repeated, or the ids have another type than those of the activations.
        """
        keys = checked_ids(ids, "training ids")
        with self._folder.writing():
            id_kind = agreed_id_kind(self._manifest.id_kind, keys)
            self._folder.commit(training_ids=self._folder.write_small("training-ids", keys), id_kind=id_kind)

    def note(self, phase: int, **scalars: float) -> None:
        """Store finite scalars for a phase, such as ``note(3, accuracy=0.9)``; a repeated name gets the new value.

        Raises:
            InputError: If a value is not a finite number.
        """
        number = phase_number(phase)
        noted = checked_notes(number, scalars)
        with self._folder.writing():
            notes = {**self._manifest.notes, number: {**self._manifest.notes.get(number, {}), **noted}}
            self._folder.commit(notes=notes)

    def discard(self, phase: int) -> None:
        """Delete the activations and notes of a phase, so that it can be recorded again.

        Raises:
            InputError: If the store has no such phase.

        Pitfalls:
            This cannot be undone. After the last phase is discarded, the store can be used for other layers.
        """
        with self._folder.writing():
            self._phase(phase)
            self._folder.discard(phase)

    def _shards(self, layer: str, phase: int) -> Iterator[np.ndarray]:
        index = self._index(layer)
        return (self._folder.rows(shard, index) for shard in self._phase(phase).shards)

    def _index(self, layer: str) -> int:
        if layer not in self.layers:
            raise InputError(
                f"The store {str(self.path)!r} has no layer {layer!r}; its layers are {list(self.layers)}."
            )
        return self.layers.index(layer)

    def _phase(self, phase: int) -> Phase:
        for stored in self._manifest.phases:
            if stored.phase == phase:
                return stored
        raise InputError(f"The store {str(self.path)!r} has no phase {phase!r}; its phases are {list(self.phases)}.")
