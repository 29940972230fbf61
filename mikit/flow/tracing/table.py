"""The rows of the tidy table, from the measurements of a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from mikit.estimators.labels.label_information import RotatedInformation
from mikit.flow.result import SKIPPED
from mikit.flow.tracing.joining import Run
from mikit.flow.tracing.snapshots import Place, Plan, Snapshot, depth_match
from mikit.flow.tracing.verdicts import Verdict, of_gap, of_information, of_input_information, of_share, of_similarity

__all__ = ["Measured", "rows_of"]

Measured = Mapping[Place, Snapshot]

_NAN = math.nan
_NO_TEACHER = {"teacher_layer": "", "teacher_layer_index": -1, "teacher_phase": -1}
_SHARE = {"quantity": "recovered_share", "unit": "share", "kind": "estimate"}
_CKA = {"quantity": "cka", "unit": "dimensionless", "kind": "index"}
_PLANE = {"quantity": "input_information", "unit": "nats", "kind": "estimate", "probe": "", "d_y": 0}


def rows_of(plan: Plan, measured: Measured, skipped: Mapping[Place, str]) -> list[dict[str, Any]]:
    """Return the rows of all runs: the teacher's first, then the students', by phase and layer.

    ``skipped`` contains the reason for every place that was not measured; such places get rows without values.
    """
    rows: list[dict[str, Any]] = []
    for position, run in enumerate(plan.runs):
        for phase in run.phases:
            where = {"network": run.network, "role": run.role, "seed": run.seed, "phase": phase}
            rows += _accuracy(run, where)
            for index, layer in enumerate(run.layers):
                place = (position, phase, layer)
                if place not in measured and place not in skipped:
                    continue  # Earlier phases of the teacher are measured for their label information only.
                at_layer = {
                    **where,
                    "layer": layer,
                    "layer_index": index,
                    **_NO_TEACHER,
                    "readout": run.store.readout(layer),
                    "n": len(plan.method.samples.ids),
                    "d_x": run.store.shape(layer, phase)[-1],
                }
                if place not in measured:
                    rows += _skipped_rows(plan, measured, place, at_layer, skipped[place])
                    continue
                rows += _label_rows(plan, measured, place, at_layer)
                rows += _plane_rows(measured, place, at_layer)
                for name in measured[place].pairs:
                    rows += _pair_rows(plan, measured, place, name, at_layer)
    return rows


def _accuracy(run: Run, place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the accuracy noted at a phase; with ``accuracy_n``, it has Wilson's interval."""
    notes = run.store.notes
    value = notes.get(place["phase"], {}).get("accuracy")
    if value is None:
        return
    count = notes[place["phase"]].get("accuracy_n", _NAN)
    low, high, error = _NAN, _NAN, _NAN
    if count > 0:
        z = 1.959964
        center = (value + z**2 / (2 * count)) / (1 + z**2 / count)
        reach = z / (1 + z**2 / count) * math.sqrt(value * (1 - value) / count + z**2 / (4 * count**2))
        low, high, error = center - reach, center + reach, math.sqrt(value * (1 - value) / count)
    yield {
        **place,
        "layer": "",
        "layer_index": -1,
        **_NO_TEACHER,
        "quantity": "accuracy",
        "value": value,
        "unit": "fraction",
        "kind": "noted",
        "low": low,
        "high": high,
        "standard_error": error,
        "untrained": notes.get(0, {}).get("accuracy", _NAN),
        "probe": "",
        "readout": "",
        "n": int(count) if count > 0 else 0,
        "d_x": 0,
        "d_y": 0,
        "verdict": "trustworthy",
        "reasons": "",
    }


def _label_rows(plan: Plan, measured: Measured, place: Place, where: dict[str, Any]) -> Iterator[dict[str, Any]]:
    both, labels = measured[place].information, plan.method.labels
    if both is None or labels is None:
        return
    position, _, layer = place
    found, null = both
    before = _information(measured, (position, 0, layer))
    verdict, reasons = _label_verdict(plan, measured, place)
    common = {"unit": "nats", "kind": "V-information", "probe": plan.method.probe, "d_y": labels[1]}
    yield {
        **where,
        **common,
        **_with_interval(found.value, found.standard_error, where["n"]),
        "quantity": "label_information",
        "held_out": found.value,
        "in_sample": found.fit_value,
        "ceiling": plan.method.entropy,
        "untrained": _NAN if before is None else before.value,
        "null": null.value,
        "verdict": verdict,
        "reasons": reasons,
    }
    if position == 0:
        return
    partner = _same_depth(plan, position, where["layer_index"])
    reference = _information(measured, (0, plan.last, partner["teacher_layer"]))
    assert reference is not None
    # Student and teacher share samples and folds, and their errors are correlated. The error of the difference per
    # sample accounts for that; the errors of the two values would not.
    difference = found.pointwise - reference.pointwise
    error = float(difference.std(ddof=1) / math.sqrt(difference.shape[0]))
    teacher_verdict = _label_verdict(plan, measured, (0, plan.last, partner["teacher_layer"]))
    verdict, reasons = of_gap((verdict, reasons), teacher_verdict)
    yield {
        **where,
        **common,
        **_with_interval(float(difference.mean()), error, where["n"]),
        **partner,
        "quantity": "label_gap",
        "untrained": _NAN if before is None else before.value - reference.value,
        "verdict": verdict,
        "reasons": reasons,
    }


