"""Covariances of few rows, drawn towards a multiple of the identity so that they can be inverted."""

from __future__ import annotations

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.samples import constant_columns, require_rows

__all__ = ["centred_rows", "ledoit_wolf_weight", "require_shrinkage", "shrunk_sample"]


def ledoit_wolf_weight(x: Tensor, *, diagonal: bool = False) -> Tensor:
    r"""Weight with which Ledoit and Wolf draw a sample covariance to a multiple of the identity.

    .. math:: \lambda = \min\Bigl(1, \frac{\tfrac1{n^2} \sum_i \lVert z_i z_i^\top - S \rVert^2}
              {\lVert S - \mu I \rVert^2}\Bigr), \qquad \mu = \mathrm{tr}\, S / d

    with the centred rows :math:`z_i` and their covariance :math:`S`, which divides by ``n``. It estimates the weight
    for which :math:`(1 - \lambda) S + \lambda \mu I` has the least expected squared error.

    Args:
        x: Sample, ``(n, d)``.
        diagonal: Whether only the variances count, and their errors.

    Returns:
        0-dim tensor, float64, without gradient, in [0, 1]; 1 where the sample covariance is a multiple of the identity
        already. Unit: dimensionless. Kind: an estimate.

    Raises:
        InputError: If ``x`` is not ``(n, d)`` with two rows at least.

    Cost:
        O(n d min(n, d)) time, O(n d + min(n, d)²) memory.

    Pitfalls:
        Depends on the sample, so two samples of one law are shrunk by different weights. It is made for estimating the
        covariance, not its inverse.

    Source:
        Ledoit and Wolf (2004), "A well-conditioned estimator for large-dimensional covariance matrices".

    Example:
        >>> x = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
        >>> 0.8 < ledoit_wolf_weight(x).item() <= 1  # the identity is the truth
        True
    """
    require_rows(x, "x", fewest=2)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _weight(centred_rows(x.detach())[0], diagonal)


def shrunk_sample(x: Tensor, *, shrinkage: float | str) -> Tensor:
    r"""Rows that have the mean of a sample and its covariance after shrinkage, for formulas that take samples.

    .. math:: \Sigma = (1 - \lambda) S + \lambda \mu I, \qquad \mu = \mathrm{tr}\, S / d

    Args:
        x: Sample, ``(n, d)``.
        shrinkage: :math:`\lambda` in [0, 1], or ``"ledoit-wolf"``; a constant for the gradient.

    Returns:
        Tensor ``(n + 2 d, d)``, float64, differentiable in ``x``, whose covariance divides by its number of rows. Unit:
        that of the features. Kind: a sample of the same first and second moments, and of no others.

    Raises:
        InputError: If ``x`` is not ``(n, d)`` with two rows at least, or the shrinkage is not in [0, 1].

    Cost:
        That of the weight, and O((n + d) d) memory.

    Pitfalls:
        Only for formulas of mean and covariance.

    Source:
        As :func:`ledoit_wolf_weight`. The covariance is that of the scaled rows and of pairs along each axis.

    Example:
        >>> x = torch.tensor([[2.0, 1.0], [-2.0, 1.0]])  # variances 4 and 0
        >>> shrunk_sample(x, shrinkage=0.5).var(dim=0, correction=0).round(decimals=6)
        tensor([3., 1.], dtype=torch.float64)
    """
    require_rows(x, "x", fewest=2)
    weight = require_shrinkage(shrinkage)
    with torch.autocast(x.device.type, enabled=False):
        n, d = x.shape
        rows, mean = centred_rows(x)
        amount = _weight(rows.detach(), False) if weight < 0 else rows.new_tensor(weight)
        axes = torch.eye(d, dtype=torch.float64, device=x.device) * _root(amount * rows.square().sum() / (2 * n * d))
        scaled = _root((1 - amount) / n) * rows
        drawn: Tensor = mean + (n + 2 * d) ** 0.5 * torch.cat([scaled, axes, -axes])
    return drawn


def require_shrinkage(shrinkage: float | str | None) -> float:
    """Return the weight, 0 for None and -1 for ``"ledoit-wolf"``; refuse anything that is none."""
    if shrinkage is None:
        return 0.0
    if isinstance(shrinkage, str):
        if shrinkage != "ledoit-wolf":
            raise InputError(f'shrinkage is "{shrinkage}"; use a number in [0, 1], "ledoit-wolf", or None.')
        return -1.0
    if not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage is {shrinkage}; it must lie in [0, 1].")
    return float(shrinkage)


def centred_rows(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows around their mean and the mean, in float64; a column of one value is exactly 0 around it."""
    rows = sample.double()
    mean = rows.mean(dim=0)
    # Whatever the rounding of the mean says, one value has no variance.
    return (rows - mean).masked_fill(constant_columns(sample.detach()), 0.0), mean


def _weight(rows: Tensor, diagonal: bool) -> Tensor:
    n, d = rows.shape
    variances = rows.square().mean(dim=0)
    trace = variances.sum()
    if diagonal:
        own = variances.square().sum()
        scatter = (rows.pow(4).mean(dim=0).sum() - own) / n
    else:
        own = ((rows.T @ rows) if d <= n else (rows @ rows.T)).square().sum() / n**2
        scatter = (rows.square().sum(dim=1).square().mean() - own) / n
    distance = own - trace.square() / d
    # Below rounding the covariance is a multiple of the identity, and no weight changes it.
    apart = distance > 1e-14 * own
    return torch.where(apart, (scatter / torch.where(apart, distance, 1.0)).clamp(min=0, max=1), 1.0)


def _root(value: Tensor) -> Tensor:
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).sqrt(), 0.0)
