"""From what was measured to the rows of the tidy table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from mikit.estimators.labels.label_information import RotatedInformation
from mikit.flow.result import SKIPPED
from mikit.flow.tracing.joining import Run
from mikit.flow.tracing.snapshots import Instruments, Pair, Place, Snapshot, depth_match
from mikit.flow.tracing.verdicts import of_gap, of_information, of_input_information, of_share, of_similarity
from mikit.functional.labels.linear_probes import label_entropy

__all__ = ["Measured", "rows_of"]

Measured = Mapping[tuple[int, int, str], Snapshot]
"""Snapshots by the run's position, the phase and the layer."""

_NAN = math.nan
_PLANE = {"quantity": "input_information", "unit": "nats", "kind": "estimate", "probe": "", "d_y": 0}


def rows_of(
    runs: Sequence[Run], measured: Measured, instruments: Instruments, skipped: Mapping[Place, str]
) -> list[dict[str, Any]]:
    """Return the rows of all runs: the teacher's first, then the students', by phase and layer.

    ``skipped`` says why a place was not measured; its rows are there all the same.
    """
    n = instruments.deal.ids.shape[0]
    entropy = _NAN if instruments.labels is None else label_entropy(instruments.labels[0])
    rows: list[dict[str, Any]] = []
    for position, run in enumerate(runs):
        for phase in run.phases:
            place = {"network": run.network, "role": run.role, "seed": run.seed, "phase": phase}
            rows += _accuracy(run, place)
            for index, layer in enumerate(run.layers):
                found = measured.get((position, phase, layer))
                reason = skipped.get((position, phase, layer))
                if found is None and reason is None:
                    continue  # Earlier phases of the teacher are measured for their label information only.
                untrained = measured.get((position, 0, layer))
                where = {
                    **place,
                    "layer": layer,
                    "layer_index": index,
                    "teacher_layer": "",
                    "teacher_layer_index": -1,
                    "teacher_phase": -1,
                    "readout": run.store.readout(layer),
                    "n": n,
                    "d_x": run.store.shape(layer, phase)[-1],
                }
                if found is None:
                    rows += _skipped_rows(runs, position, measured, where, instruments, str(reason))
                    continue
                rows += _label_rows(runs, measured, (position, phase, layer), where, instruments, entropy)
                rows += _plane_rows(found, untrained, where)
                for name, pair in found.pairs.items():
                    before = None if untrained is None else untrained.pairs[name]
                    rows += _pair_rows(runs, run, name, found, pair, before, measured, where)
    return rows


