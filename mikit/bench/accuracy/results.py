"""What a run on laws of known information found: every estimate, and what follows from them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, final

from mikit.core.errors import InputError
from mikit.core.measurement import plain

__all__ = ["AccuracyReport", "Confusion", "Estimate", "State", "Summary", "TaskError"]

State = Literal["measured", "refused", "left out", "failed"]
_SCHEMA = "mikit bench accuracy 1"
_SOUND, _OFF = (0.05, 0.10), (0.10, 0.20)
_CLOSE = 0.1


@final
@dataclass(frozen=True)
class Estimate:
    """One estimator on one sample of one law.

    Args:
        suite: The suite of the law.
        law: Its name.
        half: Whether recipes may be developed on the law (``develop``) or not (``report``).
        d_x: Columns of the first variable.
        d_y: Columns of the second.
        truth: The information in nats.
        truth_error: Standard error of the truth; 0 where it is exact.
        fault: What must be flagged, where the law is a trap.
        right_suffices: Whether a right estimate on the trap needs no flag.
        n: Rows.
        seed: Seed of the sample and of the estimate.
        estimator: Name in the registry.
        state: ``measured``, or why there is no number.
        reason: Why it was refused or left out, or what it raised.
        value: The estimate.
        low: Lower end of its 95 % interval; None where there is none.
        high: Upper end.
        verdict: The verdict; empty without a number.
        flags: Names of the checks that warned or failed.
        chosen: What ``auto`` chose; for others the estimator in words.
        seconds: Wall time of the whole measurement, checks included.
        versions: Of what decides the number.
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
        """Estimate minus truth; None without a number."""
        return None if self.value is None else self.value - self.truth

    @property
    def is_trap(self) -> bool:
        """Whether it must be flagged whatever its value."""
        return bool(self.fault)

    @property
    def flagged(self) -> bool:
        """Whether the verdict is anything but trustworthy, or the measurement was refused; peers give no verdict."""
        return self.state == "refused" or self.verdict not in ("", "trustworthy")

    @property
    def escaped(self) -> bool:
        """Whether it is on a trap and went by without the flag that it needs."""
        return self.is_trap and not self.flagged and not (self.right_suffices and self.sound)

    @property
    def off(self) -> bool:
        """Whether it is wrong by more than 0.1 nat and by more than 20 %, or a number where the truth is infinite."""
        return self.error is not None and abs(self.error) > _reach(self.truth, _OFF)

    @property
    def sound(self) -> bool:
        """Whether it is right to 0.05 nat or to 10 %."""
        return self.error is not None and abs(self.error) <= _reach(self.truth, _SOUND)

    @property
    def covered(self) -> bool | None:
        """Whether the interval holds the truth; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.truth <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers."""
        content: dict[str, Any] = plain({"schema": _SCHEMA, **asdict(self)})
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Estimate:
        """Return the estimate that :meth:`to_dict` described.

        Raises:
            InputError: If it is something else.
        """
        try:
            if content["schema"] != _SCHEMA:
                raise KeyError(content["schema"])
            given = {field.name: content[field.name] for field in fields(cls)}
            for name in ("truth", "truth_error", "seconds", "value", "low", "high"):
                given[name] = None if given[name] is None else float(given[name])
            return cls(**given | {"flags": tuple(given["flags"])})
        except (KeyError, TypeError, ValueError) as cause:
            raise InputError(f"This is no estimate of mikit bench accuracy ({cause!r}).") from cause


def _reach(truth: float, limits: tuple[float, float]) -> float:
    absolute, share = limits
    return absolute if math.isinf(truth) else max(absolute, share * abs(truth))


