"""Sums over all pairs of rows of one centered Gaussian kernel times another, or times the kernel of labels.

Kernels near 1 are stored less 1. Centering removes this constant, and without it wide bandwidths keep their digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.functional.engine.epilogues import exp_
from mikit.functional.engine.operators import closed_form, unwanted
from mikit.functional.engine.pairwise import Block, Gradient, spans, squared_distances

__all__ = ["kernel_with_kernel", "kernel_with_labels"]


@closed_form
def kernel_with_kernel(
    wants: Sequence[bool],
    x: Tensor,
    y: Tensor,
    bandwidth: float,
    unbiased: bool,
    normalized: bool,
    strip: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inner product of two samples' centered kernels, divided by their norms if ``normalized``."""
    first = _Kernel(x, bandwidth, hollow=unbiased, strip=strip)
    second = _Kernel(y, bandwidth, hollow=unbiased, strip=strip)
    centering = _Centering.of(x.shape[0], unbiased)
    if sum(wants) == 1 and not normalized:
        # The value is linear in the kernel that needs a gradient, with the other one, centered, as weights: both come
        # out of a single pass. The usual case of a loss, whose teacher is detached.
        moving, fixed = (first, second) if wants[0] else (second, first)
        value, slope = (part * centering.scale for part in _against(moving, fixed.centered(centering), wanted=True))
        return (value, slope, unwanted(y)) if wants[0] else (value, unwanted(x), slope)

    sums = _sums(first, second, normalized)
    value = centering.inner(sums.across, sums.rows_x, sums.rows_y)
    factor, share_x, share_y = centering.scale, 0.0, 0.0
    if normalized:
        norm_x = centering.inner(sums.within_x, sums.rows_x, sums.rows_x)
        norm_y = centering.inner(sums.within_y, sums.rows_y, sums.rows_y)
        # A constant kernel would leave only the rounding of its sums, and their ratio would be arbitrary.
        rounding = 8 * torch.finfo(x.dtype).eps * centering.scale
        if norm_x <= rounding * sums.within_x or norm_y <= rounding * sums.within_y:
            return torch.zeros_like(value), torch.zeros_like(x), torch.zeros_like(y)
        share_x, share_y = float(value / norm_x), float(value / norm_y)
        size = float((norm_x * norm_y).sqrt())
        value, factor = value / size, factor / size
    if not any(wants):
        return value, unwanted(x), unwanted(y)

    # The gradient needs the centered kernels, which need the row sums of all blocks, so the blocks are computed a
    # second time. The derivative of <K, L> / (|K| |L|) in K is L / (|K| |L|) less a share of K; without norms the share
    # is 0.
    shift_x, shift_y = (centering.shift(rows).to(x.dtype) for rows in (sums.rows_x, sums.rows_y))
    gradient_x, gradient_y = first.gradient(wanted=wants[0]), second.gradient(wanted=wants[1])
    for block, other in zip(first.blocks(), second.blocks(), strict=True):
        kernel_x, kernel_y = block.values, other.values
        centered_x = torch.add(kernel_x, shift_x[block.rows, None]).add_(shift_x[block.columns])
        centered_y = torch.add(kernel_y, shift_y[block.rows, None]).add_(shift_y[block.columns])
        if wants[0]:
            slopes = torch.sub(centered_y, centered_x, alpha=share_x)
            gradient_x.add(block, first.in_the_exponent(block, slopes, kernel_x.mul_(slopes)))
        if wants[1]:
            slopes = torch.sub(centered_x, centered_y, alpha=share_y)
            gradient_y.add(block, second.in_the_exponent(block, slopes, kernel_y.mul_(slopes)))
    return value, gradient_x.both()[0] * factor, gradient_y.both()[0] * factor


@closed_form
def kernel_with_labels(
    wants: Sequence[bool], x: Tensor, labels: Tensor | None, bandwidth: float, strip: int | None
) -> tuple[Tensor, Tensor]:
    """Return the product of a sample's kernel and of the matrix that is 1 where two labels agree."""
    assert labels is not None
    kernel = _Kernel(x, bandwidth, hollow=False, strip=strip)
    value, slope = _against(kernel, _centered_labels(labels, x.dtype, strip), wanted=wants[0])
    return value / x.shape[0] ** 2, slope / x.shape[0] ** 2


def _against(kernel: _Kernel, others: Iterator[Tensor], *, wanted: bool) -> tuple[Tensor, Tensor]:
    """Return the sum over pairs of a kernel times another, given as centered blocks, and its gradient in the rows.

    Centering one of the two is enough: it is a projection, so ``<HKH, HLH> = <K, HLH>``.
    """
    value = kernel.rows.new_zeros((), dtype=torch.float64)
    gradient = kernel.gradient(wanted=wanted)
    for block, slopes in zip(kernel.blocks(), others, strict=True):
        products = block.values.mul_(slopes)
        value += _doubled(block, products)
        if wanted:
            gradient.add(block, kernel.in_the_exponent(block, slopes, products))
    return value, gradient.both()[0]


class _Sums(NamedTuple):
    """Sums over pairs of ``KL``, ``KK`` and ``LL``, 0-dim, and the row sums of both kernels, ``(n,)``."""

    across: Tensor
    within_x: Tensor
    within_y: Tensor
    rows_x: Tensor
    rows_y: Tensor


