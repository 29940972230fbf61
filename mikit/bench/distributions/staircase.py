"""Twenty Gaussian features with 2 to 10 nats, and the same with the second variable cubed.

Source: Poole and others 2019, Song and Ermon 2020; there with fresh samples at every step, here with a finite sample.
"""

from __future__ import annotations

from mikit.bench.distributions.bases import pairs_with_information
from mikit.bench.distributions.task import Task

__all__ = ["staircase_tasks"]

_COLUMNS = 20


def staircase_tasks() -> list[Task]:
    """Return the ten tasks."""
    found = []
    for information in (2, 4, 6, 8, 10):
        pair = pairs_with_information(information, _COLUMNS)
        found.append(Task(f"gaussian-{information}", "staircase", pair))
        found.append(Task(f"cubic-{information}", "staircase", pair.seen_through(y=lambda rows: rows**3)))
    return found
