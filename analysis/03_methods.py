"""Which distillation method helps a student most, and is the gain larger than that of its controls?

Losses of mikit and baseline distillation losses, alone and combined, and the student alone. All methods share
optimizer, schedule, initial weights, images, order and views for each seed. The weight of every method is searched with
equally many trials on seed 0, by validation images. Controls: VID with the teacher's features of other images, VID of
an untrained teacher, VID whose variances start at 5. Every run is stored in a file, so the same command resumes an
interrupted comparison.

    python analysis/03_methods.py --out results/methods --quick
    python analysis/03_methods.py --out results/methods --data images.npz --seeds 3
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from comparison import comparing as shared
from comparison.methods import METHODS


def main(
    out: shared.Out,
    data: shared.Data = None,
    methods: shared.Methods = "all",
    seeds: shared.Seeds = 3,
    per_class: Annotated[int, typer.Option(min=0, help="Images per class; 0: a default for the data.")] = 0,
    jobs: shared.Jobs = 2,
    quick: shared.Quick = False,
    bf16: shared.Bf16 = None,
    report_only: shared.ReportOnly = False,
) -> None:
    """Compare, and write table, figure and JSON."""
    settings = shared.settings_for(data, quick=quick, bf16=bf16)
    if per_class:
        settings = replace(settings, per_class=per_class)
    comparison = shared.comparison_of(
        "methods", out, data, settings, shared.chosen_methods(methods, METHODS, quick=quick), seeds
    )
    shared.compare(comparison, jobs=jobs, report_only=report_only)


if __name__ == "__main__":
    typer.run(main)
