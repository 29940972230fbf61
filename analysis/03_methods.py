"""Which way of learning from a teacher helps a student most, and does the gain hold up against its controls?

Losses of mikit and the classics, alone and together, beside the student alone. All share optimiser, schedule, initial
weights, images, order and views, seed by seed. The weight of every method is searched with as many trials on seed 0, by
images that neither train nor report. Controls: VID with the teacher's features of other images, VID of an untrained
teacher, VID whose variances start at 5. Every run is a file of its own: start the same command again and it goes on.

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
    per_class: Annotated[int, typer.Option(min=0, help="Images of every class; 0 for what suits the data.")] = 0,
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
