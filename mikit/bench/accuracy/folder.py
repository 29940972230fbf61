"""A folder of estimates, each in a file of its own, whole or not at all: what a run that is stopped goes on from."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from mikit.bench.accuracy.results import Estimate
from mikit.bench.distributions.task import Law
from mikit.core.errors import InputError
from mikit.core.files import TEMPORARY_PREFIX, sync_folder, write_atomically
from mikit.core.provenance import library_versions
from mikit.plot.drawing.names import clip_text

__all__ = ["Key", "described", "keep", "read_estimates", "sentence_of"]

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
    """What to estimate, and by whom.

    Args:
        suite: The suite of the law.
        law: Its name.
        n: Rows.
        seed: Seed of the sample and of the estimate.
        estimator: Who.
    """

    suite: str
    law: str
    n: int
    seed: int
    estimator: str

    @property
    def file(self) -> str:
        """Readable, and different for different keys whatever characters a law's name holds."""
        whole = f"{self.suite}--{self.law}--{self.n}--{self.seed}--{self.estimator}"
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', whole)}--{zlib.crc32(whole.encode()):08x}.json"


def described(law: Law, key: Key, found: Mapping[str, Any], versions: Mapping[str, str]) -> Estimate:
    """Return what was found, with the law that it was found on.

    Args:
        law: The law.
        key: What was estimated.
        found: The state and the seconds, and what else there is.
        versions: Of what decides the number.
    """
    return Estimate(
        suite=law.suite,
        law=law.name,
        half=law.half,
        d_x=law.d_x,
        d_y=law.d_y,
        truth=law.information,
        truth_error=law.error,
        fault=law.fault,
        right_suffices=law.right_suffices,
        n=key.n,
        seed=key.seed,
        estimator=key.estimator,
        versions=versions,
        **{**_NOTHING, **found},
    )


def keep(folder: Path, key: Key, estimate: Estimate) -> None:
    """Write an estimate into the folder, which is made if it is not there."""
    text = json.dumps(estimate.to_dict(), indent=1, ensure_ascii=False, allow_nan=False).encode()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / key.file, lambda file: file.write(text))
    sync_folder(folder)


def read_estimates(folder: Path, keys: Iterable[Key]) -> dict[Key, Estimate]:
    """Return those of the estimates that the folder holds; those that failed are tried again.

    Args:
        folder: The folder; it need not exist.
        keys: What is looked for.

    Raises:
        InputError: If the folder holds something else, or an estimate of another version of mikit.
    """
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the estimates.")
    for entry in folder.iterdir():
        if entry.suffix != ".json" and not entry.name.startswith(TEMPORARY_PREFIX):
            raise InputError(f"{folder} holds {entry.name}, which is no estimate of mikit bench. Name another folder.")
    known = {}
    versions = library_versions()
    for key in keys:
        path = folder / key.file
        if not path.exists():
            continue
        try:
            estimate = Estimate.from_dict(json.loads(path.read_text()))
        except ValueError as cause:
            raise InputError(
                f"{path} is no estimate of mikit bench ({cause}). Remove it, or name another folder."
            ) from cause
        if estimate.versions.get("mikit") != versions["mikit"]:
            raise InputError(
                f"{path} was measured by mikit {estimate.versions.get('mikit')}, and this is {versions['mikit']}. Name "
                "another folder, or measure anew with --fresh."
            )
        if estimate.state != "failed":
            known[key] = estimate
    return known


def sentence_of(cause: Exception) -> str:
    """Return the first line of what was raised."""
    return clip_text((str(cause).strip().splitlines() or [""])[0], 200)
