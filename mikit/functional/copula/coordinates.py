"""Canonical coordinates of both sides, and features that show dependence beyond correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mikit.functional.gaussian.canonical import CanonicalForm, bartlett_rank, canonical_form, rank_gaussianise, whitener

__all__ = ["AnchoredCoordinates", "anchored_coordinates", "log_radius", "second_order_variates"]

# Above this many columns per side, there are too many squares to fit.
_WIDEST_FOR_SQUARES = 128
_LEADING = 8
_RIDGE = 1e-3
_LIMIT = 5.0
# Upper limit of the anchor's canonical correlations; at 1 its scores would be infinite.
_STRONGEST = 1 - 1e-6


@final
@dataclass(frozen=True)
class AnchoredCoordinates:
    """Both sides in canonical coordinates fitted on some of the samples, with the significant correlations.

    Attributes:
        x: ``(n, r_x)``, all canonical coordinates, the most correlated first.
        y: ``(n, r_y)``.
        correlations: Those that pass Bartlett's test, in decreasing order.
        features_x: ``(n, p)``: leading coordinates, length of the row, second-order variates, and the given features.
        features_y: ``(n, q)``.
    """

    x: Tensor
    y: Tensor
    correlations: Tensor
    features_x: Tensor
    features_y: Tensor


def anchored_coordinates(
    x: Tensor, y: Tensor, fit: Tensor, *, beside: tuple[Tensor, Tensor] | None = None
) -> AnchoredCoordinates:
    """Return canonical coordinates and features of both sides for all samples, fitted on the rows ``fit`` alone.

    ``x (n, d_x)`` and ``y (n, d_y)`` are normal scores. ``beside`` are further features of each side, which are added
    unchanged. ``O(n d² + d³)`` time. Raises an ``InputError`` if a linear combination of ``x`` equals one of ``y``.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(500, 3, generator=g, dtype=torch.float64)
        >>> y = x[:, :1] + torch.randn(500, 2, generator=g, dtype=torch.float64)
        >>> anchored_coordinates(x, y, torch.arange(400)).correlations.shape
        torch.Size([1])
    """
    form: CanonicalForm = canonical_form(x[fit], y[fit])
    c_x = (x.double() - form.mean_x) @ form.directions_x
    c_y = (y.double() - form.mean_y) @ form.directions_y
    # Only correlations that Bartlett's sequential test (1941) keeps enter the Gaussian part of the critic. The others
    # are noise of the fit rows, and would lower the scores of held-out rows.
    rank = bartlett_rank(form.correlations, fit.shape[0], c_x.shape[1], c_y.shape[1])
    second_x, second_y = second_order_variates(x, y, fit)
    given_x, given_y = (x[:, :0], y[:, :0]) if beside is None else beside
    return AnchoredCoordinates(
        x=c_x.float(),
        y=c_y.float(),
        correlations=form.correlations[:rank].clamp(max=_STRONGEST),
        features_x=torch.cat([c_x[:, :_LEADING], _length(c_x), second_x, given_x], 1).float(),
        features_y=torch.cat([c_y[:, :_LEADING], _length(c_y), second_y, given_y], 1).float(),
    )


def log_radius(rows: Tensor) -> Tensor:
    r"""Return how far each row lies from the center of its side, ``(n, 1)``, a standardized logarithm in ``[-5, 5]``.

    .. math:: \log \tfrac1d u^\top R^{-1} u, \qquad u = (x - \mathrm{median}) / \mathrm{MAD}

    with ``R`` the correlation of normal scores. Columns of which half the entries are equal are left out.

        >>> g = torch.Generator().manual_seed(0)
        >>> scale = torch.randn(500, 1, generator=g).exp()
        >>> radius = log_radius(scale * torch.randn(500, 20, generator=g))
        >>> bool(torch.corrcoef(torch.cat([radius, scale.log()], 1).T)[0, 1] > 0.98)
        True
    """
    # Heavy-tailed columns often share one random scale per row. Normal scores of single columns distort that scale, so
    # it is measured on the original values. Median and MAD, because the variance of such columns can be infinite.
    rows = rows.double()
    centered = rows - rows.median(0).values
    scale = centered.abs().median(0).values
    u = centered[:, scale > 0] / scale[scale > 0]
    if u.shape[1] == 0:
        return rows.new_zeros(rows.shape[0], 1)
    scores = rank_gaussianise(u)
    white = u @ whitener(scores.T @ scores / scores.shape[0])
    length = (white.square().sum(1, keepdim=True) / white.shape[1] + _RIDGE).log()
    return _standardized(length, torch.arange(rows.shape[0], device=rows.device)).clamp(-_LIMIT, _LIMIT)


def second_order_variates(x: Tensor, y: Tensor, fit: Tensor, *, most: int = 8) -> tuple[Tensor, Tensor]:
    """Return canonical variates of squares and of columns scaled by the row's length, for each side ``(n, k)``.

    ``x`` and ``y`` are normal scores. ``k`` runs from 0 to ``most``: only variates whose correlation exceeds the edge
    of the noise are kept, and none above 128 columns per side. Values lie in ``[-5, 5]``. ``O(n d² + d³)`` time.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 1, generator=g, dtype=torch.float64)
        >>> y = x.abs() + 0.3 * torch.randn(2000, 1, generator=g, dtype=torch.float64)
        >>> second_order_variates(x, y, torch.arange(1500))[0].shape[1] > 0
        True
    """
    if max(x.shape[1], y.shape[1]) > _WIDEST_FOR_SQUARES or fit.shape[0] < 8 * (x.shape[1] + y.shape[1]):
        return x[:, :0], y[:, :0]
    wide = [_standardized(_second_order(rows.double()), fit) for rows in (x, y)]
    n = fit.shape[0]
    whiteners = []
    for features in wide:
        covariance = features[fit].T @ features[fit] / n
        ridge = _RIDGE * torch.eye(covariance.shape[0], dtype=covariance.dtype, device=covariance.device)
        values, vectors = torch.linalg.eigh(covariance + ridge)
        whiteners.append(vectors / values.clamp(min=_RIDGE).sqrt())
    cross = whiteners[0].T @ (wide[0][fit].T @ wide[1][fit] / n) @ whiteners[1]
    u, correlations, v = torch.linalg.svd(cross, full_matrices=False)
    # The largest sample correlation of two independent whitened blocks lies near (√p + √q) / √n; the 3 allows for its
    # scatter. The edge assumes independent rows: repeated rows produce correlations above it.
    edge = (math.sqrt(wide[0].shape[1]) + math.sqrt(wide[1].shape[1]) + 3) / math.sqrt(n)
    k = min(most, int((correlations > edge).sum()))
    return (
        (wide[0] @ whiteners[0] @ u[:, :k]).clamp(-_LIMIT, _LIMIT),
        (wide[1] @ whiteners[1] @ v.T[:, :k]).clamp(-_LIMIT, _LIMIT),
    )


def _second_order(z: Tensor) -> Tensor:
    # The squared length is centered, scaled to unit variance for Gaussian columns, and bounded by tanh, so that a few
    # long rows do not dominate the products.
    length = 2 * torch.tanh((z.square().sum(1, keepdim=True) - z.shape[1]) / math.sqrt(8 * z.shape[1]))
    return torch.cat([z, length * z, z.square() - 1, length.square() * z], 1)


def _length(c: Tensor) -> Tensor:
    """Return the length of each row, as a standardized square and as a logarithm."""
    square, d = c.square().sum(1, keepdim=True), max(c.shape[1], 1)
    return torch.cat([(square - d) / math.sqrt(2 * d), (square / d + 0.01).log()], 1)


def _standardized(features: Tensor, fit: Tensor) -> Tensor:
    mean, spread = features[fit].mean(0), features[fit].std(0)
    return (features - mean) / torch.where(spread > 0, spread, 1.0)
