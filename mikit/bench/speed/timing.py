"""Timing: candidates take turns in one process, and every measured time is kept."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

__all__ = ["Timing", "cpu_clock", "cuda_clock", "fit_exponent", "interleave"]

_FEWEST_ROUNDS = 3


@final
@dataclass(frozen=True)
class Timing:
    """The measured times of one candidate in seconds, in order.

    Examples:
        >>> timing = Timing((3.0, 1.0, 2.0))
        >>> timing.median, timing.low, timing.high
        (2.0, 1.0, 3.0)
    """

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median time."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The shortest time."""
        return min(self.samples)

    @property
    def high(self) -> float:
        """The longest time."""
        return max(self.samples)


def cpu_clock(call: Callable[[], object]) -> Callable[[], float]:
    """Return a timer: it runs ``call`` and returns the CPU seconds of all threads of this process."""
    # CPU time, not wall time: other processes on the machine take turns with this one and would count.

    def measure() -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    return measure


def cuda_clock(call: Callable[[], object]) -> Callable[[], float]:
    """Return a timer: it runs ``call`` and returns the seconds between two events of the current CUDA stream."""

    def measure() -> float:
        # Kernels run asynchronously: work of the previous candidate must be finished before the first event.
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return measure


def interleave(
    timers: Mapping[str, Callable[[], float]],
    repeats: int,
    *,
    budget: float = math.inf,
    tick: Callable[[], object] | None = None,
) -> tuple[dict[str, Timing], dict[str, Exception]]:
    """Run the timers in turns and return the times and the failures by name.

    No new round starts after ``budget`` seconds of wall time, once three are done. A timer that raised is not run again
    and has no times. ``tick`` is called after each run.

    Example:
        >>> timings, failures = interleave({"a": lambda: 0.25, "b": lambda: 1 / 0}, 3)
        >>> timings["a"].samples, list(timings), failures
        ((0.25, 0.25, 0.25), ['a'], {'b': ZeroDivisionError('division by zero')})
    """
    samples: dict[str, list[float]] = {name: [] for name in timers}
    failures: dict[str, Exception] = {}
    start = time.perf_counter()
    for number in range(repeats):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - start > budget:
            break
        # A machine that is slow for a while is slow for all candidates of a round, so ratios stay meaningful. Each
        # round starts with the next candidate, so that none always runs first, with the caches of the same other one.
        names = [name for name in timers if name not in failures]
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            try:
                samples[name].append(timers[name]())
            except Exception as cause:
                failures[name] = cause
            if tick is not None:
                tick()
    return {name: Timing(tuple(taken)) for name, taken in samples.items() if name not in failures and taken}, failures


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Return the exponent ``e`` of ``cost = c · size^e`` by least squares of the logarithms.

    Costs of 0 are left out. The result is None with fewer than two different sizes.

    Example:
        >>> round(fit_exponent([1, 2, 4], [5, 20, 80]), 12)
        2.0
    """
    points = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True) if cost > 0]
    if len({x for x, _ in points}) < 2:
        return None
    x, y = np.array(points).T
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())
