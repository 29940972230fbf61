"""Can a network without convolutions learn from one with them?

The teacher is a convolutional network, the student two hidden layers on flattened images. VID predicts the teacher's
maps from the student's hidden rows by transposed convolutions; the classics match rows with pooled rows or logits.
Everything else as in the other comparisons.

    python analysis/06_cnn_to_mlp.py --out results/mlp --quick
    python analysis/06_cnn_to_mlp.py --out results/mlp --data images.npz --width 1024
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from student_comparing import (
    Bf16,
    Data,
    Jobs,
    Methods,
    Out,
    Quick,
    ReportOnly,
    Seeds,
    chosen_methods,
    compare,
    key_of,
    settings_for,
)
from student_methods import hinton, on_layer, student_alone, together
from student_runs import ALONE, Comparison, Method

import mikit

# A hidden layer of the student beside the stage of the teacher that lies as deep.
_PAIRS = (("hidden1", "stage2"), ("hidden2", "stage3"))

METHODS = {
    ALONE: student_alone,
    "hinton": Method(title="Hinton KD", build=hinton),
    "fitnet": Method(title="FitNet, pooled", build=on_layer(mikit.FitNet.between, "hidden2", "stage3")),
    "vid-pooled": Method(
        title="VID, pooled",
        build=together(*(on_layer(mikit.VID.between, own, source, weight=10.0) for own, source in _PAIRS)),
    ),
    "vid": Method(
        title="VID, maps",
        build=together(
            *(on_layer(mikit.VID.between, own, source, readout="whole", weight=10.0) for own, source in _PAIRS)
        ),
    ),
}


def main(
    out: Out,
    data: Data = None,
    methods: Methods = "all",
    seeds: Seeds = 3,
    width: Annotated[int, typer.Option(min=1, help="Width of the student's hidden layers.")] = 256,
    jobs: Jobs = 2,
    quick: Quick = False,
    bf16: Bf16 = None,
    report_only: ReportOnly = False,
) -> None:
    """Compare, and write table, figure and JSON."""
    settings = settings_for(data, quick=quick, bf16=bf16)
    comparison = Comparison(
        name="cnn_to_mlp",
        out=out,
        file=data,
        data_key=key_of(data),
        settings=replace(settings, student=f"mlp-{width}"),
        methods=chosen_methods(methods, METHODS, quick=quick),
        seeds=tuple(range(seeds)),
    )
    compare(comparison, jobs=jobs, report_only=report_only)


if __name__ == "__main__":
    typer.run(main)
