"""Calibration of change points: planted ones are found, and flat curves have none, at the noise of real flows.

    python benchmarks/calibration/change_points.py --curves 200 --out docs/tables/change_points

Curves of label information at the recordings of a training run, with the standard error of 5,000 probe samples. The
planted changes are a step between two levels (fitted with constant pieces) and a bend from a steady rise to a plateau
(fitted with straight ones), at a random place, in sizes from a multiple of the error to those of real students. The
table counts whether exactly one change point is found, at most one recording from the planted one, and whether the 95 %
interval contains it. Flat curves and steady rises must have none. Further rows have errors shared by all recordings, as
from one set of probe samples, and standard errors that are estimated from five folds. Writes a JSON file and a Markdown
table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from mikit.bench.reports import markdown_table
from mikit.core.provenance import library_versions
from mikit.flow.readings.phases import change_points

ERROR = 0.015
RECORDINGS = {"8": (0, 1, 2, 4, 8, 16, 28, 40), "20": tuple(range(20))}
# Steps and slopes per recording, in standard errors of a point.
STEPS, SLOPES = (3, 4, 5, 6.7, 10), (3, 5, 7, 10)
BAR = 0.95


def drawn(
    shape: str, kind: str, size: float, noise: str, phases: tuple[int, ...], curves: int
) -> tuple[pd.DataFrame, list[int]]:
    """Return noisy curves and the index of the first recording after the planted change."""
    rng = np.random.default_rng([len(phases), round(10 * size), ("shared", "folds", "own").index(noise)])
    places, rows, planted = np.arange(len(phases)), [], []
    for number in range(curves):
        # At least two recordings on either side, and three for a straight piece.
        at = int(rng.integers(2 + (shape == "straight"), len(phases) - 1 - (shape == "straight")))
        line = {"flat": 0.0 * places, "step": 1.0 * (places >= at), "bend": np.minimum(places, at), "rise": places}[
            kind
        ]
        own, common = rng.standard_normal(len(phases)), rng.standard_normal()
        errors = own if noise != "shared" else np.sqrt(0.5) * (own + common)
        values = 0.5 + ERROR * (size * line + errors)
        reported = np.full(len(phases), ERROR)
        if noise == "folds":
            reported = ERROR * np.sqrt(rng.chisquare(4, len(phases)) / 4)
        planted.append(at)
        quantity = "recovered_share" if noise == "folds" else "label_information"
        where = {"network": "student", "seed": number, "quantity": quantity, "layer": "layer", "layer_index": 0}
        where |= {"teacher_layer": "", "phase": phases, "value": values, "standard_error": reported, "unit": ""}
        rows.append(pd.DataFrame(where))
    return pd.concat(rows), planted


def counted(shape: str, kind: str, size: float, noise: str, recordings: str, curves: int) -> dict[str, object]:
    """Count the curves whose change points are found correctly."""
    phases = RECORDINGS[recordings]
    table, planted = drawn(shape, kind, size, noise, phases, curves)
    changes = change_points(table, shape=shape)[1]
    right, single, covered = 0, 0, 0
    for number, at in enumerate(planted):
        own = changes[changes["seed"] == number]
        if kind in ("flat", "rise"):
            right += own.empty
        elif len(own) == 1:
            single += 1
            right += abs(phases.index(int(own["phase"].iloc[0])) - at) <= 1
            # A bend at a recording can belong to the piece before it or after it.
            held = {phases[at], phases[min(at + 1, len(phases) - 1)]} if kind == "bend" else {phases[at]}
            low, high = own[["low", "high"]].iloc[0]
            covered += any(low <= phase <= high for phase in held)
    return {
        "shape": shape,
        "curve": kind,
        "size": size,
        "errors": noise,
        "recordings": len(phases),
        "curves": curves,
        "right": right,
        "single": single,
        "covered": covered,
    }


def main() -> None:
    """Draw, fit, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("change_points"))
    given = parser.parse_args()
    whole = (("constant", "flat"), ("straight", "flat"), ("straight", "rise"))
    cases = [
        (shape, kind, 0.0 if kind == "flat" else 5.0, noise, recordings)
        for recordings in RECORDINGS
        for shape, kind in whole
        for noise in ("own", "shared", "folds")
    ]
    cases += [("constant", "step", size, "own", recordings) for recordings in RECORDINGS for size in STEPS]
    cases += [("straight", "bend", size, "own", recordings) for recordings in RECORDINGS for size in SLOPES]
    cases += [
        ("constant", "step", 6.7, noise, recordings) for recordings in RECORDINGS for noise in ("shared", "folds")
    ]
    results = [counted(*case, given.curves) for case in cases]
    words = {"own": "independent", "shared": "half of it shared", "folds": "independent, estimated from five folds"}
    rows = []
    for one in results:
        share = int(str(one["right"])) / given.curves
        interval = binomtest(int(str(one["right"])), given.curves).proportion_ci()
        planted = one["curve"] in ("step", "bend")
        rows.append(
            (
                f"{one['curve']}, {one['shape']} pieces",
                f"{one['size']:g} SE" + (f" ({float(str(one['size'])) * ERROR:.2g} nats)" if one["size"] else ""),
                str(one["recordings"]),
                words[str(one["errors"])],
                f"{share:.1%} [{interval.low:.1%}, {interval.high:.1%}]",
                "yes" if share >= BAR else "no",
                f"{int(str(one['covered'])) / max(int(str(one['single'])), 1):.1%}" if planted else "",
            )
        )
    header = (
        "curve",
        "step, or slope per recording",
        "recordings",
        "errors",
        "correct [95 %]",
        "≥ 95 %",
        "in the interval",
    )
    versions = library_versions()
    note = f"{given.curves} curves per row, standard error {ERROR} nats; " + ", ".join(
        f"{k} {v}" for k, v in versions.items()
    )
    text = f"{markdown_table(header, rows)}\n\n{note}.\n"
    print(text)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps({"versions": versions, "results": results}, indent=1))
    given.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
