"""What MIMKD costs beside the training step it is added to: processor time, one thread, medians of interleaved rounds.

The step is that of a ResNet-18 on 32 x 32 images with a 3 x 3 stem: forward, cross-entropy, backward, SGD. The loss is
timed forward and backward to the student's features: maps of all four stages, as large as the network makes them, and
the pooled vector, of two networks of that size. Features are random and rectified, one seed for each round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path

import torch
from kd2m_cost import spent, training_step
from torch import Tensor

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
    seconds: dict[str, list[float]] = {}
    for seed in range(-1, given.repetitions):  # the first round warms up
        student, teacher = features(given.rows, 2 * seed + 2), features(given.rows, 2 * seed + 3)
        for one in student.values():
            one.requires_grad_()
        round_of = {"step": spent(step)}
        for name, kd in losses.items():
            round_of[name] = spent(lambda kd=kd, s=student, t=teacher: kd(s, t).backward())
        if seed >= 0:
            for name, value in round_of.items():
                seconds.setdefault(name, []).append(value)
            print(f"round {seed + 1} of {given.repetitions}", flush=True)
    return seconds


def table(seconds: dict[str, list[float]], given: argparse.Namespace) -> str:
    """Return the results as a Markdown page part."""
    step = statistics.median(seconds["step"])
    lines = [
        f"Batch {given.rows}, float32, one thread, medians of {given.repetitions} rounds in turns, processor time. A "
        f"training step takes {step:.2f} s.",
        "",
        "| critic and negatives | ms | quartiles | of the step |",
        "|---|---|---|---|",
    ]
    for name, values in seconds.items():
        if name != "step":
            low, middle, high = (1e3 * one for one in statistics.quantiles(values, n=4))
            lines.append(f"| {name} | {middle:.0f} | {low:.0f} to {high:.0f} | {middle / step / 1e3:.1%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md as well.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seconds = timed(given)
    written = table(seconds, given)
    print(written)
    share = statistics.median(seconds["dot, all negatives"]) / statistics.median(seconds["step"])
    print(f"The default costs {share:.1%} of a step; the bar is {BAR:.0%}: {'held' if share <= BAR else 'MISSED'}.")
    if given.out is not None:
        given.out.with_suffix(".md").write_text(written)
        machine = {"torch": torch.__version__, "machine": platform.machine(), "python": platform.python_version()}
        given.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
