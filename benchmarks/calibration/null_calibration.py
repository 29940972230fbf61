"""Are permutation p-values uniform where nothing is to be found? Independent data, new for every run.

    python benchmarks/calibration/null_calibration.py --runs 200 --kept runs/null --out docs/tables/null_calibration

Two columns a side, independent of each other: Gaussian, heavy-tailed (Student's t with 1.5 degrees of freedom), and
Gaussian rounded to halves, so that most values are tied. Every run is written down as soon as it is known; the same
command goes on from there. Writes a JSON file with every p-value and a Markdown table.
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
from mikit.bench.tables import markdown_table
from mikit.core.errors import InputError
from mikit.core.provenance import library_versions, one_thread

LEVEL, ALLOWED = 0.05, (0.02, 0.08)
WIDTH = 2
FEW_STEPS = mikit.Training(steps=10, batch=64, every=10)
Array = np.ndarray
LAWS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "Gaussian": lambda rng, n: rng.standard_normal((n, WIDTH)),
    "heavy-tailed": lambda rng, n: rng.standard_t(1.5, (n, WIDTH)),
    "tied": lambda rng, n: np.round(2 * rng.standard_normal((n, WIDTH))) / 2,
}


@dataclass(frozen=True)
class Instrument:
    """What is measured with, on how many rows, against how many permutations."""

    name: str
    estimator: mikit.Estimator
    rows: int
    permutations: int
    training: mikit.Training | None = None


INSTRUMENTS = (
    Instrument("Gaussian", mikit.GaussianMI(), 200, 99),
    Instrument("Gaussian copula", mikit.GaussianMI(copula=True), 200, 99),
    Instrument("KSG", mikit.KSG(), 200, 99),
    Instrument("InfoNCE, 10 steps", mikit.InfoNCE(WIDTH, WIDTH, width=32, depth=1), 200, 19, FEW_STEPS),
)


def p_value(instrument: Instrument, law: str, seed: int) -> float:
    """Measure two independent samples and return the p-value."""
    rng = np.random.default_rng([seed, list(LAWS).index(law)])
    x, y = (LAWS[law](rng, instrument.rows) for _ in range(2))
    found = mikit.measure(
        x,
        y,
        instrument.estimator,
        permutations=instrument.permutations,
        training=instrument.training,
        seed=seed,
    ).p_value
    assert found is not None, "permuted data were measured"
    return found


def known(path: Path) -> dict[int, float]:
    """Return the p-values by seed that the file holds; a line cut short by a kill is measured again."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            run = json.loads(line)
            found[int(run["seed"])] = float(run["p_value"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def measured(path: Path, instrument: Instrument, law: str, runs: int) -> Iterator[tuple[int, float]]:
    """Yield seed and p-value of every run, the new ones written down before they are told."""
    already = known(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        if path.stat().st_size and not path.read_text().endswith("\n"):
            file.write("\n")
        for seed in range(runs):
            if seed not in already:
                already[seed] = p_value(instrument, law, seed)
                file.write(json.dumps({"seed": seed, "p_value": already[seed]}) + "\n")
                file.flush()
            yield seed, already[seed]


def uniformity(values: list[float], permutations: int) -> float:
    """Return the Kolmogorov-Smirnov p-value against the uniform law.

    A p-value is a multiple of ``1 / (B + 1)``: a draw from that step (of a fixed seed) makes it continuous, and uniform
    just where the multiples are equally likely.
    """
    step = np.random.default_rng(0).random(len(values)) / (permutations + 1)
    return float(stats.kstest(np.array(values) - step, "uniform").pvalue)


def main() -> None:
    """Run every instrument on every law, print a table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kept", type=Path, required=True, help="folder for the runs that are known")
    parser.add_argument("--out", type=Path, default=Path("null_calibration"))
    arguments = parser.parse_args()
    if arguments.runs < 20:
        raise InputError(f"{arguments.runs} runs are too few to tell 5 % from anything; ask for at least 20.")
    versions = library_versions()
    rows, results = [], []
    with one_thread(), Progress() as progress:
        for instrument in INSTRUMENTS:
            for law in LAWS:
                name = f"{instrument.name}--{law}--{instrument.rows}--{instrument.permutations}--{versions['mikit']}"
                path = arguments.kept / f"{name.replace(' ', '_').replace(',', '')}.jsonl"
                task = progress.add_task(f"{instrument.name}, {law}", total=arguments.runs)
                values = []
                for _, value in measured(path, instrument, law, arguments.runs):
                    values.append(value)
                    progress.advance(task)
                positives = sum(value <= LEVEL for value in values)
                share = positives / len(values)
                uniform = uniformity(values, instrument.permutations)
                interval = stats.binomtest(positives, len(values), LEVEL).proportion_ci()
                rows.append(
                    (
                        instrument.name,
                        law,
                        f"{instrument.rows:,}",
                        str(instrument.permutations),
                        f"{uniform:.2g}",
                        f"{share:.1%} [{interval.low:.1%}, {interval.high:.1%}]",
                        "yes" if ALLOWED[0] <= share <= ALLOWED[1] else "no",
                    )
                )
                results.append(
                    {
                        "instrument": instrument.name,
                        "estimator": instrument.estimator.describe(),
                        "law": law,
                        "rows": instrument.rows,
                        "permutations": instrument.permutations,
                        "ks_p_value": uniform,
                        "false_positives": positives,
                        "p_values": values,
                    }
                )
    header = ("instrument", "marginals", "N", "permutations", "KS against uniform, p", "p ≤ 0.05 [95 %]", "2 % to 8 %")
    note = (
        f"{WIDTH} + {WIDTH} columns, seeds 0 to {arguments.runs - 1}; "
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
