"""Cost of tracing a real training run: wall time, processor time and memory of `mikit trace` with its defaults.

    python benchmarks/costs/flow_scale.py --out docs/tables/flow_scale

A ResNet-18 teaches a ResNet-8 on 32 x 32 images: 10 layers each, pooled, and the logits; 30 phases of each; 5,000 probe
images. Nothing is trained here. The stores contain features of the networks' widths: rectified random maps of a common
signal of each class and of individual noise. From phase to phase the student shares more with the teacher and separates
the classes better. The cost of a trace depends on widths, number of samples and how hard the probes are to fit, not on
the origin of the features. Making the stores is not timed. With ``--folder`` the stores and the run are kept: a call
with the same folder resumes from the records of the previous call, and its time is then not that of the whole trace.
With fewer ``--phases`` the time of all 30 is extrapolated, and marked as such.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from process_watch import Watched, watched

import mikit
from mikit.bench.reports import markdown_table
from mikit.core.provenance import library_versions

WIDTHS = {
    "ResNet-18": (64, 64, 64, 128, 128, 256, 256, 512, 512),
    "ResNet-8": (16, 16, 16, 16, 32, 32, 64, 64, 64),
}
SHARED, OWN, CODE = 48, 48, 24
PHASES, MINUTES, GIB = 30, 20.0, 4.0


def make_store(
    path: Path, network: str, images: tuple[np.ndarray, np.ndarray], classes: int, phases: int, seed: int
) -> mikit.ActivationStore:
    """Write one network: every layer at every phase.

    Args:
        path: The store's folder.
        network: Name, which determines the widths.
        images: What each image is: its latent ``(n, SHARED)`` and its class ``(n,)``.
        classes: Number of classes, the width of the logits.
        phases: Number of phases; the last one is fully trained.
        seed: Of what the network has for itself.
    """
    latent, labels = images
    store = mikit.ActivationStore(path, network=network, seed=seed)
    ids = np.arange(latent.shape[0])
    code = np.random.default_rng(7).standard_normal((classes, CODE)).astype(np.float32)[labels]
    code += 2.0 * np.random.default_rng(8).standard_normal(code.shape, dtype=np.float32)
    private = np.random.default_rng([seed, 9]).standard_normal((latent.shape[0], OWN), dtype=np.float32)
    widths = WIDTHS[network]
    for phase in range(phases):
        learned = phase / max(phases - 1, 1)
        batch = {}
        for layer, width in enumerate((*widths, classes)):
            depth = (layer + 1) / (len(widths) + 1)
            parts = [(1.0 - 0.6 * depth * learned) * latent, 0.1 * private, (0.2 + depth * learned) * code]
            rows = np.concatenate(parts, axis=1)
            common = np.random.default_rng([layer, 1]).standard_normal((rows.shape[1], 512), dtype=np.float32)
            own = np.random.default_rng([seed, layer, 2]).standard_normal((rows.shape[1], 512), dtype=np.float32)
            mixed = rows @ (learned * common + (1.0 - learned) * own)[:, :width] / np.sqrt(rows.shape[1])
            last = layer == len(widths)
            batch["fc" if last else f"block{layer}"] = mixed if last else np.maximum(mixed, 0)
        store.append(batch, ids=ids, phase=phase, readouts="pool")
    return store


def make_stores(folder: Path, given: argparse.Namespace) -> tuple[Path, Path]:
    """Write both networks where they are not there yet, with labels."""
    labels = np.random.default_rng(0).permutation(given.rows) % given.classes
    spectrum = (np.arange(1, SHARED + 1) ** -0.5).astype(np.float32)
    latent = np.random.default_rng(1).standard_normal((given.rows, SHARED), dtype=np.float32) * 3 * spectrum
    places = []
    for seed, network in enumerate(WIDTHS):
        place = folder / network
        if not place.exists():
            store = make_store(place, network, (latent, labels), given.classes, given.phases, seed)
            store.set_labels(np.arange(given.rows), labels)
        places.append(place)
    return places[0], places[1]


def main() -> None:
    """Make the stores, trace them as a user would, print and write what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--phases", type=int, default=PHASES)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--probe", choices=("logistic", "lda"), default="logistic")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--folder", type=Path, help="Keep the stores and the run here.")
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md as well.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        teacher, student = make_stores(folder, given)
        run = folder / f"run-{given.probe}"
        resumed = run.exists()
        command = [sys.executable, "-c", "from mikit.cli import main; main()"]
        command += ["trace", str(teacher), str(student), "--out", str(run)]
        command += ["--jobs", str(given.jobs), "--probe", given.probe]
        cost = watched([*command, "--processes"] if given.processes else command)
        print(json.dumps(cost.figures()), flush=True)
        if cost.returncode:
            raise SystemExit(cost.output)
        frame = mikit.Flow.load(run).frame
    content: dict[str, Any] = {
        **{name: getattr(given, name) for name in ("rows", "phases", "classes", "probe", "jobs", "processes")},
        "layers": [len(widths) + 1 for widths in WIDTHS.values()],
        "resumed": resumed,
        "cores": os.cpu_count(),
        "load": [round(one, 1) for one in os.getloadavg()],
        **cost.figures(),
        "table_rows": len(frame),
        "pairs": int(frame[frame["quantity"] == "cka"].shape[0]),
        "label_rows": int(frame[frame["quantity"] == "label_information"].shape[0]),
        "verdicts": frame["verdict"].value_counts().to_dict(),
        "versions": library_versions(),
    }
    print(json.dumps(content, indent=1))
    print(summary_of(frame))
    print(table(content, cost))
    if given.out is not None:
        given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(table(content, cost))


