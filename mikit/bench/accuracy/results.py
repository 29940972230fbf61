"""The result of an accuracy benchmark: every estimate, with summaries over seeds, tasks and suites."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, final

from mikit.bench.reports import content_of, json_text
from mikit.core.errors import InputError
from mikit.core.measurement import plain

__all__ = ["AccuracyReport", "Confusion", "Estimate", "State", "Summary", "TaskError"]

State = Literal["measured", "refused", "left out", "failed"]
_SCHEMA = "mikit bench accuracy 1"
# Errors in nats, and as fractions of the truth: the larger of the two counts. "Close" is in nats only.
_SOUND, _OFF = (0.05, 0.10), (0.10, 0.20)
_CLOSE = 0.1


@final
@dataclass(frozen=True)
class Estimate:
    """One estimator on one sample of one task.

    Args:
        law: Name of the task (the key in the JSON format).
        half: Whether the task is for development (``develop``) or only for reports (``report``).
        truth: The mutual information in nats, with standard error ``truth_error`` (0 if exact).
        fault: What must be flagged if the task is a trap; ``right_suffices`` if a correct estimate needs no flag.
        state: ``measured``, or why there is no value; ``reason`` explains it.
        chosen: What ``auto`` chose; for other estimators their description.
        seconds: Wall time of the whole measurement with its checks.
    """

    suite: str
    law: str
    half: str
    d_x: int
    d_y: int
    truth: float
    truth_error: float
    fault: str
    right_suffices: bool
    n: int
    seed: int
    estimator: str
    state: State
    reason: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str
    flags: tuple[str, ...]
    chosen: str
    seconds: float
    versions: Mapping[str, str]

    @property
    def error(self) -> float | None:
        """Estimate minus truth; None without a value."""
        return None if self.value is None else self.value - self.truth

    @property
    def is_trap(self) -> bool:
        """Whether the task is a trap, so that its estimates must be flagged."""
        return bool(self.fault)

    @property
    def flagged(self) -> bool:
        """Whether the verdict is not trustworthy, or the measurement was refused; peers report no verdict."""
        return self.state == "refused" or self.verdict not in ("", "trustworthy")

    @property
    def escaped(self) -> bool:
        """Whether this is an estimate on a trap that should have been flagged and was not."""
        return self.is_trap and not self.flagged and not (self.right_suffices and self.sound)

    @property
    def off(self) -> bool:
        """Whether the error exceeds 0.1 nat and 20 %, or the truth is infinite."""
        return self.error is not None and abs(self.error) > _reach(self.truth, _OFF)

    @property
    def sound(self) -> bool:
        """Whether the error is within 0.05 nat or 10 %."""
        return self.error is not None and abs(self.error) <= _reach(self.truth, _SOUND)

    @property
    def covered(self) -> bool | None:
        """Whether the interval contains the truth; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.truth <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers."""
        content: dict[str, Any] = plain({"schema": _SCHEMA, **asdict(self)})
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Estimate:
        """Return the estimate that :meth:`to_dict` described."""
        try:
            if content["schema"] != _SCHEMA:
                raise KeyError(content["schema"])
            given = {field.name: content[field.name] for field in fields(cls)}
            for name in ("truth", "truth_error", "seconds", "value", "low", "high"):
                given[name] = None if given[name] is None else float(given[name])
            return cls(**given | {"flags": tuple(given["flags"])})
        except (KeyError, TypeError, ValueError) as cause:
            raise InputError(f"This is not an estimate of mikit bench accuracy ({cause!r}).") from cause


def _reach(truth: float, limits: tuple[float, float]) -> float:
    absolute, share = limits
    return absolute if math.isinf(truth) else max(absolute, share * abs(truth))


@final
@dataclass(frozen=True)
class TaskError:
    """One estimator on one task at one size, over the seeds.

    ``law`` is the name of the task, ``seeds`` and ``flagged`` are numbers of estimates, and ``seconds`` is the median
    wall time. Errors are estimate minus truth, None if nothing was measured; ``reason`` says why.
    """

    suite: str
    law: str
    n: int
    estimator: str
    truth: float
    mean_error: float | None
    mean_absolute_error: float | None
    seeds: int
    flagged: int
    seconds: float | None
    reason: str


@final
@dataclass(frozen=True)
class Confusion:
    """How well the verdict separates good and bad estimates.

    Counts of estimates that are off, sound (see :class:`Estimate`) or between, with the flagged ones of each; and of
    estimates on traps, including refusals, with those that were flagged or are correct where that is sufficient.
    """

    off: int
    off_flagged: int
    sound: int
    sound_flagged: int
    between: int
    between_flagged: int
    traps: int
    traps_caught: int


@final
@dataclass(frozen=True)
class Summary:
    """One estimator on one suite at one size.

    Args:
        laws: Number of tasks measured, without traps and infinite truths; ``estimates`` counts the estimates on them.
        missing: Number of estimates that failed, were refused or were left out.
        mean_absolute_error: Mean over the tasks of the mean over the seeds of ``|estimate - truth|``.
        largest: The largest ``|error|`` of one estimate, on the task ``largest_law``.
        close: Fraction of the estimates within 0.1 nat; ``close_laws`` counts the tasks with only such estimates.
        coverage: Fraction of the intervals that contain the truth, and their number; ``trusted_coverage`` for
            trustworthy estimates only.
    """

    suite: str
    n: int
    estimator: str
    laws: int
    estimates: int
    missing: int
    mean_absolute_error: float | None
    mean_error: float | None
    largest: float | None
    largest_law: str
    close: float | None
    close_laws: int
    coverage: tuple[float, int] | None
    trusted_coverage: tuple[float, int] | None
    confusion: Confusion
    median_seconds: float | None
    most_seconds: float | None


@final
@dataclass(frozen=True)
class AccuracyReport:
    """All estimates of a run, with its date in UTC and the machine."""

    estimates: tuple[Estimate, ...]
    date: str
    machine: Mapping[str, str | int]

    def tasks(self) -> list[TaskError]:
        """Return the errors by task, size and estimator, over the seeds."""
        return [_task(own) for own in _grouped(self.estimates, lambda e: (e.suite, e.law, e.n, e.estimator))]

    def summaries(self) -> list[Summary]:
        """Return the summaries by suite, size and estimator."""
        return [_summary(own) for own in _grouped(self.estimates, lambda e: (e.suite, e.n, e.estimator))]

    def confusions(self) -> dict[str, Confusion]:
        """Return the quality of the verdict by estimator; peers report no verdict."""
        by_estimator = _grouped(self.estimates, lambda e: (e.estimator,))
        judged = [group for group in by_estimator if any(e.verdict or e.flagged for e in group)]
        return {group[0].estimator: _confusion(group) for group in judged}

    def to_json(self) -> str:
        """Return everything as JSON, with the summaries."""
        content = {
            "date": self.date,
            "machine": dict(self.machine),
            "estimates": [estimate.to_dict() for estimate in self.estimates],
            "summaries": [asdict(summary) for summary in self.summaries()],
            "tasks": [asdict(task) for task in self.tasks()],
            "verdicts": {name: asdict(confusion) for name, confusion in self.confusions().items()},
        }
        return json_text(_SCHEMA, content)

    @classmethod
    def from_json(cls, text: str) -> AccuracyReport:
        """Return the report that :meth:`to_json` described."""
        content = content_of(_SCHEMA, text)
        try:
            estimates = tuple(Estimate.from_dict(entry) for entry in content["estimates"])
            return cls(estimates, content["date"], content["machine"])
        except (ValueError, KeyError, TypeError) as cause:
            raise InputError(f"This is not a result of mikit bench accuracy ({cause!r}).") from cause


def _grouped(estimates: Iterable[Estimate], key: Callable[[Estimate], tuple[Any, ...]]) -> list[list[Estimate]]:
    found: dict[tuple[Any, ...], list[Estimate]] = {}
    for estimate in estimates:
        found.setdefault(key(estimate), []).append(estimate)
    return list(found.values())


def _errors(estimates: Sequence[Estimate]) -> list[float]:
    return [e.error for e in estimates if e.error is not None]


def _task(own: Sequence[Estimate]) -> TaskError:
    first, errors = own[0], _errors(own)
    measured = [e for e in own if e.state == "measured"]
    return TaskError(
        suite=first.suite,
        law=first.law,
        n=first.n,
        estimator=first.estimator,
        truth=first.truth,
        mean_error=statistics.fmean(errors) if errors else None,
        mean_absolute_error=statistics.fmean(map(abs, errors)) if errors else None,
        seeds=len(measured),
        flagged=sum(e.flagged for e in measured),
        seconds=statistics.median(e.seconds for e in measured) if measured else None,
        reason=next((f"{e.state}: {e.reason}" for e in own if e.state != "measured"), ""),
    )


def _summary(own: Sequence[Estimate]) -> Summary:
    first = own[0]
    measured = [e for e in own if e.state == "measured"]
    scored = [e for e in measured if not e.is_trap and math.isfinite(e.truth)]
    # Averaged by task first: every task counts once, however many of its estimates failed.
    by_task = [_errors(group) for group in _grouped(scored, lambda e: (e.law,))]
    worst = max(scored, key=lambda e: abs(e.error or 0.0), default=None)
    return Summary(
        suite=first.suite,
        n=first.n,
        estimator=first.estimator,
        laws=len(by_task),
        estimates=len(scored),
        missing=len(own) - len(measured),
        mean_absolute_error=statistics.fmean(statistics.fmean(map(abs, e)) for e in by_task) if by_task else None,
        mean_error=statistics.fmean(statistics.fmean(e) for e in by_task) if by_task else None,
        largest=None if worst is None else abs(worst.error or 0.0),
        largest_law="" if worst is None else worst.law,
        close=statistics.fmean(abs(e) <= _CLOSE for e in _errors(scored)) if scored else None,
        close_laws=sum(all(abs(e) <= _CLOSE for e in errors) for errors in by_task),
        coverage=_coverage(scored),
        trusted_coverage=_coverage([e for e in scored if not e.flagged]),
        confusion=_confusion(own),
        median_seconds=statistics.median(e.seconds for e in measured) if measured else None,
        most_seconds=max((e.seconds for e in measured), default=None),
    )


def _coverage(estimates: Sequence[Estimate]) -> tuple[float, int] | None:
    covered = [e.covered for e in estimates if e.covered is not None]
    return (statistics.fmean(covered), len(covered)) if covered else None


def _confusion(own: Sequence[Estimate]) -> Confusion:
    measured = [e for e in own if e.state == "measured"]
    traps = [e for e in own if e.is_trap and e.state in ("measured", "refused")]  # a refusal counts as a flag
    others = [e for e in measured if not e.is_trap]
    off, sound = [e for e in others if e.off], [e for e in others if e.sound]
    between = [e for e in others if not e.off and not e.sound]
    return Confusion(
        off=len(off),
        off_flagged=sum(e.flagged for e in off),
        sound=len(sound),
        sound_flagged=sum(e.flagged for e in sound),
        between=len(between),
        between_flagged=sum(e.flagged for e in between),
        traps=len(traps),
        traps_caught=sum(not e.escaped for e in traps),
    )
