"""Kernel comparisons of two samples: squared maximum mean discrepancy and linear CKA.

Pairs are handled a strip of rows at a time, forward and backward, so that no square matrix is ever held.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.errors import InputError
from mikit.functional.pairwise import gaussian_kernel, gaussian_moments, gaussian_row_sums, strips

__all__ = ["linear_cka", "median_bandwidth", "mmd2", "mmd2_pointwise", "mmd2_standard_error"]


def median_bandwidth(x: Tensor, y: Tensor | None = None, *, most: int = 2048) -> float:
    """Median Euclidean distance between distinct rows: the usual bandwidth of a Gaussian kernel.

    Args:
        x: Sample, ``(n, d)``.
        y: Second sample, ``(m, d)``, pooled with the first; None for one sample.
        most: Rows looked at, at most: evenly spaced ones of the pooled sample where there are more.

    Returns:
        The median over all pairs of rows that differ, in the unit of the features, without gradient. 1.0 if no two
        rows differ, where every bandwidth gives the same kernel.

    Raises:
        InputError: If a sample is not ``(n, d)``, the widths differ, or ``most`` is below 2.

    Cost:
        O(most² d) time, O(most²) memory, whatever n.

    Pitfalls:
        A function of the data: two values of a kernel quantity with different bandwidths are not comparable. Fix the
        bandwidth for a curve over layers or training steps. Above ``most`` rows it depends on the order of the rows,
        a little.

    Source:
        The median heuristic, common practice.

    Example:
        >>> median_bandwidth(torch.tensor([[0.0], [1.0], [3.0]]))
        2.0
    """
    _require_rows(x, "x")
    rows = x.detach()
    if y is not None:
        _require_rows(y, "y")
        _require_same_width(x, y)
        rows = torch.cat([rows, y.detach().to(rows.dtype)])
    if most < 2:
        raise InputError(f"most is {most}; a distance takes at least 2 rows.")
    n = rows.shape[0]
    if n > most:
        rows = rows[torch.arange(most, device=rows.device) * (n - 1) // (most - 1)]
    rows = rows.to(torch.float64)
    distances = torch.pdist(rows - rows.mean(dim=0))
    distances = distances[distances > 0]
    return float(distances.median()) if distances.numel() else 1.0


def mmd2(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | None = None,
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
        bandwidth: The kernel's sigma, in the unit of the features; None: :func:`median_bandwidth` of both samples,
            a constant for the gradient.
        unbiased: Whether to leave out the kernel of a row with itself. Otherwise the V-statistic, which is never
            negative and too large by about ``2 (1 - mean k) / n``; ``paired`` makes no difference to it.
        paired: Whether row i of ``x`` and of ``y`` belong together.
        strip: Rows handled at a time; None chooses. Values do not depend on it, up to rounding.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit:
        dimensionless, at most 2. Kind: a discrepancy, 0 for equal laws; the unbiased form is never clipped and is
        negative about half of the time when the laws are equal.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths differ, rows differ under ``paired``, there are fewer than
            two rows for the unbiased form, or the bandwidth is not positive.

    Cost:
        O((n + m)² d) time forward and about twice that backward; O(strip (n + m)) memory.

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
        >>> mmd2(x, x, paired=True).item()
        0.0
    """
    _require_samples(x, y, unbiased=unbiased, paired=paired)
    a, b, sigma = _prepared(x, y, bandwidth)
    n, m = a.shape[0], b.shape[0]
    within_x = gaussian_row_sums(a, a, sigma, hollow=unbiased, strip=strip).sum()
    within_y = gaussian_row_sums(b, b, sigma, hollow=unbiased, strip=strip).sum()
    across = gaussian_row_sums(a, b, sigma, hollow=paired and unbiased, strip=strip).sum()
    if unbiased:
        pairs = n * (n - 1) if paired else n * m
        value = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / pairs
    else:
        value = within_x / n**2 + within_y / m**2 - 2 * across / (n * m)
    return value.to(a.dtype)


