"""Squared maximum mean discrepancies between two samples, a strip of pairs at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mikit.errors import InputError
from mikit.functional.closed import closed_form, full_precision
from mikit.functional.kernels import median_distance
from mikit.functional.pairwise import (
    Epilogue,
    Scratch,
    exponential,
    gaussians,
    power,
    squared_distances,
    sum_over_pairs,
)
from mikit.functional.samples import (
    centred,
    require_one_device,
    require_paired,
    require_rows,
    require_same_width,
    working_dtype,
)

__all__ = ["mmd2", "mmd2_pointwise", "mmd2_standard_error", "polynomial_mmd2"]


def mmd2(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | Sequence[float] | None = None,
    unbiased: bool = True,
    paired: bool = False,
    strip: int | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy between the laws of two samples, under a Gaussian kernel.

    .. math:: \mathrm{MMD}^2 = E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y), \qquad
              k(a, b) = \exp\left(-\|a - b\|^2 / 2\sigma^2\right)

    The unbiased form leaves a sample's kernel with itself out of the first two means. With ``paired`` it also leaves
    ``k(x_i, y_i)`` out of the third, which makes it unbiased when row i of both samples belongs to one input and the
    two are dependent; the general form needs independent samples.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``; ``m`` may differ from ``n`` unless ``paired``.
        bandwidth: The kernel's sigma, in the unit of the features; several for the sum of their kernels. None:
            :func:`median_bandwidth` of both samples, a constant for the gradient.
        unbiased: Whether to leave out the kernel of a row with itself. Otherwise the V-statistic, which is never
            negative and too large by about ``2 (1 - mean k) / n``; ``paired`` makes no difference to it.
        paired: Whether row i of ``x`` and of ``y`` belong together.
        strip: Rows handled at a time; None chooses. Values do not depend on it, up to rounding.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit:
        dimensionless, at most 2 for each bandwidth. Kind: a discrepancy, 0 for equal laws; the unbiased form is
        never clipped and is negative about half of the time when the laws are equal.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths differ, rows differ under ``paired``, there are fewer than
            two rows for the unbiased form, or the bandwidth is not positive.

    Cost:
        O((n + m)² d) time, two to three times that with gradients, which are formed in the same pass;
        O((n + m) d) memory and one strip. Each bandwidth beyond the first costs a pass over the entries. Second
        derivatives are refused.

    Pitfalls:
        - Blind to pairing: shuffling the rows of one sample changes nothing but rounding. It says that two clouds
          look alike, not that one network knows what the other knows.
        - Depends on the bandwidth and on the scale of the features; not comparable across layers or widths.
        - In high dimension all distances look alike, and the value has little power unless n is large.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), "A Kernel Two-Sample Test", JMLR 13.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(500, 3, generator=generator)
        >>> same, shifted = torch.randn(500, 3, generator=generator), torch.randn(500, 3, generator=generator) + 1
        >>> abs(mmd2(x, same).item()) < 0.01 < mmd2(x, shifted).item()
        True
        >>> abs(mmd2(x, x, paired=True).item()) < 1e-6
        True
    """
    _require_samples(x, y, unbiased=unbiased, paired=paired)
    a, b, bandwidths = _prepared(x, y, bandwidth)
    return _gaussian(a, b, bandwidths, unbiased, paired, strip).to(a.dtype)


