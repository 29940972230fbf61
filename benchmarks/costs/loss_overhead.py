"""Cost of every loss relative to a training step: processor time, one thread, medians of interleaved runs.

The step is that of a ResNet-18 on 32 x 32 images with a 3 x 3 stem: forward, cross-entropy, backward, SGD. A loss is
timed forward and backward to the student's features, of two networks of that size: vectors before the last layer,
logits, the maps of the third stage, or maps and vector of all stages. Features are random and rectified; a KD²M by
class has a full queue.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from losses import LOSSES, Batch, Case, Shapes, between, features
from torch import Tensor, nn
from training_step import Task, asked, in_turns, keep, milliseconds, share, there_and_back, training_step

import mikit
from mikit.distillation.nested import tensors_in

STAGES = tuple(((64 << stage, 32 >> stage, 32 >> stage),) * 2 for stage in range(4))
READS = {
    "rows": "vector",
    "alike": "vector",
    "classes": "vector and labels",
    "logits": "logits",
    "maps": "maps of stage 3",
    "network": "maps of all stages and vector",
    "layers": "maps of all stages and vector",
    "pooled": "pooled maps of all stages and vector",
}
TIGHT, BAR = 0.15, 0.25


class OnEveryStage(nn.Module):
    """One VID for the maps of each stage."""

    def __init__(self, losses: dict[str, nn.Module]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)

    def forward(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Return the sum."""
        values = [loss(student[name], teacher[name]) for name, loss in self.losses.items()]
        return sum(values[1:], start=values[0])


def vid_on_every_stage(student: Any, teacher: Any, labels: Tensor) -> nn.Module:
    """Return VID between the maps of all stages."""
    return OnEveryStage({name: mikit.VID.between(student[name], teacher[name]) for name in student if name != "pool"})


def cases(classes: int) -> dict[str, Case]:
    """Return the losses of the table, for that many classes, and VID on every stage."""
    found = dict(LOSSES)
    by_class = {"MMD": "mmd", "Wasserstein": "wasserstein"}
    for name, metric in by_class.items():
        key = f"KD2M, {name} by class"
        build = between(mikit.KD2M, metric=metric, conditional="class", classes=classes)
        found[key] = replace(found[key], build=build)
    for name, metric in {"energy": "energy", "Sinkhorn": "sinkhorn_divergence"}.items():
        key = f"KD2M, {name} with labels"
        build = between(mikit.KD2M, metric=metric, conditional="joint", classes=classes, with_labels=True)
        found[key] = replace(found[key], build=build)
    return {"VID, maps of all stages": Case(vid_on_every_stage, "network"), **found}


def timed(given: argparse.Namespace, wanted: dict[str, Case]) -> dict[str, list[float]]:
    """Return the seconds of all tasks, in turns."""
    shapes = Shapes(rows=given.rows, widths=(512, 512), maps=STAGES, classes=given.classes)
    third = replace(shapes, maps=STAGES[2:3])
    step = training_step(given.rows, given.classes, small_images=True)

    def drawn(case: Case, seed: int) -> Batch:
        return features(case.form, third if case.form == "maps" else shapes, seed)

    losses = {name: case.built(drawn(case, 10_000)) for name, case in wanted.items()}
    for name, loss in losses.items():
        if isinstance(loss, mikit.KD2M) and loss.queue is not None:
            for seed in range(20_000, 20_000 + 2 * given.classes * loss.queue.size // given.rows):
                _, teacher, labels = drawn(wanted[name], seed)
                loss.queue.push(loss.teacher_scale(teacher), labels)

    def tasks(seed: int) -> Iterator[Task]:
        yield "step", step
        for name, case in wanted.items():
            batch = drawn(case, seed)
            for one in tensors_in(batch.student, "student"):
                one.requires_grad_()
            yield name, there_and_back(case.called, losses[name], batch)

    return in_turns(tasks, given.repetitions)


def bar_of(name: str) -> float:
    """Return the share of the step that a loss may cost."""
    return TIGHT if name.startswith(("VID", "MIMKD")) else BAR


def table(seconds: dict[str, list[float]], wanted: dict[str, Case], given: argparse.Namespace) -> str:
    """Return the results as a Markdown page part."""
    step = seconds["step"]
    lines = [
        f"Batch {given.rows}, {given.classes} classes, float32, one thread, medians of {given.repetitions} rounds in "
        f"turns, processor time. A training step takes {statistics.median(step):.2f} s. Bars: {TIGHT:.0%} for VID and "
        f"MIMKD, {BAR:.0%} for the others.",
        "",
        "| loss | reads | ms | quartiles | of the step | bar |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in wanted.items():
        cost = share(seconds[name], step)
        held = "held" if cost <= bar_of(name) else "**missed**"
        lines.append(
            f"| {name} | {READS[case.form]} | {' | '.join(milliseconds(seconds[name]))} | {cost:.1%} | {held} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time, print the table and write it."""
    given = asked(__doc__, rows=128, classes=100, repetitions=5)
    warnings.filterwarnings("ignore", ".*classes in this batch have fewer samples.*")
    wanted = cases(given.classes)
    seconds = timed(given, wanted)
    keep(given, table(seconds, wanted, given), seconds)
    over = [name for name in wanted if share(seconds[name], seconds["step"]) > bar_of(name)]
    print(f"Above its bar: {', '.join(over) or 'none'}.")


if __name__ == "__main__":
    main()
