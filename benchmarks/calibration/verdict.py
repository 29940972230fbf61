"""The verdict over all tasks: errors next to published ones, flagged estimates, and interval coverage.

    mikit bench bmi --n 1000 --json bmi.json
    mikit bench beyond --n 1000 --json beyond.json
    python benchmarks/calibration/verdict.py bmi.json beyond.json --out docs/tables/verdict

Reads files of ``mikit bench ... --json`` and measures nothing. Writes a Markdown and a JSON file, a plot of the
coverage by suite, and a plot of the errors by task for each suite.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure
from scipy import stats

from mikit.bench.accuracy.plot import draw_accuracy, estimator_marks
from mikit.bench.accuracy.results import AccuracyReport, Estimate, Summary
from mikit.bench.reports import markdown_table, save_picture
from mikit.core.errors import InputError
from mikit.plot.drawing.style import GREY, INK, SOFT, figure_style, finish

Key = TypeVar("Key", bound=Hashable)
_WIDEST = 7.0  # inches; at 200 dots per inch the width of a page
SIZES = (1_000, 5_000, 10_000)
PUBLISHED = {
    "Alice Base (85M parameters, pretrained)": (0.092, 0.063, 0.060),
    "MINDE-C": (0.353, 0.070, 0.065),
    "InfoNCE": (0.887, 0.123, 0.083),
    "Alice Small (19M parameters, pretrained)": (0.101, 0.103, 0.104),
    "MINE": (0.248, 0.117, 0.108),
    "NWJ": (math.inf, 1.261, 0.130),
    "D-V": (1.229, 0.279, 0.144),
    "CCA": (0.195, 0.192, 0.181),
    "KSG": (0.288, 0.240, 0.219),
    "InfoAtlas": (0.253, 0.271, 0.276),
    "LNN": (4.86, 4.97, 4.97),
}
SOURCE = (
    "Published: the paper on Alice (Franzese and others, 2026), Table 2, mean absolute error over the 40 tasks; its "
    "competitors are means over five seeds, tuned for each task. The tasks are the same, the samples are not. NWJ at "
    "1,000 samples is reported there as above 10."
)
Table = tuple[str, Sequence[str], Sequence[tuple[str, ...]]]


def read(paths: Sequence[Path]) -> AccuracyReport:
    """Return the estimates of all files as one report; refuse files that contradict each other."""
    found: dict[tuple[str, str, int, int, str], Estimate] = {}
    reports = []
    for path in paths:
        try:
            reports.append(AccuracyReport.from_json(path.read_text()))
        except (OSError, InputError) as cause:
            raise InputError(f"{path} cannot be read: {cause}") from cause
        for e in reports[-1].estimates:
            other = found.setdefault((e.suite, e.law, e.n, e.seed, e.estimator), e)
            if (other.state, other.value) != (e.state, e.value):
                raise InputError(
                    f"{path} contains another estimate of {e.law} (N = {e.n}, seed {e.seed}, {e.estimator}) than an "
                    "earlier file. Pass results of one version only."
                )
    newest = max(reports, key=lambda report: report.date)
    suites = list(dict.fromkeys(e.suite for e in found.values()))
    ordered = sorted(found.values(), key=lambda e: (suites.index(e.suite), e.n))
    return AccuracyReport(tuple(ordered), newest.date, newest.machine)


def by_suite(report: AccuracyReport) -> Table:
    """Return mean absolute errors by suite and size, one column for each estimator."""
    names = list(dict.fromkeys(e.estimator for e in report.estimates))
    found: dict[tuple[str, int], dict[str, Summary]] = {}
    for summary in report.summaries():
        found.setdefault((summary.suite, summary.n), {})[summary.estimator] = summary
    rows = [(suite, f"{n:,}", *(_error(own.get(name)) for name in names)) for (suite, n), own in found.items()]
    return "Mean absolute error by suite, nats (tasks)", ("suite", "N", *names), rows


def _error(summary: Summary | None) -> str:
    if summary is None or summary.mean_absolute_error is None:
        return ""
    return f"{summary.mean_absolute_error:.3f} ({summary.laws})"


def beside_published(report: AccuracyReport) -> Table:
    """Return mean absolute errors on the 40 tasks, followed by published ones."""
    own: dict[str, dict[int, Summary]] = {}
    for summary in report.summaries():
        if summary.suite == "bmi" and summary.n in SIZES and summary.mean_absolute_error is not None:
            own.setdefault(summary.estimator, {})[summary.n] = summary
    rows = []
    for name, sizes in own.items():
        few = min(summary.laws for summary in sizes.values())
        rows.append(
            (
                f"**{name}**" + ("" if few == 40 else f" ({few} of 40 tasks)"),
                *("" if n not in sizes else f"**{sizes[n].mean_absolute_error:.3f}**" for n in SIZES),
                "measured here",
            )
        )
    published = [
        (name, *("> 10" if math.isinf(error) else f"{error:.3f}" for error in errors), "published")
        for name, errors in PUBLISHED.items()
    ]
    return "The 40 BMI tasks: mean absolute error, nats", ("", *(f"N = {n:,}" for n in SIZES), ""), rows + published


def confusion(report: AccuracyReport, title: str, first: str, groups: dict[str, list[Estimate]]) -> Table:
    """Return how well the verdict separates good and bad estimates, by group and estimator."""
    rows = []
    for name, own in groups.items():
        for estimator, c in AccuracyReport(tuple(own), report.date, report.machine).confusions().items():
            rows.append(
                (
                    name,
                    estimator,
                    _rate(c.off_flagged, c.off),
                    _rate(c.sound_flagged, c.sound),
                    _rate(c.between_flagged, c.between),
                    _rate(c.traps_caught, c.traps),
                )
            )
    return title, (first, "estimator", "off, flagged", "sound, flagged", "between, flagged", "traps caught"), rows


def _rate(part: int, whole: int) -> str:
    if not whole:
        return "none"
    low, high = _interval(part, whole)
    return f"{part} of {whole}, {part / whole:.0%} [{low:.0%}, {high:.0%}]"


def _interval(part: int, whole: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion."""
    found = stats.binomtest(part, whole).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _with_interval(estimates: Iterable[Estimate]) -> list[Estimate]:
    """Return the estimates with an interval and a finite truth, without traps."""
    return [e for e in estimates if e.covered is not None and not e.is_trap and math.isfinite(e.truth)]


