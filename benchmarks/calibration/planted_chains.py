"""Accuracy of the recovered share on planted Gaussian layers, whose true share has a closed form.

    python benchmarks/calibration/planted_chains.py --out docs/tables/planted_chains

A chain of Gaussian layers: the teacher's layer is ``x B`` with a spectrum that decays as a power of the rank; the
student's layers are random maps of it to half its width, with noise before the map (three depths, with increasing
noise) or after it. All second moments are known, and so is the Gaussian information under the declared noise. The first
chain uses the default noise on the student, the second the teacher's noise on both sides, where the information is 0.1
to 0.25 nats per feature. Each width and depth is drawn several times; the table reports the largest error over the
draws, and the value for permuted samples, whose truth is 0. Writes a JSON file and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from mikit.bench.reports import markdown_table
from mikit.core.provenance import library_versions
from mikit.functional.flow.moments import centered, cross_products, factor_layer
from mikit.functional.flow.recovery import recover

WIDTHS, NOISE, FOLDS = (32, 128, 512), 0.3, 5
WITHIN_VALUE, WITHIN_SHARE = 0.01, 0.01


@final
@dataclass(frozen=True)
class Chain:
    """The parameters of a chain.

    Attributes:
        power: The variances of the teacher's layer decay as ``rank ** -power``.
        levels: Noise of the student's layers, one for each depth, in RMS SDs of its input.
        before: Whether that noise is added before the map.
        student_noise: Declared noise on the student's layers.
    """

    power: float
    levels: tuple[float, ...]
    before: bool
    student_noise: float


CHAINS = {
    "noise before the map, σ = 0.3 and 0.03": Chain(1.0, (0.1, 0.5, 2.0), True, 0.03),
    "noise after the map, σ = 0.3 on both sides": Chain(1.2, (0.3,), False, 0.3),
}


def moments(chain: Chain, width: int, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the mixing matrix of the teacher's layer, and the map of each student layer."""
    spectrum = np.arange(1, width + 1) ** (-0.5 * chain.power)
    teacher = spectrum[:, None] * np.linalg.qr(rng.standard_normal((width, width)))[0]
    return teacher, [rng.standard_normal((width, width // 2)) / np.sqrt(width) for _ in chain.levels]


def truth(chain: Chain, teacher: np.ndarray, mapped: np.ndarray, level: float) -> tuple[float, float]:
    """Return the information in nats and its fraction of the ceiling, from the moments."""
    width = teacher.shape[0]
    own = teacher.T @ teacher
    variance = np.trace(own) / width
    if chain.before:
        theirs = mapped.T @ (own + level**2 * variance * np.eye(width)) @ mapped
    else:
        theirs = mapped.T @ own @ mapped
        theirs = theirs + level**2 * np.trace(theirs) / len(theirs) * np.eye(len(theirs))
    student_variance = np.trace(theirs) / len(theirs)
    cross = mapped.T @ own / np.sqrt(variance * student_variance)
    theirs = theirs / student_variance + chain.student_noise**2 * np.eye(len(theirs))
    noisy = own / variance + NOISE**2 * np.eye(width)
    given = noisy - cross.T @ np.linalg.solve(theirs, cross)
    information = 0.5 * (np.linalg.slogdet(noisy)[1] - np.linalg.slogdet(given)[1])
    ceiling = 0.5 * np.log1p(np.linalg.eigvalsh(own / variance) / NOISE**2).sum()
    return float(information), float(information / ceiling)


def student_rows(
    chain: Chain, t: np.ndarray, teacher: np.ndarray, mapped: np.ndarray, level: float, rng: np.random.Generator
) -> np.ndarray:
    """Return samples of a student's layer, computed from the teacher's."""
    if chain.before:
        scale = np.sqrt((teacher**2).sum() / len(teacher))
        return np.asarray((t + level * scale * rng.standard_normal(t.shape)) @ mapped)
    scale = np.sqrt(((teacher @ mapped) ** 2).sum() / mapped.shape[1])
    return np.asarray(t @ mapped + level * scale * rng.standard_normal((len(t), mapped.shape[1])))


def measured(name: str, width: int, rows: int, draw: int) -> list[dict[str, Any]]:
    """Draw a chain with samples, and compare every student layer with the teacher's."""
    chain = CHAINS[name]
    rng = np.random.default_rng([width, draw])
    teacher, maps = moments(chain, width, rng)
    t = centered(rng.standard_normal((rows, width)) @ teacher)
    parts = [slice(a[0], a[-1] + 1) for a in np.array_split(np.arange(rows), FOLDS)]
    factor = factor_layer(t, parts)
    found = []
    for depth, (mapped, level) in enumerate(zip(maps, chain.levels, strict=True)):
        s = centered(student_rows(chain, t, teacher, mapped, level, rng))
        moved = np.concatenate([np.roll(np.arange(rows)[part], 1) for part in parts])
        own = factor_layer(s, parts)
        one, null = (
            recover(own, factor, cross_products(own_rows, t, parts), noise=[NOISE], student_noise=chain.student_noise)[
                0
            ]
            for own_rows in (s, s[moved])
        )
        nats, share = truth(chain, teacher, mapped, level)
        found.append(
            {
                "chain": name,
                "width": width,
                "depth": depth,
                "draw": draw,
                "true_nats": nats,
                "true_share": share,
                "held_out": one.held_out / nats - 1,
                "in_sample": one.in_sample / nats - 1,
                "midpoint": one.midpoint / nats - 1,
                "independent": one.corrected / nats - 1,
                "information": one.information / nats - 1,
                "share_error": one.share - share,
                "null_information": null.information,
                "null_scatter": np.sqrt(
                    own.effective_dimension(chain.student_noise) * factor.effective_dimension(NOISE) / 2
                )
                / rows,
                "null_held_out": null.held_out,
            }
        )
    return found


def main() -> None:
    """Draw, measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--draws", type=int, default=4, help="half as many at width 512")
    parser.add_argument("--out", type=Path, default=Path("planted_chains"))
    given = parser.parse_args()
    start = time.perf_counter()
    rows = [
        one
        for name in CHAINS
        for width in WIDTHS
        for draw in range(given.draws if width < 512 else max(given.draws // 2, 1))
        for one in measured(name, width, given.rows, draw)
    ]
    content = {"rows": given.rows, "results": rows, "versions": library_versions()}
    text = table(content)
    print(text)
    print(f"{time.perf_counter() - start:.0f} s")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(text)


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown: means over the draws, with the largest error."""
    header = ("width", "true nats", "true share", "held-out", "in-sample", "midpoint (worst)", "information (worst)",
              "share error (worst)", "permuted: nats, mean of draws", "SD of one draw")  # fmt: skip
    results = content["results"]
    parts = []
    for name, chain in CHAINS.items():
        rows = []
        for width in WIDTHS:
            for depth in range(len(chain.levels)):
                where = (name, width, depth)
                own = [one for one in results if (one["chain"], one["width"], one["depth"]) == where]
                numbers = [key for key in own[0] if key != "chain"]
                mean = {key: float(np.mean([one[key] for one in own])) for key in numbers}
                worst = {key: max((one[key] for one in own), key=abs) for key in numbers}
                rows.append(
                    (
                        str(width),
                        f"{mean['true_nats']:.1f}",
                        f"{mean['true_share']:.2f}",
                        f"{mean['held_out']:+.1%}",
                        f"{mean['in_sample']:+.1%}",
                        f"{mean['midpoint']:+.2%} ({worst['midpoint']:+.2%})",
                        f"{mean['information']:+.2%} ({worst['information']:+.2%})",
                        f"{mean['share_error']:+.4f} ({worst['share_error']:+.4f})",
                        f"{mean['null_information']:+.3f}",
                        f"{mean['null_scatter']:.3f}",
                    )
                )
        parts.append(f"**{name[0].upper()}{name[1:]}**\n\n{markdown_table(header, rows)}\n")
    cells = {(one["chain"], one["width"], one["depth"]) for one in results}
    means = [
        float(np.mean([one["information"] for one in results if (one["chain"], one["width"], one["depth"]) == cell]))
        for cell in cells
    ]
    largest = {key: max(abs(one[key]) for one in results) for key in ("information", "midpoint", "share_error")}
    versions = ", ".join(f"{library} {version}" for library, version in content["versions"].items())
    return (
        f"The information is within {max(map(abs, means)):.2%} of the truth in every row of the table (target "
        f"{WITHIN_VALUE:.0%}), within {largest['information']:.2%} in every draw; the error of the midpoint of "
        f"the held-out and in-sample values is up to {largest['midpoint']:.2%}. The largest error of a share is "
        f"{largest['share_error']:.4f} (target {WITHIN_SHARE:g}), over {len(results)} pairs of layers.\n\n"
        + "\n".join(parts)
        + f"\nN = "
        f"{content['rows']:,}, {FOLDS} folds, student of half the width; {versions}.\n"
    )


if __name__ == "__main__":
    main()
