"""Peak memory of one call, as counted by the kernel.

It uses only the standard library, because benchmarks/peers/worker.py loads this file in other interpreters.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["peak_extra_bytes"]

_PROCESS = Path("/proc/self")


def peak_extra_bytes(call: Callable[[], object]) -> int | None:
    """Run ``call`` once and return the rise of the process's resident memory in bytes; below about 5 MiB it is noise.

    Workspaces that libraries keep between calls are not counted if ``call`` has run before. Returns None without
    running anything on systems other than Linux.

    Example:
        >>> measured = peak_extra_bytes(lambda: b"1" * 2**26)
        >>> measured is None or measured > 0.9 * 2**26
        True
    """
    gc.collect(1)  # garbage of recent calls is in the young generations; a full collection takes 0.2 s
    # Memory that was freed but kept by the allocator would be reused without being counted, so it is returned first.
    with suppress(OSError, AttributeError):  # only the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (_PROCESS / "clear_refs").write_text("5")
        start = _status("VmRSS")
    except (OSError, ValueError):
        return None
    call()
    return max(_status("VmHWM") - start, 0)


def _status(field: str) -> int:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}.")
