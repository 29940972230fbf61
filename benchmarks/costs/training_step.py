"""A training step of a ResNet-18 as reference for the cost of losses; timing and output of such costs.

Tasks are timed in turns in one process, in processor seconds: each round runs every task once, on features of its own
seed, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Task = tuple[str, Callable[[], object]]


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


def spent(task: Callable[[], object]) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    task()
    return time.process_time() - start


def there_and_back(loss: Callable[..., Tensor], *arguments: Any, **options: Any) -> Callable[[], None]:
    """Return a task: a loss of these arguments, forward and backward."""
    return lambda: loss(*arguments, **options).backward()  # type: ignore[no-untyped-call]


def in_turns(tasks: Callable[[int], Iterator[Task]], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of all tasks by name.

    Args:
        tasks: From the round's seed to the names and tasks. What it does between two tasks is not timed.
        repetitions: Rounds that count; one before them warms up.
    """
    seconds: dict[str, list[float]] = {}
    for seed in range(repetitions + 1):
        for name, task in tasks(seed):
            value = spent(task)
            if seed:
                seconds.setdefault(name, []).append(value)
        print(f"round {seed} of {repetitions}", flush=True)
    return seconds


def milliseconds(values: list[float]) -> tuple[str, str]:
    """Return the median and the quartiles as a table has them."""
    low, middle, high = (1e3 * one for one in statistics.quantiles(values, n=4))
    digits = 0 if middle >= 100 else 1
    return f"{middle:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"


def share(values: list[float], step: list[float]) -> float:
    """Return the median over that of the step."""
    return statistics.median(values) / statistics.median(step)


def asked(description: str, **defaults: int) -> argparse.Namespace:
    """Read the command line: whole numbers with these defaults, and ``--out``; then take one thread."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md as well.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    return given


def keep(given: argparse.Namespace, written: str, seconds: dict[str, list[float]]) -> None:
    """Print the page part; write it, with seconds and settings, to ``--out`` if given."""
    print(written)
    if given.out is None:
        return
    content = {
        **{name: value for name, value in vars(given).items() if name != "out"},
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "seconds": {name: [round(value, 5) for value in values] for name, values in seconds.items()},
    }
    given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(written)
