"""Sums over all pairs of rows of one centred Gaussian kernel times another, or times that of labels.

Kernels near 1 are handled less 1, which no centred sum notices and which keeps their digits where a bandwidth is wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.functional.engine.operators import closed_form, unwanted
from mikit.functional.engine.pairwise import Gradient, Strip, exp_, spans, squared_distances

__all__ = ["kernel_with_kernel", "kernel_with_labels"]


@closed_form
def kernel_with_kernel(
    wants: Sequence[bool],
    x: Tensor,
    y: Tensor,
    bandwidth_x: float,
    bandwidth_y: float,
    unbiased: bool,
    normalised: bool,
    strip: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the product of two samples' kernels, over their norms if ``normalised``, differentiable in both."""
    first = _Kernel(x, bandwidth_x, hollow=unbiased, strip=strip)
    second = _Kernel(y, bandwidth_y, hollow=unbiased, strip=strip)
    centring = _Centring.of(x.shape[0], unbiased)
    if sum(wants) == 1 and not normalised:
        own, other = (first, second) if wants[0] else (second, first)
        value, slope = (part * centring.scale for part in _against(own, other.centred(centring), wanted=True))
        return (value, slope, unwanted(y)) if wants[0] else (value, unwanted(x), slope)

    across, within_x, within_y = (x.new_zeros((), dtype=torch.float64) for _ in range(3))
    sums_x, sums_y = (x.new_zeros(x.shape[0], dtype=torch.float64) for _ in range(2))
    for part, other_part in zip(first.strips(), second.strips(), strict=True):
        kernel_x, kernel_y = part.values, other_part.values
        _add_row_sums(sums_x, part, kernel_x)
        _add_row_sums(sums_y, part, kernel_y)
        if normalised:
            within_x += _doubled(part, kernel_x.square())
            within_y += _doubled(part, kernel_y.square())
        across += _doubled(part, kernel_x.mul_(kernel_y))
    value = centring.inner(across, sums_x, sums_y)
    factor, share_x, share_y = centring.scale, 0.0, 0.0
    if normalised:
        own_x, own_y = centring.inner(within_x, sums_x, sums_x), centring.inner(within_y, sums_y, sums_y)
        # What centring leaves of a kernel that does not vary is the rounding of its sums.
        rounding = 8 * torch.finfo(x.dtype).eps * centring.scale
        if own_x <= rounding * within_x or own_y <= rounding * within_y:
            return torch.zeros_like(value), torch.zeros_like(x), torch.zeros_like(y)
        share_x, share_y = float(value / own_x), float(value / own_y)
        size = float((own_x * own_y).sqrt())
        value, factor = value / size, factor / size
    if not any(wants):
        return value, unwanted(x), unwanted(y)

    shift_x, shift_y = (centring.shift(sums).to(x.dtype) for sums in (sums_x, sums_y))
    gradient_x, gradient_y = first.gradient(wanted=wants[0]), second.gradient(wanted=wants[1])
    for part, other_part in zip(first.strips(), second.strips(), strict=True):
        kernel_x, kernel_y = part.values, other_part.values
        centred_x = torch.add(kernel_x, shift_x[part.rows, None]).add_(shift_x[part.columns])
        centred_y = torch.add(kernel_y, shift_y[part.rows, None]).add_(shift_y[part.columns])
        if wants[0]:
            slopes = torch.sub(centred_y, centred_x, alpha=share_x)
            gradient_x.add(part, first.in_the_exponent(part, slopes, kernel_x.mul_(slopes)))
        if wants[1]:
            slopes = torch.sub(centred_x, centred_y, alpha=share_y)
            gradient_y.add(part, second.in_the_exponent(part, slopes, kernel_y.mul_(slopes)))
    return value, gradient_x.both()[0] * factor, gradient_y.both()[0] * factor


@closed_form
def kernel_with_labels(
    wants: Sequence[bool], x: Tensor, labels: Tensor | None, bandwidth: float, strip: int | None
) -> tuple[Tensor, Tensor]:
    """Return the product of a sample's kernel and of the matrix that is 1 where two labels agree."""
    assert labels is not None
    kernel = _Kernel(x, bandwidth, hollow=False, strip=strip)
    value, slope = _against(kernel, _centred_labels(labels, x.dtype, strip), wanted=wants[0])
    return value / x.shape[0] ** 2, slope / x.shape[0] ** 2


