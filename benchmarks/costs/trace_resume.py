"""Does a trace that was killed and resumed equal a trace that was never killed?

    python benchmarks/costs/trace_resume.py --runs 20 --out docs/tables/trace_resume

A process traces two students of three layers at five phases into a folder, with labels and two noise levels. It is
killed (SIGKILL) at a random moment and restarted until it finishes: once, twice or three times in turn. After each kill
every file in the folder is read. At the end the table is compared exactly with that of a trace without a folder, and
the measurements that were started more than once are counted. Writes a JSON file and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import mikit
from mikit.bench.reports import markdown_table
from mikit.core.provenance import library_versions
from mikit.flow.tracing.records import Records

NOISE = (0.1, 0.3)


def make_stores(folder: Path, rows: int) -> tuple[mikit.ActivationStore, list[mikit.ActivationStore]]:
    """Write a teacher and two students whose layers come closer to a common source with every phase."""
    labels, ids = np.arange(rows) % 3, np.arange(rows)
    source = np.random.default_rng(0).standard_normal((rows, 24)) + labels[:, None]

    def layers(seed: int, phase: int, widths: tuple[int, ...]) -> dict[str, np.ndarray]:
        own = np.random.default_rng([seed, phase])
        return {
            f"layer{i}": np.tanh(source[:, :width]) + own.standard_normal((rows, width)) / (1 + phase)
            for i, width in enumerate(widths)
        }

    teacher = mikit.ActivationStore(folder / "teacher", network="teacher")
    teacher.append(layers(9, 5, (24, 16, 8)), ids=ids, phase=5)
    students = []
    for seed in (0, 1):
        student = mikit.ActivationStore(folder / f"student{seed}", network="student", seed=seed)
        for phase in range(5):
            student.append(layers(seed, phase, (16, 8, 4)), ids=ids, phase=phase)
        students.append(student)
    return teacher, students


def traced(folder: Path, rows: int, out: Path | None, begun: Path | None = None) -> mikit.Flow:
    """Trace; with ``begun``, add the name of every measurement to that file before it is made."""
    fetch = Records.fetch

    def noted(self: Records, key: str, measure: Any) -> Any:
        def noted() -> Any:
            with open(begun, "a") as file:  # type: ignore[arg-type]
                file.write(key + "\n")
            return measure()

        return fetch(self, key, noted)

    if begun is not None:
        Records.fetch = noted  # type: ignore[method-assign]
    teacher = mikit.ActivationStore.open(folder / "teacher")
    students = [mikit.ActivationStore.open(folder / f"student{seed}") for seed in (0, 1)]
    return mikit.trace(teacher, students, labels=np.arange(rows) % 3, noise=NOISE, probe="lda", out=out)


def begin(folder: Path, rows: int, out: Path, begun: Path) -> int:
    """Trace in a forked process, so that nothing is imported again."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            traced(folder, rows, out, begun)
            status = 0
        finally:
            os._exit(status)
    return child


def unreadable(out: Path) -> int:
    """Return how many files of the folder cannot be read."""
    failed = 0
    if (out / "records").is_dir():
        records = Records(out / "records")
        for entry in (out / "records").glob("*.npz"):
            try:
                records.stored(entry.stem)
            except mikit.InputError:
                failed += 1
    try:
        if (out / "trace.json").exists():
            json.loads((out / "trace.json").read_text())
        if (out / "flow.json").exists():
            mikit.Flow.load(out)
    except (ValueError, mikit.InputError):
        failed += 1
    return failed


def one_run(
    number: int, folder: Path, rows: int, seconds: float, expected: mikit.Flow, rng: np.random.Generator
) -> dict[str, Any]:
    """Kill, go on, and compare."""
    out, begun = folder / f"run{number}", folder / f"begun{number}"
    begun.touch()
    planned, kills, failed, moments, kept = 1 + number % 3, 0, 0, [], 0
    for _ in range(planned):
        patience = float(rng.uniform(0, seconds))
        child = begin(folder, rows, out, begun)
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        moments.append(round(patience, 3))
        failed += unreadable(out)
        kept = len(list((out / "records").glob("*.npz"))) if (out / "records").is_dir() else 0
    _, status = os.waitpid(begin(folder, rows, out, begun), 0)
    if status != 0:
        raise RuntimeError(f"Run {number} did not end well after it was killed.")
    names = begun.read_text().split()
    return {
        "run": number,
        "kills": kills,
        "killed_after_seconds": moments,
        "recorded": kept,
        "measurements": len(set(names)),
        "repeated": len(names) - len(set(names)),
        "unreadable": failed + unreadable(out),
        "identical": mikit.Flow.load(out).frame.equals(expected.frame),
    }


def main() -> None:
    """Kill and go on, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="fewer rows")
    parser.add_argument("--folder", type=Path, help="where the stores and runs go; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=Path("trace_resume"))
    given = parser.parse_args()
    rows, rng = 300 if given.small else 1500, np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if given.folder is None else given.folder
        expected = traced(folder, rows, None) if make_stores(folder, rows) else None
        assert expected is not None
        start = time.perf_counter()
        child = begin(folder, rows, folder / "whole", folder / "begun")
        os.waitpid(child, 0)
        seconds = time.perf_counter() - start
        runs = [one_run(number, folder, rows, seconds, expected, rng) for number in range(given.runs)]
    content = {"runs": runs, "seconds": seconds, "rows": rows, "seed": given.seed, "versions": library_versions()}
    text = table(content)
    print(text)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(text)


def table(content: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    runs = content["runs"]
    header = ("run", "killed after, s", "records left", "of", "measured twice", "unreadable", "table")
    rows = [
        (
            str(run["run"]),
            ", ".join(f"{moment:.2f}" for moment in run["killed_after_seconds"]),
            str(run["recorded"]),
            str(run["measurements"]),
            str(run["repeated"]),
            str(run["unreadable"]),
            "identical" if run["identical"] else "differs",
        )
        for run in runs
    ]
    same, kills = sum(run["identical"] for run in runs), sum(run["kills"] for run in runs)
    most = max((run["repeated"] / max(run["kills"], 1) for run in runs), default=0)
    versions = ", ".join(f"{library} {version}" for library, version in content["versions"].items())
    return (
        f"{same} of {len(runs)} tables identical after {kills} kills; at most {most:.0f} measurement a kill was made "
        f"twice, {sum(run['unreadable'] for run in runs)} files were unreadable. A trace without kills took "
        f"{content['seconds']:.1f} s.\n\n{markdown_table(header, rows)}\n\n"
        f"{content['rows']:,} rows, seed {content['seed']}, one worker; {versions}.\n"
    )


if __name__ == "__main__":
    main()
