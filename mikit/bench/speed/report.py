"""The report in words: aligned text for the screen, Markdown for a page."""

from __future__ import annotations

from collections.abc import Sequence

from mikit.bench.speed.results import Result, SpeedReport, Verdict

__all__ = ["markdown", "screen"]

_HEADER = ("candidate", "seconds", "min to max", "ratio", "extra memory", "value error", "gradient error")
_BAR_HEADER = ("bar", "measured", "asked", "met")


def screen(report: SpeedReport) -> str:
    """Return the report as text with aligned columns, one block for each case and size, the bars at its end.

    Args:
        report: What was measured.
    """
    lines: list[str] = []
    for (case, variant), own in report.series().items():
        for size in dict.fromkeys(result.size for result in own):
            block = [result for result in own if result.size == size]
            lines += [f"{case}, {variant}, {block[0].sweeps} = {size:,}: {block[0].covers}"]
            lines += [*_aligned(_HEADER, _rows(block)), ""]
    grown = [
        (f"{e.case}, {e.variant}", e.candidate, f"{e.exponent:.2f}", f"{e.sizes[0]} to {e.sizes[-1]}")
        for e in report.exponents()
    ]
    if grown:
        lines += [*_aligned(("time grows as size to the power", "candidate", "power", "fitted on"), grown), ""]
    lines += [*_missing(report), *_legend(report)]
    verdicts = report.verdicts()
    if verdicts:
        lines += ["", *_aligned(_BAR_HEADER, [_bar(verdict) for verdict in verdicts])]
    return "\n".join(lines)


def markdown(report: SpeedReport) -> str:
    """Return the report as Markdown: figures, exponents, bars, and where they come from.

    Args:
        report: What was measured.
    """
    rows = []
    for (case, variant), own in report.series().items():
        for size in dict.fromkeys(result.size for result in own):
            block = [result for result in own if result.size == size]
            where = (f"`{case}` {variant}", f"{block[0].sweeps} = {size:,}")
            rows += [(*where, *row) for row in _rows(block)]
    exponents = [(f"`{e.case}` {e.variant}", e.candidate, f"{e.exponent:.2f}") for e in report.exponents()]
    parts = [_table(("case", "size", *_HEADER), rows)]
    if exponents:
        parts.append(_table(("case", "candidate", "time grows as size to the power"), exponents))
    if report.verdicts():
        parts.append(_table(_BAR_HEADER, [_bar(verdict) for verdict in report.verdicts()]))
    if _missing(report):
        parts.append("\n".join(f"- {line}" for line in _missing(report)))
    parts.append("\n".join(_legend(report)))
    return "\n\n".join(parts) + "\n"


def _rows(block: Sequence[Result]) -> list[tuple[str, ...]]:
    base = next((r.timing for r in block if r.candidate == "mikit"), None)
    rows: list[tuple[str, ...]] = []
    for result in block:
        timing = result.timing
        if timing is None:
            rows.append((result.candidate, _why(result)))
            continue
        name = f"{result.candidate} ({result.compared_on})" if result.compared_on else result.candidate
        at = "" if result.error_size in (None, result.size) else f" (at {result.error_size:,})"
        rows.append(
            (
                name,
                seconds_said(timing.median),
                f"{seconds_said(timing.low)} to {seconds_said(timing.high)}",
                "" if base is None or not base.median else f"{timing.median / base.median:.2f}",
                "not available" if result.peak_bytes is None else f"{result.peak_bytes / 2**20:.0f} MiB",
                "" if result.value_error is None else f"{result.value_error:.0e}{at}",
                "" if result.gradient_error is None else f"{result.gradient_error:.0e}{at}",
            )
        )
    return rows


def seconds_said(seconds: float) -> str:
    """Return seconds with three significant digits.

    Example:
        >>> seconds_said(0.01234), seconds_said(1.234), seconds_said(123.4)
        ('0.0123', '1.23', '123')
    """
    if seconds >= 100:
        return f"{seconds:.0f}"
    return f"{seconds:#.3g}"


def _why(result: Result) -> str:
    return f"{result.state}: {result.reason}"


def _missing(report: SpeedReport) -> list[str]:
    """How to get each candidate that is missing."""
    gone = [f"{r.candidate} is missing: {r.reason}; {r.install}." for r in report.results if r.state == "missing"]
    return list(dict.fromkeys(gone))


def _bar(verdict: Verdict) -> tuple[str, ...]:
    bar = verdict.bar
    what = {
        "time": f"time / {bar.peer}",
        "memory": "extra memory / (2 inputs + 64 MiB)",
        "whole memory": "inputs and extra memory in GiB",
        "gradient error": "gradient error",
        "roofline": "share of the matrix products' speed",
    }[bar.kind]
    limit = f"{'at least' if bar.at_least else 'at most'} {_figure(bar.limit)}"
    met = {True: "yes", False: "NO", None: f"not told: {verdict.why}"}[verdict.met]
    measured = "" if verdict.figure is None else _figure(verdict.figure)
    return (f"{bar.case}, {bar.variant}, {bar.size}: {what}", measured, limit, met)


def _figure(number: float) -> str:
    return f"{number:.2f}" if number >= 0.01 else f"{number:.1e}"


def _legend(report: SpeedReport) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    machine = ", ".join(
        str(value) if name != "cores" else f"{value} cores" for name, value in report.machine.items() if value
    )
    lines = [
        f"Seconds: {report.clock}; median of up to {report.repeats} rounds in which the candidates take turns. "
        "Ratio: seconds divided by those of mikit. Extra memory: peak of one call above its start, the gradients "
        "included and the inputs not; below 5 MiB it is noise. Errors: relative, against the formula in float64 "
        "(gradient in the 2-norm), at the size in brackets where it is another.",
        f"{report.date}, {machine}, seed {report.seed}; {versions}.",
    ]
    if report.quick:
        lines.append("A quick run: it shows that everything works; its figures are those of small sizes.")
    return [*lines, *report.notes]


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns; the last cell of a row that is shorter than the header takes what room it needs."""
    whole = [row for row in rows if len(row) == len(header)]
    widths = [max(len(row[i]) for row in (header, *whole)) for i in range(len(header))]
    widths[0] = max(len(row[0]) for row in (header, *rows))
    return [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)).rstrip()
        for row in (header, *rows)
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    padded = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    lines = [header, ["---"] * len(header), *padded]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