def polynomial_mmd2(
    x: Tensor,
    y: Tensor,
    *,
    degree: int = 3,
    scale: float | None = None,
    offset: float = 1.0,
    unbiased: bool = True,
    paired: bool = False,
    strip: int | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy between the laws of two samples, under a polynomial kernel.

    .. math:: \mathrm{MMD}^2 = E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y), \qquad
              k(a, b) = \left(s\, a \cdot b + c\right)^{p}

    With ``degree=1`` and ``offset=0`` it is the squared distance of the means, times ``scale``. It compares moments up
    to the degree and is blind to all others.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``; ``m`` may differ from ``n`` unless ``paired``.
        degree: The power ``p``, at least 1.
        scale: The factor ``s``; None: ``1 / d``.
        offset: The constant ``c``.
        unbiased: As in :func:`mmd2`.
        paired: As in :func:`mmd2`.
        strip: Rows handled at a time; None chooses.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit:
        ``(scale · feature²)^degree``. Kind: a discrepancy, 0 for equal laws and for laws with equal moments.

    Raises:
        InputError: As :func:`mmd2`, and if the degree is below 1 or the scale is not positive.

    Cost:
        As :func:`mmd2`.

    Pitfalls:
        - Not invariant to a common shift: far from the origin the terms are large and their difference loses digits.
        - Grows with the power ``2 p`` of the features' scale.
        - Blind to pairing, as every comparison of laws.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), "A Kernel Two-Sample Test", JMLR 13. Degree 3 with
        ``1 / d`` and 1 is the kernel of the kernel inception distance: Bińkowski, Sutherland, Arbel and Gretton (2018).

    Example:
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])
        >>> polynomial_mmd2(x, y, degree=1, scale=1.0, offset=0.0, unbiased=False).item()  # means 1 and 4
        9.0
    """
    _require_samples(x, y, unbiased=unbiased, paired=paired)
    if not isinstance(degree, int) or degree < 1:
        raise InputError(f"degree is {degree}; the kernel's power must be a whole number of at least 1.")
    if scale is None:
        scale = 1 / x.shape[1]
    if not 0 < scale < float("inf"):
        raise InputError(f"scale is {scale}; it must be positive and finite.")
    dtype = working_dtype(x, y)
    return _polynomial(x.to(dtype), y.to(dtype), degree, scale, offset, unbiased, paired, strip).to(dtype)


def mmd2_pointwise(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | Sequence[float] | None = None,
    paired: bool = False,
    strip: int | None = None,
) -> Tensor:
    """Contribution of every row to the unbiased :func:`mmd2`, whose mean is the value.

    Row i contributes its mean kernel with the other rows of each sample, minus its mean kernels across the samples.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(n, d)``.
        bandwidth: As in :func:`mmd2`.
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
        >>> x, y = torch.eye(4), torch.eye(4).flip(0)
        >>> torch.allclose(mmd2_pointwise(x, y).mean(), mmd2(x, y))
        True
    """
    _require_samples(x, y, unbiased=True, paired=True)
    a, b, bandwidths = _prepared(x.detach(), y.detach(), bandwidth)
    n = a.shape[0]
    kernel = _Kernel.gaussian(bandwidths)
    within = (
        _moments(kernel, a, a, hollow=True, strip=strip).rows + _moments(kernel, b, b, hollow=True, strip=strip).rows
    )
    across = _moments(kernel, a, b, hollow=paired, strip=strip)
    return (within / (n - 1) - (across.rows + across.columns) / (n - 1 if paired else n)).to(a.dtype)


def mmd2_standard_error(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | Sequence[float] | None = None,
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
    _require_samples(x, y, unbiased=True, paired=False)
    a, b, bandwidths = _prepared(x.detach(), y.detach(), bandwidth)
    n, m = a.shape[0], b.shape[0]
    if min(n, m) < 4:
        return float("inf")
    kernel = _Kernel.gaussian(bandwidths)
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


class _Kernel(NamedTuple):
    """A kernel: what is made of each pair's score, or of its squared distance times ``scale``."""

    epilogue: Epilogue
    scale: float | None

    @classmethod
    def gaussian(cls, bandwidths: Sequence[float]) -> _Kernel:
        if len(bandwidths) == 1:
            return cls(exponential, -0.5 / bandwidths[0] ** 2)
        return cls(gaussians(bandwidths), -0.5)


