"""Dependence indices from Gaussian kernels: QMI, HSIC and CKA, as metrics and as losses."""

from __future__ import annotations

import abc
import math
from typing import final

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.estimators.base import Estimator, require_pair
from mikit.functional.kernels.dependence import cka, hsic, label_qmi, qmi

__all__ = ["CKA", "HSIC", "QMI", "DependenceIndex", "LabelHSIC", "LabelQMI"]


class DependenceIndex(Estimator):
    """Base of the indices of dependence between paired rows ``(n, d_x)`` and ``(n, d_y)``."""

    unit = "dimensionless"
    kind = "index"
    symmetric = True

    def __init__(self, bandwidth_x: float | None = None, bandwidth_y: float | None = None) -> None:
        super().__init__()
        for name, value in (("bandwidth_x", bandwidth_x), ("bandwidth_y", bandwidth_y)):
            if value is not None:
                require.positive(value, name, "in the unit of the features")
        self.bandwidth_x = bandwidth_x
        self.bandwidth_y = bandwidth_y
        self.symmetric = bandwidth_x == bandwidth_y

    @abc.abstractmethod
    def index(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the index, 0-dim."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return minus the index; the teacher receives no gradient."""
        return -self.estimate(x, y.detach())

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the index."""
        require_pair(x, y, minimum=self.minimum_rows(x.shape[-1], y.shape[-1]))
        with torch.autocast(x.device.type, enabled=False):
            return self.index(x, y)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"bandwidth_x={self.bandwidth_x}, bandwidth_y={self.bandwidth_y}"


class _UStatisticIndex(DependenceIndex):
    """Base of the indices with an unbiased form, from U-statistics, and a biased one, from V-statistics."""

    def __init__(
        self, bandwidth_x: float | None = None, bandwidth_y: float | None = None, *, unbiased: bool = True
    ) -> None:
        super().__init__(bandwidth_x, bandwidth_y)
        self.unbiased = unbiased

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 4 for U-statistics and 2 for the biased form."""
        return 4 if self.unbiased else 2

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"{super().extra_repr()}, unbiased={self.unbiased}"


@final
class QMI(DependenceIndex):
    r"""Quadratic mutual information of rows ``(n, d_x)`` and ``(n, d_y)``, from Gaussian density estimates.

    Formula: :math:`V_{IN} + V_{ALL} - 2 V_{BTW}`; see :func:`mikit.functional.qmi`. It is biased HSIC under bandwidths
    :math:`\sqrt 2` times as wide.

    Args:
        bandwidth_x: Width of the density estimate of ``x``, in the unit of its features; None: the median distance of
            the rows.
        bandwidth_y: The same for ``y``.

    Shapes:
        ``x`` is ``(n, d_x)``, ``y`` is ``(n, d_y)``, rows paired.

    Unit: dimensionless, below 1.

    Kind: index. Biased: positive for independent rows.

    Raises:
        InputError: If the numbers of rows differ, there are fewer than two, or a bandwidth is not positive.

    Cost:
        ``O(n² (d_x + d_y))`` time, two to three times that with the gradient; memory ``O(n (d_x + d_y))`` and blocks of
        pairs.

    Pitfalls:
        Not Shannon information, in spite of its name. It depends strongly on the bandwidths, in both directions, so
        curves over layers of different width are not on one scale; :class:`CKA` comes closer. Compare with the permuted
        rows that :func:`mikit.measure` reports. As a loss it has no recommended weight: its gradient is small, and with
        the median bandwidth a student cannot change it by scaling its features.

    Source:
        Torkkola (2003), "Feature Extraction by Non-Parametric Mutual Information Maximization", JMLR 3, for the form.

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
        >>> round(QMI(1.0, 1.0).estimate(x, x).item(), 4)
        0.25
    """

    name = "qmi"

    def index(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the quadratic mutual information."""
        return qmi(x, y, bandwidth_x=self.bandwidth_x, bandwidth_y=self.bandwidth_y)


@final
class LabelQMI(Estimator):
    r"""Quadratic mutual information of rows ``(n, d)`` and class labels ``(n,)``.

    Formula: :math:`\sum_c \int (p(x, c) - p(x) P(c))^2 dx` of Gaussian density estimates, without the factor that
    has the unit of a density; see :func:`mikit.functional.label_qmi`.

    Args:
        bandwidth: Width of the density estimate, in the unit of the features; None: the median distance of the rows.

    Shapes:
        ``x`` is ``(n, d)``, ``y`` is ``(n,)``, integers.

    Unit: dimensionless, below 1.

    Kind: index. Biased: positive for labels that are independent of the rows.

    Raises:
        InputError: If there is not one integer label per row, there are fewer than two rows, or the bandwidth is not
            positive.

    Cost:
        ``O(n² d)`` time, about twice that with the gradient; memory ``O(n d)`` and blocks of pairs.

    Pitfalls:
        As :class:`QMI`. It also depends on the class frequencies: compare samples of one size and class balance. Random
        labels lower it, but not to 0.

    Source:
        As :class:`QMI`.

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
        >>> [round(LabelQMI(1.0).estimate(x, torch.tensor(y)).item(), 4) for y in ([3, 3, 7, 7], [3, 7, 3, 7])]
        [0.25, 0.0]
    """

    name = "label_qmi"
    unit = "dimensionless"
    kind = "index"
    explains = "labels"

    def __init__(self, bandwidth: float | None = None) -> None:
        super().__init__()
        if bandwidth is not None:
            require.positive(bandwidth, "bandwidth", "in the unit of the features")
        self.bandwidth = bandwidth

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return minus the index."""
        return -self.estimate(x, y)

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the index."""
        with torch.autocast(x.device.type, enabled=False):
            return label_qmi(x, y, bandwidth=self.bandwidth)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"bandwidth={self.bandwidth}"


@final
class HSIC(_UStatisticIndex):
    """Hilbert-Schmidt independence criterion of rows ``(n, d_x)`` and ``(n, d_y)``, under Gaussian kernels.

    Formula: ``tr(K H L H) / n²``, or its U-statistic; see :func:`mikit.functional.hsic`.

    Args:
        bandwidth_x: Sigma of the kernel of ``x``, in the unit of its features; None: the median distance of the rows.
        bandwidth_y: The same for ``y``.
        unbiased: Whether to use the U-statistic, whose mean is 0 for independent rows.

    Shapes:
        ``x`` is ``(n, d_x)``, ``y`` is ``(n, d_y)``, rows paired.

    Unit: dimensionless, below 1.

    Kind: index. 0 in the population if and only if the two sides are independent. The U-statistic is negative for
    about half of all independent samples; it is never clipped.

    Raises:
        InputError: If the numbers of rows differ, there are fewer than four (two for the biased form), or a bandwidth
            is not positive.

    Cost:
        ``O(n² (d_x + d_y))`` time, two to three times that with the gradient; memory ``O(n (d_x + d_y))`` and blocks of
        pairs.

    Pitfalls:
        It has no meaningful maximum: compare with permuted rows, or use :class:`CKA`. Depends on both bandwidths.
        Values on parts of a batch do not average to the value on the whole.

    Source:
        Gretton, Bousquet, Smola and Schölkopf (2005); Song, Smola, Gretton, Bedo and Borgwardt (2012), JMLR 13, for the
        unbiased form.

    Example:
        >>> x, noise = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(0))
        >>> abs(HSIC().estimate(x, noise).item()) < 1e-3 < 0.01 < HSIC().estimate(x, x.square()).item()
        True
    """

    name = "hsic"

    def index(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the criterion."""
        return hsic(x, y, bandwidth_x=self.bandwidth_x, bandwidth_y=self.bandwidth_y, unbiased=self.unbiased)


@final
class CKA(_UStatisticIndex):
    """Centered kernel alignment of rows ``(n, d_x)`` and ``(n, d_y)``, under Gaussian kernels.

    Formula: ``HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y))``; see :func:`mikit.functional.cka`.

    Args:
        bandwidth_x: Sigma of the kernel of ``x``, in the unit of its features; None: the median distance of the rows.
        bandwidth_y: The same for ``y``.
        unbiased: Whether to use the U-statistics in all three places. Otherwise the value is near 1 even for
            independent rows if they have many features.

    Shapes:
        ``x`` is ``(n, d_x)``, ``y`` is ``(n, d_y)``, rows paired.

    Unit: dimensionless: 1 for sides that are equal up to rotation, shift and, with the median, scale.

    Kind: index. Never clipped: the ratio of U-statistics is negative for about half of all independent samples.

    Raises:
        InputError: As :class:`HSIC`.

    Cost:
        As :class:`HSIC`, with three products of kernels instead of one.

    Pitfalls:
        Not information: an invertible map of one side changes it. The ratio of unbiased estimates is not itself
        unbiased. As a loss, ``forward`` is minus the index; add 1 for the usual ``1 - CKA``.

    Source:
        Kornblith, Norouzi, Lee and Hinton (2019); Cortes, Mohri and Rostamizadeh (2012), JMLR 13.

    Example:
        >>> x, noise = torch.randn(2, 200, 5, generator=torch.Generator().manual_seed(0))
        >>> round(CKA().estimate(x, 3 * x.flip(1) + 1).item(), 4), abs(CKA().estimate(x, noise).item()) < 0.05
        (1.0, True)
    """

    name = "cka"

    def index(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the alignment."""
        return cka(x, y, bandwidth_x=self.bandwidth_x, bandwidth_y=self.bandwidth_y, unbiased=self.unbiased)


# One-hot rows are sqrt(2) apart: a Gaussian kernel of bandwidth 1 is 1 within a class and 1/e across classes.
_BANDWIDTH, _CONTRAST = 1.0, 1.0 - math.exp(-1.0)


@final
class LabelHSIC(Estimator):
    r"""Hilbert-Schmidt independence criterion of rows ``(n, d)`` and class labels ``(n,)``, from U-statistics.

    Formula: :math:`\mathrm{HSIC}(K, L) / \sqrt{\mathrm{HSIC}(K, K)\, \mathrm{HSIC}(L, L)}` with the Gaussian kernel
    ``K`` of the rows and ``L_ij = 1`` for rows of one class, 0 otherwise; every HSIC is the U-statistic of
    :func:`mikit.functional.hsic`. The values of the layers of a network are its
    :func:`~mikit.functional.flow.flow_vectors.flow_vector`.
    Without ``normalised``, the numerator only.

    Args:
        bandwidth: Sigma of the kernel, in the unit of the features; None: the median distance of the rows.
        normalised: Whether to divide by the HSIC of each side with itself.

    Shapes:
        ``x`` is ``(n, d)``, ``y`` is ``(n,)``, integers.

    Unit: dimensionless. Normalised: 1 for classes that are points equally far apart.

    Kind: index. 0 in the population if and only if rows and labels are independent; negative for about half of all
    samples that are. It is never clipped.

    Raises:
        InputError: If there is not one integer label per row, there are fewer than four rows, or the bandwidth is not
            positive.

    Cost:
        ``O(n² (d + classes))`` time, two to three times that with the gradient; memory ``O(n d)`` and blocks of pairs.

    Pitfalls:
        Neither information nor an accuracy: a layer with elongated class clusters scores low even if a probe separates
        them. Depends on the bandwidth and on the class frequencies: compare layers on the same rows. Labels of a single
        class give 0.

    Source:
        Gretton, Bousquet, Smola and Schölkopf (2005); Song, Smola, Gretton, Bedo and Borgwardt (2012), JMLR 13, for
        the unbiased form; Cortes, Mohri and Rostamizadeh (2012), JMLR 13, for the normalised one.

    Example:
        >>> labels = torch.arange(60) % 3
        >>> noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> apart = noise + 3 * torch.eye(3, 4)[labels]
        >>> LabelHSIC().estimate(noise, labels).item() < 0.1 < 0.3 < LabelHSIC().estimate(apart, labels).item()
        True
    """

    name = "label_hsic"
    unit = "dimensionless"
    kind = "index"
    explains = "labels"

    def __init__(self, bandwidth: float | None = None, *, normalised: bool = True) -> None:
        super().__init__()
        if bandwidth is not None:
            require.positive(bandwidth, "bandwidth", "in the unit of the features")
        self.bandwidth = bandwidth
        self.normalised = normalised

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 4, the minimum of a U-statistic."""
        return 4

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return minus the index."""
        return -self.estimate(x, y)

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the index."""
        if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex():
            raise InputError(
                f"labels have shape {tuple(y.shape)} and dtype {y.dtype}, and x has {x.shape[0]} samples; pass one "
                "integer label per sample."
            )
        codes = torch.unique(y, return_inverse=True)[1]
        targets = torch.nn.functional.one_hot(codes).to(x.dtype if x.dtype == torch.float64 else torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            if self.normalised:
                return cka(x, targets, bandwidth_x=self.bandwidth, bandwidth_y=_BANDWIDTH, unbiased=True)
            found = hsic(x, targets, bandwidth_x=self.bandwidth, bandwidth_y=_BANDWIDTH, unbiased=True)
            return found / _CONTRAST

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"bandwidth={self.bandwidth}, normalised={self.normalised}"
