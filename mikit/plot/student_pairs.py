"""The difference between two students' curves at every layer, with the range that errors alone explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mikit.core.errors import InputError
from mikit.flow import PathComparison, compare_paths
from mikit.plot.drawing.bands import verdict_bar
from mikit.plot.drawing.names import clip_text, short_names
from mikit.plot.drawing.style import BLUE, INK, SOFT, caption_facts, figure_style, finish, hollow_key, line_key
from mikit.plot.drawing.tables import Rows, layers_of, matching, present, select
from mikit.plot.over_phases import keep_pairs, phase_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mikit.flow import Flow

__all__ = ["students"]

_LABELS = {
    "label_information": "label information ({unit})",
    "recovered_share": "fraction recovered",
    "cka": "linear CKA",
}
_KEYS = ["seed", "phase", "layer"]
_NOTHING = "#dedede"


def students(
    flow: Flow,
    first: str,
    second: str,
    *,
    quantity: str | None = None,
    noise: float | None = None,
    level: float = 0.05,
    verdicts: bool = True,
) -> Figure:
    """Difference between two students over the phases, one panel per layer: positive where the first has more.

    The line is the mean over the seeds that both have; the colored band ranges from the smallest to the largest of
    their differences. Inside the gray band a difference is not significant (:func:`mikit.flow.compare_paths`, all
    layers and phases taken together). The dashed line is the phase from which the two differ until the end.

    Args:
        flow: A flow returned by :func:`mikit.trace`.
        first: The student whose curves are drawn.
        second: The student whose curves are subtracted; it has the same layers.
        quantity: ``"recovered_share"`` or ``"cka"``, each with the teacher layer at the same depth, or
            ``"label_information"``. Default: the recovered fraction if measured.
        noise: Teacher noise of the recovered fraction. Default: 0.3 if measured.
        level: Upper limit of the probability that two equal paths differ anywhere, if the errors are correct.
        verdicts: Whether to draw the verdict bar of the rows of both, by phase.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state.

    Raises:
        InputError: If the flow lacks the quantity, noise or one of the students, if the two have different layers or
            share no seed and phase, or if their rows mix units, kinds, probes, poolings of one layer, or numbers of
            samples.

    Cost:
        About a second for 12 layers.

    Pitfalls:
        With three seeds the gray band is wide, because Student's t distribution is. With one seed it includes the
        sampling of samples but no randomness of training: even two runs of one method leave it. A difference of amounts
        does not show that one student contains information that the other lacks.

    Examples:
        >>> import mikit
        >>> figure = mikit.plot.students(run, "student + VID", "student alone")
        >>> figure.axes[0].get_title(loc="left")
        'stem'
    """
    what = quantity or ("recovered_share" if present(flow, "recovered_share") else "label_information")
    if what not in _LABELS:
        raise InputError(f'quantity="{what}" has no path over phases; choose one of {", ".join(_LABELS)}.')
    if first == second:
        raise InputError(f'Both students are "{first}". Pass two different ones.')
    rows = select(flow, what, noise=noise, networks=[first, second])
    layers = layers_of(rows.students, first)
    if layers != layers_of(rows.students, second):
        raise InputError(f"{first} and {second} have different layers, so their curves cannot be subtracted.")
    found = compare_paths(flow, first, second, quantity=what, noise=rows.noise, level=level)
    drawn = keep_pairs(rows.students, {} if what == "label_information" else
                       {name: matching(rows, name) for name in (first, second)})  # fmt: skip
    apart = _by_seed(drawn, first, second)
    with figure_style():
        figure = _draw(found, apart, layers, rows.unit)
        finish(
            figure,
            f"{clip_text(first, 26)} − {clip_text(second, 26)}",
            _keys(apart),
            _facts(flow, rows, found, apart),
            bands=[verdict_bar(drawn, "phase", rows.phases)] if verdicts else [],
        )
    return figure


def _by_seed(rows: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return the differences by seed, where both students have a value."""
    firsts, seconds = (rows[rows["network"].eq(name)][[*_KEYS, "value", "verdict"]] for name in (first, second))
    both = firsts.merge(seconds, on=_KEYS, suffixes=("_first", "_second")).dropna(
        subset=["value_first", "value_second"]
    )
    doubted = both["verdict_first"].eq("unreliable") | both["verdict_second"].eq("unreliable")
    return both.assign(difference=both["value_first"] - both["value_second"], unreliable=doubted)


