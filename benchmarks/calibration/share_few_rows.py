"""Error of the recovered share with few samples of non-Gaussian distributions.

    python benchmarks/calibration/share_few_rows.py --out docs/tables/share_few_rows
    python benchmarks/calibration/share_few_rows.py --stores TEACHER STUDENT... --out docs/tables/share_few_rows

The correction of a share (docs/flow.md) is exact for Gaussian samples. Here a teacher's layer and a student's layer, a
noisy random map of it to half its width, have other distributions: rectified, with heavy-tailed features, with
heavy-tailed samples, with ten classes. The reference is the share of 60,000 samples. With ``--stores`` recorded layers
are compared as well, with 1,000 and 2,000 samples (two draws each) and with all: layers of the same depth, first and
last phase, against the first store's last phase. Writes a JSON file and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import mikit
from mikit.bench.reports import markdown_table
from mikit.core.provenance import library_versions
from mikit.functional.flow.recovery import Recovery, recovered_share

NOISE, MANY, DRAWS = 0.3, 60_000, 3
SIZES = {64: (1500, 5000), 192: (2000, 5000)}
DISTRIBUTIONS = ("Gaussian", "rectified", "Student t(5) columns", "ten classes", "Student t(5) rows")


def rows_of(name: str, n: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw samples of a student's layer and the teacher's; the maps depend only on the width."""
    fixed = np.random.default_rng(width)
    turn = np.linalg.qr(fixed.standard_normal((width, width)))[0]
    reading = fixed.standard_normal((width, width // 2)) / np.sqrt(width)
    centers = fixed.standard_normal((10, width))
    source = rng.standard_normal((n, width))
    if name == "Student t(5) columns":
        source = rng.standard_t(5, (n, width)) / np.sqrt(5 / 3)
    elif name == "Student t(5) rows":
        source *= np.sqrt(3 / rng.chisquare(5, (n, 1)))
    elif name == "ten classes":
        source = 0.6 * source + 1.5 * centers[rng.integers(0, 10, n)]
    teacher = (source * np.arange(1, width + 1) ** -0.5) @ turn
    if name == "rectified":
        teacher = np.maximum(teacher, 0)
    student = (teacher + 0.5 * teacher.std() * rng.standard_normal((n, width))) @ reading
    return np.maximum(student, 0) if name == "rectified" else student, teacher


def recovered(student: np.ndarray, teacher: np.ndarray) -> Recovery:
    """Return the recovery at the default noise."""
    return recovered_share(student, teacher, noise=[NOISE])[0]


def distributions() -> list[dict[str, Any]]:
    """Compare small and large samples of every distribution."""
    found = []
    for width, sizes in SIZES.items():
        for name in DISTRIBUTIONS:
            rng = np.random.default_rng([width, DISTRIBUTIONS.index(name)])
            many = recovered(*rows_of(name, MANY, width, rng))
            for n in sizes:
                few = [recovered(*rows_of(name, n, width, rng)) for _ in range(DRAWS)]
                found.append(
                    {
                        "law": name,
                        "width": width,
                        "rows": n,
                        "nats": many.information,
                        "share": many.share,
                        "information": float(np.mean([one.information for one in few])) / many.information - 1,
                        "midpoint": float(np.mean([one.midpoint for one in few])) / many.information - 1,
                        "share_error": float(np.mean([one.share for one in few])) - many.share,
                    }
                )
    return found


def stores(places: list[Path]) -> list[dict[str, Any]]:
    """Compare shares of recorded layers with 1,000 and 2,000 samples to those with all."""
    first, *others = (mikit.ActivationStore.open(place) for place in places)
    last = first.phases[-1]
    order = np.argsort(first.ids(last))
    shuffled = np.random.default_rng(0).permutation(len(order))
    found = []
    for store in others:
        for phase in dict.fromkeys((store.phases[0], store.phases[-1])):
            own = np.argsort(store.ids(phase))
            for layer in store.layers:
                s, t = np.array(store.read(layer, phase))[own], np.array(first.read(layer, last))[order]
                whole = recovered(s, t)
                for n in (1000, 2000):
                    parts = [shuffled[start : start + n] for start in (0, n)]
                    few = [recovered(s[part], t[part]) for part in parts]
                    # Divided by the same ceiling, so that only the numerators differ.
                    middle = float(np.mean([one.midpoint / one.ceiling for one in few]))
                    found.append(
                        {
                            "rows": n,
                            "of": len(order),
                            "layer": layer,
                            "phase": phase,
                            "share": whole.share,
                            "share_error": float(np.mean([one.share for one in few])) - whole.share,
                            "midpoint_error": middle - whole.midpoint / whole.ceiling,
                        }
                    )
    return found


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    header = ("distribution", "width", "N", "nats", "share", "information error", "midpoint error", "share error")
    rows = [
        (one["law"], str(one["width"]), f"{one['rows']:,}", f"{one['nats']:.1f}", f"{one['share']:.2f}",
         f"{one['information']:+.2%}", f"{one['midpoint']:+.2%}", f"{one['share_error']:+.4f}")
        for one in content["laws"]
    ]  # fmt: skip
    text = (
        f"{markdown_table(header, rows)}\n\nMeans of {DRAWS} samples, against {MANY:,} samples; σ = {NOISE:g} and 0.03."
    )
    for n in (1000, 2000):
        own = [one for one in content["stores"] if one["rows"] == n]
        if own:
            errors = {key: np.array([one[key] for one in own]) for key in ("share_error", "midpoint_error")}
            share, middle = (
                f"{one.mean():+.4f} on average and at most {abs(one).max():.4f}" for one in errors.values()
            )
            text += (
                f"\n\nLayers of recorded networks, {n:,} samples against {own[0]['of']:,}, {len(own)} pairs: the error "
                f"of the share is {share}; that of the midpoint of held-out and in-sample values {middle}."
            )
    versions = ", ".join(f"{library} {version}" for library, version in content["versions"].items())
    return f"{text}\n\n{versions}.\n"


def main() -> None:
    """Draw, compare, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", type=Path, nargs="+", default=[])
    parser.add_argument("--out", type=Path, help="Also write OUT.json and OUT.md.")
    given = parser.parse_args()
    content: dict[str, Any] = {"laws": distributions(), "stores": [], "versions": library_versions()}
    if len(given.stores) > 1:
        content["stores"] = stores(given.stores)
    print(table(content))
    if given.out is not None:
        given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(table(content))


if __name__ == "__main__":
    main()
