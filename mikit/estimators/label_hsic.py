"""How much a layer's rows have to do with class labels, by a kernel, on a scale that layers of all widths share."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from mikit.errors import InputError
from mikit.estimators.base import Estimator
from mikit.functional.dependence import cka, hsic

__all__ = ["LabelHSIC"]

# One-hot rows are sqrt(2) apart: a Gaussian kernel of bandwidth 1 is 1 within a class and 1/e across classes.
_BANDWIDTH, _CONTRAST = 1.0, 1.0 - math.exp(-1.0)


@final
class LabelHSIC(Estimator):
    r"""Hilbert-Schmidt independence criterion of rows ``(n, d)`` and class labels ``(n,)``, from U-statistics.

    Formula: :math:`\mathrm{HSIC}(K, L) / \sqrt{\mathrm{HSIC}(K, K)\, \mathrm{HSIC}(L, L)}` with the Gaussian kernel
    ``K`` of the rows and ``L_ij = 1`` for rows of one class, 0 otherwise; every HSIC is the U-statistic of
    :func:`mikit.functional.hsic`. The values of the layers of a network are its
    :func:`~mikit.functional.flow_vectors.flow_vector`.
    Without ``normalised``, the numerator.

    Args:
        bandwidth: Sigma of the kernel, in the unit of the features; None: the median distance of the rows.
        normalised: Whether to divide by what the two sides have with themselves.

    Shapes:
        ``x`` is ``(n, d)``, ``y`` is ``(n,)``, integers.

    Unit: dimensionless. Normalised: 1 for classes that are points equally far apart.

    Kind: index. 0 in the population if and only if rows and labels are independent; negative for about half of all
    samples that are. It is never clipped.

    Raises:
        InputError: If there is not one integer label a row, there are fewer than four rows, or the bandwidth is not
            positive.

    Cost:
        ``O(n² (d + classes))`` time, two to three times that with the gradient; memory ``O(n d)`` and strips.

    Pitfalls:
        Not information, and no accuracy: a layer whose classes are clouds far from round scores low, whatever a reader
        gets out of it. Depends on the bandwidth and on the shares of the classes: compare layers on the same rows.
        Labels of one class give 0.

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
        if bandwidth is not None and not 0 < bandwidth < math.inf:
            raise InputError(f"bandwidth is {bandwidth}; it must be positive and finite, in the unit of the features.")
        self.bandwidth = bandwidth
        self.normalised = normalised

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 4, the fewest of a U-statistic."""
        return 4

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return minus the index."""
        return -self.estimate(x, y)

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the index."""
        if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex():
            raise InputError(
                f"labels have shape {tuple(y.shape)} and dtype {y.dtype}, and x has {x.shape[0]} rows; pass one "
                "integer label a row."
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
