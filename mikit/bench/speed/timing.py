"""The clock: candidates take turns in one process, on one thread, and what is kept is every sample."""

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
    """The samples of one candidate.

    Args:
        samples: Seconds, in the order they were taken.

    Examples:
        >>> timing = Timing((3.0, 1.0, 2.0))
        >>> timing.median, timing.low, timing.high
        (2.0, 1.0, 3.0)
    """

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The smallest sample."""
        return min(self.samples)

    @property
    def high(self) -> float:
        """The largest sample."""
        return max(self.samples)


def cpu_clock(call: Callable[[], object]) -> Callable[[], float]:
    """Return a timer: it runs ``call`` and tells the processor seconds of all threads of this process."""

    def measure() -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    return measure


def cuda_clock(call: Callable[[], object]) -> Callable[[], float]:
    """Return a timer: it runs ``call`` and tells the seconds between two events of the current CUDA stream."""

    def measure() -> float:
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
    """Take turns: every round runs every timer once, and each round begins with the next one.

    A machine that becomes slower for a while is then slow for all of them.

    Args:
        timers: By name, what runs a candidate and tells the seconds.
        repeats: Rounds.
        budget: Seconds of wall time after which no new round begins, once three are done.
        tick: Called after each run.

    Returns:
        The samples by name, and by name what was raised. A timer that raised is not run again and has no samples.

    Cost:
        The sum of the calls.

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
    """Return the exponent ``e`` of ``cost = c · size^e``, by least squares of the logarithms.

    Args:
        sizes: Sizes, positive.
        costs: Costs; points that are not positive are left out, since they have no logarithm.

    Returns:
        The exponent, or None where fewer than two different sizes are left.

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
