"""Figures with training phases on the x axis: one panel per layer, and the accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mikit.core.errors import InputError
from mikit.plot.drawing.bands import Band, verdict_bar
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
    line_key,
    network_colors,
    teacher_label,
)
from mikit.plot.drawing.tables import Rows, label_entropy, layers_of, matching, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mikit.flow import Flow

__all__ = ["accuracy", "keep_pairs", "phase_ticks", "phases"]

_NULL = "#9a9a9a"


def phases(
    flow: Flow,
    *,
    quantity: str = "recovered_share",
    noise: float | None = None,
    networks: Sequence[str] | None = None,
    verdicts: bool = True,
) -> Figure:
    """Information of every layer over training: one small panel per layer, one line per network.

    This is the main figure of a flow. By default it draws the fraction of the information of the matching teacher layer
    that a student layer recovers, with the untrained network as a dotted floor and the null of permuted samples. The
    matching layer is the one at the same relative depth; panel titles name it if its name differs.

    Args:
        flow: A flow returned by :func:`mikit.trace`.
        quantity: ``"recovered_share"`` (0 to 1), ``"label_information"`` (nats) or ``"cka"`` (dimensionless).
        noise: Teacher noise of the recovered fraction. Default: 0.3 if measured.
        networks: Student networks to draw. Default: all.
        verdicts: Whether to draw the verdict bar, by phase.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state.

    Raises:
        InputError: If the flow lacks the quantity, noise or network, if ``quantity`` is none of the three, or if the
            rows mix units, kinds, probes, poolings of one layer, or numbers of samples.

    Cost:
        About a second for 12 layers; memory of a few megabytes.

    Pitfalls:
        Phases are equally spaced whatever their numbers, so slopes are not rates. Much of an early layer is recovered
        without any training because both networks receive the same input: compare the lines with the floor.

    Examples:
        >>> import mikit
        >>> figure = mikit.plot.phases(run)
        >>> labels = mikit.plot.phases(run, quantity="label_information")
    """
    if quantity not in ("recovered_share", "label_information", "cka"):
        raise InputError(
            f'quantity="{quantity}" cannot be drawn by layer and phase; choose "recovered_share", '
            '"label_information" or "cka".'
        )
    rows = select(flow, quantity, noise=noise, networks=networks)
    pairs = {name: matching(rows, name) for name in rows.networks} if quantity != "label_information" else {}
    with figure_style():
        panels = _PhasePanels(rows, keep_pairs(rows.averages(), pairs), pairs)
        keys = panels.draw()
        entropy = label_entropy(flow) if quantity == "label_information" and rows.unit == "nats" else None
        if quantity == "label_information":
            keys += panels.draw_teacher()
        if entropy is not None:
            for ax in panels.axes:
                ax.axhline(entropy, color=SOFT, linestyle=(0, (1, 3)), linewidth=0.9, label="H(Y)")
            keys.append(line_key(f"H(Y) = {entropy:.2f} {rows.unit}", color=SOFT, linestyle=(0, (1, 3)), width=0.9))
        panels.limit(top=1.0 if quantity != "label_information" else entropy)
        drawn = keep_pairs(rows.students, pairs)
        panels.close(flow, keys, [verdict_bar(drawn, "phase", rows.phases)] if verdicts else [])
    return panels.figure


def keep_pairs(table: pd.DataFrame, pairs: dict[str, dict[str, str]]) -> pd.DataFrame:
    """Keep the rows of each student layer with its partner; all rows if nothing is paired."""
    if not pairs:
        return table
    partner = [pairs[str(n)].get(str(la)) for n, la in zip(table["network"], table["layer"], strict=True)]
    return table[table["teacher_layer"].eq(pd.Series(partner, index=table.index))]


def accuracy(
    flow: Flow, *, percent: bool = False, networks: Sequence[str] | None = None, verdicts: bool = True
) -> Figure:
    """Accuracy by phase: one line per student network with its seed band, and the final teacher as a dashed line.

    Args:
        flow: A flow returned by :func:`mikit.trace`, from stores with recorded accuracies.
        percent: Draw percent instead of fractions.
        networks: Student networks to draw. Default: all.
        verdicts: Whether to draw the verdict bar, by phase. Accuracies are recorded, not measured, so it shows only
            which phases have one.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state.

    Raises:
        InputError: If no accuracy was recorded, a network is unknown, or units are mixed.

    Cost:
        A quarter of a second.

    Pitfalls:
        The accuracy is the value recorded with the activations; on which data is not known here.

    Examples:
        >>> import mikit
        >>> figure = mikit.plot.accuracy(run, percent=True)
    """
    rows = select(flow, "accuracy", networks=networks)
    scale = 100.0 if percent else 1.0
    averages = _scaled(rows.averages(), scale)
    order, colors = rows.phases, network_colors(rows.networks)
    with figure_style():
        fig = Figure(figsize=(max(4.2, 0.33 * len(order) + 1.5), 2.5))
        ax = fig.subplots()
        keys = []
        for place, network in enumerate(rows.networks):
            line = averages[averages["network"].eq(network)].sort_values("phase")
            marker = MARKERS[place % len(MARKERS)]
            draw_line(
                ax, [order.index(p) for p in line["phase"]], line, color=colors[network], marker=marker, label=network
            )
            keys.append(line_key(network, color=colors[network], marker=marker))
        top = float(averages["largest"].max())
        if not rows.teacher.empty:
            final = scale * float(rows.teacher["value"].mean())
            ax.axhline(final, color=INK, linestyle="--", linewidth=1.3, label="teacher")
            keys.append(line_key(teacher_label(rows), color=INK, linestyle="--", width=1.3))
            top = max(top, final)
        ax.set_ylim(0, min(1.08 * top, scale * 1.02) if top > 0 else scale)
        ax.set_ylabel("accuracy (%)" if percent else "accuracy (fraction)")
        phase_ticks(ax, order, 3.4)
        ax.set_xlabel("phase (not to scale)")
        if bool(averages["unreliable"].any()):
            keys.append(hollow_key())
        bands = [verdict_bar(rows.students, "phase", order)] if verdicts else []
        finish(fig, "Accuracy by phase", keys, caption_facts(flow, rows), bands=bands)
    return fig


def _scaled(averages: pd.DataFrame, scale: float) -> pd.DataFrame:
    return averages.assign(**{name: scale * averages[name] for name in ("mean", "smallest", "largest", "sd")})


def phase_ticks(ax: Axes, order: Sequence[int], width: float) -> None:
    """Label as many phases as fit in ``width`` inches, equally spaced, and always the last one."""
    widest = 0.062 * max(len(str(p)) for p in order) + 0.04
    step = int(np.ceil(widest * len(order) / width))
    shown = [i for i in range(len(order)) if (len(order) - 1 - i) % step == 0]
    ax.set_xticks(shown, [str(order[i]) for i in shown])
    ax.set_xlim(-0.3, max(len(order) - 0.7, 0.3))


class _PhasePanels:
    """One panel per layer with phases on the x axis and one line per network."""

    def __init__(self, rows: Rows, averages: pd.DataFrame, pairs: dict[str, dict[str, str]]) -> None:
        self.rows, self.averages, self.pairs = rows, averages, pairs
        self.order, self.layers = rows.phases, layers_of(rows.students)
        self.colors = network_colors(rows.networks)
        count = len(self.layers)
        self.columns = count if count <= 4 else -(-count // 2) if count <= 8 else 4 if count <= 12 else 6
        self.lines = -(-count // self.columns)
        self.panel = min(max(1.45, 0.2 * len(self.order)), 2.6)
        self.figure = Figure(figsize=(max(self.columns * (self.panel + 0.1) + 0.6, 4.2), self.lines * 1.62 + 0.2))
        grid = self.figure.subplots(self.lines, self.columns, sharey=True, squeeze=False)
        for spare in grid.flat[count:]:
            spare.remove()
        self.axes: list[Axes] = list(grid.flat[:count])

    def draw(self) -> list[Any]:
        """Draw lines, floors and null; return the legend entries."""
        keys: list[Any] = []
        for place, network in enumerate(self.rows.networks):
            color, marker = self.colors[network], MARKERS[place % len(MARKERS)]
            keys.append(line_key(network, color=color, marker=marker))
            for layer, ax in zip(self.layers, self.axes, strict=True):
                line = self._line(layer, network)
                if not line.empty:
                    places = [self.order.index(p) for p in line["phase"]]
                    draw_line(ax, places, line, color=color, marker=marker, label=network)
        floors = [self._draw_floor(layer, ax) for layer, ax in zip(self.layers, self.axes, strict=True)]
        nulls = [self._draw_null(layer, ax) for layer, ax in zip(self.layers, self.axes, strict=True)]
        if any(floors):
            keys.append(line_key("untrained network", color=INK, linestyle=":", width=1.1))
        if any(nulls):
            keys.append(line_key("null: permuted samples", color=_NULL, linestyle="-.", width=0.9))
        self.floored = any(floors)
        for layer, title, ax in zip(self.layers, short_names(self.layers, 14), self.axes, strict=True):
            ax.set_title(title + self._partner(layer), fontsize=8)
            phase_ticks(ax, self.order, self.panel - 0.2)
        return keys

    def _line(self, layer: str, network: str) -> pd.DataFrame:
        chosen = self.averages["layer"].eq(layer) & self.averages["network"].eq(network)
        return self.averages[chosen].sort_values("phase")

    def _partner(self, layer: str) -> str:
        partners = {pairs[layer] for pairs in self.pairs.values() if layer in pairs}
        if not partners or partners == {layer}:
            return ""
        return f" → {clip_text(short_names(sorted(partners))[0], 12)}" if len(partners) == 1 else " → several"

    def _draw_floor(self, layer: str, ax: Axes) -> bool:
        """Draw the untrained value: one line if all networks share it, else one in each network's color."""
        floors = self.averages[self.averages["layer"].eq(layer)].groupby("network", sort=False)["untrained"].mean()
        floors = floors.dropna()
        if floors.empty:
            return False
        if float(floors.max() - floors.min()) < 0.005:
            ax.axhline(float(floors.mean()), color=INK, linestyle=":", linewidth=1.1, label="untrained")
        else:
            for network, value in floors.items():
                color = self.colors[str(network)]
                ax.axhline(float(value), color=color, linestyle=":", linewidth=1.1, label=f"untrained {network}")
        return True

    def _draw_null(self, layer: str, ax: Axes) -> bool:
        null = self.averages[self.averages["layer"].eq(layer)].groupby("phase")["null"].mean().dropna()
        if null.empty:
            return False
        places = [self.order.index(int(str(p))) for p in null.index]
        ax.plot(places, null.to_numpy(), color=_NULL, linestyle="-.", linewidth=0.9, label="null")
        return True

    def draw_teacher(self) -> list[Any]:
        """Draw the final teacher's label information for layers of the same name."""
        if self.rows.teacher.empty:
            return []
        values = self.rows.teacher.groupby("layer")["value"].mean()
        drawn = [layer for layer in self.layers if layer in values.index]
        for layer, ax in zip(self.layers, self.axes, strict=True):
            if layer in drawn:
                ax.axhline(float(values[layer]), color=INK, linestyle="--", linewidth=1.2, label="teacher")
        what = teacher_label(self.rows) + ", same layer name"
        return [line_key(what, color=INK, linestyle="--", width=1.2)] if drawn else []

    def limit(self, top: float | None) -> None:
        """Set one y axis for all panels, from 0 to ``top``, further only if a value lies outside."""
        lows = [self.averages["smallest"].min(), self.averages["null"].min(), 0.0]
        highs = [self.averages["largest"].max(), self.averages["untrained"].max()]
        if self.rows.quantity == "label_information" and not self.rows.teacher.empty:
            highs.append(self.rows.teacher["value"].max())
        low = min(float(v) for v in lows if np.isfinite(v))
        high = max([float(v) for v in highs if np.isfinite(v)] or [1.0])
        ceiling = high * 1.05 if top is None or high > top else top * (1.04 if top != 1.0 else 1.0)
        for ax in self.axes:
            ax.set_ylim(low * 1.1 if low < 0 else 0.0, ceiling)

    def close(self, flow: Flow, keys: list[Any], bands: Sequence[Band]) -> None:
        """Add labels, legend, bands and caption."""
        label = {
            "recovered_share": "fraction recovered (0 to 1)",
            "label_information": f"label information ({self.rows.unit})",
            "cka": "linear CKA (0 to 1)",
        }[self.rows.quantity]
        title = {
            "recovered_share": "Information recovered of the matching teacher layer",
            "label_information": "Label information of every layer, by phase",
            "cka": "Similarity to the matching teacher layer, by phase",
        }[self.rows.quantity]
        for place, ax in enumerate(self.axes):
            if place % self.columns == 0:
                ax.set_ylabel(label)
            if place >= len(self.axes) - self.columns:
                ax.set_xlabel("phase (not to scale)")
        if bool(self.averages["unreliable"].any()):
            keys.append(hollow_key())
        facts = caption_facts(flow, self.rows)
        if self.pairs:
            same = all(a == b for pairs in self.pairs.values() for a, b in pairs.items())
            how = "which has the same name" if same else "named after the arrow where its name differs"
            facts.append(f"Each student layer against the teacher layer at the same relative depth, {how}")
        if not self.floored:
            facts.append("No untrained floor: phase 0 was not recorded")
        facts.append("Phases are equally spaced, not to scale")
        if short_names(self.layers, 14) != self.layers:
            facts.append("Layer names shortened")
        finish(self.figure, title, keys, facts, bands=bands)
