"""Squared maximum mean discrepancies from a subset of the pairs: within blocks of rows, or of consecutive rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.kernels.mmd import require_samples
from mikit.functional.kernels.pair_kernels import Gaussian, Kernel, Polynomial

__all__ = ["block_mmd2", "block_mmd2_pointwise", "linear_time_mmd2", "linear_time_mmd2_pointwise"]


def block_mmd2(
    x: Tensor,
    y: Tensor,
    *,
    block: int | None = None,
    bandwidth: float | Sequence[float] | None = None,
    factors: Sequence[float] = (1.0,),
    degree: int | None = None,
    scale: float | None = None,
    offset: float = 1.0,
    paired: bool = False,
) -> Tensor:
    r"""Mean of the unbiased squared MMD over consecutive blocks of rows.

    .. math:: \frac1K \sum_{b=1}^K \mathrm{MMD}_u^2(X_b, Y_b)

    with both samples divided into :math:`K` blocks of about ``block`` rows. All rows are used: where the number of rows
    is not a multiple of the number of blocks, some blocks have one row more. The blocks are independent, so the spread
    of their values gives an exact standard error, and the value is close to normal even for equal distributions, unlike
    :func:`mmd2`.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``; divided into as many blocks as ``x``.
        block: Rows of a block of the smaller sample, at least 2. None: about the square root of their number.
        bandwidth: As in :func:`mmd2`; None: the median distance of all rows, not of those of a block.
        factors: As in :func:`mmd2`.
        degree: Power of a polynomial kernel in place of the Gaussian one; see :func:`polynomial_mmd2`.
        scale: As in :func:`polynomial_mmd2`.
        offset: As in :func:`polynomial_mmd2`.
        paired: As in :func:`mmd2`: whether row i of both samples belong together; their kernel is then left out.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable in both. Unit: as
        :func:`mmd2` or :func:`polynomial_mmd2`. Kind: a discrepancy, unbiased at a fixed kernel, 0 for equal
        distributions and negative about half of the time there.

    Raises:
        InputError: As :func:`mmd2` or :func:`polynomial_mmd2`; if ``block`` is below 2 or above the number of rows of
            the smaller sample, or a bandwidth is passed with a polynomial kernel.

    Cost:
        O(n block d) time and O(n block) memory.

    Pitfalls:
        - Depends on the order of the rows, which should be random: blocks of one class each compare classes.
        - Noisier than :func:`mmd2` on the same rows: it uses a fraction ``block / n`` of the pairs.
        - Blind to pairing, like every comparison of two distributions.

    Source:
        Zaremba, Gretton and Blaschko (2013), "B-tests: Low Variance Kernel Two-Sample Tests".

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 400, 3, generator=generator)
        >>> abs(block_mmd2(x, y).item()) < 0.02 < block_mmd2(x, y + 1).item()
        True
    """
    kernel = _kernel(bandwidth, factors, degree, scale, offset)
    return block_mmd2_pointwise(x, y, kernel, block=block, paired=paired).mean()


def block_mmd2_pointwise(
    x: Tensor, y: Tensor, kernel: Kernel, *, block: int | None = None, paired: bool = False
) -> Tensor:
    """Return the value of every block of :func:`block_mmd2`, ``(K,)``, differentiable.

    The values are independent, so their standard deviation over root ``K`` is the standard error of their mean. It
    treats a median bandwidth as given.
    """
    require_samples(x, y, unbiased=True, paired=paired)
    fewest = min(x.shape[0], y.shape[0])
    rows = max(2, round(math.sqrt(fewest))) if block is None else block
    if not 2 <= rows <= fewest:
        raise InputError(
            f"block is {block}, but the smaller sample has {fewest} rows; pass a number from 2 to the number of rows."
        )
    count = fewest // rows
    with torch.autocast(x.device.type, enabled=False):
        a, b, parameters = kernel.prepared(x, y)
        of_products = partial(kernel.of_products, parameters)
        values = [
            _unbiased(_stacked(a, count, chosen), _stacked(b, count, chosen), of_products, paired)
            for chosen in _runs_of_one_size(a.shape[0], b.shape[0], count)
        ]
        return torch.cat(values)


def linear_time_mmd2(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | Sequence[float] | None = None,
    factors: Sequence[float] = (1.0,),
    degree: int | None = None,
    scale: float | None = None,
    offset: float = 1.0,
) -> Tensor:
    r"""Squared MMD from disjoint pairs of consecutive rows, in time linear in their number.

    .. math:: \frac{2}{n} \sum_{i=1}^{n/2} k(x_{2i-1}, x_{2i}) + k(y_{2i-1}, y_{2i}) - k(x_{2i-1}, y_{2i})
              - k(x_{2i}, y_{2i-1})

    With an odd number of rows the last three make one term, the mean over their three pairs. Row i of both samples may
    depend on each other: their kernel is not used.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(n, d)``.
        bandwidth: As in :func:`block_mmd2`.
        factors: As in :func:`block_mmd2`.
        degree: As in :func:`block_mmd2`.
        scale: As in :func:`block_mmd2`.
        offset: As in :func:`block_mmd2`.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable in both. Unit and kind: as
        :func:`block_mmd2`.

    Raises:
        InputError: As :func:`block_mmd2`, and if the samples have different numbers of rows.

    Cost:
        O(n d) time and memory.

    Pitfalls:
        - By far the noisiest form: use it only where there are too many rows to compute all pairs.
        - Depends on the order of the rows, which should be random.
        - Blind to pairing, like every comparison of two distributions.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), "A Kernel Two-Sample Test", JMLR 13.

    Example:
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])
        >>> linear_time_mmd2(x, y, degree=1, scale=1.0, offset=0.0).item()  # (0 - 3) · (2 - 5)
        9.0
    """
    return linear_time_mmd2_pointwise(x, y, _kernel(bandwidth, factors, degree, scale, offset)).mean()


def linear_time_mmd2_pointwise(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """Return the terms of :func:`linear_time_mmd2`, ``(n // 2,)``, differentiable and independent of each other."""
    require_samples(x, y, unbiased=True, paired=True)
    n = x.shape[0]
    with torch.autocast(x.device.type, enabled=False):
        a, b, parameters = kernel.prepared(x, y)
        first, second = torch.arange(0, n - 1, 2), torch.arange(1, n, 2)
        if n % 2:
            # The last three rows give three pairs: (n-3, n-2), (n-2, n-1), (n-3, n-1). Their mean is one term, which
            # stays independent of the others; a pair that shared a row with another term would not.
            first = torch.cat([first, torch.tensor([n - 2, n - 3])])
            second = torch.cat([second, torch.tensor([n - 1, n - 1])])

        def between(p: Tensor, q: Tensor) -> Tensor:
            products, norms_p, norms_q = (p * q).sum(dim=1), p.square().sum(dim=1), q.square().sum(dim=1)
            return kernel.of_products(parameters, products, norms_p, norms_q)

        x1, x2, y1, y2 = a[first], a[second], b[first], b[second]
        terms = between(x1, x2) + between(y1, y2) - between(x1, y2) - between(x2, y1)
        whole = n // 2 - n % 2
        return torch.cat([terms[:whole], terms[whole:].mean().reshape(1)]) if n % 2 else terms


def _kernel(
    bandwidth: float | Sequence[float] | None,
    factors: Sequence[float],
    degree: int | None,
    scale: float | None,
    offset: float,
) -> Kernel:
    if degree is None:
        return Gaussian(bandwidth, factors)
    if bandwidth is not None or tuple(factors) != (1.0,):
        raise InputError("A polynomial kernel has no bandwidth; leave out either the degree or the bandwidth.")
    return Polynomial(degree, scale, offset)


def _runs_of_one_size(n: int, m: int, count: int) -> list[slice]:
    """Return the runs of blocks in which all blocks of a sample have one size."""
    # Both samples have at most two sizes of blocks, so there are at most three runs. Each is one batched product, which
    # is much faster than a loop over blocks.
    edges = sorted({0, n % count, m % count, count})
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _stacked(rows: Tensor, count: int, chosen: slice) -> Tensor:
    """Return the chosen blocks of ``count``, ``(blocks, rows, d)``; the first ``n % count`` have one row more."""
    n = rows.shape[0]
    small, larger = n // count, n % count
    size = small + 1 if chosen.start < larger else small
    start = chosen.start * small + min(chosen.start, larger)
    blocks = chosen.stop - chosen.start
    return rows[start : start + blocks * size].reshape(blocks, size, -1)


def _unbiased(a: Tensor, b: Tensor, of_products: partial[Tensor], paired: bool) -> Tensor:
    """Return the unbiased squared discrepancy of each block."""
    n, m = a.shape[1], b.shape[1]
    norms_a, norms_b = a.square().sum(dim=2), b.square().sum(dim=2)

    def total(p: Tensor, q: Tensor, norms_p: Tensor, norms_q: Tensor, hollow: bool) -> Tensor:
        values = of_products(p @ q.transpose(1, 2), norms_p[:, :, None], norms_q[:, None, :])
        if hollow:
            diagonal = torch.eye(values.shape[1], values.shape[2], dtype=torch.bool, device=values.device)
            values = values.masked_fill(diagonal, 0.0)
        return values.sum(dim=(1, 2))

    within = total(a, a, norms_a, norms_a, True) / (n * (n - 1))
    within = within + total(b, b, norms_b, norms_b, True) / (m * (m - 1))
    pairs = n * (n - 1) if paired else n * m
    return within - 2 * total(a, b, norms_a, norms_b, paired) / pairs
