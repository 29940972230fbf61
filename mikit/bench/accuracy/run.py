"""The run on laws of known information: every law, size, seed and estimator, each written down once it is known."""

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
from mikit.bench.distributions.suites import law_named, laws_of
from mikit.bench.distributions.task import Law
from mikit.bench.machine import describe_machine
from mikit.bench.progress import Progress
from mikit.core.errors import InputError
from mikit.core.provenance import library_versions, one_thread
from mikit.estimators import estimator_named
from mikit.measuring.pipeline import measure

__all__ = ["Plan", "choose_laws", "measure_accuracy", "read_seeds"]

_FEWEST_ROWS = 20


@final
@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        laws: The laws.
        estimators: Names in the registry.
        sizes: Rows.
        seeds: Seeds of samples and estimates.
        folder: Where every estimate is kept as soon as it is known; None keeps nothing. A run that finds estimates
            there does not repeat them.
        jobs: Processes, each on one thread.
        fresh: Measure anew what is already in the folder.

    Raises:
        InputError: If there is nothing to run, or no estimator of some name.
    """

    laws: tuple[Law, ...]
    estimators: tuple[str, ...] = ("auto",)
    sizes: tuple[int, ...] = (10_000,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    folder: Path | None = None
    jobs: int = 1
    fresh: bool = False

    def __post_init__(self) -> None:
        if not (self.laws and self.estimators and self.sizes and self.seeds):
            raise InputError("There is nothing to run: laws, estimators, sizes and seeds must each name at least one.")
        for name in self.estimators:
            if estimator_named(name).unit != "nats":
                raise InputError(f'"{name}" does not measure nats, so it has no error to tell.')
        for size in self.sizes:
            if size < _FEWEST_ROWS:
                raise InputError(f"{size} rows are too few to measure anything; ask for at least {_FEWEST_ROWS}.")
        if min(self.seeds) < 0:
            raise InputError(f"A seed is {min(self.seeds)}; seeds begin at 0.")
        if self.jobs < 1:
            raise InputError(f"jobs is {self.jobs}; at least 1 is needed.")

    @property
    def keys(self) -> list[Key]:
        """Everything to run, seed by seed, so that a run that is stopped has whole seeds."""
        return [
            Key(law.suite, law.name, n, seed, name)
            for seed in dict.fromkeys(self.seeds)
            for n in dict.fromkeys(self.sizes)
            for law in self.laws
            for name in dict.fromkeys(self.estimators)
        ]


class _LeftOutError(Exception):
    """The estimator is not for this law."""


def choose_laws(suites: Sequence[str], tasks: Sequence[str] = (), half: str | None = None) -> tuple[Law, ...]:
    """Return the laws of these suites.

    Args:
        suites: Names of suites; ``beyond`` stands for several.
        tasks: Only laws whose name holds one of these texts; all where there are none.
        half: ``develop`` or ``report`` for that half only.

    Raises:
        InputError: If a name is unknown, or no law is left.

    Example:
        >>> [law.name for law in choose_laws(["bmi"], ["additive"])]
        ['1v1-additive-0.1', '1v1-additive-0.75']
    """
    if half not in (None, "develop", "report"):
        raise InputError(f'There is no half "{half}"; it must be develop or report.')
    found = tuple(dict.fromkeys(law for suite in suites for law in laws_of(suite)))
    for text in tasks:
        if not any(text in law.name for law in found):
            raise InputError(f'No law of {", ".join(suites)} has "{text}" in its name.')
    chosen = [law for law in found if not tasks or any(text in law.name for text in tasks)]
    return tuple(law for law in chosen if half in (None, law.half))


def read_seeds(text: str) -> tuple[int, ...]:
    """Read seeds: numbers and ranges with commas between them.

    Raises:
        InputError: If a part is neither.

    Example:
        >>> read_seeds("0-2,7")
        (0, 1, 2, 7)
    """
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise InputError(f'--seeds "{text}" must be numbers or rising ranges with commas between, such as 0-4.')
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return tuple(found)


def measure_accuracy(plan: Plan, progress: Progress | None = None) -> AccuracyReport:
    """Run every estimator on every sample, keep what is known, and return all of it.

    Args:
        plan: What to run.
        progress: Told of every estimate.

    Returns:
        The estimates in the order of the plan. One that raised is there with what it raised.

    Raises:
        InputError: If the folder holds something else, or estimates of other versions.

    Cost:
        One measurement with its checks for each; see the instruments. The samples are drawn anew for every estimator.

    Pitfalls:
        With several jobs the seconds are those of processes that share the memory of one machine.
    """
    known = {} if plan.folder is None else read_estimates(plan.folder, () if plan.fresh else plan.keys)
    left = [key for key in plan.keys if key not in known]
    if progress is not None:
        progress.begin(f"Measuring, {len(known)} of {len(plan.keys)} known", len(left))
    for key, found in _run(left, plan):
        known[key] = found
        if progress is not None:
            progress.advance()
    return AccuracyReport(
        estimates=tuple(known[key] for key in plan.keys),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine("cpu"),
    )


def _run(keys: Sequence[Key], plan: Plan) -> Iterator[tuple[Key, Estimate]]:
    if plan.jobs == 1:
        for key in keys:
            yield key, _measured(key, plan.folder)
        return
    parallel = joblib.Parallel(n_jobs=plan.jobs, return_as="generator_unordered")
    for found in parallel(joblib.delayed(_measured)(key, plan.folder) for key in keys):
        yield Key(found.suite, found.law, found.n, found.seed, found.estimator), found


def _measured(key: Key, folder: Path | None) -> Estimate:
    """Draw, measure, and write the estimate down."""
    law = law_named(key.suite, key.law)
    start = time.perf_counter()
    found: dict[str, object]
    with one_thread():
        try:
            found = _numbers(law, key)
        except _LeftOutError as cause:
            found = {"state": "left out", "reason": str(cause)}
        except InputError as cause:
            found = {"state": "refused", "reason": sentence_of(cause)}
        except Exception as cause:
            found = {"state": "failed", "reason": f"{type(cause).__name__}: {sentence_of(cause)}"}
    estimate = described(law, key, {"seconds": time.perf_counter() - start, **found}, library_versions())
    if folder is not None:
        keep(folder, key, estimate)
    return estimate


def _numbers(law: Law, key: Key) -> dict[str, object]:
    labels = law.kinds[1] == "discrete"
    explains_labels = estimator_named(key.estimator).explains == "labels"
    if explains_labels and not labels:
        raise _LeftOutError(f'"{key.estimator}" explains labels, and the second variable of this law is none')
    x, y = law.draw(key.n, key.seed)
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
