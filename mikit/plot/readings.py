"""Figures of a reading of phases: curves with their change points, and the divergence of a student's flow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from mikit.core.errors import InputError
from mikit.plot.drawing.bands import verdict_bar
from mikit.plot.drawing.names import clip_text, short_names
from mikit.plot.drawing.style import INK, MARKERS, SOFT, figure_style, finish, line_key, network_colors
from mikit.plot.drawing.tables import refuse_mixtures
from mikit.plot.over_phases import phase_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mikit.flow import PhaseReading

__all__ = ["Schedule", "change_points", "divergence"]

_MOST = 3
_LABELS = {
    "label_information": "label information (nats)",
    "recovered_share": "fraction recovered (0 to 1)",
    "cka": "linear CKA (0 to 1)",
    "effective_dimension": "effective dimension",
}


def change_points(
    reading: PhaseReading,
    *,
    quantity: str | None = None,
    networks: Sequence[str] | None = None,
    seed: int | None = None,
    verdicts: bool = True,
) -> Figure:
    """Segmented curves: points with two standard errors, the fitted pieces, and change points as shaded ranges.

    A range is the interval between two recordings that contains 95 % of a change point's probability; the line in it is
    the most likely place.

    Args:
        reading: A reading returned by :func:`mikit.flow.read_phases`.
        quantity: The quantity to draw. Default: the first in the reading.
        networks: Up to three student networks. Default: the first three.
        seed: The seed to draw. Default: each network's first.
        verdicts: Whether to draw the verdict bar, by phase.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state, one panel per layer.

    Raises:
        InputError: If there is no such quantity, network or seed, if more than three networks are requested, or if the
            curves mix units, kinds, probes, poolings of one layer, or numbers of samples.

    Cost:
        About a second for 12 layers.

    Pitfalls:
        Recordings are equally spaced. A change point lies between two recordings and cannot be located more precisely.
        Errors include the sampling of probe samples; a change that other seeds do not have is specific to this run.

    Examples:
        >>> import mikit
        >>> figure = mikit.plot.change_points(mikit.flow.read_phases(run))
    """
    curves, changes = _chosen(reading, quantity, networks, seed)
    order = sorted(int(phase) for phase in curves["phase"].unique())
    names = [str(name) for name in curves["network"].unique()]
    with figure_style():
        figure = _draw_curves(curves, changes, order)
        colors = network_colors(names)
        keys: list[Any] = [
            line_key(name, color=colors[name], marker=MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
        ]
        keys.append(Patch(facecolor=SOFT, alpha=0.25, linewidth=0, label="change point, 95 % interval"))
        judged = curves[curves["verdict"].notna()] if "verdict" in curves else curves.iloc[:0]
        bands = [verdict_bar(judged, "phase", order)] if verdicts and len(judged) else []
        facts = _change_facts(reading.settings, curves, len(changes))
        finish(figure, "Change points of the curves", keys, facts, bands=bands)
    return figure


def _draw_curves(curves: pd.DataFrame, changes: pd.DataFrame, order: list[int]) -> Figure:
    what = str(curves["quantity"].iloc[0])
    names = [str(name) for name in curves["network"].unique()]
    layers = [str(name) for name in curves.sort_values("layer_index", kind="stable")["layer"].unique()]
    colors = network_colors(names)
    across = len(layers) if len(layers) <= 4 else -(-len(layers) // 2) if len(layers) <= 8 else 4
    lines = -(-len(layers) // across)
    panel = min(max(1.6, 0.22 * len(order)), 2.6)
    figure = Figure(figsize=(max(across * (panel + 0.1) + 0.6, 4.2), lines * 1.72 + 0.2))
    grid = figure.subplots(lines, across, sharey=what != "effective_dimension", squeeze=False)
    for spare in grid.flat[len(layers) :]:
        spare.remove()
    for place, (layer, title, ax) in enumerate(zip(layers, short_names(layers, 14), grid.flat, strict=False)):
        for number, name in enumerate(names):
            curve = curves[curves["layer"].eq(layer) & curves["network"].eq(name)].sort_values("phase")
            marks = changes[changes["layer"].eq(layer) & changes["network"].eq(name)]
            _draw(ax, curve, marks, order, colors[name], MARKERS[number % len(MARKERS)])
        ax.set_title(title, fontsize=8)
        phase_ticks(ax, order, panel - 0.2)
        if place % across == 0:
            ax.set_ylabel(_LABELS[what])
        if place >= len(layers) - across:
            ax.set_xlabel("phase (not to scale)")
    return figure


def _change_facts(settings: Mapping[str, Any], curves: pd.DataFrame, changes: int) -> list[str]:
    count = len(curves["network"].unique()) * len(curves["layer"].unique())
    seeds = sorted(int(one) for one in curves["seed"].unique())
    facts = [
        f"{changes} change points in {count} curves, pieces {settings['shape']}",
        f"A curve without a change is cut with probability {settings['level']:g} at most, if its errors are correct",
        "Bars: two standard errors" + (f", including jitter {settings['jitter']:g}" if settings["jitter"] else ""),
        f"Seed {', '.join(map(str, seeds))}",
        "Rises and falls show the geometry of linearly decodable information, not gain or loss of information",
    ]
    if settings.get("n"):
        facts.append(f"N\u00a0=\u00a0{settings['n']:,}")
    return facts


def divergence(
    reading: PhaseReading,
    *,
    matching: str = "same depth",
    networks: Sequence[str] | None = None,
    schedule: Mapping[int, float] | Schedule | None = None,
    verdicts: bool = True,
) -> Figure:
    """Flow divergence ``D_F`` by phase on a logarithmic axis, with its last-layer term dotted.

    The step between two recordings with the largest decrease is shaded if it is clear. With the schedule of a loss, a
    thin panel below shows its weight at the same phases.

    Args:
        reading: A reading returned by :func:`mikit.flow.read_phases` of a flow with labels.
        matching: ``"same depth"``, ``"nearest"`` or ``"monotone"``.
        networks: Up to three student networks. Default: the first three.
        schedule: Weight by phase, for every plotted phase; or a :class:`mikit.InformationFlow` whose weights depend on
            the epoch, if phases are epochs: the intermediate layers' fraction of the whole loss.
        verdicts: Whether to draw the verdict bar of the label information, by phase.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state; with a schedule it has two panels.

    Raises:
        InputError: If the flow had no labels, there is no such matching or network, the schedule lacks a plotted phase
            or contains an invalid weight, or the label information mixes units, kinds, probes, poolings of one layer,
            or numbers of samples.

    Cost:
        Half a second.

    Pitfalls:
        With nearest matching, nearly all of the divergence is its last term, and the rest is small for any student.
        Amounts are compared, not contents. A weight and a divergence that decrease together do not show a cause: both
        decrease with time.

    Examples:
        >>> import mikit
        >>> reading = mikit.flow.read_phases(run)
        >>> figure = mikit.plot.divergence(reading, schedule={phase: 0.9**phase for phase in (0, 1, 2, 4, 8, 16, 30)})
        >>> len(figure.axes)
        2
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
    labels = reading.curves[reading.curves["quantity"].eq("label_information") & reading.curves["network"].isin(names)]
    _refuse(labels)
    weights = None if schedule is None else _weights(schedule, order)
    with figure_style():
        width = max(4.6, 0.33 * len(order) + 1.9)
        if weights is None:
            figure = Figure(figsize=(width, 2.7))
            ax = figure.subplots()
        else:
            figure = Figure(figsize=(width, 3.5))
            ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1.0))
            _draw_weights(below, weights, schedule)
        keys = _draw_divergences(ax, table, names, order, _clear_falls(reading.critical, names, matching))
        for one in figure.axes:
            phase_ticks(one, order, 3.4)
        figure.axes[-1].set_xlabel("phase (not to scale)")
        facts = _divergence_facts(table, matching, order)
        if weights is not None:
            facts.append("Below: the weight at the recorded phases only")
        bands = [verdict_bar(labels, "phase", order)] if verdicts and len(labels) else []
        if verdicts and not bands:
            facts.append(f"No verdicts: this reading is of {reading.settings['quantity']}, not of label information")
        finish(figure, "Divergence of a student's flow from its teacher's", keys, facts, bands=bands)
    return figure


