"""The transport distance of two Gaussians: squared Bures distance of covariances, and squared Wasserstein distance.

No matrix square root is computed. With centered rows ``X`` and ``Y``, scaled so that ``A = Xᵀ X`` and ``B = Yᵀ Y``, the
trace of ``(A^½ B A^½)^½`` is the sum of the singular values of ``X Yᵀ``, and its gradient in ``X`` is ``P Y`` with the
polar factor ``P`` of ``X Yᵀ``. The gradient divides by no difference of eigenvalues, so equal ones do no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.operators import closed_form, unwanted
from mikit.functional.engine.samples import (
    constant_columns,
    require_comparable,
    working_dtype,
)

__all__ = ["bures2", "gaussian_wasserstein2", "polar_by_eigenvectors", "polar_by_products"]

# Singular values of X Yᵀ below this fraction of the largest are rounding of float32 data, not directions.
_RANK_TOLERANCE = 1e-7
# Error of an eigenvalue in float64, as a fraction of the largest.
_RELATIVE_ROUNDING = 2e-15
# Fraction of the largest pivot below which a Cholesky factor of a covariance in float64 is not trusted.
_PIVOT_TOLERANCE = 1e-11
# Singular values above this fraction of the Frobenius norm reach 1 in the iteration without eigenvectors.
_RESOLVED = 1e-9
_ROWS_AT_A_TIME = 2**14


def bures2(x: Tensor, y: Tensor, *, correction: int = 0) -> Tensor:
    r"""Squared Bures distance of the covariances of two samples.

    .. math:: B^2 = \mathrm{tr} A + \mathrm{tr} B - 2\, \mathrm{tr} (A^{1/2} B A^{1/2})^{1/2}

    with the covariances :math:`A` of ``x`` and :math:`B` of ``y``. It is the squared 2-Wasserstein distance of two
    centered Gaussians.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        correction: Covariances divide by ``n - correction`` and ``m - correction``: 0 for the covariances of the
            samples themselves, 1 for unbiased estimates.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit: that of
        the features, squared. Kind: a squared distance; never clipped, so for equal covariances it may be ``-1e-15``
        times their trace.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths or devices differ, ``correction`` is neither 0 nor 1, or a
            sample has at most ``correction`` rows.

    Cost:
        O(k l (d + k)) with ``k = min(n, d) <= l = min(m, d)``, and O(n d²) for a sample with more rows than columns;
        O(k l + (n + m) d) memory. In float64.

    Pitfalls:
        - Too large on small samples: two samples of 128 rows from one distribution in 512 dimensions are far apart.
          Compare with the distance of two halves of one sample.
        - Compares covariances only: two distributions of different shape can be at distance 0.
        - Where ``X Yᵀ`` does not have full rank (dead units, fewer rows than columns) the distance is not
          differentiable: the square root has no derivative in directions without variance. The returned gradient has
          no component along them (the polar factor is that of the nonzero singular values). Singular values below
          ``1e-7`` of the largest count as 0.

    Source:
        Dowson and Landau (1982), "The Fréchet distance between multivariate normal distributions". The trace of the
        square root as a sum of singular values follows from ``X Yᵀ Y Xᵀ`` having the eigenvalues of ``A B``.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(bures2(x, 3 * x).item(), 6)  # standard deviations of root ½ and 3 times that, in two directions
        4.0
    """
    a, b = _prepared(x, y, correction)
    return _squared_bures(a, b, correction).to(a.dtype)


def gaussian_wasserstein2(x: Tensor, y: Tensor, *, correction: int = 0) -> Tensor:
    r"""Squared 2-Wasserstein distance of the Gaussians that share means and covariances with two samples.

    .. math:: W^2 = |\bar x - \bar y|^2 + B^2

    with the squared Bures distance :math:`B^2` of :func:`bures2`.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        correction: As in :func:`bures2`.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit: that of
        the features, squared. Kind: a squared distance of the fitted Gaussians. With ``correction=0`` it is a
        lower bound on the squared 2-Wasserstein distance of the empirical distributions.

    Raises:
        InputError: As :func:`bures2`.

    Cost:
        As :func:`bures2`.

    Pitfalls:
        As :func:`bures2`. With the features of an Inception network this number is the Fréchet inception distance.

    Source:
        As :func:`bures2`; the lower bound is due to Gelbrich (1990).

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(gaussian_wasserstein2(x, x + 2).item(), 6)
        8.0
    """
    a, b = _prepared(x, y, correction)
    difference = (_mean(a) - _mean(b)).square().sum()
    return (difference + _squared_bures(a, b, correction)).to(a.dtype)


@closed_form
def _squared_bures(wants: Sequence[bool], x: Tensor, y: Tensor, correction: int) -> tuple[Tensor, Tensor, Tensor]:
    if not bool((x.sum(dtype=torch.float64) + y.sum(dtype=torch.float64)).isfinite()):
        # The solvers raise on NaN. Every other formula propagates it.
        nan = x.new_full((), torch.nan, dtype=torch.float64)
        return nan, torch.full_like(x, torch.nan), torch.full_like(y, torch.nan)
    a, b = _factor(x, correction), _factor(y, correction)
    cross = a.rows @ b.rows.T
    accuracy = torch.finfo(torch.promote_types(x.dtype, y.dtype)).eps
    # Eigensolvers are slow on a GPU and make it wait; products are what it does best.
    polar = polar_by_products(cross).factor if x.device.type != "cpu" else polar_by_eigenvectors(cross, accuracy)
    value = a.trace + b.trace - 2 * (polar * cross).sum()
    gradient_x = a.gradient(polar, b).to(x.dtype) if wants[0] else unwanted(x)
    gradient_y = b.gradient(polar.T, a).to(y.dtype) if wants[1] else unwanted(y)
    return value, gradient_x, gradient_y


@final
class _Factor(NamedTuple):
    """A matrix ``F`` of at most ``d`` rows with ``Fᵀ F`` the covariance.

    Attributes:
        rows: ``F`` in float64, ``(k, d)``.
        sample: The centered sample in its own dtype, ``(n, d)``, without the factor ``size``.
        size: Where ``n <= d``, ``F`` is ``size`` times the sample.
        back: Where ``n > d``, the pseudo-inverse of ``F``, ``(d, k)``; None otherwise.
        trace: Trace of the covariance.
    """

    rows: Tensor
    sample: Tensor
    size: float
    back: Tensor | None
    trace: Tensor

    def gradient(self, polar: Tensor, other: _Factor) -> Tensor:
        """Return the gradient of the squared distance in the sample; ``polar`` has one row for each of ``rows``."""
        dtype = self.sample.dtype
        if self.back is None:
            nearest = polar.to(dtype) @ other.rows.to(dtype)
        else:
            # Q = size · sample @ back has orthonormal columns, and size · sample = Q F. So Q P is the polar factor for
            # the whole sample, although only matrices of at most d rows were decomposed.
            nearest = self.sample @ (self.back @ (polar @ other.rows)).to(dtype).mul_(self.size)
        return nearest.mul_(-1).add_(self.sample, alpha=self.size).mul_(2 * self.size)


def _factor(sample: Tensor, correction: int) -> _Factor:
    n, d = sample.shape
    size = float(n - correction) ** -0.5
    mean = _mean(sample)
    # The mean of equal values may be rounded; a constant column must still have no variance.
    mean = torch.where(constant_columns(sample), sample[0].double(), mean)
    if n <= d:
        rows = sample.double() - mean
        centered = rows.to(sample.dtype)
        rows = rows * size
        return _Factor(rows, centered, size, None, rows.square().sum())
    centered = torch.empty_like(sample)
    covariance = torch.zeros(d, d, dtype=torch.float64, device=sample.device)
    for start in range(0, n, _ROWS_AT_A_TIME):
        part = sample[start : start + _ROWS_AT_A_TIME].double() - mean
        centered[start : start + _ROWS_AT_A_TIME] = part
        covariance.addmm_(part.T, part)
    covariance *= size**2
    # Only Fᵀ F matters, so the cheapest factor will do: Cholesky where it is accurate.
    rows, back = _triangular(covariance) or _by_spectrum(covariance)
    return _Factor(rows, centered, size, back, covariance.trace())


def _triangular(covariance: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the Cholesky factor and its inverse, or None if the covariance is close to singular."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal().square()
    if failed or not pivots.amin() > _PIVOT_TOLERANCE * pivots.amax():
        return None
    identity = torch.eye(covariance.shape[0], dtype=covariance.dtype, device=covariance.device)
    return factor.T, torch.linalg.solve_triangular(factor, identity, upper=False).T


def _by_spectrum(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factor of the directions that have variance, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > covariance.shape[0] * torch.finfo(values.dtype).eps * values[-1]
    roots, vectors = values[kept].sqrt(), vectors[:, kept]
    return roots[:, None] * vectors.T, vectors / roots


def polar_by_eigenvectors(matrix: Tensor, accuracy: float = 0.0) -> Tensor:
    """Return the polar factor ``U Vᵀ`` of ``U diag(s) Vᵀ`` (float64) over its nonzero singular values.

    Those below ``1e-7`` of the largest count as 0. ``accuracy`` is a relative error that does no harm; 0: none beyond
    rounding.

    Example:
        >>> polar_by_eigenvectors(torch.diag(torch.tensor([-2.0, 3.0, 0.0], dtype=torch.float64))).diagonal().tolist()
        [-1.0, 1.0, 0.0]
    """
    if matrix.numel() == 0:
        return matrix
    if matrix.shape[0] > matrix.shape[1]:
        return polar_by_eigenvectors(matrix.T, accuracy).T
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    kept = values > _RANK_TOLERANCE**2 * values[-1]
    roots = torch.where(kept, values, 1.0).rsqrt() * kept
    polar: Tensor = (vectors * roots) @ (vectors.T @ matrix)
    # Squaring the matrix loses half of the digits of small singular values. One step of the Newton-Schulz iteration
    # (Higham 2008, chapter 8) converges quadratically and restores them. It is skipped where the loss is below
    # accuracy.
    if bool((values[kept] * accuracy > _RELATIVE_ROUNDING * values[-1]).all()):
        return polar
    return torch.addmm(polar, polar @ polar.T, polar, beta=1.5, alpha=-0.5)


@final
class Polar(NamedTuple):
    """A polar factor ``(k, l)``, and its residual: the largest entry of ``P Pᵀ P - P``, 0-dim.

    The residual shows singular values close to the tolerance, which have not reached 0 or 1.
    """

    factor: Tensor
    residual: Tensor


def polar_by_products(matrix: Tensor) -> Polar:
    """Return the polar factor of a float64 matrix by the Newton-Schulz iteration: matrix products only, for a GPU.

    Singular values above ``1e-9`` of the Frobenius norm reach 1 to rounding, and those far below stay near 0: about 30
    steps of two products. The sum of the singular values derived from the factor lacks the small ones, at most ``1e-9``
    of the norm each. Source: Higham (2008), "Functions of Matrices", chapter 8; scaling after Chen and Chow (2014).

    Example:
        >>> matrix = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
        >>> [round(entry, 6) for entry in polar_by_products(matrix).factor[:, 0].tolist()]
        [0.6, 0.8]
    """
    if matrix.numel() == 0:
        return Polar(matrix, matrix.new_zeros(()))
    if matrix.shape[0] > matrix.shape[1]:
        turned = polar_by_products(matrix.T)
        return Polar(turned.factor.T, turned.residual)
    norm = torch.linalg.matrix_norm(matrix)
    polar = matrix / torch.where(norm > 0, norm, 1.0)
    # A step maps singular values s to c s (3 - c² s²) / 2, which converges to 1. With c = 1 small values grow only by a
    # factor of 1.5 per step; c² = 3 / (1 + l + l²) is the scale that raises a smallest value l fastest if all lie
    # between l and 1. l follows the same map, so the number of steps is fixed and no step waits for the device.
    smallest = _RESOLVED
    while smallest < 1 - 1e-15:
        scale = (3 / (1 + smallest + smallest**2)) ** 0.5
        polar = torch.addmm(polar, polar @ polar.T, polar, beta=1.5 * scale, alpha=-0.5 * scale**3)
        smallest = 0.5 * scale * smallest * (3 - (scale * smallest) ** 2)
    return Polar(polar, torch.addmm(polar, polar @ polar.T, polar, alpha=-1).abs().amax())


def _mean(sample: Tensor) -> Tensor:
    return sample.mean(dim=0, dtype=torch.float64)


def _prepared(x: Tensor, y: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    if correction not in (0, 1):
        raise InputError(
            f"correction is {correction}; covariances divide by the number of samples (0) or by one less (1)."
        )
    require_comparable(x, y, fewest=1 + correction)
    dtype = working_dtype(x, y)
    return x.to(dtype), y.to(dtype)
