"""The plot of an accuracy report: error by task, one panel for each size, estimators as markers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mikit.bench.accuracy.results import AccuracyReport, Estimate
from mikit.core.errors import InputError
from mikit.plot.drawing.names import clip_text
from mikit.plot.drawing.style import BLUE, GREY, RED, figure_style, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_accuracy", "estimator_marks"]

_LINE, _PANELS, _LETTER = 0.145, 4.2, 0.05
_COLORS = (BLUE, "#de8f05", "#029e73", RED, "#cc78bc", "#ca9161", "#56b4e9", GREY)
_MARKS = "osD^vPX*"
_LINEAR = 0.1
_TICKS = (-1000.0, -100.0, -10.0, -1.0, -0.1, 0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)


def draw_accuracy(report: AccuracyReport) -> Figure:
    """Draw estimate minus truth of every task: a marker for each estimate, hollow if it was flagged.

    The axis is linear within 0.1 nat, which is shaded, and logarithmic beyond. The figure is not registered with
    pyplot.
    """
    drawn = [e for e in report.estimates if e.error is not None and math.isfinite(e.error)]
    if not drawn:
        raise InputError("No estimate of a finite mutual information was measured, so there is nothing to draw.")
    tasks = list(dict.fromkeys((e.suite, e.law) for e in drawn))
    truths = {(e.suite, e.law): e.truth for e in drawn}
    sizes, names = sorted({e.n for e in drawn}), list(dict.fromkeys(e.estimator for e in drawn))
    reach = 1.15 * max(_LINEAR, *(abs(e.error or 0.0) for e in drawn))
    with figure_style():
        several = len({suite for suite, _ in tasks}) > 1
        labels = [
            clip_text(f"{suite}: {task}" if several else task, 44) + f"  {truths[suite, task]:.2f}"
            for suite, task in tasks
        ]
        width = 0.3 + _LETTER * max(map(len, labels)) + max(_PANELS, 1.4 * len(sizes))
        figure = Figure(figsize=(width, max(1.4, 0.7 + _LINE * len(tasks))))
        panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for ax, n in zip(panels, sizes, strict=True):
            _draw_panel(ax, [e for e in drawn if e.n == n], tasks, names, reach)
            ax.set_title(f"N = {n:,}")
        panels[0].set_yticks(range(len(tasks)), labels)
        panels[0].set_ylim(len(tasks) - 0.5, -0.5)
        handles = [
            panels[0].plot([], [], linestyle="none", marker=mark, color=color, label=name)[0]
            for name, (color, mark) in zip(names, map(estimator_marks, range(len(names))), strict=True)
        ]
        finish(figure, "Error by task", handles, _facts(report))
        panels[0].tick_params(axis="y", labelsize=6)
    return figure


def _draw_panel(
    ax: Axes, own: Sequence[Estimate], tasks: Sequence[tuple[str, str]], names: Sequence[str], reach: float
) -> None:
    places = {task: place for place, task in enumerate(tasks)}
    ax.axvspan(-_LINEAR, _LINEAR, color=BLUE, alpha=0.08, linewidth=0)
    ax.axvline(0, color=GREY, linewidth=0.7)
    for i, name in enumerate(names):
        shift = 0.5 * ((i + 0.5) / len(names) - 0.5)
        color, mark = estimator_marks(i)
        for flagged in (False, True):
            marks = [e for e in own if e.estimator == name and e.flagged == flagged]
            ax.plot(
                [e.error or 0.0 for e in marks],
                [places[e.suite, e.law] + shift for e in marks],
                linestyle="none",
                marker=mark,
                markersize=3.2,
                markeredgewidth=0.8,
                color=color,
                markerfacecolor="none" if flagged else color,
            )
    ax.set_xscale("symlog", linthresh=_LINEAR)
    ax.set_xlim(-reach, reach)
    ax.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if abs(tick) <= reach]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.grid(visible=True, axis="both")
    ax.set_xlabel("estimate − truth, nats")


def estimator_marks(place: int) -> tuple[str, str]:
    """Return color and marker of the estimator at this position; after eight, the markers repeat in other colors.

    Example:
        >>> estimator_marks(0) == estimator_marks(8)
        False
    """
    return _COLORS[(place + place // 8) % 8], _MARKS[place % 8]


def _has_peers(report: AccuracyReport) -> bool:
    return any(e.state == "measured" and not e.verdict for e in report.estimates)


def _facts(report: AccuracyReport) -> list[str]:
    seeds = sorted({e.seed for e in report.estimates})
    return [
        "The number after a name is the truth in nats",
        f"A marker for each estimate, hollow if it was flagged; {'seed' if len(seeds) == 1 else 'seeds'} "
        f"{', '.join(map(str, seeds))}",
        *(["Peers report no verdict, so their markers are never hollow"] if _has_peers(report) else []),
        "Linear within 0.1 nat, which is shaded, logarithmic beyond",
        f"{report.machine['processor']}, {report.date[:10]}",
    ]
