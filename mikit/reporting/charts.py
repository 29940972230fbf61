"""The data of the figures of a report: averages over seeds on a dense grid of phases, layers and teacher layers."""

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
"""Verdicts from the best to the worst; the figures store positions in this list."""

_MAPS = frozenset({"recovered_share", "cka"})
_PLACE = ["network", "phase", "layer", "teacher_layer"]


@final
@dataclass(frozen=True)
class FigureOfReport:
    """One figure of the page.

    ``kind`` is ``"phases"`` or ``"layers"`` by what the axis shows, or ``"map"`` for student against teacher layers;
    ``axis`` is the title of the value axis without its unit, and ``reading`` explains the figure.
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
        "Recovered share of the teacher, by phase",
        "recovered_share",
        "phases",
        "recovered share",
        "One panel per layer: the height of a line above the dotted untrained baseline is the effect of training. Two "
        "networks differ clearly only if the gap between their lines is wider than the bands.",
    ),
    FigureOfReport(
        "flow",
        "Label information, by layer",
        "label_information",
        "layers",
        "label information",
        "Each line goes from the input to the output and shows in which layers the labels become decodable. Move the "
        "phase to see the training. The dashed line is the final teacher, and H(Y) is the upper limit.",
    ),
    FigureOfReport(
        "maps",
        "Recovered share, layer by layer",
        "recovered_share",
        "map",
        "recovered share",
        "Compare the values within a column: the outline is the student layer from which this teacher layer is "
        "recovered best. Values within a row are not comparable: early teacher layers are easier to recover.",
    ),
    FigureOfReport(
        "gap",
        "Signed gap to the teacher",
        "label_gap",
        "layers",
        "student − teacher",
        "Below zero, a layer has less information about the labels than the teacher's layer at the same relative "
        "depth. Lines that rise towards zero with the phases are catching up.",
    ),
    FigureOfReport(
        "label-phases",
        "Label information, by phase",
        "label_information",
        "phases",
        "label information",
        "The same values as in the curves by layer, with the phases along the axis: one panel per layer, the teacher's "
        "final value dashed.",
    ),
    FigureOfReport(
        "cka",
        "Similarity of the layers",
        "cka",
        "map",
        "linear CKA",
        "Linear CKA compares the geometry of two layers and is a second opinion: it needs no noise, and a high value "
        "does not show how much information is shared.",
    ),
    FigureOfReport(
        "accuracy",
        "Accuracy",
        "accuracy",
        "phases",
        "accuracy",
        "Compare the other figures with this outcome: one line per network, the teacher's final accuracy dashed.",
    ),
)


def charts(flow: Flow, marks: Mapping[tuple[str, int, str], tuple[int, int]] | None = None) -> dict[str, Any]:
    """Return the values of all figures, ready for JSON.

    A level of a quantity contains one part per network, whose arrays run over phases, layers and teacher layers, the
    last fastest; None where nothing was measured. Numbers have four significant digits. ``marks`` contains, by network,
    phase and layer, the number of runs in which label information rises with depth there, or is impossible.

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
    # Sorted by verdict, so that ``last`` takes the reasons of the worst one.
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
    """Return the position of the teacher layer at the same relative depth, for every layer of a network."""
    if rows.quantity not in _MAPS:
        return [0] * len(layers)
    pairs = matching(rows, network)
    return [others.index(pairs[layer]) for layer in layers]


def _grid(
    own: pd.DataFrame, phases: list[int], layers: list[str], others: list[str], reasons: dict[str, int]
) -> dict[str, Any]:
    """Return the averages as flat arrays over phases, layers and teacher layers."""
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
    texts = [reasons.setdefault(str(text), len(reasons)) for text in own["reasons"]]
    # -1 marks places for which the flow has no row.
    for name, codes in (("verdict", own["verdict"].to_numpy()), ("count", own["count"].to_numpy()), ("reason", texts)):
        whole = np.full(size, -1)
        whole[spot] = codes
        grid[name] = whole.tolist()
    return grid


def _places(layers: list[str], ticks: list[str]) -> list[float]:
    """Return the positions of layers on an axis: at their names, or at the same relative depth if a name is unknown."""
    if set(layers) <= set(ticks):
        return [float(ticks.index(name)) for name in layers]
    return [(len(ticks) - 1) * place / max(len(layers) - 1, 1) for place in range(len(layers))]


def _teacher(rows: Rows, ticks: list[str]) -> dict[str, Any] | None:
    if rows.teacher.empty:
        return None
    table = rows.teacher_averages().sort_values("layer_index", kind="stable")
    layers = [str(name) for name in table["layer"]]
    runs = int(rows.teacher["seed"].nunique())
    label = f"teacher, phase {int(rows.teacher['phase'].max())} ({runs} run{'s' if runs > 1 else ''})"
    return {"layers": layers, "x": _places(layers, ticks), "mean": short_numbers(table["mean"]), "label": label}


def _range(rows: Rows, teacher: dict[str, Any] | None) -> list[float]:
    """Return limits that contain every value at every phase, so that the axis is fixed while the phase moves."""
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
