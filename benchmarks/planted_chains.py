"""Does a trace's recovered share find the share of planted Gaussian layers, whose truth is known in closed form?

    python benchmarks/planted_chains.py --out docs/tables/planted_chains

A chain of Gaussian layers: the teacher's layer is ``x B`` with a spectrum that falls as a power of its rank, the
student's layers are random maps onto half the width of what the teacher's layer becomes after more and more noise. All
second moments are known, so is the Gaussian information under the declared noise. Each width and depth is drawn several
times; the largest error over the draws is told, and the share of permuted rows, which is 0 in truth. Writes a JSON file
and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from mikit.bench.tables import markdown_table
from mikit.functional.moments import centred, cross_products, factor_layer
from mikit.functional.recovery import recover
from mikit.provenance import library_versions

WIDTHS, DEPTHS, NOISE, STUDENT_NOISE, FOLDS = (32, 128, 512), 3, 0.3, 0.03, 5
WITHIN_VALUE, WITHIN_SHARE = 0.01, 0.01


def chain(width: int, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    """Return how the teacher's layer mixes a source, how each student layer mixes it, and the noise before each map.

    The source has ``width`` columns for the teacher, and as many fresh ones for the noise of the student's layers.
    """
    spectrum = np.arange(1, width + 1) ** -0.5
    teacher = spectrum[:, None] * np.linalg.qr(rng.standard_normal((width, width)))[0]
    levels = [0.1, 0.5, 2.0][:DEPTHS]
    maps = [rng.standard_normal((width, width // 2)) / np.sqrt(width) for _ in levels]
    return teacher, maps, levels


def truth(teacher: np.ndarray, mapped: np.ndarray, level: float) -> tuple[float, float]:
    """Return the information in nats and its share of the ceiling, from the moments."""
    width = teacher.shape[0]
    scale = np.sqrt(np.trace(teacher.T @ teacher) / width)
    own = teacher.T @ teacher / scale**2
    before = teacher.T @ teacher + (level * scale) ** 2 * np.eye(width)
    theirs = mapped.T @ before @ mapped
    student_scale = np.sqrt(np.trace(theirs) / theirs.shape[0])
    theirs = theirs / student_scale**2 + STUDENT_NOISE**2 * np.eye(theirs.shape[0])
    cross = mapped.T @ (teacher.T @ teacher) / (scale * student_scale)
    noisy = own + NOISE**2 * np.eye(width)
    given = noisy - cross.T @ np.linalg.solve(theirs, cross)
    information = 0.5 * (np.linalg.slogdet(noisy)[1] - np.linalg.slogdet(given)[1])
    ceiling = 0.5 * np.log1p(np.linalg.eigvalsh(own) / NOISE**2).sum()
    return float(information), float(information / ceiling)


def measured(width: int, rows: int, draw: int) -> list[dict[str, float]]:
    """Draw a chain and rows of it, and compare every student layer with the teacher's."""
    rng = np.random.default_rng([width, draw])
    teacher, maps, levels = chain(width, rng)
    scale = np.sqrt(np.trace(teacher.T @ teacher) / width)
    t = centred(rng.standard_normal((rows, width)) @ teacher)
    parts = [slice(a[0], a[-1] + 1) for a in np.array_split(np.arange(rows), FOLDS)]
    factor = factor_layer(t, parts)
    found = []
    for depth, (mapped, level) in enumerate(zip(maps, levels, strict=True)):
        s = centred((t + level * scale * rng.standard_normal((rows, width))) @ mapped)
        moved = np.concatenate([np.roll(np.arange(rows)[part], 1) for part in parts])
        own = factor_layer(s, parts)
        (one,) = recover(own, factor, cross_products(s, t, parts), noise=[NOISE], student_noise=STUDENT_NOISE)
        (null,) = recover(own, factor, cross_products(s[moved], t, parts), noise=[NOISE], student_noise=STUDENT_NOISE)
        nats, share = truth(teacher, mapped, level)
        found.append(
            {
                "width": width,
                "depth": depth,
                "draw": draw,
                "true_nats": nats,
                "true_share": share,
                "held_out": one.held_out / nats - 1,
                "in_sample": one.in_sample / nats - 1,
                "midpoint": one.midpoint / nats - 1,
                "share_error": one.share - share,
                "null_corrected": null.corrected,
                "null_held_out": null.held_out,
            }
        )
    return found


def main() -> None:
    """Draw, measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--draws", type=int, default=4, help="at width 512 half as many")
    parser.add_argument("--out", type=Path, default=Path("planted_chains"))
    given = parser.parse_args()
    start = time.perf_counter()
    rows = [
        one
        for width in WIDTHS
        for draw in range(given.draws if width < 512 else max(given.draws // 2, 1))
        for one in measured(width, given.rows, draw)
    ]
    content = {"rows": given.rows, "results": rows, "versions": library_versions()}
    text = table(content)
    print(text)
    print(f"{time.perf_counter() - start:.0f} s")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(text)


def table(content: dict[str, Any]) -> str:
    """Return the figures as Markdown: means over the draws, the largest error beside them."""
    header = ("width", "true nats", "true share", "held-out", "in-sample", "midpoint (worst)", "share off by (worst)",
              "permuted: corrected, nats (worst)", "permuted: held-out, nats")  # fmt: skip
    rows = []
    for width in WIDTHS:
        for depth in range(DEPTHS):
            own = [one for one in content["results"] if one["width"] == width and one["depth"] == depth]
            mean = {name: float(np.mean([one[name] for one in own])) for name in own[0]}
            worst = {name: max((one[name] for one in own), key=abs) for name in own[0]}
            rows.append(
                (
                    str(width),
                    f"{mean['true_nats']:.1f}",
                    f"{mean['true_share']:.2f}",
                    f"{mean['held_out']:+.1%}",
                    f"{mean['in_sample']:+.1%}",
                    f"{mean['midpoint']:+.2%} ({worst['midpoint']:+.2%})",
                    f"{mean['share_error']:+.4f} ({worst['share_error']:+.4f})",
                    f"{mean['null_corrected']:+.3f} ({worst['null_corrected']:+.3f})",
                    f"{mean['null_held_out']:+.2f}",
                )
            )
    results = content["results"]
    nats = max(abs(one["midpoint"]) for one in results)
    share = max(abs(one["share_error"]) for one in results)
    versions = ", ".join(f"{library} {version}" for library, version in content["versions"].items())
    return (
        f"Worst midpoint {nats:.2%} from the truth (bar {WITHIN_VALUE:.0%}), worst share {share:.4f} (bar "
        f"{WITHIN_SHARE:g}), over {len(results)} pairs of layers.\n\n{markdown_table(header, rows)}\n\n"
        f"N = {content['rows']:,}, σ = {NOISE:g} and {STUDENT_NOISE:g}, {FOLDS} folds, student of half the width; "
        f"{versions}.\n"
    )


if __name__ == "__main__":
    main()
