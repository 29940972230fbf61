"""What each row contributes to a squared maximum mean discrepancy, and how far the value of a sample may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mikit.functional.engine.operators import full_precision
from mikit.functional.engine.pairwise import Scratch
from mikit.functional.kernels.mmd import (
    PairKernel,
    for_gaussian_kernel,
    for_polynomial_kernel,
    gaussian_kernel,
    polynomial_kernel,
    require_samples,
)

__all__ = [
    "contributions_of",
    "mmd2_pointwise",
    "mmd2_standard_error",
    "polynomial_mmd2_pointwise",
    "polynomial_mmd2_standard_error",
    "standard_error_of",
]


def mmd2_pointwise(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | Sequence[float] | None = None,
    factors: Sequence[float] = (1.0,),
    paired: bool = False,
    strip: int | None = None,
) -> Tensor:
    """Contribution of every row to the unbiased :func:`mmd2`, whose mean is the value.

    Row i contributes its mean kernel with the other rows of each sample, minus its mean kernels across the samples.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(n, d)``.
        bandwidth: As in :func:`mmd2`.
        factors: As in :func:`mmd2`.
        paired: As in :func:`mmd2`.
        strip: As in :func:`mmd2`.

    Returns:
        Tensor ``(n,)``, dimensionless, without gradient. Kind: contributions to a discrepancy.

    Raises:
        InputError: As :func:`mmd2`, and if the samples have different numbers of rows.

    Cost:
        As the value of :func:`mmd2`.

    Pitfalls:
        The contributions share every row and are not independent: their standard deviation over root n is about half
        of the standard error. Use :func:`mmd2_standard_error`.

    Source:
        As :func:`mmd2`.

    Example:
        >>> from mikit.functional.kernels.mmd import mmd2
        >>> x, y = torch.eye(4), torch.eye(4).flip(0)
        >>> torch.allclose(mmd2_pointwise(x, y).mean(), mmd2(x, y))
        True
    """
    require_samples(x, y, unbiased=True, paired=True)
    a, b, bandwidths = for_gaussian_kernel(x.detach(), y.detach(), bandwidth, factors)
    return contributions_of(gaussian_kernel(bandwidths), a, b, paired, strip)


def polynomial_mmd2_pointwise(
    x: Tensor,
    y: Tensor,
    *,
    degree: int = 3,
    scale: float | None = None,
    offset: float = 1.0,
    paired: bool = False,
    strip: int | None = None,
) -> Tensor:
    """Contribution of every row to the unbiased :func:`polynomial_mmd2`, whose mean is the value.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(n, d)``.
        degree: As in :func:`polynomial_mmd2`.
        scale: As in :func:`polynomial_mmd2`.
        offset: As in :func:`polynomial_mmd2`.
        paired: As in :func:`mmd2`.
        strip: As in :func:`mmd2`.

    Returns:
        Tensor ``(n,)``, in the unit of :func:`polynomial_mmd2`, without gradient. Kind: contributions to a discrepancy.

    Raises:
        InputError: As :func:`polynomial_mmd2`, and if the samples have different numbers of rows.

    Cost:
        As the value of :func:`mmd2`.

    Pitfalls:
        As :func:`mmd2_pointwise`.

    Source:
        As :func:`polynomial_mmd2`.

    Example:
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])
        >>> polynomial_mmd2_pointwise(x, y, degree=1, scale=1.0, offset=0.0).mean().item()  # 9, less variance / n each
        7.0
    """
    require_samples(x, y, unbiased=True, paired=True)
    a, b, scale = for_polynomial_kernel(x.detach(), y.detach(), degree, scale, offset)
    return contributions_of(polynomial_kernel(degree, scale, offset), a, b, paired, strip)


def mmd2_standard_error(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | Sequence[float] | None = None,
    factors: Sequence[float] = (1.0,),
    strip: int | None = None,
) -> float:
    r"""Sampling standard error of the unbiased :func:`mmd2`.

    With :math:`h_{ij} = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)` for samples of one size,

    .. math:: \mathrm{Var} \approx \frac{4}{n} \zeta_1 + \frac{2}{n (n - 1)} \zeta_2

    where :math:`\zeta_1` is the variance of the mean of :math:`h_{ij}` over j, and :math:`\zeta_2` the variance that
    row and column means leave over. For equal laws :math:`\zeta_1 = 0`, and the second term keeps the error positive.
    :math:`\zeta_1` is estimated from the row means, less their noise, and is 0 where the noise exceeds them. Samples
    of different sizes have such terms for each sample, and one for the pairs across.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``. If ``m`` equals ``n`` row i of both may depend on each other; if not, the
            samples are taken to be independent.
        bandwidth: As in :func:`mmd2`.
        factors: As in :func:`mmd2`.
        strip: As in :func:`mmd2`.

    Returns:
        The standard error, dimensionless; infinity below four rows.

    Raises:
        InputError: As :func:`mmd2`.

    Cost:
        O((n + m)² d) time, O(strip (n + m)) memory.

    Pitfalls:
        For equal laws the value is not normally distributed (a weighted sum of centred chi squares), the error is too
        large by about a fifth on average, and a bandwidth that was set from the same rows is taken as given.

    Source:
        The variance of a U-statistic of order two (Hoeffding 1948).

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(300, 2, generator=generator), torch.randn(300, 2, generator=generator)
        >>> 0 < mmd2_standard_error(x, y) < 0.01
        True
    """
    require_samples(x, y, unbiased=True, paired=False)
    a, b, bandwidths = for_gaussian_kernel(x.detach(), y.detach(), bandwidth, factors)
    return standard_error_of(gaussian_kernel(bandwidths), a, b, strip)


def polynomial_mmd2_standard_error(
    x: Tensor,
    y: Tensor,
    *,
    degree: int = 3,
    scale: float | None = None,
    offset: float = 1.0,
    strip: int | None = None,
) -> float:
    """Sampling standard error of the unbiased :func:`polynomial_mmd2`, by the formula of :func:`mmd2_standard_error`.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``; as in :func:`mmd2_standard_error`.
        degree: As in :func:`polynomial_mmd2`.
        scale: As in :func:`polynomial_mmd2`.
        offset: As in :func:`polynomial_mmd2`.
        strip: As in :func:`mmd2`.

    Returns:
        The standard error, in the unit of :func:`polynomial_mmd2`; infinity below four rows.

    Raises:
        InputError: As :func:`polynomial_mmd2`.

    Cost:
        As :func:`mmd2_standard_error`, in float64.

    Pitfalls:
        As :func:`mmd2_standard_error`. Powers have heavy tails, so that few rows make a rough error.

    Source:
        As :func:`mmd2_standard_error`.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(300, 2, generator=generator), torch.randn(300, 2, generator=generator)
        >>> 0 < polynomial_mmd2_standard_error(x, y, degree=1, scale=1.0, offset=0.0) < 0.02
        True
    """
    require_samples(x, y, unbiased=True, paired=False)
    a, b, scale = for_polynomial_kernel(x.detach().double(), y.detach().double(), degree, scale, offset)
    return standard_error_of(polynomial_kernel(degree, scale, offset), a, b, strip)


def contributions_of(kernel: PairKernel, a: Tensor, b: Tensor, paired: bool, strip: int | None) -> Tensor:
    """Return what :func:`mmd2_pointwise` does, for any kernel and samples that are prepared for it."""
    n = a.shape[0]
    within = (
        _moments(kernel, a, a, hollow=True, strip=strip).rows + _moments(kernel, b, b, hollow=True, strip=strip).rows
    )
    across = _moments(kernel, a, b, hollow=paired, strip=strip)
    return (within / (n - 1) - (across.rows + across.columns) / (n - 1 if paired else n)).to(a.dtype)


def standard_error_of(kernel: PairKernel, a: Tensor, b: Tensor, strip: int | None) -> float:
    """Return what :func:`mmd2_standard_error` does, for any kernel and samples that are prepared for it."""
    n, m = a.shape[0], b.shape[0]
    if min(n, m) < 4:
        return float("inf")
    if n == m:
        return math.sqrt(_one_size_variance(kernel, a, b, strip))
    of_x = _moments(kernel, a, a, hollow=True, strip=strip)
    of_y = _moments(kernel, b, b, hollow=True, strip=strip)
    across = _moments(kernel, a, b, hollow=False, strip=strip)
    means_x, means_y, across_x, across_y = of_x.rows / (n - 1), of_y.rows / (m - 1), across.rows / m, across.columns / n
    left_x, left_y = _left_over(means_x, of_x.squares), _left_over(means_y, of_y.squares)
    spread = across.squares / (n * m) - float(across_x.mean()) ** 2 - float(across_x.var() + across_y.var())
    left = max(spread / (1 - 1 / n - 1 / m), 0.0)
    first_x = max(float((means_x - across_x).var()) - left_x / (n - 1) - left / m, 0.0)
    first_y = max(float((means_y - across_y).var()) - left_y / (m - 1) - left / n, 0.0)
    second = 2 * left_x / (n * (n - 1)) + 2 * left_y / (m * (m - 1)) + 4 * left / (n * m)
    return math.sqrt(4 * first_x / n + 4 * first_y / m + second)


class _Moments(NamedTuple):
    """Sums of a kernel over the pairs of each row, ``(n,)``, and of each column, ``(m,)``, and of all its squares."""

    rows: Tensor
    columns: Tensor
    squares: float


def _moments(kernel: PairKernel, a: Tensor, b: Tensor, *, hollow: bool, strip: int | None) -> _Moments:
    with full_precision(a.device):
        rows = torch.empty(a.shape[0], dtype=torch.float64, device=a.device)
        columns = torch.zeros(b.shape[0], dtype=torch.float64, device=a.device)
        squares = torch.zeros((), dtype=torch.float64, device=a.device)
        spare = Scratch()
        for part in kernel.strips(a, b, strip):
            terms, _ = kernel.epilogue(part.values, spare.shaped(part.values)[0], False)
            if hollow:
                part.own_of(terms).zero_()
            rows[part.rows] = terms.sum(dim=1).double()
            columns += terms.sum(dim=0)
            squares += terms.square_().sum(dim=1).sum(dtype=torch.float64)
        return _Moments(rows, columns, float(squares))


def _one_size_variance(kernel: PairKernel, a: Tensor, b: Tensor, strip: int | None) -> float:
    n = a.shape[0]
    means = torch.empty(n, dtype=torch.float64, device=a.device)
    squares = torch.zeros((), dtype=torch.float64, device=a.device)
    sides = ((a, a), (b, b), (a, b), (b, a))
    spare = Scratch()
    with full_precision(a.device):
        for parts in zip(*(kernel.strips(*side, strip) for side in sides), strict=True):
            h = torch.zeros_like(parts[0].values)
            for part, sign in zip(parts, (1, 1, -1, -1), strict=True):
                h.add_(kernel.epilogue(part.values, spare.shaped(part.values)[0], False)[0], alpha=sign)
            parts[0].own_of(h).zero_()
            means[parts[0].rows] = h.sum(dim=1).double() / (n - 1)
            squares += h.square_().sum(dim=1).sum(dtype=torch.float64)
    second = _left_over(means, float(squares))
    first = max(float(means.var()) - second / (n - 1), 0.0)
    return 4 * first / n + 2 * second / (n * (n - 1))


def _left_over(means: Tensor, squares: float) -> float:
    """Return the variance of a symmetric function of two rows that the means of its rows and columns leave over."""
    n = means.shape[0]
    variance = squares / (n * (n - 1)) - float(means.mean()) ** 2
    return max((variance - 2 * float(means.var())) / (1 - 2 / (n - 1)), 0.0)
