"""The figure of a run: accuracy by epoch, and the gain of each kind of student for each seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mikit.experiments.losses import ALONE
from mikit.experiments.summary import StudentSummary
from mikit.experiments.training import Trained
from mikit.plot.drawing.style import GREY, figure_style, finish, line_key, network_colors

__all__ = ["draw_run"]


def draw_run(
    results: Sequence[Trained], summaries: Sequence[StudentSummary], teacher: float, images: int, name: str
) -> Figure:
    """Draw accuracies by epoch with the range over seeds, and the paired gains.

    Args:
        results: All trainings.
        summaries: One for each kind of student.
        teacher: Accuracy of the teacher.
        images: Number of test images.
        name: Name of the data.
    """
    labels = [one.label for one in summaries]
    colors = network_colors(labels)
    compared = [one for one in summaries if one.label != ALONE]
    with figure_style():
        figure = Figure(figsize=(7.0, max(2.4, 0.9 + 0.28 * len(compared))))
        curves, gains = figure.subplots(1, 2, width_ratios=(3, 2))
        for label in labels:
            _draw_curve(curves, [one for one in results if one.run.network == label], colors[label])
        curves.axhline(100 * teacher, color=GREY, linestyle=":", linewidth=1.0)
        curves.set_xlabel("epoch")
        curves.set_ylabel("test accuracy, %")
        curves.set_title("Accuracy while training")
        _draw_gains(gains, compared, colors)
        keys = [line_key("teacher", color=GREY, linestyle=":")]
        keys += [line_key(label, color=colors[label]) for label in labels]
        seeds = len(summaries[0].seeds)
        facts = [
            f"{name}, {images:,} test images; {seeds} {'seed' if seeds == 1 else 'seeds'} of each student",
            "Left: mean over seeds; bands from the lowest to the highest",
            "Right: gain over the student alone of the same seed after the last epoch; dots are seeds, bars are means",
        ]
        lost = sum(len(one.diverged) for one in summaries)
        if lost:
            facts.append(f"{lost} trainings diverged: their curves end early and they have no dot")
        finish(figure, "Students with and without a teacher", keys, facts)
    return figure


def _draw_curve(ax: Axes, results: Sequence[Trained], color: str) -> None:
    seen: dict[int, list[float]] = {}
    for result in results:
        for record in result.curve.records:
            if record.accuracy is not None:
                seen.setdefault(record.epoch, []).append(100 * record.accuracy)
    epochs = sorted(seen)
    ax.fill_between(
        epochs, [min(seen[e]) for e in epochs], [max(seen[e]) for e in epochs], color=color, alpha=0.15, linewidth=0
    )
    marker = "o" if len(epochs) == 1 else ""
    ax.plot(epochs, [statistics.fmean(seen[e]) for e in epochs], color=color, marker=marker)


def _draw_gains(ax: Axes, compared: Sequence[StudentSummary], colors: dict[str, str]) -> None:
    ax.axvline(0, color=colors[ALONE], linewidth=1.0)
    for place, one in enumerate(compared):
        known = [100 * gain for gain in one.gains if gain is not None]
        ax.plot(known, [place] * len(known), "o", color=colors[one.label], alpha=0.8)
        if one.gain is not None:
            ax.plot([100 * one.gain] * 2, [place - 0.3, place + 0.3], color=colors[one.label], linewidth=2.0)
    ax.set_yticks(range(len(compared)), [one.label for one in compared])
    ax.set_ylim(len(compared) - 0.4, -0.6)
    ax.grid(visible=True, axis="x")
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("percentage points above the student alone")
    ax.set_title("Paired gains")
