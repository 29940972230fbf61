"""Squared maximum mean discrepancies from some of the pairs only: within blocks of rows, or between neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.kernels.mmd import for_gaussian_kernel, for_polynomial_kernel, require_samples

__all__ = ["block_mmd2", "block_mmd2_pointwise", "linear_time_mmd2", "linear_time_mmd2_pointwise"]

_OfProducts = Callable[[Tensor, Tensor, Tensor], Tensor]


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

    with both samples cut into :math:`K` blocks of about ``block`` rows. No row is left out: where the blocks do not
    divide the rows some blocks have one more. The blocks are independent, so the spread of their values is an exact
    standard error, and the value is close to normal for equal laws too, which :func:`mmd2` is not.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``; cut into as many blocks as ``x``.
        block: Rows of a block of the smaller sample, at least 2. None: about its root.
        bandwidth: As in :func:`mmd2`; None: the median distance of all rows, not of a block's.
        factors: As in :func:`mmd2`.
        degree: Power of a polynomial kernel in place of the Gaussian one; see :func:`polynomial_mmd2`.
        scale: As in :func:`polynomial_mmd2`.
        offset: As in :func:`polynomial_mmd2`.
        paired: As in :func:`mmd2`: whether row i of both samples belong together, whose kernel is then left out.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable in both. Unit: as
        :func:`mmd2` or :func:`polynomial_mmd2`. Kind: a discrepancy, unbiased at a fixed kernel, 0 for equal laws,
        negative about half of the time there.

    Raises:
        InputError: As :func:`mmd2` or :func:`polynomial_mmd2`; if ``block`` is below 2 or above the rows of the smaller
            sample, or a bandwidth comes with a polynomial kernel.

    Cost:
        O(n block d) time and O(n block) memory.

    Pitfalls:
        - Depends on the order of the rows, which should be random: blocks of one class each compare classes.
        - Noisier than :func:`mmd2` on the same rows: it looks at a share ``block / n`` of the pairs.
        - Blind to pairing, as every comparison of laws.

    Source:
        Zaremba, Gretton and Blaschko (2013), "B-tests: Low Variance Kernel Two-Sample Tests".

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 400, 3, generator=generator)
        >>> abs(block_mmd2(x, y).item()) < 0.02 < block_mmd2(x, y + 1).item()
        True
    """
    return block_mmd2_pointwise(
        x,
        y,
        block=block,
        bandwidth=bandwidth,
        factors=factors,
        degree=degree,
        scale=scale,
        offset=offset,
        paired=paired,
    ).mean()


