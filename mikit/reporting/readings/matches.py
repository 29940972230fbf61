"""Layer matching in a report and on the command line: the selected layer of each rule, margin, and runner-up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mikit.core.errors import InputError
from mikit.flow.matching.of_flow import match_flow
from mikit.flow.matching.result import RULES, LayerMatch, Pooled
from mikit.plot.drawing.names import short_names
from mikit.reporting.columns import short_numbers

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["SHOWN_RULES", "matches_read", "picks"]

SHOWN_RULES = {"directional": "most recoverable from", "cka": "linear CKA", "share": "largest recovered share"}
_MAPPED = {
    "directional": "share of the student layer that is recoverable",
    "cka": "linear CKA",
    "share": "recovered share of the teacher layer",
}


def picks(pooled: Pooled) -> list[dict[str, Any]]:
    """Return the choice of a rule for every student layer, with the runner-up, the margin and the decision.

    ``runner_up`` is empty if the partner is a convention or the only layer.

    Examples:
        >>> from mikit.flow import match_flow
        >>> found = picks(match_flow(run, rules=["cka"]).pooled("cka", network="student alone"))
        >>> found[0]["layer"], found[0]["teacher_layer"], found[0]["decision"]
        ('stem', 'stem', 'clear')
    """
    found = []
    columns = len(pooled.teacher_layers)
    for row, layer in enumerate(pooled.layers):
        best = int(pooled.chosen[row])
        behind, declared = pooled.behind[row], bool(pooled.declared[row])
        others = [] if declared else [j for j in range(columns) if j != best]
        second = min(others, key=lambda j: float(behind[j])) if others else None
        decision = "declared" if declared else "only one" if not others else "clear"
        if decision == "clear" and pooled.undecided[row]:
            decision = "tie"
        found.append(
            {
                "layer": layer,
                "teacher_layer": pooled.teacher_layers[best],
                "value": float(pooled.measured[row, best]),
                "unit": pooled.unit,
                "share": float(pooled.shares[row, best]),
                "runner_up": "" if second is None else pooled.teacher_layers[second],
                "margin": float("nan") if second is None else float(behind[second]),
                "standard_error": float("nan") if second is None else float(pooled.errors[row, second]),
                "decision": decision,
            }
        )
    return found


def matches_read(flow: Flow, networks: list[str]) -> dict[str, Any]:
    """Match every student's layers at its last phase, by the directional rule, by CKA and by the share."""
    found: dict[str, LayerMatch] = {}
    absent, findings = [], []
    for rule in SHOWN_RULES:
        try:
            found[rule] = match_flow(flow, rules=[rule])
        except InputError as cause:
            absent.append(str(cause))
    drawn = []
    for place, network in enumerate(networks):
        panels = []
        for rule, match in found.items():
            if network not in match.networks:
                continue
            try:
                panels.append(_panel(rule, match.pooled(rule, network=network)))
            except InputError as cause:
                absent.append(f"{network} is not matched by {SHOWN_RULES[rule]}: {cause}")
        if panels:
            drawn.append({"network": place, "phase": panels[0].pop("phase"), "panels": panels})
            findings += [_finding(network, panel) for panel in panels if panel["rule"] == "directional"]
    return {"drawn": {"students": drawn} if drawn else None, "absent": absent, "findings": findings}


def _finding(network: str, panel: dict[str, Any]) -> str:
    ties = sum(pick["decision"] == "tie" for pick in panel["picks"])
    text = ", ".join(
        f"{pick['layer']} from {pick['teacher_layer']}" for pick in panel["picks"] if pick["decision"] == "clear"
    )
    clear = f"clearly most recoverable: {text}" if text else "no selection is clear"
    return f"Layers of {network} by the directional rule: {clear}; {ties} of {len(panel['picks'])} are ties."


def _panel(rule: str, pooled: Pooled) -> dict[str, Any]:
    shares = rule == "directional" and bool(np.isfinite(pooled.shares).any())
    mapped = pooled.shares if shares else pooled.measured
    chosen = picks(pooled)
    for pick in chosen:
        for name in ("value", "share", "margin", "standard_error"):
            (pick[name],) = short_numbers([pick[name]])
    return {
        "rule": rule,
        "phase": pooled.phase,
        "title": SHOWN_RULES[rule],
        "description": RULES[rule],
        "unit": _MAPPED[rule] if shares or rule != "directional" else "nats",
        "layers": list(pooled.layers),
        "short": short_names(list(pooled.layers)),
        "others": list(pooled.teacher_layers),
        "shortOthers": short_names(list(pooled.teacher_layers)),
        "values": [short_numbers(row) for row in mapped],
        "behind": [short_numbers(row) for row in pooled.behind],
        "errors": [short_numbers(row) for row in pooled.errors],
        "tied": pooled.tied.astype(int).tolist(),
        "chosen": [int(one) for one in pooled.chosen],
        "basis": pooled.basis,
        "seeds": pooled.seeds,
        "picks": chosen,
    }
