"""Does it matter which layer teaches which, and does any suggested matching train a better student than the same depth?

VID on the three stages of the student, against teacher layers of the same depth, all stages alike, the reversed order,
and what every rule of mikit suggests from the trained student alone. The weights of all pairs of a matching sum to the
same; each matching gets the same trials on seed 0, by images that neither train nor report.

    python analysis/10_layer_pairs.py --out results/pairs --quick
    python analysis/10_layer_pairs.py --out results/pairs --data images.npz --seeds 3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import typer
from comparison import comparing as shared
from comparison.flow import HELD_BACK, probe_of, recorded_students, recorded_teacher, watched
from comparison.methods import STAGES, Build, on_layer, student_alone, together
from comparison.report import write_markdown
from comparison.runs import ALONE, Comparison, Method, parts_of, tell

import mikit
from mikit.flow import LayerMatch, SuggestedPairs

CANDIDATES = ("stem", *STAGES)  # layers with maps, which VID compares place by place
RULES = ("directional", "cka", "nearest", "monotone")
WEIGHTS = (1.0, 3.0)
STRENGTH = 30.0  # of all pairs of a matching together: ten for each stage

Pairs = tuple[tuple[str, str], ...]

DECLARED: Mapping[str, tuple[str, Pairs]] = {
    "same-depth": ("same depth", tuple((stage, stage) for stage in STAGES)),
    "uniform": ("every stage from every stage", tuple((own, other) for own in STAGES for other in STAGES)),
    "reversed": ("reversed", tuple(zip(STAGES, reversed(STAGES), strict=True))),
}


def main(
    out: shared.Out,
    data: shared.Data = None,
    seeds: shared.Seeds = 3,
    jobs: shared.Jobs = 2,
    quick: shared.Quick = False,
    bf16: shared.Bf16 = None,
    report_only: shared.ReportOnly = False,
) -> None:
    """Train the students alone, match their layers, train by every matching, and write what came of it."""
    settings = shared.settings_for(data, quick=quick, bf16=bf16, held_back=HELD_BACK)
    alone = shared.comparison_of("pairs", out, data, settings, watched({ALONE: student_alone}, out), seeds)
    alone = replace(alone, part="pairs")
    shared.compare(alone, jobs=jobs, report_only=report_only)
    match = matched(alone)
    suggested = {rule: mikit.suggest_pairs(match, rule=rule, layers=STAGES) for rule in RULES}
    weights = (1.0,) if quick else WEIGHTS
    methods = {**alone.methods, **{name: replace(way, weights=weights) for name, way in matchings(suggested).items()}}
    comparison = replace(alone, methods=methods)
    shared.compare(comparison, jobs=jobs, report_only=report_only)
    write_markdown(comparison.results, "suggested_pairs", told(suggested))


def matched(comparison: Comparison) -> LayerMatch:
    """Return how the layers of the trained students alone match the teacher's, on images nobody was trained on."""
    tell(comparison, "matching layers")
    return mikit.match_layers(
        recorded_teacher(comparison),
        recorded_students(comparison),
        labels=probe_of(parts_of(comparison)).labels.numpy(),
        rules=RULES,
        layers=CANDIDATES,
    )


def matchings(suggested: Mapping[str, SuggestedPairs]) -> dict[str, Method]:
    """Return every matching once, those that are declared and those that some rule suggests."""
    titles = {pairs: (name, title) for name, (title, pairs) in DECLARED.items()}
    rules: dict[Pairs, list[str]] = {}
    for rule, found in suggested.items():
        rules.setdefault(tuple(found), []).append(rule)
    for pairs, names in rules.items():
        name, title = titles.get(pairs, ("from-" + "-".join(source for _, source in pairs), "suggested"))
        titles[pairs] = (name, f"{title}: {', '.join(names)}")
    return {name: Method(title=title, build=vid_between(pairs)) for pairs, (name, title) in titles.items()}


def vid_between(pairs: Pairs) -> Build:
    """Return how to build VID for pairs of layers, all of the same weight."""
    each = STRENGTH / len(pairs)
    return together(*(on_layer(mikit.VID.between, own, source, readout="whole", weight=each) for own, source in pairs))


def told(suggested: Mapping[str, SuggestedPairs]) -> str:
    """Return what every rule suggests with its evidence, in Markdown."""
    lines = [
        "What each rule suggests from the students alone, and how far its pick is ahead of the best other layer:",
        "",
        "| rule | " + " | ".join(STAGES) + " |",
        "|---|" + "---|" * len(STAGES),
    ]
    for rule, found in suggested.items():
        cells = (
            f"{row['teacher_layer']} ({row['decision']}"
            + (f", {row['margin']:.2g} ± {row['standard_error']:.1g})" if np.isfinite(row["margin"]) else ")")
            for row in found.evidence.to_dict("records")
        )
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
