"""The manifest of an activation store, as JSON: its content, its origin, and the length of each file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, final

from mikit.core.errors import InputError
from mikit.core.provenance import library_versions

__all__ = ["FORMATS", "SCHEMA_VERSION", "Layer", "Manifest", "Phase", "Shard", "StoredFile"]

SCHEMA_VERSION = 1
FORMATS = ("npy", "safetensors")

_KIND = "mikit activation store"
_FILE_NAME = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,99}")
_DTYPES = ("float16", "float32", "float64")


@final
@dataclass(frozen=True)
class StoredFile:
    """A file of the store with its expected length and hash."""

    name: str
    bytes: int
    sha256: str


@final
@dataclass(frozen=True)
class Layer:
    """A layer: its readout, and dtype and shape of one sample."""

    name: str
    readout: str
    dtype: str
    shape: tuple[int, ...]


@final
@dataclass(frozen=True)
class Shard:
    """The samples of one append: a file of ids, and one file per layer, in the order of the layers."""

    rows: int
    ids: StoredFile
    layers: tuple[StoredFile, ...]


@final
@dataclass(frozen=True)
class Phase:
    """The shards of one phase, in the order of the appends."""

    phase: int
    shards: tuple[Shard, ...]


@final
@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    ``writes`` counts the changes and numbers the files, so that no name is used twice. ``id_kind`` is ``"int64"`` or
    ``"str"``, and None while there are no ids. ``labels`` are the files of the labeled ids and of their labels;
    ``training_ids`` is the file of the ids that the network was trained on. ``created`` and ``versions`` describe the
    creation of the store.
    """

    format: str
    network: str | None = None
    seed: int | None = None
    model_hash: str | None = None
    data_hash: str | None = None
    writes: int = 0
    id_kind: str | None = None
    layers: tuple[Layer, ...] = ()
    phases: tuple[Phase, ...] = ()
    notes: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    labels: tuple[StoredFile, StoredFile] | None = None
    training_ids: StoredFile | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: Mapping[str, str] = field(default_factory=library_versions)

    def files(self) -> tuple[StoredFile, ...]:
        """Return all files of the store."""
        found = [file for phase in self.phases for shard in phase.shards for file in (shard.ids, *shard.layers)]
        found += [*(self.labels or ()), *((self.training_ids,) if self.training_ids else ())]
        return tuple(found)

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        content = {"kind": _KIND, "schema_version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Manifest:
        """Read a manifest and check every field.

        Raises:
            InputError: If it is not the manifest of a store, was written by a newer mikit, or is damaged.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as cause:
            raise InputError(f"{source} is not readable as JSON ({cause}). Restore it from a copy.") from cause
        if not isinstance(content, dict) or content.get("kind") != _KIND:
            raise InputError(f"{source} is not the manifest of an activation store. Pass the folder of a store.")
        version = content.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InputError(
                f"{source} has schema version {version} of a newer mikit; this one supports up to version "
                f"{SCHEMA_VERSION}. Update mikit to open it."
            )
        try:
            if version != SCHEMA_VERSION:
                raise ValueError(f"schema_version is {version!r}")
            return _manifest(content)
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise InputError(f"{source} is damaged: {cause!r}. Restore it from a copy.") from cause


def _manifest(content: dict[str, Any]) -> Manifest:
    layers = tuple(_layer(entry) for entry in content["layers"])
    phases = tuple(_phase(entry, len(layers)) for entry in content["phases"])
    labels = content["labels"]
    training = content["training_ids"]
    if content["format"] not in FORMATS or content["id_kind"] not in (None, "int64", "str"):
        raise ValueError("format or id_kind is unknown")
    return Manifest(
        format=content["format"],
        network=_optional(content, "network", str),
        seed=_optional(content, "seed", int),
        model_hash=_optional(content, "model_hash", str),
        data_hash=_optional(content, "data_hash", str),
        writes=_count(content["writes"]),
        id_kind=content["id_kind"],
        layers=layers,
        phases=phases,
        notes={int(phase): {str(k): _finite(v) for k, v in notes.items()} for phase, notes in content["notes"].items()},
        labels=None if labels is None else (_file(labels[0]), _file(labels[1])),
        training_ids=None if training is None else _file(training),
        created=str(content["created"]),
        versions={str(key): str(value) for key, value in content["versions"].items()},
    )


def _layer(entry: dict[str, Any]) -> Layer:
    if not isinstance(entry["name"], str) or not isinstance(entry["readout"], str) or entry["dtype"] not in _DTYPES:
        raise ValueError(f"the description of layer {entry['name']!r} is invalid")
    return Layer(entry["name"], entry["readout"], entry["dtype"], tuple(_count(axis) for axis in entry["shape"]))


def _phase(entry: dict[str, Any], layers: int) -> Phase:
    shards = tuple(
        Shard(_count(shard["rows"]), _file(shard["ids"]), tuple(_file(file) for file in shard["layers"]))
        for shard in entry["shards"]
    )
    if any(len(shard.layers) != layers for shard in shards):
        raise ValueError(f"phase {entry['phase']} does not contain all layers")
    return Phase(_count(entry["phase"]), shards)


def _file(entry: dict[str, Any]) -> StoredFile:
    # The manifest is not trusted: a file name must not be a path.
    if not isinstance(entry["name"], str) or not _FILE_NAME.fullmatch(entry["name"]):
        raise ValueError(f"{entry['name']!r} is not a file name of a store")
    return StoredFile(entry["name"], _count(entry["bytes"]), str(entry["sha256"]))


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _optional(content: dict[str, Any], key: str, kind: type) -> Any:
    value = content[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
        raise ValueError(f"{key} is {value!r}")
    return value
