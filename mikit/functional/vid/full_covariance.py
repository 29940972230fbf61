"""Gaussian log-scores and differences of entropies with a full covariance over channels.

``residual`` is ``t - μ``, with shape ``(n, c)`` or ``(n, c, h, w)``; every position of a map is one sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.vid.residuals import at_least_float32

__all__ = ["joint_difference_of_entropies", "joint_gaussian_nll"]


def joint_gaussian_nll(residual: Tensor, covariance: Tensor, *, coordinates: Tensor | None = None) -> Tensor:
    """Return the negative Gaussian log-likelihood of all channels jointly, averaged over samples and positions.

    Formula: ``½ [ tr(Σ⁻¹ U C Uᵀ) + log|Σ| + k log 2π ]``, the score of ``U (t - μ)`` under ``N(0, Σ)``, in nats per
    position. ``C`` is the ``(c, c)`` second moment of the residual, ``covariance`` is ``Σ (k, k)`` and ``coordinates``
    is ``U (k, c)``, the identity by default. The density is that of ``U t``; add ``-log|U|`` for that of ``t``.

    Example:
        >>> r = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(joint_gaussian_nll(r, torch.eye(2)) - math.log(2 * math.pi)), 4)  # ½ tr C
        0.5
    """
    _require_fitting(residual, covariance, coordinates)
    with torch.autocast(residual.device.type, enabled=False):
        # The samples enter through their second moment alone: one matrix product over the maps, and everything after it
        # is arithmetic on c x c numbers.
        rows = _channels_first(residual)
        moment = rows @ rows.T / rows.shape[1]
        if coordinates is not None:
            coordinates = coordinates.to(moment.dtype)
            moment = coordinates @ moment @ coordinates.T
        factor: Tensor = torch.linalg.cholesky(covariance.to(moment.dtype))
        quadratic = torch.cholesky_solve(moment, factor).diagonal().sum()
        log_determinant = 2 * factor.diagonal().log().sum()
        return 0.5 * (quadratic + log_determinant + covariance.shape[0] * math.log(2 * math.pi))


def joint_difference_of_entropies(
    residual: Tensor, target: Tensor, covariance: Tensor, *, coordinates: Tensor | None = None
) -> Tensor:
    """Return by how much a conditional Gaussian scores each sample better than the standard normal, ``(n,)`` in nats.

    Formula: ``Σ_h,w [ log N(U (t - μ); 0, Σ) - log N(U t; 0, I) ]``, where ``target`` is ``t`` minus its mean. An
    estimate of the mutual information, neither a lower nor an upper bound: it equals
    ``I - E KL(p(t|s) || q) + KL(p(t) || q0)``. Positions are summed as if they were independent. With fewer than about
    ``5 c`` samples the covariance is overfitted and new samples score badly.

    Example:
        >>> t = torch.tensor([[2.0, 0.0], [0.0, -2.0]])
        >>> joint_difference_of_entropies(torch.zeros(2, 2), t, torch.eye(2)).tolist()  # an exact prediction: ½ |t|²
        [2.0, 2.0]
    """
    _require_fitting(residual, covariance, coordinates)
    if residual.shape != target.shape:
        raise InputError(
            f"The residual has shape {tuple(residual.shape)} and the target {tuple(target.shape)}; they must agree."
        )
    with torch.autocast(residual.device.type, enabled=False):
        # Where U whitens the target, N(0, I) is the Gaussian fitted to U t, and the mean over samples becomes
        # ½ log|Cov t| - ½ log|Cov(t - μ)|: information that correlated channels share is counted once.
        parts = [_channels_first(residual), _channels_first(target)]
        if coordinates is not None:
            parts = [coordinates.to(part.dtype) @ part for part in parts]
        factor: Tensor = torch.linalg.cholesky(covariance.to(parts[0].dtype))
        scaled: Tensor = torch.linalg.solve_triangular(factor, parts[0], upper=False)
        gain = 0.5 * (parts[1].square().sum(0) - scaled.square().sum(0)) - factor.diagonal().log().sum()
        return gain.reshape(residual.shape[0], -1).sum(dim=1)


def _channels_first(x: Tensor) -> Tensor:
    """Return ``(c, n h w)`` in at least float32."""
    return at_least_float32(x).transpose(0, 1).flatten(1)


def _require_fitting(residual: Tensor, covariance: Tensor, coordinates: Tensor | None) -> None:
    if residual.ndim < 2:
        raise InputError(f"The residual has shape {tuple(residual.shape)}; the second axis must be the channels.")
    k, c = (residual.shape[1],) * 2 if coordinates is None else tuple(coordinates.shape)
    if c != residual.shape[1] or covariance.shape != (k, k):
        raise InputError(
            f"The residual has {residual.shape[1]} channels, the coordinates map {c} channels to {k}, and the "
            f"covariance has shape {tuple(covariance.shape)}. It must be square, with one row per coordinate."
        )
