"""Squared maximum mean discrepancies between two samples, computed a block of pairs at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mikit.functional.engine.operators import closed_form
from mikit.functional.engine.pairwise import sum_over_pairs
from mikit.functional.engine.samples import require_comparable, require_paired
from mikit.functional.kernels.pair_kernels import KERNELS, Gaussian, Kernel, Polynomial

__all__ = ["kernel_mmd2", "mmd2", "polynomial_mmd2", "require_samples"]


def mmd2(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float | Sequence[float] | None = None,
    factors: Sequence[float] = (1.0,),
    unbiased: bool = True,
    paired: bool = False,
    strip: int | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy between the distributions of two samples, under a Gaussian kernel.

    .. math:: \mathrm{MMD}^2 = E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y), \qquad
              k(a, b) = \exp\left(-\|a - b\|^2 / 2\sigma^2\right)

    The unbiased form leaves the kernel of a row with itself out of the first two means. With ``paired`` it also leaves
    ``k(x_i, y_i)`` out of the third. This makes it unbiased when row i of both samples belongs to one input and the two
    are dependent; the general form needs independent samples.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``; ``m`` may differ from ``n`` unless ``paired``.
        bandwidth: The kernel's sigma, in the unit of the features; several for the sum of their kernels. None:
            :func:`median_bandwidth` of both samples, a constant for the gradient.
        factors: Multiples of the median, for the sum of as many kernels. Only without a ``bandwidth``.
        unbiased: Whether to leave out the kernel of a row with itself. Otherwise the V-statistic, which is never
            negative and too large by about ``2 (1 - mean k) / n``; ``paired`` makes no difference to it.
        paired: Whether row i of ``x`` and of ``y`` belong together.
        strip: Rows processed at a time; None chooses. The value does not depend on it, up to rounding.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit:
        dimensionless, at most 2 for each bandwidth. Kind: a discrepancy, 0 for equal distributions. The unbiased form
        is never clipped, and is negative about half of the time when the distributions are equal.

    Raises:
        InputError: If a sample is not ``(n, d)``, the widths differ, the numbers of rows differ under ``paired``, there
            are fewer than two rows for the unbiased form, or the bandwidth is not positive.

    Cost:
        O((n + m)² d) time, two to three times that with gradients, which are computed in the same pass;
        O((n + m) d) memory and one block of pairs. Each bandwidth beyond the first costs one pass over the entries.
        Second derivatives raise an error.

    Pitfalls:
        - Blind to pairing: shuffling the rows of one sample changes nothing but rounding. A small value means that the
          two distributions are alike, not that one network contains the information of the other.
        - Depends on the bandwidth and on the scale of the features; not comparable across layers or widths.
        - In high dimension all distances are alike, and the statistic has little power unless n is large.

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
    return kernel_mmd2(x, y, Gaussian(bandwidth, factors), unbiased=unbiased, paired=paired, strip=strip)


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
    r"""Squared maximum mean discrepancy between the distributions of two samples, under a polynomial kernel.

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
        strip: Rows processed at a time; None chooses.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit:
        ``(scale · feature²)^degree``. Kind: a discrepancy, 0 for distributions with equal moments up to the degree.

    Raises:
        InputError: As :func:`mmd2`, and if the degree is below 1 or the scale is not positive.

    Cost:
        As :func:`mmd2`.

    Pitfalls:
        - Beyond degree 1 not invariant to a common shift: far from the origin the terms are large and their difference
          loses digits.
        - Grows with the power ``2 p`` of the scale of the features.
        - Blind to pairing, like every comparison of two distributions.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), "A Kernel Two-Sample Test", JMLR 13. Degree 3 with
        ``1 / d`` and 1 is the kernel of the kernel inception distance: Bińkowski, Sutherland, Arbel and Gretton (2018).

    Example:
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])
        >>> polynomial_mmd2(x, y, degree=1, scale=1.0, offset=0.0, unbiased=False).item()  # means 1 and 4
        9.0
    """
    return kernel_mmd2(x, y, Polynomial(degree, scale, offset), unbiased=unbiased, paired=paired, strip=strip)


def kernel_mmd2(
    x: Tensor, y: Tensor, kernel: Kernel, *, unbiased: bool = True, paired: bool = False, strip: int | None = None
) -> Tensor:
    """Return the squared discrepancy under any kernel; :func:`mmd2` and :func:`polynomial_mmd2` describe it."""
    require_samples(x, y, unbiased=unbiased, paired=paired)
    a, b, parameters = kernel.prepared(x, y)
    return _mmd2(a, b, kernel.family, parameters, unbiased, paired, strip).to(a.dtype)


def require_samples(x: Tensor, y: Tensor, *, unbiased: bool, paired: bool) -> None:
    """Raise :class:`~mikit.InputError` unless two samples have a discrepancy of this form."""
    require_comparable(x, y, fewest=2 if unbiased else 1)
    if paired:
        require_paired(x, y)


@closed_form
def _mmd2(
    wants: Sequence[bool],
    a: Tensor,
    b: Tensor,
    family: str,
    parameters: Sequence[float],
    unbiased: bool,
    paired: bool,
    strip: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = KERNELS[family].of_pairs(parameters)
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
