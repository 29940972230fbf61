"""Cost of a trace: wall time, processor time and peak memory, printed as JSON.

The problem is a teacher of 12 layers and a student of 12 layers at 10 phases, 10,000 rows, width 256, 10 classes, at
three noise levels and five folds. Layers are random rectified maps of a common input with labels in it; the stores are
temporary. Making the problem is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import mikit


def make_store(
    path: Path, network: str, layers: int, phases: int, source: np.ndarray, width: int, seed: int
) -> mikit.ActivationStore:
    """Write a network whose layer ``l`` at phase ``p`` mixes a common map of the layer before with a random one."""
    store = mikit.ActivationStore(path, network=network, seed=seed)
    ids = np.arange(source.shape[0])
    for phase in range(phases):
        learned = (phase + 1) / phases
        rows, batch = source, {}
        for layer in range(layers):
            shared = np.random.default_rng(layer).standard_normal((rows.shape[1], width), dtype=np.float32)
            own = np.random.default_rng([seed, layer, 1]).standard_normal((rows.shape[1], width), dtype=np.float32)
            rows = np.maximum(rows @ (learned * shared + (1 - learned) * own), 0)
            rows /= rows.std()
            batch[f"layer{layer:02d}"] = rows
        store.append(batch, ids=ids, phase=phase, readouts="pool")
    return store


def main() -> None:
    """Make the problem, trace it, print the cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--phases", type=int, default=10)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--probe", choices=("logistic", "lda"), default="logistic")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md as well.")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = np.arange(given.rows) % 10
    source = rng.standard_normal((given.rows, 64), dtype=np.float32)
    source += 0.6 * rng.standard_normal((10, 64), dtype=np.float32)[labels]
    with tempfile.TemporaryDirectory() as folder:
        teacher = make_store(Path(folder) / "teacher", "teacher", given.layers, 1, source, given.width, 1)
        student = make_store(Path(folder) / "student", "student", given.layers, given.phases, source, given.width, 2)
        wall, cpu = time.perf_counter(), time.process_time()
        flow = mikit.trace(teacher, student, labels=labels, probe=given.probe, jobs=given.jobs, progress=given.progress)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    frame = flow.frame
    content = {
        "layers": given.layers,
        "phases": given.phases,
        "rows": given.rows,
        "width": given.width,
        "noise_levels": len(flow.settings["noise"]),
        "folds": flow.settings["folds"],
        "probe": given.probe,
        "jobs": given.jobs,
        "cores": os.cpu_count(),
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "table_rows": len(frame),
        "verdicts": frame["verdict"].value_counts().to_dict(),
        "versions": flow.settings["versions"],
    }
    print(json.dumps(content, indent=2))
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(table(content))


def table(content: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    versions = ", ".join(f"{library} {version}" for library, version in content["versions"].items())
    return (
        "| wall time | processor time | peak memory | rows of the table | probe | jobs | cores |\n"
        "|---|---|---|---|---|---|---|\n"
        f"| {content['wall_seconds']:.0f} s | {content['cpu_seconds']:.0f} s | {content['peak_memory_gib']:.2f} GiB "
        f"| {content['table_rows']:,} | {content['probe']} | {content['jobs']} | {content['cores']} |\n\n"
        f"One run, on a shared virtual machine; {versions}.\n"
    )


if __name__ == "__main__":
    main()
