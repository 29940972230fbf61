"""The instrument that picks an instrument, by evidence, and says which and why."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from mikit.errors import InputError
from mikit.estimators.base import Estimator, clustered_standard_error, require_pair
from mikit.estimators.contrastive import InfoNCE
from mikit.estimators.fitting import FitRecord, Training
from mikit.estimators.gaussian import GaussianMI
from mikit.estimators.neighbors import KSG
from mikit.functional.gaussian import CanonicalForm, bartlett_rank, canonical_form, rank_gaussianise
from mikit.functional.scored import infonce_pointwise_from_scores
from mikit.rows import recoded, split_folds

__all__ = ["Auto"]

# The test needs an answer, not a precise number: more rows than this only make it slower.
_ROWS_FOR_THE_TEST = 6000
_TEST_TRAINING = Training(steps=400, batch=256, every=25, patience=6)
_SMALLEST_GAIN = 0.02


@final
class Auto(Estimator):
    """Mutual information by whichever instrument suits rows ``(n, d_x)``, ``(n, d_y)``; the choice is reported.

    Formula: the chosen instrument's. The rule, in order: fewer than five rows a column, a shrunk Gaussian copula on
    held-out rows; at most four columns in all, nearest neighbours (:class:`KSG`) if they exceed the Gaussian copula by
    more than 0.02 nats and three standard errors (the copula's value cannot exceed the truth); above four columns
    :class:`InfoNCE` if its critic beats the Gaussian copula's own critic on held-out rows by more than 0.02 nats and
    two standard errors; otherwise the Gaussian copula, which is exact for every law that monotone maps of single
    columns make Gaussian. Rows of one group are kept together and count as one.

    Unit: nats.

    Kind: estimate; that of the chosen instrument in a :class:`~mikit.Measurement`.

    Raises:
        InputError: If there are too few rows, or an exact linear relation makes the information infinite.

    Cost:
        That of the chosen instrument, and above four columns a critic trained for 400 steps at most on up to 6,000
        rows.

    Pitfalls:
        Chooses between dependence that is Gaussian after monotone maps and dependence a small critic finds. Where a
        critic is chosen the value is a lower bound in expectation and usually low. Has no gradient: use the chosen
        instrument as a loss.

    Source:
        The anchor on the Gaussian copula and the held-out test are mikit's own.

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
        if units < 5 * width:
            shrunk = GaussianMI(copula=True, shrinkage="ledoit-wolf", held_out=True)
            why = f"{units} {what} are fewer than five for each of the {width} columns, so the correlations are shrunk"
            return shrunk, why
        scores_x, scores_y = rank_gaussianise(x), rank_gaussianise(y)
        gaussian = GaussianMI(copula=True)
        value = float(gaussian.estimate(x, y))
        if width <= 4:
            return _neighbours_or_gaussian(scores_x, scores_y, groups)
        gain, error = _gain_of_a_critic(scores_x, scores_y, groups, generator)
        said = f"a critic adds {gain:.3f} ± {error:.3f} nats on held-out rows to the Gaussian copula's {value:.3f}"
        if gain > max(_SMALLEST_GAIN, 2 * error):
            with torch.enable_grad():
                return InfoNCE.between(x, y, generator=generator), said
        return gaussian, said + ", which is not enough to prefer it"

    def _fitted(self) -> Estimator:
        if self.chosen is None:
            raise InputError("This Auto has not chosen yet. Call fit, or use mikit.measure.")
        return self.chosen


def _neighbours_or_gaussian(x: Tensor, y: Tensor, groups: Tensor | None) -> tuple[Estimator, str]:
    """Prefer nearest neighbours only where they read more: the Gaussian copula cannot exceed the truth."""
    if groups is not None:
        x, y = (side[_one_row_a_group(groups)] for side in (x, y))
    gaussian, neighbours = GaussianMI(copula=True), KSG()
    value, other = float(gaussian.estimate(x, y)), float(neighbours.estimate(x, y))
    said = f"nearest neighbours give {other:.3f} and the Gaussian copula {value:.3f} nats"
    if other - value > max(_SMALLEST_GAIN, 3 * gaussian.standard_error(x, y)):
        return neighbours, said + ", so the dependence is not Gaussian"
    return gaussian, said + ", which shows nothing beyond it"


def _gain_of_a_critic(x: Tensor, y: Tensor, groups: Tensor | None, generator: torch.Generator) -> tuple[float, float]:
    """Return by how much a trained critic beats the Gaussian critic in InfoNCE on held-out rows, and its error."""
    rows = torch.randperm(x.shape[0], generator=generator)[:_ROWS_FOR_THE_TEST].to(x.device)
    x, y = x[rows].float(), y[rows].float()
    codes = None if groups is None else recoded(groups[rows])
    parts = [part.to(x.device) for part in split_folds(x.shape[0], 5, groups=codes, generator=generator)]
    fit, select, report = torch.cat(parts[2:]), parts[1], parts[0]
    form = canonical_form(x[fit], y[fit])
    widths = form.directions_x.shape[1], form.directions_y.shape[1]
    rank = bartlett_rank(form.correlations, fit.shape[0], *widths)
    with torch.enable_grad():
        critic = InfoNCE.between(x[fit], y[fit], generator=generator)
        critic.fit(x[fit], y[fit], select=(x[select], y[select]), generator=generator, training=_TEST_TRAINING)
    critic.eval()
    learned = critic.pointwise(x[report], y[report])
    anchored = infonce_pointwise_from_scores(_gaussian_scores(form, x[report], y[report], rank))
    difference = learned.double() - anchored.double()
    error = clustered_standard_error(difference, None if codes is None else recoded(codes[report]))
    return float(difference.mean()), error


def _one_row_a_group(groups: Tensor) -> Tensor:
    """Return the first row of every group."""
    first = torch.full((int(groups.max()) + 1,), groups.shape[0], dtype=torch.long, device=groups.device)
    return first.scatter_reduce_(0, groups, torch.arange(groups.shape[0], device=groups.device), "amin")


def _gaussian_scores(form: CanonicalForm, x: Tensor, y: Tensor, rank: int) -> Tensor:
    """Return the Gaussian law's log-density ratio for every pair, up to a constant."""
    a = (x.double() - form.mean_x) @ form.directions_x[:, :rank]
    b = (y.double() - form.mean_y) @ form.directions_y[:, :rank]
    rho = form.correlations[:rank]
    weight = 1 / (1 - rho.square())
    own = 0.5 * rho.square() * weight
    return (a * (rho * weight)) @ b.T - (a.square() @ own)[:, None] - (b.square() @ own)[None, :]
