"""What KD²M costs beside the training step it is added to: processor time, one thread, medians of interleaved runs.

The step is that of a ResNet-18 on 32 x 32 images: forward, cross-entropy, backward, SGD. It is timed with the stem of
the released code (7 x 7, stride 2, pooling), made for larger images, and with the usual one for small images (3 x 3).
The loss is timed forward and backward to the student's features, for every metric and form, with full queues: 32 rows
of each class. Features are random and rectified, labels random; one seed for each repetition.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

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


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        same = c_in == c_out and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(classes: int, *, small_images: bool) -> nn.Sequential:
    """Return a ResNet-18 with a stem for images of 32 pixels, or the one for 224."""
    if small_images:
        stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    else:
        stem = [
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        ]
    blocks: list[nn.Module] = []
    width = 64
    for stage, c_out in enumerate((64, 128, 256, 512)):
        blocks += [Block(width, c_out, 1 if stage == 0 else 2), Block(c_out, c_out, 1)]
        width = c_out
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def training_step(batch: int, classes: int, *, small_images: bool) -> Callable[[], None]:
    """Return one step of training."""
    network = resnet18(classes, small_images=small_images)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(classes, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


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


def spent(task: Callable[[], object]) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    task()
    return time.process_time() - start


def timed(losses: dict[tuple[str, str | None], mikit.KD2M], given: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of all tasks, in turns."""
    steps = {
        f"step, {stem} stem": training_step(given.rows, given.classes, small_images=stem == "3 x 3")
        for stem in ("3 x 3", "7 x 7")
    }
    seconds: dict[str, list[float]] = {}
    for seed in range(-1, given.repetitions):  # the first round warms up
        round_of = {name: spent(step) for name, step in steps.items()}
        for (name, form), kd in losses.items():
            student, teacher, labels = features(given.rows, given.width, given.classes, seed + 1)
            student.requires_grad_()
            round_of[f"{name} | {form or 'marginal'}"] = spent(
                lambda kd=kd, s=student, t=teacher, y=labels: kd(s, t, labels=y).backward()
            )
        if seed >= 0:
            for name, value in round_of.items():
                seconds.setdefault(name, []).append(value)
            print(f"round {seed + 1} of {given.repetitions}", flush=True)
    return seconds


def table(seconds: dict[str, list[float]], given: argparse.Namespace) -> str:
    """Return the results as a Markdown page part."""
    small, large = (statistics.median(seconds[f"step, {stem} stem"]) for stem in ("3 x 3", "7 x 7"))
    lines = [
        f"Batch {given.rows}, {given.width} columns, {given.classes} classes with random labels, a full queue of 32 "
        f"rows a class; float32, one thread, medians of {given.repetitions} rounds in turns, processor time. A "
        f"training step takes {small:.2f} s with the 3 x 3 stem and {large:.2f} s with the 7 x 7 stem.",
        "",
        "| metric | form | ms | quartiles | of the step, 3 x 3 stem | of the step, 7 x 7 stem |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in seconds.items():
        if name.startswith("step"):
            continue
        low, middle, high = (1e3 * one for one in statistics.quantiles(values, n=4))
        lines.append(
            f"| {name} | {middle:.1f} | {low:.1f} to {high:.1f} "
            f"| {middle / small / 1e3:.1%} | {middle / large / 1e3:.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md as well.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*classes in this batch have fewer rows.*")
    losses = {
        (name, form): built(name, form, given.rows, given.width, given.classes) for name in METRICS for form in FORMS
    }
    seconds = timed(losses, given)
    written = table(seconds, given)
    print(written)
    small = statistics.median(seconds["step, 3 x 3 stem"])
    over = [
        name
        for name, values in seconds.items()
        if not name.startswith(("step", "wasserstein")) and statistics.median(values) > BAR * small
    ]
    print(f"Above {BAR:.0%} of the step with the 3 x 3 stem, exact transport apart: {', '.join(over) or 'none'}.")
    if given.out is not None:
        content = {
            "rows": given.rows,
            "width": given.width,
            "classes": given.classes,
            "torch": torch.__version__,
            "processor": platform.processor() or platform.machine(),
            "seconds": {name: [round(value, 5) for value in values] for name, values in seconds.items()},
        }
        given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(written)


if __name__ == "__main__":
    main()
