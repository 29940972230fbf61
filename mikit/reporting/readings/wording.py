"""What a report says in words: computed from the frame, never canned."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from mikit.plot.drawing.tables import Rows, label_entropy, matching, present, select

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["LIMITS", "VERDICT_ORDER", "findings", "listed", "reasons_counted", "verdicts_counted"]

VERDICT_ORDER = ("trustworthy", "caution", "unreliable")
"""Verdicts in the order of trust."""

LIMITS = (
    "“The student has learned the teacher's layer.” A share above 0 is no transfer: it must lie above the untrained "
    "floor, above a student trained without the teacher, and above one taught with broken pairing.",
    "“This student layer corresponds to that teacher layer.” Early layers and narrow logits are easy to recover from "
    "anything; say “the layer that recovers most”, with the distance to the runner-up.",
    "“Information was lost” or “compressed”. A falling share says that less can be recovered linearly at this noise.",
    "“The loss transfers information”, from the layers it was trained on: there the share only checks that training "
    "worked.",
    "“Method A is better”, from one teacher or from few seeds: no band holds the teacher's own spread, and three seeds "
    "are a screen, not a test.",
    "Any comparison across readouts, numbers of rows, probes or noise levels: each is part of the definition.",
)
"""What a flow cannot show, whatever its numbers."""


def listed(items: Sequence[object], most: int = 12) -> str:
    """Items as a phrase; semicolons part items that hold commas themselves.

    Examples:
        >>> listed(["a", "b", "c"])
        'a, b and c'
        >>> listed(["alone", "VID", "VID, pairing broken"])
        'alone; VID; and VID, pairing broken'
    """
    names = [str(item) for item in items]
    comma, last = ("; ", "; and ") if any("," in name for name in names) else (", ", " and ")
    if len(names) > most:
        return f"{comma.join(names[:most])}{last}{len(names) - most} more"
    return names[0] if len(names) == 1 else f"{comma.join(names[:-1])}{last}{names[-1]}" if names else "none"


def findings(flow: Flow) -> list[str]:
    """What came out, one sentence per finding, with its spread over seeds where there is one."""
    said: list[str] = []
    if present(flow, "label_information"):
        said += _label_findings(flow, select(flow, "label_information"))
    if present(flow, "recovered_share"):
        said += _share_findings(select(flow, "recovered_share"))
    if present(flow, "accuracy"):
        said += _accuracy_findings(select(flow, "accuracy"))
    return said


def _at_end(rows: Rows, network: str) -> tuple[list[dict[str, Any]], int]:
    """The places of a network at its last measured phase, in network order, and that phase."""
    table = rows.averages()
    own = table[table["network"].eq(network) & table["mean"].notna()]
    if own.empty:
        return [], -1
    last = int(own["phase"].max())
    ordered = own[own["phase"].eq(last)].sort_values("layer_index", kind="stable")
    return [{str(key): value for key, value in record.items()} for record in ordered.to_dict("records")], last


def _span(place: dict[str, Any], form: str = ".2f") -> str:
    if place["seeds"] < 2:
        return " (1 run)"
    return f" ({place['smallest']:{form}} to {place['largest']:{form}} over {place['seeds']} seeds)"


def _label_findings(flow: Flow, rows: Rows) -> list[str]:
    said = []
    entropy = label_entropy(flow) if rows.unit == "nats" else None
    best = float(rows.teacher_averages()["mean"].max()) if not rows.teacher.empty else math.nan
    for network in rows.networks:
        places, phase = _at_end(rows, network)
        if not places:
            continue
        top = max(places, key=lambda place: float(place["mean"]))
        text = (
            f"{network} tells most about the labels in layer {top['layer']} at phase {phase}: "
            f"{top['mean']:.2f} {rows.unit}{_span(top)}"
        )
        shares = [f"{top['mean'] / best:.0%} of the teacher's best layer ({best:.2f} {rows.unit})"] if best > 0 else []
        if entropy:
            shares.append(f"{top['mean'] / entropy:.0%} of H(Y) = {entropy:.2f} {rows.unit}")
        said.append(f"{text}{', ' if shares else ''}{' and '.join(shares)}.")
    return said


def _share_findings(rows: Rows) -> list[str]:
    said, ends = [], {}
    noise = "" if rows.noise is None else f", at teacher noise σ = {rows.noise:g}"
    for network in rows.networks:
        places, phase = _at_end(rows, network)
        pairs = matching(rows, network)
        matched = [place for place in places if place["teacher_layer"] == pairs.get(place["layer"])]
        if not matched:
            continue
        ends[network] = ({place["layer"]: place for place in matched}, phase)
        high, low = (pick(matched, key=lambda place: float(place["mean"])) for pick in (max, min))
        floors = [place["untrained"] for place in matched if math.isfinite(place["untrained"])]
        average = statistics.fmean(place["mean"] for place in matched)
        text = f"{network} recovers on average {average:.2f} of the matching teacher layer at phase {phase}"
        if floors:
            text += f" (untrained: {statistics.fmean(floors):.2f})"
        if len(matched) > 1:
            text += f": most in {high['layer']} ({high['mean']:.2f}), least in {low['layer']} ({low['mean']:.2f})"
        said.append(f"{text}{noise}.")
    said += _contrasts(ends)
    null = rows.students["null"].dropna()
    if not null.empty:
        average = round(float(null.mean()), 3) + 0.0  # Never "-0.000".
        said.append(f"With the rows permuted the recovered share is {average:.3f} on average: the null.")
    return said


def _contrasts(ends: dict[str, tuple[dict[str, dict[str, Any]], int]]) -> list[str]:
    """Where each network differs most from the first, against the spread over seeds."""
    said: list[str] = []
    names = list(ends)
    for other in names[1:]:
        (base, phase), (own, own_phase) = ends[names[0]], ends[other]
        gaps = {layer: own[layer]["mean"] - base[layer]["mean"] for layer in own if layer in base}
        if phase != own_phase or not gaps:
            continue
        layer = max(gaps, key=lambda name: abs(gaps[name]))
        spread = math.sqrt((own[layer]["sd"] ** 2 + base[layer]["sd"] ** 2) / 2)
        seeds = min(own[layer]["seeds"], base[layer]["seeds"])
        text = f"{other} differs most from {names[0]} in {layer} at phase {phase}: {gaps[layer]:+.2f} recovered share"
        if seeds > 1 and spread > 0:
            text += f", {abs(gaps[layer]) / spread:.1f} pooled seed SD ({seeds} seeds: a screen, not a test)"
        elif seeds < 2:
            text += "; one run has no seed SD, so this is a hint only"
        said.append(f"{text}.")
    return said


def _accuracy_findings(rows: Rows) -> list[str]:
    parts = []
    for network in rows.networks:
        places, phase = _at_end(rows, network)
        if places:
            parts.append(f"{network} {places[0]['mean']:.1%}{_span(places[0], '.1%')} at phase {phase}")
    if not rows.teacher.empty:
        parts.append(f"the teacher {rows.teacher['value'].mean():.1%}")
    return [f"Accuracy: {'; '.join(parts)}."] if parts else []


def verdicts_counted(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows per quantity and verdict, with the verdicts in the order of trust."""
    counts = pd.crosstab(frame["quantity"], frame["verdict"].replace("", "not judged").fillna("not judged"))
    known = [name for name in VERDICT_ORDER if name in counts.columns]
    return counts[[*known, *(name for name in counts.columns if name not in VERDICT_ORDER)]]


def reasons_counted(frame: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Reason, verdict and number of rows, the most frequent first."""
    judged = frame[frame["reasons"].fillna("").ne("")]
    if judged.empty:
        return []
    parts = judged.assign(reason=judged["reasons"].str.split("; ")).explode("reason")
    counts = parts.groupby(["reason", "verdict"], sort=False).size().sort_values(ascending=False, kind="stable")
    return [(str(key[0]), str(key[1]), int(count)) for key, count in counts.items() if isinstance(key, tuple)]