def _accuracy(run: Run, place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the accuracy that was noted at a phase; with ``accuracy_n`` noted too, Wilson's interval."""
    notes = run.store.notes
    value = notes.get(place["phase"], {}).get("accuracy")
    if value is None:
        return
    count = notes[place["phase"]].get("accuracy_n", _NAN)
    low, high, error = _NAN, _NAN, _NAN
    if count > 0:
        z = 1.959964
        centre = (value + z**2 / (2 * count)) / (1 + z**2 / count)
        reach = z / (1 + z**2 / count) * math.sqrt(value * (1 - value) / count + z**2 / (4 * count**2))
        low, high, error = centre - reach, centre + reach, math.sqrt(value * (1 - value) / count)
    yield {
        **place,
        "layer": "",
        "layer_index": -1,
        "teacher_layer": "",
        "teacher_layer_index": -1,
        "teacher_phase": -1,
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


def _label_rows(
    runs: Sequence[Run],
    measured: Measured,
    key: tuple[int, int, str],
    where: dict[str, Any],
    instruments: Instruments,
    entropy: float,
) -> Iterator[dict[str, Any]]:
    both = measured[key].information
    if both is None or instruments.labels is None:
        return
    position, _, layer = key
    run, teacher = runs[position], runs[0]
    found, null = both

    def judged(at: tuple[int, int, str]) -> tuple[str, str]:
        own = measured[at].information
        first = _information(measured, (at[0], at[1], runs[at[0]].layers[0]))
        assert own is not None
        return of_information(
            *own,
            n=where["n"],
            width=measured[at].width,
            folds=len(instruments.deal.folds),
            entropy=entropy,
            first=0.0 if first is None else first.value,
        )

    before = _information(measured, (position, 0, layer))
    verdict, reasons = judged(key)
    common: dict[str, Any] = {"unit": "nats", "kind": "V-information", "probe": instruments.probe}
    common["d_y"] = instruments.labels[1]
    yield {
        **where,
        **common,
        **_with_interval(found.value, found.standard_error, where["n"]),
        "quantity": "label_information",
        "held_out": found.value,
        "in_sample": found.fit_value,
        "ceiling": entropy,
        "untrained": _NAN if before is None else before.value,
        "null": null.value,
        "verdict": verdict,
        "reasons": reasons,
    }
    if run.role == "teacher":
        return
    last = teacher.store.phases[-1]
    index = depth_match(where["layer_index"], len(run.layers), len(teacher.layers))
    matching = (0, last, teacher.layers[index])
    reference = _information(measured, matching)
    assert reference is not None
    # The same rows and folds for both, so the difference is taken row by row.
    difference = found.pointwise - reference.pointwise
    error = float(difference.std(ddof=1) / math.sqrt(difference.shape[0]))
    verdict, reasons = of_gap((verdict, reasons), judged(matching))
    yield {
        **where,
        **common,
        **_with_interval(float(difference.mean()), error, where["n"]),
        "teacher_layer": teacher.layers[index],
        "teacher_layer_index": index,
        "teacher_phase": last,
        "quantity": "label_gap",
        "untrained": _NAN if before is None else before.value - reference.value,
        "verdict": verdict,
        "reasons": reasons,
    }


def _plane_rows(found: Snapshot, before: Snapshot | None, where: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what the layer tells of the input, by noise level."""
    for position, one in enumerate(found.input_information):
        verdict, reasons = of_input_information(one, n=where["n"])
        yield {
            **where,
            **_PLANE,
            **_with_interval(one.value, one.standard_error, where["n"]),
            "ceiling": one.ceiling,
            "untrained": _NAN if before is None else before.input_information[position].value,
            "noise": one.noise,
            "verdict": verdict,
            "reasons": reasons,
        }


def _pair_rows(
    runs: Sequence[Run],
    run: Run,
    name: str,
    found: Snapshot,
    pair: Pair,
    before: Pair | None,
    measured: Measured,
    where: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    teacher = runs[0]
    last = teacher.store.phases[-1]
    width = measured[0, last, name].compared
    hashes = {own for own in (run.store.data_hash, teacher.store.data_hash) if own is not None}
    same_data = len(hashes) < 2
    common = {
        **where,
        "teacher_layer": name,
        "teacher_layer_index": teacher.layers.index(name),
        "teacher_phase": last,
        "probe": "",
        "d_x": found.compared,
        "d_y": width,
    }
    for position, one in enumerate(pair.recoveries):
        verdict, reasons = of_share(one, pair, position, n=where["n"], same_data=same_data)
        scale = one.ceiling if one.ceiling > 0 else _NAN
        low, high = one.interval
        yield {
            **common,
            "quantity": "recovered_share",
            "value": one.share,
            "unit": "share",
            "kind": "estimate",
            "low": low,
            "high": high,
            "standard_error": one.standard_error,
            "held_out": one.held_out / scale,
            "in_sample": one.in_sample / scale,
            "ceiling": one.ceiling,
            "untrained": _NAN if before is None else before.recoveries[position].share,
            "null": _NAN if pair.null_recoveries is None else pair.null_recoveries[position].share,
            "noise": one.noise,
            "verdict": verdict,
            "reasons": reasons,
        }
    verdict, reasons = of_similarity(
        pair.similarity, n=where["n"], width=max(found.compared, width), same_data=same_data
    )
    low, high = pair.similarity.interval
    yield {
        **common,
        "quantity": "cka",
        "value": pair.similarity.value,
        "unit": "dimensionless",
        "kind": "index",
        "low": low,
        "high": high,
        "standard_error": pair.similarity.standard_error,
        "untrained": _NAN if before is None else before.similarity.value,
        "null": _NAN if pair.null_similarity is None else pair.null_similarity.value,
        "verdict": verdict,
        "reasons": reasons,
    }


def _skipped_rows(
    runs: Sequence[Run],
    position: int,
    measured: Measured,
    where: dict[str, Any],
    instruments: Instruments,
    reason: str,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a layer that was not measured, without values."""
    run, teacher = runs[position], runs[0]
    last = teacher.store.phases[-1]
    bare = {**where, "value": _NAN, "verdict": SKIPPED, "reasons": reason}
    if instruments.labels is not None:
        known = {"unit": "nats", "kind": "V-information", "probe": instruments.probe, "d_y": instruments.labels[1]}
        yield {**bare, **known, "quantity": "label_information"}
        if run.role == "student":
            index = depth_match(where["layer_index"], len(run.layers), len(teacher.layers))
            place = {"teacher_layer": teacher.layers[index], "teacher_layer_index": index, "teacher_phase": last}
            yield {**bare, **known, **place, "quantity": "label_gap"}
    for level in instruments.plane:
        yield {**bare, **_PLANE, "noise": level, "ceiling": math.log(where["n"])}
    if run.role == "teacher":
        return
    for index, name in enumerate(teacher.layers):
        place = {"teacher_layer": name, "teacher_layer_index": index, "teacher_phase": last, "probe": ""}
        place |= {"d_x": instruments.width(where["d_x"]), "d_y": measured[0, last, name].compared}
        for level in instruments.noise:
            share = {"quantity": "recovered_share", "unit": "share", "kind": "estimate", "noise": level}
            yield {**bare, **place, **share}
        yield {**bare, **place, "quantity": "cka", "unit": "dimensionless", "kind": "index"}


def _information(measured: Measured, key: tuple[int, int, str]) -> RotatedInformation | None:
    found = measured.get(key)
    return None if found is None or found.information is None else found.information[0]


def _with_interval(value: float, error: float, n: int) -> dict[str, float]:
    reach = float(student_t.ppf(0.975, n - 1)) * error
    return {"value": value, "low": value - reach, "high": value + reach, "standard_error": float(np.float64(error))}
