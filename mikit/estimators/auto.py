"""The estimator that chooses another estimator from the data, and reports its choice and the reason."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.rows import first_of_each_group
from mikit.estimators.base import Estimator, require_pair
from mikit.estimators.copula.copula_critic import CopulaCritic
from mikit.estimators.fitting import FitData, FitRecord
from mikit.estimators.gaussian.mutual_information import GaussianMI, samples_per_feature
from mikit.estimators.neighbors.ksg import KSG
from mikit.estimators.neighbors.reduced import ReducedKSG
from mikit.functional.gaussian.canonical import rank_gaussianise

__all__ = ["Auto"]

_SMALLEST_GAIN = 0.02
_FEW_COLUMNS = 3
_FEWEST_ROWS_FOR_CODES = 200


@final
class Auto(Estimator):
    """Mutual information of samples ``(n, d_x)``, ``(n, d_y)`` by an estimator chosen from the data and reported.

    Formula: that of the chosen estimator. The rules, in this order:

    1. Fewer than five samples per column, or fewer than twenty above 128 columns in total: the codes of
       :class:`ReducedKSG`. Below 200 samples, a shrunk Gaussian copula on held-out samples.
    2. At most three columns in total: nearest neighbors of normal scores (:class:`KSG`) if they exceed the Gaussian
       copula by more than 0.02 nats and two standard errors, otherwise the Gaussian copula.
    3. Otherwise :class:`CopulaCritic`, which tests on held-out samples whether a critic adds anything to the copula,
       and uses nearest neighbors for what the critic misses.

    Samples of one group are kept together and count as one.

    Unit: nats.

    Kind: estimate; in a :class:`~mikit.Measurement`, that of the chosen estimator.

    Raises:
        InputError: If there are too few samples, or an exact linear relation makes the information infinite.

    Cost:
        That of the chosen estimator.

    Pitfalls:
        The choice depends on counts only, and for few columns on nearest neighbors against the copula. Everything else
        is decided inside the chosen estimator on held-out samples, and stated in its note. It has no gradient: use the
        chosen estimator, or InfoNCE, as a loss.

    Source:
        The rule is mikit's own.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 1, generator=g)
        >>> y = x.abs() + 0.3 * torch.randn(2000, 1, generator=g)
        >>> chosen, why = Auto().choose(x, y, generator=g)
        >>> chosen.name
        'ksg'
    """

    name = "auto"
    unit = "nats"
    kind = "estimate"
    differentiable = False
    learned = True

    def __init__(self) -> None:
        super().__init__()
        self.chosen: Estimator | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Raise ``TypeError``: a choice has no gradient."""
        raise TypeError("Auto has no gradient: it chooses an estimator. Train with GaussianMI, InfoNCE or VID instead.")

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the chosen estimator's estimate."""
        return self._fitted().estimate(x, y)

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the chosen estimator's contributions."""
        return self._fitted().pointwise(x, y)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the chosen estimator's standard error."""
        return self._fitted().standard_error(x, y, groups=groups)

    def ceiling(self, n: int) -> float | None:
        """Return the chosen estimator's ceiling; None before an estimator is chosen."""
        return None if self.chosen is None else self.chosen.ceiling(n)

    def _fit(self, data: FitData) -> FitRecord:
        """Choose an estimator on the fit and select parts, and fit it."""
        chosen, _ = self.choose(*data.pooled, generator=data.generator)
        self.chosen = chosen.fresh(data.x, data.y, generator=data.generator)
        return self.chosen._fit(data)

    def choose(
        self, x: Tensor, y: Tensor, *, groups: Tensor | None = None, generator: torch.Generator
    ) -> tuple[Estimator, str]:
        """Return the estimator for these samples and the reason in one line; samples of one group count as one."""
        require_pair(x, y, minimum=4)
        width = x.shape[1] + y.shape[1]
        units, what = (x.shape[0], "samples") if groups is None else (int(groups.max()) + 1, "groups")
        enough = samples_per_feature(width)
        if units < enough * width:
            return _for_many_columns(f"{units} {what} are fewer than {enough} for each of the {width} features", units)
        if width <= _FEW_COLUMNS:
            return _neighbors_or_gaussian(rank_gaussianise(x), rank_gaussianise(y), groups)
        if units < CopulaCritic().minimum_rows(x.shape[1], y.shape[1]):
            return GaussianMI(copula=True), f"{units} {what} are too few to train a critic"
        return CopulaCritic(), ""

    def _fitted(self) -> Estimator:
        if self.chosen is None:
            raise InputError("This Auto has not chosen yet. Call fit, or use mikit.measure.")
        return self.chosen


def _for_many_columns(reason: str, units: int) -> tuple[Estimator, str]:
    if units < _FEWEST_ROWS_FOR_CODES:
        gaussian = GaussianMI(copula=True, shrinkage="ledoit-wolf", held_out=True)
        return gaussian, f"{reason}, so the correlations are shrunk"
    return ReducedKSG(), f"{reason}, so they are reduced to a few pairs of codes"


def _neighbors_or_gaussian(x: Tensor, y: Tensor, groups: Tensor | None) -> tuple[Estimator, str]:
    """Choose nearest neighbors only if their estimate is clearly above that of the Gaussian copula."""
    if groups is not None:
        x, y = (side[first_of_each_group(groups)] for side in (x, y))
    gaussian, neighbors = GaussianMI(copula=True), KSG(copula=True)
    value, other = float(gaussian.estimate(x, y)), float(neighbors.estimate(x, y))
    comparison = f"nearest neighbors give {other:.3f} and the Gaussian copula {value:.3f} nats"
    error = math.hypot(gaussian.standard_error(x, y), neighbors.standard_error(x, y))
    if other - value > max(_SMALLEST_GAIN, 2 * error):
        return neighbors, f"{comparison}, so the dependence is not Gaussian"
    return gaussian, f"{comparison}, so there is no sign of other dependence"
