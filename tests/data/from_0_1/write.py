"""Write the files beside this script with mikit 0.1.0, whose tree must come first in PYTHONPATH.

PYTHONPATH=MIKIT_0_1_0 python tests/data/from_0_1/write.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

import mikit
from mikit.cli import app

HERE = Path(__file__).parent
ROWS = 60


def write_store(name: str, width: int, noise: float, latents: np.ndarray) -> mikit.ActivationStore:
    """Write a store of two layers at two phases."""
    rng = np.random.default_rng(width)
    store = mikit.ActivationStore(HERE / name, network=name, seed=0, data_hash="rows of write.py")
    for phase in (0, 3):
        batch = {}
        for layer in ("early", "late"):
            drawn = latents @ rng.standard_normal((2, width)) + noise * rng.standard_normal((ROWS, width))
            batch[layer] = drawn.astype(np.float32)
        store.append(batch, ids=range(ROWS), phase=phase)
        store.note(phase, accuracy=0.5 + 0.1 * phase)
    return store


def main() -> None:
    """Write a store of each network, a trace, a measurement and the records of two benchmarks."""
    assert mikit.__version__ == "0.1.0"
    latents = np.random.default_rng(0).standard_normal((ROWS, 2))
    labels = (latents[:, 0] > 0).astype(np.int64)
    teacher, student = write_store("teacher", 3, 0.1, latents), write_store("student", 2, 0.5, latents)
    flow = mikit.trace(teacher, [student], labels=labels, noise=(0.3,), folds=3, out=HERE / "trace")
    measurement = mikit.measure(student.read("late", 3), teacher.read("late", 3), "gaussian")
    (HERE / "measurement.json").write_text(measurement.to_json() + "\n")
    runner = CliRunner()
    asked = [
        "bench",
        "bmi",
        "--task",
        "multinormal-dense-2-2-0.5",
        "--estimator",
        "gaussian",
        "--n",
        "200",
        "--seeds",
        "0",
        "--jobs",
        "1",
    ]
    for verb in (
        [*asked, "--out", str(HERE / "bench_records"), "--json", str(HERE / "bench_accuracy.json")],
        ["bench", "speed", "--quick", "--case", "hsic", "--repeats", "1", "--json", str(HERE / "bench_speed.json")],
    ):
        result = runner.invoke(app, verb)
        assert result.exit_code == 0, result.output
    expected = {
        "late at phase 3, first row": teacher.read("late", 3)[0].tolist(),
        "rows of the trace": len(flow.frame),
        "sum of the values": float(flow.frame["value"].sum()),
        "columns": sorted(flow.frame.columns),
        "measurement": measurement.value,
        "verdict": measurement.verdict,
    }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
