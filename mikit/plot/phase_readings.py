"""Phases of training as they were read: curves with their change points, and how a student nears its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from mikit.errors import InputError
from mikit.plot.drawing import MARKERS, SOFT, figure_style, finish, line_key, network_colors
from mikit.plot.naming import clip_text, short_names
from mikit.plot.progress import phase_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mikit.flow import PhaseReading

__all__ = ["change_points", "divergence"]

_MOST = 3
_LABELS = {
    "label_information": "label information (nats)",
    "recovered_share": "share recovered (0 to 1)",
    "cka": "linear CKA (0 to 1)",
    "effective_dimension": "effective dimension",
}


def change_points(
    reading: PhaseReading,
    *,
    quantity: str | None = None,
    networks: Sequence[str] | None = None,
    seed: int | None = None,
) -> Figure:
    """Curves as they were cut: points with two standard errors, the pieces through them, change points as bands.

    A band is the interval between two recordings that holds 95 % of a change point's probability; the line in it is the
    likeliest place.

    Args:
        reading: What :func:`mikit.flow.read_phases` returned.
        quantity: The quantity to draw; by default the first that was read.
        networks: Up to three student networks; by default the first three.
        seed: The seed to draw; by default each network's first.

    Returns:
        A ``matplotlib.figure.Figure``, one panel per layer, that no pyplot state knows of.

    Raises:
        InputError: If there is no such quantity, network or seed, or more than three networks are asked for.

    Cost:
        About a second for 12 layers.

    Pitfalls:
        Recordings stand at equal distances. A change point is between two recordings and cannot be nearer than that.
        Errors hold the sampling of probe rows; a change that other seeds do not have is this run's.

    Examples:
        >>> import mikit
        >>> figure = mikit.plot.change_points(mikit.flow.read_phases(run))
    """
    curves, changes = _chosen(reading, quantity, networks, seed)
    what = str(curves["quantity"].iloc[0])
    order = sorted(int(phase) for phase in curves["phase"].unique())
    layers = [str(name) for name in curves.sort_values("layer_index", kind="stable")["layer"].unique()]
    names = [str(name) for name in curves["network"].unique()]
    colors = network_colors(names)
    across = len(layers) if len(layers) <= 4 else -(-len(layers) // 2) if len(layers) <= 8 else 4
    lines = -(-len(layers) // across)
    panel = min(max(1.6, 0.22 * len(order)), 2.6)
    with figure_style():
        figure = Figure(figsize=(max(across * (panel + 0.1) + 0.6, 4.2), lines * 1.72 + 0.2))
        grid = figure.subplots(lines, across, sharey=what != "effective_dimension", squeeze=False)
        for spare in grid.flat[len(layers) :]:
            spare.remove()
        for place, (layer, title, ax) in enumerate(zip(layers, short_names(layers, 14), grid.flat, strict=False)):
            for number, name in enumerate(names):
                own = curves[curves["layer"].eq(layer) & curves["network"].eq(name)].sort_values("phase")
                at = changes[changes["layer"].eq(layer) & changes["network"].eq(name)]
                _draw(ax, own, at, order, colors[name], MARKERS[number % len(MARKERS)])
            ax.set_title(title, fontsize=8)
            phase_ticks(ax, order, panel - 0.2)
            if place % across == 0:
                ax.set_ylabel(_LABELS[what])
            if place >= len(layers) - across:
                ax.set_xlabel("phase (not to scale)")
        keys: list[Any] = [
            line_key(name, color=colors[name], marker=MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
        ]
        keys.append(Patch(facecolor=SOFT, alpha=0.25, linewidth=0, label="change point, 95 % interval"))
        settings = reading.settings
        seeds = sorted(int(one) for one in curves["seed"].unique())
        facts = [
            f"{len(changes)} change points in {len(names) * len(layers)} curves, pieces {settings['shape']}",
            f"A curve without a change has one with probability {settings['level']:g} at most, if its errors are right",
            "Bars: two standard errors" + (f", jitter {settings['jitter']:g} included" if settings["jitter"] else ""),
            f"Seed {', '.join(map(str, seeds))}",
            "Rises and falls are geometry of what is read linearly, not gains and losses of information",
        ]
        if settings.get("n"):
            facts.append(f"N\u00a0=\u00a0{settings['n']:,}")
        finish(figure, "Where the curves change", keys, facts)
    return figure


def divergence(reading: PhaseReading, *, matching: str = "same depth", networks: Sequence[str] | None = None) -> Figure:
    """Flow divergence ``D_F`` by phase, its last-layer term dotted, on a logarithmic axis.

    Shaded is the step between two recordings in which it falls most, where that is clear.

    Args:
        reading: What :func:`mikit.flow.read_phases` returned, of a flow with labels.
        matching: ``"same depth"``, ``"nearest"`` or ``"monotone"``.
        networks: Up to three student networks; by default the first three.

    Returns:
        A ``matplotlib.figure.Figure`` that no pyplot state knows of.

    Raises:
        InputError: If the flow had no labels, or there is no such matching or network.

    Cost:
        Half a second.

    Pitfalls:
        By nearest value nearly all of the divergence is its last term, and the rest is small for any student. Amounts
        are compared, not contents.

    Examples:
        >>> import mikit
        >>> figure = mikit.plot.divergence(mikit.flow.read_phases(run))
    """
    table = reading.divergences
    if table.empty:
        raise InputError("This reading has no D_F: the flow was traced without labels. Pass labels= to mikit.trace.")
    known = [str(name) for name in table["matching"].unique()]
    if matching not in known:
        raise InputError(f'There is no matching "{matching}"; there are {", ".join(known)}.')
    table = table[table["matching"].eq(matching)]
    names = _networks([str(name) for name in table["network"].unique()], networks)
    table = table[table["network"].isin(names)]
    order = sorted(int(phase) for phase in table["phase"].unique())
    seeds = sorted(int(one) for one in table["seed"].unique())
    colors = network_colors(names)
    with figure_style():
        figure = Figure(figsize=(max(4.6, 0.33 * len(order) + 1.9), 2.7))
        ax = figure.subplots()
        keys = []
        for number, name in enumerate(names):
            own = table[table["network"].eq(name)].groupby("phase")[["total", "last"]].agg(["mean", "min", "max"])
            xs = [order.index(int(str(phase))) for phase in own.index]
            total, last = own["total"], own["last"]
            color, marker = colors[name], MARKERS[number % len(MARKERS)]
            if len(seeds) > 1:
                ax.fill_between(xs, total["min"], total["max"], color=color, alpha=0.2, linewidth=0)
            ax.plot(xs, total["mean"], color=color, marker=marker, label=name)
            ax.plot(xs, last["mean"], color=color, linestyle=":", linewidth=1.3, label=f"_last {name}")
            keys.append(line_key(name, color=color, marker=marker))
            for row in _clear_falls(reading.critical, name, matching):
                ax.axvspan(order.index(row["from_phase"]), order.index(row["to_phase"]), color=color, alpha=0.12, lw=0)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylabel("D_F (nats², log)")
        ax.set_xlabel("phase (not to scale)")
        phase_ticks(ax, order, 3.4)
        keys.append(line_key("its last-layer term", color=SOFT, linestyle=":", width=1.3))
        share = table.groupby("phase")["last_share"].mean()
        facts = [
            f"Label information of student and final teacher, matched by {matching}",
            f"The last layer's term is {share.iloc[0]:.0%} of it at phase {order[0]} and {share.iloc[-1]:.0%} at phase "
            f"{order[-1]}",
            "Shaded: the step in which it falls most, where that is clear",
            f"{len(seeds)}\u00a0seeds, lines are means and bands reach from the smallest to the largest"
            if len(seeds) > 1
            else "1 run, no band",
        ]
        finish(figure, "Distance of a student's flow from its teacher's", keys, facts)
    return figure


def _clear_falls(critical: pd.DataFrame, network: str, matching: str) -> list[dict[str, Any]]:
    """Return the largest falls that are clear, one for each interval."""
    own = critical[critical["network"].eq(network) & critical["matching"].eq(matching)]
    clear = own[own["decision"].eq("clear")].drop_duplicates(["from_phase", "to_phase"])
    return [{str(key): value for key, value in row.items()} for row in clear.to_dict("records")]


def _networks(known: list[str], asked: Sequence[str] | None) -> list[str]:
    if asked is None:
        return known[:_MOST]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise InputError(f"There is no student network {unknown or '(none named)'}; there are {', '.join(known)}.")
    if len(asked) > _MOST:
        raise InputError(f"{len(asked)} networks were asked for; this figure stays readable up to {_MOST}.")
    return list(asked)


def _chosen(
    reading: PhaseReading, quantity: str | None, networks: Sequence[str] | None, seed: int | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    curves, changes = reading.curves, reading.changes
    known = [str(name) for name in curves["quantity"].unique()]
    what = known[0] if quantity is None else quantity
    if what not in known:
        raise InputError(f'This reading has no curves of "{what}"; it has {", ".join(known)}.')
    names = _networks([str(name) for name in curves[curves["quantity"].eq(what)]["network"].unique()], networks)
    kept = []
    for name in names:
        own = curves[curves["quantity"].eq(what) & curves["network"].eq(name)]
        at = int(own["seed"].min()) if seed is None else seed
        if not own["seed"].eq(at).any():
            raise InputError(f"{name!r} has no seed {at}; it has {', '.join(map(str, sorted(own['seed'].unique())))}.")
        kept.append((name, at, own[own["seed"].eq(at)]))
    picked = pd.concat([own for _, _, own in kept])
    marks = [
        changes[changes["quantity"].eq(what) & changes["network"].eq(name) & changes["seed"].eq(at)]
        for name, at, _ in kept
    ]
    return picked, pd.concat(marks)


def _draw(ax: Axes, own: pd.DataFrame, changes: pd.DataFrame, order: list[int], color: str, marker: str) -> None:
    xs = [order.index(int(phase)) for phase in own["phase"]]
    for row in changes.to_dict("records"):
        # A change at a recording lies between it and the one before.
        low, high = order.index(row["low"]) - 1, order.index(row["high"])
        ax.axvspan(low, high, color=color, alpha=0.13, linewidth=0)
        ax.axvline(order.index(row["phase"]) - 0.5, color=color, linewidth=0.9, linestyle="--")
    ax.errorbar(
        xs,
        own["value"],
        yerr=2 * own["standard_error"],
        color=color,
        linestyle="none",
        marker=marker,
        elinewidth=0.8,
        label=clip_text(str(own["network"].iloc[0]), 30) if len(own) else "",
    )
    for _, piece in own.assign(x=xs).groupby("piece"):
        ax.plot(piece["x"], piece["fitted"], color=color, linewidth=1.4)
