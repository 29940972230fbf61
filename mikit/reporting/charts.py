"""What the figures of a report draw: averages over seeds on a dense grid of phases, layers and teacher layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import pandas as pd

from mikit.plot.drawing.names import short_names
from mikit.plot.drawing.style import caption_facts, network_colors
from mikit.plot.drawing.tables import Rows, label_entropy, layers_of, matching, present, select, teacher_layers
from mikit.reporting.columns import short_numbers

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["FIGURES", "VERDICTS", "FigureOfReport", "charts"]

VERDICTS = ("not judged", "trustworthy", "caution", "unreliable", "skipped")
"""Verdicts from the best to the worst; the figures hold their places in this order."""

_MAPS = frozenset({"recovered_share", "cka"})
_PLACE = ["network", "phase", "layer", "teacher_layer"]


@final
@dataclass(frozen=True)
class FigureOfReport:
    """One figure of the page.

    Attributes:
        name: Its name in the page's addresses.
        heading: Its heading.
        quantity: What it draws.
        kind: ``"phases"`` has the phases along the axis, ``"layers"`` the layers, ``"map"`` sets layer against layer.
        axis: What the axis of values says, before the unit.
        reading: How to read it.
    """

    name: str
    heading: str
    quantity: str
    kind: Literal["phases", "layers", "map"]
    axis: str
    reading: str


FIGURES = (
    FigureOfReport(
        "phases",
        "Share of the teacher recovered, phase by phase",
        "recovered_share",
        "phases",
        "share recovered",
        "One panel per layer: a line that climbs away from the dotted untrained floor shows what training added, and "
        "only a gap wider than the bands sets two networks apart.",
    ),
    FigureOfReport(
        "flow",
        "Label information, layer by layer",
        "label_information",
        "layers",
        "label information",
        "Follow one line from the input to the output: it shows where in the network the labels become readable. Move "
        "the phase to see it grow; the dashed line is where the teacher ends, and no line can pass H(Y) in truth.",
    ),
    FigureOfReport(
        "maps",
        "Which layer knows which",
        "recovered_share",
        "map",
        "share recovered",
        "Read down a column: it shows from which student layer (outlined) one teacher layer is recovered best; "
        "comparing along a row favours the teacher's early layers, which are easy.",
    ),
    FigureOfReport(
        "gap",
        "Signed gap to the teacher",
        "label_gap",
        "layers",
        "student − teacher",
        "Lines below zero tell less about the labels than the teacher at the same relative depth; lines that rise "
        "towards zero with the phases are catching up.",
    ),
    FigureOfReport(
        "label-phases",
        "Label information, phase by phase",
        "label_information",
        "phases",
        "label information",
        "The same numbers as the flow curves with training along the axis: one panel per layer, the teacher's final "
        "value dashed.",
    ),
    FigureOfReport(
        "cka",
        "Similarity of the layers",
        "cka",
        "map",
        "linear CKA",
        "Linear CKA compares geometries and is the second opinion: it needs no noise, and a high value does not say "
        "how much is known.",
    ),
    FigureOfReport(
        "accuracy",
        "Accuracy",
        "accuracy",
        "phases",
        "accuracy",
        "The outcome the other figures should be read against: one line per network, the teacher's final accuracy "
        "dashed.",
    ),
)


def charts(flow: Flow, marks: Mapping[tuple[str, int, str], tuple[int, int]] | None = None) -> dict[str, Any]:
    """The numbers of all figures, ready for JSON.

    Formula: per network, phase, layer and teacher layer the mean, smallest, largest and SD (divisor n - 1) over seeds;
    the mean of the seeds' sampling intervals, floors and nulls; the worst verdict over the seeds with its reasons.

    Args:
        flow: The flow.
        marks: By network, phase and layer: in how many runs label information rises with depth there, and in how many
            it is impossible.

    Returns:
        ``phases`` (of all students, ascending), ``networks`` with their colours, ``entropy``, ``reasons``,
        ``verdicts``, and ``quantities``: per quantity its unit and one level per teacher noise. A level holds the
        range of values over all phases, the caption, the final teacher and one part per network, whose arrays run over
        phases, layers and teacher layers, the last fastest; None stands where nothing was measured.

    Unit: those of the frame, one per quantity. Numbers have four significant digits.

    Raises:
        InputError: If the rows of a quantity mix units or repeat a measurement.

    Cost:
        A second per 20,000 rows.

    Source: mikit's own figures, as in :mod:`mikit.plot`.

    Example:
        >>> charts(run)["quantities"]["recovered_share"]["unit"]
        'share'
    """
    drawn = list(dict.fromkeys(one.quantity for one in FIGURES if present(flow, one.quantity)))
    frame = flow.frame
    students = frame[frame["role"].eq("student") & frame["quantity"].isin(drawn)]
    phases = sorted(int(phase) for phase in students["phase"].unique())
    networks = [str(name) for name in students["network"].unique()]
    reasons: dict[str, int] = {"": 0}
    quantities: dict[str, Any] = {}
    for quantity in drawn:
        first = select(flow, quantity)
        levels = [_level(flow, select(flow, quantity, noise=one), phases, networks, reasons)
                  for one in (first.noises or (None,))]  # fmt: skip
        start = first.noises.index(first.noise) if first.noise is not None else 0
        quantities[quantity] = {"unit": first.unit, "start": start, "levels": levels}
    for level in quantities.get("label_information", {"levels": ()})["levels"]:
        for part in level["parts"]:
            found = [(marks or {}).get((networks[part["network"]], phase, layer), (0, 0))
                     for phase in phases for layer in part["layers"]]  # fmt: skip
            part |= {"rises": [rises for rises, _ in found], "impossible": [wrong for _, wrong in found]}
    colors = network_colors(networks)
    return {
        "phases": phases,
        "networks": [{"name": name, "color": colors[name]} for name in networks],
        "entropy": label_entropy(flow),
        "verdicts": list(VERDICTS),
        "reasons": list(reasons),
        "quantities": quantities,
    }


def _level(flow: Flow, rows: Rows, phases: list[int], networks: list[str], reasons: dict[str, int]) -> dict[str, Any]:
    averages = _averages(rows.students)
    parts: list[dict[str, Any]] = []
    others = teacher_layers(rows) if rows.quantity in _MAPS else [""]
    for name in rows.networks:
        own = averages[averages["network"].eq(name)]
        layers = layers_of(rows.students, name)
        part: dict[str, Any] = {"network": networks.index(name), "seeds": int(own["count"].max()), "layers": layers}
        part |= {"short": short_names(layers), "others": others, "match": _match(rows, name, layers, others)}
        parts.append(part | _grid(own, phases, layers, others, reasons))
    facts = caption_facts(flow, rows)
    ticks: list[str] = max((part["layers"] for part in parts), key=len)
    for part in parts:
        part["x"] = _places(part["layers"], ticks)
    teacher = _teacher(rows, ticks)
    if any(part["layers"] != ticks for part in parts):
        facts.append("Networks with other layers are drawn at the same relative depth")
    if teacher is not None and not set(teacher["layers"]) <= set(ticks):
        facts.append("The teacher is drawn at the same relative depth")
    return {
        "noise": rows.noise,
        "range": _range(rows, teacher),
        "facts": ". ".join(facts) + ".",
        "ticks": short_names(ticks),
        "others": short_names(others),
        "teacher": teacher,
        "parts": parts,
    }


def _averages(table: pd.DataFrame) -> pd.DataFrame:
    code = table["verdict"].map({name: place for place, name in enumerate(VERDICTS)}).fillna(0).astype(int)
    # Sorted by verdict, so that the last reasons are those of the worst.
    marked = table.assign(code=code, reasons=table["reasons"].fillna("")).sort_values("code", kind="stable")
    return marked.groupby(_PLACE, as_index=False, dropna=False).agg(
        mean=("value", "mean"),
        smallest=("value", "min"),
        largest=("value", "max"),
        sd=("value", "std"),
        count=("value", "count"),
        low=("low", "mean"),
        high=("high", "mean"),
        untrained=("untrained", "mean"),
        null=("null", "mean"),
        verdict=("code", "max"),
        reasons=("reasons", "last"),
    )


def _match(rows: Rows, network: str, layers: list[str], others: list[str]) -> list[int]:
    """Place of the teacher layer at the same relative depth, for every layer of a network."""
    if rows.quantity not in _MAPS:
        return [0] * len(layers)
    pairs = matching(rows, network)
    return [others.index(pairs[layer]) for layer in layers]


def _grid(
    own: pd.DataFrame, phases: list[int], layers: list[str], others: list[str], reasons: dict[str, int]
) -> dict[str, Any]:
    """The averages as flat arrays over phases, layers and teacher layers."""
    shape = (len(phases), len(layers), len(others))
    column = own["teacher_layer"].map({name: place for place, name in enumerate(others)}) if len(others) > 1 else None
    spot = np.ravel_multi_index(
        (
            own["phase"].map({phase: place for place, phase in enumerate(phases)}).to_numpy(),
            own["layer"].map({name: place for place, name in enumerate(layers)}).to_numpy(),
            np.zeros(len(own), dtype=int) if column is None else column.to_numpy(),
        ),
        shape,
    )
    size = math.prod(shape)
    grid: dict[str, Any] = {}
    for name in ("mean", "smallest", "largest", "sd", "low", "high", "untrained", "null"):
        values = np.full(size, np.nan)
        values[spot] = own[name].to_numpy(dtype=float)
        grid[name] = short_numbers(values)
    told = [reasons.setdefault(str(text), len(reasons)) for text in own["reasons"]]
    # -1 where the flow has no row at all.
    for name, codes in (("verdict", own["verdict"].to_numpy()), ("count", own["count"].to_numpy()), ("reason", told)):
        whole = np.full(size, -1)
        whole[spot] = codes
        grid[name] = whole.tolist()
    return grid


def _places(layers: list[str], ticks: list[str]) -> list[float]:
    """Where layers stand on an axis: at their names, or at the same relative depth if one is unknown."""
    if set(layers) <= set(ticks):
        return [float(ticks.index(name)) for name in layers]
    return [(len(ticks) - 1) * place / max(len(layers) - 1, 1) for place in range(len(layers))]


def _teacher(rows: Rows, ticks: list[str]) -> dict[str, Any] | None:
    if rows.teacher.empty:
        return None
    table = rows.teacher_averages().sort_values("layer_index", kind="stable")
    layers = [str(name) for name in table["layer"]]
    runs = int(rows.teacher["seed"].nunique())
    said = f"teacher, phase {int(rows.teacher['phase'].max())} ({runs} run{'s' if runs > 1 else ''})"
    return {"layers": layers, "x": _places(layers, ticks), "mean": short_numbers(table["mean"]), "said": said}


def _range(rows: Rows, teacher: dict[str, Any] | None) -> list[float]:
    """Limits that hold every value at every phase, so that the axis stands still while the phase moves."""
    table = rows.students
    values = table[["value", "untrained"]].to_numpy(dtype=float).ravel()
    single = table.groupby("network")["seed"].transform("nunique").eq(1)
    values = np.concatenate([values, table.loc[single, ["low", "high"]].to_numpy(dtype=float).ravel(), [0.0]])
    if teacher is not None:
        values = np.append(values, [value for value in teacher["mean"] if value is not None])
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if rows.quantity in ("recovered_share", "cka", "accuracy"):
        high = max(high, 1.0 if rows.quantity != "recovered_share" else 0.8)
    pad = 0.05 * max(high - low, 1e-6)
    return [low - pad if low < 0 else 0.0, high + pad]
