"""The measurements of a trace, one file for each.

The name of a record is a hash of the activations, the samples, the settings and the version of mikit. Therefore a
killed run resumes where it stopped, added phases cost only themselves, and a record of other settings is never used.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mikit.core.errors import InputError
from mikit.core.measurement import Measurement
from mikit.core.run_folder import RecordFiles
from mikit.core.version import __version__
from mikit.estimators.labels.label_information import RotatedInformation
from mikit.functional.flow.information_plane import NoisyInformation
from mikit.functional.flow.moments import LayerFactor, Similarity
from mikit.functional.flow.recovery import Recovery

__all__ = [
    "Pair",
    "Records",
    "factor_from",
    "factor_to",
    "information_from",
    "information_to",
    "measurement_from",
    "measurement_to",
    "pair_from",
    "pair_to",
    "plane_from",
    "plane_to",
    "record_key",
]

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Information = tuple[RotatedInformation, RotatedInformation]

_SCHEMA_VERSION = 2
_RECOVERY = (
    "noise",
    "student_noise",
    "information",
    "held_out",
    "in_sample",
    "corrected",
    "ceiling",
    "standard_error",
    "folds",
)
_PLANE = ("noise", "value", "standard_error", "ceiling")
_FACTOR = ("scale", "sizes", "sums", "spectrum", "axes", "fit_spectra", "fit_axes", "held_out")


@final
@dataclass(frozen=True)
class Pair:
    """A student layer compared with a teacher layer; the nulls are None if they were not measured."""

    recoveries: tuple[Recovery, ...]
    similarity: Similarity
    null_recoveries: tuple[Recovery, ...] | None = None
    null_similarity: Similarity | None = None


def record_key(what: str, **decides: Any) -> str:
    """Return the key of a measurement: a hash of its name, everything that determines it, and the version of mikit."""
    content = {"schema_version": _SCHEMA_VERSION, "mikit": __version__, "what": what, **decides}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


@final
@dataclass(frozen=True)
class Records:
    """The records in a folder, which any number of processes read and write.

    Attributes:
        folder: An existing folder.
    """

    folder: Path

    @property
    def files(self) -> RecordFiles:
        """The files of the records."""
        return RecordFiles(self.folder, ".npz")

    def fetch(self, key: str, measure: Callable[[], Arrays]) -> Arrays:
        """Return the record of ``key``; a missing record is measured and written first."""
        found = self.stored(key)
        if found is not None:
            return found
        measured = measure()
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **measured)
        self.files.write(key, packed.getvalue())
        return measured

    def stored(self, key: str) -> Arrays | None:
        """Return the record of ``key``, or None.

        Raises:
            InputError: If the file is damaged, which an interrupted run never causes.
        """
        try:
            packed = self.files.read(key)
            if packed is None:
                return None
            with np.load(io.BytesIO(packed), allow_pickle=False) as content:
                return {name: content[name] for name in content.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as cause:
            raise InputError(
                f"{self.files.path(key)} is damaged ({cause}): it was changed after mikit wrote it. Remove this file "
                "and trace again; all other records are kept."
            ) from cause


def information_to(found: Information) -> dict[str, Array]:
    """Return label information, and that of shifted labels, as arrays."""
    content: dict[str, Array] = {}
    for name, one in zip(("found", "moved"), found, strict=True):
        content[f"{name}_rows"] = one.pointwise
        content[f"{name}_told"] = np.array([one.fit_value, one.fits, one.converged], dtype=np.float64)
    return content


def information_from(content: Arrays) -> Information:
    """Invert :func:`information_to`."""

    def one(name: str) -> RotatedInformation:
        fit_value, fits, converged = content[f"{name}_told"].tolist()
        return RotatedInformation(content[f"{name}_rows"], fit_value, int(fits), int(converged))

    return one("found"), one("moved")


def factor_to(factor: LayerFactor) -> dict[str, Array]:
    """Return a layer's factor as arrays."""
    return {name: np.asarray(getattr(factor, name)) for name in _FACTOR}


def factor_from(content: Arrays) -> LayerFactor:
    """Invert :func:`factor_to`."""
    arrays = {name: content[name] for name in _FACTOR if name != "scale"}
    return LayerFactor(scale=float(content["scale"]), **arrays)


def pair_to(pair: Pair) -> dict[str, Array]:
    """Return a pair as arrays."""
    content = {"recoveries": _recoveries_to(pair.recoveries), "similarity": _similarity_to(pair.similarity)}
    if pair.null_recoveries is not None and pair.null_similarity is not None:
        content["null_recoveries"] = _recoveries_to(pair.null_recoveries)
        content["null_similarity"] = _similarity_to(pair.null_similarity)
    return content


def pair_from(content: Arrays) -> Pair:
    """Invert :func:`pair_to`."""
    found = _recoveries_from(content["recoveries"]), _similarity_from(content["similarity"])
    if "null_recoveries" not in content:
        return Pair(*found)
    return Pair(*found, _recoveries_from(content["null_recoveries"]), _similarity_from(content["null_similarity"]))


def plane_to(found: tuple[NoisyInformation, ...]) -> dict[str, Array]:
    """Return the information about the input by noise level as an array."""
    return {"levels": np.array([[getattr(one, name) for name in _PLANE] for one in found], dtype=np.float64)}


def plane_from(content: Arrays) -> tuple[NoisyInformation, ...]:
    """Invert :func:`plane_to`."""
    return tuple(NoisyInformation(**dict(zip(_PLANE, row, strict=True))) for row in content["levels"].tolist())


def measurement_to(measurement: Measurement) -> dict[str, Array]:
    """Return a measurement as the bytes of its JSON text."""
    return {"json": np.frombuffer(measurement.to_json().encode(), dtype=np.uint8)}


def measurement_from(content: Arrays) -> Measurement:
    """Invert :func:`measurement_to`."""
    return Measurement.from_json(content["json"].tobytes().decode())


def _recoveries_to(found: tuple[Recovery, ...]) -> Array:
    return np.array([[getattr(one, name) for name in _RECOVERY] for one in found], dtype=np.float64)


def _recoveries_from(rows: Array) -> tuple[Recovery, ...]:
    return tuple(Recovery(**{**dict(zip(_RECOVERY, row, strict=True)), "folds": int(row[-1])}) for row in rows.tolist())


def _similarity_to(found: Similarity) -> Array:
    return np.array([found.value, found.standard_error, found.folds], dtype=np.float64)


def _similarity_from(row: Array) -> Similarity:
    value, error, folds = row.tolist()
    return Similarity(value, error, int(folds))