def summary_of(frame: Any) -> str:
    """Return what the curves look like, so that a reader can see that the features behave like a network's."""
    information = frame[(frame["quantity"] == "label_information") & (frame["role"] == "student")]
    shares = frame[(frame["quantity"] == "recovered_share") & (frame["noise"] == 0.3)]
    same = shares[shares["layer_index"] == shares["teacher_layer_index"]]
    lines = []
    for name, rows in (("label information, nats", information), ("share of the same layer", same)):
        middle = rows.pivot_table(index="phase", columns="layer", values="value", sort=False).round(2)
        lines.append(f"{name}\n{middle.iloc[[0, len(middle) // 2, -1]].to_string()}")
    return "\n".join(lines)


def table(content: dict[str, Any], cost: Watched) -> str:
    """Return the figures as Markdown."""
    whole = PHASES / content["phases"]
    minutes, idle = whole * cost.wall_seconds / 60, whole * cost.cpu_seconds / content["jobs"] / 60
    note = "" if whole == 1 else f", {content['phases']} phases times {whole:.3g}"
    load = content["load"][1]
    header = ("", "measured", "bar", "")
    rows = [
        (f"processor time / workers, the estimate for an idle machine{note}", f"{idle:.1f} min", f"{MINUTES:g} min",
         "held" if idle <= MINUTES else "**missed**"),
        (f"wall time{note}", f"{minutes:.1f} min", f"{MINUTES:g} min",
         f"not judged: the load was {load:g}" if load > content["cores"] else
         "held" if minutes <= MINUTES else "**missed**"),
        ("processor time", f"{cost.cpu_seconds:,.0f} s", "", ""),
        ("peak resident memory of all processes", f"{cost.peak_resident_gib:.2f} GiB", f"{GIB:g} GiB",
         "held" if cost.peak_resident_gib <= GIB else "**missed**"),
    ]  # fmt: skip
    versions = ", ".join(f"{library} {version}" for library, version in content["versions"].items())
    again = " This run went on from records of an earlier one." if content["resumed"] else ""
    return (
        f"{markdown_table(header, rows)}\n\n`mikit trace` on {content['jobs']} workers"
        f"{' (processes)' if content['processes'] else ''}, {content['probe']} probe: {content['pairs']:,} pairs of "
        f"layers at 3 noise levels, {content['label_rows']} label informations of {content['classes']} classes, "
        f"{content['rows']:,} rows, {content['phases']} phases.{again} One run on {content['cores']} cores, at the end "
        f"of which the system's load was {load:g}; {versions}.\n"
    )


if __name__ == "__main__":
    main()
