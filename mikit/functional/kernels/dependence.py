"""Dependence of two samples, measured with Gaussian kernels: HSIC, CKA and quadratic mutual information.

All of them are the inner product of two centered kernel matrices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.engine.samples import (
    centered,
    constant_columns,
    require_one_device,
    require_paired,
    require_rows,
    working_dtype,
)
from mikit.functional.kernels.bandwidth import median_distance
from mikit.functional.kernels.products import kernel_with_kernel, kernel_with_labels

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

    The unbiased form is a U-statistic. With the diagonals of both kernels set to 0 it is

    .. math:: \frac{1}{n (n - 3)} \left[ \operatorname{tr}(K L) + \frac{1^\top K 1 \; 1^\top L 1}{(n - 1)(n - 2)}
              - \frac{2}{n - 2} 1^\top K L 1 \right]

    Args:
        x: First sample, ``(n, d_x)``.
        y: Second sample, ``(n, d_y)``, rows paired with ``x``; the widths may differ.
        bandwidth_x: Sigma of the kernel of ``x``, in the unit of its features; None: :func:`median_bandwidth` of
            ``x``, a constant for the gradient.
        bandwidth_y: The same for ``y``.
        unbiased: Whether to use the U-statistic, whose expectation is the population value.
        strip: Rows processed at a time; None chooses. The value does not depend on it, up to rounding.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit:
        dimensionless, below 1. Kind: a dependence index, 0 in the population if and only if the samples are
        independent. The biased form is never negative. The unbiased form is negative about half of the time when they
        are independent.

    Raises:
        InputError: If a sample is not ``(n, d)``, the numbers of rows differ, there are fewer than two rows (four for
            the unbiased form), or a bandwidth is not positive.

    Cost:
        O(n² (d_x + d_y)) time for the value, two to three times that with gradients, which are computed in the same
        call; O(n (d_x + d_y)) memory and a few blocks of pairs. Second derivatives raise an error.

    Pitfalls:
        - Not Shannon information, and without a meaningful maximum: compare it with permuted rows.
        - The biased form is not 0 for independent samples but about ``(1 - mean K)(1 - mean L) / n``.
        - Depends on both bandwidths, and with fixed ones on the scale of the features. Not comparable across layers.
        - Splitting a batch changes the quantity: pairs across the parts are lost.

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
    return _dependence(x, y, (bandwidth_x, bandwidth_y), unbiased=unbiased, strip=strip)


def cka(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth_x: float | None = None,
    bandwidth_y: float | None = None,
    unbiased: bool = False,
    strip: int | None = None,
) -> Tensor:
    r"""Centered kernel alignment of two representations of the same inputs, under Gaussian kernels.

    .. math:: \mathrm{CKA} = \frac{\mathrm{HSIC}(x, y)}{\sqrt{\mathrm{HSIC}(x, x)\, \mathrm{HSIC}(y, y)}}

    For bandwidths much larger than all distances it approaches :func:`linear_cka`.

    Args:
        x: First representation, ``(n, d_x)``.
        y: Second representation, ``(n, d_y)``, rows paired with ``x``.
        bandwidth_x: As in :func:`hsic`.
        bandwidth_y: As in :func:`hsic`.
        unbiased: Whether to use the U-statistics in all three places.
        strip: As in :func:`hsic`.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Between 0 and
        1, and between -1 and 1 with ``unbiased``. 0, with a gradient of 0, if one of the centered kernels is 0 up to
        rounding: for a constant sample, and in the unbiased form for rows that are all equally far apart. Unit:
        dimensionless. Kind: a dependence index, biased upwards unless ``unbiased``.

    Raises:
        InputError: As :func:`hsic`.

    Cost:
        As :func:`hsic`, with three products of kernels instead of one.

    Pitfalls:
        - Not information: an invertible map of one representation changes it, unless it is a rotation.
        - With many dimensions and few rows all distances are alike, and the biased form is near 1 even for independent
          samples. The ratio of unbiased estimates is not itself unbiased.
        - The median bandwidth follows the scale of the features; a fixed one does not.

    Source:
        Kornblith, Norouzi, Lee and Hinton (2019), "Similarity of Neural Network Representations Revisited"; Cortes,
        Mohri and Rostamizadeh (2012), "Algorithms for Learning Kernels Based on Centered Alignment", JMLR 13.

    Example:
        >>> x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
        >>> round(cka(x, 3 * x.flip(1) + 1).item(), 4)  # rotations, shifts and, by the median, scale do not matter
        1.0
    """
    return _dependence(x, y, (bandwidth_x, bandwidth_y), unbiased=unbiased, normalized=True, strip=strip)


def qmi(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth_x: float | None = None,
    bandwidth_y: float | None = None,
    strip: int | None = None,
) -> Tensor:
    r"""Quadratic mutual information of paired samples, from Gaussian density estimates, made dimensionless.

    .. math:: V_{IN} + V_{ALL} - 2 V_{BTW} = \operatorname{mean}_{ij} K_{ij} L_{ij}
              + \operatorname{mean}_{ij} K_{ij} \operatorname{mean}_{ij} L_{ij}
              - 2 \operatorname{mean}_i \left( \operatorname{mean}_j K_{ij} \operatorname{mean}_j L_{ij} \right)

    with :math:`K_{ij} = \exp(-\|x_i - x_j\|^2 / 4\sigma_x^2)`, :math:`L_{ij} = \exp(-\|y_i - y_j\|^2 / 4\sigma_y^2)`.
    The integral :math:`\int (p(x, y) - p(x) p(y))^2` of density estimates of widths :math:`\sigma_x` and
    :math:`\sigma_y` is this number times :math:`(4\pi\sigma_x^2)^{-d_x/2} (4\pi\sigma_y^2)^{-d_y/2}`. The factor, which
    has the unit of a density, is left out. The result is biased :func:`hsic` with bandwidths
    :math:`\sqrt{2} \sigma`.

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
        - Not Shannon information, in spite of its name: it is not in nats and bounds nothing in nats.
        - Depends strongly on sigma, in both directions.
        - Biased: not 0 for independent samples. Subtract the mean over permuted rows.
        - Not comparable across layers or widths, even with the median. :func:`cka` comes closer.

    Source:
        Torkkola (2003), "Feature Extraction by Non-Parametric Mutual Information Maximization", JMLR 3, for the form.

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
        >>> round(qmi(x, x, bandwidth_x=1.0, bandwidth_y=1.0).item(), 4)  # two equal clusters far apart
        0.25
    """
    return _dependence(x, y, (bandwidth_x, bandwidth_y), stretch=math.sqrt(2), strip=strip)


def label_qmi(x: Tensor, labels: Tensor, *, bandwidth: float | None = None, strip: int | None = None) -> Tensor:
    r"""Quadratic mutual information of a sample and labels, from Gaussian density estimates, made dimensionless.

    .. math:: V_{IN} + V_{ALL} - 2 V_{BTW} = \frac{1}{n^2} \sum_{ij} K_{ij}
              \left( [c_i = c_j] + \sum_p \pi_p^2 - \pi_{c_i} - \pi_{c_j} \right), \qquad
              K_{ij} = \exp(-\|x_i - x_j\|^2 / 4\sigma^2)

    with :math:`\pi_p` the fraction of rows in class p. The sum over classes of :math:`\int (p(x, c) - p(x) P(c))^2 dx`
    is this number times :math:`(4\pi\sigma^2)^{-d/2}`. It is biased HSIC of a Gaussian kernel of bandwidth
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
        InputError: As :func:`hsic`, and if there is not one label per row or labels are not integers.

    Cost:
        O(n² d) time in one pass, about twice that with the gradient; O(n d) memory and a few blocks of pairs.

    Pitfalls:
        As :func:`qmi`. It also depends on the class frequencies: the largest value, for classes that are points far
        apart, is ``Σ π² - 2 Σ π³ + (Σ π²)²``.

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
        raise InputError(
            f"labels has shape {tuple(labels.shape)}, but x has {x.shape[0]} samples; pass one label per sample."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels are {labels.dtype}; pass classes as integers, or use qmi for numbers.")
    require_one_device(x, labels)
    a = _prepared(x, working_dtype(x), bandwidth, "bandwidth")
    return kernel_with_labels(a, labels, math.sqrt(2), strip).to(a.dtype)


def _dependence(
    x: Tensor,
    y: Tensor,
    bandwidths: tuple[float | None, float | None],
    *,
    unbiased: bool = False,
    normalized: bool = False,
    stretch: float = 1.0,
    strip: int | None,
) -> Tensor:
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name, fewest=4 if unbiased else 2)
    require_paired(x, y)
    require_one_device(x, y)
    dtype = working_dtype(x, y)
    a = _prepared(x, dtype, bandwidths[0], "bandwidth_x")
    b = _prepared(y, dtype, bandwidths[1], "bandwidth_y")
    return kernel_with_kernel(a, b, stretch, unbiased, normalized, strip).to(dtype)


def _prepared(rows: Tensor, dtype: torch.dtype, bandwidth: float | None, name: str) -> Tensor:
    """Return the centered rows in units of the bandwidth, exactly 0 in constant columns."""
    (around,) = centered(rows.to(dtype))
    around = torch.where(constant_columns(rows), 0.0, around)
    # Scaling the rows keeps the median a tensor, which need not be waited for, and squares within the range of the
    # dtype.
    if bandwidth is None:
        return around / median_distance(rows).to(dtype)
    require.positive(bandwidth, name, "in the unit of the features")
    return around / bandwidth
