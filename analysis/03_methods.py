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
from student_methods import METHODS
from student_runs import Comparison


def main(
    out: Out,
    data: Data = None,
    methods: Methods = "all",
    seeds: Seeds = 3,
    per_class: Annotated[int, typer.Option(min=0, help="Images of every class; 0 for what suits the data.")] = 0,
    jobs: Jobs = 2,
    quick: Quick = False,
    bf16: Bf16 = None,
    report_only: ReportOnly = False,
) -> None:
    """Compare, and write table, figure and JSON."""
    settings = settings_for(data, quick=quick, bf16=bf16)
    if per_class:
        settings = replace(settings, per_class=per_class)
    comparison = Comparison(
        name="methods",
        out=out,
        file=data,
        data_key=key_of(data),
        settings=settings,
        methods=chosen_methods(methods, METHODS, quick=quick),
        seeds=tuple(range(seeds)),
    )
    compare(comparison, jobs=jobs, report_only=report_only)


if __name__ == "__main__":
    typer.run(main)
