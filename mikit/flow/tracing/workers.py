"""Running the tasks of a trace: on threads, processes or a cluster, within a time budget."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any, TypeVar, final

import joblib
import torch
from threadpoolctl import threadpool_limits

from mikit.core.errors import InputError

__all__ = [
    "Budget",
    "Workers",
    "coarse_to_fine",
    "devices_of",
    "done",
    "lent_device",
    "progress_bar",
    "shares_memory",
    "sharing",
    "working_with",
]


_SECONDS_BETWEEN_LINES = 30.0
_ROUNDS_AT_A_TIME = 4

Task = TypeVar("Task")
Found = TypeVar("Found")


@final
class Budget:
    """A time limit that starts now; None for no limit."""

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def spent(self) -> bool:
        """Whether the time is used up."""
        return self._end is not None and time.monotonic() >= self._end

    @property
    def sentence(self) -> str:
        """The reason for a skipped row, and what to do."""
        return (
            f"not measured: the budget of {self.minutes or 0:g} minutes was used up; trace again into the same folder "
            "to continue"
        )


@final
@dataclass(frozen=True)
class Workers:
    """How many workers there are, for how long, and whether to show their progress."""

    jobs: int | None
    budget: Budget
    progress: bool


def coarse_to_fine(count: int) -> list[int]:
    """Return ``0 .. count - 1`` ordered so that every prefix covers the whole range: ends, middle, quarters.

    Example:
        >>> coarse_to_fine(9)
        [0, 8, 4, 2, 6, 1, 3, 5, 7]
    """
    order = [0, count - 1] if count > 1 else list(range(count))
    ends = [*order]
    while len(order) < count:
        middles = [(a + b) // 2 for a, b in pairwise(ends) if b - a > 1]
        order += middles
        ends = sorted(order)
    return order


@contextmanager
def working_with(backend: str | None) -> Iterator[None]:
    """Set joblib's backend in the block; None keeps the current one."""
    if backend is None:
        yield
        return
    try:
        chosen = joblib.parallel_config(backend=backend)
    except (ValueError, ImportError) as cause:
        raise InputError(
            f'The backend "{backend}" cannot be used: {" ".join(str(cause).split())} Use "threading" or "loky" on this '
            'machine; "dask" needs an existing dask.distributed.Client, "ray" a call of '
            "ray.util.joblib.register_ray()."
        ) from cause
    with chosen:
        yield


def shares_memory() -> tuple[bool, bool]:
    """Return whether the workers are threads of this process, and whether they run on this machine."""
    backend, _ = joblib.parallel.get_active_backend(prefer="threads")
    within = bool(getattr(backend, "supports_sharedmem", False))
    return within, type(backend).__module__ == "joblib._parallel_backends"


def done(
    work: Callable[[Task], Found], tasks: Iterable[Task], *, jobs: int | None, budget: Budget
) -> Iterator[tuple[Task, Found]]:
    """Yield each task with its result, in order; no task starts after the budget is spent.

    ``work`` must be picklable: a function of a module, or a partial of one. ``jobs=None`` means joblib's own setting.
    """
    # joblib consumes the tasks lazily and yields bare results in order, so the tasks are remembered as they start.
    started: list[Task] = []

    def dispatched(some: Iterable[Task]) -> Iterator[Any]:
        for task in some:
            if budget.spent:
                return
            started.append(task)
            yield joblib.delayed(_single_threaded)(work, task)

    # joblib dispatches tasks before workers are free. Each dispatched task has to finish, so a budget dispatches fewer.
    ahead = "2 * n_jobs" if budget.minutes is None else "n_jobs"
    backend, workers = joblib.parallel.get_active_backend(prefer="threads")
    if backend.supports_return_generator:
        pool = joblib.Parallel(n_jobs=jobs, prefer="threads", return_as="generator", pre_dispatch=ahead)
        found = pool(dispatched(tasks))
    else:
        # Ray returns all results at once. It gets a few rounds of tasks at a time, so that progress and budget work.
        pool = joblib.Parallel(n_jobs=jobs, pre_dispatch=ahead)
        count = _ROUNDS_AT_A_TIME * max(backend.effective_n_jobs(workers if jobs is None else jobs), 1)
        found = chain.from_iterable(pool(dispatched(some)) for some in _batches(tasks, count))
    for position, one in enumerate(found):
        yield started[position], one


