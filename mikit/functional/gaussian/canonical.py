"""Gaussian information in float64: canonical correlations, the Gaussian copula, and the exact finite-sample bias.

For jointly Gaussian ``x`` and ``y`` with canonical correlations ``ρ_i``, ``I(x; y) = -½ Σ log(1 - ρ_i²)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import THREE_WAYS, InputError

__all__ = [
    "CanonicalForm",
    "bartlett_rank",
    "canonical_form",
    "cca",
    "gaussian_mi",
    "rank_gaussianise",
    "whitener",
    "wishart_bias",
]

# Directions whose variance is below this fraction of the largest are rounding, not data.
_RANK_TOLERANCE = 1e-10
# 1 - ρ² below this means an exact linear relation: the information is infinite.
_EXACT_RELATION = 1e-10


@final
@dataclass(frozen=True)
class CanonicalForm:
    """Means, canonical directions and correlations of a pair of samples.

    Attributes:
        mean_x: Column means ``(d_x,)``.
        mean_y: Column means ``(d_y,)``.
        directions_x: Columns are canonical directions ``(d_x, r_x)``; projections have unit variance.
        directions_y: Likewise ``(d_y, r_y)``.
        correlations: Canonical correlations ``(min(r_x, r_y),)``, in descending order.
    """

    mean_x: Tensor
    mean_y: Tensor
    directions_x: Tensor
    directions_y: Tensor
    correlations: Tensor

    def log_ratio(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log p(x, y) / (p(x) p(y))`` of each row under the Gaussian distribution."""
        r = self.correlations.shape[0]
        a = (x.double() - self.mean_x) @ self.directions_x[:, :r]
        b = (y.double() - self.mean_y) @ self.directions_y[:, :r]
        rho = self.correlations
        noise = 1 - rho.square()
        quadratic = (2 * rho * a * b - rho.square() * (a.square() + b.square())) / (2 * noise)
        return (quadratic - 0.5 * noise.log()).sum(dim=1)


def canonical_form(x: Tensor, y: Tensor, *, shrinkage: float = 0.0) -> CanonicalForm:
    """Return the canonical form of paired rows ``(n, d_x)`` and ``(n, d_y)``, without numerically empty directions.

    ``shrinkage`` in ``[0, 1)`` replaces the joint correlation matrix ``R`` by ``(1 - λ) R + λ I``. Raises
    :class:`~mikit.InputError` if a linear combination of ``x`` equals one of ``y`` exactly: the information is
    infinite.
    """
    n = x.shape[0]
    x64, y64 = x.double(), y.double()
    mean_x, mean_y = x64.mean(0), y64.mean(0)
    scale_x, scale_y = _column_scale(x64, mean_x), _column_scale(y64, mean_y)
    z_x, z_y = (x64 - mean_x) / scale_x, (y64 - mean_y) / scale_y
    c_xx, c_yy, c_xy = z_x.T @ z_x / n, z_y.T @ z_y / n, z_x.T @ z_y / n
    if shrinkage > 0:
        live_x, live_y = (c_xx.diagonal() > 0).double(), (c_yy.diagonal() > 0).double()
        c_xx = (1 - shrinkage) * c_xx + shrinkage * torch.diag(live_x)
        c_yy = (1 - shrinkage) * c_yy + shrinkage * torch.diag(live_y)
        c_xy = (1 - shrinkage) * c_xy
    # Whitening both sides first, and leaving out empty directions there, makes the correlations singular values. The
    # usual generalized eigenproblem yields their squares, which loses half of the digits of small ones.
    w_x, w_y = whitener(c_xx), whitener(c_yy)
    if w_x.shape[1] == 0 or w_y.shape[1] == 0:
        correlations = x64.new_zeros(0)
        return CanonicalForm(mean_x, mean_y, w_x / scale_x[:, None], w_y / scale_y[:, None], correlations)
    u, s, v = torch.linalg.svd(w_x.T @ c_xy @ w_y, full_matrices=False)
    if bool((1 - s.square() < _EXACT_RELATION).any()) and n > w_x.shape[1] + w_y.shape[1]:
        count = int((1 - s.square() < _EXACT_RELATION).sum())
        raise InputError(
            f"{count} linear combination{'s' if count > 1 else ''} of x equal{'' if count > 1 else 's'} a combination "
            f"of y exactly, so the information between them is infinite. {THREE_WAYS} Or leave out the shared "
            "features."
        )
    return CanonicalForm(mean_x, mean_y, (w_x @ u) / scale_x[:, None], (w_y @ v.T) / scale_y[:, None], s.clamp(max=1.0))


