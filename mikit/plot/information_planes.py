"""The noisy information plane: information of a layer about the input against information about the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mikit.core.errors import InputError
from mikit.plot.drawing.bands import verdict_bar
from mikit.plot.drawing.names import clip_text, short_names
from mikit.plot.drawing.style import INK, MARKERS, SOFT, caption_facts, figure_style, finish, line_key, teacher_label
from mikit.plot.drawing.tables import Rows, choose_phases, label_entropy, layers_of, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mikit.flow import Flow

__all__ = ["information_plane"]

_CAPPED = 0.92
_KEYS = ["network", "seed", "phase", "layer"]


def information_plane(
    flow: Flow,
    *,
    noise: float | None = None,
    networks: Sequence[str] | None = None,
    phases: Sequence[int] | None = None,
    verdicts: bool = True,
) -> Figure:
    """The noisy information plane: I(X; T + noise) against I(T; Y), one path per layer over the phases.

    The information about the input is on the x axis. Paths start at the small point and end at the large one. They are
    means over seeds, and thin bars range from the smallest to the largest value. The line at log N is the upper limit
    of the x axis for N samples; points within 8 % of it are hollow, because there the value depends on the number of
    samples and not on the layer.

    Args:
        flow: A flow returned by :func:`mikit.trace`, traced with labels and ``information_plane=True``.
        noise: Noise level of the x axis, in RMS SDs of the layer. Default: the smallest at which at most half of the
            points are at the cap, otherwise the largest.
        networks: Student networks to draw, in this order. Default: all.
        phases: Phases to draw. Default: all.
        verdicts: Whether to draw the verdict bar, by phase.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state, one panel per network with shared axes.

    Raises:
        InputError: If the flow lacks one of the two quantities or a requested noise level, network or phase, if the two
            are in different units or from different numbers of samples, or if the rows of either mix units, kinds,
            probes, poolings of one layer, or numbers of samples.

    Cost:
        About half a second per network.

    Pitfalls:
        - This is geometry. The layers are deterministic functions of the input, and without noise each contains all of
          its information. A move to the left means that samples are closer together in units of the noise.
        - The x axis depends on the noise; its size is part of the quantity. Noise large enough to stay below the cap
          may already hide the labels, whose information is estimated without noise here.
        - The label information that a linear probe finds can increase with depth, which information cannot.

    Examples:
        >>> import mikit
        >>> mikit.plot.information_plane(run)
        Traceback (most recent call last):
        mikit.core.errors.InputError: ... Pass information_plane=True to mikit.trace.
    """
    labels = select(flow, "label_information", networks=networks)
    plane = select(flow, "input_information", noise=_chosen(flow, networks) if noise is None else noise,
                   networks=networks)  # fmt: skip
    _refuse_different(plane, labels)
    chosen = choose_phases(plane.phases, len(plane.phases), phases)
    points = _points(plane.students, labels.students)
    points = points[points["phase"].isin(chosen)]
    if points.empty:
        raise InputError(
            "No layer and phase has both input information and label information. Trace again into the same folder "
            "without a budget."
        )
    with figure_style():
        figure = _draw(flow, plane, labels, points, chosen, verdicts)
    return figure


def _chosen(flow: Flow, networks: Sequence[str] | None) -> float | None:
    levels = select(flow, "input_information", networks=networks).noises
    for level in levels:
        rows = select(flow, "input_information", noise=level, networks=networks).students
        if (rows["value"] >= _CAPPED * rows["ceiling"]).mean() <= 0.5:
            return level
    return levels[-1] if levels else None


def _refuse_different(plane: Rows, labels: Rows) -> None:
    if plane.unit != labels.unit:
        raise InputError(
            f"The input information is in {plane.unit} and the label information in {labels.unit}. An information "
            "plane needs one unit: convert one of them."
        )
    across, upwards = (rows.students["n"].iloc[0] for rows in (plane, labels))
    if across != upwards:
        raise InputError(
            f"The input information was estimated from N = {across:,} samples and the label information from "
            f"N = {upwards:,}. Trace both on the same samples."
        )


def _points(plane: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Return means and ranges over seeds for rows that have both quantities, and whether a point is at the cap."""
    inputs = plane[[*_KEYS, "layer_index", "value", "ceiling", "verdict"]]
    both = inputs.merge(labels[[*_KEYS, "value"]], on=_KEYS, suffixes=("_x", "_y")).dropna(
        subset=["value_x", "value_y"]
    )
    capped = both["value_x"].ge(_CAPPED * both["ceiling"]) | both["verdict"].eq("unreliable")
    return (
        both.assign(capped=capped)
        .groupby(["network", "phase", "layer", "layer_index"], sort=False, as_index=False)
        .agg(
            x=("value_x", "mean"),
            x_low=("value_x", "min"),
            x_high=("value_x", "max"),
            y=("value_y", "mean"),
            y_low=("value_y", "min"),
            y_high=("value_y", "max"),
            ceiling=("ceiling", "max"),
            capped=("capped", "any"),
        )
    )


