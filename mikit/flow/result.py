"""The result of a trace: one tidy table and its settings."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import pandas as pd

from mikit.core.errors import InputError
from mikit.core.files import file_sha256, write_atomically
from mikit.core.measurement import plain

__all__ = ["COLUMNS", "QUANTITIES", "SKIPPED", "Flow", "frame_of", "write_flow"]

COLUMNS: Mapping[str, str] = {
    "network": "str",
    "role": "str",
    "seed": "int64",
    "phase": "int64",
    "layer": "str",
    "layer_index": "int64",
    "teacher_layer": "str",
    "teacher_layer_index": "int64",
    "teacher_phase": "int64",
    "quantity": "str",
    "value": "float64",
    "unit": "str",
    "kind": "str",
    "low": "float64",
    "high": "float64",
    "standard_error": "float64",
    "held_out": "float64",
    "in_sample": "float64",
    "ceiling": "float64",
    "untrained": "float64",
    "null": "float64",
    "noise": "float64",
    "probe": "str",
    "readout": "str",
    "n": "int64",
    "d_x": "int64",
    "d_y": "int64",
    "verdict": "str",
    "reasons": "str",
}
QUANTITIES = ("label_information", "label_gap", "recovered_share", "cka", "input_information", "accuracy")

SKIPPED = "skipped"
"""The verdict on a row that was requested but not measured, because the time budget was used up."""

_KIND = "mikit flow"
_SCHEMA_VERSION = 1
_TABLES = ("flow.csv", "flow.parquet")


@final
@dataclass(frozen=True, eq=False, repr=False)
class Flow:
    """The result of :func:`mikit.trace`.

    Attributes:
        frame: Tidy table with one row per network, seed, phase, layer (and teacher layer), quantity and noise level.
            Columns: ``network``, ``role`` ("teacher" or "student"), ``seed``, ``phase``, ``layer``, ``layer_index``,
            ``teacher_layer`` (empty if there is none), ``teacher_layer_index`` and ``teacher_phase`` (-1 if there is
            none), ``quantity``, ``value``, ``unit``, ``kind``, ``low`` and ``high`` (95 % sampling interval),
            ``standard_error``, ``held_out`` and ``in_sample`` (in the unit of ``value``), ``ceiling`` (upper limit in
            nats), ``untrained`` (the value at the network's phase 0), ``null`` (the value on permuted samples),
            ``noise``, ``probe``, ``readout``, ``n``, ``d_x``, ``d_y``, ``verdict`` and ``reasons``. A row that was not
            measured within the time budget has the verdict ``"skipped"`` and no value.
        settings: The settings: samples, label entropy, noise, folds, probe, readouts, seeds, versions, wall time.

    Units: nats for label information and gaps, fractions of the ceiling for recovered shares, none for CKA, fractions
    for accuracy. Figures never draw two units on one axis.

    Kind: V-information, estimate, index or noted, per row.

    Raises:
        InputError: From :meth:`load` and :meth:`save`, if the folder does not contain a flow, or contains other files.

    Cost: A few hundred bytes per row.

    Pitfalls:
        ``low`` and ``high`` cover the sampling of the data, not the choice of seed: several seeds are several rows. A
        share at or below the untrained one does not show transfer.

    Source: The schema is specific to mikit.

    Example:
        >>> flow = Flow(frame_of([]), {"n": 0})
        >>> len(flow.frame), flow.frame.columns[0]
        (0, 'network')
    """

    frame: pd.DataFrame
    settings: dict[str, Any]

    def save(self, folder: str | Path) -> Path:
        """Write ``flow.csv``, ``flow.parquet`` and ``flow.json`` into ``folder``, each atomically.

        ``flow.json`` is written last and contains the hashes of the tables, so that an interrupted save is detected.

        Raises:
            InputError: If the folder contains other files and no flow.
        """
        target = Path(folder)
        if target.exists() and not target.is_dir():
            raise InputError(f"{target} is a file; pass a folder to save the flow in.")
        if target.is_dir() and any(target.iterdir()) and not (target / "flow.json").exists():
            raise InputError(
                f"The folder {target} is not empty and contains no flow; nothing was written. Pass a new folder, or "
                "one with an earlier flow to replace."
            )
        target.mkdir(parents=True, exist_ok=True)
        write_flow(self, target)
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load a flow that :meth:`save` wrote.

        Raises:
            InputError: If the folder contains no flow, a newer one, or files of different flows.
        """
        source = Path(folder)
        described = source / "flow.json"
        if not described.is_file():
            raise InputError(
                f"{source} contains no flow: there is no flow.json. Run mikit trace with --out {source} first."
            )
        try:
            content = json.loads(described.read_bytes())
            kind, version, hashes = content["kind"], content["schema_version"], content["sha256"]
            settings = dict(content["settings"])
        except (ValueError, KeyError, TypeError) as cause:
            raise InputError(f"{described} is damaged ({cause!r}). Trace again, or restore it from a copy.") from cause
        if kind != _KIND or version != _SCHEMA_VERSION:
            raise InputError(
                f"{described} has kind {kind!r}, version {version!r}; this mikit reads {_KIND!r}, version "
                f"{_SCHEMA_VERSION}. Trace again, or use the version of mikit that wrote it."
            )
        for name in _TABLES:
            if not (source / name).is_file() or file_sha256(source / name) != hashes.get(name):
                raise InputError(
                    f"{source / name} is missing or does not match flow.json: a save was interrupted or the file was "
                    "edited. Trace again, or restore the folder from a copy."
                )
        return cls(pd.read_parquet(source / "flow.parquet").astype(dict(COLUMNS)), settings)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        counts = self.frame["quantity"].value_counts()
        names = [*(name for name in QUANTITIES if name in counts), *sorted(set(counts.index) - set(QUANTITIES))]
        found = ", ".join(f"{counts[name]} {name}" for name in names)
        networks = self.frame[["network", "seed"]].drop_duplicates().shape[0]
        verdicts = self.frame["verdict"].value_counts()
        judged = ", ".join(f"{verdicts[name]} {name}" for name in _VERDICTS if name in verdicts)
        return f"Flow of {networks} runs: {found or 'no rows'}  ·  verdicts: {judged or 'none'}"


_VERDICTS = ("trustworthy", "caution", "unreliable", SKIPPED)


def write_flow(flow: Flow, target: Path) -> None:
    """Write a flow's tables into an existing folder, and finally ``flow.json`` with their hashes."""
    text = flow.frame.to_csv(index=False).encode()
    write_atomically(target / "flow.csv", lambda file: _write(file, text))
    packed = io.BytesIO()
    flow.frame.to_parquet(packed, index=False)
    write_atomically(target / "flow.parquet", lambda file: _write(file, packed.getvalue()))
    content = {
        "kind": _KIND,
        "schema_version": _SCHEMA_VERSION,
        "settings": plain(flow.settings),
        "sha256": {name: file_sha256(target / name) for name in _TABLES},
    }
    described = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode()
    write_atomically(target / "flow.json", lambda file: _write(file, described))


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as the tidy table."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype(dict(COLUMNS))


def _write(file: Any, content: bytes) -> None:
    file.write(content)
