"""What released VID codes do otherwise: starts, floors, heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from mikit.core.errors import InputError
from mikit.estimators.vid.residual_distributions import LearnedVariances

__all__ = ["RELEASED", "Released"]


@final
@dataclass(frozen=True)
class Released:
    """The settings of one released code.

    Attributes:
        name: As ``compat`` names it.
        arch: Its head.
        start: Its variance at the start, in the teacher's units whatever the teacher's variance is.
        floor: What it adds to the softplus.
    """

    name: str
    arch: str
    start: float
    floor: float

    def law(self, channels: int) -> LearnedVariances:
        """Return the variances at their start."""
        return LearnedVariances(channels, self.floor, self.start)

    def require(self, **given: object) -> None:
        """Raise unless each option has one of the values that this code allows, or its default."""
        allowed = {"arch": (None, self.arch), "reduction": ("mean",), "variance": ("learned",), "resize": ("pool",)}
        for option, value in given.items():
            if option in allowed and value not in allowed[option]:
                raise InputError(
                    f'compat="{self.name}" reproduces a released code, where {option} is {allowed[option][-1]!r}; it '
                    f"was given {value!r}. Leave {option} out, or compat."
                )


def _softplus(value: float) -> float:
    return math.log1p(math.exp(value))


RELEASED = {
    released.name: released
    for released in (
        Released("repdistiller", "relu3", start=5.0, floor=1e-5),
        # The code applies softplus where its inverse is meant, so that 5 becomes 5.0134.
        Released("xfer", "linear2", start=_softplus(_softplus(5.0)), floor=0.0),
    )
}