@closed_form
def _gaussian(
    wants: Sequence[bool],
    a: Tensor,
    b: Tensor,
    bandwidths: Sequence[float],
    unbiased: bool,
    paired: bool,
    strip: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _mmd2(wants, a, b, _Kernel.gaussian(bandwidths), unbiased, paired, strip)


@closed_form
def _polynomial(
    wants: Sequence[bool],
    a: Tensor,
    b: Tensor,
    degree: int,
    scale: float,
    offset: float,
    unbiased: bool,
    paired: bool,
    strip: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = _Kernel(power(degree, scale=scale, offset=offset), None)
    return _mmd2(wants, a, b, kernel, unbiased, paired, strip)


def _mmd2(
    wants: Sequence[bool], a: Tensor, b: Tensor, kernel: _Kernel, unbiased: bool, paired: bool, strip: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    n, m = a.shape[0], b.shape[0]
    value = a.new_zeros((), dtype=torch.float64)
    gradients = []
    for rows, want, count in ((a, wants[0], n), (b, wants[1], m)):
        total, gradient, _ = sum_over_pairs(
            rows,
            rows,
            kernel.epilogue,
            wants=(want, False),
            scale=kernel.scale,
            symmetric=True,
            hollow=unbiased,
            strip=strip,
        )
        pairs = count * (count - 1) if unbiased else count**2
        value += total / pairs
        gradients.append(gradient.div_(pairs))
    hollow = unbiased and paired
    total, *across = sum_over_pairs(a, b, kernel.epilogue, wants=wants, scale=kernel.scale, hollow=hollow, strip=strip)
    pairs = n * (n - 1) if hollow else n * m
    for gradient, part in zip(gradients, across, strict=True):
        gradient.sub_(part, alpha=2 / pairs)
    return value - 2 * total / pairs, gradients[0], gradients[1]


class _Moments(NamedTuple):
    """Sums of a kernel over the pairs of each row, ``(n,)``, and of each column, ``(m,)``, and of all its squares."""

    rows: Tensor
    columns: Tensor
    squares: float


def _moments(kernel: _Kernel, a: Tensor, b: Tensor, *, hollow: bool, strip: int | None) -> _Moments:
    with full_precision(a.device):
        rows = torch.empty(a.shape[0], dtype=torch.float64, device=a.device)
        columns = torch.zeros(b.shape[0], dtype=torch.float64, device=a.device)
        squares = torch.zeros((), dtype=torch.float64, device=a.device)
        spare = Scratch()
        for part in squared_distances(a, b, scale=kernel.scale or 1.0, strip=strip):
            terms, _ = kernel.epilogue(part.values, spare.shaped(part.values)[0], False)
            if hollow:
                part.own_of(terms).zero_()
            rows[part.rows] = terms.sum(dim=1).double()
            columns += terms.sum(dim=0)
            squares += terms.square_().sum(dim=1).sum(dtype=torch.float64)
        return _Moments(rows, columns, float(squares))


def _one_size_variance(kernel: _Kernel, a: Tensor, b: Tensor, strip: int | None) -> float:
    n = a.shape[0]
    means = torch.empty(n, dtype=torch.float64, device=a.device)
    squares = torch.zeros((), dtype=torch.float64, device=a.device)
    sides = ((a, a), (b, b), (a, b), (b, a))
    spare = Scratch()
    with full_precision(a.device):
        for parts in zip(
            *(squared_distances(*side, scale=kernel.scale or 1.0, strip=strip) for side in sides), strict=True
        ):
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


def _prepared(x: Tensor, y: Tensor, bandwidth: float | Sequence[float] | None) -> tuple[Tensor, Tensor, list[float]]:
    """Return both samples in the working dtype, around their common centre, and the bandwidths in their unit."""
    a, b = centred(x, y)
    if bandwidth is None:
        # In units of the bandwidth: the median stays a tensor, and squares stay inside the dtype.
        unit = median_distance(x, y).to(a.dtype)
        return a / unit, b / unit, [1.0]
    bandwidths = [float(one) for one in bandwidth] if isinstance(bandwidth, Sequence) else [float(bandwidth)]
    if not bandwidths or not all(0 < one < float("inf") for one in bandwidths):
        raise InputError(f"bandwidth is {bandwidth}; it must be positive and finite, in the unit of the features.")
    widest = max(bandwidths)
    return a / widest, b / widest, [one / widest for one in bandwidths]


def _require_samples(x: Tensor, y: Tensor, *, unbiased: bool, paired: bool) -> None:
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name)
    require_same_width(x, y)
    require_one_device(x, y)
    if paired:
        require_paired(x, y)
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name, fewest=2 if unbiased else 1)