def cca(x: Tensor, y: Tensor) -> Tensor:
    """Return the canonical correlations of ``x`` and ``y``, in descending order.

    Formula: the singular values of ``Σ_xx^{-1/2} Σ_xy Σ_yy^{-1/2}``.

    Args:
        x: ``(n, d_x)``.
        y: ``(n, d_y)``.

    Returns:
        ``(min(rank x, rank y),)``, float64, dimensionless, in ``[0, 1]``.

    Raises:
        InputError: If an exact linear relation makes a correlation 1.

    Cost:
        ``O(n d² + d³)`` time, ``O(d²)`` memory.

    Pitfalls:
        Sample canonical correlations are biased upwards: for independent data of width ``d`` they are about
        ``sqrt(d / n)``, and all of them are 1 if ``n <= d_x + d_y``.

    Source:
        Hotelling, 1936.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.randn(1000, 3, generator=g)
        >>> [round(float(r), 1) for r in cca(z, z[:, :1] + torch.randn(1000, 1, generator=g))]
        [0.7]
    """
    return canonical_form(x, y).correlations


def gaussian_mi(x: Tensor, y: Tensor, *, correct_bias: bool = True) -> Tensor:
    """Return the Gaussian mutual information of paired rows.

    Formula: ``-½ Σ_i log(1 - ρ_i²) - b(n, r_x, r_y)`` with canonical correlations ``ρ_i`` and the exact bias ``b`` of
    Gaussian samples (see :func:`wishart_bias`).

    Args:
        x: ``(n, d_x)``.
        y: ``(n, d_y)``.
        correct_bias: Whether to subtract ``b``.

    Returns:
        0-dim, float64, in nats. Exactly unbiased for Gaussian data when corrected, so it can be negative.

    Raises:
        InputError: If ``n <= r_x + r_y + 1``, or if an exact linear relation makes the information infinite.

    Cost:
        ``O(n d² + d³)`` time, ``O(d²)`` memory.

    Pitfalls:
        Measures linear dependence only. In general it is neither a lower nor an upper bound; with Gaussian marginals it
        is a lower bound.

    Source:
        Cover and Thomas, Elements of Information Theory, for the formula; the bias is the mean log-determinant of a
        Wishart matrix.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(5000, 2, generator=g)
        >>> y = 0.6 * x + 0.8 * torch.randn(5000, 2, generator=g)
        >>> abs(float(gaussian_mi(x, y)) - 0.446) < 0.03  # the truth is -log(1 - 0.36) = 0.446 nats
        True
    """
    form = canonical_form(x, y)
    r_x, r_y = form.directions_x.shape[1], form.directions_y.shape[1]
    n = x.shape[0]
    if n <= r_x + r_y + 1:
        raise InputError(
            f"Gaussian information in closed form needs more samples than features: {n} samples for {r_x} + {r_y} "
            "independent features. Use shrinkage with held-out samples, or reduce the features first."
        )
    value = -0.5 * torch.log1p(-form.correlations.square()).sum()
    return value - wishart_bias(n, r_x, r_y) if correct_bias else value


def wishart_bias(n: int, d_x: int, d_y: int) -> float:
    """Return the bias of the plug-in Gaussian mutual information of ``n`` Gaussian samples.

    Formula: ``½ [w(d_x) + w(d_y) - w(d_x + d_y)]`` with ``w(p) = Σ_{i<p} [ψ((m - i)/2) - log(m/2)]``, ``m = n - 1``,
    because ``E log|S| = log|Σ| + w(p)`` for a sample covariance with ``m`` degrees of freedom. The bias does not depend
    on the correlations; for large ``n`` it is about ``d_x d_y / 2n``.

    Args:
        n: Number of rows.
        d_x: Rank of the first sample.
        d_y: Rank of the second.

    Returns:
        The bias in nats, never negative.

    Raises:
        InputError: If ``n <= d_x + d_y``.

    Cost:
        ``O(d_x + d_y)``.

    Pitfalls:
        Exact for Gaussian data only, and for independent rows: pseudo-replicates have a larger bias.

    Source:
        Mean log-determinant of the Wishart distribution.

    Example:
        >>> round(wishart_bias(1000, 10, 10), 3)
        0.051
    """
    if n <= d_x + d_y:
        raise InputError(
            f"The bias of {n} samples with {d_x} + {d_y} features is infinite; use more samples or fewer features."
        )
    m = n - 1

    def mean_log_determinant(p: int) -> float:
        i = torch.arange(p, dtype=torch.float64)
        half = torch.tensor(m / 2, dtype=torch.float64)
        return float((torch.digamma((m - i) / 2) - half.log()).sum())

    return 0.5 * (mean_log_determinant(d_x) + mean_log_determinant(d_y) - mean_log_determinant(d_x + d_y))


