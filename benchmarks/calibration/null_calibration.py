"""Calibration of permutation p-values: are they uniform on independent data?

    python benchmarks/calibration/null_calibration.py --runs 200 --kept runs/null --out docs/tables/null_calibration

Two independent variables with two features each: Gaussian, heavy-tailed (Student's t with 1.5 degrees of freedom), and
Gaussian rounded to halves, so that most values are tied. Every run has new data and is saved at once; the same command
continues an interrupted one. Writes a JSON file with every p-value and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress
from scipy import stats

import mikit
from mikit.bench.reports import markdown_table
from mikit.core.errors import InputError
from mikit.core.provenance import library_versions, one_thread

LEVEL, ALLOWED = 0.05, (0.02, 0.08)
WIDTH = 2
FEW_STEPS = mikit.Training(steps=10, batch=64, every=10)
Array = np.ndarray
MARGINALS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "Gaussian": lambda rng, n: rng.standard_normal((n, WIDTH)),
    "heavy-tailed": lambda rng, n: rng.standard_t(1.5, (n, WIDTH)),
    "tied": lambda rng, n: np.round(2 * rng.standard_normal((n, WIDTH))) / 2,
}


@dataclass(frozen=True)
class Setting:
    """An estimator, with the numbers of samples and permutations."""

    name: str
    estimator: mikit.Estimator
    rows: int
    permutations: int
    training: mikit.Training | None = None


SETTINGS = (
    Setting("Gaussian", mikit.GaussianMI(), 200, 99),
    Setting("Gaussian copula", mikit.GaussianMI(copula=True), 200, 99),
    Setting("KSG", mikit.KSG(), 200, 99),
    Setting("InfoNCE, 10 steps", mikit.InfoNCE(WIDTH, WIDTH, width=32, depth=1), 200, 19, FEW_STEPS),
)


def p_value(setting: Setting, marginals: str, seed: int) -> float:
    """Measure two independent samples and return the p-value."""
    rng = np.random.default_rng([seed, list(MARGINALS).index(marginals)])
    x, y = (MARGINALS[marginals](rng, setting.rows) for _ in range(2))
    found = mikit.measure(
        x,
        y,
        setting.estimator,
        permutations=setting.permutations,
        training=setting.training,
        seed=seed,
    ).p_value
    assert found is not None, "permuted data were measured"
    return found


def known(path: Path) -> dict[int, float]:
    """Return the p-values in the file by seed; a line that an interrupted run left incomplete is skipped."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            run = json.loads(line)
            found[int(run["seed"])] = float(run["p_value"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def measured(path: Path, setting: Setting, marginals: str, runs: int) -> Iterator[tuple[int, float]]:
    """Yield seed and p-value of every run; new ones are saved first."""
    already = known(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        if path.stat().st_size and not path.read_text().endswith("\n"):
            file.write("\n")
        for seed in range(runs):
            if seed not in already:
                already[seed] = p_value(setting, marginals, seed)
                file.write(json.dumps({"seed": seed, "p_value": already[seed]}) + "\n")
                file.flush()
            yield seed, already[seed]


def uniformity(values: list[float], permutations: int) -> float:
    """Return the Kolmogorov-Smirnov p-value against the uniform distribution.

    A p-value is a multiple of ``1 / (B + 1)``. Subtracting a uniform draw from that step (with a fixed seed) makes it
    continuous, and uniform if and only if the multiples are equally likely.
    """
    step = np.random.default_rng(0).random(len(values)) / (permutations + 1)
    return float(stats.kstest(np.array(values) - step, "uniform").pvalue)


def main() -> None:
    """Run every estimator on every distribution, print a table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kept", type=Path, required=True, help="folder for the saved runs")
    parser.add_argument("--out", type=Path, default=Path("null_calibration"))
    arguments = parser.parse_args()
    if arguments.runs < 20:
        raise InputError(f"{arguments.runs} runs are too few to estimate a rate of 5 %; use at least 20.")
    versions = library_versions()
    rows, results = [], []
    with one_thread(), Progress() as progress:
        for setting in SETTINGS:
            for marginals in MARGINALS:
                name = f"{setting.name}--{marginals}--{setting.rows}--{setting.permutations}--{versions['mikit']}"
                path = arguments.kept / f"{name.replace(' ', '_').replace(',', '')}.jsonl"
                task = progress.add_task(f"{setting.name}, {marginals}", total=arguments.runs)
                values = []
                for _, value in measured(path, setting, marginals, arguments.runs):
                    values.append(value)
                    progress.advance(task)
                positives = sum(value <= LEVEL for value in values)
                share = positives / len(values)
                uniform = uniformity(values, setting.permutations)
                interval = stats.binomtest(positives, len(values), LEVEL).proportion_ci()
                rows.append(
                    (
                        setting.name,
                        marginals,
                        f"{setting.rows:,}",
                        str(setting.permutations),
                        f"{uniform:.2g}",
                        f"{share:.1%} [{interval.low:.1%}, {interval.high:.1%}]",
                        "yes" if ALLOWED[0] <= share <= ALLOWED[1] else "no",
                    )
                )
                results.append(
                    {
                        "instrument": setting.name,
                        "estimator": setting.estimator.describe(),
                        "law": marginals,
                        "rows": setting.rows,
                        "permutations": setting.permutations,
                        "ks_p_value": uniform,
                        "false_positives": positives,
                        "p_values": values,
                    }
                )
    header = ("estimator", "marginals", "N", "permutations", "KS against uniform, p", "p ≤ 0.05 [95 %]", "2 % to 8 %")
    note = (
        f"{WIDTH} + {WIDTH} features, seeds 0 to {arguments.runs - 1}; "
        + ", ".join(f"{library} {version}" for library, version in versions.items())
        + "."
    )
    text = f"{markdown_table(header, rows)}\n\n{note}\n"
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps({"versions": versions, "results": results}, indent=1))
    arguments.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
