"""Does the matching of layers matter, and does any suggested matching give a better student than equal depth?

VID between the three stages of the student and teacher layers at the same depth, all stages, the stages in reversed
order, and the layers that every rule of mikit suggests from the student trained alone. The weights of the pairs of each
matching have the same sum; each matching gets the same trials on seed 0, by validation images.

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
from comparison.methods import STAGES, Build, on_layer, recommended, student_alone, together
from comparison.report import write_markdown
from comparison.runs import ALONE, Comparison, Method, parts_of, tell

import mikit
from mikit.flow import LayerMatch, SuggestedPairs

CANDIDATES = ("stem", *STAGES)  # layers with maps, which VID compares position by position
RULES = ("directional", "cka", "nearest", "monotone")
WEIGHTS = (1.0, 3.0)
SHARES = float(len(STAGES))  # sum of the weights of all pairs of a matching, in units of the recommended weight

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
    """Train the students alone, match their layers, train with every matching, and write the results."""
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
    write_markdown(comparison.results, "suggested_pairs", suggestions(suggested))


def matched(comparison: Comparison) -> LayerMatch:
    """Return how the layers of students trained alone match the teacher's, on images no network was trained on."""
    tell(comparison, "matching layers")
    return mikit.match_layers(
        recorded_teacher(comparison),
        recorded_students(comparison),
        labels=probe_of(parts_of(comparison)).labels.numpy(),
        rules=RULES,
        layers=CANDIDATES,
    )


def matchings(suggested: Mapping[str, SuggestedPairs]) -> dict[str, Method]:
    """Return every matching once: the declared ones and those that some rule suggests."""
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
    each = SHARES / len(pairs)
    built = (on_layer(mikit.VID.between, own, source, readout="whole", weight=each) for own, source in pairs)
    return recommended(together(*built))


def suggestions(suggested: Mapping[str, SuggestedPairs]) -> str:
    """Return the suggestion of every rule with its evidence, in Markdown."""
    lines = [
        "Suggestion of each rule from the students alone, and its margin over the second-best layer:",
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
