"""What a run found, and what it says about the bars."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, final

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
        case: Name of the case.
        variant: Its variant.
        sweeps: The letter of the size.
        size: The size.
        candidate: Who.
        compared_on: The quantity, where it is not the one of the case.
        covers: What a sample of the time covers.
        state: ``measured``, or why there are no numbers.
        reason: What is missing, why it was left out, or what it raised.
        install: How to get what is missing.
        input_bytes: Size of the inputs.
        samples: Seconds, every one.
        peak_bytes: Extra memory of one call; None where it cannot be told.
        value: The value, at ``error_size``.
        reference: What float64 gives there.
        value_error: Relative error of the value; None where the reference is 0.
        gradient_error: Relative error of the gradient in the 2-norm.
        error_size: The size at which the errors were measured.
        roofline_seconds: What the matrix products of the formula alone would take on this machine.
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
        """The samples with their median and spread; None without samples."""
        return Timing(self.samples) if self.samples else None


@final
@dataclass(frozen=True)
class Verdict:
    """A bar and what the run says of it.

    Args:
        bar: The bar.
        figure: The ratio, share or error measured; None where the run does not tell.
        met: Whether the bar is met; None where the run does not tell.
        why: Why it does not tell.
    """

    bar: Bar
    figure: float | None
    met: bool | None
    why: str = ""


@final
@dataclass(frozen=True)
class Exponent:
    """How the time of a candidate grows: as size to this power.

    Args:
        case: Name of the case.
        variant: Its variant.
        candidate: Who.
        sizes: The sizes that the fit rests on.
        exponent: The power.
    """

    case: str
    variant: str
    candidate: str
    sizes: tuple[int, ...]
    exponent: float


@final
@dataclass(frozen=True)
class SpeedReport:
    """All that a run found.

    Args:
        results: One for each case, size and candidate.
        date: When, in UTC.
        machine: Where.
        versions: Of what.
        device: ``"cpu"`` or ``"cuda"``.
        quick: Whether it was a quick run, whose figures only show that everything works.
        repeats: Rounds asked for.
        seed: Seed of the samples.
        notes: What else the reader must know.
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
        """What the seconds are."""
        if self.device == "cuda":
            return "seconds between CUDA events"
        return "processor seconds (time.process_time), one thread"

    def series(self) -> dict[tuple[str, str], list[Result]]:
        """The results by case and variant."""
        found: dict[tuple[str, str], list[Result]] = {}
        for result in self.results:
            found.setdefault((result.case, result.variant), []).append(result)
        return found

    def exponents(self) -> list[Exponent]:
        """The fitted exponents, of candidates measured at two sizes or more."""
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
        """What the run says of every bar of the cases it measured; the bars are for one thread of a processor."""
        if self.device != "cpu":
            return []
        ran = set(self.series())
        return [self._verdict(bar) for bar in bars if (bar.case, bar.variant) in ran]

    def _verdict(self, bar: Bar) -> Verdict:
        at = {r.candidate: r for r in self.series()[bar.case, bar.variant] if r.size == bar.size}
        if not at:
            return Verdict(bar, None, None, "this size was not run")
        own, peer = at["mikit"], at.get(bar.peer)
        for one in (own, peer):
            if one is not None and one.timing is None:
                return Verdict(bar, None, None, f"{one.candidate}: {one.reason}")
        figure, why = _figure(bar, own, peer)
        if figure is None:
            return Verdict(bar, None, None, why)
        return Verdict(bar, figure, figure >= bar.limit if bar.at_least else figure <= bar.limit)

    def to_json(self) -> str:
        """Everything as JSON, with the medians, exponents and verdicts that follow; null where there is no number."""
        content = asdict(self)
        for entry, result in zip(content["results"], self.results, strict=True):
            timing = result.timing
            entry["seconds"] = None if timing is None else _spread(timing)
        content |= {
            "schema": _SCHEMA,
            "clock": self.clock,
            "exponents": [asdict(exponent) for exponent in self.exponents()],
            "bars": [{**asdict(v.bar), "figure": v.figure, "met": v.met, "why": v.why} for v in self.verdicts()],
        }
        return json.dumps(_without_nan(content), indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> SpeedReport:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: If it is something else.
        """
        try:
            content = json.loads(text)
            if content["schema"] != _SCHEMA:
                raise KeyError(content["schema"])
            results = tuple(_result(entry) for entry in content["results"])
            settings = {f.name: content[f.name] for f in fields(cls) if f.name not in ("results", "notes")}
            return cls(results=results, notes=tuple(content["notes"]), **settings)
        except (ValueError, KeyError, TypeError) as cause:
            raise InputError(f"This is no result of mikit bench speed ({cause!r}).") from cause


def _figure(bar: Bar, own: Result, peer: Result | None) -> tuple[float | None, str]:
    assert own.timing is not None
    if bar.kind == "time":
        assert peer is not None, "a bar on the time must name a candidate of its case"
        assert peer.timing is not None
        if not peer.timing.median:
            return None, f"{bar.peer} took less time than the clock tells"
        return own.timing.median / peer.timing.median, ""
    if bar.kind in ("memory", "whole memory"):
        if own.peak_bytes is None:
            return None, "this machine does not tell the memory"
        if bar.kind == "whole memory":
            return (own.peak_bytes + own.input_bytes) / 2**30, ""
        return own.peak_bytes / (2 * own.input_bytes + _ALLOWED_BYTES), ""
    if bar.kind == "roofline":
        if own.roofline_seconds is None:
            return None, "the matrix product was not measured"
        if not own.timing.median:
            return None, "mikit took less time than the clock tells"
        return own.roofline_seconds / own.timing.median, ""
    if own.gradient_error is None or own.error_size != bar.size:
        return None, f"there is no reference at this size, only at {own.error_size}"
    return own.gradient_error, ""


def _without_nan(content: Any) -> Any:
    """The same with None for every number that JSON has no word for."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name: _without_nan(entry) for name, entry in content.items()}
    return [_without_nan(entry) for entry in content] if isinstance(content, list | tuple) else content


def _spread(timing: Timing) -> dict[str, float]:
    return {"median": timing.median, "min": timing.low, "max": timing.high}


def _result(entry: dict[str, Any]) -> Result:
    return Result(**{f.name: entry[f.name] for f in fields(Result)} | {"samples": tuple(entry["samples"])})
