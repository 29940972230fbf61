"""The instrument that picks an instrument, by evidence, and says which and why."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.rows import first_of_each_group
from mikit.estimators.base import Estimator, require_pair
from mikit.estimators.copula.copula_critic import CopulaCritic
from mikit.estimators.fitting import FitRecord, Training
from mikit.estimators.gaussian.mutual_information import GaussianMI
from mikit.estimators.neighbors.ksg import KSG
from mikit.estimators.neighbors.reduced import ReducedKSG
from mikit.functional.gaussian.canonical import rank_gaussianise

__all__ = ["Auto"]

_SMALLEST_GAIN = 0.02
_FEW_COLUMNS, _MANY_COLUMNS = 3, 128
_FEWEST_ROWS_FOR_CODES = 200


@final
class Auto(Estimator):
    """Mutual information by whichever instrument suits rows ``(n, d_x)``, ``(n, d_y)``; the choice is reported.

    Formula: the chosen instrument's. The rule, in order: fewer than five rows a column, or above 128 columns in all
    fewer than twenty, the codes of :class:`ReducedKSG` (below 200 rows a shrunk Gaussian copula on held-out rows); up
    to three columns in all, nearest neighbours of normal scores (:class:`KSG`) if they exceed the Gaussian copula by
    more than 0.02 nats and two standard errors, and the Gaussian copula otherwise; in between
    :class:`CopulaCritic`, which tests on held-out rows whether a critic adds anything to the copula, and asks
    neighbours for what the critic leaves out. Rows of one group are kept together and count as one.

    Unit: nats.

    Kind: estimate; that of the chosen instrument in a :class:`~mikit.Measurement`.

    Raises:
        InputError: If there are too few rows, or an exact linear relation makes the information infinite.

    Cost:
        That of the chosen instrument.

    Pitfalls:
        The choice looks at counts, and at neighbours against the copula where columns are few; what decides between
        candidates happens inside the chosen instrument, on held-out rows, and its line says so. Has no gradient: use
        the chosen instrument, or InfoNCE, as a loss.

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
        raise TypeError(
            "Auto has no gradient: it chooses an instrument. Train with GaussianMI, InfoNCE or VID instead."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the chosen instrument's estimate."""
        return self._fitted().estimate(x, y)

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the chosen instrument's contributions."""
        return self._fitted().pointwise(x, y)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the chosen instrument's standard error."""
        return self._fitted().standard_error(x, y, groups=groups)

    def ceiling(self, n: int) -> float | None:
        """Return the chosen instrument's ceiling; None before there is a choice."""
        return None if self.chosen is None else self.chosen.ceiling(n)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        select: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator,
        training: Training | None = None,
    ) -> FitRecord:
        """Choose on the fit and select rows, and fit the choice."""
        rows = (x, y) if select is None else (torch.cat([x, select[0]]), torch.cat([y, select[1]]))
        self.chosen = self.choose(*rows, generator=generator)[0].fresh(x, y, generator=generator)
        return self.chosen.fit(x, y, select=select, generator=generator, training=training)

    def choose(
        self, x: Tensor, y: Tensor, *, groups: Tensor | None = None, generator: torch.Generator
    ) -> tuple[Estimator, str]:
        """Return the instrument for these rows and one line that says why; rows of one group count as one."""
        require_pair(x, y, minimum=4)
        width = x.shape[1] + y.shape[1]
        units, what = (x.shape[0], "rows") if groups is None else (int(groups.max()) + 1, "groups")
        enough = 5 if width <= _MANY_COLUMNS else 20
        if units < enough * width:
            return _for_many_columns(f"{units} {what} are fewer than {enough} for each of the {width} columns", units)
        if width <= _FEW_COLUMNS:
            return _neighbours_or_gaussian(rank_gaussianise(x), rank_gaussianise(y), groups)
        if units < CopulaCritic().minimum_rows(x.shape[1], y.shape[1]):
            return GaussianMI(copula=True), f"{units} {what} are too few to train a critic"
        return CopulaCritic(), ""

    def _fitted(self) -> Estimator:
        if self.chosen is None:
            raise InputError("This Auto has not chosen yet. Call fit, or use mikit.measure.")
        return self.chosen


def _for_many_columns(said: str, units: int) -> tuple[Estimator, str]:
    if units < _FEWEST_ROWS_FOR_CODES:
        return GaussianMI(
            copula=True, shrinkage="ledoit-wolf", held_out=True
        ), f"{said}, so the correlations are shrunk"
    return ReducedKSG(), f"{said}, so they are reduced to a few pairs of codes"


def _neighbours_or_gaussian(x: Tensor, y: Tensor, groups: Tensor | None) -> tuple[Estimator, str]:
    """Prefer nearest neighbours only where they read more than the Gaussian copula."""
    if groups is not None:
        x, y = (side[first_of_each_group(groups)] for side in (x, y))
    gaussian, neighbours = GaussianMI(copula=True), KSG(copula=True)
    value, other = float(gaussian.estimate(x, y)), float(neighbours.estimate(x, y))
    said = f"nearest neighbours give {other:.3f} and the Gaussian copula {value:.3f} nats"
    error = math.hypot(gaussian.standard_error(x, y), neighbours.standard_error(x, y))
    if other - value > max(_SMALLEST_GAIN, 2 * error):
        return neighbours, said + ", so the dependence is not Gaussian"
    return gaussian, said + ", which shows nothing beyond it"
