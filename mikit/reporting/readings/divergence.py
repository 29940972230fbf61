"""D_F and data-processing flags in a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from mikit.core.errors import InputError
from mikit.flow.readings.data_processing import IMPOSSIBLE
from mikit.flow.readings.divergence import critical_phases, flow_divergences
from mikit.reporting.columns import short_numbers

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["divergences_read", "flag_table", "marks_of"]

_SHOWN = ("same depth", "nearest")
_QUANTITY = {"label_information": "label information", "recovered_share": "recovered share"}
_MOST_IMPOSSIBLE = 20


def divergences_read(flow: Flow, networks: list[str], phases: list[int]) -> dict[str, Any]:
    """Return D_F by the same depth and by the nearest value, the term of the last layer and the largest fall."""
    try:
        table = flow_divergences(flow)
    except InputError as cause:
        return {"drawn": None, "absent": [f"No D_F: {cause}"], "findings": []}
    try:
        critical, absent = critical_phases(table), []
    except InputError as cause:
        critical, absent = pd.DataFrame(), [f"No critical phase: {cause}"]
    drawn = [
        {"name": name, "parts": [_part(rows, critical, networks, phases, str(network)) for network, rows in own]}
        for name in _SHOWN
        for own in [table[table["matching"].eq(name)].groupby("network", sort=False)]
    ]
    findings = []
    for network, rows in critical.groupby("network", sort=False) if len(critical) else ():
        own = rows[rows["matching"].eq("same depth")]
        steps = _steps(own)
        clear = [one for one in steps if one["decision"] == "clear"]
        if clear:
            most = max(clear, key=lambda one: int(one["seeds"]))
            findings.append(
                f"The label information of {network} approaches the teacher's most between phases {most['from']} and "
                f"{most['to']} (largest fall of D_F at the same depth, clear in {most['seeds']} of {len(own)} "
                f"run{'s' if len(own) > 1 else ''})."
            )
    return {"drawn": {"matchings": drawn}, "absent": absent, "findings": findings}


def _part(
    rows: pd.DataFrame, critical: pd.DataFrame, networks: list[str], phases: list[int], network: str
) -> dict[str, Any]:
    columns = ["total", "last", "last_share", "floor"]
    over = rows.groupby("phase")[columns].agg(["mean", "min", "max"])
    matching = str(rows["matching"].iloc[0])
    own = critical[critical["network"].eq(network) & critical["matching"].eq(matching)] if len(critical) else critical
    steps = _steps(own) if len(own) else []
    for one in steps:
        one |= {"from": phases.index(one["from"]), "to": phases.index(one["to"])}
    return {
        "network": networks.index(network),
        "seeds": int(rows["seed"].nunique()),
        "at": [phases.index(int(str(phase))) for phase in over.index],
        "mean": short_numbers(over["total", "mean"]),
        "smallest": short_numbers(over["total", "min"]),
        "largest": short_numbers(over["total", "max"]),
        "last": short_numbers(over["last", "mean"]),
        "share": short_numbers(over["last_share", "mean"]),
        "floor": short_numbers(over["floor", "mean"]),
        "steps": steps,
    }


def _steps(own: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the steps with the largest fall, the most frequent first, with the number of runs and the mean fall."""
    groups = own.groupby(["from_phase", "to_phase", "decision"], sort=False)
    counted = groups.agg(seeds=("seed", "size"), fall=("fall", "mean")).reset_index()
    counted = counted.sort_values("seeds", ascending=False, kind="stable")
    return [
        {
            "from": int(row["from_phase"]),
            "to": int(row["to_phase"]),
            "decision": str(row["decision"]),
            "seeds": int(row["seeds"]),
            "fall": float(f"{row['fall']:.3g}"),
        }
        for row in counted.to_dict("records")
    ]


def marks_of(flags: pd.DataFrame) -> dict[tuple[str, int, str], tuple[int, int]]:
    """Count the runs in which label information rises with depth or is impossible, by network, phase and layer."""
    own = flags[flags["quantity"].eq("label_information")]
    counts: dict[tuple[str, int, str], tuple[int, int]] = {}
    for network, phase, layer, kind in zip(own["network"], own["phase"], own["layer"], own["kind"], strict=True):
        key = (str(network), int(phase), str(layer))
        rises, wrong = counts.get(key, (0, 0))
        counts[key] = (rises, wrong + 1) if kind == IMPOSSIBLE else (rises + 1, wrong)
    return counts


def flag_table(flow: Flow, flags: pd.DataFrame) -> dict[str, Any]:
    """Return the flags as a table of counts with the largest of each, and the impossible rows as sentences."""
    rows = []
    checked = flow.frame[flow.frame["quantity"].isin(list(_QUANTITY))].groupby(["network", "quantity"]).size()
    order = {str(name): place for place, name in enumerate(flow.frame["network"].unique())}
    for (network, quantity, kind), own in flags.groupby(["network", "quantity", "kind"], sort=False):
        worst = own.iloc[int(own["excess"].to_numpy().argmax())]
        unit = " nats" if quantity == "label_information" else ""
        before = f" over {worst['earlier_layer']}" if worst["earlier_layer"] else ""
        other = f" of {worst['teacher_layer']}" if worst["teacher_layer"] else ""
        rows.append(
            {
                "network": str(network),
                "quantity": _QUANTITY.get(str(quantity), str(quantity)),
                "kind": str(kind),
                "count": f"{len(own):,} of {int(checked.get((network, quantity), len(own))):,}",
                "largest": f"{worst['layer']}{before}{other}, phase {worst['phase']}, seed {worst['seed']}: "
                f"{worst['excess']:+.3g}{unit} (SE {worst['standard_error']:.2g})",
            }
        )
    rows.sort(key=lambda row: order[row["network"]])
    impossible = flags[flags["kind"].eq(IMPOSSIBLE)].sort_values("excess", ascending=False)
    listed = [
        f"{row['network']}, seed {row['seed']}, phase {row['phase']}, {row['layer']}"
        f"{', teacher layer ' + row['teacher_layer'] if row['teacher_layer'] else ''}: {row['excess']:+.3g} over the "
        f"limit (SE {row['standard_error']:.2g}). {row['sentence']}"
        for row in impossible.head(_MOST_IMPOSSIBLE).to_dict("records")
    ]
    more = len(impossible) - _MOST_IMPOSSIBLE
    if more > 0:
        listed.append(f"and {more:,} more; see mikit.flow.data_processing_flags")
    return {"rows": rows, "impossible": listed, "count": len(impossible)}
