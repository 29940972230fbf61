"""The accuracy benchmark: every estimator on every task, size and seed, with each estimate saved at once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import final

import joblib
import numpy as np

from mikit.bench.accuracy.folder import Key, described, keep, read_estimates, sentence_of
from mikit.bench.accuracy.results import AccuracyReport, Estimate
from mikit.bench.distributions.suites import task_named, tasks_of
from mikit.bench.distributions.task import Task
from mikit.bench.machine import describe_machine
from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.progress import Stages
from mikit.core.provenance import library_versions, one_thread
from mikit.estimators import estimator_named
from mikit.measuring.pipeline import measure

__all__ = ["Plan", "choose_tasks", "measure_accuracy", "read_seeds"]

_FEWEST_ROWS = 20


@final
@dataclass(frozen=True)
class Plan:
    """What to run, and where.

    Args:
        sizes: Numbers of samples.
        folder: Where every estimate is saved; a run does not repeat the estimates in it. None saves nothing.
        jobs: Number of processes, each with one thread.
        fresh: Measure the estimates in the folder again.
    """

    tasks: tuple[Task, ...]
    estimators: tuple[str, ...] = ("auto",)
    sizes: tuple[int, ...] = (10_000,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    folder: Path | None = None
    jobs: int = 1
    fresh: bool = False

    def __post_init__(self) -> None:
        if not (self.tasks and self.estimators and self.sizes and self.seeds):
            raise InputError("There is nothing to run: pass at least one task, estimator, size and seed.")
        for name in self.estimators:
            if estimator_named(name).unit != "nats":
                raise InputError(
                    f'"{name}" does not estimate mutual information in nats and has no error. Leave it out.'
                )
        for size in self.sizes:
            if size < _FEWEST_ROWS:
                raise InputError(f"{size} samples are too few; at least {_FEWEST_ROWS} are needed.")
        if min(self.seeds) < 0:
            raise InputError(f"A seed is {min(self.seeds)}; seeds start at 0.")
        require.at_least(self.jobs, "jobs")

    @property
    def keys(self) -> list[Key]:
        """Everything to run, seed by seed, so that an interrupted run has complete seeds."""
        return [
            Key(task.suite, task.name, n, seed, name)
            for seed in dict.fromkeys(self.seeds)
            for n in dict.fromkeys(self.sizes)
            for task in self.tasks
            for name in dict.fromkeys(self.estimators)
        ]


class _LeftOutError(Exception):
    """The estimator does not apply to this task."""


def choose_tasks(suites: Sequence[str], names: Sequence[str] = (), half: str | None = None) -> tuple[Task, ...]:
    """Return the tasks of these suites whose name contains one of ``names``, of one half only if given.

    Example:
        >>> [task.name for task in choose_tasks(["bmi"], ["additive"])]
        ['1v1-additive-0.1', '1v1-additive-0.75']
    """
    if half is not None:
        require.one_of(half, "half", ("develop", "report"))
    found = tuple(dict.fromkeys(task for suite in suites for task in tasks_of(suite)))
    for text in names:
        if not any(text in task.name for task in found):
            raise InputError(f'No task of {", ".join(suites)} has "{text}" in its name.')
    chosen = [task for task in found if not names or any(text in task.name for text in names)]
    return tuple(task for task in chosen if half in (None, task.half))


def read_seeds(text: str) -> tuple[int, ...]:
    """Parse seeds: numbers and ranges, separated by commas.

    Example:
        >>> read_seeds("0-2,7")
        (0, 1, 2, 7)
    """
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise InputError(f'--seeds "{text}" must be numbers or increasing ranges separated by commas, such as 0-4.')
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return tuple(found)


def measure_accuracy(plan: Plan, progress: Stages | None = None) -> AccuracyReport:
    """Run every estimator on every sample, and return the estimates in the order of the plan.

    An estimate that raised is returned with its error. With several jobs, the seconds are those of processes that share
    the memory of one machine.
    """
    known = {} if plan.folder is None else read_estimates(plan.folder, () if plan.fresh else plan.keys)
    left = [key for key in plan.keys if key not in known]
    if progress is not None:
        progress.begin(f"Measuring, {len(known)} of {len(plan.keys)} known", len(left))
    for key, found in _estimates(left, plan):
        known[key] = found
        if progress is not None:
            progress.advance()
    return AccuracyReport(
        estimates=tuple(known[key] for key in plan.keys),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine("cpu"),
    )


def _estimates(keys: Sequence[Key], plan: Plan) -> Iterator[tuple[Key, Estimate]]:
    if plan.jobs == 1:
        for key in keys:
            yield key, _measured(key, plan.folder)
        return
    parallel = joblib.Parallel(n_jobs=plan.jobs, return_as="generator_unordered")
    for found in parallel(joblib.delayed(_measured)(key, plan.folder) for key in keys):
        yield Key(found.suite, found.law, found.n, found.seed, found.estimator), found


def _measured(key: Key, folder: Path | None) -> Estimate:
    """Draw a sample, measure it, and save the estimate."""
    task = task_named(key.suite, key.law)
    start = time.perf_counter()
    found: dict[str, object]
    with one_thread():
        try:
            found = _numbers(task, key)
        except _LeftOutError as cause:
            found = {"state": "left out", "reason": str(cause)}
        except InputError as cause:
            found = {"state": "refused", "reason": sentence_of(cause)}
        except Exception as cause:
            found = {"state": "failed", "reason": f"{type(cause).__name__}: {sentence_of(cause)}"}
    estimate = described(task, key, {"seconds": time.perf_counter() - start, **found}, library_versions())
    if folder is not None:
        keep(folder, key, estimate)
    return estimate


def _numbers(task: Task, key: Key) -> dict[str, object]:
    labels = task.kinds[1] == "discrete"
    explains_labels = estimator_named(key.estimator).explains == "labels"
    if explains_labels and not labels:
        raise _LeftOutError(f'"{key.estimator}" needs labels, and the second variable of this task is continuous')
    x, y = task.draw(key.n, key.seed)
    as_labels = labels and (explains_labels or key.estimator == "auto")
    start = time.perf_counter()
    measurement = measure(
        x,
        None if as_labels else y,
        key.estimator,
        labels=y[:, 0].astype(np.int64) if as_labels else None,
        seed=key.seed,
    )
    low, high = measurement.interval
    has_interval = bool(np.isfinite(low) and np.isfinite(high))
    return {
        "state": "measured",
        "value": measurement.value,
        "low": low if has_interval else None,
        "high": high if has_interval else None,
        "verdict": measurement.verdict,
        "flags": tuple(check.name for check in measurement.checks if check.outcome in ("warn", "fail")),
        "chosen": measurement.estimator + (f"; {measurement.chosen}" if measurement.chosen else ""),
        "seconds": time.perf_counter() - start,
    }