def mmd2_pointwise(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | None = None,
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
        Tensor ``(n,)``, dimensionless, differentiable. Kind: contributions to a discrepancy.

    Raises:
        InputError: As :func:`mmd2`, and if the samples have different numbers of rows.

    Cost:
        As :func:`mmd2`, with one more pass across the samples.

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
    a, b, sigma = _prepared(x, y, bandwidth)
    n = a.shape[0]
    within_x, within_y = (gaussian_row_sums(rows, rows, sigma, hollow=True, strip=strip) for rows in (a, b))
    across_x, across_y = (gaussian_row_sums(*rows, sigma, hollow=paired, strip=strip) for rows in ((a, b), (b, a)))
    within, across = within_x + within_y, across_x + across_y
    return (within / (n - 1) - across / (n - 1 if paired else n)).to(a.dtype)


def mmd2_standard_error(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | None = None,
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
    a, b, sigma = _prepared(x.detach(), y.detach(), bandwidth)
    n, m = a.shape[0], b.shape[0]
    if min(n, m) < 4:
        return float("inf")
    if n == m:
        return math.sqrt(_one_size_variance(a, b, sigma, strip))
    rows_x, _, squares_x = gaussian_moments(a, a, sigma, hollow=True, strip=strip)
    rows_y, _, squares_y = gaussian_moments(b, b, sigma, hollow=True, strip=strip)
    across_x, across_y, squares = gaussian_moments(a, b, sigma, strip=strip)
    means_x, means_y, across_x, across_y = rows_x / (n - 1), rows_y / (m - 1), across_x / m, across_y / n
    left_x, left_y = _left_over(means_x, squares_x), _left_over(means_y, squares_y)
    spread = squares / (n * m) - float(across_x.mean()) ** 2 - float(across_x.var() + across_y.var())
    left = max(spread / (1 - 1 / n - 1 / m), 0.0)
    first_x = max(float((means_x - across_x).var()) - left_x / (n - 1) - left / m, 0.0)
    first_y = max(float((means_y - across_y).var()) - left_y / (m - 1) - left / n, 0.0)
    second = 2 * left_x / (n * (n - 1)) + 2 * left_y / (m * (m - 1)) + 4 * left / (n * m)
    return math.sqrt(4 * first_x / n + 4 * first_y / m + second)


def _one_size_variance(a: Tensor, b: Tensor, sigma: float, strip: int | None) -> float:
    n = a.shape[0]
    means = torch.empty(n, dtype=torch.float64, device=a.device)
    squares = 0.0
    for part in strips(n, a, strip):
        h = gaussian_kernel(a[part], a, sigma).add_(gaussian_kernel(b[part], b, sigma))
        h.sub_(gaussian_kernel(a[part], b, sigma)).sub_(gaussian_kernel(b[part], a, sigma))
        h.diagonal(part.start).zero_()
        means[part] = h.sum(dim=1, dtype=torch.float64) / (n - 1)
        squares += float(h.square_().sum(dtype=torch.float64))
    second = _left_over(means, squares)
    first = max(float(means.var()) - second / (n - 1), 0.0)
    return 4 * first / n + 2 * second / (n * (n - 1))


def _left_over(means: Tensor, squares: float) -> float:
    """Return the variance of a symmetric function of two rows that the means of its rows and columns leave over."""
    n = means.shape[0]
    variance = squares / (n * (n - 1)) - float(means.mean()) ** 2
    return max((variance - 2 * float(means.var())) / (1 - 2 / (n - 1)), 0.0)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Linear centred kernel alignment of two representations of the same inputs.

    .. math:: \mathrm{CKA} = \frac{\|X_c^\top Y_c\|_F^2}{\|X_c^\top X_c\|_F \, \|Y_c^\top Y_c\|_F}

    Args:
        x: First representation, ``(n, d_x)``.
        y: Second representation, ``(n, d_y)``, rows paired with ``x``.

    Returns:
        0-dim tensor in the common dtype of the inputs, float32 at least, between 0 and 1, differentiable. 0 if one of
        them is constant. Unit: dimensionless. Kind: an index, biased upwards when ``n`` is not well above the widths.

    Raises:
        InputError: If the inputs are not ``(n, d)`` or have different numbers of rows.

    Cost:
        O(n d_x d_y + n d_x² + n d_y²) time and O((d_x + d_y)²) memory; via the n x n Gram matrices where n is the
        smaller. In float64.

    Pitfalls:
        - Not information: a representation that holds everything about another can have any CKA with it.
        - Independent representations do not give 0 at finite n: about ``(d_x d_y)**0.5 / n`` for white ones.
        - Dominated by the directions of largest variance.

    Source:
        Kornblith, Norouzi, Lee and Hinton (2019), "Similarity of Neural Network Representations Revisited".

    Example:
        >>> x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
        >>> round(linear_cka(x, 3 * x.flip(1) + 1).item(), 6)  # rotations, scale and offset do not matter
        1.0
    """
    _require_rows(x, "x")
    _require_rows(y, "y")
    _require_paired(x, y)
    dtype = _working_dtype(x, y)
    n = x.shape[0]
    with torch.autocast(x.device.type, enabled=False):
        a, b = (_unit_size(rows.to(torch.float64)) for rows in (x, y))
        if n < max(a.shape[1], b.shape[1]):
            gram_x, gram_y = a @ a.T, b @ b.T
            shared, own_x, own_y = (gram_x * gram_y).sum(), gram_x.square().sum(), gram_y.square().sum()
        else:
            shared = (a.T @ b).square().sum()
            own_x, own_y = (a.T @ a).square().sum(), (b.T @ b).square().sum()
        size = own_x * own_y
        constant = size == 0
        # Dividing by 1 where the norm is 0 keeps the gradient of the square root finite.
        return (shared / torch.where(constant, 1.0, size).sqrt()).to(dtype)


def _unit_size(rows: Tensor) -> Tensor:
    """Centre the columns exactly where they are constant, and bring the largest entry to 1 (CKA ignores scale)."""
    centred = rows - rows.mean(dim=0)
    centred = torch.where(rows.amax(dim=0) > rows.amin(dim=0), centred, 0.0)
    largest = centred.detach().abs().amax()
    return centred / torch.where(largest > 0, largest, 1.0)


def _prepared(x: Tensor, y: Tensor, bandwidth: float | None) -> tuple[Tensor, Tensor, float]:
    """Return both samples in the working dtype, around their common centre, and the bandwidth."""
    if bandwidth is None:
        bandwidth = median_bandwidth(x, y)
    if not 0 < bandwidth < float("inf"):
        raise InputError(f"bandwidth is {bandwidth}; it must be positive and finite, in the unit of the features.")
    dtype = _working_dtype(x, y)
    # A point of the cloud would do; the mean also keeps products small. Kernels do not see the shift.
    centre = torch.cat([x.detach().to(torch.float64), y.detach().to(torch.float64)]).mean(dim=0)
    return (x - centre.to(x.device)).to(dtype), (y - centre).to(dtype), bandwidth


def _working_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)


# ------------------------------------------------------------------------------------------------------- checks


def _require_samples(x: Tensor, y: Tensor, *, unbiased: bool, paired: bool) -> None:
    _require_rows(x, "x")
    _require_rows(y, "y")
    _require_same_width(x, y)
    if x.device != y.device:
        raise InputError(f"x is on {x.device} and y is on {y.device}. Move both to one device.")
    if paired:
        _require_paired(x, y)
    fewest = 2 if unbiased else 1
    for name, rows in (("x", x), ("y", y)):
        if rows.shape[0] < fewest:
            raise InputError(f"{name} has {rows.shape[0]} rows, but this statistic needs at least {fewest}.")


def _require_rows(value: Tensor, name: str) -> None:
    if value.ndim != 2:
        raise InputError(f"{name} has shape {tuple(value.shape)}; pass rows of shape (n, d).")


def _require_same_width(x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"x has {x.shape[1]} columns and y has {y.shape[1]}, but a kernel compares points of one space. Map one to "
            "the width of the other first."
        )


def _require_paired(x: Tensor, y: Tensor) -> None:
    if x.shape[0] != y.shape[0]:
        raise InputError(f"x has {x.shape[0]} rows and y has {y.shape[0]}. Row i of both must be the same input.")
