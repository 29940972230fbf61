"""Cost of recording relative to training: processor time, one thread, medians of interleaved runs, extrapolated.

A training step, plain or of a ResNet-8 that learns from a ResNet-18, is timed on one batch; a recording, by
mikit.Recorder with labels, on some of the probe images. Forward passes grow with the number of images, so both are
multiplied: to an epoch of 50,000 images, and to 5,000 probe images. The other cost of a phase, mainly writing, is timed
with activations of 5,000 samples of the same widths and added. Processor time excludes waiting for the disk; the wall
time of writing is reported as well.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from training_step import Task, asked, in_turns, keep, resnet18

import mikit
from mikit.models import ResNet8

EPOCH, PROBE, PHASES, BAR = 50_000, 5_000, 30, 0.10
RESNET8 = ("stem.0", "stem", "stage1.body", "stage1", "stage2.body", "stage2", "stage3.body", "stage3", "pool", "fc")
RESNET18 = ("2", "3", "4", "5", "6", "7", "8", "9", "10", "13")
WIDTHS = {
    "ResNet-8": (16, 16, 16, 16, 32, 32, 64, 64, 64, 100),
    "ResNet-18": (64, 64, 64, 128, 128, 256, 256, 512, 512, 100),
}


def step_of(student: nn.Module, teacher: nn.Module | None, rows: int, classes: int) -> Callable[[], None]:
    """Return a training step: from labels, or with VID between the last feature vectors as well."""
    images, labels = torch.randn(rows, 3, 32, 32), torch.randint(classes, (rows,))
    if teacher is None:
        plain = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)

        def alone() -> None:
            student.train()
            plain.zero_grad()
            cross_entropy(student(images), labels).backward()
            plain.step()

        return alone
    pairs = mikit.LayerPairs(student, teacher, {("pool", "12"): mikit.VID}, example=images)
    optimizer = torch.optim.SGD(pairs.param_groups(), lr=0.01, momentum=0.9)

    def taught() -> None:
        student.train()
        optimizer.zero_grad()
        logits, added, _ = pairs(images)
        (cross_entropy(logits, labels) + added).backward()
        optimizer.step()

    return taught


def recording_of(network: nn.Module, layers: tuple[str, ...], rows: int, classes: int, place: Path) -> mikit.Recorder:
    """Return a recorder of 10 layers."""
    return mikit.Recorder(
        mikit.ActivationStore(place),
        network,
        torch.randn(rows, 3, 32, 32),
        ids=range(rows),
        layers=layers,
        schedule=range(1000),
        labels=torch.randint(classes, (rows,)),
    )


def writing_of(widths: tuple[int, ...], place: Path) -> Callable[[int], None]:
    """Return a task that writes the activations of one phase of 5,000 images."""
    rows = {f"layer{k}": torch.randn(PROBE, width) for k, width in enumerate(widths)}
    store = mikit.ActivationStore(place)
    return lambda phase: store.append(rows, ids=range(PROBE), phase=phase)


def timed(given: argparse.Namespace, folder: Path) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return processor seconds of all parts, in turns, and the median wall seconds of the writing."""
    student, teacher = ResNet8(channels=3, classes=given.classes), resnet18(given.classes, small_images=True)
    beside = resnet18(given.classes, small_images=True).eval()
    steps = {
        "step ResNet-8": step_of(ResNet8(channels=3, classes=given.classes), None, given.rows, given.classes),
        "step ResNet-18": step_of(teacher, None, given.rows, given.classes),
        "step distilled": step_of(student, beside, given.rows, given.classes),
    }
    recorders = {
        "record ResNet-8": recording_of(student, RESNET8, given.probe, given.classes, folder / "a"),
        "record ResNet-18": recording_of(teacher, RESNET18, given.probe, given.classes, folder / "b"),
    }
    writers = {f"write {name}": writing_of(widths, folder / f"w{name}") for name, widths in WIDTHS.items()}
    few = {name: (widths, mikit.ActivationStore(folder / f"f{name}")) for name, widths in WIDTHS.items()}
    wall: dict[str, list[float]] = {}

    def written(name: str, seed: int) -> None:
        start = time.perf_counter()
        writers[name](seed)
        wall.setdefault(name, []).append(time.perf_counter() - start)

    def tasks(seed: int) -> Iterator[Task]:
        yield from steps.items()
        for name, recorder in recorders.items():
            yield name, lambda recorder=recorder: recorder(seed)
        for name in writers:
            yield name, lambda name=name: written(name, seed)
        for name, (widths, store) in few.items():
            part = {f"layer{k}": torch.randn(given.probe, width) for k, width in enumerate(widths)}
            yield (
                f"write part {name}",
                lambda part=part, store=store: store.append(part, ids=range(given.probe), phase=seed),
            )

    seconds = in_turns(tasks, given.repetitions)
    return seconds, {name: statistics.median(values[1:]) for name, values in wall.items()}


def costs(seconds: dict[str, list[float]], given: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Return, by kind of run, the seconds of an epoch and of a recording."""
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    phase = {
        name: (middle[f"record {name}"] - middle[f"write part {name}"]) * PROBE / given.probe + middle[f"write {name}"]
        for name in WIDTHS
    }
    epoch = {name.removeprefix("step "): middle[name] * EPOCH / given.rows for name in middle if name[:4] == "step"}
    return {
        "ResNet-18 alone (the teacher)": (epoch["ResNet-18"], phase["ResNet-18"]),
        "ResNet-8 alone": (epoch["ResNet-8"], phase["ResNet-8"]),
        "ResNet-8 that learns from a ResNet-18": (epoch["distilled"], phase["ResNet-8"]),
    }


def table(found: dict[str, tuple[float, float]], wall: dict[str, float], given: argparse.Namespace) -> str:
    """Return the results as a Markdown page part."""
    lines = [
        f"Processor seconds, one thread, float32, 32 × 32 images, {given.classes} classes, batches of {given.rows}; "
        f"medians of {given.repetitions} rounds in turns. An epoch of {EPOCH:,} images is extrapolated from one step, "
        f"a recording of {PROBE:,} images at 10 pooled layers from {given.probe} images and from writing {PROBE:,} "
        f"rows. Share of training time for {PHASES} phases; the bar is {BAR:.0%}.",
        "",
        "| training | an epoch, s | a phase, s | phase / epoch | 30 epochs | 100 epochs | 200 epochs | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (epoch, phase) in found.items():
        shares = [PHASES * phase / (epochs * epoch) for epochs in (30, 100, 200)]
        held = "held" if max(shares) <= BAR else "**missed**"
        cells = " | ".join(f"{value:.2%}" for value in (phase / epoch, *shares))
        lines.append(f"| {name} | {epoch:.0f} | {phase:.1f} | {cells} | {held} |")
    waits = ", ".join(f"{1e3 * value:.0f} ms for {name.removeprefix('write ')}" for name, value in wall.items())
    return "\n".join([*lines, "", f"Writing a phase takes {waits}, by the clock, on a machine with other work."]) + "\n"


def main() -> None:
    """Time, print the table and write it."""
    given = asked(__doc__, rows=64, classes=100, probe=250, repetitions=3)
    with tempfile.TemporaryDirectory() as folder:
        seconds, wall = timed(given, Path(folder))
    found = costs(seconds, given)
    keep(given, table(found, wall, given), seconds)
    over = [name for name, (epoch, phase) in found.items() if phase / epoch > BAR]
    print(f"Above the bar with a phase after every epoch: {', '.join(over) or 'none'}.")


if __name__ == "__main__":
    main()
