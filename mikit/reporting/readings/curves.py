"""Curves of a flow in a report: change points, and the phase from which two students differ."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mikit.core.errors import InputError
from mikit.flow.readings.paths import compare_paths
from mikit.flow.readings.phases import read_phases
from mikit.plot.drawing.names import short_names
from mikit.reporting.columns import short_numbers

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["MOST_STUDENTS", "changes_read", "curves_of", "paths_read"]

QUANTITIES = {"recovered_share": "recovered share", "label_information": "label information"}
MOST_STUDENTS = 8
"""Up to this number of students all pairs are compared; with more, each is compared with the first."""


def curves_of(flow: Flow, quantity: str) -> Flow:
    """Return the students' rows of one quantity as a flow."""
    frame = flow.frame
    return type(flow)(frame[frame["role"].eq("student") & frame["quantity"].eq(quantity)], flow.settings)


def changes_read(flow: Flow, networks: list[str], phases: list[int]) -> dict[str, Any]:
    """Return the change points of the students' curves, for every quantity with curves."""
    drawn, absent, findings = [], [], []
    for quantity, name in QUANTITIES.items():
        only = curves_of(flow, quantity)
        if only.frame.empty:
            continue
        try:
            reading = read_phases(only, quantity=quantity)
        except InputError as cause:
            absent.append(f"No change points of {name}: {cause}")
            continue
        runs = [
            _run(own, reading.changes, networks, phases, str(network), int(str(seed)))
            for (network, seed), own in reading.curves.groupby(["network", "seed"], sort=False)
        ]
        runs.sort(key=lambda run: (run["network"], run["seed"]))
        unit, spread = str(reading.curves["unit"].iloc[0]), reading.curves["standard_error"]
        edges = np.array([reading.curves["value"] - 2 * spread, reading.curves["value"] + 2 * spread])
        facts = (
            f"Curves of {name}{_noise_text(only, quantity)}{_partner_text(quantity)}. The probability of a change "
            f"point in a curve without one is at most {reading.settings['level']:g}, if its errors are correct. Error "
            "bars are two standard errors; they cover the sampling of the data, not the randomness of training."
        )
        drawn.append(
            {
                "name": name,
                "unit": unit,
                "range": [float(min(edges.min(), 0.0)), float(edges.max())],
                "facts": facts,
                "runs": runs,
            }
        )
        count = sum(len(run["curves"]) for run in runs)
        findings.append(f"{len(reading.changes):,} change points were found in {count:,} curves of {name}.")
    if not drawn and not absent:
        absent.append("No change points: the flow has no curves of label information or recovered share.")
    return {"drawn": {"quantities": drawn} if drawn else None, "absent": absent, "findings": findings}


def _run(
    curves: pd.DataFrame, changes: pd.DataFrame, networks: list[str], phases: list[int], network: str, seed: int
) -> dict[str, Any]:
    drawn: list[dict[str, Any]] = []
    changes = changes[changes["network"].eq(network) & changes["seed"].eq(seed)]
    for (_, layer, other), own in curves.groupby(["layer_index", "layer", "teacher_layer"]):
        ordered = own.sort_values("phase")
        at = [phases.index(int(phase)) for phase in ordered["phase"]]
        mine = changes[changes["layer"].eq(str(layer))]
        recorded = ordered["phase"].tolist()
        drawn.append(
            {
                "layer": str(layer),
                "other": str(other),
                "at": at,
                "value": short_numbers(ordered["value"]),
                "error": short_numbers(ordered["standard_error"]),
                "fitted": short_numbers(ordered["fitted"]),
                "piece": ordered["piece"].astype(int).tolist(),
                "changes": [_change(row, recorded, at) for row in mine.to_dict("records")],
            }
        )
    short = short_names([one["layer"] for one in drawn])
    for one, name in zip(drawn, short, strict=True):
        one["short"] = name
    return {"network": networks.index(network), "seed": seed, "curves": drawn}