@final
@dataclass(frozen=True)
class TaskError:
    """One estimator on one law at one size, over the seeds.

    Args:
        suite: The suite.
        law: The law.
        n: Rows.
        estimator: Who.
        truth: The information in nats.
        mean_error: Mean of estimate minus truth; None where nothing was measured.
        mean_absolute_error: Mean of its size.
        seeds: Estimates measured.
        flagged: How many of them were flagged.
        seconds: Median wall time.
        reason: Why nothing was measured.
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
    """How the verdict tells good estimates from bad ones.

    Args:
        off: Estimates wrong by more than 0.1 nat and 20 %.
        off_flagged: How many of them were flagged.
        sound: Estimates right to 0.05 nat or 10 %.
        sound_flagged: How many of them were flagged.
        between: Estimates that are neither.
        between_flagged: How many of them were flagged.
        traps: Estimates on traps, refusals among them.
        traps_caught: How many of them were flagged, or are right where that is enough.
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
        suite: The suite.
        n: Rows.
        estimator: Who.
        laws: Laws measured, traps and infinite truths apart.
        estimates: Estimates on them.
        missing: Estimates that failed, were refused or were left out.
        mean_absolute_error: Mean over the laws of the mean over the seeds of ``|estimate - truth|``; None without any.
        mean_error: The same with the sign.
        largest: The largest ``|error|`` of one estimate.
        largest_law: Where.
        close: Share of the estimates within 0.1 nat.
        close_laws: Laws of which every estimate is within 0.1 nat.
        coverage: Share of the intervals that hold the truth, and of how many.
        trusted_coverage: The same for the trustworthy ones.
        confusion: How the verdict did; traps included.
        median_seconds: Median wall time.
        most_seconds: The longest.
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
    """All that a run found.

    Args:
        estimates: Every one.
        date: When, in UTC.
        machine: Where.
    """

    estimates: tuple[Estimate, ...]
    date: str
    machine: Mapping[str, str | int]

    def tasks(self) -> list[TaskError]:
        """The errors by law, size and estimator, over the seeds."""
        return [_task(own) for own in _grouped(self.estimates, lambda e: (e.suite, e.law, e.n, e.estimator))]

    def summaries(self) -> list[Summary]:
        """The figures by suite, size and estimator."""
        return [_summary(own) for own in _grouped(self.estimates, lambda e: (e.suite, e.n, e.estimator))]

    def confusions(self) -> dict[str, Confusion]:
        """How the verdict did, by estimator, over everything; peers give none."""
        by_estimator = _grouped(self.estimates, lambda e: (e.estimator,))
        return {own[0].estimator: _confusion(own) for own in by_estimator if any(e.verdict or e.flagged for e in own)}

    def to_json(self) -> str:
        """Everything as JSON, with the tables that follow from it."""
        content = {
            "schema": _SCHEMA,
            "date": self.date,
            "machine": dict(self.machine),
            "estimates": [estimate.to_dict() for estimate in self.estimates],
            "summaries": [asdict(summary) for summary in self.summaries()],
            "tasks": [asdict(task) for task in self.tasks()],
            "verdicts": {name: asdict(confusion) for name, confusion in self.confusions().items()},
        }
        return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> AccuracyReport:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: If it is something else.
        """
        try:
            content = json.loads(text)
            if content["schema"] != _SCHEMA:
                raise KeyError(content["schema"])
            estimates = tuple(Estimate.from_dict(entry) for entry in content["estimates"])
            return cls(estimates, content["date"], content["machine"])
        except (ValueError, KeyError, TypeError) as cause:
            raise InputError(f"This is no result of mikit bench accuracy ({cause!r}).") from cause


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
    by_law = [_errors(group) for group in _grouped(scored, lambda e: (e.law,))]
    worst = max(scored, key=lambda e: abs(e.error or 0.0), default=None)
    return Summary(
        suite=first.suite,
        n=first.n,
        estimator=first.estimator,
        laws=len(by_law),
        estimates=len(scored),
        missing=len(own) - len(measured),
        mean_absolute_error=statistics.fmean(statistics.fmean(map(abs, e)) for e in by_law) if by_law else None,
        mean_error=statistics.fmean(statistics.fmean(e) for e in by_law) if by_law else None,
        largest=None if worst is None else abs(worst.error or 0.0),
        largest_law="" if worst is None else worst.law,
        close=statistics.fmean(abs(e) <= _CLOSE for e in _errors(scored)) if scored else None,
        close_laws=sum(all(abs(e) <= _CLOSE for e in errors) for errors in by_law),
        coverage=_coverage(scored),
        trusted_coverage=_coverage([e for e in scored if not e.flagged]),
        confusion=_confusion(own),
        median_seconds=statistics.median(e.seconds for e in measured) if measured else None,
        most_seconds=max((e.seconds for e in measured), default=None),
    )


def _coverage(estimates: Sequence[Estimate]) -> tuple[float, int] | None:
    told = [e.covered for e in estimates if e.covered is not None]
    return (statistics.fmean(told), len(told)) if told else None


def _confusion(own: Sequence[Estimate]) -> Confusion:
    measured = [e for e in own if e.state == "measured"]
    traps = [e for e in own if e.is_trap and e.state in ("measured", "refused")]  # A refusal is the clearest flag.
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