def block_mmd2_pointwise(
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
    """Value of every block of :func:`block_mmd2`, ``(K,)``, whose mean is the value.

    Args:
        x: As in :func:`block_mmd2`.
        y: As there.
        block: As there.
        bandwidth: As there.
        factors: As there.
        degree: As there.
        scale: As there.
        offset: As there.
        paired: As there.

    Returns:
        Tensor ``(K,)``, one a block, differentiable. Kind: independent contributions to a discrepancy, so their
        standard deviation over root ``K`` is the standard error. The bandwidth, where it is the median, is taken as
        given.

    Raises:
        InputError: As :func:`block_mmd2`.

    Cost:
        As :func:`block_mmd2`.

    Pitfalls:
        As :func:`block_mmd2`.

    Source:
        As :func:`block_mmd2`.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> block_mmd2_pointwise(x, x.flip(0), block=10).shape
        torch.Size([10])
    """
    require_samples(x, y, unbiased=True, paired=paired)
    fewest = min(x.shape[0], y.shape[0])
    rows = max(2, round(math.sqrt(fewest))) if block is None else block
    if not 2 <= rows <= fewest:
        raise InputError(
            f"block is {block}, but the smaller sample has {fewest} rows; a block takes at least 2 and at most all."
        )
    count = fewest // rows
    with torch.autocast(x.device.type, enabled=False):
        a, b, kernel = _prepared(x, y, bandwidth, factors, degree, scale, offset)
        values = [
            _unbiased(_stacked(a, count, chosen), _stacked(b, count, chosen), kernel, paired)
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
    depend on each other: their kernel is not looked at.

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
        - By far the noisiest form: it pays only where rows are so many that pairs of all cannot be formed.
        - Depends on the order of the rows, which should be random.
        - Blind to pairing, as every comparison of laws.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), "A Kernel Two-Sample Test", JMLR 13.

    Example:
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])
        >>> linear_time_mmd2(x, y, degree=1, scale=1.0, offset=0.0).item()  # (0 - 3) · (2 - 5)
        9.0
    """
    return linear_time_mmd2_pointwise(
        x, y, bandwidth=bandwidth, factors=factors, degree=degree, scale=scale, offset=offset
    ).mean()


def linear_time_mmd2_pointwise(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | Sequence[float] | None = None,
    factors: Sequence[float] = (1.0,),
    degree: int | None = None,
    scale: float | None = None,
    offset: float = 1.0,
) -> Tensor:
    """Terms of :func:`linear_time_mmd2`, ``(n // 2,)``, whose mean is the value.

    Args:
        x: As in :func:`linear_time_mmd2`.
        y: As there.
        bandwidth: As there.
        factors: As there.
        degree: As there.
        scale: As there.
        offset: As there.

    Returns:
        Tensor ``(n // 2,)``, differentiable. Kind: independent contributions to a discrepancy, so their standard
        deviation over root ``n // 2`` is the standard error.

    Raises:
        InputError: As :func:`linear_time_mmd2`.

    Cost:
        As :func:`linear_time_mmd2`.

    Pitfalls:
        As :func:`linear_time_mmd2`.

    Source:
        As :func:`linear_time_mmd2`.

    Example:
        >>> x = torch.randn(101, 2, generator=torch.Generator().manual_seed(0))
        >>> linear_time_mmd2_pointwise(x, x + 1).shape
        torch.Size([50])
    """
    require_samples(x, y, unbiased=True, paired=True)
    n = x.shape[0]
    with torch.autocast(x.device.type, enabled=False):
        a, b, kernel = _prepared(x, y, bandwidth, factors, degree, scale, offset)
        first, second = torch.arange(0, n - 1, 2), torch.arange(1, n, 2)
        if n % 2:  # the last three rows: pairs (n-3, n-2), (n-2, n-1), (n-3, n-1)
            first = torch.cat([first, torch.tensor([n - 2, n - 3])])
            second = torch.cat([second, torch.tensor([n - 1, n - 1])])
        sides = (a[first], a[second], b[first], b[second])

        def between(p: Tensor, q: Tensor) -> Tensor:
            return kernel((p * q).sum(dim=1), p.square().sum(dim=1), q.square().sum(dim=1))

        x1, x2, y1, y2 = sides
        terms = between(x1, x2) + between(y1, y2) - between(x1, y2) - between(x2, y1)
        whole = n // 2 - n % 2
        return torch.cat([terms[:whole], terms[whole:].mean().reshape(1)]) if n % 2 else terms


def _prepared(
    x: Tensor,
    y: Tensor,
    bandwidth: float | Sequence[float] | None,
    factors: Sequence[float],
    degree: int | None,
    scale: float | None,
    offset: float,
) -> tuple[Tensor, Tensor, _OfProducts]:
    """Return the samples for their kernel, and the kernel of products and squared lengths."""
    if degree is None:
        a, b, bandwidths = for_gaussian_kernel(x, y, bandwidth, factors)

        def gaussian(products: Tensor, own: Tensor, other: Tensor) -> Tensor:
            distances = (own + other - 2 * products).clamp(min=0)
            return torch.stack([(distances * (-0.5 / one**2)).exp() for one in bandwidths]).sum(dim=0)

        return a, b, gaussian
    if bandwidth is not None or tuple(factors) != (1.0,):
        raise InputError("A polynomial kernel has no bandwidth; leave out either the degree or the bandwidth.")
    a, b, scale = for_polynomial_kernel(x, y, degree, scale, offset)

    def polynomial(products: Tensor, own: Tensor, other: Tensor) -> Tensor:
        return (scale * products + offset) ** degree

    return a, b, polynomial


def _runs_of_one_size(n: int, m: int, count: int) -> list[slice]:
    """Return the runs of blocks in which all blocks of a sample are of one size."""
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


def _unbiased(a: Tensor, b: Tensor, kernel: _OfProducts, paired: bool) -> Tensor:
    """Return the unbiased squared discrepancy of each block."""
    n, m = a.shape[1], b.shape[1]
    lengths_a, lengths_b = a.square().sum(dim=2), b.square().sum(dim=2)

    def entries(p: Tensor, q: Tensor, of_p: Tensor, of_q: Tensor, hollow: bool) -> Tensor:
        values = kernel(p @ q.transpose(1, 2), of_p[:, :, None], of_q[:, None, :])
        if hollow:
            own = torch.eye(values.shape[1], values.shape[2], dtype=torch.bool, device=values.device)
            values = values.masked_fill(own, 0.0)
        return values.sum(dim=(1, 2))

    within = entries(a, a, lengths_a, lengths_a, True) / (n * (n - 1))
    within = within + entries(b, b, lengths_b, lengths_b, True) / (m * (m - 1))
    pairs = n * (n - 1) if paired else n * m
    return within - 2 * entries(a, b, lengths_a, lengths_b, paired) / pairs
