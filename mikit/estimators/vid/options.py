"""The options of VID: their checks, the settings of released codes, and the modules they select."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import nn

from mikit.core.errors import InputError
from mikit.estimators.vid.features import RESIZES, FeaturePair
from mikit.estimators.vid.heads import HEADS, TRANSPOSED, mean_head, transposed_head
from mikit.estimators.vid.residual_distributions import (
    VARIANCES,
    LearnedVariances,
    ResidualDistribution,
    residual_distribution,
)

__all__ = ["VARIANCE_FLOOR", "Options"]

VARIANCE_FLOOR = 1e-3
_REDUCTIONS = ("mean", "nats")


@final
@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of :class:`~mikit.VID`, checked. ``arch`` may be None, :attr:`head_arch` is not."""

    spatial: bool
    arch: str | None
    reduction: str
    variance: str
    variance_floor: float
    resize: str
    size: tuple[int, int] | None
    compat: str | None

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("head", self.arch, (*HEADS, TRANSPOSED, None)),
            ("reduction", self.reduction, _REDUCTIONS),
            ("variance", self.variance, VARIANCES),
            ("resize", self.resize, RESIZES),
            ("compat", self.compat, (*_RELEASED, None)),
        ):
            if value not in choices:
                raise InputError(f'There is no VID {name} "{value}". Use one of {", ".join(filter(None, choices))}.')
        if not 0 < self.variance_floor < 1:
            raise InputError(
                f"variance_floor is {self.variance_floor}; it is a fraction of the teacher's variance and must be "
                "between 0 and 1."
            )
        if self.compat is not None:
            self._require_released()
        transposed = self.head_arch == TRANSPOSED
        if transposed != (self.size is not None) or (transposed and not self.spatial):
            raise InputError(
                f'arch is "{self.head_arch}", size is {self.size} and spatial is {self.spatial}. The head "transposed" '
                "needs the size (height, width) of the teacher's maps and spatial=True; other heads take no size."
            )

    @property
    def head_arch(self) -> str:
        """The head: ``arch``, or the default for the other options."""
        if self.arch is not None:
            return self.arch
        if self.compat is not None:
            return _RELEASED[self.compat].arch
        return "linear" if self.size is None else TRANSPOSED

    def head(self, d_student: int, d_teacher: int) -> nn.Sequential:
        """Return an untrained head."""
        if self.size is not None:
            return transposed_head(d_student, d_teacher, self.size)
        return mean_head(self.head_arch, d_student, d_teacher, spatial=self.spatial)

    def residuals(self, d_teacher: int) -> ResidualDistribution:
        """Return the distribution of residuals at the start of training."""
        if self.compat is not None:
            released = _RELEASED[self.compat]
            return LearnedVariances(d_teacher, released.floor, released.start)
        return residual_distribution(self.variance, d_teacher, self.variance_floor)

    def features(self, d_student: int, d_teacher: int) -> FeaturePair:
        """Return the preprocessing of both sides. The released codes do not standardize."""
        return FeaturePair(
            d_student,
            d_teacher,
            layouts=(4 if self.spatial and self.head_arch != TRANSPOSED else 2, 4 if self.spatial else 2),
            resize=None if self.compat == "xfer" else self.resize,
            size=self.size,
            standardize=self.compat is None,
        )

    def _require_released(self) -> None:
        """Raise unless each option has the value that the released code has, or its default."""
        assert self.compat is not None
        arch = _RELEASED[self.compat].arch
        for option, value, allowed in (
            ("arch", self.arch, (None, arch)),
            ("reduction", self.reduction, ("mean",)),
            ("variance", self.variance, ("learned",)),
            ("resize", self.resize, ("pool",)),
        ):
            if value not in allowed:
                raise InputError(
                    f'compat="{self.compat}" reproduces a released code, where {option} is "{allowed[-1]}", but '
                    f'{option}="{value}" was given. Leave out {option} or compat.'
                )
        if self.variance_floor != VARIANCE_FLOOR:
            raise InputError(
                f'compat="{self.compat}" has its own variance floor; leave out variance_floor={self.variance_floor}.'
            )


@final
@dataclass(frozen=True)
class _Released:
    """A released code: its head, its initial variance in the teacher's units, and what it adds to the softplus."""

    arch: str
    start: float
    floor: float


def _softplus(value: float) -> float:
    return math.log1p(math.exp(value))


_RELEASED = {
    "repdistiller": _Released("relu3", start=5.0, floor=1e-5),
    # The code applies softplus where its inverse is meant, so that 5 becomes 5.0134.
    "xfer": _Released("linear2", start=_softplus(_softplus(5.0)), floor=0.0),
}