def _draw(found: PathComparison, apart: pd.DataFrame, layers: list[str], unit: str) -> Figure:
    order = sorted(int(phase) for phase in apart["phase"].unique())
    across = len(layers) if len(layers) <= 4 else -(-len(layers) // 2) if len(layers) <= 8 else 4
    lines = -(-len(layers) // across)
    panel = min(max(1.6, 0.22 * len(order)), 2.6)
    figure = Figure(figsize=(max(across * (panel + 0.1) + 0.7, 4.2), lines * 1.72 + 0.2))
    grid = figure.subplots(lines, across, sharey=True, squeeze=False)
    for spare in grid.flat[len(layers) :]:
        spare.remove()
    low, high = min(0.0, apart["difference"].min()), max(0.0, apart["difference"].max())
    pad = 0.12 * max(high - low, 1e-6)
    grid.flat[0].set_ylim(low - pad, high + pad)
    label = _LABELS[found.settings["quantity"]].format(unit=unit)
    for place, (layer, title, ax) in enumerate(zip(layers, short_names(layers, 14), grid.flat, strict=False)):
        _draw_layer(ax, found, apart[apart["layer"].eq(layer)], layer, order)
        ax.set_title(title, fontsize=8)
        phase_ticks(ax, order, panel - 0.2)
        if place % across == 0:
            ax.set_ylabel(f"difference of\n{label}")
        if place >= len(layers) - across:
            ax.set_xlabel("phase (not to scale)")
    return figure


def _draw_layer(ax: Axes, found: PathComparison, apart: pd.DataFrame, layer: str, order: list[int]) -> None:
    table = found.differences[found.differences["layer"].eq(layer)].sort_values("phase")
    xs = [order.index(int(phase)) for phase in table["phase"] if phase in order]
    limits = table.loc[table["phase"].isin(order), "threshold"].to_numpy(dtype=float)
    ax.fill_between(xs, -limits, limits, color=_NOTHING, linewidth=0, label="_within errors", zorder=0.5)
    ax.axhline(0.0, color=INK, linewidth=0.8, label="_zero", zorder=1)
    by_phase = apart.groupby("phase")["difference"].agg(["mean", "min", "max", "count"])
    x = np.array([order.index(int(str(phase))) for phase in by_phase.index])
    if bool(by_phase["count"].gt(1).any()):
        ax.fill_between(x, by_phase["min"], by_phase["max"], color=BLUE, alpha=0.2, linewidth=0, label="_seeds")
    ax.plot(x, by_phase["mean"], color=BLUE, label="difference")
    hollow = apart.groupby("phase")["unreliable"].any().to_numpy(dtype=bool)
    for mask, face, what in ((~hollow, BLUE, "_trusted"), (hollow, "white", "_unreliable")):
        if mask.any():
            ax.plot(x[mask], by_phase["mean"].to_numpy()[mask], linestyle="none", marker="o", color=BLUE,
                    markerfacecolor=face, label=what, zorder=3)  # fmt: skip
    parted = found.partings.loc[found.partings["layer"].eq(layer), "phase"]
    if len(parted) and int(parted.iloc[0]) in order:
        ax.axvline(
            order.index(int(parted.iloc[0])), color=SOFT, linestyle="--", linewidth=1.0, label="different from here"
        )


def _keys(apart: pd.DataFrame) -> list[Any]:
    keys: list[Any] = [
        line_key("mean difference", color=BLUE, marker="o"),
        Patch(facecolor=_NOTHING, linewidth=0, label="range explained by errors"),
        line_key("different from here to the end", color=SOFT, linestyle="--", width=1.0),
    ]
    return [*keys, hollow_key()] if bool(apart["unreliable"].any()) else keys


def _facts(flow: Flow, rows: Rows, found: PathComparison, apart: pd.DataFrame) -> list[str]:
    parted = [str(row["layer"]) for row in found.partings.to_dict("records") if row["phase"] >= 0]
    first, second = clip_text(found.first, 30), clip_text(found.second, 30)
    seeds = sorted(int(seed) for seed in apart["seed"].unique())
    facts = [
        f"Above 0, {first} has more than {second}; within the gray band they may be equal (level "
        f"{found.settings['level']:g} for all layers and phases together, errors from {found.settings['basis']})",
        f"Different to the end: {', '.join(short_names(parted)) if parted else 'no layer'}",
        f"{len(seeds)}\u00a0seeds, paired; the band ranges from the smallest to the largest difference"
        if len(seeds) > 1
        else f"1 run of each (seed {seeds[0]}): errors include the sampling of samples, not the randomness of training",
        "A difference of amounts; which information differs is not shown",
    ]
    if bool(found.differences["threshold"].max() > apart["difference"].abs().max()):
        facts.append("The gray band continues beyond the axis where a panel is gray up to its edge")
    if rows.quantity != "label_information":
        facts.append("Each student layer against the teacher layer at the same relative depth")
    facts += caption_facts(flow, rows, band=False)[:-1]
    return facts
