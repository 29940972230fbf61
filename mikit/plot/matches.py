"""The teacher layer that each matching rule selects for each student layer, and its ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from mikit.plot.drawing.cells import OUTLINE, draw_cells, is_dark, name_layers, print_cells
from mikit.plot.drawing.names import clip_text, short_names
from mikit.plot.drawing.style import INK, SOFT, figure_style, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mikit.flow import LayerMatch
    from mikit.flow.matching.result import Pooled

__all__ = ["matching"]

_TITLES = {
    "directional": "most recoverable from",
    "held_out": "held-out score alone",
    "cka": "linear CKA",
    "share": "fraction recovered",
    "nearest": "nearest label information",
    "monotone": "nearest, in order",
}
_UNITS = {
    "directional": "fraction of the student layer",
    "held_out": "fraction of the student layer",
    "cka": "index, 0 to 1",
    "share": "fraction of the teacher layer",
    "nearest": "distance, nats",
    "monotone": "distance, nats",
}


def matching(
    match: LayerMatch, *, rules: Sequence[str] | None = None, network: str | None = None, phase: int | None = None
) -> Figure:
    """Matching maps: student layers (y) against teacher layers (x), one panel per rule.

    The outlined cell is the layer that the rule selects. Hatched cells are ties: they are less than two standard errors
    worse. A dashed outline marks a choice by convention.

    Args:
        match: A match returned by :func:`mikit.match_layers` or :func:`mikit.flow.match_flow`.
        rules: Rules to draw, in this order. Default: all.
        network: The student network; optional if there is only one.
        phase: The phase. Default: the last.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state.

    Raises:
        InputError: If there is no such rule, network or phase, or if a network must be named.

    Cost:
        About half a second.

    Pitfalls:
        A selected cell does not show that two layers correspond: early teacher layers contain the later ones and are
        selected often. Panels have their own quantities and scales and are not comparable.

    Examples:
        >>> import mikit
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> low = rng.standard_normal((300, 4))
        >>> teacher = {"low": low, "high": np.tanh(low[:, :2])}
        >>> match = mikit.match_layers(teacher, {"only": low[:, :3] + rng.standard_normal((300, 3))})
        >>> figure = mikit.plot.matching(match)
        >>> [ax.get_title(loc="left").splitlines()[0] for ax in figure.axes]
        ['most recoverable from', 'linear CKA']
    """
    pooled = [(rule, match.pooled(rule, network=network, phase=phase)) for rule in rules or match.rules]
    first = pooled[0][1]
    rows, columns = len(first.layers), len(first.teacher_layers)
    cell = float(np.clip(2.1 / max(columns, 1), 0.27, 0.5))
    across = min(len(pooled), max(1, int(8.0 / (cell * columns + 0.9))))
    lines = -(-len(pooled) // across)
    with figure_style():
        figure = Figure(figsize=(max(across * (cell * columns + 0.9) + 0.3, 4.4), lines * (cell * rows + 0.95)))
        grid = figure.subplots(lines, across, squeeze=False)
        for spare in grid.flat[len(pooled) :]:
            spare.remove()
        for place, (ax, (rule, found)) in enumerate(zip(grid.flat, pooled, strict=False)):
            _draw(ax, rule, found, cell)
            ax.set_title(f"{_TITLES[rule]}\n{_UNITS[rule]}")
            if place % across == 0:
                ax.set_ylabel(f"{clip_text(found.network, 24)}\nstudent layer")
            if place >= len(pooled) - across:
                ax.set_xlabel("teacher layer")
        keys = [Patch(facecolor="none", edgecolor=OUTLINE, linewidth=1.5, label="selected")]
        if any(found.tied.any() for _, found in pooled):
            keys.append(Patch(facecolor="none", edgecolor=SOFT, hatch="////", linewidth=0, label="tie: within 2 SE"))
        if any(found.declared.any() for _, found in pooled):
            keys.append(Patch(facecolor="none", edgecolor=OUTLINE, linestyle="--", label="by convention"))
        finish(figure, "Teacher layer selected by each rule", keys, _facts(match, [found for _, found in pooled]))
    return figure


def _draw(ax: Axes, rule: str, found: Pooled, cell: float) -> None:
    values = np.sqrt(found.measured) if rule in ("nearest", "monotone") else found.measured
    if rule in ("directional", "held_out"):
        values = found.shares
    close = rule not in ("nearest", "monotone")
    palette = seaborn.color_palette("mako_r" if close else "mako", as_cmap=True)
    top = max(float(np.nanmax(values)), 1e-12)
    scale = Normalize(0.0, 1.0 if close and top <= 1 else top)
    draw_cells(ax, values, palette, scale)
    colors = palette(scale(values))
    for row, column in np.argwhere(found.tied):
        ink = "white" if is_dark(colors[row, column]) else INK
        hatched = Rectangle((column, row), 1, 1, fill=False, hatch="////", linewidth=0, edgecolor=ink, alpha=0.55)
        hatched.set_gid("tied")
        ax.add_patch(hatched)
    print_cells(ax, values, colors, np.isfinite(values), cell)
    for row, column in enumerate(found.chosen):
        box = Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, fill=False, edgecolor=OUTLINE, linewidth=1.7)
        box.set_linestyle("--" if found.declared[row] else "-")
        box.set_gid("chosen")
        ax.add_patch(box)
    name_layers(ax, found.layers, found.teacher_layers, cell)


def _facts(match: LayerMatch, pooled: Sequence[Pooled]) -> list[str]:
    settings: dict[str, Any] = match.settings
    seeds = pooled[0].seeds
    facts = ["Dark cells are close; each panel has its own quantity and scale"]
    facts += ["Not a correspondence: early teacher layers contain the later ones and are selected often"]
    if settings.get("from") == "activations":
        facts.append(
            f"Student noise σ = {settings['noise']:g}, teacher noise σ = {settings['teacher_noise']:g}, in RMS SDs of "
            "the layer"
        )
    if settings.get("n"):
        facts.append(f"N\u00a0=\u00a0{settings['n']:,}")
    facts.append(f"Phase {pooled[0].phase}, " + ("1 run" if seeds == 1 else f"means of {seeds} seeds"))
    facts.append(f"Errors of differences: {pooled[0].basis}")
    names = [*pooled[0].layers, *pooled[0].teacher_layers]
    if short_names(pooled[0].layers) + short_names(pooled[0].teacher_layers) != names:
        facts.append("Layer names shortened")
    return facts
