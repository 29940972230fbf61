"""The requirements that many arguments share: each raises an error that names the argument and its value."""

from __future__ import annotations

import math
from collections.abc import Collection

from mikit.core.errors import InputError

__all__ = ["at_least", "one_of", "positive", "seed"]

_LARGEST_SEED = 2**62


def positive(value: float, name: str, unit: str = "") -> None:
    """Require a finite number above 0; ``unit`` says in which unit the argument is measured.

    Example:
        >>> positive(-1.0, "bandwidth", "in the unit of the features")
        Traceback (most recent call last):
        mikit.core.errors.InputError: bandwidth is -1.0; it must be positive and finite, in the unit of the features.
    """
    if not 0 < value < math.inf:
        raise InputError(f"{name} is {value}; it must be positive and finite{f', {unit}' if unit else ''}.")


def at_least(value: float, name: str, least: int = 1) -> None:
    """Require a number that is not below ``least``.

    Example:
        >>> at_least(0, "k")
        Traceback (most recent call last):
        mikit.core.errors.InputError: k is 0; it must be at least 1.
    """
    if not value >= least:
        raise InputError(f"{name} is {value}; it must be at least {least}.")


def one_of(value: str, name: str, known: Collection[str]) -> None:
    """Require one of a few words.

    Example:
        >>> one_of("gpu", "device", ("cpu", "cuda"))
        Traceback (most recent call last):
        mikit.core.errors.InputError: device is "gpu"; it must be cpu or cuda.
    """
    if value not in known:
        *others, last = known
        words = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f'{name} is "{value}"; it must be {words}.')


def seed(value: int, name: str = "seed") -> None:
    """Require a whole number that seeds a random generator."""
    if not isinstance(value, int) or not 0 <= value < _LARGEST_SEED:
        raise InputError(f"{name} is {value!r}; it must be a whole number from 0 to 2**62.")
