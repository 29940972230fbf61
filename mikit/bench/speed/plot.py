"""The plot of a speed report: time against size, one panel for each case, candidates as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from mikit.bench.speed.results import Result, SpeedReport
from mikit.bench.speed.timing import fit_exponent
from mikit.core.errors import InputError
from mikit.plot.drawing.style import BLUE, GREY, RED, figure_style, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_speed"]

_COLUMNS, _WIDE, _HIGH = 3, 2.3, 2.15
_FEW_DECADES = 1.6
_LOOKS = {
    "mikit": (BLUE, "o"),
    "whole matrix": (GREY, "s"),
    "whole matrix, lean": ("#b5b5b5", "d"),
    "eigh": (GREY, "s"),
    "torch.compile": (RED, "D"),
    "torch.cdist": ("#cc78bc", "^"),
    "geomloss": ("#029e73", "v"),
    "geomloss .5": ("#029e73", "v"),
    "geomloss .9": ("#56b4e9", "^"),
    "POT": ("#de8f05", "P"),
    "scikit-learn": ("#029e73", "v"),
    "benchmark-mi": ("#de8f05", "P"),
    "NPEET": ("#cc78bc", "^"),
}
_OTHER = ("#ca9161", "X")


def draw_speed(report: SpeedReport) -> Figure:
    """Draw the median time of every candidate against the size, both axes logarithmic, with the fitted exponents.

    The figure is not registered with pyplot.
    """
    panels = [own for own in report.series().values() if any(r.timing for r in own)]
    if not panels:
        raise InputError("No candidate was measured, so there is nothing to draw.")
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    with figure_style():
        figure = Figure(figsize=(max(columns * _WIDE, 4.2), lines * _HIGH))
        grid = figure.subplots(lines, columns, squeeze=False)
        for spare in grid.flat[len(panels) :]:
            spare.remove()
        for place, (ax, own) in enumerate(zip(grid.flat, panels, strict=False)):
            _draw_panel(ax, own)
            if place % columns == 0:
                ax.set_ylabel("seconds")
        finish(figure, "Time against size", [], _facts(report))
    return figure


def _draw_panel(ax: Axes, own: Sequence[Result]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    for name in dict.fromkeys(r.candidate for r in own):
        points = [(r.size, r.timing) for r in own if r.candidate == name and r.timing is not None]
        if not points:
            continue
        sizes, medians = [size for size, _ in points], [timing.median for _, timing in points]
        exponent = fit_exponent(sizes, medians)
        color, marker = _LOOKS.get(name, _OTHER)
        label = name if exponent is None else f"{name}  {own[0].sweeps}^{exponent:.1f}"
        low, high = [timing.low for _, timing in points], [timing.high for _, timing in points]
        ax.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0, label=f"_band {name}")
        front = 3 if name == "mikit" else 2
        ax.plot(sizes, medians, color=color, marker=marker, label=label, zorder=front)
    ticks = sorted({r.size for r in own if r.timing is not None})
    ax.set_xticks(ticks)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    low_end, high_end = (math.log10(end) for end in ax.get_ylim())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high_end - low_end < _FEW_DECADES else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(own[0].sweeps)
    ax.set_title(f"{own[0].case.replace('_', ' ')}\n{own[0].variant}")
    entries = len(ax.get_legend_handles_labels()[1])
    room = 1 / (1 - min(0.09 * entries + 0.05, 0.6))  # the legend is above the lines, which rise to the right
    ax.set_ylim(10**low_end, 10 ** (low_end + room * (high_end - low_end)))
    ax.legend(loc="upper left", fontsize=6.5, borderaxespad=0.1, handlelength=1.6, labelspacing=0.25)


def _facts(report: SpeedReport) -> list[str]:
    facts = [
        f"Median {report.clock}, of up to {report.repeats} rounds in which the candidates take turns; bands extend "
        "from the smallest to the largest time",
        "The exponent after a name is the slope of its line, fitted by least squares",
        f"{report.machine.get('gpu', report.machine['processor'])}, {report.date[:10]}",
    ]
    if report.quick:
        facts.append("A quick run at small sizes, which only shows that everything works")
    return facts