def _draw_divergences(
    ax: Axes, table: pd.DataFrame, names: list[str], order: list[int], falls: list[dict[str, Any]]
) -> list[Any]:
    """Draw the divergence of every network and shade its clear falls; return the legend entries."""
    colors, keys = network_colors(names), []
    several = len(table["seed"].unique()) > 1
    for number, name in enumerate(names):
        terms = table[table["network"].eq(name)].groupby("phase")[["total", "last"]].agg(["mean", "min", "max"])
        xs = [order.index(int(str(phase))) for phase in terms.index]
        total, last = terms["total"], terms["last"]
        color, marker = colors[name], MARKERS[number % len(MARKERS)]
        if several:
            ax.fill_between(xs, total["min"], total["max"], color=color, alpha=0.2, linewidth=0)
        ax.plot(xs, total["mean"], color=color, marker=marker, label=name)
        ax.plot(xs, last["mean"], color=color, linestyle=":", linewidth=1.3, label=f"_last {name}")
        keys.append(line_key(name, color=color, marker=marker))
        for row in falls:
            if row["network"] == name:
                ax.axvspan(order.index(row["from_phase"]), order.index(row["to_phase"]), color=color, alpha=0.12, lw=0)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("D_F (nats², log)")
    keys.append(line_key("its last-layer term", color=SOFT, linestyle=":", width=1.3))
    return keys