def coverage(report: AccuracyReport) -> Table:
    """Return the fractions of intervals that contain the truth, by suite and estimator."""
    rows = []
    for (suite, n, name), own in _grouped(_with_interval(report.estimates), _by_run).items():
        trusted = [e for e in own if not e.flagged]
        rows.append((suite, f"{n:,}", name, *(_rate(sum(bool(e.covered) for e in s), len(s)) for s in (trusted, own))))
    header = ("suite", "N", "estimator", "coverage of trustworthy intervals", "coverage of all intervals")
    return "Coverage of the 95 % intervals", header, rows


def _by_run(e: Estimate) -> tuple[str, int, str]:
    return e.suite, e.n, e.estimator


def _grouped(estimates: Iterable[Estimate], key: Callable[[Estimate], Key]) -> dict[Key, list[Estimate]]:
    found: dict[Key, list[Estimate]] = {}
    for e in estimates:
        found.setdefault(key(e), []).append(e)
    return found


def far_off_unflagged(report: AccuracyReport) -> list[Estimate]:
    """Return trustworthy estimates that are off or on a missed trap, the largest error first."""
    bad = [e for e in report.estimates if e.verdict == "trustworthy" and (e.escaped if e.is_trap else e.off)]
    return sorted(bad, key=lambda e: -abs(e.error or 0.0))


def unflagged(report: AccuracyReport) -> Table:
    """Return :func:`far_off_unflagged` by task, size and estimator, each with its worst estimate."""
    bad = far_off_unflagged(report)
    rows = []
    for (suite, task, n, name), own in _grouped(bad, lambda e: (e.suite, e.law, e.n, e.estimator)).items():
        worst = own[0]
        asked = sum((e.suite, e.law, e.n, e.estimator) == (suite, task, n, name) for e in report.estimates)
        interval = "none" if worst.low is None or worst.high is None else f"[{worst.low:.3f}, {worst.high:.3f}]"
        used = worst.fault or (worst.chosen if name == "auto" else "")
        rows.append(
            (
                suite,
                task,
                f"{n:,}",
                name,
                f"{len(own)} of {asked}",
                f"{worst.truth:.3f}",
                f"{worst.value:.3f}",
                interval,
                used,
            )
        )
    header = ("suite", "task", "N", "estimator", "seeds", "truth", "worst value", "its interval", "trap, or choice")
    return f"Trustworthy and off: {len(bad)} estimates", header, rows


