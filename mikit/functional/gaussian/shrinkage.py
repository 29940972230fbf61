"""Shrinkage of covariances of few rows towards a multiple of the identity, so that they can be inverted."""

from __future__ import annotations

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.samples import constant_columns, require_rows

__all__ = ["centered_rows", "ledoit_wolf_weight", "require_shrinkage", "shrunk_sample"]


def ledoit_wolf_weight(x: Tensor, *, diagonal: bool = False) -> Tensor:
    r"""Return the Ledoit-Wolf weight of shrinking a sample covariance ``S`` to ``μ I``, ``μ = tr S / d``.

    .. math:: \lambda = \min\Bigl(1, \frac{\tfrac1{n^2} \sum_i \lVert z_i z_i^\top - S \rVert^2}
              {\lVert S - \mu I \rVert^2}\Bigr)

    with centered rows :math:`z_i` and :math:`S` dividing by ``n``. It estimates the weight for which
    :math:`(1 - \lambda) S + \lambda \mu I` has the least expected squared error, as a covariance and not as an inverse.
    A 0-dim float64 tensor without gradient; 1 where ``S`` is a multiple of the identity already. ``diagonal`` uses the
    variances and their errors only. Source: Ledoit and Wolf (2004), "A well-conditioned estimator for large-dimensional
    covariance matrices".
    """
    require_rows(x, "x", fewest=2)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _weight(centered_rows(x.detach())[0], diagonal)


def shrunk_sample(x: Tensor, *, shrinkage: float | str) -> Tensor:
    r"""Return rows ``(n + 2 d, d)`` with the mean of a sample and its shrunk covariance ``(1 - λ) S + λ μ I``.

    For formulas of mean and covariance that take samples: the rows are the scaled sample and a pair along each axis.
    Float64, differentiable in ``x``. ``shrinkage`` is in [0, 1] or ``"ledoit-wolf"``, a constant for the gradient.

    Example:
        >>> x = torch.tensor([[2.0, 1.0], [-2.0, 1.0]])  # variances 4 and 0
        >>> shrunk_sample(x, shrinkage=0.5).var(dim=0, correction=0).round(decimals=6)
        tensor([3., 1.], dtype=torch.float64)
    """
    require_rows(x, "x", fewest=2)
    weight = require_shrinkage(shrinkage)
    with torch.autocast(x.device.type, enabled=False):
        n, d = x.shape
        rows, mean = centered_rows(x)
        amount = _weight(rows.detach(), False) if weight < 0 else rows.new_tensor(weight)
        axes = torch.eye(d, dtype=torch.float64, device=x.device) * _root(amount * rows.square().sum() / (2 * n * d))
        scaled = _root((1 - amount) / n) * rows
        drawn: Tensor = mean + (n + 2 * d) ** 0.5 * torch.cat([scaled, axes, -axes])
    return drawn


def require_shrinkage(shrinkage: float | str | None) -> float:
    """Return the weight, 0 for None and -1 for ``"ledoit-wolf"``; raise if it is not valid."""
    if shrinkage is None:
        return 0.0
    if isinstance(shrinkage, str):
        if shrinkage != "ledoit-wolf":
            raise InputError(f'shrinkage is "{shrinkage}"; use a number in [0, 1], "ledoit-wolf", or None.')
        return -1.0
    if not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage is {shrinkage}; it must lie in [0, 1].")
    return float(shrinkage)


def centered_rows(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centered rows and the mean, in float64; a constant column becomes exactly 0."""
    rows = sample.double()
    mean = rows.mean(dim=0)
    # The mean of equal values may be rounded; a constant column must still have no variance.
    return (rows - mean).masked_fill(constant_columns(sample.detach()), 0.0), mean


def _weight(rows: Tensor, diagonal: bool) -> Tensor:
    n, d = rows.shape
    variances = rows.square().mean(dim=0)
    trace = variances.sum()
    # Σ |z zᵀ - S|² = Σ |z|⁴ - n |S|², so neither the d x d outer products nor, for wide samples, S itself is computed:
    # |S|² is the same for Zᵀ Z and Z Zᵀ.
    if diagonal:
        squares = variances.square().sum()
        scatter = (rows.pow(4).mean(dim=0).sum() - squares) / n
    else:
        squares = ((rows.T @ rows) if d <= n else (rows @ rows.T)).square().sum() / n**2
        scatter = (rows.square().sum(dim=1).square().mean() - squares) / n
    distance = squares - trace.square() / d
    # Up to rounding the covariance is then a multiple of the identity, and no weight changes it.
    apart = distance > 1e-14 * squares
    return torch.where(apart, (scatter / torch.where(apart, distance, 1.0)).clamp(min=0, max=1), 1.0)


def _root(value: Tensor) -> Tensor:
    """Return the square root, with a gradient of 0 at 0."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).sqrt(), 0.0)
