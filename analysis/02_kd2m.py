"""Which discrepancy between distributions of features helps a student, and in which form?

KD²M with every metric, marginal, per class and joint with the labels, and the student alone. All methods share
optimizer, schedule, initial weights, images, order and views for each seed. The weight of every method is chosen among
equally many on seed 0, by validation images. Every run is stored in a file, so the same command resumes an interrupted
comparison. Besides accuracy the table shows two measures of the logits: the discrepancy between the distributions of
student and teacher, in squared standard deviations of the teacher's, and their mutual information, in nats.

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
    weights: Annotated[str, typer.Option(help="Weights to try; at 1 the loss of an unrelated student is 1.")] = "",
    jobs: shared.Jobs = 2,
    quick: shared.Quick = False,
    bf16: shared.Bf16 = None,
    report_only: shared.ReportOnly = False,
) -> None:
    """Compare, and write table, figure and JSON."""
    settings = shared.settings_for(data, quick=quick, bf16=bf16)
    if quick and data is None:  # There are many methods, so each gets few steps.
        settings = replace(settings, epochs=30, teacher_epochs=8)
    tried = tuple(float(weight) for weight in (weights or ("1" if quick else "0.2,1,5")).split(","))
    # Forms that are expected to work come first; the marginal form reduced accuracy in other experiments.
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
