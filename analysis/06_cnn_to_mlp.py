"""Can a network without convolutions learn from a convolutional network?

The teacher is a convolutional network, the student two hidden layers on flattened images. VID predicts the teacher's
maps from the student's hidden layers by transposed convolutions; the baseline distillation losses match vectors with
pooled vectors or logits. Everything else is as in the other comparisons.

    python analysis/06_cnn_to_mlp.py --out results/mlp --quick
    python analysis/06_cnn_to_mlp.py --out results/mlp --data images.npz --width 1024
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from comparison import comparing as shared
from comparison.methods import hinton, on_layer, recommended, student_alone, together
from comparison.runs import ALONE, Method

import mikit

# A hidden layer of the student with the stage of the teacher at the same depth.
_PAIRS = (("hidden1", "stage2"), ("hidden2", "stage3"))

METHODS = {
    ALONE: student_alone,
    "hinton": Method(title="Hinton KD", build=hinton),
    "fitnet": Method(title="FitNet, pooled", build=on_layer(mikit.FitNet.between, "hidden2", "stage3")),
    "vid-pooled": Method(
        title="VID, pooled",
        build=recommended(together(*(on_layer(mikit.VID.between, own, source) for own, source in _PAIRS))),
    ),
    "vid": Method(
        title="VID, maps",
        build=recommended(
            together(*(on_layer(mikit.VID.between, own, source, readout="whole") for own, source in _PAIRS))
        ),
    ),
}


def main(
    out: shared.Out,
    data: shared.Data = None,
    methods: shared.Methods = "all",
    seeds: shared.Seeds = 3,
    width: Annotated[int, typer.Option(min=1, help="Width of the student's hidden layers.")] = 256,
    jobs: shared.Jobs = 2,
    quick: shared.Quick = False,
    bf16: shared.Bf16 = None,
    report_only: shared.ReportOnly = False,
) -> None:
    """Compare, and write table, figure and JSON."""
    settings = shared.settings_for(data, quick=quick, bf16=bf16)
    comparison = shared.comparison_of(
        "cnn_to_mlp",
        out,
        data,
        replace(settings, student=f"mlp-{width}"),
        shared.chosen_methods(methods, METHODS, quick=quick),
        seeds,
    )
    shared.compare(comparison, jobs=jobs, report_only=report_only)


if __name__ == "__main__":
    typer.run(main)
