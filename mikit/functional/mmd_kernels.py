"""The kernels of the maximum mean discrepancy, and the form in which samples are given to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

from torch import Tensor

from mikit.errors import InputError
from mikit.functional.kernels import median_distance
from mikit.functional.pairwise import (
    Epilogue,
    Strip,
    exponential,
    gaussians,
    power,
    scores,
    squared_distances,
)
from mikit.functional.samples import (
    centred,
    require_one_device,
    require_paired,
    require_rows,
    require_same_width,
    working_dtype,
)

__all__ = [
    "PairKernel",
    "for_gaussian_kernel",
    "for_polynomial_kernel",
    "gaussian_kernel",
    "polynomial_kernel",
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
    """Raise :class:`~mikit.errors.InputError` unless two samples have a discrepancy of this form."""
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name)
    require_same_width(x, y)
    require_one_device(x, y)
    if paired:
        require_paired(x, y)
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name, fewest=2 if unbiased else 1)
