"""Cost of KD²M relative to a training step: processor time, one thread, medians of interleaved runs.

The step is that of a ResNet-18 on 32 x 32 images: forward, cross-entropy, backward, SGD. It is timed with the stem of
the released code (7 x 7, stride 2, pooling), made for larger images, and with the usual one for small images (3 x 3).
The loss is timed forward and backward to the student's features, for every metric and form, with full queues of 32
samples per class. Features are random and rectified, labels random; one seed for each repetition.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from training_step import Task, asked, in_turns, keep, milliseconds, share, there_and_back, training_step

import mikit

METRICS = (
    "mmd",
    "energy",
    "sliced_wasserstein",
    "gaussian_wasserstein",
    "gaussian_wasserstein, diagonal",
    "gaussian_kl",
    "gaussian_kl, diagonal",
    "sinkhorn_divergence",
    "wasserstein",
)
FORMS = (None, "class", "joint")
BAR = 0.25


def metric_named(name: str) -> mikit.Estimator:
    """Return the metric of a row of the table."""
    if name == "gaussian_wasserstein, diagonal":
        return mikit.GaussianWasserstein(diagonal=True)
    if name == "gaussian_kl, diagonal":
        return mikit.GaussianKL(diagonal=True)
    return mikit.estimators.estimator_named(name)()


def features(rows: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a student's and a teacher's rectified features, which share their classes, and the labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=g)
    means = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))[labels]
    student, teacher = (torch.relu(means + torch.randn(rows, width, generator=g)) for _ in range(2))
    return student, teacher, labels


def built(name: str, form: str | None, rows: int, width: int, classes: int) -> mikit.KD2M:
    """Return the loss, its queue full."""
    student, teacher, labels = features(rows, width, classes, seed=10_000)
    kd = mikit.KD2M.between(
        student,
        teacher,
        metric=metric_named(name),
        conditional=form,
        labels=labels if form == "joint" else None,
        classes=classes,
    )
    seed = 20_000
    while kd.queue is not None and min(kd.queue.counts()) < kd.queue.size:
        _, teacher, labels = features(rows, width, classes, seed)
        kd.queue.push(kd.teacher_scale(teacher), labels)
        seed += 1
    return kd


def timed(losses: dict[tuple[str, str | None], mikit.KD2M], given: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of all tasks, in turns."""
    steps = {
        f"step, {stem} stem": training_step(given.rows, given.classes, small_images=stem == "3 x 3")
        for stem in ("3 x 3", "7 x 7")
    }

    def tasks(seed: int) -> Iterator[Task]:
        yield from steps.items()
        for (name, form), kd in losses.items():
            student, teacher, labels = features(given.rows, given.width, given.classes, seed)
            student.requires_grad_()
            yield f"{name} | {form or 'marginal'}", there_and_back(kd, student, teacher, labels=labels)

    return in_turns(tasks, given.repetitions)


def table(seconds: dict[str, list[float]], given: argparse.Namespace) -> str:
    """Return the results as a Markdown page part."""
    small, large = (seconds[f"step, {stem} stem"] for stem in ("3 x 3", "7 x 7"))
    lines = [
        f"Batch {given.rows}, {given.width} columns, {given.classes} classes with random labels, a full queue of 32 "
        f"rows a class; float32, one thread, medians of {given.repetitions} rounds in turns, processor time. A "
        f"training step takes {statistics.median(small):.2f} s with the 3 x 3 stem and "
        f"{statistics.median(large):.2f} s with the 7 x 7 stem.",
        "",
        "| metric | form | ms | quartiles | of the step, 3 x 3 stem | of the step, 7 x 7 stem |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in seconds.items():
        if name.startswith("step"):
            continue
        median, quartiles = milliseconds(values)
        lines.append(f"| {name} | {median} | {quartiles} | {share(values, small):.1%} | {share(values, large):.1%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time, print the table and write it."""
    given = asked(__doc__, rows=256, width=512, classes=100, repetitions=9)
    warnings.filterwarnings("ignore", ".*classes in this batch have fewer samples.*")
    losses = {
        (name, form): built(name, form, given.rows, given.width, given.classes) for name in METRICS for form in FORMS
    }
    seconds = timed(losses, given)
    keep(given, table(seconds, given), seconds)
    small = seconds["step, 3 x 3 stem"]
    over = [
        name
        for name, values in seconds.items()
        if not name.startswith(("step", "wasserstein")) and share(values, small) > BAR
    ]
    print(f"Above {BAR:.0%} of the step with the 3 x 3 stem, exact transport apart: {', '.join(over) or 'none'}.")


if __name__ == "__main__":
    main()