def _against(own: _Kernel, others: Iterator[Tensor], *, wanted: bool) -> tuple[Tensor, Tensor]:
    """Return the sum over pairs of a kernel times another, given centred in strips, and the gradient in the rows."""
    value = own.rows.new_zeros((), dtype=torch.float64)
    gradient = own.gradient(wanted=wanted)
    for part, slopes in zip(own.strips(), others, strict=True):
        products = part.values.mul_(slopes)
        value += _doubled(part, products)
        if wanted:
            gradient.add(part, own.in_the_exponent(part, slopes, products))
    return value, gradient.both()[0]


@final
class _Kernel:
    """A Gaussian kernel on and above the diagonal, less a constant that is 1 where most of it is near 1, and else 0.

    A kernel near 1 would lose the digits that differ, and one near 0 all of them if 1 were taken off. ``hollow`` sets
    the diagonal to 0, whatever the constant.
    """

    def __init__(self, rows: Tensor, bandwidth: float, *, hollow: bool, strip: int | None) -> None:
        self.rows, self._scale, self._hollow, self._strip = rows, -0.5 / bandwidth**2, hollow, strip
        exponent = 2 * self._scale * rows.square().sum(dim=1, dtype=torch.float64).mean()
        self._less_one = bool(exponent > -1)

    def strips(self) -> Iterator[Strip]:
        for part in squared_distances(self.rows, self.rows, scale=self._scale, symmetric=True, strip=self._strip):
            part.values.expm1_() if self._less_one else exp_(part.values)
            if self._hollow:
                part.own_of(part.values).zero_()
            yield part

    def centred(self, centring: _Centring) -> Iterator[Tensor]:
        sums = self.rows.new_zeros(self.rows.shape[0], dtype=torch.float64)
        for part in self.strips():
            _add_row_sums(sums, part, part.values)
        shift = centring.shift(sums).to(self.rows.dtype)
        for part in self.strips():
            yield part.values.add_(shift[part.rows, None]).add_(shift[part.columns])

    def gradient(self, *, wanted: bool) -> Gradient:
        return Gradient(self.rows, self.rows, (wanted, False), scale=self._scale, symmetric=True)

    def in_the_exponent(self, part: Strip, slopes: Tensor, products: Tensor) -> Tensor:
        """Return the derivatives in the exponent, from those in the kernel and from their products with the strip."""
        weights = products.add_(slopes) if self._less_one else products
        part.own_of(weights).zero_()  # large, and of no effect but its rounding
        return weights


def _centred_labels(labels: Tensor, dtype: torch.dtype, strip: int | None) -> Iterator[Tensor]:
    """Yield the kernel that is 1 for rows of one class, centred, on and above the diagonal."""
    n = labels.shape[0]
    classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)[1:]
    shares = counts.to(torch.float64) / n
    shift = (shares.square().sum() / 2 - shares[classes]).to(dtype)
    for rows in spans(n, n, strip, labels.device):
        same = classes[rows, None] == classes[rows.start :]
        yield torch.add(shift[rows, None], shift[rows.start :]).add_(same)


@final
class _Centring(NamedTuple):
    """The inner product of two centred kernels: ``scale (Σ_ij K_ij L_ij - 2 slope k . l + level Σ k Σ l)``.

    ``k`` and ``l`` are the sums of the rows. It does not notice a constant taken off every entry, or, in the unbiased
    form, off every entry beside the diagonal.
    """

    scale: float
    slope: float
    level: float

    @classmethod
    def of(cls, n: int, unbiased: bool) -> _Centring:
        if unbiased:
            return cls(1 / (n * (n - 3)), 1 / (n - 2), 1 / ((n - 1) * (n - 2)))
        return cls(1 / n**2, 1 / n, 1 / n**2)

    def inner(self, products: Tensor, first: Tensor, second: Tensor) -> Tensor:
        total = products - 2 * self.slope * (first @ second) + self.level * first.sum() * second.sum()
        return total * self.scale

    def shift(self, sums: Tensor) -> Tensor:
        """Return what each row, and each column, adds to a kernel to centre it."""
        return self.level / 2 * sums.sum() - self.slope * sums


def _doubled(part: Strip, terms: Tensor) -> Tensor:
    """Sum over ordered pairs."""
    total = terms.sum(dim=1).sum(dtype=torch.float64)
    return total + terms[:, part.beyond :].sum(dim=1).sum(dtype=torch.float64)


def _add_row_sums(sums: Tensor, part: Strip, kernel: Tensor) -> None:
    sums[part.rows] += kernel.sum(dim=1)
    sums[part.rows.stop :] += kernel[:, part.beyond :].sum(dim=0)
