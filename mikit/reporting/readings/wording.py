"""The sentences of a report, computed from the frame."""

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
"""Verdicts, from the best to the worst."""

LIMITS = (
    "“The student has learned the teacher's layer.” A share above 0 does not show transfer: it must exceed the "
    "untrained baseline, a student trained without the teacher, and a student trained with broken pairing.",
    "“This student layer corresponds to that teacher layer.” Early layers and narrow logits are easy to recover from "
    "any layer; write “the layer that recovers most”, with the margin over the runner-up.",
    "“Information was lost” or “compressed”. A falling share means that less can be recovered linearly at this noise.",
    "“The loss transfers information”, from the layers it was trained on: there the share only shows that training "
    "worked.",
    "“Method A is better”, from one teacher or from few seeds: no band covers the spread over teachers, and three "
    "seeds are exploratory, not a test.",
    "Any comparison across pooling methods, numbers of samples, probes or noise levels: each is part of the "
    "definition.",
)
"""Claims that no flow supports, whatever its values."""


def listed(items: Sequence[object], most: int = 12) -> str:
    """Return the items as a phrase; items that contain commas are separated by semicolons.

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
    """Return one sentence per finding, with its spread over seeds if there are several."""
    sentences: list[str] = []
    if present(flow, "label_information"):
        sentences += _label_findings(flow, select(flow, "label_information"))
    if present(flow, "recovered_share"):
        sentences += _share_findings(select(flow, "recovered_share"))
    if present(flow, "accuracy"):
        sentences += _accuracy_findings(select(flow, "accuracy"))
    return sentences


def _at_end(rows: Rows, network: str) -> tuple[list[dict[str, Any]], int]:
    """Return the averages of a network at its last measured phase, in network order, and that phase."""
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
    sentences = []
    entropy = label_entropy(flow) if rows.unit == "nats" else None
    best = float(rows.teacher_averages()["mean"].max()) if not rows.teacher.empty else math.nan
    for network in rows.networks:
        places, phase = _at_end(rows, network)
        if not places:
            continue
        top = max(places, key=lambda place: float(place["mean"]))
        text = (
            f"{network} has the most label information in layer {top['layer']} at phase {phase}: "
            f"{top['mean']:.2f} {rows.unit}{_span(top)}"
        )
        shares = [f"{top['mean'] / best:.0%} of the teacher's best layer ({best:.2f} {rows.unit})"] if best > 0 else []
        if entropy:
            shares.append(f"{top['mean'] / entropy:.0%} of H(Y) = {entropy:.2f} {rows.unit}")
        sentences.append(f"{text}{', ' if shares else ''}{' and '.join(shares)}.")
    return sentences


def _share_findings(rows: Rows) -> list[str]:
    sentences, ends = [], {}
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
        text = f"{network} recovers a share of {average:.2f} of the matching teacher layer on average at phase {phase}"
        if floors:
            text += f" (untrained: {statistics.fmean(floors):.2f})"
        if len(matched) > 1:
            text += f": largest in {high['layer']} ({high['mean']:.2f}), smallest in {low['layer']} ({low['mean']:.2f})"
        sentences.append(f"{text}{noise}.")
    sentences += _contrasts(ends)
    null = rows.students["null"].dropna()
    if not null.empty:
        average = round(float(null.mean()), 3) + 0.0  # Never "-0.000".
        sentences.append(f"With permuted samples (null) the average recovered share is {average:.3f}.")
    return sentences


def _contrasts(ends: dict[str, tuple[dict[str, dict[str, Any]], int]]) -> list[str]:
    """Return where each network differs most from the first, relative to the spread over seeds."""
    sentences: list[str] = []
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
            text += f", {abs(gaps[layer]) / spread:.1f} pooled seed SD ({seeds} seeds: exploratory, not a test)"
        elif seeds < 2:
            text += "; with one run there is no seed SD, so this is only an indication"
        sentences.append(f"{text}.")
    return sentences


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
    """Count rows by quantity and verdict, from the best verdict to the worst."""
    counts = pd.crosstab(frame["quantity"], frame["verdict"].replace("", "not judged").fillna("not judged"))
    known = [name for name in VERDICT_ORDER if name in counts.columns]
    return counts[[*known, *(name for name in counts.columns if name not in VERDICT_ORDER)]]


def reasons_counted(frame: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Count rows by reason and verdict, the most frequent first."""
    judged = frame[frame["reasons"].fillna("").ne("")]
    if judged.empty:
        return []
    parts = judged.assign(reason=judged["reasons"].str.split("; ")).explode("reason")
    counts = parts.groupby(["reason", "verdict"], sort=False).size().sort_values(ascending=False, kind="stable")
    return [(str(key[0]), str(key[1]), int(count)) for key, count in counts.items() if isinstance(key, tuple)]