def _divergence_facts(table: pd.DataFrame, matching: str, order: list[int]) -> list[str]:
    fraction, seeds = table.groupby("phase")["last_share"].mean(), len(table["seed"].unique())
    return [
        f"Label information of student and final teacher, matched by {matching}",
        f"The last layer's term is {100 * fraction.iloc[0]:.0f} % of it at phase {order[0]} and "
        f"{100 * fraction.iloc[-1]:.0f} % at phase {order[-1]}",
        "Shaded: the step with the largest decrease, if it is clear",
        f"{seeds}\u00a0seeds, lines are means and bands range from the smallest to the largest value"
        if seeds > 1
        else "1 run, no band",
    ]


@runtime_checkable
class Schedule(Protocol):
    """The attributes of a loss that its schedule is drawn from; the last layer is the last of ``matching``."""

    alpha: float
    gamma: float
    schedule: str
    matching: tuple[int, ...]


def _weights(schedule: Mapping[int, float] | Schedule, order: Sequence[int]) -> list[float]:
    """Return the weight at every phase of ``order``."""
    if isinstance(schedule, Mapping):
        missing = [phase for phase in order if phase not in schedule]
        if missing:
            raise InputError(
                f"The schedule has no weight for phases {', '.join(map(str, missing))}. Pass one for every plotted "
                f"phase: {', '.join(map(str, order))}."
            )
        weights = [float(schedule[phase]) for phase in order]
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise InputError(f"The schedule contains {weights}; weights must be finite and not negative.")
        return weights
    if not isinstance(schedule, Schedule):
        raise InputError(
            f"schedule is a {type(schedule).__name__}; pass a mapping from phase to weight, or an InformationFlow."
        )
    if schedule.schedule != "epoch":
        raise InputError(
            "The weights of this InformationFlow depend on its measurements and not on the epoch. Pass the weights "
            "that were logged during training, as a mapping from phase to weight."
        )
    inner = len(schedule.matching) - 1
    raw = [inner * schedule.alpha * schedule.gamma**epoch for epoch in order]
    return [weight / (weight + 1.0) for weight in raw]