def _change(row: dict[Any, Any], recorded: list[int], at: list[int]) -> dict[str, Any]:
    """Return a change point with positions of phases."""
    # A change lies between a recording and the one before it, and so does the lower end of its interval.
    low = max(recorded.index(row["low"]) - 1, 0)
    return {
        "before": at[recorded.index(row["before"])],
        "after": at[recorded.index(row["phase"])],
        "low": at[low],
        "high": at[recorded.index(row["high"])],
        "confidence": float(f"{row['confidence']:.3g}"),
        "jump": float(f"{row['jump']:.3g}"),
    }


def paths_read(flow: Flow, networks: list[str], phases: list[int]) -> dict[str, Any]:
    """Return the differences between the curves of two students, for all pairs and every quantity with curves."""
    drawn: list[dict[str, Any]] = []
    absent: list[str] = []
    if len(networks) < 2:
        return {"drawn": None, "absent": ["No comparison: the flow has fewer than two students."], "findings": []}
    every = len(networks) <= MOST_STUDENTS
    two = list(combinations(networks, 2)) if every else [(name, networks[0]) for name in networks[1:]]
    if not every:
        absent.append(
            f"With {len(networks)} students, each is compared with {networks[0]} only; use mikit.flow.compare_paths "
            "for other pairs."
        )
    for quantity, name in QUANTITIES.items():
        only = curves_of(flow, quantity)
        if only.frame.empty:
            continue
        pairs = []
        for first, second in two:
            # The later network minus the earlier one, which is more often the baseline.
            ahead, behind = (second, first) if every else (first, second)
            try:
                pairs.append(_pair(only, quantity, ahead, behind, networks, phases))
            except InputError as cause:
                absent.append(f"{ahead} minus {behind} is not compared in {name}: {cause}")
        if not pairs:
            continue
        facts = f"Curves of {name}{_noise_text(only, quantity)}{_partner_text(quantity)}."
        unit = str(only.frame["unit"].iloc[0])
        drawn.append({"name": name, "unit": unit, "facts": facts, "pairs": pairs})
    if not drawn and not absent:
        absent.append("No comparison: the flow has no curves of label information or recovered share.")
    return {"drawn": {"quantities": drawn} if drawn else None, "absent": absent, "findings": []}


def _pair(only: Flow, quantity: str, first: str, second: str, networks: list[str], phases: list[int]) -> dict[str, Any]:
    both = only.frame[only.frame["network"].isin([first, second])]
    found = compare_paths(type(only)(both, only.settings), first, second, quantity=quantity)
    parted = {row["layer"]: row for row in found.partings.to_dict("records")}
    layers: list[dict[str, Any]] = []
    for (_, layer), own in found.differences.groupby(["layer_index", "layer"]):
        ordered = own.sort_values("phase")
        phase = parted[layer]["phase"]
        layers.append(
            {
                "layer": str(layer),
                "at": [phases.index(int(phase)) for phase in ordered["phase"]],
                "difference": short_numbers(ordered["difference"]),
                "threshold": short_numbers(ordered["threshold"]),
                "apart": [int(one) for one in ordered["apart"]],
                "parts": -1 if phase < 0 else phases.index(phase),
            }
        )
    for one, name in zip(layers, short_names([one["layer"] for one in layers]), strict=True):
        one["short"] = name
    return {
        "first": networks.index(first),
        "second": networks.index(second),
        "basis": str(found.settings["basis"]),
        "layers": layers,
    }


def _noise_text(flow: Flow, quantity: str) -> str:
    if quantity != "recovered_share":
        return ""
    levels = sorted(flow.frame["noise"].unique())
    return f" at teacher noise σ = {0.3 if 0.3 in levels else levels[len(levels) // 2]:g}"


def _partner_text(quantity: str) -> str:
    return ", each with the teacher layer of the same depth" if quantity == "recovered_share" else ""
