"""Gaussian mutual information, by canonical correlations or through the Gaussian copula."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.estimators.base import Estimator, clustered_standard_error, require_pair
from mikit.estimators.fitting import FitRecord, Training
from mikit.functional.gaussian.canonical import CanonicalForm, canonical_form, rank_gaussianise, wishart_bias

__all__ = ["GaussianMI"]


@final
class GaussianMI(Estimator):
    """Mutual information of jointly Gaussian rows ``(n, d_x)``, ``(n, d_y)``: exact, fast, and linear only.

    Formula: ``I = -½ Σ_i log(1 - ρ_i²)`` over the canonical correlations ``ρ_i``. By default all rows are used and the
    exact finite-sample bias is subtracted; with ``held_out=True`` the correlations come from the fit part and the
    mean log-density ratio of other rows is reported.

    Args:
        copula: Replace each column by its normal scores first. Keeps the information, removes the marginals' shape, and
            makes the estimate blind to monotone maps of single columns. Has no gradient.
        shrinkage: ``λ`` in ``[0, 1)`` by which the joint correlation matrix is drawn to the identity, or
            ``"ledoit-wolf"``. Needs ``held_out=True``, since the bias of a shrunk estimate has no closed form.
        held_out: Fit on one part and report on another.

    Unit: nats.

    Kind: estimate. For Gaussian data it is unbiased. For other data it is the information of the Gaussian law with
    the same second moments, which is a lower bound when the marginals are Gaussian (so for ``copula=True``, up to
    sampling error), and no bound otherwise.

    Raises:
        InputError: If there are too few rows for the columns, if shrinkage is asked for without held-out rows, or if
            ``x`` and ``y`` share an exact linear relation.

    Cost:
        ``O(n d² + d³)`` time and ``O(d²)`` memory; the copula adds a sort per column.

    Pitfalls:
        Blind to all dependence that leaves no linear trace: ``y = |x|`` gives 0. Rows that repeat one item are not
        independent; name them in ``groups``. The bias correction counts rows, so with few groups of many rows the value
        is high, as the null permuted by groups then shows. As a loss, a batch must have more rows than
        ``d_x + d_y``, or some shrinkage.

    Source:
        Hotelling's canonical correlations; the bias is the Wishart distribution's mean log-determinant.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(4000, 2, generator=g)
        >>> y = 0.6 * x + 0.8 * torch.randn(4000, 2, generator=g)
        >>> abs(float(GaussianMI().estimate(x, y)) - 0.446) < 0.03  # the truth is -log(1 - 0.36) = 0.446 nats
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
        """Return minus the Gaussian information of the batch, drawn to the identity by at least 1e-3."""
        if self.copula:
            raise TypeError(
                "GaussianMI(copula=True) has no gradient: ranks are piecewise constant. Use GaussianMI() as a loss."
            )
        require_pair(x, y)
        with torch.autocast(x.device.type, enabled=False):
            z_x, z_y = _standardised(x), _standardised(y.detach())
            z = torch.cat([z_x, z_y], dim=1)
            amount = max(_amount(self.shrinkage, z), 1e-3)
            joint = (1 - amount) * (z.T @ z) / z.shape[0]
            joint = joint + amount * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
            d = x.shape[1]
            return 0.5 * (torch.logdet(joint) - torch.logdet(joint[:d, :d]) - torch.logdet(joint[d:, d:]))

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information in nats; unbiased for Gaussian data, so it can fall below 0."""
        return self.pointwise(x, y).mean()

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each row's log-density ratio, less the bias; its mean is the estimate."""
        require_pair(x, y)
        z_x, z_y = self._coordinates(x), self._coordinates(y)
        if self.held_out:
            return self._fitted_form().log_ratio(z_x, z_y)
        form = canonical_form(z_x, z_y)
        r_x, r_y = form.directions_x.shape[1], form.directions_y.shape[1]
        if x.shape[0] <= r_x + r_y + 1:
            raise InputError(
                f"There are {x.shape[0]} rows for {r_x} + {r_y} independent columns; GaussianMI needs more rows than "
                'columns. Use GaussianMI(shrinkage="ledoit-wolf", held_out=True), or reduce the columns first.'
            )
        return form.log_ratio(z_x, z_y) - wishart_bias(x.shape[0], r_x, r_y)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        """Return the standard error from the rows' spread plus the second-order term that is left at independence.

        The log-density ratio is the estimate's influence function; at independence it vanishes and
        ``2 n I ~ χ²(d_x d_y)``, which adds ``d_x d_y / 2n²`` to the variance.
        """
        first_order = clustered_standard_error(self.pointwise(x, y), groups)
        n = x.shape[0] if groups is None else int(groups.max()) + 1
        second_order = 0.0 if self.held_out else x.shape[1] * y.shape[1] / (2 * n**2)
        return float((first_order**2 + second_order) ** 0.5)

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return what kind of dependence this instrument is blind to."""
        sentence = "Only dependence with a linear trace is seen; y = |x| would give 0. KSG and InfoNCE see more."
        return (Check("dependence looked for", "not applicable", None, None, sentence),)

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return two more than the columns, or 4 where shrinkage makes up for missing rows."""
        return 4 if self.shrinkage != 0 else d_x + d_y + 2

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        select: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator,
        training: Training | None = None,
    ) -> FitRecord:
        """Fit the canonical form on the fit and select rows together; there is nothing to stop early."""
        if not self.held_out:
            return FitRecord()
        if select is not None:
            x, y = torch.cat([x, select[0]]), torch.cat([y, select[1]])
        z_x, z_y = self._coordinates(x), self._coordinates(y)
        amount = _amount(self.shrinkage, torch.cat([_standardised(z_x), _standardised(z_y)], dim=1))
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


def _standardised(x: Tensor) -> Tensor:
    x = x.double() if x.dtype == torch.float64 else x.float()
    centred = x - x.mean(0)
    variance = centred.square().mean(0)
    # The scale of a constant column is 1, not 0: its gradient stays finite.
    return centred / torch.where(variance > 0, variance, 1.0).sqrt()


def _amount(shrinkage: float | str, z: Tensor) -> float:
    """Return the shrinkage weight; for ``"ledoit-wolf"`` the one that minimises the expected squared error."""
    if not isinstance(shrinkage, str):
        return float(shrinkage)
    n, d = z.shape
    z = z.detach().double()
    correlation = z.T @ z / n
    distance = float((correlation - torch.eye(d, dtype=z.dtype, device=z.device)).square().sum())
    # Σ_ij Var(z_i z_j) / n, from row norms alone.
    scatter = float(z.square().sum(1).square().mean() - correlation.square().sum()) / n
    return min(max(scatter / distance if distance > 0 else 1.0, 0.0), 0.999)