def _sums(first: _Kernel, second: _Kernel, normalized: bool) -> _Sums:
    x = first.rows
    across, within_x, within_y = (x.new_zeros((), dtype=torch.float64) for _ in range(3))
    rows_x, rows_y = (x.new_zeros(x.shape[0], dtype=torch.float64) for _ in range(2))
    for block, other in zip(first.blocks(), second.blocks(), strict=True):
        kernel_x, kernel_y = block.values, other.values
        _add_row_sums(rows_x, block, kernel_x)
        _add_row_sums(rows_y, block, kernel_y)
        if normalized:
            within_x += _doubled(block, kernel_x.square())
            within_y += _doubled(block, kernel_y.square())
        across += _doubled(block, kernel_x.mul_(kernel_y))
    return _Sums(across, within_x, within_y, rows_x, rows_y)


@final
class _Kernel:
    """A Gaussian kernel on and above the diagonal, less 1 if most of it is near 1.

    A kernel near 1 would lose the digits in which its entries differ; one near 0 would lose all digits if 1 were
    subtracted. ``hollow`` sets the diagonal to 0 in both cases.
    """

    def __init__(self, rows: Tensor, bandwidth: float, *, hollow: bool, strip: int | None) -> None:
        self.rows, self._scale, self._hollow, self._strip = rows, -0.5 / bandwidth**2, hollow, strip
        exponent = 2 * self._scale * rows.square().sum(dim=1, dtype=torch.float64).mean()
        self._less_one = bool(exponent > -1)

    def blocks(self) -> Iterator[Block]:
        for block in squared_distances(self.rows, self.rows, scale=self._scale, symmetric=True, strip=self._strip):
            block.values.expm1_() if self._less_one else exp_(block.values)
            if self._hollow:
                block.diagonal_of(block.values).zero_()
            yield block

    def centered(self, centering: _Centering) -> Iterator[Tensor]:
        sums = self.rows.new_zeros(self.rows.shape[0], dtype=torch.float64)
        for block in self.blocks():
            _add_row_sums(sums, block, block.values)
        shift = centering.shift(sums).to(self.rows.dtype)
        for block in self.blocks():
            yield block.values.add_(shift[block.rows, None]).add_(shift[block.columns])

    def gradient(self, *, wanted: bool) -> Gradient:
        return Gradient(self.rows, self.rows, (wanted, False), scale=self._scale, symmetric=True)

    def in_the_exponent(self, block: Block, slopes: Tensor, products: Tensor) -> Tensor:
        """Return the derivatives in the exponent, from those in the kernel and from their products with the kernel."""
        # The derivative of exp u is exp u. Of a kernel stored less 1 that is the stored value plus 1.
        weights = products.add_(slopes) if self._less_one else products
        block.diagonal_of(weights).zero_()  # large, and of no effect except for its rounding
        return weights


def _centered_labels(labels: Tensor, dtype: torch.dtype, strip: int | None) -> Iterator[Tensor]:
    """Yield the centered kernel that is 1 for rows of one class, on and above the diagonal."""
    n = labels.shape[0]
    classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)[1:]
    shares = counts.to(torch.float64) / n
    # A row of this kernel sums to n times the fraction of its class, so centering needs no pass over the pairs.
    shift = (shares.square().sum() / 2 - shares[classes]).to(dtype)
    for rows in spans(n, n, strip, labels.device):
        same = classes[rows, None] == classes[rows.start :]
        yield torch.add(shift[rows, None], shift[rows.start :]).add_(same)


@final
class _Centering(NamedTuple):
    """The inner product of two centered kernels: ``scale (Σ_ij K_ij L_ij - 2 slope k . l + level Σ k Σ l)``.

    ``k`` and ``l`` are the row sums. It is invariant to a constant added to every entry or, in the unbiased form, to
    every entry off the diagonal.
    """

    scale: float
    slope: float
    level: float

    @classmethod
    def of(cls, n: int, unbiased: bool) -> _Centering:
        if unbiased:
            return cls(1 / (n * (n - 3)), 1 / (n - 2), 1 / ((n - 1) * (n - 2)))
        return cls(1 / n**2, 1 / n, 1 / n**2)

    def inner(self, products: Tensor, first: Tensor, second: Tensor) -> Tensor:
        total = products - 2 * self.slope * (first @ second) + self.level * first.sum() * second.sum()
        return total * self.scale

    def shift(self, sums: Tensor) -> Tensor:
        """Return what each row, and each column, adds to a kernel to center it."""
        return self.level / 2 * sums.sum() - self.slope * sums


def _doubled(block: Block, terms: Tensor) -> Tensor:
    """Return the sum over ordered pairs."""
    total = terms.sum(dim=1).sum(dtype=torch.float64)
    return total + terms[:, block.beyond :].sum(dim=1).sum(dtype=torch.float64)


def _add_row_sums(sums: Tensor, block: Block, kernel: Tensor) -> None:
    sums[block.rows] += kernel.sum(dim=1)
    sums[block.rows.stop :] += kernel[:, block.beyond :].sum(dim=0)
