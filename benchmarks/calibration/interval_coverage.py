"""Coverage of the 95 % interval on Gaussian pairs with known mutual information and on independent data.

    python benchmarks/calibration/interval_coverage.py --seeds 100 --out docs/tables/interval_coverage

Writes a JSON file with every value and a Markdown table. Each variable has five features, correlated one to one, so the
mutual information is known; every seed draws new data.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

import mikit
from mikit.core.provenance import library_versions

WIDTH = 5


def pair(n: int, nats: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a Gaussian pair whose mutual information is ``nats``."""
    rho = math.sqrt(1 - math.exp(-2 * nats / WIDTH))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, WIDTH))
    return x, rho * x + math.sqrt(1 - rho**2) * rng.standard_normal((n, WIDTH))


def main() -> None:
    """Run every seed, print a table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--estimators", nargs="+", default=["gaussian", "auto"])
    parser.add_argument("--nats", nargs="+", type=float, default=[2.0, 0.0])
    parser.add_argument("--out", type=Path, default=Path("interval_coverage"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| truth, nats | estimator | mean | SD over seeds | mean reported SE | largest error "
        "| intervals that contain the truth | information detected |",
        "|---|---|---|---|---|---|---|---|",
    ]
    results = []
    for nats in arguments.nats:
        for name in arguments.estimators:
            runs = []
            for seed in track(range(arguments.seeds), description=f"{name}, {nats} nats"):
                m = mikit.measure(*pair(arguments.rows, nats, seed), name, seed=seed)
                claimed = m.finding.startswith("Information was detected")
                runs.append(
                    {
                        "seed": seed,
                        "value": m.value,
                        "interval": m.interval,
                        "standard_error": m.standard_error,
                        "estimator": m.estimator,
                        "claimed": claimed,
                        "verdict": m.verdict,
                    }
                )
            values = [run["value"] for run in runs]
            covered = sum(run["interval"][0] <= nats <= run["interval"][1] for run in runs)
            lines.append(
                f"| {nats:g} | `{name}` | {statistics.mean(values):z.4f} | {statistics.stdev(values):.4f} "
                f"| {statistics.mean(run['standard_error'] for run in runs):.4f} "
                f"| {max(abs(value - nats) for value in values):.4f} | {covered} of {len(runs)} "
                f"| {sum(run['claimed'] for run in runs)} of {len(runs)} |"
            )
            results.append({"nats": nats, "estimator": name, "rows": arguments.rows, "runs": runs})
    versions = library_versions()
    note = (
        f"N = {arguments.rows:,}, {WIDTH} + {WIDTH} features, seeds 0 to {arguments.seeds - 1}; "
        + ", ".join(f"{library} {version}" for library, version in versions.items())
        + "."
    )
    print("\n".join([*lines, "", note]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps({"versions": versions, "results": results}, indent=1))
    arguments.out.with_suffix(".md").write_text("\n".join([*lines, "", note, ""]))


if __name__ == "__main__":
    main()
