"""Components of layer maps: averages as matrices, one scale for all phases, and cells with printed values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
import seaborn
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mikit.core.errors import InputError
from mikit.plot.drawing.style import SOFT, name_ticks
from mikit.plot.drawing.tables import Rows, layers_of, select, teacher_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

    from mikit.flow import Flow

__all__ = ["MapTable", "draw_cells", "map_table", "mark_unreliable", "name_layers", "outline_best", "print_cells"]

Array = NDArray[Any]

OUTLINE, _EMPTY = "#e69f00", "#d9d9d9"
SEQUENTIAL, DIVERGING = "mako_r", "vlag_r"
QUANTITIES = {"recovered_share": "fraction recovered (0 to 1)", "cka": "linear CKA (0 to 1)"}


@final
class MapTable:
    """Averages over seeds as matrices of student layers (rows) by teacher layers (columns), with scales for all phases.

    Args:
        rows: Rows of a quantity that compares student layers with teacher layers.
        phases: The phases that share the scales.
        pair: Two networks whose difference is drawn, first minus second; None for none.
    """

    def __init__(self, rows: Rows, phases: Sequence[int], pair: tuple[str, str] | None) -> None:
        self.rows, self.phases, self.pair, self.networks = rows, list(phases), pair, rows.networks
        self.averages = rows.averages()
        self.theirs = teacher_layers(rows)
        self.layers = {name: layers_of(rows.students, name) for name in self.networks}
        self.cell = float(np.clip(2.1 / max(len(self.theirs), 1), 0.27, 0.5))
        drawn = self.averages[self.averages["phase"].isin(self.phases)]
        largest = float(np.nanmax([0.8, *drawn["mean"]]))
        self.scale = Normalize(0.0, 0.8 if largest <= 0.8 else float(np.ceil(largest * 20 - 1e-9) / 20))
        self.below = bool((drawn["mean"] < 0).any())
        self.any_unreliable = bool(drawn["unreliable"].any())
        gaps = np.concatenate([self.gap(phase).ravel() for phase in self.phases]) if pair else np.empty(0)
        sizes = np.abs(gaps[np.isfinite(gaps)])
        reach = max(0.1, float(np.ceil(sizes.max() * 20 - 1e-9) / 20)) if sizes.size else 0.1
        self.gap_scale = Normalize(-reach, reach)

    @property
    def seeds(self) -> int:
        """The largest number of seeds behind a cell."""
        return int(self.averages["seeds"].max())

    def values(self, network: str, phase: int, column: str = "mean") -> Array:
        """Return one map: student layers (rows) by teacher layers (columns)."""
        chosen = self.averages[self.averages["network"].eq(network) & self.averages["phase"].eq(phase)]
        wide = chosen.pivot_table(index="layer", columns="teacher_layer", values=column, dropna=False, observed=True)
        return wide.reindex(index=self.layers[network], columns=self.theirs).astype(float).to_numpy()

    def gap(self, phase: int) -> Array:
        """Return the difference of the two networks of ``pair`` at a phase."""
        assert self.pair is not None
        first, second = self.pair
        return self.values(first, phase) - self.values(second, phase)

    def clear(self, phase: int) -> Array:
        """Return where that difference exceeds three standard deviations over seeds."""
        assert self.pair is not None
        spread = np.sqrt(sum(self.values(name, phase, "sd") ** 2 for name in self.pair) / 2)
        with np.errstate(invalid="ignore"):
            wanted: Array = np.abs(self.gap(phase)) > 3 * spread
        return wanted

    def draw(self, ax: Axes, network: str, phase: int) -> QuadMesh:
        """Draw the map of a network at a phase: cells, values, the best cell of each column, marks."""
        values = self.values(network, phase)
        palette = seaborn.color_palette(SEQUENTIAL, as_cmap=True)
        mesh = draw_cells(ax, values, palette, self.scale)
        print_cells(ax, values, palette(self.scale(values)), np.isfinite(values), self.cell)
        outline_best(ax, values)
        mark_unreliable(ax, self.values(network, phase, "unreliable"), self.cell)
        return mesh

    def draw_gap(self, ax: Axes, phase: int) -> QuadMesh:
        """Draw the difference at a phase; values are printed only where it is clear."""
        gap = self.gap(phase)
        palette = seaborn.color_palette(DIVERGING, as_cmap=True)
        mesh = draw_cells(ax, gap, palette, self.gap_scale)
        print_cells(ax, gap, palette(self.gap_scale(gap)), self.clear(phase), self.cell)
        return mesh


def map_table(
    flow: Flow,
    quantity: str,
    noise: float | None,
    networks: Sequence[str] | None,
    difference: tuple[str, str] | None,
) -> tuple[Rows, tuple[str, str] | None]:
    """Select the rows of a map and the two networks whose difference is drawn, if any.

    Without ``difference`` it is the second network minus the first if their layers have the same names.
    """
    if quantity not in QUANTITIES:
        raise InputError(f'quantity="{quantity}" has no map of layers; choose "recovered_share" or "cka".')
    rows = select(flow, quantity, noise=noise, networks=networks)
    names = rows.networks
    if difference is None:
        same = len(names) > 1 and layers_of(rows.students, names[0]) == layers_of(rows.students, names[1])
        return rows, (names[1], names[0]) if same else None
    unknown = [name for name in difference if name not in names]
    if unknown:
        raise InputError(
            f"difference names {', '.join(unknown)}, which is not drawn; the drawn networks are {', '.join(names)}."
        )
    if layers_of(rows.students, difference[0]) != layers_of(rows.students, difference[1]):
        raise InputError(
            f"{difference[0]} and {difference[1]} have different layers, so their maps cannot be subtracted."
        )
    return rows, difference


def two_digits(value: float) -> str:
    """Format a value with two digits and without the leading zero.

    Examples:
        >>> [two_digits(v) for v in (0.734, -0.052, 0.999, 0.0)]
        ['.73', '−.05', '1.0', '.00']
    """
    text = f"{abs(value):.2f}"
    text = text[1:] if text.startswith("0") else f"{abs(value):.1f}"
    return f"−{text}" if value < 0 and float(f"{value:.2f}") != 0 else text


def draw_cells(ax: Axes, values: Array, cmap: Any, scale: Normalize) -> QuadMesh:
    """Color the cells of a map; cells without a value stay gray."""
    ax.set_facecolor(_EMPTY)
    ax.grid(False)
    mesh = ax.pcolormesh(np.ma.masked_invalid(values), cmap=cmap, norm=scale, edgecolors="white", linewidth=0.4)
    ax.set_aspect("equal")
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    return mesh


def print_cells(ax: Axes, values: Array, colors: Array, wanted: Array, cell: float) -> None:
    """Print values in cells, dark on light and light on dark; ``cell`` is the size of a cell in inches."""
    size = 7.0 if cell >= 0.33 else 5.8
    for row, column in np.argwhere(wanted):
        digits = two_digits(float(values[row, column]))
        text = ax.text(column + 0.5, row + 0.5, digits, ha="center", va="center", fontsize=size)
        text.set_color("white" if is_dark(colors[row, column]) else "#1a1a1a")
        text.set_in_layout(False)


def is_dark(color: Array) -> bool:
    """Return whether a color needs light text on it."""
    red, green, blue = color[:3]
    return bool(0.299 * red + 0.587 * green + 0.114 * blue < 0.55)


def outline_best(ax: Axes, values: Array) -> None:
    """Outline the largest value of each column."""
    for column in range(values.shape[1]):
        if np.isfinite(values[:, column]).any():
            row = int(np.nanargmax(values[:, column]))
            box = Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, fill=False, edgecolor=OUTLINE, linewidth=1.5)
            ax.add_patch(box)


def mark_unreliable(ax: Axes, unreliable: Array, cell: float) -> None:
    """Draw a hollow point in the corner of cells whose value is 1."""
    places = np.argwhere(unreliable == 1.0)
    if len(places):
        ax.plot(
            places[:, 1] + 0.82,
            places[:, 0] + 0.82,
            linestyle="none",
            marker="o",
            markersize=8.0 * cell,
            color=SOFT,
            markerfacecolor="white",
            markeredgewidth=0.8,
            label="unreliable",
        )


def name_layers(ax: Axes, layers: Sequence[str], theirs: Sequence[str], cell: float) -> None:
    """Label the teacher's layers below a map and the student's beside it."""
    name_ticks(ax, theirs, [i + 0.5 for i in range(len(theirs))], cell, upright_below=0.3)
    name_ticks(ax, layers, [i + 0.5 for i in range(len(layers))], cell, axis="y")
