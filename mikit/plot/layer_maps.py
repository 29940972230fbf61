"""Maps of all student layers against all teacher layers, over phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mikit.plot.drawing.bands import Band, verdict_bar
from mikit.plot.drawing.cells import OUTLINE, QUANTITIES, MapTable, map_table, name_layers
from mikit.plot.drawing.names import clip_text, short_names
from mikit.plot.drawing.style import caption_facts, figure_style, finish, hollow_key
from mikit.plot.drawing.tables import choose_phases

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

    from mikit.flow import Flow

__all__ = ["map_facts", "map_keys", "maps"]

_MOST, _BY_DEFAULT, _ACROSS = 8, 4, 4
TITLES = {
    "recovered_share": "Information recovered of each teacher layer",
    "cka": "Linear CKA of student and teacher layers",
}


def maps(
    flow: Flow,
    *,
    quantity: str = "recovered_share",
    noise: float | None = None,
    networks: Sequence[str] | None = None,
    phases: Sequence[int] | None = None,
    difference: tuple[str, str] | None = None,
    verdicts: bool = True,
) -> Figure:
    """Maps of student layers (y) against the final teacher's layers (x): networks are rows, phases are columns.

    More than four phases continue in a second block below the first, with the same scales. The origin is at the bottom
    left, so matching layers form the rising diagonal. Cells contain seed means with two digits; the outlined cell is
    the best student layer of a teacher layer. The last row is the difference of two networks; its numbers are printed
    only where they exceed three seed SD, which is an exploratory comparison and not a test.

    Args:
        flow: A flow returned by :func:`mikit.trace`.
        quantity: ``"recovered_share"`` or ``"cka"``.
        noise: Teacher noise of the recovered fraction. Default: 0.3 if measured.
        networks: Student networks to draw, in this order. Default: all.
        phases: Up to eight phases. Default: four, which fit a page: the first, the last and others equally spaced by
            rank.
        difference: ``(a, b)`` draws a minus b. Default: the first two networks, second minus first, if their layers
            have the same names.
        verdicts: Whether to draw the verdict bar, by phase.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state. All maps share one color scale, from 0 to 0.8 or to the
        largest value if that is larger.

    Raises:
        InputError: If the flow lacks what is requested, the two networks of ``difference`` have different layers, or
            the rows mix units, kinds, poolings of one layer, or numbers of samples.

    Cost:
        About 15 ms per hundred cells plus half a second.

    Pitfalls:
        Early layers contain the later ones and are easy to recover: compare within columns, not along rows. The best
        layer of a column does not show that two layers correspond. Numbers without a seed SD (one run) are not printed
        in the difference row.

    Examples:
        >>> import mikit
        >>> figure = mikit.plot.maps(run, phases=[0, 30])
    """
    rows, pair = map_table(flow, quantity, noise, networks, difference)
    chosen = choose_phases(rows.phases, _BY_DEFAULT if phases is None else _MOST, phases)
    with figure_style():
        grid = _MapGrid(MapTable(rows, chosen, pair))
        grid.draw()
        drawn = rows.students[rows.students["phase"].isin(chosen)]
        bands = [verdict_bar(drawn, "phase", chosen)] if verdicts else []
        grid.close(flow, bands)
    return grid.figure


class _MapGrid:
    """Networks by phases, each a map of student layers by teacher layers, in blocks of at most four phases."""

    def __init__(self, table: MapTable) -> None:
        self.table = table
        count = -(-len(table.phases) // _ACROSS)
        across = -(-len(table.phases) // count)
        self.blocks = [table.phases[start : start + across] for start in range(0, len(table.phases), across)]
        self.names = [*table.networks, *(table.pair[:1] if table.pair else ())]
        heights = [len(table.layers[name]) for name in self.names]
        if count > 1:
            table.cell = min(table.cell, 0.3)
        width = across * (table.cell * len(table.theirs) + 0.14) + 1.75
        body = sum(table.cell * h + 0.2 for h in heights) + 0.75
        self.figure = Figure(figsize=(max(width, 4.4), len(self.blocks) * body))
        self.grid = self.figure.subplots(
            len(heights) * len(self.blocks), across, squeeze=False, height_ratios=heights * len(self.blocks)
        )
        self.spare = list(self.grid[-len(heights) :, len(self.blocks[-1]) :].flat)
        for ax in self.spare:
            ax.set_axis_off()

    def draw(self) -> None:
        """Draw all blocks: the maps, then the row of differences."""
        for number, phases in enumerate(self.blocks):
            first = number * len(self.names)
            self._draw_block([list(line) for line in self.grid[first : first + len(self.names)]], phases)

    def _draw_block(self, lines: list[list[Axes]], phases: list[int]) -> None:
        table, mesh = self.table, None
        maps = lines[: len(table.networks)]
        for line, network in zip(maps, table.networks, strict=True):
            for phase, ax in zip(phases, line, strict=False):
                mesh = table.draw(ax, network, phase)
            self._name(line[: len(phases)], network, clip_text(network, 24) + "\nstudent layer")
        assert mesh is not None
        extend = "min" if table.below else "neither"
        self._bar(mesh, [ax for line in maps for ax in line], QUANTITIES[table.rows.quantity], extend)
        if table.pair is not None:
            for phase, ax in zip(phases, lines[-1], strict=False):
                mesh = table.draw_gap(ax, phase)
            first, second = table.pair
            self._name(lines[-1][: len(phases)], first, f"{clip_text(first, 20)}\n− {clip_text(second, 20)}")
            self._bar(mesh, lines[-1], "difference", "neither")
        for phase, ax in zip(phases, lines[0], strict=False):
            ax.set_title(f"phase {phase}")
        for line in lines[:-1]:
            for ax in line:
                ax.tick_params(labelbottom=False)
        for ax in lines[-1][: len(phases)]:
            ax.set_xlabel("teacher layer")

    def _name(self, line: list[Axes], network: str, label: str) -> None:
        for place, ax in enumerate(line):
            name_layers(ax, self.table.layers[network], self.table.theirs, self.table.cell)
            ax.tick_params(labelleft=place == 0)
        line[0].set_ylabel(label)

    def _bar(self, mesh: QuadMesh, axes: list[Axes], label: str, extend: str) -> None:
        tall = sum(ax.get_position().height for ax in axes) / self.grid.shape[1] * self.figure.get_size_inches()[1]
        shrink = min(1.0, 2.6 / tall)
        bar = self.figure.colorbar(mesh, ax=axes, location="right", shrink=shrink, aspect=16, pad=0.015, extend=extend)
        bar.set_label(label)
        bar.outline.set_visible(False)

    def close(self, flow: Flow, bands: Sequence[Band]) -> None:
        """Write legend, bands and caption."""
        facts, every = map_facts(flow, self.table), self.table.rows.phases
        if len(self.table.phases) < len(every):
            facts.append(f"Phases shown: {', '.join(map(str, self.table.phases))} of {', '.join(map(str, every))}")
        finish(self.figure, TITLES[self.table.rows.quantity], map_keys(self.table), facts, bands=bands)
        for ax in self.spare:  # They kept the columns aligned during the layout.
            ax.remove()


def map_keys(table: MapTable) -> list[Any]:
    """Return the legend entries of maps."""
    best = Patch(facecolor="none", edgecolor=OUTLINE, linewidth=1.5, label="best student layer of a teacher layer")
    return [best, hollow_key()] if table.any_unreliable else [best]


def map_facts(flow: Flow, table: MapTable) -> list[str]:
    """Return the caption sentences of maps."""
    share, seeds = table.rows.quantity == "recovered_share", table.seeds
    facts = [
        ("Cells are seed means; " if seeds > 1 else "Cells are single runs; ")
        + ("compare within columns, since some layers are easier to recover" if share else "compare within columns"),
        *caption_facts(flow, table.rows, band=False),
    ]
    if table.pair is not None:
        facts.append(
            f"Difference printed where it exceeds 3 seed SD ({seeds} seeds: an exploratory comparison, not a test)"
            if seeds > 1
            else "Difference without numbers: one run has no seed SD"
        )
    elif len(table.networks) > 1:
        facts.append("No difference row: the networks have different layers")
    if any(short_names(names) != names for names in [*table.layers.values(), table.theirs]):
        facts.append("Layer names shortened")
    if table.below:
        facts.append("Values below 0 have the lightest color")
    return facts