def _label_verdict(plan: Plan, measured: Measured, place: Place) -> Verdict:
    position, phase, _ = place
    both = measured[place].information
    assert both is not None
    first = _information(measured, (position, phase, plan.runs[position].layers[0]))
    return of_information(
        *both,
        n=len(plan.method.samples.ids),
        width=measured[place].width,
        folds=len(plan.method.samples.folds),
        entropy=plan.method.entropy,
        first=0.0 if first is None else first.value,
    )


def _same_depth(plan: Plan, position: int, layer_index: int) -> dict[str, Any]:
    """Return the columns that name the teacher layer at the relative depth of a student layer."""
    layers = plan.runs[0].layers
    index = depth_match(layer_index, len(plan.runs[position].layers), len(layers))
    return {"teacher_layer": layers[index], "teacher_layer_index": index, "teacher_phase": plan.last}


def _plane_rows(measured: Measured, place: Place, where: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the information between the layer and the input, by noise level."""
    before = measured.get((place[0], 0, place[2]))
    for index, one in enumerate(measured[place].input_information):
        verdict, reasons = of_input_information(one, n=where["n"])
        yield {
            **where,
            **_PLANE,
            **_with_interval(one.value, one.standard_error, where["n"]),
            "ceiling": one.ceiling,
            "untrained": _NAN if before is None else before.input_information[index].value,
            "noise": one.noise,
            "verdict": verdict,
            "reasons": reasons,
        }


def _pair_rows(
    plan: Plan, measured: Measured, place: Place, name: str, where: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield recovered share and CKA of a student layer and the teacher layer ``name``."""
    teacher, store = plan.runs[0], plan.runs[place[0]].store
    pair, width = measured[place].pairs[name], measured[0, plan.last, name].compared
    start = measured.get((place[0], 0, place[2]))
    before = None if start is None else start.pairs[name]
    same_data = len({store.data_hash, teacher.store.data_hash} - {None}) < 2
    common = {
        **where,
        "teacher_layer": name,
        "teacher_layer_index": teacher.layers.index(name),
        "teacher_phase": plan.last,
        "probe": "",
        "d_x": measured[place].compared,
        "d_y": width,
    }
    for index, one in enumerate(pair.recoveries):
        verdict, reasons = of_share(one, pair, index, n=where["n"], same_data=same_data)
        scale = one.ceiling if one.ceiling > 0 else _NAN
        yield {
            **common,
            **_SHARE,
            "value": one.share,
            "low": one.interval[0],
            "high": one.interval[1],
            "standard_error": one.standard_error,
            "held_out": one.held_out / scale,
            "in_sample": one.in_sample / scale,
            "ceiling": one.ceiling,
            "untrained": _NAN if before is None else before.recoveries[index].share,
            "null": _NAN if pair.null_recoveries is None else pair.null_recoveries[index].share,
            "noise": one.noise,
            "verdict": verdict,
            "reasons": reasons,
        }
    cka = pair.similarity
    widest = max(measured[place].compared, width)
    verdict, reasons = of_similarity(cka, n=where["n"], width=widest, same_data=same_data)
    yield {
        **common,
        **_CKA,
        "value": cka.value,
        "low": cka.interval[0],
        "high": cka.interval[1],
        "standard_error": cka.standard_error,
        "untrained": _NAN if before is None else before.similarity.value,
        "null": _NAN if pair.null_similarity is None else pair.null_similarity.value,
        "verdict": verdict,
        "reasons": reasons,
    }


def _skipped_rows(
    plan: Plan, measured: Measured, place: Place, where: dict[str, Any], reason: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a layer that was not measured, without values."""
    teacher, method = plan.runs[0], plan.method
    bare = {**where, "value": _NAN, "verdict": SKIPPED, "reasons": reason}
    if method.labels is not None:
        known = {"unit": "nats", "kind": "V-information", "probe": method.probe, "d_y": method.labels[1]}
        yield {**bare, **known, "quantity": "label_information"}
        if place[0]:
            yield {**bare, **known, **_same_depth(plan, place[0], where["layer_index"]), "quantity": "label_gap"}
    for level in method.plane:
        yield {**bare, **_PLANE, "noise": level, "ceiling": math.log(where["n"])}
    if not place[0]:
        return
    for index, name in enumerate(teacher.layers):
        pair = {"teacher_layer": name, "teacher_layer_index": index, "teacher_phase": plan.last, "probe": ""}
        pair |= {"d_x": method.width(where["d_x"]), "d_y": measured[0, plan.last, name].compared}
        yield from ({**bare, **pair, **_SHARE, "noise": level} for level in method.noise)
        yield {**bare, **pair, **_CKA}


def _information(measured: Measured, key: Place) -> RotatedInformation | None:
    found = measured.get(key)
    return None if found is None or found.information is None else found.information[0]


def _with_interval(value: float, error: float, n: int) -> dict[str, float]:
    reach = float(student_t.ppf(0.975, n - 1)) * error
    return {"value": value, "low": value - reach, "high": value + reach, "standard_error": float(np.float64(error))}
