"""Discrepancy between two distributions and information between their paired samples in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import seaborn
from matplotlib.figure import Figure

from mikit.core.errors import InputError
from mikit.plot.drawing.names import clip_text
from mikit.plot.drawing.style import GREY, MARKERS, figure_style, finish, line_key
from mikit.plot.estimator_panels import all_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mikit.measuring.two_axes import BothAxes

__all__ = ["both_axes"]

_CHANCE = "#efe6d5"


def both_axes(results: BothAxes | Sequence[BothAxes]) -> Figure:
    """Discrepancy between two distributions against information between paired samples: one point per pair.

    The discrepancy is on the x axis. A good student is at the upper left: its distribution equals the teacher's and its
    samples have information about the teacher's. Bars are 95 % intervals; for a biased discrepancy the debiased value
    is drawn, plus or minus two standard deviations over its splits. The shaded areas are chance levels: the discrepancy
    between samples of one distribution, and the information of permuted samples.

    Args:
        results: One or several results of :func:`mikit.both_axes`. Their names make the legend.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state.

    Raises:
        InputError: If there is no result, or the discrepancies were measured with different metrics, the information in
            different units or of different kinds, or the pairs on different numbers of samples.

    Cost:
        Less than a second.

    Pitfalls:
        Intervals include the sampling error of each value, not the bias of the estimator. A kernel whose bandwidth is
        the median of each pair has a different scale for each point.

    Examples:
        >>> import mikit
        >>> import numpy as np
        >>> teacher = np.random.default_rng(0).standard_normal((200, 2))
        >>> pair = mikit.both_axes(teacher[::-1], teacher, "energy", "gaussian", name="reversed", permutations=1)
        >>> figure = mikit.plot.both_axes(pair)
        >>> figure.axes[0].get_ylabel()
        'mutual information (nats)'
    """
    pairs = list(results) if isinstance(results, Sequence) else [results]
    if not pairs:
        raise InputError("There is no result to draw; pass the results of mikit.both_axes.")
    for what, units in (
        ("gap", sorted({(pair.gap.estimator, pair.gap.unit) for pair in pairs})),
        ("information", sorted({("", pair.information.unit) for pair in pairs})),
    ):
        if len(units) > 1:
            found = "; ".join(" in ".join(part for part in unit if part) for unit in units)
            raise InputError(f"The {what} of these results cannot share an axis ({found}). Draw them separately.")
    _refuse_different(pairs)
    with figure_style():
        figure = Figure(figsize=(5.4, 3.4))
        ax = figure.add_subplot()
        ax.grid(True, axis="both")
        _draw_chance(ax, pairs)
        colors = [str(c) for c in seaborn.color_palette("colorblind").as_hex()]
        keys = []
        for index, pair in enumerate(pairs):
            color, marker = colors[index % len(colors)], MARKERS[index % len(MARKERS)]
            _draw_point(ax, pair, color, marker)
            name = clip_text(pair.name or f"pair {index + 1}", 44)
            keys.append(line_key(name, color=color, linestyle="none", marker=marker))
        gap = pairs[0].gap
        debiased = "debiased " if "debiased" in gap.parts else ""
        ax.set_xlabel(f"{debiased}discrepancy of the distributions ({gap.unit})")
        ax.set_ylabel(f"mutual information ({pairs[0].information.unit})")
        ax.margins(0.08)
        finish(figure, "Discrepancy of distributions, information between samples", keys, _facts(pairs))
    return figure


def _refuse_different(pairs: Sequence[BothAxes]) -> None:
    """Refuse pairs whose information is of several kinds, or which were measured on different numbers of samples."""
    for what, of, advice in (
        ("kinds of information", lambda pair: pair.information.kind, "Measure all pairs with one estimator"),
        (
            "numbers of samples N",
            lambda pair: f"{all_rows(pair.information):,}",
            "Measure all pairs on the same number of samples",
        ),
    ):
        if len({of(pair) for pair in pairs}) > 1:
            values = ", ".join(f"{pair.name or f'pair {i + 1}'}: {of(pair)}" for i, pair in enumerate(pairs))
            raise InputError(f"These results have different {what} ({values}). {advice}, or draw them separately.")


def _draw_chance(ax: Axes, pairs: Sequence[BothAxes]) -> None:
    """Shade the largest values of equal distributions and of permuted samples over the pairs."""
    gaps = [c.threshold for pair in pairs for c in pair.gap.checks if c.name == "above the teacher's own"]
    known = [value for pair in pairs if pair.information.null for value in pair.information.null.values]
    finite_gaps = [float(gap) for gap in gaps if gap is not None and math.isfinite(gap)]
    if finite_gaps:
        ax.axvspan(-max(finite_gaps), max(finite_gaps), color=_CHANCE, linewidth=0, zorder=0)
    if known:
        ax.axhspan(min(0.0, *known), max(0.0, *known), color=_CHANCE, linewidth=0, zorder=0)
    ax.axvline(0.0, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    ax.axhline(0.0, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)


def _draw_point(ax: Axes, pair: BothAxes, color: str, marker: str) -> None:
    x, left, right = pair.gap_beyond_chance
    y, (low, high) = pair.information.value, pair.information.interval
    hollow = "unreliable" in (pair.gap.verdict, pair.information.verdict)
    if math.isfinite(left):
        ax.plot([left, right], [y, y], color=color, linewidth=1.2, zorder=2)
    if math.isfinite(low):
        ax.plot([x, x], [low, high], color=color, linewidth=1.2, zorder=2)
    ax.plot(
        [x],
        [y],
        linestyle="none",
        marker=marker,
        markersize=6.5,
        color=color,
        markerfacecolor="white" if hollow else color,
        zorder=3,
    )


def _facts(pairs: Sequence[BothAxes]) -> list[str]:
    gap, rows = pairs[0].gap, f"{all_rows(pairs[0].information):,}"
    estimators = sorted({pair.information.estimator.split("(")[0] for pair in pairs})
    bars = "Bars: 95 % intervals"
    if "debiased" in gap.parts:
        bars = (
            "Horizontal bars: the debiased value ± 2 standard deviations over its splits; vertical bars: 95 % intervals"
        )
    facts = [
        f"Discrepancy by {clip_text(gap.estimator, 60)}, information by {', '.join(estimators)}, N\u00a0=\u00a0{rows}",
        bars,
        "Shaded: the largest value of samples of one distribution, and the values of permuted samples",
    ]
    if any("unreliable" in (pair.gap.verdict, pair.information.verdict) for pair in pairs):
        facts.append("Hollow: judged unreliable")
    return facts