def _batches(tasks: Iterable[Task], count: int) -> Iterator[tuple[Task, ...]]:
    rest = iter(tasks)
    while some := tuple(islice(rest, count)):
        yield some


@contextmanager
def progress_bar(shown: bool, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function to call after every task; if ``shown``, it advances a bar with the remaining time on stderr.

    If stderr is not a terminal, a line is printed every half minute.
    """
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(total, lambda line: console.print(line, soft_wrap=True, markup=False)).advance
        return
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    # One measurement can take minutes, so the speed is averaged over the last hour instead of rich's half minute.
    with Progress(*columns, console=console, speed_estimate_period=3600) as bar:
        task = bar.add_task("Tracing", total=total)
        yield lambda done: bar.update(task, advance=1, description=done)


@final
class _Lines:
    """Prints the progress and the remaining time, at most every half minute."""

    def __init__(self, total: int, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._write, self._clock = total, write, clock
        self._started = self._last = clock()
        self._count = 0

    def advance(self, done: str) -> None:
        """Count one more finished task; print a line if half a minute has passed since the last."""
        self._count += 1
        now = self._clock()
        if now - self._last < _SECONDS_BETWEEN_LINES or self._count == self._total:
            return
        self._last = now
        left = (now - self._started) / self._count * (self._total - self._count)
        minutes = "under a minute" if left < 60 else f"about {left / 60:.0f} min"
        self._write(f"{self._count} of {self._total} measured, {minutes} left ({done})")


def _single_threaded(work: Callable[[Task], Found], task: Task) -> Found:
    with _one:
        return work(task)


@final
class _Single:
    """Limits linear algebra to one thread per task, since the number of threads changes how sums are rounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks = 0
        self._limits: threadpool_limits | None = None
        self._torch = 1

    def __enter__(self) -> None:
        # The BLAS limit applies to the whole process: the first running task sets it, and the last one restores it.
        with self._lock:
            if self._tasks == 0:
                self._torch = torch.get_num_threads()
                self._limits = threadpool_limits(1, user_api="blas")
            self._tasks += 1
        # Unlike BLAS, torch keeps this number per thread; threads started later inherit it.
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._tasks -= 1
            if self._tasks == 0 and self._limits is not None:
                self._limits.restore_original_limits()
                torch.set_num_threads(self._torch)


_one = _Single()


def devices_of(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the devices by name; none for NumPy."""
    if given is None:
        return ()
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or len(set(names)) < len(names):
        raise InputError(f'device is {given!r}; pass different device names such as "cuda:0".')
    for name in names:
        try:
            device = torch.device(name)
        except (RuntimeError, TypeError) as cause:
            raise InputError(f'device is "{name}", unknown to torch; pass "cpu", "cuda" or "cuda:1".') from cause
        if device.type not in ("cpu", "cuda"):
            raise InputError(f'device is "{name}", but a trace needs float64; pass "cuda", or leave device out.')
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        if device.type == "cuda" and (device.index or 0) >= count:
            seen = f"torch sees {count} CUDA devices here" if count else "torch sees no CUDA device here"
            raise InputError(f'device is "{name}", but {seen}. Leave device out to use the CPU.')
    return names


@contextmanager
def sharing(devices: tuple[str, ...]) -> Iterator[None]:
    """Refuse several devices unless the workers are threads of one process."""
    if len(devices) > 1 and not shares_memory()[0]:
        raise InputError(
            f"device names {len(devices)} devices, which only threads of one process can share, but the workers are "
            'processes. Use the backend "threading", or name one device.'
        )
    yield


_lending = threading.Lock()
_lent: Counter[str] = Counter()


@contextmanager
def lent_device(devices: tuple[str, ...]) -> Iterator[torch.device | None]:
    """Yield the device that the fewest tasks of this process use; None without devices."""
    if not devices:
        yield None
        return
    with _lending:
        name = min(devices, key=lambda one: _lent[one])
        _lent[name] += 1
    try:
        yield torch.device(name)
    finally:
        with _lending:
            _lent[name] -= 1
