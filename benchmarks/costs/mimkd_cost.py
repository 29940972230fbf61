"""Cost of MIMKD relative to a training step: processor time, one thread, medians of interleaved rounds.

The step is that of a ResNet-18 on 32 x 32 images with a 3 x 3 stem: forward, cross-entropy, backward, SGD. The loss is
timed forward and backward to the student's features: maps of all four stages, as large as the network makes them, and
the pooled vector, of two networks of that size. Features are random and rectified, one seed for each round.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor
from training_step import Task, asked, in_turns, keep, milliseconds, share, there_and_back, training_step

import mikit

FORMS: dict[str, dict[str, str]] = {
    "dot, all negatives": {"critic": "dot", "negatives": "all"},
    "dot, one negative": {"critic": "dot", "negatives": "shift"},
    "dot, InfoNCE": {"critic": "dot", "objective": "infonce"},
    "concat, one negative": {"critic": "concat", "negatives": "shift"},
    "concat, all negatives": {"critic": "concat", "negatives": "all"},
}
BAR = 0.15


def features(rows: int, seed: int) -> dict[str, Tensor]:
    """Return rectified features of all stages of a ResNet-18 for images of 32 pixels."""
    g = torch.Generator().manual_seed(seed)
    maps = {
        f"stage{stage + 1}": torch.randn(rows, 64 << stage, 32 >> stage, 32 >> stage, generator=g).relu()
        for stage in range(4)
    }
    return maps | {"pool": torch.randn(rows, 512, generator=g).relu()}


def timed(given: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of all tasks, in turns."""
    step = training_step(given.rows, given.classes, small_images=True)
    examples = features(given.rows, 10_000), features(given.rows, 10_001)
    losses = {name: mikit.MIMKD.between(*examples, **form) for name, form in FORMS.items()}

    def tasks(seed: int) -> Iterator[Task]:
        student, teacher = features(given.rows, 2 * seed), features(given.rows, 2 * seed + 1)
        for one in student.values():
            one.requires_grad_()
        yield "step", step
        for name, kd in losses.items():
            yield name, there_and_back(kd, student, teacher)

    return in_turns(tasks, given.repetitions)


def table(seconds: dict[str, list[float]], given: argparse.Namespace) -> str:
    """Return the results as a Markdown page part."""
    step = seconds["step"]
    lines = [
        f"Batch {given.rows}, float32, one thread, medians of {given.repetitions} rounds in turns, processor time. A "
        f"training step takes {statistics.median(step):.2f} s.",
        "",
        "| critic and negatives | ms | quartiles | of the step |",
        "|---|---|---|---|",
    ]
    for name, values in seconds.items():
        if name != "step":
            lines.append(f"| {name} | {' | '.join(milliseconds(values))} | {share(values, step):.1%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time, print the table and write it."""
    given = asked(__doc__, rows=128, classes=10, repetitions=5)
    seconds = timed(given)
    keep(given, table(seconds, given), seconds)
    default = share(seconds["dot, all negatives"], seconds["step"])
    held = "held" if default <= BAR else "MISSED"
    print(f"The default costs {default:.1%} of a step; the limit is {BAR:.0%}: {held}.")


if __name__ == "__main__":
    main()
