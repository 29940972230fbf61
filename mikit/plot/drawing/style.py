"""How the pictures look: one style, fixed colours, layer names that fit, header and caption around the panels."""

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
_SIDE = 0.06  # Letters are wider in some resolutions than in the one that figures are laid out in.
_LEFT, _TITLE, _ROW, _CAPTION_LINE = 0.12, 0.30, 0.165, 0.132


@contextmanager
def figure_style() -> Iterator[None]:
    """The style of the figures; whatever the caller set before holds again afterwards."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def network_colors(networks: Sequence[str]) -> dict[str, str]:
    """One fixed colour per network: grey for the student alone, blue for VID, red for a control.

    Args:
        networks: Network names.

    Returns:
        Colour by network; every other network takes the next of a colour-blind-safe palette.

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
    """Colours from light to dark, one per phase."""
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
    """Layer names as tick labels, turned where they would touch.

    Args:
        ax: The axes.
        names: Layer names; they are shortened here.
        places: Positions of the ticks.
        width: Inches between two ticks.
        axis: ``"x"`` or ``"y"``.
        upright_below: Inches between two ticks from which downwards the names stand upright instead of slanting.
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
    """One curve of seed means with its min-max band; points judged unreliable are hollow.

    Args:
        ax: The axes.
        xs: Horizontal positions, one per row of the table.
        table: Averages (see ``Rows.averages``) in drawing order.
        color: Colour of line, band and markers.
        marker: Marker shape.
        label: Label of the line.
        width: Line width in points.
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
    """A legend entry."""
    return Line2D([], [], color=color, linestyle=linestyle, marker=marker, linewidth=width, label=clip_text(label, 44))


def hollow_key() -> Line2D:
    """The legend entry of a point judged unreliable."""
    return Line2D(
        [], [], color=SOFT, linestyle="none", marker="o", markerfacecolor="white", label="hollow: judged unreliable"
    )


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, Any]]) -> None:
    """Write a label to the right of the axes for each line end, moved apart where they would touch.

    Args:
        ax: The axes, laid out already.
        ends: x and y of the line's last point, text and colour.
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
    """What a reader must know of the drawn rows: readout, noise, N, probe and seeds, as sentences.

    Args:
        flow: The flow.
        rows: The drawn rows.
        band: Whether the figure draws the seeds as a band.

    Returns:
        Sentences for the caption.
    """
    table = rows.students
    readouts = _listed(sorted({str(r) for r in table["readout"] if isinstance(r, str) and r}))
    probes = _listed(sorted({str(p) for p in table["probe"] if isinstance(p, str) and p}))
    counts = sorted({int(n) for n in table["n"].dropna() if n > 0})
    facts = []
    if rows.quantity == "accuracy":
        facts.append("accuracy as noted when the activations were captured, which nothing here checks")
    else:
        facts.append(f"readout {readouts or 'not recorded'}")
        facts.append("no noise added" if rows.noise is None else f"teacher noise σ = {rows.noise:g}")
        student_noise = flow.settings.get("student_noise")
        if rows.noise is not None and student_noise is not None:
            facts[-1] += f" and student noise σ = {float(student_noise):g}, in RMS SDs of the layer"
        facts.append(f"{probes} probe" if probes else "no label probe")
    if rows.quantity == "recovered_share":
        facts.append("shares are freed from the bias of few rows")
    if len(counts) == 1:
        facts.append(f"N\u00a0=\u00a0{counts[0]:,}")
    elif counts:
        facts.append(f"N differs, {counts[0]:,} to {counts[-1]:,}: compare with care")
    facts.append(_seeds_said(rows, band))
    return [fact[0].upper() + fact[1:] for fact in facts]


def _seeds_said(rows: Rows, band: bool) -> str:
    seeds = {name: sorted(group["seed"].unique()) for name, group in rows.students.groupby("network", sort=False)}
    distinct = {tuple(own) for own in seeds.values()}
    if len(distinct) == 1:
        own = next(iter(distinct))
        alone = f"1 run (seed {own[0]})" + (", no band" if band else "")
        said = f"{len(own)}\u00a0seeds ({', '.join(map(str, own))})" if len(own) > 1 else alone
    else:
        said = "; ".join(f"{clip_text(str(k), 30)}: seeds {', '.join(map(str, v))}" for k, v in seeds.items())
    if band and any(len(own) > 1 for own in distinct):
        said += ", lines are means and bands reach from the smallest to the largest"
    counts = rows.averages()["seeds"]
    if len(distinct) == 1 and counts.min() < counts.max():
        said += f" (some points rest on {int(counts.min())} of them only)"
    return said


def teacher_said(rows: Rows) -> str:
    """How the legend calls the teacher: with its number of runs, since one run has no band."""
    runs = int(rows.teacher["seed"].nunique())
    return f"teacher, final ({'1 run' if runs == 1 else f'mean of {runs} runs'})"


def _listed(items: Sequence[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def legend_rows(keys: Sequence[Artist], width: float) -> tuple[int, int]:
    """Columns and rows of a legend that fits the width (inches)."""
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
    """Put title and legend above the panels, bands and caption under them, and lay the figure out.

    Args:
        fig: The figure, sized for its panels only.
        title: One line that says what is drawn.
        keys: Legend entries.
        facts: Sentences of the caption.
        annotate: Draws what can only be placed once the panels have their size; room is made for it.
        bands: Rows between panels and caption, from the top; the strip of verdicts is one.
    """
    width, body = fig.get_size_inches()
    columns, rows = legend_rows(keys, width)
    lines = textwrap.wrap(". ".join(facts) + ".", max(30, int((width - 2 * _LEFT) / 0.051)))
    header = _TITLE + rows * _ROW + 0.02
    room = width - 2 * _LEFT
    said = 0.12 + len(lines) * _CAPTION_LINE
    footer = said + sum(band.height(room) for band in bands)
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
    for ax in fig.axes:  # Said outright, because matplotlib chooses its ticks by the label size set when it draws.
        ax.tick_params(labelsize=7.0 if ax.get_label() == "<colorbar>" else _STYLE["xtick.labelsize"])
    fig.draw_without_rendering()
    if annotate is not None:
        annotate()
        fig.draw_without_rendering()
    fig.set_layout_engine("none")
