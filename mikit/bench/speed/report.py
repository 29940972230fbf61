"""The tables of a speed report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mikit.bench.reports import Block, Bullets, Table, Text, markdown, screen
from mikit.bench.speed.results import Result, SpeedReport, Verdict

__all__ = ["seconds_text", "speed_markdown", "speed_screen"]

_HEADER = ("candidate", "seconds", "min to max", "ratio", "extra memory", "value error", "gradient error")
_TARGET_HEADER = ("target", "measured", "required", "met")
_GROWTH = "time grows as size to the power"


def speed_screen(report: SpeedReport) -> str:
    """Return the report as text: a table for every case and size, then exponents, notes and targets."""
    growth = [
        (f"{e.case}, {e.variant}", e.candidate, f"{e.exponent:.2f}", f"{e.sizes[0]} to {e.sizes[-1]}")
        for e in report.exponents()
    ]
    blocks: list[Block] = []
    for block in _blocks(report):
        first = block[0]
        title = f"{first.case}, {first.variant}, {first.sweeps} = {first.size:,}: {first.covers}"
        blocks.append(Table(_HEADER, _rows(block), title))
    blocks.append(Table((_GROWTH, "candidate", "power", "fitted on"), growth))
    blocks.append(Text([*_missing(report), *_legend(report)]))
    blocks.append(Table(_TARGET_HEADER, [_target(verdict) for verdict in report.verdicts()]))
    return screen(blocks)


def speed_markdown(report: SpeedReport) -> str:
    """Return the report as Markdown: values, exponents, targets and notes."""
    rows = [
        (f"`{block[0].case}` {block[0].variant}", f"{block[0].sweeps} = {block[0].size:,}", *row)
        for block in _blocks(report)
        for row in _rows(block)
    ]
    growth = [(f"`{e.case}` {e.variant}", e.candidate, f"{e.exponent:.2f}") for e in report.exponents()]
    return markdown(
        [
            Table(("case", "size", *_HEADER), rows),
            Table(("case", "candidate", _GROWTH), growth),
            Table(_TARGET_HEADER, [_target(verdict) for verdict in report.verdicts()]),
            Bullets(_missing(report)),
            Text(_legend(report)),
        ]
    )


def _blocks(report: SpeedReport) -> Iterator[list[Result]]:
    """Yield the results of every case and size."""
    for series in report.series().values():
        for size in dict.fromkeys(result.size for result in series):
            yield [result for result in series if result.size == size]


def _rows(block: Sequence[Result]) -> list[tuple[str, ...]]:
    base = next((r.timing for r in block if r.candidate == "mikit"), None)
    rows: list[tuple[str, ...]] = []
    for result in block:
        timing = result.timing
        if timing is None:
            rows.append((result.candidate, f"{result.state}: {result.reason}"))
            continue
        name = f"{result.candidate} ({result.compared_on})" if result.compared_on else result.candidate
        at = "" if result.error_size in (None, result.size) else f" (at {result.error_size:,})"
        rows.append(
            (
                name,
                seconds_text(timing.median),
                f"{seconds_text(timing.low)} to {seconds_text(timing.high)}",
                "" if base is None or not base.median else f"{timing.median / base.median:.2f}",
                "not available" if result.peak_bytes is None else f"{result.peak_bytes / 2**20:.0f} MiB",
                "" if result.value_error is None else f"{result.value_error:.0e}{at}",
                "" if result.gradient_error is None else f"{result.gradient_error:.0e}{at}",
            )
        )
    return rows


def seconds_text(seconds: float) -> str:
    """Return seconds with three significant digits.

    Example:
        >>> seconds_text(0.01234), seconds_text(1.234), seconds_text(123.4)
        ('0.0123', '1.23', '123')
    """
    if seconds >= 100:
        return f"{seconds:.0f}"
    return f"{seconds:#.3g}"


def _missing(report: SpeedReport) -> list[str]:
    """Return how to get each missing candidate."""
    missing = [f"{r.candidate} is missing: {r.reason}; {r.install}." for r in report.results if r.state == "missing"]
    return list(dict.fromkeys(missing))


def _target(verdict: Verdict) -> tuple[str, ...]:
    bar = verdict.bar
    what = {
        "time": f"time / {bar.peer}",
        "memory": "extra memory / (2 inputs + 64 MiB)",
        "whole memory": "inputs and extra memory in GiB",
        "gradient error": "gradient error",
        "roofline": "fraction of the matrix products' speed",
    }[bar.kind]
    limit = f"{'at least' if bar.at_least else 'at most'} {_number(bar.limit)}"
    met = {True: "yes", False: "NO", None: f"unknown: {verdict.why}"}[verdict.met]
    measured = "" if verdict.figure is None else _number(verdict.figure)
    return (f"{bar.case}, {bar.variant}, {bar.size}: {what}", measured, limit, met)


def _number(number: float) -> str:
    return f"{number:.2f}" if number >= 0.01 else f"{number:.1e}"


def _legend(report: SpeedReport) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    machine = ", ".join(
        str(value) if name != "cores" else f"{value} cores" for name, value in report.machine.items() if value
    )
    lines = [
        f"Seconds: {report.clock}; median of up to {report.repeats} rounds in which the candidates take turns. "
        "Ratio: seconds divided by those of mikit. Extra memory: peak of one call above its start, including gradients "
        "and excluding inputs; below 5 MiB it is noise. Errors: relative to the formula in float64 (gradient in the "
        "2-norm), at the size in parentheses if it differs.",
        f"{report.date}, {machine}, seed {report.seed}; {versions}.",
    ]
    if report.quick:
        lines.append("This is a quick run at small sizes, which only shows that everything works.")
    return [*lines, *report.notes]
