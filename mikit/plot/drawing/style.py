"""Appearance of the figures: style, fixed colors, layer names that fit, header and caption."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mikit.plot.drawing.bands import Band
from mikit.plot.drawing.names import clip_text, short_names, spread

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from mikit.flow import Flow
    from mikit.plot.drawing.tables import Rows

__all__ = ["caption_facts", "figure_style", "finish", "name_ticks", "network_colors", "phase_ramp"]

INK, SOFT, FAINT = "#222222", "#5a5a5a", "#e7e7e7"
GREY, BLUE, RED = "#6e6e6e", "#0173b2", "#d55e00"
MARKERS = "osD^vPX*"
_STYLE: dict[str, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 5.0,
    "axes.labelsize": 8.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8a8a8a",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "mikit",
}
_SIDE = 0.06  # Text is wider at some resolutions than at the one used for the layout.
_LEFT, _TITLE, _ROW, _CAPTION_LINE = 0.12, 0.30, 0.165, 0.132


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style of the figures inside the context, and restore the caller's settings afterwards."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def network_colors(networks: Sequence[str]) -> dict[str, str]:
    """Return one fixed color per network: gray for the student alone, blue for VID, red for a control.

    Every other network takes the next color of a colorblind-safe palette.

    Examples:
        >>> network_colors(["student alone", "student + VID", "VID, pairing broken"])
        {'student alone': '#6e6e6e', 'student + VID': '#0173b2', 'VID, pairing broken': '#d55e00'}
    """
    rules = (
        (RED, r"broken|control|permut|shuffl|random"),
        (BLUE, r"vid"),
        (GREY, r"alone|scratch|baseline|plain|vanilla"),
    )
    colors: dict[str, str] = {}
    for color, pattern in rules:
        for name in networks:
            if name not in colors and color not in colors.values() and re.search(pattern, name, re.IGNORECASE):
                colors[name] = color
    palette = [str(c).lower() for c in seaborn.color_palette("colorblind").as_hex()]
    spare = [c for c in palette if c not in {BLUE, RED, "#949494"}]
    unnamed = [name for name in networks if name not in colors]
    spare += [str(c) for c in seaborn.color_palette("husl", max(len(unnamed) - len(spare), 0)).as_hex()]
    colors.update(zip(unnamed, spare, strict=False))
    return {name: colors[name] for name in networks}


def phase_ramp(count: int) -> list[tuple[float, float, float]]:
    """Return colors from light to dark, one per phase."""
    ramp = seaborn.color_palette("crest", as_cmap=True)
    places = [1.0] if count == 1 else np.linspace(0.0, 1.0, count)
    return [tuple(float(part) for part in ramp(place)[:3]) for place in places]  # type: ignore[misc]


def name_ticks(
    ax: Axes,
    names: Sequence[str],
    places: Sequence[float],
    width: float,
    *,
    axis: str = "x",
    upright_below: float = 0.19,
) -> None:
    """Set layer names as tick labels, shortened, and rotated where they would overlap.

    ``places`` are the tick positions and ``width`` the inches between two ticks. Below ``upright_below`` inches, names
    on the x axis are vertical instead of slanted.
    """
    short = short_names(names)
    if axis == "y":
        ax.set_yticks(places, short)
        return
    longest = max(len(name) for name in short)
    if longest * 0.066 < width - 0.06:
        ax.set_xticks(places, short)
    elif width >= upright_below:
        ax.set_xticks(places, short, rotation=42, ha="right", rotation_mode="anchor")
    else:
        ax.set_xticks(places, short, rotation=90, ha="center", va="top")


def draw_line(
    ax: Axes, xs: Sequence[float], table: pd.DataFrame, *, color: Any, marker: str, label: str, width: float = 1.4
) -> None:
    """Draw a curve of seed means with its min-max band; points judged unreliable are hollow.

    ``xs`` are horizontal positions, one per row of ``table``, which contains averages (see ``Rows.averages``).
    """
    x, mean = np.asarray(xs, dtype=float), table["mean"].to_numpy(dtype=float)
    if bool(table["seeds"].gt(1).any()):
        low, high = table["smallest"].to_numpy(dtype=float), table["largest"].to_numpy(dtype=float)
        ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0, label=f"_band {label}")
    ax.plot(x, mean, color=color, linewidth=width, label=label)
    hollow = table["unreliable"].to_numpy(dtype=bool)
    for mask, face, what in ((~hollow, color, "trusted"), (hollow, "white", "unreliable")):
        if mask.any():
            ax.plot(
                x[mask],
                mean[mask],
                linestyle="none",
                marker=marker,
                color=color,
                markerfacecolor=face,
                markeredgewidth=1.0,
                label=f"_{what} {label}",
                zorder=3 if what == "trusted" else 4,
            )


def line_key(label: str, *, color: Any, linestyle: Any = "-", marker: str = "", width: float = 1.4) -> Line2D:
    """Return a legend entry."""
    return Line2D([], [], color=color, linestyle=linestyle, marker=marker, linewidth=width, label=clip_text(label, 44))


def hollow_key() -> Line2D:
    """Return the legend entry of a point judged unreliable."""
    return Line2D(
        [], [], color=SOFT, linestyle="none", marker="o", markerfacecolor="white", label="hollow: judged unreliable"
    )


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, Any]]) -> None:
    """Write a label to the right of the axes for each line end, moved apart where labels would overlap.

    ``ends`` contains x and y of the last point, text and color of each line. The axes must already be laid out.
    """
    if not ends:
        return
    low, high = ax.get_ylim()
    inches = ax.get_window_extent().height / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    gap = 0.125 * (high - low) / inches
    for (x, y, text, color), spot in zip(ends, spread([e[1] for e in ends], gap, low, high), strict=True):
        ax.annotate(
            text,
            xy=(x, y),
            xytext=(1.02, spot),
            xycoords="data",
            textcoords=ax.get_yaxis_transform(),
            va="center",
            ha="left",
            fontsize=7,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 2},
            annotation_clip=False,
        )


def caption_facts(flow: Flow, rows: Rows, *, band: bool = True) -> list[str]:
    """Return caption sentences about the plotted rows: pooling, noise, N, probe and seeds.

    ``band`` says whether the figure draws the seeds as a band.
    """
    table = rows.students
    readouts = _listed(sorted({str(r) for r in table["readout"] if isinstance(r, str) and r}))
    probes = _listed(sorted({str(p) for p in table["probe"] if isinstance(p, str) and p}))
    counts = sorted({int(n) for n in table["n"].dropna() if n > 0})
    facts = []
    if rows.quantity == "accuracy":
        facts.append("accuracy as recorded with the activations, not verified")
    else:
        facts.append(f"pooling {readouts or 'not recorded'}")
        facts.append("no noise added" if rows.noise is None else f"teacher noise σ = {rows.noise:g}")
        student_noise = flow.settings.get("student_noise")
        if rows.noise is not None and student_noise is not None:
            facts[-1] += f" and student noise σ = {float(student_noise):g}, in RMS SDs of the layer"
        facts.append(f"{probes} probe" if probes else "no label probe")
    if rows.quantity == "recovered_share":
        facts.append("fractions are bias-corrected for few samples")
    if len(counts) == 1:
        facts.append(f"N\u00a0=\u00a0{counts[0]:,}")
    elif counts:
        facts.append(f"N differs, {counts[0]:,} to {counts[-1]:,}: compare with care")
    facts.append(_seeds_fact(rows, band))
    return [fact[0].upper() + fact[1:] for fact in facts]


def _seeds_fact(rows: Rows, band: bool) -> str:
    seeds = {name: sorted(group["seed"].unique()) for name, group in rows.students.groupby("network", sort=False)}
    distinct = {tuple(numbers) for numbers in seeds.values()}
    if len(distinct) == 1:
        numbers = next(iter(distinct))
        alone = f"1 run (seed {numbers[0]})" + (", no band" if band else "")
        fact = f"{len(numbers)}\u00a0seeds ({', '.join(map(str, numbers))})" if len(numbers) > 1 else alone
    else:
        fact = "; ".join(f"{clip_text(str(k), 30)}: seeds {', '.join(map(str, v))}" for k, v in seeds.items())
    if band and any(len(numbers) > 1 for numbers in distinct):
        fact += ", lines are means and bands range from the smallest to the largest value"
    counts = rows.averages()["seeds"]
    if len(distinct) == 1 and counts.min() < counts.max():
        fact += f" (some points are based on only {int(counts.min())} of them)"
    return fact


def teacher_label(rows: Rows) -> str:
    """Return the teacher's legend label, with its number of runs, since one run has no band."""
    runs = int(rows.teacher["seed"].nunique())
    return f"teacher, final ({'1 run' if runs == 1 else f'mean of {runs} runs'})"