def rank_gaussianise(x: Tensor) -> Tensor:
    """Return the normal scores of each column: the marginals become Gaussian, and mutual information is preserved.

    Formula: ``z = Φ^{-1}((rank - ½) / n)``, scaled to unit variance; tied entries get their mean rank, so that a
    constant column becomes 0.

    Args:
        x: ``(n, d)``.

    Returns:
        ``(n, d)``, float64, dimensionless.

    Raises:
        Nothing beyond torch's own shape errors.

    Cost:
        ``O(n d log n)`` time, ``O(n d)`` memory.

    Pitfalls:
        The map is fitted to the sample, so it is invertible on the sample only. Ties (an atom at 0 after ReLU) remain
        ties.

    Source:
        Van der Waerden's normal scores.

    Example:
        >>> rank_gaussianise(torch.tensor([[1.0], [100.0], [2.0]])).flatten().tolist()
        [-1.2247448713915892, 1.2247448713915892, 0.0]
    """
    n = x.shape[0]
    x64 = x.detach().double()
    ordered, order = x64.sort(dim=0, stable=True)
    position = torch.arange(1, n + 1, dtype=torch.float64, device=x.device)[:, None].expand_as(ordered)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    run = starts.cumsum(dim=0) - 1
    zeros = torch.zeros_like(ordered)
    total = zeros.scatter_add(0, run, position)
    count = zeros.scatter_add(0, run, torch.ones_like(ordered))
    rank = torch.empty_like(ordered).scatter_(0, order, (total / count.clamp(min=1)).gather(0, run))
    scores = torch.special.ndtri((rank - 0.5) / n)
    scores = torch.where((rank - 0.5) / n == 0.5, 0.0, scores)
    spread = scores.square().mean(0).sqrt()
    return scores / torch.where(spread > 0, spread, 1.0)


def bartlett_rank(correlations: Tensor, n: int, d_x: int, d_y: int, *, level: float = 0.01) -> int:
    """Return the number of canonical correlations that differ from 0 by Bartlett's sequential test at ``level``."""
    from scipy.stats import chi2

    rho = correlations.double()
    for k in range(rho.shape[0]):
        statistic = -(n - 1 - (d_x + d_y + 1) / 2) * float(torch.log1p(-rho[k:].square()).sum())
        if statistic <= chi2.ppf(1 - level, (d_x - k) * (d_y - k)):
            return k
    return int(rho.shape[0])


def _column_scale(x: Tensor, mean: Tensor) -> Tensor:
    """Return the SD of each column; infinity for columns that vary by rounding only, so that they become 0."""
    centered = x - mean
    peak = centered.abs().amax(0)
    rounding = 1e-13 * mean.abs() * x.shape[0] ** 0.5
    varies = peak > rounding
    # Dividing by the peak first keeps the squares of huge and tiny columns within the range of float64.
    relative = centered / torch.where(varies, peak, 1.0)
    return torch.where(varies, peak * relative.square().mean(0).sqrt(), torch.inf)


def whitener(correlation: Tensor) -> Tensor:
    """Return a whitening matrix ``(d, r)`` for rows of this correlation matrix ``(d, d)``, without empty directions."""
    values, vectors = torch.linalg.eigh(correlation)
    largest = values[-1:].clamp(min=0)
    kept = values > _RANK_TOLERANCE * largest
    white: Tensor = vectors[:, kept] / values[kept].sqrt()
    return white
