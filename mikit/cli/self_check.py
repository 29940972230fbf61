"""The checks of ``mikit doctor``: versions, processors, memory, device, writing, and a known estimate."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch

from mikit.core.errors import InputError
from mikit.core.provenance import library_versions
from mikit.measuring.pipeline import measure

__all__ = ["Finding", "examine"]

_ROWS, _COLUMNS, _CORRELATION = 4000, 2, 0.6


@final
@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    well: bool
    sentence: str


def examine(folder: Path) -> tuple[Finding, ...]:
    """Run all checks; results would be written to ``folder``."""
    return (_versions(), _processors(), _memory(), _device(), _writing(folder), _known_truth())


def _versions() -> Finding:
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return Finding("versions", True, versions)


def _processors() -> Finding:
    from joblib import cpu_count

    return Finding("processors", True, f"{cpu_count()} usable; torch uses {torch.get_num_threads()} threads")


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return Finding("memory", True, "not reported by this system")
    return Finding("memory", total >= 2, f"{total:.1f} GiB; the demo needs 2")


def _device() -> Finding:
    if not torch.cuda.is_available():
        return Finding("CUDA", True, "no device; mikit uses the CPU")
    return Finding("CUDA", True, f"{torch.cuda.device_count()} device(s), the first is {torch.cuda.get_device_name(0)}")


def _writing(folder: Path) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".mikit-doctor.") as file:
            file.write(b"x")
    except OSError as cause:
        return Finding("writing", False, f"{folder} is not writable: {cause.strerror or cause}")
    return Finding("writing", True, f"{folder.absolute()} is writable")


def _known_truth() -> Finding:
    """Estimate a Gaussian pair with known mutual information; the seed is fixed, so a failure is not by chance."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_ROWS, _COLUMNS))
    y = _CORRELATION * x + (1 - _CORRELATION**2) ** 0.5 * rng.standard_normal((_ROWS, _COLUMNS))
    truth = -0.5 * _COLUMNS * float(np.log(1 - _CORRELATION**2))
    try:
        measured = measure(x, y, "gaussian", seed=0)
    except (InputError, RuntimeError, ImportError) as cause:
        return Finding("known truth", False, f"the estimate failed: {cause}")
    low, high = measured.interval
    inside = low <= truth <= high
    return Finding(
        "known truth",
        inside,
        f"a Gaussian pair of {truth:.3f} nats was estimated at {measured.value:.3f} [{low:.3f}, {high:.3f}]"
        + ("" if inside else ", and the interval does not contain the truth"),
    )