def _draw(flow: Flow, plane: Rows, labels: Rows, points: pd.DataFrame, phases: list[int], verdicts: bool) -> Figure:
    cap, layers = float(points["ceiling"].max()), layers_of(plane.students)
    entropy = label_entropy(flow) if labels.unit == "nats" else None
    colors = seaborn.color_palette("flare", len(layers))
    looks = {layer: (colors[i], MARKERS[i % len(MARKERS)]) for i, layer in enumerate(layers)}
    teacher = _points(plane.teacher, labels.teacher) if len(plane.teacher) and len(labels.teacher) else points.iloc[:0]
    figure = _draw_panels(plane, labels, points, teacher, looks, entropy)
    short = dict(zip(layers, short_names(layers, 14), strict=True))
    keys: list[Any] = [line_key(short[layer], color=color, marker=mark) for layer, (color, mark) in looks.items()]
    keys.append(line_key(f"cap: log N = {cap:.2f} {plane.unit}", color=INK, width=1.2))
    keys.append(Patch(facecolor="#e4e4e4", linewidth=0, label="within 8 % of the cap"))
    if bool(points["capped"].any()):
        hollow = Line2D([], [], color=SOFT, linestyle="none", marker="o", markerfacecolor="white")
        hollow.set_label("hollow: at the cap, or judged unreliable")
        keys.append(hollow)
    if entropy is not None:
        keys.append(line_key(f"H(Y) = {entropy:.2f} {labels.unit}", color=SOFT, linestyle=":", width=1.1))
    if not teacher.empty:
        keys.append(line_key(teacher_label(labels), color=INK, linestyle="--", width=1.0, marker="."))
    shown = plane.students[plane.students["phase"].isin(phases)]
    bands = [verdict_bar(shown, "phase", phases)] if verdicts else []
    facts = _facts(flow, plane, labels, points, phases)
    finish(figure, "The noisy information plane: geometry of the layers", keys, facts, bands=bands)
    return figure


