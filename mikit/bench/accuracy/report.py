"""The tables of an accuracy report: errors by task, values by suite, and the quality of the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from mikit.bench.accuracy.peers import Comparison
from mikit.bench.accuracy.results import AccuracyReport, Confusion, Summary, TaskError
from mikit.bench.reports import Block, Bullets, Table, Text, markdown, screen

__all__ = ["accuracy_markdown", "accuracy_screen", "comparison_markdown", "comparison_screen"]

_SUMMARY = (
    "suite",
    "N",
    "estimator",
    "tasks",
    "mean |error|",
    "mean error",
    "largest |error|",
    "within 0.1",
    "interval coverage",
    "coverage if trustworthy",
    "seconds, most",
    "missing",
)
_VERDICT = ("estimator", "off, flagged", "sound, flagged", "between, flagged", "traps caught")


def accuracy_screen(report: AccuracyReport) -> str:
    """Return the report as text with aligned columns."""
    return screen(_blocks(report))


def accuracy_markdown(report: AccuracyReport) -> str:
    """Return the report as Markdown."""
    return markdown(_blocks(report))


def _blocks(report: AccuracyReport) -> list[Block]:
    tasks = report.tasks()
    return [
        Table(_SUMMARY, [_summary_row(s) for s in report.summaries()], "Values by suite"),
        Table(_VERDICT, [(name, *_verdict_row(c)) for name, c in report.confusions().items()], "The verdict"),
        *(
            _task_table(suite, [task for task in tasks if task.suite == suite])
            for suite in dict.fromkeys(task.suite for task in tasks)
        ),
        Bullets(_exceptions(report)),
        Text(_legend(report)),
    ]


def _summary_row(s: Summary) -> tuple[str, ...]:
    return (
        s.suite,
        f"{s.n:,}",
        s.estimator,
        str(s.laws),
        _number(s.mean_absolute_error),
        _number(s.mean_error, sign=True),
        "" if s.largest is None else f"{s.largest:.3f} ({s.largest_law})",
        "" if s.close is None else f"{s.close:.0%}; {s.close_laws} of {s.laws} tasks",
        _share(s.coverage),
        _share(s.trusted_coverage),
        "" if s.median_seconds is None else f"{s.median_seconds:.2g}, {s.most_seconds:.2g}",
        str(s.missing),
    )


def _verdict_row(c: Confusion) -> tuple[str, ...]:
    def fraction(part: int, whole: int) -> str:
        return f"{part} of {whole} ({part / whole:.0%})" if whole else "none"

    return (
        fraction(c.off_flagged, c.off),
        fraction(c.sound_flagged, c.sound),
        fraction(c.between_flagged, c.between),
        fraction(c.traps_caught, c.traps),
    )


def _task_table(suite: str, tasks: Sequence[TaskError]) -> Table:
    columns = list(dict.fromkeys((task.n, task.estimator) for task in tasks))
    rows = []
    for name in dict.fromkeys(task.law for task in tasks):
        cells = {(task.n, task.estimator): task for task in tasks if task.law == name}
        truth = next(iter(cells.values())).truth
        rows.append((name, f"{truth:.3f}", *(_cell(cells.get(column)) for column in columns)))
    header = ("task", "truth", *(f"{name}, {n:,}" for n, name in columns))
    return Table(header, rows, f"Suite {suite}: mean of estimate minus truth, nats")


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


def _exceptions(report: AccuracyReport) -> list[str]:
    missing = [
        f"{e.suite}, {e.law}, N = {e.n:,}, seed {e.seed}, {e.estimator} {e.state}: {e.reason}"
        for e in report.estimates
        if e.state in ("failed", "refused")
    ]
    escaped = [
        f"{e.law}, N = {e.n:,}, seed {e.seed}, {e.estimator}: the trap was not flagged ({e.fault})"
        for e in report.estimates
        if e.escaped and e.verdict
    ]
    return [*missing, *escaped]


def _legend(report: AccuracyReport) -> list[str]:
    versions = [
        f"{shown} {', '.join(sorted({str(e.versions[name]) for e in report.estimates}))}"
        for shown, name in (("mikit", "mikit"), ("torch", "torch"), ("NumPy", "numpy"))
    ]
    seeds = sorted({e.seed for e in report.estimates})
    rough = [e for e in report.estimates if e.truth_error > 0]
    lines = [
        "Errors in nats. An estimate is off if its error exceeds 0.1 nat and 20 %, and sound if its error is within "
        "0.05 nat or 10 %. ! marks flagged estimates: any verdict except trustworthy. Traps and infinite truths count "
        "only for the verdict; a refusal counts as a flag. A trap is caught if it is flagged, or if its value is "
        "correct where that is sufficient. Seconds: wall time of a measurement with its checks, one thread.",
        f"Seeds {', '.join(map(str, seeds))}; {report.date[:10]}, {report.machine['processor']}; "
        f"{', '.join(versions)}.",
    ]
    if rough:
        most = max(e.truth_error for e in rough)
        lines.append(f"Some truths are Monte Carlo means with standard errors up to {most:.1g}.")
    return lines


_HEADER = ("estimator", "version", "called as")
_NOTE = (
    "Peers are called with their documented defaults on the same samples, one thread each; they report no interval and "
    "no verdict. Their seconds are those of the estimate alone; those of mikit include the checks and permuted data."
)


def comparison_screen(found: Comparison) -> str:
    """Return the comparison as text with aligned columns."""
    return screen(_comparison_blocks(found))


def comparison_markdown(found: Comparison) -> str:
    """Return the comparison as Markdown."""
    return markdown(_comparison_blocks(found))


def _comparison_blocks(found: Comparison) -> list[Block]:
    asked = [peer for peer in found.peers if peer.peer in found.versions]
    called = [(peer.title, found.versions[peer.peer], peer.settings) for peer in asked]
    missing = [f"{one.name} was not run: {one.reason}. To add it: {one.install}." for one in found.missing]
    return [
        Table(_HEADER, called, "The peers") if called else Text(["No peer was run."]),
        Bullets(missing),
        *_blocks(found.report),
        Text([_NOTE]),
    ]
