"""Squared maximum mean discrepancies between two samples, a strip of pairs at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.operators import closed_form
from mikit.functional.engine.pairwise import (
    Epilogue,
    Strip,
    exponential,
    gaussians,
    power,
    scores,
    squared_distances,
    sum_over_pairs,
)
from mikit.functional.engine.samples import (
    centred,
    require_one_device,
    require_paired,
    require_rows,
    require_same_width,
    working_dtype,
)
from mikit.functional.kernels.bandwidth import median_distance

__all__ = [
    "PairKernel",
    "for_gaussian_kernel",
    "for_polynomial_kernel",
    "gaussian_kernel",
    "mmd2",
    "polynomial_kernel",
    "polynomial_mmd2",
    "require_samples",
]


@final
class PairKernel(NamedTuple):
    """A kernel: what is made of each pair's score, or of its squared distance times ``scale``.

    Attributes:
        epilogue: What becomes of an entry.
        scale: What squared distances are multiplied by; None: entries are scores.
    """

    epilogue: Epilogue
    scale: float | None

    def strips(self, a: Tensor, b: Tensor, strip: int | None) -> Iterator[Strip]:
        """Yield the entries of all pairs, before the epilogue."""
        if self.scale is None:
            return scores(a, b, strip=strip)
        return squared_distances(a, b, scale=self.scale, strip=strip)


def gaussian_kernel(bandwidths: Sequence[float]) -> PairKernel:
    """Return the sum of the Gaussian kernels of these bandwidths."""
    if len(bandwidths) == 1:
        return PairKernel(exponential, -0.5 / bandwidths[0] ** 2)
    return PairKernel(gaussians(bandwidths), -0.5)


def polynomial_kernel(degree: int, scale: float, offset: float) -> PairKernel:
    """Return ``(scale a · b + offset)^degree``."""
    return PairKernel(power(degree, scale=scale, offset=offset), None)


def for_gaussian_kernel(
    x: Tensor, y: Tensor, bandwidth: float | Sequence[float] | None, factors: Sequence[float] = (1.0,)
) -> tuple[Tensor, Tensor, list[float]]:
    """Return both samples in the working dtype, around their common centre, and the bandwidths in their unit.

    Raises:
        InputError: If a bandwidth or a factor is not positive and finite, there is none, or factors come with
            bandwidths.
    """
    a, b = centred(x, y)
    if bandwidth is None:
        if not factors or not all(0 < one < float("inf") for one in factors):
            raise InputError(f"factors is {factors}; the median distance must be multiplied by positive numbers.")
        # In units of the bandwidth: the median stays a tensor, and squares stay inside the dtype.
        unit = median_distance(x, y).to(a.dtype) * max(factors)
        return a / unit, b / unit, [one / max(factors) for one in factors]
    if tuple(factors) != (1.0,):
        raise InputError("factors multiply the median distance, so they do not go with a bandwidth; give one of them.")
    bandwidths = [float(one) for one in bandwidth] if isinstance(bandwidth, Sequence) else [float(bandwidth)]
    if not bandwidths or not all(0 < one < float("inf") for one in bandwidths):
        raise InputError(f"bandwidth is {bandwidth}; it must be positive and finite, in the unit of the features.")
    widest = max(bandwidths)
    return a / widest, b / widest, [one / widest for one in bandwidths]


def for_polynomial_kernel(
    x: Tensor, y: Tensor, degree: int, scale: float | None, offset: float
) -> tuple[Tensor, Tensor, float]:
    """Return both samples in the working dtype, and the scale.

    Around their common centre where the value does not depend on it: for the linear kernel, whose offset cancels.

    Raises:
        InputError: If the degree is below 1 or the scale is not positive and finite.
    """
    if not isinstance(degree, int) or degree < 1:
        raise InputError(f"degree is {degree}; the kernel's power must be a whole number of at least 1.")
    if scale is None:
        scale = 1 / x.shape[1]
    if not 0 < scale < float("inf"):
        raise InputError(f"scale is {scale}; it must be positive and finite.")
    if degree == 1:
        a, b = centred(x, y)
        return a, b, scale
    dtype = working_dtype(x, y)
    return x.to(dtype), y.to(dtype), scale


def require_samples(x: Tensor, y: Tensor, *, unbiased: bool, paired: bool) -> None:
    """Raise :class:`~mikit.InputError` unless two samples have a discrepancy of this form."""
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name)
    require_same_width(x, y)
    require_one_device(x, y)
    if paired:
        require_paired(x, y)
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name, fewest=2 if unbiased else 1)


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
        factors: What the median is multiplied by, for the sum of as many kernels. Only without a ``bandwidth``.
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
    require_samples(x, y, unbiased=unbiased, paired=paired)
    a, b, bandwidths = for_gaussian_kernel(x, y, bandwidth, factors)
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
        - Beyond degree 1 not invariant to a common shift: far from the origin the terms are large and their difference
          loses digits.
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
    require_samples(x, y, unbiased=unbiased, paired=paired)
    a, b, scale = for_polynomial_kernel(x, y, degree, scale, offset)
    return _polynomial(a, b, degree, scale, offset, unbiased, paired, strip).to(a.dtype)


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
    return _mmd2(wants, a, b, gaussian_kernel(bandwidths), unbiased, paired, strip)


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
    return _mmd2(wants, a, b, polynomial_kernel(degree, scale, offset), unbiased, paired, strip)


def _mmd2(
    wants: Sequence[bool], a: Tensor, b: Tensor, kernel: PairKernel, unbiased: bool, paired: bool, strip: int | None
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
