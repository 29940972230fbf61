"""The suites by name. A suite is imported when it is built, so that help pages can name suites quickly."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from mikit.core.errors import InputError

if TYPE_CHECKING:
    from mikit.bench.distributions.task import Task

__all__ = ["BEYOND", "SUITES", "task_named", "tasks_of"]

SUITES: dict[str, str] = {
    "bmi": "the 40 tasks of the first BMI benchmark",
    "bmi2": "the 13 additional tasks of the second BMI benchmark: Gaussian mixtures",
    "transfer": "independent variables, warps, mixtures, bounded supports, even functions",
    "networks": "Gaussian pairs transformed by random invertible leaky-ReLU networks",
    "copulas": "asymmetric copulas",
    "own": "ten tasks specific to mikit",
    "staircase": "20 Gaussian or cubed features, 2 to 10 nats",
    "high": "10 to 80 nats in 20 to 160 features",
    "wide": "10 latents in 1,000 to 4,096 features",
    "images": "images of bumps and rectangles",
    "channel": "digits paired by class through a noisy channel, and their labels",
    "traps": "data on which every estimate has to be flagged",
}
"""Descriptions of the suites."""

BEYOND = ("bmi2", "transfer", "networks", "copulas", "own")
"""The suites of the name ``beyond``."""


@cache
def tasks_of(suite: str) -> tuple[Task, ...]:
    """Return the tasks of a suite, or of all suites of ``"beyond"``.

    Every second task of a suite is for development, the others are for reports.

    Example:
        >>> len(tasks_of("bmi"))
        40
    """
    if suite == "beyond":
        return tuple(task for name in BEYOND for task in tasks_of(name))
    if suite not in SUITES:
        raise InputError(f'There is no suite "{suite}"; the suites are {", ".join(SUITES)}, and beyond.')
    from dataclasses import replace

    built: list[Task] = getattr(import_module(f"mikit.bench.distributions.{suite}"), f"{suite}_tasks")()
    names = [task.name for task in built]
    assert len(set(names)) == len(names), "names of tasks are unique in a suite"
    return tuple(replace(task, half="report" if place % 2 else "develop") for place, task in enumerate(built))


def task_named(suite: str, name: str) -> Task:
    """Return the task of this name in a suite."""
    for task in tasks_of(suite):
        if task.name == name:
            return task
    names = ", ".join(task.name for task in tasks_of(suite))
    raise InputError(f'The suite {suite} has no task "{name}"; it has {names}.')
