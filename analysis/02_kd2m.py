"""Which discrepancy between the laws of features helps a student, and in which form?

KD²M with every metric, marginal, per class and joint with the labels, beside the student alone. All share optimiser,
schedule, initial weights, images, order and views, seed by seed. The weight of every method is chosen among equally
many on seed 0, by images that neither train nor report. Every run is a file of its own: start the same command again
and it goes on. Beside accuracy stand both axes of the logits: how far the student's law is from the teacher's, in
squared standard deviations of the teacher's, and how much its rows know of the teacher's, in nats.

    python analysis/02_kd2m.py --out results/kd2m --quick
    python analysis/02_kd2m.py --out results/kd2m --data images.npz --seeds 3
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from comparison import comparing as shared
from comparison.methods import FORM_NAMES, METRIC_NAMES, kd2m, student_alone
from comparison.runs import ALONE, Method


def main(
    out: shared.Out,
    data: shared.Data = None,
    methods: shared.Methods = "all",
    seeds: shared.Seeds = 3,
    weights: Annotated[str, typer.Option(help="Weights to try; 1: an unrelated student costs 1.")] = "",
    jobs: shared.Jobs = 2,
    quick: shared.Quick = False,
    bf16: shared.Bf16 = None,
    report_only: shared.ReportOnly = False,
) -> None:
    """Compare, and write table, figure and JSON."""
    settings = shared.settings_for(data, quick=quick, bf16=bf16)
    if quick and data is None:  # There are many methods, so few steps.
        settings = replace(settings, epochs=30, teacher_epochs=8)
    tried = tuple(float(weight) for weight in (weights or ("1" if quick else "0.2,1,5")).split(","))
    # Forms that are expected to work come first; marginal laws were seen to hurt elsewhere.
    names = [(metric, form) for metric in METRIC_NAMES for form in ("class", "joint")]
    names += [(metric, "marginal") for metric in METRIC_NAMES]
    known = {ALONE: student_alone} | {
        f"{metric}-{form}": Method(
            title=METRIC_NAMES[metric], group=FORM_NAMES[form], build=kd2m(metric, form), weights=tried
        )
        for metric, form in names
    }
    comparison = shared.comparison_of(
        "kd2m", out, data, settings, shared.chosen_methods(methods, known, quick=quick), seeds
    )
    shared.compare(comparison, jobs=jobs, report_only=report_only)


if __name__ == "__main__":
    typer.run(main)
