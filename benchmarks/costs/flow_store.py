"""Can a store larger than memory be traced? A memory-mapped store of 20 GB, within 6 GiB.

    python benchmarks/costs/flow_store.py --folder /large/disk --out docs/tables/flow_store

Layers on a grid of 4 x 4 positions, of 512, 256 and 128 channels (8,192, 4,096 and 2,048 features), 10,000 samples, in
as many phases as fill the size. The features are made from a latent of 64 dimensions and noise, not by a network. Two
traces are run, each in its own process: fractions recovered and CKA of all phases on the first principal components,
and also label information of some phases from all features. The kernel limits each process: more private memory is
refused (RLIMIT_DATA), which ends the run. Mapped file pages do not count, because the kernel can reclaim them; they are
reported separately. Linux only. If the disk has less space, the largest store that fits is made, and the table says so.
The store is deleted afterwards unless ``--keep`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from process_watch import GIB, Watched, watched

import mikit
from mikit.bench.reports import markdown_table
from mikit.core.provenance import library_versions

WIDTHS = {"stage2": 2048, "stage3": 4096, "stage4": 8192}
LATENT, LIMIT, SPARE = 64, 6.0, 5 * 10**9

TRACE = """
import sys, mikit
teacher, student, out, reduce, jobs, phases = sys.argv[1:7]
stores = [mikit.ActivationStore.open(place) for place in (teacher, student)]
labels = None
if phases != "all":
    import numpy as np
    labels = np.load(teacher + "-labels.npy")
flow = mikit.trace(
    *stores, labels=labels, reduce=int(reduce), jobs=int(jobs), out=out,
    phases=None if phases == "all" else [int(phase) for phase in phases.split(",")],
)
print(flow)
"""


def make_store(place: Path, network: str, phases: int, rows: int, seed: int) -> tuple[mikit.ActivationStore, int]:
    """Write a network of three wide layers and return it with the bytes of its activations."""
    latent = np.random.default_rng(0).standard_normal((rows, LATENT), dtype=np.float32)
    latent += 2.0 * np.random.default_rng(1).standard_normal((10, LATENT), dtype=np.float32)[np.arange(rows) % 10]
    noise = np.random.default_rng([seed, 2]).standard_normal((rows, max(WIDTHS.values())), dtype=np.float32)
    store = mikit.ActivationStore(place, network=network, seed=seed)
    for phase in range(phases):
        learned = (phase + 1) / phases
        batch = {}
        for layer, (name, width) in enumerate(WIDTHS.items()):
            common = np.random.default_rng([layer, 3]).standard_normal((LATENT, width), dtype=np.float32)
            own = np.random.default_rng([seed, layer, phase]).standard_normal((LATENT, width), dtype=np.float32)
            falling = (np.arange(1, LATENT + 1) ** -0.5).astype(np.float32)[:, None]
            mixed = latent @ (falling * (learned * common + (1 - learned) * own))
            mixed += 0.5 * np.roll(noise, phase, axis=0)[:, :width]
            batch[name] = mixed
        store.append(batch, ids=np.arange(rows), phase=phase, readouts="grid4")
    return store, 4 * rows * sum(WIDTHS.values()) * phases


def traced(folder: Path, given: argparse.Namespace, phases: str) -> Watched:
    """Trace the stores in a process with limited private memory."""
    out = folder / f"run-{'all' if phases == 'all' else 'labels'}"
    shutil.rmtree(out, ignore_errors=True)
    arguments = [folder / "teacher", folder / "student", out, given.reduce, given.jobs, phases]
    cost = watched([sys.executable, "-c", TRACE, *map(str, arguments)], data_limit=int(LIMIT * GIB))
    print(cost.output, json.dumps(cost.figures(), indent=1), flush=True)
    if cost.returncode:
        raise SystemExit(f"The trace of {phases} phases ended with exit code {cost.returncode}.")
    return cost


def main() -> None:
    """Make the store, trace it twice, print and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20.0, help="10^9 bytes of activations")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--reduce", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--labelled", default="0", help="phases of the trace with labels, with commas between them")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md as well.")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    phase = 4 * given.rows * sum(WIDTHS.values())
    there = (given.folder / "student").exists()
    room = given.gigabytes * 1e9 if there else min(given.gigabytes * 1e9, shutil.disk_usage(given.folder).free - SPARE)
    phases = max(int(np.ceil(room / phase)) - 1, 1)  # the teacher's one phase beside them
    start = time.perf_counter()
    if not there:
        teacher, _ = make_store(given.folder / "teacher", "teacher", 1, given.rows, 1)
        np.save(given.folder / "teacher-labels.npy", teacher.ids(0) % 10)
        make_store(given.folder / "student", "student", phases, given.rows, 2)
    written = time.perf_counter() - start
    content: dict[str, Any] = {
        "asked_gigabytes": given.gigabytes,
        "gigabytes": phase * (phases + 1) / 1e9,
        "rows": given.rows,
        "widths": WIDTHS,
        "phases": phases,
        "reduce": given.reduce,
        "jobs": given.jobs,
        "cores": os.cpu_count(),
        "seconds_to_write": round(written, 1),
        "limit_gib": LIMIT,
        "runs": {},
        "versions": library_versions(),
    }
    labelled = f"{len(given.labelled.split(','))} phase(s), with labels"
    for name, asked in (("all phases, shares and CKA", "all"), (labelled, given.labelled)):
        content["runs"][name] = traced(given.folder, given, asked).figures()
        print(table(content), flush=True)
        if given.out is not None:
            given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
            given.out.with_suffix(".md").write_text(table(content))
    if not given.keep:
        shutil.rmtree(given.folder)


def table(content: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    header = ("trace", "anonymous memory, peak", f"bar {content['limit_gib']:g} GiB", "file pages, peak", "wall time",
              "processor time")  # fmt: skip
    rows = [
        (
            name,
            f"{one['peak_anonymous_gib']:.2f} GiB",
            "held" if one["peak_anonymous_gib"] <= content["limit_gib"] else "**missed**",
            f"{one['peak_file_gib']:.2f} GiB",
            f"{one['wall_seconds'] / 60:.1f} min",
            f"{one['cpu_seconds']:,.0f} s",
        )
        for name, one in content["runs"].items()
    ]
    less = content["gigabytes"] < 0.99 * content["asked_gigabytes"]
    limited = f" ({content['asked_gigabytes']:g} were asked for, and the disk has no room for them)" if less else ""
    widths = ", ".join(f"{width:,}" for width in content["widths"].values())
    versions = ", ".join(f"{library} {version}" for library, version in content["versions"].items())
    return (
        f"{markdown_table(header, rows)}\n\nStore of {content['gigabytes']:.1f} GB{limited}: layers of {widths} "
        f"columns, float32, {content['rows']:,} rows, {content['phases']} phases of a student and one of a teacher; "
        f"{content['reduce']} principal components, {content['jobs']} workers on {content['cores']} cores, beside "
        f"other work. Anonymous memory is sampled ten times a second and limited by the kernel; {versions}.\n"
    )


if __name__ == "__main__":
    main()
