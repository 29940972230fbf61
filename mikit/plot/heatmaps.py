"""Layer by layer maps: every student layer against every teacher layer, phase after phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from mikit.errors import InputError
from mikit.plot.drawing import (
    SOFT,
    caption_facts,
    figure_style,
    finish,
    name_ticks,
)
from mikit.plot.naming import clip_text, short_names
from mikit.plot.tables import Rows, choose_phases, layers_of, select, teacher_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

    from mikit.flow import Flow

__all__ = ["maps", "two_digits"]

_MOST = 4
_OUTLINE, _EMPTY = "#e69f00", "#d9d9d9"


def maps(
    flow: Flow,
    *,
    quantity: str = "recovered_share",
    noise: float | None = None,
    networks: Sequence[str] | None = None,
    phases: Sequence[int] | None = None,
    difference: tuple[str, str] | None = None,
) -> Figure:
    """Maps of student layers (y) against the final teacher's layers (x): networks are rows, phases columns.

    The origin is at the bottom left, so that matching layers form the rising diagonal. Cells hold seed means with two
    digits; the outlined cell is the best student layer of its teacher layer. The last row is the difference of two
    networks; its numbers are printed only where they exceed three seed SD, which is a screen and not a test.

    Args:
        flow: What :func:`mikit.trace` returned.
        quantity: ``"recovered_share"`` or ``"cka"``.
        noise: Teacher noise of the recovered share; by default 0.3 where measured.
        networks: Student networks to draw, in this order; by default all.
        phases: Up to four phases; by default the first, the last and others equally spaced by rank between them.
        difference: ``(a, b)`` draws a minus b; by default the first two networks, second minus first, where their
            layers have the same names.

    Returns:
        A ``matplotlib.figure.Figure`` that no pyplot state knows of. All maps share one colour scale, 0 to 0.8 or to
        the largest value if that is larger.

    Raises:
        InputError: If the flow lacks what is asked for, mixes units, or the two networks of ``difference`` have
            different layers.

    Cost:
        About 15 ms per hundred cells plus half a second.

    Pitfalls:
        Early layers contain the later ones and are easy to recover: read down the columns, not along the rows. The
        best layer of a column is no proof that two layers correspond. Numbers without a seed SD (one run) are not
        printed in the difference row.

    Examples:
        >>> import mikit
        >>> figure = mikit.plot.maps(run, phases=[0, 30])
    """
    if quantity not in ("recovered_share", "cka"):
        raise InputError(f'quantity="{quantity}" has no layer by layer map; choose "recovered_share" or "cka".')
    rows = select(flow, quantity, noise=noise, networks=networks)
    pair = _difference_pair(rows, difference)
    with figure_style():
        grid = _MapGrid(rows, choose_phases(rows.phases, _MOST, phases), pair)
        grid.draw()
        grid.close(flow)
    return grid.figure


def _difference_pair(rows: Rows, wanted: tuple[str, str] | None) -> tuple[str, str] | None:
    names = rows.networks
    if wanted is None:
        if len(names) < 2 or layers_of(rows.students, names[0]) != layers_of(rows.students, names[1]):
            return None
        return names[1], names[0]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise InputError(f"difference names {', '.join(unknown)}, which is not drawn; drawn are {', '.join(names)}.")
    if layers_of(rows.students, wanted[0]) != layers_of(rows.students, wanted[1]):
        raise InputError(f"{wanted[0]} and {wanted[1]} have different layers; their maps have no difference.")
    return wanted


def two_digits(value: float) -> str:
    """A value as two digits without the leading zero.

    Examples:
        >>> [two_digits(v) for v in (0.734, -0.052, 0.999, 0.0)]
        ['.73', '−.05', '1.0', '.00']
    """
    text = f"{abs(value):.2f}"
    text = text[1:] if text.startswith("0") else f"{abs(value):.1f}"
    return f"−{text}" if value < 0 and float(f"{value:.2f}") != 0 else text


class _MapGrid:
    """Networks by phases, each a map of student layers by teacher layers."""

    def __init__(self, rows: Rows, phases: list[int], pair: tuple[str, str] | None) -> None:
        self.rows, self.phases, self.pair, self.networks = rows, phases, pair, rows.networks
        self.averages = rows.averages()
        self.theirs = teacher_layers(rows)
        self.layers = {name: layers_of(rows.students, name) for name in self.networks}
        self.cell = float(np.clip(2.1 / max(len(self.theirs), 1), 0.27, 0.5))
        heights = [len(self.layers[name]) for name in [*self.networks, *(pair[:1] if pair else ())]]
        width = len(phases) * (self.cell * len(self.theirs) + 0.14) + 1.75
        body = sum(self.cell * h + 0.28 for h in heights) + 0.75
        self.figure = Figure(figsize=(max(width, 4.4), body))
        self.grid = self.figure.subplots(len(heights), len(phases), squeeze=False, height_ratios=heights)
        drawn = self.averages[self.averages["phase"].isin(phases)]
        largest = float(np.nanmax([0.8, *drawn["mean"]]))
        self.top = 0.8 if largest <= 0.8 else float(np.ceil(largest * 20 - 1e-9) / 20)
        self.below = bool((drawn["mean"] < 0).any())
        self.hollow = False

    def values(self, network: str, phase: int, column: str = "mean") -> np.ndarray[Any, np.dtype[np.float64]]:
        """One map: student layers (rows) by teacher layers (columns)."""
        chosen = self.averages[self.averages["network"].eq(network) & self.averages["phase"].eq(phase)]
        wide = chosen.pivot_table(index="layer", columns="teacher_layer", values=column, dropna=False, observed=True)
        wide = wide.reindex(index=self.layers[network], columns=self.theirs)
        return wide.astype(float).to_numpy()

    def draw(self) -> None:
        """Draw the maps, then the row of differences."""
        sequential = seaborn.color_palette("mako_r", as_cmap=True)
        scale = Normalize(0.0, self.top)
        mesh = None
        for line, network in zip(self.grid, self.networks, strict=False):
            for phase, ax in zip(self.phases, line, strict=True):
                values = self.values(network, phase)
                mesh = self._mesh(ax, values, sequential, scale)
                self._print(ax, values, sequential(scale(values)), np.isfinite(values))
                self._outline(ax, values)
                self._mark(ax, self.values(network, phase, "unreliable"))
            self._name(line, network, clip_text(network, 24) + "\nstudent layer")
        for phase, ax in zip(self.phases, self.grid[0], strict=True):
            ax.set_title(f"phase {phase}")
        if mesh is not None:
            drawn = list(self.grid[: len(self.networks)].flat)
            self._bar(mesh, drawn, self._quantity(), "min" if self.below else "neither")
        if self.pair is not None:
            self._draw_difference(*self.pair)
        for line in self.grid[:-1]:
            for ax in line:
                ax.tick_params(labelbottom=False)
        for ax in self.grid[-1]:
            ax.set_xlabel("teacher layer")

    def _draw_difference(self, first: str, second: str) -> None:
        diverging = seaborn.color_palette("vlag_r", as_cmap=True)
        gaps = [self.values(first, phase) - self.values(second, phase) for phase in self.phases]
        finite = np.abs([g for g in np.concatenate([g.ravel() for g in gaps]) if np.isfinite(g)])
        reach = max(0.1, float(np.ceil(finite.max() * 20 - 1e-9) / 20)) if finite.size else 0.1
        scale, mesh = Normalize(-reach, reach), None
        for phase, gap, ax in zip(self.phases, gaps, self.grid[-1], strict=True):
            spread = np.sqrt((self.values(first, phase, "sd") ** 2 + self.values(second, phase, "sd") ** 2) / 2)
            mesh = self._mesh(ax, gap, diverging, scale)
            with np.errstate(invalid="ignore"):
                self._print(ax, gap, diverging(scale(gap)), np.abs(gap) > 3 * spread)
        self._name(self.grid[-1], first, f"{clip_text(first, 20)}\n− {clip_text(second, 20)}")
        assert mesh is not None
        self._bar(mesh, list(self.grid[-1]), "difference", "neither")

    def _mesh(self, ax: Axes, values: Any, cmap: Any, scale: Normalize) -> QuadMesh:
        ax.set_facecolor(_EMPTY)
        ax.grid(False)
        mesh = ax.pcolormesh(np.ma.masked_invalid(values), cmap=cmap, norm=scale, edgecolors="white", linewidth=0.4)
        ax.set_aspect("equal")
        ax.tick_params(length=0)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        return mesh

    def _print(self, ax: Axes, values: Any, colors: Any, wanted: Any) -> None:
        size = 7.0 if self.cell >= 0.33 else 5.8
        for row, column in np.argwhere(wanted):
            red, green, blue = colors[row, column, :3]
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            text = ax.text(
                column + 0.5,
                row + 0.5,
                two_digits(float(values[row, column])),
                ha="center",
                va="center",
                fontsize=size,
                color="white" if dark else "#1a1a1a",
            )
            text.set_in_layout(False)

    def _outline(self, ax: Axes, values: Any) -> None:
        for column in range(values.shape[1]):
            if np.isfinite(values[:, column]).any():
                row = int(np.nanargmax(values[:, column]))
                box = Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, fill=False, edgecolor=_OUTLINE, linewidth=1.5)
                ax.add_patch(box)

    def _mark(self, ax: Axes, unreliable: Any) -> None:
        places = np.argwhere(unreliable == 1.0)
        if len(places):
            self.hollow = True
            size = 16.0 * self.cell
            ax.plot(
                places[:, 1] + 0.82,
                places[:, 0] + 0.82,
                linestyle="none",
                marker="o",
                markersize=size * 0.5,
                color=SOFT,
                markerfacecolor="white",
                markeredgewidth=0.8,
                label="unreliable",
            )

    def _name(self, line: Any, network: str, label: str) -> None:
        own = self.layers[network]
        for place, ax in enumerate(line):
            name_ticks(ax, self.theirs, [i + 0.5 for i in range(len(self.theirs))], self.cell, upright_below=0.3)
            name_ticks(ax, own, [i + 0.5 for i in range(len(own))], self.cell, axis="y")
            ax.tick_params(labelleft=place == 0)
        line[0].set_ylabel(label)

    def _bar(self, mesh: QuadMesh, axes: list[Axes], label: str, extend: str) -> None:
        spans = sum(self.cell * len(own.get_yticks()) + 0.28 for own in axes) / len(self.phases)
        shrink = min(1.0, 2.6 / spans)
        bar = self.figure.colorbar(mesh, ax=axes, location="right", shrink=shrink, aspect=16, pad=0.015, extend=extend)
        bar.set_label(label)
        bar.outline.set_visible(False)

    def _quantity(self) -> str:
        return "share recovered (0 to 1)" if self.rows.quantity == "recovered_share" else "linear CKA (0 to 1)"

    def close(self, flow: Flow) -> None:
        """Write legend and caption."""
        keys: list[Any] = [
            Patch(facecolor="none", edgecolor=_OUTLINE, linewidth=1.5, label="best student layer of a teacher layer")
        ]
        if self.hollow:
            keys.append(Line2D([], [], color=SOFT, linestyle="none", marker="o", markerfacecolor="white", markersize=4))
            keys[-1].set_label("hollow: judged unreliable")
        share, seeds = self.rows.quantity == "recovered_share", int(self.averages["seeds"].max())
        facts = [
            ("Cells are seed means; " if seeds > 1 else "Cells are single runs; ")
            + ("read down the columns, some layers are easier to recover" if share else "read down the columns"),
            *caption_facts(flow, self.rows, band=False),
        ]
        if self.pair is not None:
            facts.append(
                f"Difference printed where it exceeds 3 seed SD ({seeds} seeds: a screen, not a test)"
                if seeds > 1
                else "Difference without numbers: one run has no seed SD"
            )
        elif len(self.networks) > 1:
            facts.append("No difference row: the networks have different layers")
        every = self.rows.phases
        if len(self.phases) < len(every):
            facts.append(f"Phases shown: {', '.join(map(str, self.phases))} of {', '.join(map(str, every))}")
        if any(short_names(own) != own for own in [*self.layers.values(), self.theirs]):
            facts.append("Layer names shortened")
        if self.below:
            facts.append("Values below 0 take the lightest colour")
        title = "Share of each teacher layer recovered" if share else "Linear CKA of student and teacher layers"
        finish(self.figure, title, keys, facts)
