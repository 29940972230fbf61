"""The folder of a benchmark: one file per estimate, from which an interrupted run resumes."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from mikit.bench.accuracy.results import Estimate
from mikit.bench.distributions.task import Task
from mikit.core.errors import InputError
from mikit.core.provenance import library_versions
from mikit.core.run_folder import RecordFiles
from mikit.plot.drawing.names import clip_text

__all__ = ["Key", "described", "keep", "read_estimates", "sentence_of"]

_SUFFIX = ".json"
_NOTHING: dict[str, Any] = {
    "reason": "",
    "value": None,
    "low": None,
    "high": None,
    "verdict": "",
    "flags": (),
    "chosen": "",
}


@final
@dataclass(frozen=True)
class Key:
    """What to estimate, and by which estimator.

    Attributes:
        suite: The suite of the distribution.
        law: The name of the distribution.
        n: Number of samples.
        seed: Seed of the samples and of the estimate.
        estimator: Name of the estimator.
    """

    suite: str
    law: str
    n: int
    seed: int
    estimator: str

    @property
    def name(self) -> str:
        """A readable name; the checksum distinguishes keys that differ in other characters only."""
        whole = f"{self.suite}--{self.law}--{self.n}--{self.seed}--{self.estimator}"
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', whole)}--{zlib.crc32(whole.encode()):08x}"

    @property
    def file(self) -> str:
        """Name of the file of the estimate."""
        return f"{self.name}{_SUFFIX}"


def described(task: Task, key: Key, found: Mapping[str, Any], versions: Mapping[str, str]) -> Estimate:
    """Return an estimate with the description of its distribution.

    Args:
        task: The distribution.
        key: What was estimated.
        found: The state and the seconds, and the other fields of an estimate if they are known.
        versions: Versions of the libraries that determine the number.
    """
    return Estimate(
        suite=task.suite,
        law=task.name,
        half=task.half,
        d_x=task.d_x,
        d_y=task.d_y,
        truth=task.information,
        truth_error=task.error,
        fault=task.fault,
        right_suffices=task.right_suffices,
        n=key.n,
        seed=key.seed,
        estimator=key.estimator,
        versions=versions,
        **{**_NOTHING, **found},
    )


def keep(folder: Path, key: Key, estimate: Estimate) -> None:
    """Write an estimate into the folder, which is created if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    files = RecordFiles(folder, _SUFFIX)
    files.write(key.name, json.dumps(estimate.to_dict(), indent=1, ensure_ascii=False, allow_nan=False).encode())
    files.sync()


def read_estimates(folder: Path, keys: Iterable[Key]) -> dict[Key, Estimate]:
    """Return the estimates in the folder; failed ones are left out, so that they are tried again.

    Args:
        folder: The folder; it need not exist.
        keys: The estimates to look for.

    Raises:
        InputError: If the folder contains other files, or an estimate of another version of mikit.
    """
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the estimates.")
    files = RecordFiles(folder, _SUFFIX)
    if foreign := files.foreign():
        raise InputError(f"{folder} contains {foreign[0]}, which is no estimate of mikit bench. Name another folder.")
    known = {}
    version = library_versions()["mikit"]
    for key in keys:
        content = files.read(key.name)
        if content is None:
            continue
        path = files.path(key.name)
        try:
            estimate = Estimate.from_dict(json.loads(content))
        except ValueError as cause:
            raise InputError(
                f"{path} is no estimate of mikit bench ({cause}). Remove it, or name another folder."
            ) from cause
        if estimate.versions.get("mikit") != version:
            raise InputError(
                f"{path} was measured by mikit {estimate.versions.get('mikit')}, and this is {version}. Name another "
                "folder, or measure again with --fresh."
            )
        if estimate.state != "failed":
            known[key] = estimate
    return known


def sentence_of(cause: Exception) -> str:
    """Return the first line of an error message."""
    return clip_text((str(cause).strip().splitlines() or [""])[0], 200)