def _draw_panels(
    plane: Rows,
    labels: Rows,
    points: pd.DataFrame,
    teacher: pd.DataFrame,
    looks: dict[str, tuple[Any, str]],
    entropy: float | None,
) -> Figure:
    """Draw the paths of all layers, one panel per network; ``looks`` are color and marker by layer."""
    names, cap = plane.networks, float(points["ceiling"].max())
    across = min(len(names), 3)
    lines = -(-len(names) // across)
    figure = Figure(figsize=(max(across * 2.75 + 0.5, 4.6), lines * 2.75))
    grid = figure.subplots(lines, across, sharex=True, sharey=True, squeeze=False)
    for spare in grid.flat[len(names) :]:
        spare.remove()
    several = int(plane.students["seed"].nunique()) > 1
    for place, (name, ax) in enumerate(zip(names, grid.flat, strict=False)):
        _draw_limits(ax, cap, entropy)
        if not teacher.empty:
            last = teacher[teacher["phase"].eq(teacher["phase"].max())].sort_values("layer_index")
            ax.plot(last["x"], last["y"], color=INK, linestyle="--", linewidth=1.0, marker=".", label="teacher")
        for layer, (color, marker) in looks.items():
            path = points[points["network"].eq(name) & points["layer"].eq(layer)].sort_values("phase")
            _draw_path(ax, path, layer, color, marker, bars=several)
        ax.set_title(clip_text(name, 34))
        ax.tick_params(labelbottom=True)
        if place % across == 0:
            ax.set_ylabel(f"I(T; Y), found by the probe ({labels.unit})")
        if place >= len(names) - across:
            ax.set_xlabel(f"I(X; T + noise), σ = {plane.noise:g} ({plane.unit})")
    high = max([*points["y_high"], *teacher["y"], entropy or 0.0])
    low = min(0.0, *points["y_low"], *points["x_low"])
    grid.flat[0].set_xlim(low, 1.05 * max(cap, *points["x_high"]))
    grid.flat[0].set_ylim(min(0.0, float(points["y_low"].min())), 1.08 * high)
    return figure


def _draw_limits(ax: Axes, cap: float, entropy: float | None) -> None:
    ax.grid(True, axis="both")
    ax.axvspan(_CAPPED * cap, cap, color="#e4e4e4", linewidth=0, zorder=0)
    ax.axvline(cap, color=INK, linewidth=1.2, label="log N", zorder=1)
    if entropy is not None:
        ax.axhline(entropy, color=SOFT, linestyle=":", linewidth=1.1, label="H(Y)", zorder=1)


def _draw_path(ax: Axes, path: pd.DataFrame, layer: str, color: Any, marker: str, *, bars: bool) -> None:
    if path.empty:
        return
    x, y = path["x"].to_numpy(dtype=float), path["y"].to_numpy(dtype=float)
    if bars:
        ax.hlines(y, path["x_low"], path["x_high"], color=color, linewidth=0.7, alpha=0.6, label=f"_across {layer}")
        ax.vlines(x, path["y_low"], path["y_high"], color=color, linewidth=0.7, alpha=0.6, label=f"_upwards {layer}")
    ax.plot(x, y, color=color, linewidth=1.1, label=layer, zorder=2.5)
    sizes = np.full(len(x), 10.0)
    sizes[0], sizes[-1] = 4.0, 30.0
    faces = ["white" if capped else color for capped in path["capped"]]
    ax.scatter(x, y, s=sizes, c=faces, edgecolors=[color] * len(x), linewidths=0.9, marker=marker, zorder=3,
               label=f"_points {layer}")  # fmt: skip


def _facts(flow: Flow, plane: Rows, labels: Rows, points: pd.DataFrame, phases: list[int]) -> list[str]:
    asked = plane.students["phase"].isin(phases)
    missing = int(asked.sum()) - len(
        plane.students[asked].merge(labels.students, on=_KEYS).dropna(subset=["value_x", "value_y"])
    )
    facts = [
        "Geometry, not gain or loss of information: layers are functions of the input, and without noise each contains "
        "all of its information. Towards the left, samples are closer together in units of the noise",
        f"Horizontal: information of the layer plus noise of σ = {plane.noise:g} RMS SDs of the layer about the input",
        "Vertical: label information of the layer without noise",
        f"{100 * points['capped'].mean():.0f} % of the points are at the cap",
    ]
    if len(plane.noises) > 1:
        facts.append(f"Noise levels measured: {', '.join(f'{level:g}' for level in plane.noises)}")
    about_labels = [fact for fact in caption_facts(flow, labels, band=False) if fact != "No noise added"]
    facts += about_labels
    facts.append(f"From the small point (phase {phases[0]}) to the large one (phase {phases[-1]})")
    if "seeds" in about_labels[-1]:
        facts.append("Points are means over seeds, bars range from the smallest to the largest value")
    if missing:
        facts.append(f"{missing} rows without one of the two values are not drawn")
    return facts
