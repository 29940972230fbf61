"""The transport distance of two Gaussians: squared Bures distance of covariances, and squared Wasserstein distance.

Neither a matrix square root nor, where there are fewer rows than columns, a covariance is formed. With centred rows
``X`` and ``Y`` scaled to ``A = Xᵀ X`` and ``B = Yᵀ Y``, the trace of the square root is the sum of the singular values
of ``X Yᵀ``, and its gradient in ``X`` is ``P Y`` with the polar factor ``P`` of ``X Yᵀ``. The gradient divides by no
difference of eigenvalues, so equal ones do no harm.
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
    require_one_device,
    require_rows,
    require_same_width,
    working_dtype,
)

__all__ = ["bures2", "gaussian_wasserstein2", "polar_by_eigenvectors", "polar_by_products"]

# Singular values of X Yᵀ below this share of the largest are rounding of float32 data, not directions.
_RANK_TOLERANCE = 1e-7
# Error of an eigenvalue in float64, as a share of the largest.
_RELATIVE_ROUNDING = 2e-15
# Share of the largest pivot below which a Cholesky factor of a covariance in float64 is not trusted.
_PIVOT_TOLERANCE = 1e-11
# Singular values above this share of the Frobenius norm reach 1 in the iteration without eigenvectors.
_RESOLVED = 1e-9
_ROWS_AT_A_TIME = 2**14


def bures2(x: Tensor, y: Tensor, *, correction: int = 0) -> Tensor:
    r"""Squared Bures distance of the covariances of two samples.

    .. math:: B^2 = \mathrm{tr} A + \mathrm{tr} B - 2\, \mathrm{tr} (A^{1/2} B A^{1/2})^{1/2}

    with the covariances :math:`A` of ``x`` and :math:`B` of ``y``. It is the squared 2-Wasserstein distance of two
    centred Gaussians.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        correction: Covariances divide by ``n - correction`` and ``m - correction``: 0 for the covariances of the
            samples themselves, 1 for unbiased estimates.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit: that of
        the features, squared. Kind: a squared distance; never clipped, so equal covariances may give ``-1e-15`` times
        their trace.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths or devices differ, ``correction`` is neither 0 nor 1, or a
            sample has no more rows than that.

    Cost:
        O(k l (d + k)) with ``k = min(n, d) <= l = min(m, d)``, and O(n d²) for a sample with more rows than columns;
        O(k l + (n + m) d) memory. In float64.

    Pitfalls:
        - Too large on small samples: two samples of 128 rows of one law in 512 dimensions are far apart. Compare with
          the distance of two halves of one sample.
        - Sees only the covariances: two laws of different shape can be at distance 0.
        - Where ``X Yᵀ`` does not have full rank (dead units, fewer rows than columns) the distance has a kink: the
          square root has no derivative in directions without variance. The gradient given there leaves
          out what would point along them (the polar factor is that of the singular values that are not 0). They count
          as 0 below ``1e-7`` of the largest.

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
        the features, squared. Kind: a squared distance of the fitted Gaussians. For the empirical laws it is a lower
        bound on their squared 2-Wasserstein distance when ``correction`` is 0.

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
        # No eigenvalues are found among NaNs; the answer is what every other formula gives.
        nan = x.new_full((), torch.nan, dtype=torch.float64)
        return nan, torch.full_like(x, torch.nan), torch.full_like(y, torch.nan)
    a, b = _factor(x, correction), _factor(y, correction)
    cross = a.rows @ b.rows.T
    accuracy = torch.finfo(torch.promote_types(x.dtype, y.dtype)).eps
    polar = polar_by_products(cross).factor if x.device.type != "cpu" else polar_by_eigenvectors(cross, accuracy)
    value = a.trace + b.trace - 2 * (polar * cross).sum()
    gradient_x = a.gradient(polar, b).to(x.dtype) if wants[0] else unwanted(x)
    gradient_y = b.gradient(polar.T, a).to(y.dtype) if wants[1] else unwanted(y)
    return value, gradient_x, gradient_y