def draw_coverage(report: AccuracyReport) -> Figure | None:
    """Draw the coverage of the trustworthy intervals by suite, one panel for each size; None without intervals."""
    own = _grouped((e for e in _with_interval(report.estimates) if not e.flagged), _by_run)
    if not own:
        return None
    suites, sizes = list(dict.fromkeys(key[0] for key in own)), sorted({key[1] for key in own})
    names = list(dict.fromkeys(e.estimator for e in report.estimates if e.verdict))
    slot, low_end = 0.16 * max(len(names), 2), 1.0
    with figure_style():
        figure = Figure(figsize=(min(1.2 + 3.4 * len(sizes), _WIDEST), 0.9 + slot * len(suites)))
        panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for ax, n in zip(panels, sizes, strict=True):
            ax.axvline(0.95, color=GREY, linewidth=0.7)
            for (suite, _, name), estimates in ((key, found) for key, found in own.items() if key[1] == n):
                i = names.index(name)
                place = suites.index(suite) + 0.8 * ((i + 0.5) / len(names) - 0.5)
                covered = sum(bool(e.covered) for e in estimates)
                low, high = _interval(covered, len(estimates))
                low_end = min(low_end, low)
                color, mark = estimator_marks(i)
                ax.plot([low, high], [place, place], color=color, linewidth=1.0)
                ax.plot([covered / len(estimates)], [place], linestyle="none", marker=mark, color=color)
                ax.text(
                    1.02, place, f"{covered} of {len(estimates)}", fontsize=6, color=SOFT, va="center", clip_on=False
                )
            for edge in range(1, len(suites)):
                ax.axhline(edge - 0.5, color="#e7e7e7", linewidth=0.6)
            ax.set_title(f"N = {n:,}")
            ax.set_xlabel("fraction that contain the truth")
            ax.grid(visible=True, axis="x")
            ax.grid(visible=False, axis="y")
        panels[0].set_xlim(max(0.0, low_end) - 0.03, 1.01)
        for ax in panels[1:]:
            ax.set_xlim(panels[0].get_xlim())
        panels[0].set_yticks(range(len(suites)), suites, color=INK)
        panels[0].set_ylim(len(suites) - 0.5, -0.5)
        handles = []
        for i, name in enumerate(names):
            color, mark = estimator_marks(i)
            handles += panels[0].plot([], [], linestyle="none", marker=mark, color=color, label=name)
        facts = [
            "Intervals with a trustworthy verdict; line: 95 %",
            "Bars: Wilson's 95 % interval of the fraction",
        ]
        finish(figure, "Coverage of trustworthy intervals", handles, [*facts, report.date[:10]])
    return figure


def main() -> None:
    """Read the results, write the tables, draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("verdict"), help="path of the files, without suffix")
    arguments = parser.parse_args()
    report = read(arguments.results)
    suites = _grouped(report.estimates, lambda e: e.suite)
    tables = [
        beside_published(report),
        by_suite(report),
        confusion(report, "The verdict over all suites", "", {"all": list(report.estimates)}),
        confusion(report, "The verdict by suite", "suite", suites),
        coverage(report),
        unflagged(report),
    ]
    seeds = sorted({e.seed for e in report.estimates})
    versions = sorted({str(e.versions.get("mikit")) for e in report.estimates})
    note = (
        "Off: error above 0.1 nat and above 20 %. Sound: error within 0.05 nat or 10 %. Flagged: any verdict except "
        "trustworthy. In brackets: Wilson's 95 % interval of the fraction, as if estimates were independent. "
        f"Peers report no verdict. Seeds {', '.join(map(str, seeds))}; mikit {', '.join(versions)}; "
        f"{report.date[:10]}, {report.machine['processor']}."
    )
    parts = [f"**{title}**\n\n{markdown_table(header, rows) if rows else 'None.'}" for title, header, rows in tables]
    parts.insert(1, SOURCE)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text("\n\n".join([*parts, note]) + "\n")
    content = {
        "date": report.date,
        "machine": dict(report.machine),
        "summaries": [asdict(summary) for summary in report.summaries()],
        "verdicts": {name: asdict(found) for name, found in report.confusions().items()},
        "published": {name: [None if math.isinf(e) else e for e in errors] for name, errors in PUBLISHED.items()},
        "unflagged": [e.to_dict() for e in far_off_unflagged(report)],
        "tables": [{"title": title, "columns": list(header), "rows": rows} for title, header, rows in tables],
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    pictures = {"coverage": draw_coverage(report)}
    for suite, own in suites.items():
        if any(e.error is not None and math.isfinite(e.error) for e in own):
            pictures[f"errors_{suite}"] = draw_accuracy(AccuracyReport(tuple(own), report.date, report.machine))
    for name, figure in pictures.items():
        if figure is not None:
            save_picture(figure, arguments.out.with_name(f"{arguments.out.name}_{name}.png"))
    print("\n\n".join(parts[:4]))


if __name__ == "__main__":
    main()
