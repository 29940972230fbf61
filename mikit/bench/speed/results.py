"""The result of a speed benchmark, with the targets that it meets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, final

from mikit.bench.reports import content_of, json_text
from mikit.bench.speed.targets import BARS, Bar
from mikit.bench.speed.timing import Timing, fit_exponent
from mikit.core.errors import InputError

__all__ = ["Exponent", "Result", "SpeedReport", "State", "Verdict"]

State = Literal["measured", "missing", "left out", "failed"]
_SCHEMA = "mikit bench speed 1"
_ALLOWED_BYTES = 64 * 2**20


@final
@dataclass(frozen=True)
class Result:
    """One candidate of one case at one size.

    Args:
        sweeps: The letter of the size.
        compared_on: The quantity, if it is not the one of the case.
        covers: What is timed: value, or value and gradient.
        state: ``measured``, or why there are no values; ``reason`` explains it and ``install`` how to change it.
        samples: Every measured time in seconds.
        peak_bytes: Extra memory of one call; None if unknown.
        reference: The value in float64 at ``error_size``, where all errors are measured.
        roofline_seconds: The time of the formula's matrix products alone on this machine.
    """

    case: str
    variant: str
    sweeps: str
    size: int
    candidate: str
    compared_on: str
    covers: str
    state: State
    reason: str
    install: str
    input_bytes: int
    samples: tuple[float, ...]
    peak_bytes: int | None
    value: float | None
    reference: float | None
    value_error: float | None
    gradient_error: float | None
    error_size: int | None
    roofline_seconds: float | None

    @property
    def timing(self) -> Timing | None:
        """The times with their median and spread; None without times."""
        return Timing(self.samples) if self.samples else None


@final
@dataclass(frozen=True)
class Verdict:
    """A target with the measured figure, and whether it is met; both are None if unknown, and ``why`` says why."""

    bar: Bar
    figure: float | None
    met: bool | None
    why: str = ""


@final
@dataclass(frozen=True)
class Exponent:
    """The growth of a candidate's time: size to the power ``exponent``, fitted on ``sizes``."""

    case: str
    variant: str
    candidate: str
    sizes: tuple[int, ...]
    exponent: float


@final
@dataclass(frozen=True)
class SpeedReport:
    """The results for every case, size and candidate, and where they were measured.

    A ``quick`` run only shows that everything works. ``repeats`` is the requested number of rounds.
    """

    results: tuple[Result, ...]
    date: str
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    device: str
    quick: bool
    repeats: int
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def clock(self) -> str:
        """What the seconds measure."""
        if self.device == "cuda":
            return "seconds between CUDA events"
        return "processor seconds (time.process_time), one thread"

    def series(self) -> dict[tuple[str, str], list[Result]]:
        """Return the results by case and variant."""
        found: dict[tuple[str, str], list[Result]] = {}
        for result in self.results:
            found.setdefault((result.case, result.variant), []).append(result)
        return found

    def exponents(self) -> list[Exponent]:
        """Return the fitted exponents of candidates measured at two or more sizes."""
        found = []
        for (case, variant), own in self.series().items():
            for name in dict.fromkeys(result.candidate for result in own):
                points = [(r.size, r.timing.median) for r in own if r.candidate == name and r.timing is not None]
                sizes, seconds = [size for size, _ in points], [taken for _, taken in points]
                exponent = fit_exponent(sizes, seconds)
                if exponent is not None:
                    found.append(Exponent(case, variant, name, tuple(sizes), exponent))
        return found

    def verdicts(self, bars: Sequence[Bar] = BARS) -> list[Verdict]:
        """Compare the run with every target of its cases; targets are for one thread of a CPU."""
        if self.device != "cpu":
            return []
        ran = set(self.series())
        return [self._verdict(bar) for bar in bars if (bar.case, bar.variant) in ran]

    def _verdict(self, bar: Bar) -> Verdict:
        at = {r.candidate: r for r in self.series()[bar.case, bar.variant] if r.size == bar.size}
        if not at:
            return Verdict(bar, None, None, "this size was not run")
        mikit, peer = at["mikit"], at.get(bar.peer)
        for one in (mikit, peer):
            if one is not None and one.timing is None:
                return Verdict(bar, None, None, f"{one.candidate}: {one.reason}")
        figure, why = _figure(bar, mikit, peer)
        if figure is None:
            return Verdict(bar, None, None, why)
        return Verdict(bar, figure, figure >= bar.limit if bar.at_least else figure <= bar.limit)

    def to_json(self) -> str:
        """Return everything as JSON, with medians, exponents and verdicts; null where there is no number."""
        content = asdict(self)
        for entry, result in zip(content["results"], self.results, strict=True):
            timing = result.timing
            entry["seconds"] = None if timing is None else _spread(timing)
        content |= {
            "clock": self.clock,
            "exponents": [asdict(exponent) for exponent in self.exponents()],
            "bars": [{**asdict(v.bar), "figure": v.figure, "met": v.met, "why": v.why} for v in self.verdicts()],
        }
        return json_text(_SCHEMA, _without_nan(content))

    @classmethod
    def from_json(cls, text: str) -> SpeedReport:
        """Return the report that :meth:`to_json` described."""
        content = content_of(_SCHEMA, text)
        try:
            results = tuple(_result(entry) for entry in content["results"])
            settings = {f.name: content[f.name] for f in fields(cls) if f.name not in ("results", "notes")}
            return cls(results=results, notes=tuple(content["notes"]), **settings)
        except (ValueError, KeyError, TypeError) as cause:
            raise InputError(f"This is not a result of mikit bench speed ({cause!r}).") from cause


def _figure(bar: Bar, mikit: Result, peer: Result | None) -> tuple[float | None, str]:
    assert mikit.timing is not None
    if bar.kind == "time":
        assert peer is not None, "a target on the time must name a candidate of its case"
        assert peer.timing is not None
        if not peer.timing.median:
            return None, f"{bar.peer} took less time than the clock resolves"
        return mikit.timing.median / peer.timing.median, ""
    if bar.kind in ("memory", "whole memory"):
        if mikit.peak_bytes is None:
            return None, "this machine does not report the memory"
        if bar.kind == "whole memory":
            return (mikit.peak_bytes + mikit.input_bytes) / 2**30, ""
        return mikit.peak_bytes / (2 * mikit.input_bytes + _ALLOWED_BYTES), ""
    if bar.kind == "roofline":
        if mikit.roofline_seconds is None:
            return None, "the matrix product was not measured"
        if not mikit.timing.median:
            return None, "mikit took less time than the clock resolves"
        return mikit.roofline_seconds / mikit.timing.median, ""
    if mikit.gradient_error is None or mikit.error_size != bar.size:
        return None, f"there is no reference at this size, only at {mikit.error_size}"
    return mikit.gradient_error, ""


def _without_nan(content: Any) -> Any:
    """Return the content with None for every number that is not finite."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name: _without_nan(entry) for name, entry in content.items()}
    return [_without_nan(entry) for entry in content] if isinstance(content, list | tuple) else content


def _spread(timing: Timing) -> dict[str, float]:
    return {"median": timing.median, "min": timing.low, "max": timing.high}


def _result(entry: dict[str, Any]) -> Result:
    return Result(**{f.name: entry[f.name] for f in fields(Result)} | {"samples": tuple(entry["samples"])})
