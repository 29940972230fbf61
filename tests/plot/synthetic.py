"""A flow made of plausible numbers, in the shape that mikit.trace returns."""

from __future__ import annotations

import math

import numpy as np

from mikit.flow import Flow
from mikit.flow.result import COLUMNS, frame_of

LAYERS = ("stem", "stage1", "stage2", "stage3", "pooled", "logits")
UNTRAINED = {"label": (0.50, 0.46, 0.51, 0.55, 0.50, 0.29), "share": (0.62, 0.40, 0.25, 0.11, 0.07, 0.05)}
TRAINED = {
    "student alone": {"label": (0.58, 0.65, 0.85, 1.03, 1.04, 1.01), "share": (0.73, 0.50, 0.36, 0.20, 0.14, 0.27)},
    "student + VID": {"label": (0.57, 0.75, 0.94, 1.40, 1.42, 1.39), "share": (0.79, 0.74, 0.65, 0.45, 0.30, 0.56)},
    "VID, pairing broken": {
        "label": (0.32, 0.45, 0.64, 0.79, 0.83, 0.79),
        "share": (0.49, 0.36, 0.27, 0.15, 0.11, 0.18),
    },
}
TEACHER = (0.69, 0.83, 1.09, 1.54, 1.59, 1.59)
SCORES = {"student alone": 0.52, "student + VID": 0.65, "VID, pairing broken": 0.44}


def _at(values, place, count):
    return float(np.interp(place / max(count - 1, 1), np.linspace(0, 1, len(values)), values))


def make_flow(
    *,
    networks=("student alone", "student + VID"),
    seeds=(0, 1, 2),
    phases=(0, 1, 2, 4, 8, 16, 30),
    layers=LAYERS,
    teacher_layers=None,
    labels=True,
    noises=(0.1, 0.3, 1.0),
    accuracy=True,
    plane=(),
):
    """Teacher and students with the values of a real run between its first and its last phase, plus seed noise."""
    rng = np.random.default_rng(7)
    theirs = layers if teacher_layers is None else teacher_layers
    rows = []

    def add(**given):
        row = dict.fromkeys(COLUMNS, math.nan) | {
            "teacher_layer": "", "teacher_layer_index": -1, "teacher_phase": -1, "kind": "estimate", "probe": "",
            "readout": "pool", "n": 5000, "d_x": 32, "d_y": 64, "verdict": "trustworthy", "reasons": "",
        }  # fmt: skip
        row |= given
        error = 0.015 if row["quantity"] != "accuracy" else 0.005
        row |= {"standard_error": error, "low": row["value"] - 2 * error, "high": row["value"] + 2 * error}
        row |= {"held_out": row["value"] - 0.01, "in_sample": row["value"] + 0.01}
        rows.append(row)

    base = {"network": "teacher", "role": "teacher", "seed": 0, "phase": 60}
    if labels:
        for j, layer in enumerate(theirs):
            add(**base, layer=layer, layer_index=j, quantity="label_information", unit="nats", null=-0.002,
                kind="V-information", value=_at(TEACHER, j, len(theirs)), ceiling=2.303, probe="logistic")  # fmt: skip
    cap = math.log(5000)

    def add_plane(i, count, gain, **where):
        for noise in plane:
            reach = cap * (1 - math.exp(-2 / noise)) * (1 - (0.02 + 0.07 * gain) * i / max(count - 1, 1))
            at_cap = {"verdict": "unreliable", "reasons": "at log N"} if reach >= 0.92 * cap else {}
            add(**where, quantity="input_information", unit="nats", value=reach, noise=noise, ceiling=cap, **at_cap)

    for j, layer in enumerate(theirs):
        add_plane(j, len(theirs), 1.0, **base, layer=layer, layer_index=j)
    if accuracy:
        add(**base, layer="", layer_index=-1, quantity="accuracy", unit="fraction", value=0.74, readout="", n=0)
    last = max(phases)
    for network in networks:
        for seed in seeds:
            wobble = rng.normal(0, 0.03)
            drift = rng.normal(0, 0.02)
            for phase in phases:
                gain = 0.0 if phase == 0 else (math.log1p(phase) / math.log1p(last)) ** 1.5
                base = {"network": network, "role": "student", "seed": seed, "phase": phase}
                if accuracy:
                    add(**base, layer="", layer_index=-1, quantity="accuracy", unit="fraction", readout="", n=0,
                        value=0.1 + gain * (SCORES[network] - 0.1) + gain * wobble)  # fmt: skip
                for i, layer in enumerate(layers):
                    where = base | {"layer": layer, "layer_index": i}
                    depth = round(i / max(len(layers) - 1, 1) * (len(theirs) - 1))
                    start, end = UNTRAINED["label"], TRAINED[network]["label"]
                    floor = _at(start, i, len(layers)) + 0.01 * (seed - 1)
                    value = (
                        floor + gain * (_at(end, i, len(layers)) - floor) + (rng.normal(0, 0.02) + drift) * (phase > 0)
                    )
                    if labels:
                        weak = {"verdict": "unreliable", "reasons": "held-out value far below the fit part"}
                        weak = weak if i < 2 and phase == 2 and seed == seeds[-1] else {}
                        add(**where, quantity="label_information", unit="nats", probe="logistic", value=value,
                            kind="V-information", ceiling=2.303, untrained=floor, null=-0.002, **weak)  # fmt: skip
                        add(**where, quantity="label_gap", unit="nats", probe="logistic", kind="V-information",
                            teacher_layer=theirs[depth], teacher_layer_index=depth, teacher_phase=60,
                            value=value - _at(TEACHER, depth, len(theirs)))  # fmt: skip
                    add_plane(i, len(layers), gain + 0.01 * seed, **where)
                    for j, other in enumerate(theirs):
                        far = abs(i / max(len(layers) - 1, 1) - j / max(len(theirs) - 1, 1))
                        low = _at(UNTRAINED["share"], j, len(theirs)) * (1 - 0.5 * far) + 0.003 * seed
                        high = _at(TRAINED[network]["share"], j, len(theirs)) * (1 - 0.6 * far)
                        share = low + gain * (high - low) + (rng.normal(0, 0.008) + drift) * (phase > 0)
                        pair = where | {"teacher_layer": other, "teacher_layer_index": j, "teacher_phase": 60}
                        null = 0.004 if j == depth else math.nan
                        for noise in noises:
                            shrink = 1 - 0.1 * (noise - 0.3)
                            caution = {"verdict": "caution", "reasons": "small share"} if share < 0.08 else {}
                            if i == 0 and j >= len(theirs) - 2 and phase in (0, last):
                                caution = {
                                    "verdict": "unreliable",
                                    "reasons": "below the null; few samples per feature",
                                }
                            add(**pair, quantity="recovered_share", unit="share", value=share * shrink, noise=noise,
                                ceiling=22.0, untrained=low * shrink, null=null, **caution)  # fmt: skip
                        add(**pair, quantity="cka", unit="dimensionless", kind="index", null=0.01,
                            value=min(1.0, 0.2 + share), untrained=0.2 + low)  # fmt: skip
    settings = {
        "n": 5000, "label_entropy": math.log(10) if labels else None, "noise": list(noises), "student_noise": 0.03,
        "folds": 5, "probe": "logistic", "seeds": list(seeds), "teacher": "teacher", "networks": list(networks),
        "versions": {"mikit": "0.1"}, "wall_time": 25.0,
    }  # fmt: skip
    return Flow(frame=frame_of(rows), settings=settings)
