"""Gaussian mutual information, by canonical correlations or through the Gaussian copula."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.estimators.base import Estimator, clustered_standard_error, require_pair
from mikit.estimators.fitting import FitData, FitRecord
from mikit.functional.gaussian.canonical import CanonicalForm, canonical_form, rank_gaussianise, wishart_bias

__all__ = ["GaussianMI", "samples_per_feature"]


def samples_per_feature(width: int) -> int:
    """Return how many samples per feature make the Gaussian copula of ``width`` features a reference for others."""
    return 5 if width <= 128 else 20


@final
class GaussianMI(Estimator):
    """Mutual information of jointly Gaussian samples ``(n, d_x)``, ``(n, d_y)``: exact, fast, and linear only.

    Formula: ``I = -½ Σ_i log(1 - ρ_i²)`` over the canonical correlations ``ρ_i``. By default all samples are used and
    the exact finite-sample bias is subtracted. With ``held_out=True`` the correlations come from the fit part and the
    mean log-density ratio of other samples is reported.

    Args:
        copula: Replace each column by its normal scores first. This keeps the information, removes the shape of the
            marginals, and makes the estimate invariant to monotone maps of single columns. It has no gradient.
        shrinkage: ``λ`` in ``[0, 1)`` by which the joint correlation matrix is shrunk towards the identity, or
            ``"ledoit-wolf"``. Needs ``held_out=True``, since the bias of a shrunk estimate has no closed form.
        held_out: Fit on one part and report on another.

    Unit: nats.

    Kind: estimate. For Gaussian data it is unbiased. For other data it is the information of the Gaussian distribution
    with the same second moments, which is a lower bound if the marginals are Gaussian (so for ``copula=True``, up to
    sampling error), and not a bound otherwise.

    Raises:
        InputError: If there are too few samples for the columns, if shrinkage is requested without held-out samples, or
            if ``x`` and ``y`` have an exact linear relation.

    Cost:
        ``O(n d² + d³)`` time and ``O(d²)`` memory; the copula adds a sort per column.

    Pitfalls:
        Blind to all dependence without a linear component: ``y = |x|`` gives 0. Samples that repeat one item are not
        independent; name them in ``groups``. The bias correction counts samples, so with few groups of many samples the
        value is too high, as the null permuted by groups then shows. As a loss, a batch must have more samples than
        ``d_x + d_y``, or some shrinkage.

    Source:
        Hotelling's canonical correlations; the bias is the mean log-determinant of the Wishart distribution.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(4000, 2, generator=g)
        >>> y = 0.6 * x + 0.8 * torch.randn(4000, 2, generator=g)
        >>> abs(float(GaussianMI().estimate(x, y)) - 0.446) < 0.03  # the true value is -log(1 - 0.36) = 0.446 nats
        True
    """

    mean_x: Tensor
    mean_y: Tensor
    directions_x: Tensor
    directions_y: Tensor
    correlations: Tensor

    name = "gaussian"
    unit = "nats"
    kind = "estimate"
    needs_density = True

    def __init__(self, *, copula: bool = False, shrinkage: float | str = 0.0, held_out: bool = False) -> None:
        super().__init__()
        if isinstance(shrinkage, str):
            if shrinkage != "ledoit-wolf":
                raise InputError(f'shrinkage is "{shrinkage}"; use a number in [0, 1) or "ledoit-wolf".')
        elif not 0 <= shrinkage < 1:
            raise InputError(f"shrinkage is {shrinkage}; it must lie in [0, 1).")
        if shrinkage != 0 and not held_out:
            raise InputError(
                "shrinkage needs held_out=True: the bias of a shrunk in-sample estimate has no closed form."
            )
        self.copula = copula
        self.shrinkage = shrinkage
        self.held_out = held_out
        self.learned = held_out
        self.differentiable = not copula
        self.symmetric = not held_out

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"copula={self.copula}, shrinkage={self.shrinkage!r}, held_out={self.held_out}"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return minus the Gaussian information of the batch, with shrinkage of at least 1e-3."""
        if self.copula:
            raise TypeError(
                "GaussianMI(copula=True) has no gradient: ranks are piecewise constant. Use GaussianMI() as a loss."
            )
        require_pair(x, y)
        with torch.autocast(x.device.type, enabled=False):
            z_x, z_y = _standardized(x), _standardized(y.detach())
            z = torch.cat([z_x, z_y], dim=1)
            amount = max(_amount(self.shrinkage, z), 1e-3)
            joint = (1 - amount) * (z.T @ z) / z.shape[0]
            joint = joint + amount * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
            d = x.shape[1]
            return 0.5 * (torch.logdet(joint) - torch.logdet(joint[:d, :d]) - torch.logdet(joint[d:, d:]))

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information in nats; it is unbiased for Gaussian data, so it can be negative."""
        return self.pointwise(x, y).mean()

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's log-density ratio minus the bias; its mean is the estimate."""
        require_pair(x, y)
        z_x, z_y = self._coordinates(x), self._coordinates(y)
        if self.held_out:
            return self._fitted_form().log_ratio(z_x, z_y)
        form = canonical_form(z_x, z_y)
        r_x, r_y = form.directions_x.shape[1], form.directions_y.shape[1]
        if x.shape[0] <= r_x + r_y + 1:
            raise InputError(
                f"There are {x.shape[0]} samples for {r_x} + {r_y} independent features; GaussianMI needs more samples "
                'than features. Use GaussianMI(shrinkage="ledoit-wolf", held_out=True), or reduce the features first.'
            )
        return form.log_ratio(z_x, z_y) - wishart_bias(x.shape[0], r_x, r_y)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        """Return the standard error from the spread over samples, plus a second-order term for independence.

        The log-density ratio is the estimate's influence function. For independent sides it vanishes and
        ``2 n I ~ χ²(d_x d_y)``, which adds ``d_x d_y / 2n²`` to the variance.
        """
        first_order = clustered_standard_error(self.pointwise(x, y), groups)
        n = x.shape[0] if groups is None else int(groups.max()) + 1
        second_order = 0.0 if self.held_out else x.shape[1] * y.shape[1] / (2 * n**2)
        return float((first_order**2 + second_order) ** 0.5)

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return the kind of dependence that this estimator does not detect."""
        sentence = (
            "Only dependence with a linear component is detected; y = |x| would give 0. KSG and InfoNCE detect more."
        )
        return (Check.not_applicable("dependence looked for", sentence),)

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return two more than the columns, or 4 with shrinkage."""
        return 4 if self.shrinkage != 0 else d_x + d_y + 2

    def _fit(self, data: FitData) -> FitRecord:
        """Fit the canonical form on the fit and select parts together; there is no early stopping."""
        if not self.held_out:
            return FitRecord()
        x, y = data.pooled
        z_x, z_y = self._coordinates(x), self._coordinates(y)
        amount = _amount(self.shrinkage, torch.cat([_standardized(z_x), _standardized(z_y)], dim=1))
        form = canonical_form(z_x, z_y, shrinkage=amount)
        self.register_buffer("mean_x", form.mean_x)
        self.register_buffer("mean_y", form.mean_y)
        self.register_buffer("directions_x", form.directions_x)
        self.register_buffer("directions_y", form.directions_y)
        self.register_buffer("correlations", form.correlations)
        return FitRecord()

    def _fitted_form(self) -> CanonicalForm:
        try:
            return CanonicalForm(self.mean_x, self.mean_y, self.directions_x, self.directions_y, self.correlations)
        except AttributeError:
            raise InputError("This GaussianMI(held_out=True) is not fitted. Call fit, or use mikit.measure.") from None

    def _coordinates(self, x: Tensor) -> Tensor:
        return rank_gaussianise(x) if self.copula else x


def _standardized(x: Tensor) -> Tensor:
    x = x.double() if x.dtype == torch.float64 else x.float()
    centered = x - x.mean(0)
    variance = centered.square().mean(0)
    # A constant column has scale 1 instead of 0, so that its gradient stays finite.
    return centered / torch.where(variance > 0, variance, 1.0).sqrt()


def _amount(shrinkage: float | str, z: Tensor) -> float:
    """Return the shrinkage weight; for ``"ledoit-wolf"`` the one that minimizes the expected squared error."""
    if not isinstance(shrinkage, str):
        return float(shrinkage)
    n, d = z.shape
    z = z.detach().double()
    correlation = z.T @ z / n
    distance = float((correlation - torch.eye(d, dtype=z.dtype, device=z.device)).square().sum())
    # Σ_ij Var(z_i z_j) / n, from row norms alone.
    scatter = float(z.square().sum(1).square().mean() - correlation.square().sum()) / n
    return min(max(scatter / distance if distance > 0 else 1.0, 0.0), 0.999)
