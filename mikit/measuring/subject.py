"""The paired samples of one measurement, how they are split, and what several checks need of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.rows import first_of_each_group, recoded
from mikit.estimators.base import clustered_standard_error
from mikit.estimators.fitting import Training
from mikit.estimators.gaussian.mutual_information import GaussianMI, samples_per_feature
from mikit.functional.gaussian.canonical import rank_gaussianise
from mikit.functional.neighbors.ksg import ksg_pointwise

__all__ = ["Nearest", "Subject", "copula_reading", "nearest_readings", "normal_scores"]

_MOST_COLUMNS = 32


@final
@dataclass(frozen=True)
class Nearest:
    """Nearest-neighbor estimates on normal scores: a second estimate that costs little.

    Attributes:
        rows: Sample sizes: a quarter, half and all of the samples used.
        readings: The estimates in nats, by :func:`mikit.functional.ksg`.
        standard_error: Standard error of the last one.
        columns: Number of features of both sides together.
    """

    rows: tuple[int, ...]
    readings: tuple[float, ...]
    standard_error: float
    columns: int


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured.

    Attributes:
        x: Samples of the student.
        y: Samples of the teacher, or labels.
        codes: Group codes, or None.
        folds: Number of parts the samples are split into.
        rotations: How many of the parts report in turn.
        training: Training recipe in place of the estimator's own.
        seed: Seed of the split and of the training.
    """

    x: Tensor
    y: Tensor
    codes: Tensor | None = None
    folds: int = 5
    rotations: int = 1
    training: Training | None = None
    seed: int = 0

    def of(self, x: Tensor, y: Tensor, codes: Tensor | None, seed: int | None = None) -> Self:
        """Return other samples that are split and fitted in the same way."""
        return replace(self, x=x, y=y, codes=codes, seed=self.seed if seed is None else seed)

    def rows(self, chosen: Tensor) -> Self:
        """Return some of the samples."""
        chosen = chosen.to(self.x.device)
        return self.of(self.x[chosen], self.y[chosen], None if self.codes is None else recoded(self.codes[chosen]))

    @property
    def vectors(self) -> bool:
        """Whether both sides are matrices ``(n, d)``."""
        return self.x.ndim == 2 and self.y.ndim == 2

    @property
    def units(self) -> int:
        """Number of independent units: groups, or samples where there are no groups."""
        return self.x.shape[0] if self.codes is None else int(self.codes.max()) + 1

    @cached_property
    def scores_x(self) -> Tensor:
        """Normal scores of ``x``."""
        return normal_scores(self.x)

    @cached_property
    def scores_y(self) -> Tensor:
        """Normal scores of ``y``."""
        return normal_scores(self.y)

    @cached_property
    def copula(self) -> tuple[float, float] | None:
        """The Gaussian copula's information and its standard error; see :func:`copula_reading`."""
        return copula_reading(self.x, self.y, groups=self.codes)

    @cached_property
    def nearest(self) -> Nearest | None:
        """Nearest-neighbor estimates on the normal scores of one sample of each group."""
        return nearest_readings(*self.one_of_each_group())

    def one_of_each_group(self) -> tuple[Tensor, Tensor]:
        """Return the normal scores of one sample of each group, or of all samples where there are no groups."""
        chosen = slice(None) if self.codes is None else first_of_each_group(self.codes.cpu())
        return self.scores_x[chosen], self.scores_y[chosen]


def normal_scores(values: Tensor) -> Tensor:
    """Return ``(n, d)`` values as float64 normal scores of at most 32 columns, on the CPU.

    More than 32 columns are standardized and projected onto 32 random directions first.
    """
    rows = values.detach().cpu()
    if rows.shape[1] > _MOST_COLUMNS:
        spread = rows.std(dim=0).double()
        generator = torch.Generator().manual_seed(rows.shape[1])
        directions = torch.randn(rows.shape[1], _MOST_COLUMNS, generator=generator, dtype=torch.float64)
        directions = directions / torch.where(spread > 0, spread, 1.0)[:, None]
        rows = rows.double() @ directions
    return rank_gaussianise(rows)


def copula_reading(x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> tuple[float, float] | None:
    """Return the Gaussian copula's information and its standard error; None if infinite or if samples are too few."""
    width = x.shape[1] + y.shape[1]
    if x.shape[0] < samples_per_feature(width) * width:
        return None
    try:
        contributions = GaussianMI(copula=True).pointwise(x, y)
    except InputError:
        return None
    return float(contributions.mean()), clustered_standard_error(contributions, groups)


def nearest_readings(scores_x: Tensor, scores_y: Tensor) -> Nearest | None:
    """Return nearest-neighbor estimates on up to 4,096 normal scores (2,048 above 20 columns), and on parts of them.

    None below 100 samples.
    """
    n, columns = scores_x.shape[0], scores_x.shape[1] + scores_y.shape[1]
    if n < 100:
        return None
    most = min(n, 4096 if columns <= 20 else 2048)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most]
    x, y = scores_x[chosen], scores_y[chosen]
    sizes = (most // 4, most // 2, most)
    contributions = [ksg_pointwise(x[:m], y[:m], 3) for m in sizes]
    # Samples share neighbors, so the mean varies 1.4 times as much as independent contributions would make it.
    error = 1.4 * float(contributions[2].std()) / most**0.5
    return Nearest(sizes, tuple(float(each.mean()) for each in contributions), error, columns)
