"""The machine of a run: processor, memory, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

from mikit.core.provenance import library_versions

__all__ = ["describe_machine", "free_bytes", "peer_versions"]

_PEERS = {"scikit-learn": "scikit-learn", "POT": "pot", "geomloss": "geomloss"}


def describe_machine(device: str) -> dict[str, str | int]:
    """Return the processor's model, its cores, the system, and for ``"cuda"`` the GPU."""
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def peer_versions() -> dict[str, str]:
    """Return the versions of mikit's libraries and of every installed peer."""
    versions = library_versions()
    for name, distribution in _PEERS.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(distribution)
    return versions


def free_bytes(device: str) -> int | None:
    """Return the free memory of the device; None if unknown."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return _first_number(Path("/proc/meminfo"), "MemAvailable")


def _first_number(path: Path, field: str) -> int | None:
    with suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