def _listed(items: Sequence[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def legend_rows(keys: Sequence[Artist], width: float) -> tuple[int, int]:
    """Return the columns and rows of a legend that fits the width in inches."""
    if not keys:
        return 1, 0
    wide = [0.5 + 0.059 * len(str(key.get_label())) for key in keys]
    fitting = (c for c in range(len(keys), 0, -1) if sum(max(wide[k::c]) for k in range(c)) <= width - 2 * _LEFT)
    columns = next(fitting, 1)
    return columns, -(-len(keys) // columns)


def finish(
    fig: Figure,
    title: str,
    keys: Sequence[Artist],
    facts: Sequence[str],
    *,
    annotate: Callable[[], None] | None = None,
    bands: Sequence[Band] = (),
) -> None:
    """Put title and legend above the panels, bands and caption below them, and lay the figure out.

    The figure is sized for its panels only. ``title`` is one line, ``keys`` are legend entries, ``facts`` the sentences
    of the caption, and ``bands`` rows between panels and caption, from the top. ``annotate`` draws what can be
    positioned only after the panels have their size; the layout makes room for it.
    """
    width, body = fig.get_size_inches()
    columns, rows = legend_rows(keys, width)
    lines = textwrap.wrap(". ".join(facts) + ".", max(30, int((width - 2 * _LEFT) / 0.051)))
    header = _TITLE + rows * _ROW + 0.02
    room = width - 2 * _LEFT
    footer = 0.12 + len(lines) * _CAPTION_LINE + sum(band.height(room) for band in bands)
    height = header + body + footer
    fig.set_size_inches(width, height)
    left = _LEFT / width
    title_lines = textwrap.shorten(title, int((width - 2 * _LEFT) / 0.085), placeholder=" …")
    fig.text(left, 1 - 0.08 / height, title_lines, ha="left", va="top", fontsize=9.5, fontweight="bold")
    if keys:
        fig.legend(
            handles=[key for column in range(columns) for key in list(keys)[column::columns]],
            loc="upper left",
            bbox_to_anchor=(left, 1 - _TITLE / height),
            ncols=columns,
            borderaxespad=0,
            borderpad=0,
            handlelength=1.9,
            columnspacing=1.4,
            labelspacing=0.35,
        )
    top = footer
    for band in bands:
        top -= band.height(room)
        band.draw(fig, _LEFT, top, room)
    fig.text(left, 0.07 / height, "\n".join(lines), ha="left", va="bottom", fontsize=6.8, color=SOFT, linespacing=1.25)
    fig.set_layout_engine(
        "constrained", rect=(_SIDE / width, footer / height, 1 - 2 * _SIDE / width, 1 - (header + footer) / height)
    )
    for ax in fig.axes:  # Set explicitly, because matplotlib chooses ticks by the label size in effect while drawing.
        ax.tick_params(labelsize=7.0 if ax.get_label() == "<colorbar>" else _STYLE["xtick.labelsize"])
    fig.draw_without_rendering()
    if annotate is not None:
        annotate()
        fig.draw_without_rendering()
    fig.set_layout_engine("none")
