"""The report on accuracy in words: errors by task, figures by suite, and how the verdict did."""

from __future__ import annotations

from collections.abc import Sequence

from mikit.bench.accuracy.peers import Comparison
from mikit.bench.accuracy.results import AccuracyReport, Confusion, Summary, TaskError
from mikit.bench.tables import aligned, markdown_table

__all__ = ["accuracy_markdown", "accuracy_screen", "comparison_markdown", "comparison_screen"]


_Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
_SUMMARY = (
    "suite",
    "N",
    "estimator",
    "laws",
    "mean |error|",
    "mean error",
    "largest |error|",
    "within 0.1",
    "intervals that cover",
    "trusted ones that cover",
    "seconds, most",
    "missing",
)
_VERDICT = ("estimator", "off, flagged", "sound, flagged", "between, flagged", "traps caught")


def accuracy_screen(report: AccuracyReport) -> str:
    """Return the report as text with aligned columns.

    Args:
        report: What was found.
    """
    return "\n\n".join(
        [
            *("\n".join([title, *aligned(header, rows)]) for title, header, rows in _tables(report)),
            *("\n".join(lines) for lines in (_missing(report), _legend(report)) if lines),
        ]
    )


def accuracy_markdown(report: AccuracyReport) -> str:
    """Return the report as Markdown.

    Args:
        report: What was found.
    """
    parts = [f"**{title}**\n\n{markdown_table(header, rows)}" for title, header, rows in _tables(report)]
    missing = "\n".join(f"- {line}" for line in _missing(report))
    return "\n\n".join([*parts, *([missing] if missing else []), " ".join(_legend(report))]) + "\n"


def _tables(report: AccuracyReport) -> list[_Table]:
    tables: list[_Table] = [("Figures by suite", _SUMMARY, [_summary_row(s) for s in report.summaries()])]
    confusions = report.confusions()
    tables.append(("The verdict", _VERDICT, [(name, *_verdict_row(c)) for name, c in confusions.items()]))
    tasks = report.tasks()
    for suite in dict.fromkeys(task.suite for task in tasks):
        tables.append(_task_table(suite, [task for task in tasks if task.suite == suite]))
    return tables


def _summary_row(s: Summary) -> tuple[str, ...]:
    return (
        s.suite,
        f"{s.n:,}",
        s.estimator,
        str(s.laws),
        _number(s.mean_absolute_error),
        _number(s.mean_error, sign=True),
        "" if s.largest is None else f"{s.largest:.3f} ({s.largest_law})",
        "" if s.close is None else f"{s.close:.0%}; {s.close_laws} of {s.laws} laws",
        _share(s.coverage),
        _share(s.trusted_coverage),
        "" if s.median_seconds is None else f"{s.median_seconds:.2g}, {s.most_seconds:.2g}",
        str(s.missing),
    )


def _verdict_row(c: Confusion) -> tuple[str, ...]:
    def said(part: int, whole: int) -> str:
        return f"{part} of {whole} ({part / whole:.0%})" if whole else "none"

    return (
        said(c.off_flagged, c.off),
        said(c.sound_flagged, c.sound),
        said(c.between_flagged, c.between),
        said(c.traps_caught, c.traps),
    )


def _task_table(suite: str, tasks: Sequence[TaskError]) -> _Table:
    columns = list(dict.fromkeys((task.n, task.estimator) for task in tasks))
    rows = []
    for law in dict.fromkeys(task.law for task in tasks):
        own = {(task.n, task.estimator): task for task in tasks if task.law == law}
        truth = next(iter(own.values())).truth
        rows.append((law, f"{truth:.3f}", *(_cell(own.get(column)) for column in columns)))
    header = ("law", "truth", *(f"{name}, {n:,}" for n, name in columns))
    return f"Suite {suite}: mean of estimate minus truth, nats", header, rows


def _cell(task: TaskError | None) -> str:
    if task is None:
        return ""
    if task.mean_error is None:
        return task.reason.partition(":")[0]
    flag = f" !{task.flagged}/{task.seeds}" if task.flagged and task.seeds > 1 else " !" if task.flagged else ""
    return _number(task.mean_error, sign=True) + flag


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def _share(found: tuple[float, int] | None) -> str:
    return "none" if found is None else f"{found[0]:.0%} of {found[1]}"


def _missing(report: AccuracyReport) -> list[str]:
    gone = [
        f"{e.suite}, {e.law}, N = {e.n:,}, seed {e.seed}, {e.estimator} {e.state}: {e.reason}"
        for e in report.estimates
        if e.state in ("failed", "refused")
    ]
    escaped = [
        f"{e.law}, N = {e.n:,}, seed {e.seed}, {e.estimator}: the trap went by without a flag ({e.fault})"
        for e in report.estimates
        if e.escaped and e.verdict
    ]
    return [*gone, *escaped]


def _legend(report: AccuracyReport) -> list[str]:
    versions = [
        f"{shown} {', '.join(sorted({str(e.versions[name]) for e in report.estimates}))}"
        for shown, name in (("mikit", "mikit"), ("torch", "torch"), ("NumPy", "numpy"))
    ]
    seeds = sorted({e.seed for e in report.estimates})
    rough = [e for e in report.estimates if e.truth_error > 0]
    lines = [
        "Errors in nats. An estimate is off where it is wrong by more than 0.1 nat and by more than 20 %; sound where "
        "it is right to 0.05 nat or to 10 %. ! marks flagged estimates: any verdict but trustworthy. Traps and "
        "infinite truths count in the verdict only; a refusal counts as a flag. A trap is caught if it is flagged, or "
        "right where a right value is enough. Seconds: wall time of a measurement with its checks, one thread; "
        "median, most.",
        f"Seeds {', '.join(map(str, seeds))}; {report.date[:10]}, {report.machine['processor']}; "
        f"{', '.join(versions)}.",
    ]
    if rough:
        most = max(e.truth_error for e in rough)
        lines.append(f"Some truths are Monte Carlo means, with standard errors of up to {most:.1g}.")
    return lines


_HEADER = ("estimator", "version", "called as")
_NOTE = (
    "Peers are called with the defaults that they document, on the same rows, one thread each; they give no interval "
    "and no verdict. Their seconds are those of the estimate alone, mikit's hold the checks and permuted data besides."
)


def comparison_screen(found: Comparison) -> str:
    """Return the comparison as text with aligned columns.

    Args:
        found: What was found.
    """
    asked = "\n".join(["The peers", *aligned(_HEADER, _rows(found))]) if _rows(found) else "No peer was asked."
    return "\n\n".join(
        [asked, *(["\n".join(_missing_peers(found))] if found.missing else []), accuracy_screen(found.report), _NOTE]
    )


def comparison_markdown(found: Comparison) -> str:
    """Return the comparison as Markdown.

    Args:
        found: What was found.
    """
    asked = f"**The peers**\n\n{markdown_table(_HEADER, _rows(found))}" if _rows(found) else "No peer was asked."
    missing = "\n".join(f"- {line}" for line in _missing_peers(found))
    return "\n\n".join([asked, *([missing] if missing else []), accuracy_markdown(found.report), _NOTE]) + "\n"


def _rows(found: Comparison) -> list[tuple[str, ...]]:
    return [
        (peer.title, found.versions[peer.peer], peer.settings) for peer in found.peers if peer.peer in found.versions
    ]


def _missing_peers(found: Comparison) -> list[str]:
    return [
        f"{missing.name} was not asked: {missing.reason}. To add it: {missing.install}." for missing in found.missing
    ]
