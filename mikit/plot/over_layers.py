"""Figures with layers on the x axis: label information and the signed gap to the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mikit.plot.drawing.bands import verdict_bar
from mikit.plot.drawing.names import clip_text, short_names
from mikit.plot.drawing.style import (
    INK,
    MARKERS,
    SOFT,
    caption_facts,
    draw_line,
    figure_style,
    finish,
    hollow_key,
    label_ends,
    line_key,
    name_ticks,
    phase_ramp,
    teacher_label,
)
from mikit.plot.drawing.tables import Rows, choose_phases, label_entropy, layers_of, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mikit.flow import Flow

__all__ = ["flow", "gap"]

_MOST_FLOW, _MOST_GAP = 5, 3
_SATURATED = 0.9


def flow(
    flow: Flow,
    *,
    networks: Sequence[str] | None = None,
    phases: Sequence[int] | None = None,
    verdicts: bool = True,
) -> Figure:
    """Flow curves: label information of every layer, one panel per student network, one line per phase.

    Lines are means over seeds, and bands range from the smallest to the largest seed. The dashed line is the final
    teacher and the dotted one H(Y), an upper limit of the true value. Hollow points were judged unreliable.

    Args:
        flow: A flow returned by :func:`mikit.trace`, traced with labels.
        networks: Student networks to draw, in this order. Default: all.
        phases: Up to five phases. Default: the first, the last and others equally spaced by rank.
        verdicts: Whether to draw the verdict bar, by layer.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state; the y axis is in the frame's unit (nats).

    Raises:
        InputError: If the flow has no label information, lacks a requested network or phase, or mixes units, kinds,
            probes, poolings of one layer, or numbers of samples.

    Cost:
        About half a second; memory of a few megabytes.

    Pitfalls:
        Label information grows with the number of probe samples: compare only curves of the same N. If the first layer
        already contains 90 % of H(Y), the panel says "saturated": the task is too easy for the curves to differ. A
        teacher with other layer names is drawn at the same relative depth, which is a convention, not a finding.

    Examples:
        >>> import mikit
        >>> figure = mikit.plot.flow(run)
    """
    rows = select(flow, "label_information", networks=networks)
    entropy = label_entropy(flow) if rows.unit == "nats" else None
    with figure_style():
        panels = _LayerPanels(rows, choose_phases(rows.phases, _MOST_FLOW, phases))
        panels.draw()
        notes = panels.draw_teacher()
        top = panels.limits(floor=0.0)
        if entropy is not None:
            top = (top[0], max(top[1], 1.06 * entropy))
        saturated = []
        for network, ax in zip(panels.networks, panels.axes, strict=True):
            ax.set_ylim(top)
            if entropy is not None:
                ax.axhline(entropy, color=SOFT, linestyle=":", linewidth=1.1, label="H(Y)")
                if panels.first_layer(network) > _SATURATED * entropy:
                    saturated.append(network)
                    ax.text(0.97, 0.04, "saturated", transform=ax.transAxes, ha="right", va="bottom", color=SOFT)
        keys = [line_key(teacher_label(rows), color=INK, linestyle="--", width=1.3)] if not rows.teacher.empty else []
        if entropy is not None:
            keys.append(line_key(f"H(Y) = {entropy:.2f} {rows.unit}", color=SOFT, linestyle=":", width=1.1))
        facts = [*panels.facts(flow), *notes]
        if entropy is None:
            facts.append("H(Y) not recorded")
        facts += [f"Saturated: the first layer of {name} already contains over 90 % of H(Y)" for name in saturated]
        title = "Label information by layer and phase"
        panels.close(f"label information ({rows.unit})", title, keys, facts, verdicts)
    return panels.figure


def gap(
    flow: Flow,
    *,
    networks: Sequence[str] | None = None,
    phases: Sequence[int] | None = None,
    verdicts: bool = True,
) -> Figure:
    """Signed gap to the teacher: each layer's label information minus the teacher's at the same relative depth.

    Args:
        flow: A flow returned by :func:`mikit.trace`, traced with labels.
        networks: Student networks to draw, in this order. Default: all.
        phases: Up to three phases. Default: the first, a middle one and the last.
        verdicts: Whether to draw the verdict bar, by layer.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state, one panel per network around the zero line, in the frame's
        unit (nats).

    Raises:
        InputError: If the flow has no label gap, lacks a requested network or phase, or mixes units, kinds, probes,
            poolings of one layer, or numbers of samples.

    Cost:
        About half a second; memory of a few megabytes.

    Pitfalls:
        The gap compares amounts, not contents: a gap of zero does not mean that the layers contain the same
        information.

    Examples:
        >>> import mikit
        >>> figure = mikit.plot.gap(run)
    """
    rows = select(flow, "label_gap", networks=networks)
    with figure_style():
        panels = _LayerPanels(rows, choose_phases(rows.phases, _MOST_GAP, phases))
        panels.draw()
        limits = panels.limits(floor=None)
        for ax in panels.axes:
            ax.set_ylim(limits)
            ax.axhline(0, color=INK, linewidth=0.9, label="zero", zorder=1.5)
        facts = [
            "Below zero: the student layer has less label information than the teacher's at the same relative depth",
            *panels.facts(flow),
        ]
        keys = [line_key("zero: as much as the teacher", color=INK, width=0.9)]
        unit = rows.unit
        title = "Label information: signed gap to the teacher"
        panels.close(f"student − teacher ({unit})", title, keys, facts, verdicts)
    return panels.figure


class _LayerPanels:
    """One panel per network with layers on the x axis and one line per phase."""

    def __init__(self, rows: Rows, phases: list[int]) -> None:
        self.rows, self.phases, self.networks = rows, phases, rows.networks
        self.averages = rows.averages()
        self.layers = {name: layers_of(rows.students, name) for name in self.networks}
        most = max(len(layers) for layers in self.layers.values())
        self.panel = min(max(2.3, 0.27 * most + 0.4), 5.0)
        self.columns = max(1, min(len(self.networks), int(10.5 / (self.panel + 0.55))))
        lines = -(-len(self.networks) // self.columns)
        width = max(self.columns * (self.panel + 0.55) + 0.55, 4.2)
        self.figure = Figure(figsize=(width, lines * 2.55))
        grid = self.figure.subplots(lines, self.columns, sharey=True, squeeze=False)
        for spare in grid.flat[len(self.networks) :]:
            spare.remove()
        self.axes: list[Axes] = list(grid.flat[: len(self.networks)])
        self.ends: list[list[tuple[float, float, str, Any]]] = []

    def draw(self) -> None:
        """Draw every phase of every network."""
        for network, ax in zip(self.networks, self.axes, strict=True):
            layers, ends = self.layers[network], []
            for phase, color in zip(self.phases, phase_ramp(len(self.phases)), strict=True):
                line = self._line(network, phase)
                if line["mean"].isna().all():
                    continue
                draw_line(ax, range(len(layers)), line, color=color, marker=MARKERS[0], label=f"phase {phase}")
                last = int(np.flatnonzero(line["mean"].notna().to_numpy())[-1])
                ends.append((float(last), float(line["mean"].iloc[last]), f"phase {phase}", color))
            self.ends.append(ends)
            ax.set_title(clip_text(network, int(self.panel * 13)))
            ax.set_xlim(-0.35, max(len(layers) - 0.65, 0.35))
            name_ticks(ax, layers, range(len(layers)), self.panel / max(len(layers), 1))

    def _line(self, network: str, phase: int) -> pd.DataFrame:
        chosen = self.averages[self.averages["network"].eq(network) & self.averages["phase"].eq(phase)]
        line = chosen.set_index("layer").reindex(self.layers[network])
        return line.assign(unreliable=line["unreliable"].eq(True), seeds=line["seeds"].fillna(0))

    def draw_teacher(self) -> list[str]:
        """Draw the final teacher in every panel; return sentences for the caption."""
        if self.rows.teacher.empty:
            return ["No teacher rows in the frame"]
        table = self.rows.teacher_averages().sort_values("layer_index", kind="stable")
        names, values = [str(n) for n in table["layer"]], table["mean"].to_numpy(dtype=float)
        moved = False
        for network, ax in zip(self.networks, self.axes, strict=True):
            layers = self.layers[network]
            if set(names) <= set(layers):
                xs = [float(layers.index(name)) for name in names]
            else:
                moved = True
                xs = [(len(layers) - 1) * i / max(len(names) - 1, 1) for i in range(len(names))]
            ax.plot(xs, values, color=INK, linestyle="--", linewidth=1.3, label="teacher", zorder=2.5)
        if not moved:
            return []
        return [f"Teacher drawn at the same relative depth; its layers are {', '.join(short_names(names))}"]

    def first_layer(self, network: str) -> float:
        """Return the value of the first layer at the last plotted phase."""
        return float(self._line(network, self.phases[-1])["mean"].iloc[0])

    def limits(self, floor: float | None) -> tuple[float, float]:
        """Return y limits around all lines and bands; from ``floor`` if nothing is below it, else around zero."""
        shown = self.averages[self.averages["phase"].isin(self.phases)]
        values = [shown["smallest"].min(), shown["largest"].max(), 0.0]
        if floor is not None and not self.rows.teacher.empty:
            values += [self.rows.teacher["value"].min(), self.rows.teacher["value"].max()]
        finite = [float(v) for v in values if np.isfinite(v)]
        low, high = min(finite), max(finite)
        pad = 0.06 * max(high - low, 1e-6)
        return (floor if floor is not None and low >= floor else low - pad), high + pad

    def facts(self, flow: Flow) -> list[str]:
        """Return the caption sentences."""
        facts = caption_facts(flow, self.rows)
        every = self.rows.phases
        if len(self.phases) < len(every):
            facts.append(f"Phases shown: {_numbers(self.phases)} of {_numbers(every)}")
        if any(short_names(layers) != layers for layers in self.layers.values()):
            facts.append("Layer names shortened")
        return facts

    def close(self, ylabel: str, title: str, keys: list[Any], facts: list[str], verdicts: bool) -> None:
        """Add labels, legend, verdict bar and caption."""
        for place, ax in enumerate(self.axes):
            if place % self.columns == 0:
                ax.set_ylabel(ylabel)
            if place >= len(self.axes) - self.columns:
                ax.set_xlabel("layer, input to output")
        shown = self.averages[self.averages["phase"].isin(self.phases)]
        if bool(shown["unreliable"].any()):
            keys = [*keys, hollow_key()]
        rows = self.rows.students
        drawn = rows[rows["phase"].isin(self.phases)]
        bands = [verdict_bar(drawn, "layer", layers_of(drawn))] if verdicts else []
        finish(self.figure, title, keys, facts, annotate=self._label_ends, bands=bands)

    def _label_ends(self) -> None:
        for ax, ends in zip(self.axes, self.ends, strict=True):
            label_ends(ax, ends)


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
