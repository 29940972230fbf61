"""Several estimators of the same quantity on one axis: lower bounds, upper bounds and estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mikit.core.errors import InputError
from mikit.core.measurement import Measurement
from mikit.plot.drawing.names import clip_text
from mikit.plot.drawing.style import BLUE, GREY, INK, RED, SOFT, figure_style, finish, line_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["all_rows", "estimator_panel"]

_NULL = "#efe6d5"
_LOOKS = {
    "lower bound": (">", BLUE, "lower bound: the true value is to the right"),
    "upper bound": ("<", RED, "upper bound: the true value is to the left"),
    "estimate": ("o", INK, "estimate"),
    "V-information": ("D", "#029e73", "V-information of a family of predictors"),
}
_FILLS = {"trustworthy": "full", "caution": "left", "unreliable": "full"}


def estimator_panel(
    measurements: Mapping[str, Measurement] | Sequence[Measurement], *, truth: float | None = None
) -> Figure:
    """Several measurements of the same two variables on one axis: lower bounds, upper bounds and estimates.

    The shape of a marker is the kind of the estimate, its fill is the verdict. Bars are 95 % intervals, the shaded
    range beside each is the range of permuted data, and a short vertical line is the estimator's own ceiling.

    Args:
        measurements: Measurements returned by :func:`mikit.measure` for one student and one teacher layer, keyed by the
            name to show; a sequence is named by the estimators.
        truth: The true information in nats, if it is known.

    Returns:
        A ``matplotlib.figure.Figure`` without pyplot state, with one panel and one row per measurement in the given
        order, from the top.

    Raises:
        InputError: If there is nothing to draw, if a measurement is not information in nats, or if the measurements
            differ in unit, number of samples, declared noise or data, so that they do not measure the same quantity.

    Cost:
        A quarter of a second.

    Pitfalls:
        Intervals include the sampling of samples but not the bias of an estimator: bars that do not overlap are not a
        contradiction. A bound that learned nothing is still a bound. V-information is not a bound on the information
        between continuous layers; it is what its family of predictors finds.

    Examples:
        >>> import mikit
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> teacher = rng.standard_normal((400, 2))
        >>> student = teacher + rng.standard_normal((400, 2))
        >>> both = {name: mikit.measure(student, teacher, name) for name in ("gaussian", "ksg")}
        >>> figure = mikit.plot.estimator_panel(both, truth=0.69)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['gaussian', 'ksg']
    """
    named = _named(measurements)
    _refuse_different(named)
    rows = all_rows(next(iter(named.values())))
    with figure_style():
        figure = Figure(figsize=(6.2, 0.42 * len(named) + 0.85))
        ax = figure.add_subplot()
        ax.grid(True, axis="x")
        ax.grid(False, axis="y")
        for place, measured in enumerate(named.values()):
            _draw(ax, place, measured)
            ax.text(1.01, place, _value_label(measured), transform=ax.get_yaxis_transform(), va="center", fontsize=7.2)
        ax.axvline(0.0, color=GREY, linewidth=0.8)
        capped = math.log(rows)
        ax.axvline(capped, color=SOFT, linestyle=":", linewidth=1.1, label="log N")
        if truth is not None:
            ax.axvline(truth, color="#029e73", linestyle="--", linewidth=1.2, label="true value")
        ax.set_yticks(range(len(named)), [clip_text(name, 30) for name in named])
        ax.set_ylim(len(named) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("mutual information (nats)")
        finish(figure, "Comparison of estimators", _keys(named, rows, truth), _facts(named, rows))
    return figure


def _named(measurements: Mapping[str, Measurement] | Sequence[Measurement]) -> dict[str, Measurement]:
    if isinstance(measurements, Mapping):
        named = dict(measurements)
    else:
        named = {}
        for one in measurements:
            name = one.estimator.split("(")[0] if isinstance(one, Measurement) else ""
            alike = sum(other == name or other.startswith(f"{name} (") for other in named)
            named[f"{name} ({alike + 1})" if alike else name] = one
    if not named:
        raise InputError("There is no measurement to draw; pass the results of mikit.measure.")
    for name, one in named.items():
        if not isinstance(one, Measurement):
            raise InputError(f"{name or 'An entry'} is a {type(one).__name__}; pass the results of mikit.measure.")
    return named


def all_rows(measured: Measurement) -> int:
    """Return the number of all samples of a measurement; a learned estimator reports on a part of them."""
    return sum(measured.sizes[part] for part in ("fit", "select", "report"))


def _refuse_different(named: Mapping[str, Measurement]) -> None:
    def of(what: Any) -> str:
        return ", ".join(f"{name}: {what(one)}" for name, one in named.items())

    if len({one.unit for one in named.values()}) > 1:
        raise InputError(f"These measurements are in different units ({of(lambda m: m.unit)}). Draw them separately.")
    other = [name for name, one in named.items() if one.unit != "nats" or one.kind not in _LOOKS]
    if other:
        one = named[other[0]]
        raise InputError(
            f'{other[0]} is a measurement of kind "{one.kind}" in {one.unit}, not information in nats. Leave it out; '
            "mikit.plot.both_axes draws a discrepancy together with information."
        )
    for what, name, advice in (
        (lambda m: f"{all_rows(m):,}", "numbers of samples N", "Measure them on the same samples"),
        (lambda m: "none" if m.noise is None else f"{m.noise:g}", "declared noise", "Measure them with the same noise"),
        (lambda m: m.data_hash[:12], "data", "Measure them on the same two variables"),
    ):
        if len({what(one) for one in named.values()}) > 1:
            raise InputError(
                f"These measurements differ in their {name} ({of(what)}), so they cannot share an axis. {advice}, or "
                "draw them separately."
            )


def _draw(ax: Axes, place: int, measured: Measurement) -> None:
    marker, color, _ = _LOOKS[measured.kind]
    if measured.null is not None:
        low, high = min(0.0, *measured.null.values), max(0.0, *measured.null.values)
        ax.barh(place, high - low, left=low, height=0.62, color=_NULL, linewidth=0, zorder=0.5, label="_null")
        ax.plot(measured.null.values, [place] * len(measured.null.values), linestyle="none", marker="|", markersize=7,
                color="#b59b62", label="_null draws", zorder=1)  # fmt: skip
    low, high = measured.interval
    if math.isfinite(low) and math.isfinite(high):
        ax.plot([low, high], [place, place], color=color, linewidth=1.3, label="_interval", zorder=2)
    if measured.ceiling is not None:
        ax.plot([measured.ceiling] * 2, [place - 0.3, place + 0.3], color=SOFT, linewidth=2.0, label="_ceiling")
    if math.isfinite(measured.value):
        ax.plot(
            [measured.value],
            [place],
            linestyle="none",
            marker=marker,
            markersize=6.5,
            color=color,
            fillstyle=_FILLS[measured.verdict],
            markerfacecolor="white" if measured.verdict == "unreliable" else color,
            markerfacecoloralt="white",
            label=f"_{measured.verdict}",
            zorder=3,
        )


def _value_label(measured: Measurement) -> str:
    low, high = measured.interval
    value = "no value" if not math.isfinite(measured.value) else f"{measured.value:.3g}"
    return value + (f"  [{low:.3g}, {high:.3g}]" if math.isfinite(low) and math.isfinite(high) else "")


def _keys(named: Mapping[str, Measurement], rows: int, truth: float | None) -> list[Any]:
    kinds = {one.kind for one in named.values()}
    keys: list[Any] = [
        line_key(label, color=color, linestyle="none", marker=marker)
        for kind, (marker, color, label) in _LOOKS.items()
        if kind in kinds
    ]
    verdicts = {one.verdict for one in named.values()}
    for verdict, fill in _FILLS.items():
        if verdict in verdicts:
            keys.append(Line2D([], [], linestyle="none", marker="o", color=SOFT, fillstyle=fill))  # type: ignore[arg-type]
            keys[-1].set_markerfacecoloralt("white")
            keys[-1].set_markerfacecolor("white" if verdict == "unreliable" else SOFT)
            keys[-1].set_label(verdict)
    if any(one.null is not None for one in named.values()):
        keys.append(Patch(facecolor=_NULL, linewidth=0, label="null: permuted pairing"))
    if any(one.ceiling is not None for one in named.values()):
        keys.append(Line2D([], [], linestyle="none", marker="|", markersize=8, markeredgewidth=2.0, color=SOFT))
        keys[-1].set_label("upper limit of the estimate")
    keys.append(line_key(f"log N = {math.log(rows):.2f} nats", color=SOFT, linestyle=":", width=1.1))
    if truth is not None:
        keys.append(line_key(f"true value, {truth:.3g} nats", color="#029e73", linestyle="--", width=1.2))
    return keys


def _facts(named: Mapping[str, Measurement], rows: int) -> list[str]:
    first = next(iter(named.values()))
    facts = [f"N\u00a0=\u00a0{rows:,}, {first.sizes['d_x']} and {first.sizes['d_y']} columns"]
    if first.noise is not None:
        facts.append(f"Declared noise {first.noise:g}, as a fraction of each column's standard deviation")
    parts = [f"{name} on {one.sizes['report']:,}" for name, one in named.items() if one.sizes["report"] < rows]
    if parts:
        facts.append(f"Reported on samples that were not used for fitting: {', '.join(parts)}")
    facts.append("Bars: 95 % sampling intervals, without the bias of the estimator")
    unknown = [name for name, one in named.items() if not math.isfinite(one.interval[0])]
    if unknown:
        facts.append(f"Sampling error unknown, no bar: {', '.join(unknown)}")
    missing = [name for name, one in named.items() if not math.isfinite(one.value)]
    if missing:
        facts.append(f"No value: {', '.join(missing)}")
    return facts
