"""A folder of activations that can be appended to, mapped into memory, and trusted after a crash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, final

import numpy as np
from torch import Tensor

from mikit.activations.store.folder import MANIFEST_NAME, StoreFolder, absolute_folder
from mikit.activations.store.manifest import FORMATS, Phase, Shard
from mikit.activations.store.validation import (
    agreed_id_kind,
    agreed_layers,
    checked_ids,
    described_layers,
    phase_number,
    rows_to_store,
)
from mikit.core.errors import InputError
from mikit.core.files import file_sha256
from mikit.core.inputs import as_labels

__all__ = ["ActivationStore"]


@final
class ActivationStore:
    """The activations of one network in one run, by layer and phase, on disk.

    A store is a folder with ``manifest.json``, which says what is in it, and one file per layer and append, in
    ``data/``. Reading maps the files into memory. Appending is atomic: after ``kill -9``, a full disk or a power cut
    the store holds the rows from before the append or all of the new ones. Several processes may append to one
    store; they take turns. Nothing is ever pickled.

    Args:
        path: The folder. It is created, or opened if it is a store already.
        network: Name of the network, as figures print it.
        seed: Seed of the run.
        model_hash: Hash of the weights (:func:`~mikit.activations.hash_of_model`).
        data_hash: Hash of the samples (:func:`~mikit.activations.hash_of_array`).
        format: ``"npy"`` (the default) or ``"safetensors"`` for the activations.

    Raises:
        InputError: If the folder holds something else, if what is given disagrees with what the store says, if it was
            written by a newer mikit or is damaged, or if it cannot be written.

    Cost: Opening reads the manifest, about 200 bytes per layer and append. Appending writes and syncs one file per
        layer and rewrites the manifest: append large batches (thousands of rows) rather than many small ones.

    Pitfalls:
        One store is one run: give each seed its own. An object reads the state it was opened with, plus its own
        appends; open the store again to see what others appended. On a network drive the lock is as good as the
        drive's own.

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
            raise InputError(f'format is {format!r}; a store is written as "npy" or "safetensors".')
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
            if value is not None and value != (held := getattr(self._folder.manifest, key)):
                raise InputError(
                    f"The store {str(self.path)!r} was created with {key}={held!r}, not {value!r}. Open it without "
                    f"{key}, or give this run a folder of its own."
                )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a store that exists, to read and to append.

        Args:
            path: The folder of the store.

        Raises:
            InputError: If there is no store at ``path``, or it cannot be read.
        """
        root = absolute_folder(path)
        if not (root / MANIFEST_NAME).is_file():
            what = "is a folder without a manifest" if root.is_dir() else "does not exist"
            raise InputError(f"There is no activation store at {str(root)!r}: it {what}. Check the path.")
        return cls(root)

    # ------------------------------------------------------------------ what it is

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.root

    @property
    def network(self) -> str | None:
        """Name of the network."""
        return self._folder.manifest.network

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return self._folder.manifest.seed

    @property
    def model_hash(self) -> str | None:
        """Hash of the network's weights."""
        return self._folder.manifest.model_hash

    @property
    def data_hash(self) -> str | None:
        """Hash of the samples."""
        return self._folder.manifest.data_hash

    @property
    def format(self) -> str:
        """``"npy"`` or ``"safetensors"``."""
        return self._folder.manifest.format

    @property
    def versions(self) -> dict[str, str]:
        """The library versions that created the store."""
        return dict(self._folder.manifest.versions)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in the order of the first append."""
        return tuple(layer.name for layer in self._folder.manifest.layers)

    @property
    def phases(self) -> tuple[int, ...]:
        """The phases with activations, ascending."""
        return tuple(phase.phase for phase in self._folder.manifest.phases)

    @property
    def notes(self) -> dict[int, dict[str, float]]:
        """The scalars noted for each phase."""
        return {phase: dict(notes) for phase, notes in sorted(self._folder.manifest.notes.items())}

    def readout(self, layer: str) -> str:
        """Return the name of the readout of ``layer``."""
        return self._folder.manifest.layers[self._index(layer)].readout

    def shape(self, layer: str, phase: int) -> tuple[int, ...]:
        """Return the shape of ``read(layer, phase)``, from the manifest alone."""
        rows = sum(shard.rows for shard in self._phase(phase).shards)
        return (rows, *self._folder.manifest.layers[self._index(layer)].shape)

    def content(self, layer: str, phase: int) -> str:
        """Return a hash of the rows of ``layer`` at ``phase`` and of their ids, from the manifest; reads no rows.

        Raises:
            InputError: If there is no such layer or phase, or a file is missing or not as long as it was written.
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

    # ------------------------------------------------------------------ reading

    def ids(self, phase: int) -> np.ndarray:
        """Return the sample ids of the rows of ``phase``, ``(n,)``, int64 or strings."""
        return np.concatenate([self._folder.small_array(shard.ids) for shard in self._phase(phase).shards])

    def read(self, layer: str, phase: int) -> np.ndarray:
        """Return the activations of ``layer`` at ``phase``, ``(n, ...)``, read-only, rows as in ``ids(phase)``.

        Args:
            layer: Name of the layer.
            phase: The phase.

        Returns:
            A memory map if the phase was appended in one piece, else a copy in memory.

        Raises:
            InputError: If there is no such layer or phase, or a file is missing, truncated or not what was written.

        Pitfalls:
            Use :meth:`chunks` for a layer larger than memory that was appended in several pieces.
        """
        parts = self._shards(layer, phase)
        if len(self._phase(phase).shards) == 1:
            return next(parts)
        whole = np.empty(self.shape(layer, phase), self._folder.manifest.layers[self._index(layer)].dtype)
        start = 0
        for part in parts:
            whole[start : start + part.shape[0]] = part
            start += part.shape[0]
        whole.flags.writeable = False
        return whole

    def chunks(self, layer: str, phase: int, rows: int = 2048) -> Iterator[np.ndarray]:
        """Return the activations in pieces of ``rows`` rows, the last one shorter; holds one piece at a time.

        Raises:
            InputError: As for :meth:`read`, or if ``rows`` is not positive.
        """
        if rows < 1:
            raise InputError(f"rows is {rows}; a piece has at least one row.")
        return _pieces(self._shards(layer, phase), rows)

    def labels_for(self, ids: Any) -> np.ndarray | None:
        """Return the label of each id, ``(n,)``; None if the store has no labels.

        Raises:
            InputError: If an id has no label.
        """
        if self._folder.manifest.labels is None:
            return None
        wanted = np.asarray(ids)
        known, labels = (self._folder.small_array(file) for file in self._folder.manifest.labels)
        order = np.argsort(known, kind="stable")
        missing = wanted[~np.isin(wanted, known)]
        if missing.size:
            raise InputError(
                f"{missing.size} of {wanted.size} sample ids have no label in {str(self.path)!r}; the first is "
                f"{missing[0]!r}. Set the labels of all samples."
            )
        return labels[order[np.searchsorted(known, wanted, sorter=order)]]

    @property
    def training_ids(self) -> np.ndarray | None:
        """Ids of the samples the network was trained on; None if they were not set."""
        return (
            None
            if self._folder.manifest.training_ids is None
            else self._folder.small_array(self._folder.manifest.training_ids).copy()
        )

    def verify(self) -> None:
        """Read every file and compare it with the hash taken when it was written.

        Raises:
            InputError: Naming the first file that is missing or was changed.

        Cost: One pass over the whole store.
        """
        for file in self._folder.manifest.files():
            path = self._folder.path_of(file)
            if file_sha256(path) != file.sha256:
                raise InputError(
                    f"The file {str(path)!r} is not what was written: its SHA-256 differs from the manifest's. Restore "
                    "it from a copy, or discard its phase and record it again."
                )

    # ------------------------------------------------------------------ writing

    def append(
        self, batch: Mapping[str, Any], *, ids: Any, phase: int, readouts: Mapping[str, str] | str = "as given"
    ) -> None:
        """Append rows of all layers to a phase: all of them, or none.

        Args:
            batch: For each layer an array ``(n, ...)``: NumPy, tensor or nested list. float16, float32 and float64 are
                kept, bfloat16 becomes float32, whole numbers become float64, a vector becomes one column.
            ids: One sample id per row, ``(n,)``: whole numbers (kept as int64) or strings; unique within the phase.
            phase: The phase of training, from 0.
            readouts: What was done to the activations of each layer, by name.

        Raises:
            InputError: If an array holds NaN or infinity, is not numeric, or has another number of rows than there are
                ids; if layers, readout, dtype or sample shape differ from the earlier appends; if an id stands twice or
                is in the phase already; if another process holds the store; or if the disk refuses.

        Cost: Writes the rows once, reads them back once for the hash, and syncs one file per layer.
        """
        number = phase_number(phase)
        arrays = {layer: rows_to_store(value, f"layer {layer!r}") for layer, value in batch.items()}
        if not arrays:
            raise InputError("The batch holds no layers.")
        rows = checked_ids(ids, "ids")
        for layer, array in arrays.items():
            if array.shape[0] != rows.shape[0]:
                raise InputError(
                    f"The layer {layer!r} has {array.shape[0]} rows, but there are {rows.shape[0]} ids. Pass one id "
                    "per row; mikit never truncates."
                )
        described = described_layers(arrays, readouts)
        folder = self._folder
        with folder.writing():
            layers = agreed_layers(folder.manifest.layers, described)
            id_kind = agreed_id_kind(folder.manifest.id_kind, rows)
            shards = next((held.shards for held in folder.manifest.phases if held.phase == number), ())
            self._refuse_known(rows, number, shards)
            shard = Shard(
                rows.shape[0],
                folder.write_small("ids", rows),
                tuple(folder.write_rows(index, layer, arrays[layer.name]) for index, layer in enumerate(layers)),
            )
            others = tuple(held for held in folder.manifest.phases if held.phase != number)
            phases = sorted((*others, Phase(number, (*shards, shard))), key=lambda held: held.phase)
            folder.commit(layers=layers, id_kind=id_kind, phases=tuple(phases))

    def set_labels(self, ids: Any, labels: Any) -> None:
        """Set the labels of samples, in place of those set before.

        Args:
            ids: Sample ids, ``(n,)``, unique.
            labels: One label per id: whole numbers, booleans or strings.

        Raises:
            InputError: If they are not as many, an id stands twice, or the labels are not categories.
        """
        keys = checked_ids(ids, "ids")
        values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
        if as_labels(values).shape[0] != keys.shape[0]:
            raise InputError(f"There are {values.shape[0]} labels for {keys.shape[0]} ids. Pass one label per id.")
        values = values.reshape(-1)
        if values.dtype.kind in "uf" and float(np.abs(values).max()) >= 2.0**63:
            raise InputError(f"The labels reach {np.abs(values).max()}, which does not fit into int64. Pass strings.")
        values = values.astype(str if values.dtype.kind in "US" else np.int64)
        with self._folder.writing():
            id_kind = agreed_id_kind(self._folder.manifest.id_kind, keys)
            files = (self._folder.write_small("ids", keys), self._folder.write_small("labels", values))
            self._folder.commit(labels=files, id_kind=id_kind)

    def set_training_ids(self, ids: Any) -> None:
        """Set the ids of the samples the network was trained on, in place of those set before.

        Args:
            ids: Sample ids, ``(n,)``, unique. An information flow refuses to probe on these samples.

        Raises:
            InputError: If an id stands twice, or the ids are of another kind than those of the rows.
        """
        keys = checked_ids(ids, "training ids")
        with self._folder.writing():
            id_kind = agreed_id_kind(self._folder.manifest.id_kind, keys)
            self._folder.commit(training_ids=self._folder.write_small("training-ids", keys), id_kind=id_kind)

    def note(self, phase: int, **scalars: float) -> None:
        """Note finite scalars for a phase, ``note(3, accuracy=0.9)``; a name noted before gets the new value.

        Raises:
            InputError: If a value is not a finite number.
        """
        number = phase_number(phase)
        noted: dict[str, float] = {}
        for name, value in scalars.items():
            try:
                noted[name] = float(value)
            except (TypeError, ValueError) as cause:
                raise InputError(f"The note {name!r} is {value!r}. Note a number.") from cause
            if not np.isfinite(noted[name]):
                raise InputError(f"The note {name!r} for phase {number} is {value}. Note a finite number.")
        with self._folder.writing():
            notes = {**self._folder.manifest.notes, number: {**self._folder.manifest.notes.get(number, {}), **noted}}
            self._folder.commit(notes=notes)

    def discard(self, phase: int) -> None:
        """Delete the activations and notes of a phase, so that it can be recorded again.

        Raises:
            InputError: If the store has no such phase.

        Pitfalls:
            There is no way back. When the last phase goes, the store forgets its layers, and may hold others.
        """
        with self._folder.writing():
            self._phase(phase)
            phases = tuple(held for held in self._folder.manifest.phases if held.phase != phase)
            notes = {number: notes for number, notes in self._folder.manifest.notes.items() if number != phase}
            others = phases or self._folder.manifest.labels or self._folder.manifest.training_ids
            self._folder.commit(
                phases=phases,
                notes=notes,
                layers=self._folder.manifest.layers if phases else (),
                id_kind=self._folder.manifest.id_kind if others else None,
            )
            self._folder.remove_strays()

    # ------------------------------------------------------------------ finding

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
        for held in self._folder.manifest.phases:
            if held.phase == phase:
                return held
        raise InputError(f"The store {str(self.path)!r} has no phase {phase!r}; its phases are {list(self.phases)}.")

    def _refuse_known(self, ids: np.ndarray, phase: int, shards: tuple[Shard, ...]) -> None:
        for shard in shards:
            known = ids[np.isin(ids, self._folder.small_array(shard.ids))]
            if known.size:
                raise InputError(
                    f"{known.size} of {ids.size} sample ids are in phase {phase} already; the first is {known[0]!r}. "
                    "Append each sample once, or discard the phase to record it again."
                )


def _pieces(parts: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
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


def _absolute(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InputError(f"{text!r} is not a path. Pass the folder of the store.")
    return Path(text).absolute()
