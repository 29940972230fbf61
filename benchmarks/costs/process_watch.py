"""A command's wall time, processor time and peak memory, over the whole tree of its processes (Linux).

The kernel distinguishes two kinds of memory. Anonymous memory is allocated by the processes and cannot be reclaimed
without swap. File pages are parts of mapped files that are in memory: they belong to the page cache, are shared between
processes, and can be reclaimed.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

GIB = 1 << 30


@final
@dataclass(frozen=True)
class Watched:
    """What a command cost.

    Attributes:
        returncode: Its exit code.
        output: What it wrote, both streams.
        wall_seconds: By the clock.
        cpu_seconds: Of all its processes, user and system.
        peak_anonymous_gib: The largest sum of anonymous and shared memory over the tree at one look.
        peak_file_gib: The largest sum of mapped file pages; those of two processes count twice.
        peak_resident_gib: The largest sum of both.
        largest_process_gib: Peak resident memory of the largest process, recorded by the kernel.
        looks: How often the tree was looked at.
    """

    returncode: int
    output: str
    wall_seconds: float
    cpu_seconds: float
    peak_anonymous_gib: float
    peak_file_gib: float
    peak_resident_gib: float
    largest_process_gib: float
    looks: int

    def figures(self) -> dict[str, Any]:
        """Return all but the output, rounded."""
        kept = {name: value for name, value in asdict(self).items() if name != "output"}
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in kept.items()}


def tree_of(pid: int) -> list[int]:
    """Return a process and all below it; those that have ended meanwhile are left out."""
    found = [pid]
    for parent in found:  # grows while it is walked
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def memory_of(pid: int) -> tuple[int, int]:
    """Return the bytes of anonymous (with shared) memory and of file pages of a process; 0 and 0 once it has ended."""
    found = {"RssAnon": 0, "RssShmem": 0, "RssFile": 0}
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name in found:
                    found[name] = 1024 * int(rest.split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return found["RssAnon"] + found["RssShmem"], found["RssFile"]


def watched(command: Sequence[str], *, every: float = 0.1, data_limit: int | None = None) -> Watched:
    """Run a command to its end and watch it.

    Args:
        command: The command and its arguments.
        every: Seconds between two looks at the memory.
        data_limit: Bytes of private writable memory that the kernel grants each process (``RLIMIT_DATA``), mapped files
            not counted. Beyond it an allocation fails.
    """

    def limit() -> None:
        if data_limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    anonymous = file = both = 0
    looks = 0
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=limit, env=os.environ
    )
    while process.poll() is None:
        seen = [memory_of(pid) for pid in tree_of(process.pid)]
        held, mapped = sum(one[0] for one in seen), sum(one[1] for one in seen)
        anonymous, file, both = max(anonymous, held), max(file, mapped), max(both, held + mapped)
        looks += 1
        time.sleep(every)
    output = process.communicate()[0]
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Watched(
        returncode=process.returncode,
        output=output,
        wall_seconds=wall,
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        peak_anonymous_gib=anonymous / GIB,
        peak_file_gib=file / GIB,
        peak_resident_gib=both / GIB,
        largest_process_gib=after.ru_maxrss * 1024 / GIB,
        looks=looks,
    )
