"""Peak memory of one call, as the kernel counts it. Standard library only: the worker of a peer loads this file too."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["peak_extra_bytes"]

_PROCESS = Path("/proc/self")


def peak_extra_bytes(call: Callable[[], object]) -> int | None:
    """Run ``call`` once and return how far the resident memory of the process rose above where it began.

    Memory that was freed before, but that the allocator kept, would be used again without being counted; it is given
    back first. Workspaces that libraries keep from one call to the next are not counted if ``call`` has run before.

    Args:
        call: What to run; what it returns is dropped at once.

    Returns:
        Bytes, 0 or more; None where the kernel does not tell (anything but Linux), in which case nothing is run.

    Cost:
        One call.

    Pitfalls:
        Below about 5 MiB it is noise.

    Example:
        >>> measured = peak_extra_bytes(lambda: b"1" * 2**26)
        >>> measured is None or measured > 0.9 * 2**26
        True
    """
    gc.collect(1)  # What calls before left lies in the young generations; all of them would take 0.2 s.
    with suppress(OSError, AttributeError):  # Only the C library of GNU has it.
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
