"""Which part of MIMKD helps: its terms alone and combined, its objectives, critics and negatives.

Compared with the student alone, with the same initial weights, images, order and views for each seed. Weights are
searched on seed 0 with equally many trials for every variant, by validation images.

    python analysis/05_mimkd.py --out results/mimkd --quick
    python analysis/05_mimkd.py --out results/mimkd --data images.npz --seeds 3
"""

from __future__ import annotations

from functools import partial

import typer
from comparison import comparing as shared
from comparison.methods import FLOW_LAYERS, STAGES, on_several, student_alone
from comparison.runs import ALONE, Method

import mikit

TERMS = {"global": ("pool",), "local": ("stage3", "pool"), "feature": STAGES}


def variant(title: str, *terms: str, **options: str) -> Method:
    """Return MIMKD with these terms, all if none is named, on the layers that they need."""
    kept = terms or tuple(TERMS)
    weights = {f"{term}_weight": float(term in kept) for term in TERMS}
    layers = tuple(layer for layer in FLOW_LAYERS if any(layer in TERMS[term] for term in kept))
    return Method(
        title=title, build=on_several(partial(mikit.MIMKD.between, **weights, **options), layers, readout="whole")
    )


VARIANTS = {
    ALONE: student_alone,
    "all": variant("all three terms"),
    "global": variant("global term", "global"),
    "local": variant("local term", "local"),
    "feature": variant("feature term", "feature"),
    "global-local": variant("global and local", "global", "local"),
    "global-feature": variant("global and feature", "global", "feature"),
    "local-feature": variant("local and feature", "local", "feature"),
    "infonce": variant("all, InfoNCE", objective="infonce"),
    "shift": variant("all, one shifted negative", negatives="shift"),
    "concat": variant("all, concatenating critics", critic="concat"),
}


def main(
    out: shared.Out,
    data: shared.Data = None,
    methods: shared.Methods = "all",
    seeds: shared.Seeds = 3,
    jobs: shared.Jobs = 2,
    quick: shared.Quick = False,
    bf16: shared.Bf16 = None,
    report_only: shared.ReportOnly = False,
) -> None:
    """Compare, and write table, figure and JSON."""
    comparison = shared.comparison_of(
        "mimkd",
        out,
        data,
        shared.settings_for(data, quick=quick, bf16=bf16),
        shared.chosen_methods(methods, VARIANTS, quick=quick),
        seeds,
    )
    shared.compare(comparison, jobs=jobs, report_only=report_only)


if __name__ == "__main__":
    typer.run(main)
