"""The suites by name. Nothing heavy is imported before a suite is built, so that a help page can name them."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from mikit.core.errors import InputError

if TYPE_CHECKING:
    from mikit.bench.distributions.task import Law

__all__ = ["BEYOND", "SUITES", "law_named", "laws_of"]

SUITES: dict[str, str] = {
    "bmi": "the 40 tasks of the first BMI benchmark",
    "bmi2": "the 13 laws that the second BMI benchmark adds: Gaussian mixtures",
    "transfer": "nulls, warps, mixtures, sharp supports, even functions",
    "networks": "Gaussian pairs seen through random invertible leaky-ReLU networks",
    "copulas": "asymmetric copulas",
    "own": "ten laws of mikit's own",
    "staircase": "20 Gaussian or cubed columns, 2 to 10 nats",
    "high": "10 to 80 nats in 20 to 160 columns",
    "wide": "10 latents in 1,000 to 4,096 columns",
    "images": "pictures of bumps and rectangles",
    "channel": "digits paired by class through a noisy channel, and their labels",
    "traps": "data on which every estimate must be flagged",
}
"""By name: what a suite holds."""

BEYOND = ("bmi2", "transfer", "networks", "copulas", "own")
"""What the name ``beyond`` stands for."""


@cache
def laws_of(suite: str) -> tuple[Law, ...]:
    """Return the laws of a suite, or of several where the name stands for them.

    Args:
        suite: A name of :data:`SUITES`, or ``"beyond"``.

    Returns:
        The laws; of each suite every second one is for development, the others for reports.

    Raises:
        InputError: If there is no such suite.

    Example:
        >>> len(laws_of("bmi"))
        40
    """
    if suite == "beyond":
        return tuple(law for name in BEYOND for law in laws_of(name))
    if suite not in SUITES:
        raise InputError(f'There is no suite "{suite}"; there are {", ".join(SUITES)}, and beyond.')
    from dataclasses import replace

    built: list[Law] = getattr(import_module(f"mikit.bench.distributions.{suite}"), f"{suite}_laws")()
    names = [law.name for law in built]
    assert len(set(names)) == len(names), "names of laws are unique in a suite"
    return tuple(replace(law, half="report" if place % 2 else "develop") for place, law in enumerate(built))


def law_named(suite: str, name: str) -> Law:
    """Return one law.

    Args:
        suite: Its suite.
        name: Its name.

    Raises:
        InputError: If there is none of that name.
    """
    for law in laws_of(suite):
        if law.name == name:
            return law
    raise InputError(f'The suite {suite} has no law "{name}"; it has {", ".join(one.name for one in laws_of(suite))}.')
