"""Dependence of two samples through Gaussian kernels: HSIC, its normalised form, and quadratic mutual information.

All are one number: the sum over pairs of rows of one kernel times the other, after the rows' means are taken off.
Kernels near 1 are handled less 1, which no centred sum notices and which keeps their digits where a bandwidth is wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.errors import InputError
from mikit.functional.closed import closed_form, unwanted
from mikit.functional.kernels import median_distance
from mikit.functional.pairwise import Gradient, Strip, exp_, spans, squared_distances
from mikit.functional.samples import (
    centred,
    constant_columns,
    require_one_device,
    require_paired,
    require_rows,
    working_dtype,
)

__all__ = ["cka", "hsic", "label_qmi", "qmi"]


def hsic(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth_x: float | None = None,
    bandwidth_y: float | None = None,
    unbiased: bool = False,
    strip: int | None = None,
) -> Tensor:
    r"""Hilbert-Schmidt independence criterion of paired samples, under Gaussian kernels.

    .. math:: \mathrm{HSIC} = \frac{1}{n^2} \operatorname{tr}(K H L H), \qquad
              K_{ij} = \exp\left(-\|x_i - x_j\|^2 / 2\sigma_x^2\right), \quad
              L_{ij} = \exp\left(-\|y_i - y_j\|^2 / 2\sigma_y^2\right), \quad H = I - \tfrac{1}{n} 1 1^\top

    The unbiased form is a U-statistic: with the diagonals of both kernels set to 0,

    .. math:: \frac{1}{n (n - 3)} \left[ \operatorname{tr}(K L) + \frac{1^\top K 1 \; 1^\top L 1}{(n - 1)(n - 2)}
              - \frac{2}{n - 2} 1^\top K L 1 \right]

    Args:
        x: First sample, ``(n, d_x)``.
        y: Second sample, ``(n, d_y)``, rows paired with ``x``; the widths may differ.
        bandwidth_x: Sigma of the kernel of ``x``, in the unit of its features; None: :func:`median_bandwidth` of
            ``x``, a constant for the gradient.
        bandwidth_y: The same for ``y``.
        unbiased: Whether to use the U-statistic, whose mean over samples is the value in the population.
        strip: Rows handled at a time; None chooses. Values do not depend on it, up to rounding.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit:
        dimensionless, below 1. Kind: a dependence index, 0 in the population if and only if the samples are
        independent. The biased form is never negative; the unbiased one is about half of the time when they are.

    Raises:
        InputError: If a sample is not ``(n, d)``, rows do not pair up, there are fewer than two rows (four for the
            unbiased form), or a bandwidth is not positive.

    Cost:
        O(n² (d_x + d_y)) time for the value, two to three times that with gradients, which are formed in the same
        call; O(n (d_x + d_y)) memory and a few strips. Second derivatives are refused.

    Pitfalls:
        - Not Shannon information, and without an upper end that means anything: compare it with permuted rows.
        - The biased form is not 0 for independent samples but about ``(1 - mean K)(1 - mean L) / n``.
        - Depends on both bandwidths, and with fixed ones on the scale of the features. Not comparable across layers.
        - Cutting a batch into smaller ones changes the quantity: pairs across the parts are lost.

    Source:
        Gretton, Bousquet, Smola and Schölkopf (2005), "Measuring Statistical Dependence with Hilbert-Schmidt Norms";
        Song, Smola, Gretton, Bedo and Borgwardt (2012), "Feature Selection via Dependence Maximization", JMLR 13, for
        the unbiased form.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
        >>> hsic(x, x.square()).item() > 5 * hsic(x, noise).item()
        True
        >>> abs(hsic(x, noise, unbiased=True).item()) < 1e-3
        True
    """
    return _measured(x, y, (bandwidth_x, bandwidth_y), unbiased=unbiased, strip=strip)


def cka(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth_x: float | None = None,
    bandwidth_y: float | None = None,
    unbiased: bool = False,
    strip: int | None = None,
) -> Tensor:
    r"""Centred kernel alignment of two representations of the same inputs, under Gaussian kernels.

    .. math:: \mathrm{CKA} = \frac{\mathrm{HSIC}(x, y)}{\sqrt{\mathrm{HSIC}(x, x)\, \mathrm{HSIC}(y, y)}}

    For bandwidths far above all distances it approaches :func:`linear_cka`.

    Args:
        x: First representation, ``(n, d_x)``.
        y: Second representation, ``(n, d_y)``, rows paired with ``x``.
        bandwidth_x: As in :func:`hsic`.
        bandwidth_y: As in :func:`hsic`.
        unbiased: Whether to use the U-statistics in all three places.
        strip: As in :func:`hsic`.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Between 0 and
        1, and between -1 and 1 with ``unbiased``. 0, with a gradient of 0, if one of the kernels does not vary beyond
        rounding once it is centred: a constant sample, and for the unbiased form rows that are all equally far apart.
        Unit: dimensionless. Kind: a dependence index, biased upwards unless ``unbiased``.

    Raises:
        InputError: As :func:`hsic`.

    Cost:
        As :func:`hsic`, with three products of kernels in the place of one.

    Pitfalls:
        - Not information: an invertible map of one representation changes it, unless it is a rotation.
        - The biased form is near 1 for independent samples when distances are all alike, as in many dimensions with
          few rows. The ratio of unbiased estimates is not itself unbiased.
        - The median bandwidth follows the scale of the features; a fixed one does not.

    Source:
        Kornblith, Norouzi, Lee and Hinton (2019), "Similarity of Neural Network Representations Revisited"; Cortes,
        Mohri and Rostamizadeh (2012), "Algorithms for Learning Kernels Based on Centered Alignment", JMLR 13.

    Example:
        >>> x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
        >>> round(cka(x, 3 * x.flip(1) + 1).item(), 4)  # rotations, shifts and, by the median, scale do not matter
        1.0
    """
    return _measured(x, y, (bandwidth_x, bandwidth_y), unbiased=unbiased, normalised=True, strip=strip)


def qmi(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth_x: float | None = None,
    bandwidth_y: float | None = None,
    strip: int | None = None,
) -> Tensor:
    r"""Quadratic mutual information of paired samples, from Gaussian density estimates, without a unit.

    .. math:: V_{IN} + V_{ALL} - 2 V_{BTW} = \operatorname{mean}_{ij} K_{ij} L_{ij}
              + \operatorname{mean}_{ij} K_{ij} \operatorname{mean}_{ij} L_{ij}
              - 2 \operatorname{mean}_i \left( \operatorname{mean}_j K_{ij} \operatorname{mean}_j L_{ij} \right)

    with :math:`K_{ij} = \exp(-\|x_i - x_j\|^2 / 4\sigma_x^2)`, :math:`L_{ij} = \exp(-\|y_i - y_j\|^2 / 4\sigma_y^2)`.
    The integral :math:`\int (p(x, y) - p(x) p(y))^2` of density estimates of widths :math:`\sigma_x` and
    :math:`\sigma_y` is this number times :math:`(4\pi\sigma_x^2)^{-d_x/2} (4\pi\sigma_y^2)^{-d_y/2}`, its unit of a
    squared density. The factor is left out. It is biased :func:`hsic` with bandwidths :math:`\sqrt{2} \sigma`.

    Args:
        x: First sample, ``(n, d_x)``.
        y: Second sample, ``(n, d_y)``, rows paired with ``x``.
        bandwidth_x: Width of the density estimate of ``x``, in the unit of its features; None:
            :func:`median_bandwidth` of ``x``, a constant for the gradient.
        bandwidth_y: The same for ``y``.
        strip: As in :func:`hsic`.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit:
        dimensionless, below 1. Kind: a dependence index.

    Raises:
        InputError: As :func:`hsic`.

    Cost:
        As :func:`hsic`.

    Pitfalls:
        - Not Shannon information, in spite of its name: it has no nats, and bounds none.
        - Depends on sigma, by factors, in both directions.
        - Biased: not 0 for independent samples. Take off the mean over permuted rows.
        - Not comparable across layers or widths, even with the median. :func:`cka` is closer to that.

    Source:
        Torkkola (2003), "Feature Extraction by Non-Parametric Mutual Information Maximization", JMLR 3, for the form.

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
        >>> round(qmi(x, x, bandwidth_x=1.0, bandwidth_y=1.0).item(), 4)  # two equal clusters far apart
        0.25
    """
    return _measured(x, y, (bandwidth_x, bandwidth_y), stretch=math.sqrt(2), strip=strip)


def label_qmi(x: Tensor, labels: Tensor, *, bandwidth: float | None = None, strip: int | None = None) -> Tensor:
    r"""Quadratic mutual information of a sample and labels, from Gaussian density estimates, without a unit.

    .. math:: V_{IN} + V_{ALL} - 2 V_{BTW} = \frac{1}{n^2} \sum_{ij} K_{ij}
              \left( [c_i = c_j] + \sum_p \pi_p^2 - \pi_{c_i} - \pi_{c_j} \right), \qquad
              K_{ij} = \exp(-\|x_i - x_j\|^2 / 4\sigma^2)

    with :math:`\pi_p` the share of class p. The sum over classes of :math:`\int (p(x, c) - p(x) P(c))^2 dx` is this
    number times :math:`(4\pi\sigma^2)^{-d/2}`. It is biased HSIC of a Gaussian kernel of bandwidth
    :math:`\sqrt{2} \sigma` with the kernel that is 1 for rows of one class and 0 otherwise.

    Args:
        x: Sample, ``(n, d)``.
        labels: Classes, ``(n,)``, integers or booleans in any coding.
        bandwidth: As in :func:`qmi`.
        strip: As in :func:`hsic`.

    Returns:
        0-dim tensor in the dtype of ``x``, float32 at least, differentiable once in ``x``. Unit: dimensionless, below
        1. Kind: a dependence index.

    Raises:
        InputError: As :func:`hsic`, and if there is not one label a row or labels are not integers.

    Cost:
        O(n² d) time in one pass, about twice that with the gradient; O(n d) memory and a few strips.

    Pitfalls:
        As :func:`qmi`. It also depends on the shares of the classes: the largest value, for classes that are points
        far apart, is ``Σ π² - 2 Σ π³ + (Σ π²)²``.

    Source:
        As :func:`qmi`.

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
        >>> round(label_qmi(x, torch.tensor([3, 3, 7, 7]), bandwidth=1.0).item(), 4)
        0.25
        >>> round(label_qmi(x, torch.tensor([3, 7, 3, 7]), bandwidth=1.0).item(), 4)
        0.0
    """
    require_rows(x, "x", fewest=2)
    if labels.shape != x.shape[:1]:
        raise InputError(f"labels has shape {tuple(labels.shape)}, but x has {x.shape[0]} rows; pass one label a row.")
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels are {labels.dtype}; pass classes as integers, or use qmi for numbers.")
    require_one_device(x, labels)
    a, bandwidth = _prepared(x, working_dtype(x), bandwidth, "bandwidth")
    return _of_kernel_and_labels(a, labels, math.sqrt(2) * bandwidth, strip).to(a.dtype)


# ------------------------------------------------------------------------------------------------- two kernels


def _measured(
    x: Tensor,
    y: Tensor,
    bandwidths: tuple[float | None, float | None],
    *,
    unbiased: bool = False,
    normalised: bool = False,
    stretch: float = 1.0,
    strip: int | None,
) -> Tensor:
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name, fewest=4 if unbiased else 2)
    require_paired(x, y)
    require_one_device(x, y)
    dtype = working_dtype(x, y)
    a, width_x = _prepared(x, dtype, bandwidths[0], "bandwidth_x")
    b, width_y = _prepared(y, dtype, bandwidths[1], "bandwidth_y")
    return _of_kernels(a, b, stretch * width_x, stretch * width_y, unbiased, normalised, strip).to(dtype)


@closed_form
def _of_kernels(
    wants: Sequence[bool],
    x: Tensor,
    y: Tensor,
    bandwidth_x: float,
    bandwidth_y: float,
    unbiased: bool,
    normalised: bool,
    strip: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
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
def _of_kernel_and_labels(
    wants: Sequence[bool], x: Tensor, labels: Tensor | None, bandwidth: float, strip: int | None
) -> tuple[Tensor, Tensor]:
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


# ---------------------------------------------------------------------------------------------------- the samples


def _prepared(rows: Tensor, dtype: torch.dtype, bandwidth: float | None, name: str) -> tuple[Tensor, float]:
    """Return centred rows, exactly 0 in columns that are constant, and the bandwidth in their unit."""
    (around,) = centred(rows.to(dtype))
    around = torch.where(constant_columns(rows), 0.0, around)
    # In units of the bandwidth: the median stays a tensor, and squares stay inside the dtype.
    if bandwidth is None:
        return around / median_distance(rows).to(dtype), 1.0
    if not 0 < bandwidth < math.inf:
        raise InputError(f"{name} is {bandwidth}; it must be positive and finite, in the unit of the features.")
    return around / bandwidth, 1.0