def _draw_weights(ax: Axes, weights: Sequence[float], schedule: Any) -> None:
    fractions = not isinstance(schedule, Mapping)
    ax.plot(range(len(weights)), weights, color=INK, marker="s", markersize=2.8, linewidth=1.0, label="weight")
    ax.fill_between(range(len(weights)), 0.0, weights, color=INK, alpha=0.08, linewidth=0, label="_weight")
    ax.set_ylim(0.0, 1.08 if fractions else 1.12 * max([*weights, 1e-12]))
    ax.set_ylabel("fraction of\nintermediate\nlayers" if fractions else "weight of\nthe loss")


def _refuse(curves: pd.DataFrame) -> None:
    """Refuse curves of one quantity that must not share an axis; skip curves without these attributes."""
    for unit in ("unit", "kind", "probe", "readout", "n"):
        if unit not in curves or curves[unit].isna().any():
            return
    if len(units := curves["unit"].unique()) > 1:
        raise InputError(
            f"The curves of {curves['quantity'].iloc[0]} are in {' and '.join(sorted(units))}: two units cannot share "
            "one axis. Convert one of them, or draw two figures."
        )
    if len(curves):
        refuse_mixtures(curves.assign(role="student"), str(curves["quantity"].iloc[0]))


def _clear_falls(critical: pd.DataFrame, networks: list[str], matching: str) -> list[dict[str, Any]]:
    """Return the largest falls that are clear, one for each network and interval."""
    found = critical[critical["network"].isin(networks) & critical["matching"].eq(matching)]
    clear = found[found["decision"].eq("clear")].drop_duplicates(["network", "from_phase", "to_phase"])
    return [{str(key): value for key, value in row.items()} for row in clear.to_dict("records")]


def _networks(known: list[str], asked: Sequence[str] | None) -> list[str]:
    if asked is None:
        return known[:_MOST]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise InputError(f"There is no student network {unknown or '(none named)'}; there are {', '.join(known)}.")
    if len(asked) > _MOST:
        raise InputError(f"{len(asked)} networks were requested; this figure is readable up to {_MOST}.")
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
        curve = curves[curves["quantity"].eq(what) & curves["network"].eq(name)]
        at = int(curve["seed"].min()) if seed is None else seed
        if not curve["seed"].eq(at).any():
            seeds = ", ".join(map(str, sorted(curve["seed"].unique())))
            raise InputError(f'Network "{name}" has no seed {at}; it has {seeds}.')
        kept.append((name, at, curve[curve["seed"].eq(at)]))
    picked = pd.concat([curve for _, _, curve in kept])
    _refuse(picked)
    marks = [
        changes[changes["quantity"].eq(what) & changes["network"].eq(name) & changes["seed"].eq(at)]
        for name, at, _ in kept
    ]
    return picked, pd.concat(marks)


def _draw(ax: Axes, curve: pd.DataFrame, changes: pd.DataFrame, order: list[int], color: str, marker: str) -> None:
    xs = [order.index(int(phase)) for phase in curve["phase"]]
    for row in changes.to_dict("records"):
        # A change at a recording lies between it and the previous one.
        low, high = order.index(row["low"]) - 1, order.index(row["high"])
        ax.axvspan(low, high, color=color, alpha=0.13, linewidth=0)
        ax.axvline(order.index(row["phase"]) - 0.5, color=color, linewidth=0.9, linestyle="--")
    ax.errorbar(
        xs,
        curve["value"],
        yerr=2 * curve["standard_error"],
        color=color,
        linestyle="none",
        marker=marker,
        elinewidth=0.8,
        label=clip_text(str(curve["network"].iloc[0]), 30) if len(curve) else "",
    )
    for _, piece in curve.assign(x=xs).groupby("piece"):
        ax.plot(piece["x"], piece["fitted"], color=color, linewidth=1.4)
