"""The Gaussian variational family with a full covariance over channels: log-scores and differences of entropies.

``residual`` is ``t - μ``, rows ``(n, c)`` or maps ``(n, c, h, w)``; every position of a map is one sample of the law.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.core.errors import InputError

__all__ = ["joint_difference_of_entropies", "joint_gaussian_nll"]


def joint_gaussian_nll(residual: Tensor, covariance: Tensor, *, coordinates: Tensor | None = None) -> Tensor:
    """Return the negative Gaussian log-likelihood of all channels together, averaged over samples and positions.

    Formula: ``½ [ tr(Σ⁻¹ U C Uᵀ) + log|Σ| + k log 2π ]`` with ``C`` the ``(c, c)`` second moment of the residual: the
    law of ``U (t - μ)`` is ``N(0, Σ)``. The samples enter through ``C`` alone: one matrix product over the maps, and
    arithmetic on ``c x c`` numbers.

    Args:
        residual: ``t - μ``, ``(n, c)`` or ``(n, c, h, w)``.
        covariance: ``Σ``, ``(k, k)``, positive definite.
        coordinates: ``U``, ``(k, c)``; the identity by default.

    Returns:
        0-dim, nats per position. Times ``h w`` for nats per sample.

    Unit: nats.

    Kind: exact; its expectation is a cross-entropy, so at least the conditional differential entropy of ``U t``.

    Raises:
        InputError: If the shapes do not agree.
        torch.linalg.LinAlgError: If ``covariance`` is not positive definite.

    Cost:
        ``O(n c² h w + k c² + k³)`` time; a temporary of the residual's size and a few of ``c x c``.

    Pitfalls:
        Negative values are right. The density is that of ``U t``; add ``-log|U|`` for that of ``t``.

    Source:
        Elementary; the covariance in place of variances per channel is ours.

    Example:
        >>> r = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(joint_gaussian_nll(r, torch.eye(2)) - math.log(2 * math.pi)), 4)  # ½ tr C
        0.5
    """
    _require_fitting(residual, covariance, coordinates)
    with torch.autocast(residual.device.type, enabled=False):
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
    """Return by how much a conditional Gaussian scores each sample better than the standard normal of ``U t``.

    Formula: ``Σ_h,w [ log N(U (t - μ); 0, Σ) - log N(U t; 0, I) ]``. Where ``U`` whitens the target, the mean over rows
    is the difference of joint Gaussian entropies, ``½ log|Cov t| - ½ log|Cov(t - μ)|``: correlated channels are counted
    once.

    Args:
        residual: ``t - μ``, ``(n, c)`` or ``(n, c, h, w)``.
        target: ``t`` less its mean, same shape.
        covariance: ``Σ``, ``(k, k)``.
        coordinates: ``U``, ``(k, c)``, which whitens the target; the identity by default.

    Returns:
        ``(n,)``.

    Unit: nats.

    Kind: estimate of the mutual information, neither a lower nor an upper bound: it equals
    ``I - E KL(p(t|s) || q) + KL(p(t) || q0)``.

    Raises:
        InputError: If the shapes do not agree.

    Cost:
        ``O(n h w k (c + k) + k³)`` time and memory ``O(n h w k)``.

    Pitfalls:
        Positions are summed as if they were independent. A covariance from few rows is overfitted: with fewer than some
        ``5 c`` of them, new rows score badly.

    Source:
        The variational bound of Barber and Agakov with the entropy replaced by a Gaussian's; the joint form is ours.

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
        parts = [_channels_first(residual), _channels_first(target)]
        if coordinates is not None:
            parts = [coordinates.to(part.dtype) @ part for part in parts]
        factor: Tensor = torch.linalg.cholesky(covariance.to(parts[0].dtype))
        scaled: Tensor = torch.linalg.solve_triangular(factor, parts[0], upper=False)
        gain = 0.5 * (parts[1].square().sum(0) - scaled.square().sum(0)) - factor.diagonal().log().sum()
        return gain.reshape(residual.shape[0], -1).sum(dim=1)


def _channels_first(x: Tensor) -> Tensor:
    """Return ``(c, n h w)`` in at least float32."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return x.transpose(0, 1).flatten(1)


def _require_fitting(residual: Tensor, covariance: Tensor, coordinates: Tensor | None) -> None:
    if residual.ndim < 2:
        raise InputError(f"The residual has shape {tuple(residual.shape)}; it must have the channels second.")
    k, c = (residual.shape[1],) * 2 if coordinates is None else tuple(coordinates.shape)
    if c != residual.shape[1] or covariance.shape != (k, k):
        raise InputError(
            f"The residual has {residual.shape[1]} channels, the coordinates lead from {c} to {k}, and the covariance "
            f"has shape {tuple(covariance.shape)}. It must be square, with one row per coordinate."
        )
