"""Contributions of the rows to a squared maximum mean discrepancy, and its standard error."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikit.functional.engine.epilogues import Scratch
from mikit.functional.engine.operators import full_precision
from mikit.functional.kernels.mmd import require_samples
from mikit.functional.kernels.pair_kernels import Kernel, PairKernel

__all__ = ["contributions_of", "mmd2_pointwise", "mmd2_standard_error", "standard_error_of"]


def mmd2_pointwise(x: Tensor, y: Tensor, kernel: Kernel, *, paired: bool = False, strip: int | None = None) -> Tensor:
    """Return the contribution of every row to the unbiased MMD², ``(n,)`` without gradient; the mean is the value.

    Row i contributes its mean kernel with the other rows of each sample, minus its mean kernels across the samples. The
    contributions share every row and are not independent: their standard deviation over root n is about half of the
    standard error. Use :func:`mmd2_standard_error`.
    """
    require_samples(x, y, unbiased=True, paired=True)
    a, b, parameters = kernel.prepared(x.detach(), y.detach())
    return contributions_of(kernel.of_pairs(parameters), a, b, paired, strip)


def mmd2_standard_error(x: Tensor, y: Tensor, kernel: Kernel, *, strip: int | None = None) -> float:
    r"""Return the standard error of the unbiased MMD², infinity below four rows.

    With :math:`h_{ij} = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)` for samples of one size, whose row i may
    depend on each other, :math:`\mathrm{Var} \approx \frac4n \zeta_1 + \frac{2}{n (n - 1)} \zeta_2` (Hoeffding 1948):
    :math:`\zeta_1` is the variance of the mean of :math:`h_{ij}` over j, and :math:`\zeta_2` what row and column means
    leave unexplained. Samples of different sizes are taken as independent. For equal distributions the value is not
    normally distributed and the error is too large by about a fifth on average. A bandwidth set from the same rows is
    taken as given. Polynomial kernels have heavy tails, so few rows make a rough error.
    """
    require_samples(x, y, unbiased=True, paired=False)
    x, y = x.detach(), y.detach()
    if kernel.error_in_float64:
        x, y = x.double(), y.double()
    a, b, parameters = kernel.prepared(x, y)
    return standard_error_of(kernel.of_pairs(parameters), a, b, strip)


def contributions_of(kernel: PairKernel, a: Tensor, b: Tensor, paired: bool, strip: int | None) -> Tensor:
    """Return :func:`mmd2_pointwise` of samples that are prepared for the kernel."""
    n = a.shape[0]
    within = (
        _moments(kernel, a, a, hollow=True, strip=strip).rows + _moments(kernel, b, b, hollow=True, strip=strip).rows
    )
    across = _moments(kernel, a, b, hollow=paired, strip=strip)
    return (within / (n - 1) - (across.rows + across.columns) / (n - 1 if paired else n)).to(a.dtype)


def standard_error_of(kernel: PairKernel, a: Tensor, b: Tensor, strip: int | None) -> float:
    """Return :func:`mmd2_standard_error` of samples that are prepared for the kernel."""
    n, m = a.shape[0], b.shape[0]
    if min(n, m) < 4:
        return math.inf
    if n == m:
        return math.sqrt(_one_size_variance(kernel, a, b, strip))
    of_x = _moments(kernel, a, a, hollow=True, strip=strip)
    of_y = _moments(kernel, b, b, hollow=True, strip=strip)
    across = _moments(kernel, a, b, hollow=False, strip=strip)
    means_x, means_y, across_x, across_y = of_x.rows / (n - 1), of_y.rows / (m - 1), across.rows / m, across.columns / n
    left_x, left_y = _left_over(means_x, of_x.squares), _left_over(means_y, of_y.squares)
    spread = across.squares / (n * m) - float(across_x.mean()) ** 2 - float(across_x.var() + across_y.var())
    left = max(spread / (1 - 1 / n - 1 / m), 0.0)
    # The variance of an observed row mean contains the noise of the partners it was averaged over. Without subtracting
    # it the first terms would never fall to 0 for equal distributions, and the second would be counted twice.
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
        for block in kernel.blocks(a, b, strip):
            terms, _ = kernel.epilogue(block.values, spare.shaped(block.values)[0], False)
            if hollow:
                block.diagonal_of(terms).zero_()
            rows[block.rows] = terms.sum(dim=1).double()
            columns += terms.sum(dim=0)
            squares += terms.square_().sum(dim=1).sum(dtype=torch.float64)
        return _Moments(rows, columns, float(squares))


def _one_size_variance(kernel: PairKernel, a: Tensor, b: Tensor, strip: int | None) -> float:
    n = a.shape[0]
    means = torch.empty(n, dtype=torch.float64, device=a.device)
    squares = torch.zeros((), dtype=torch.float64, device=a.device)
    # With samples of one size, pair i of rows is one observation and h a symmetric kernel of two observations. This
    # includes the dependence within pairs, which separate moments of the samples would miss. h needs the same block of
    # all four matrices at once: the transpose of the cross term comes from exchanging the samples.
    sides = ((a, a), (b, b), (a, b), (b, a))
    spare = Scratch()
    with full_precision(a.device):
        for blocks in zip(*(kernel.blocks(*side, strip) for side in sides), strict=True):
            h = torch.zeros_like(blocks[0].values)
            for block, sign in zip(blocks, (1, 1, -1, -1), strict=True):
                h.add_(kernel.epilogue(block.values, spare.shaped(block.values)[0], False)[0], alpha=sign)
            blocks[0].diagonal_of(h).zero_()
            means[blocks[0].rows] = h.sum(dim=1).double() / (n - 1)
            squares += h.square_().sum(dim=1).sum(dtype=torch.float64)
    second = _left_over(means, float(squares))
    first = max(float(means.var()) - second / (n - 1), 0.0)
    return 4 * first / n + 2 * second / (n * (n - 1))


def _left_over(means: Tensor, squares: float) -> float:
    """Return the variance of a symmetric function of two rows that the means of its rows and columns do not explain."""
    n = means.shape[0]
    variance = squares / (n * (n - 1)) - float(means.mean()) ** 2
    # The observed variance of the means is ζ1 + ζ2 / (n - 1), so subtracting it twice leaves ζ2 (1 - 2 / (n - 1)).
    return max((variance - 2 * float(means.var())) / (1 - 2 / (n - 1)), 0.0)