@final
class _Factor(NamedTuple):
    """A matrix ``F`` of as few rows as there are dimensions, with ``Fᵀ F`` the covariance.

    Args:
        rows: ``F`` in float64, ``(k, d)``.
        sample: The centred sample in its own dtype, ``(n, d)``, without the factor ``size``.
        size: ``F`` is ``size`` times the sample, where it is not ``reduced``.
        back: With fewer columns than rows, the pseudo-inverse of ``F``, ``(d, k)``; None otherwise.
        trace: Trace of the covariance.
    """

    rows: Tensor
    sample: Tensor
    size: float
    back: Tensor | None
    trace: Tensor

    def gradient(self, polar: Tensor, other: _Factor) -> Tensor:
        """Return the derivative of the squared distance in the sample; ``polar`` has one row for each of ``rows``."""
        dtype = self.sample.dtype
        if self.back is None:
            nearest = polar.to(dtype) @ other.rows.to(dtype)
        else:
            nearest = self.sample @ (self.back @ (polar @ other.rows)).to(dtype).mul_(self.size)
        return nearest.mul_(-1).add_(self.sample, alpha=self.size).mul_(2 * self.size)


def _factor(sample: Tensor, correction: int) -> _Factor:
    n, d = sample.shape
    size = float(n - correction) ** -0.5
    mean = _mean(sample)
    # A column of one value has no variance, whatever the rounding of its mean says.
    mean = torch.where(constant_columns(sample), sample[0].double(), mean)
    if n <= d:
        rows = sample.double() - mean
        centred = rows.to(sample.dtype)
        rows = rows * size
        return _Factor(rows, centred, size, None, rows.square().sum())
    centred = torch.empty_like(sample)
    covariance = torch.zeros(d, d, dtype=torch.float64, device=sample.device)
    for start in range(0, n, _ROWS_AT_A_TIME):
        part = sample[start : start + _ROWS_AT_A_TIME].double() - mean
        centred[start : start + _ROWS_AT_A_TIME] = part
        covariance.addmm_(part.T, part)
    covariance *= size**2
    rows, back = _triangular(covariance) or _by_spectrum(covariance)
    return _Factor(rows, centred, size, back, covariance.trace())


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
    """Return the polar factor ``U Vᵀ`` of ``matrix = U diag(s) Vᵀ``, over the singular values that are not 0.

    Args:
        matrix: ``(k, l)``, float64.
        accuracy: Relative error that does no harm; 0: none beyond rounding.

    Returns:
        ``(k, l)``; singular values below ``1e-7`` of the largest count as 0.

    Cost:
        The eigenvectors of a symmetric matrix of the smaller side, and four products with it.

    Pitfalls:
        Squaring loses half of the digits of small singular values; a step of Newton and Schulz's iteration gives the
        factor's own singular values back to rounding. It is left out where the loss is below ``accuracy``.

    Source:
        Higham (2008), "Functions of Matrices", chapter 8.

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
    if bool((values[kept] * accuracy > _RELATIVE_ROUNDING * values[-1]).all()):
        return polar
    return torch.addmm(polar, polar @ polar.T, polar, beta=1.5, alpha=-0.5)


@final
class Polar(NamedTuple):
    """A polar factor, and how far it is from one.

    Args:
        factor: ``(k, l)``.
        residual: Largest entry of ``P Pᵀ P - P``, 0-dim. Singular values close to the tolerance, which are on their way
            from 0 to 1, show here.
    """

    factor: Tensor
    residual: Tensor


def polar_by_products(matrix: Tensor) -> Polar:
    """Return the polar factor by Newton and Schulz's iteration: products of matrices only, as a GPU likes it.

    Each step maps the singular values ``s`` to ``c s (3 - c² s²) / 2``, which goes to 1. The scale ``c`` is the one
    that brings a known smallest value up fastest, ``c² = 3 / (1 + l + l²)`` for values between ``l`` and 1, and ``l``
    follows the same map.

    Args:
        matrix: ``(k, l)``, float64.

    Returns:
        The factor and its residual. Singular values above ``1e-9`` of the Frobenius norm have reached 1 to rounding;
        those far below it stay near 0, which is the part of the polar factor over the singular values that are not 0.

    Cost:
        About 30 steps of two products, on the smaller side.

    Pitfalls:
        The sum of the singular values that is read off the factor is too small by those below the tolerance, at most
        ``1e-9`` of the Frobenius norm for each.

    Source:
        Higham (2008), "Functions of Matrices", chapter 8; scaling as by Chen and Chow (2014).

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
            f"correction is {correction}; covariances divide by the number of rows (0) or by one less (1)."
        )
    require_rows(x, "x", fewest=1 + correction)
    require_rows(y, "y", fewest=1 + correction)
    require_same_width(x, y)
    require_one_device(x, y)
    dtype = working_dtype(x, y)
    return x.to(dtype), y.to(dtype)
