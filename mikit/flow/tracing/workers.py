"""Doing the tasks of a trace: by threads, processes or a cluster, coarse before fine, within a budget of time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, pairwise
from typing import Any, TypeVar, final

import joblib
import torch
from threadpoolctl import threadpool_limits

from mikit.core.errors import InputError

__all__ = [
    "Budget",
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
    """How much time is left.

    Args:
        minutes: The budget, from now on; None for no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def spent(self) -> bool:
        """Whether it is used up."""
        return self._end is not None and time.monotonic() >= self._end

    @property
    def sentence(self) -> str:
        """Why a row was not measured, and what to do."""
        return (
            f"not measured: the budget of {self.minutes or 0:g} minutes was used up; trace again into the same folder "
            "to go on from here"
        )


def coarse_to_fine(count: int) -> list[int]:
    """Return ``0 .. count - 1`` so that any beginning of the list is spread over all of it: ends, middle, quarters.

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
    """Let joblib work with ``backend`` in the block; with None, with whatever is set around it.

    Raises:
        InputError: If joblib knows no such backend, or it is not ready.
    """
    if backend is None:
        yield
        return
    try:
        chosen = joblib.parallel_config(backend=backend)
    except (ValueError, ImportError) as cause:
        raise InputError(
            f'The backend "{backend}" cannot be used: {" ".join(str(cause).split())} Use "threading" or "loky" on this '
            'machine; "dask" needs a dask.distributed.Client made before, "ray" a call of register_ray() of '
            "ray.util.joblib."
        ) from cause
    with chosen:
        yield


def shares_memory() -> tuple[bool, bool]:
    """Return whether the workers live in this process, and whether they live on this machine."""
    backend, _ = joblib.parallel.get_active_backend(prefer="threads")
    within = bool(getattr(backend, "supports_sharedmem", False))
    return within, type(backend).__module__ == "joblib._parallel_backends"


def done(
    work: Callable[[Task], Found], tasks: Iterable[Task], *, jobs: int | None, budget: Budget
) -> Iterator[tuple[Task, Found]]:
    """Yield each task with its result, in the order of the tasks; none is begun once the budget is spent.

    Args:
        work: Does a task; must be a function of a module, or a partial of one, so that it can be sent to a process.
        tasks: The tasks.
        jobs: Workers; None for what joblib was told.
        budget: The time there is.
    """
    begun: list[Task] = []

    def dispatched(some: Iterable[Task]) -> Iterator[Any]:
        for task in some:
            if budget.spent:
                return
            begun.append(task)
            yield joblib.delayed(_alone_on_a_core)(work, task)

    ahead = "2 * n_jobs" if budget.minutes is None else "n_jobs"
    backend, workers = joblib.parallel.get_active_backend(prefer="threads")
    if backend.supports_return_generator:
        pool = joblib.Parallel(n_jobs=jobs, prefer="threads", return_as="generator", pre_dispatch=ahead)
        found = pool(dispatched(tasks))
    else:  # Ray gives results only when all are there: some tasks at a time, so that progress and budget hold
        pool = joblib.Parallel(n_jobs=jobs, pre_dispatch=ahead)
        count = _ROUNDS_AT_A_TIME * max(backend.effective_n_jobs(workers if jobs is None else jobs), 1)
        found = chain.from_iterable(pool(dispatched(some)) for some in _batches(tasks, count))
    for position, one in enumerate(found):
        yield begun[position], one


def _batches(tasks: Iterable[Task], count: int) -> Iterator[tuple[Task, ...]]:
    rest = iter(tasks)
    while some := tuple(islice(rest, count)):
        yield some


@contextmanager
def progress_bar(shown: bool, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function to call after every task; with ``shown`` it moves a bar, with the time left, on stderr.

    Where stderr is no terminal, a line is written every half minute.
    """
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(total, lambda line: console.print(line, soft_wrap=True, markup=False)).told
        return
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    # One measurement can take minutes: the pace is that of the last hour, not of the last half minute.
    with Progress(*columns, console=console, speed_estimate_period=3600) as bar:
        task = bar.add_task("Tracing", total=total)
        yield lambda done: bar.update(task, advance=1, description=done)


@final
class _Lines:
    """Tells now and then how far the work is, and how long the rest takes at the pace so far."""

    def __init__(self, total: int, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._write, self._clock = total, write, clock
        self._begun = self._last = clock()
        self._count = 0

    def told(self, done: str) -> None:
        """Take in that one more task is done, and write a line if half a minute has passed since the last."""
        self._count += 1
        now = self._clock()
        if now - self._last < _SECONDS_BETWEEN_LINES or self._count == self._total:
            return
        self._last = now
        left = (now - self._begun) / self._count * (self._total - self._count)
        minutes = "under a minute" if left < 60 else f"about {left / 60:.0f} min"
        self._write(f"{self._count} of {self._total} measured, {minutes} left ({done})")


def _alone_on_a_core(work: Callable[[Task], Found], task: Task) -> Found:
    with _one:
        return work(task)


@final
class _Single:
    """One thread of linear algebra for each task, whatever the process: with more, sums are rounded differently.

    The limit is the process's own. The first task of a process sets it and the last one gives back what was there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks = 0
        self._limits: threadpool_limits | None = None
        self._torch = 1

    def __enter__(self) -> None:
        with self._lock:
            if self._tasks == 0:
                self._torch = torch.get_num_threads()
                self._limits = threadpool_limits(1, user_api="blas")
            self._tasks += 1
        torch.set_num_threads(1)  # the number of the calling thread; threads begun later take it over

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._tasks -= 1
            if self._tasks == 0 and self._limits is not None:
                self._limits.restore_original_limits()
                torch.set_num_threads(self._torch)


_one = _Single()


def devices_of(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the devices that were asked for; none for the processor's own arithmetic.

    Raises:
        InputError: If a device does not exist here, stands twice, or has no float64.
    """
    if given is None:
        return ()
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or len(set(names)) < len(names):
        raise InputError(f'device is {given!r}; name devices, each once, such as "cuda:0".')
    for name in names:
        try:
            device = torch.device(name)
        except (RuntimeError, TypeError) as cause:
            raise InputError(f'device is {name!r}, which names none; pass "cpu", "cuda" or "cuda:1".') from cause
        if device.type not in ("cpu", "cuda"):
            raise InputError(
                f'device is {name!r}, which does not compute in float64 as a trace does; pass "cuda", or leave it out.'
            )
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        if device.type == "cuda" and (device.index or 0) >= count:
            seen = f"torch sees {count} CUDA devices here" if count else "torch sees no CUDA device here"
            raise InputError(f"device is {name!r}, but {seen}. Leave device out to use the processor.")
    return names


@contextmanager
def sharing(devices: tuple[str, ...]) -> Iterator[None]:
    """Refuse workers that cannot share the devices.

    Raises:
        InputError: If there are several devices, and the workers are no threads of one process.
    """
    if len(devices) > 1 and not shares_memory()[0]:
        raise InputError(
            f"device names {len(devices)} devices, which the threads of one process share, but the workers are "
            'processes. Use the backend "threading", or name one device.'
        )
    yield


_lending = threading.Lock()
_lent: Counter[str] = Counter()


@contextmanager
def lent_device(devices: tuple[str, ...]) -> Iterator[torch.device | None]:
    """Lend the device that fewest tasks of this process use; None where none was asked for."""
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
