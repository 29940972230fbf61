"""Discrepancies between the laws of two representations, as losses and as instruments."""

from __future__ import annotations

from typing import final

from torch import Tensor

from mikit.errors import InputError
from mikit.estimators.base import Estimator, clustered_standard_error, require_pair
from mikit.functional.mmd import mmd2
from mikit.functional.mmd_error import mmd2_pointwise, mmd2_standard_error

__all__ = ["MMD"]


@final
class MMD(Estimator):
    """Squared maximum mean discrepancy between the laws of rows ``(n, d)`` and ``(m, d)``, with a Gaussian kernel.

    Formula: ``E k(X, X') + E k(Y, Y') - 2 E k(X, Y)``, ``k(a, b) = exp(-|a - b|² / 2σ²)``; see
    :func:`mikit.functional.mmd2`. As a loss it draws the cloud of student features onto the teacher's.

    Args:
        bandwidth: The kernel's ``σ`` in the unit of the features. None: the median distance among the rows of both
            samples, set anew on every call, without gradient.
        paired: Whether row i of ``x`` and of ``y`` come from one input, as activations of two networks do. Their
            kernel is then left out, without which dependent rows bias the statistic downwards, by ``2 / n`` at most.
            False: two samples, of any sizes.

    Shapes:
        ``x`` is ``(n, d)`` and ``y`` is ``(m, d)``, of one width; ``m`` equals ``n`` if ``paired``.

    Unit: dimensionless, at most 2.

    Kind: discrepancy. 0 for equal laws, whether the rows depend on each other or not. Unbiased at a fixed bandwidth
    and never clipped, so equal laws give negative values about half of the time, as a loss too.

    Raises:
        InputError: If the widths differ, or the numbers of rows under ``paired``, or there are fewer than two rows.

    Cost:
        ``O((n + m)² d)`` time, about three times that with the gradient; memory ``O((n + m) d)`` and strips of fixed
        size.

    Pitfalls:
        Blind to pairing: shuffling the rows of one side changes the value by nothing but noise, so a small value does
        not mean that one network knows what the other knows. Depends on the bandwidth: with None, values of different
        layers or epochs do not share a scale.

    Source:
        Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), "A Kernel Two-Sample Test", JMLR 13.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 256, 4, generator=generator)
        >>> mmd = MMD()
        >>> abs(mmd.estimate(x, y).item()) < 0.01 < mmd.estimate(x, y + 1).item()
        True
    """

    name = "mmd"
    unit = "dimensionless"
    kind = "discrepancy"
    symmetric = True
    needs_pairs = False
    zero_when_independent = False

    def __init__(self, bandwidth: float | None = None, *, paired: bool = False) -> None:
        super().__init__()
        if bandwidth is not None and not 0 < bandwidth < float("inf"):
            raise InputError(f"bandwidth is {bandwidth}; it must be positive and finite, in the unit of the features.")
        self.bandwidth = bandwidth
        self.paired = paired
        self.needs_pairs = paired

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"bandwidth={self.bandwidth}, paired={self.paired}"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the unbiased squared discrepancy of the batch; ``y`` is detached."""
        return self.estimate(x, y.detach())

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the unbiased squared discrepancy, never clipped."""
        self._require(x, y)
        return mmd2(x, y, bandwidth=self.bandwidth, paired=self.paired)

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the contribution of every row, ``(n,)``, whose mean is the estimate; None if the sizes differ."""
        self._require(x, y)
        if x.shape[0] != y.shape[0]:
            return None
        return mmd2_pointwise(x, y, bandwidth=self.bandwidth, paired=self.paired)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        """Return the standard error of the U-statistic, finite and positive for equal laws too.

        With ``groups``, which take samples of one size, it is twice the clustered standard error of the
        contributions: up to a factor of root two too large when the laws are equal.
        """
        self._require(x, y)
        x, y = x.detach(), y.detach()
        if groups is None:
            return mmd2_standard_error(x, y, bandwidth=self.bandwidth)
        if x.shape[0] != y.shape[0]:
            raise InputError(
                f"groups belong to rows of both samples, but x has {x.shape[0]} rows and y has {y.shape[0]}. Average "
                "the rows of each group first, or leave groups out."
            )
        return 2 * clustered_standard_error(mmd2_pointwise(x, y, bandwidth=self.bandwidth, paired=self.paired), groups)

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 4, the fewest rows of each sample that show a spread between pairs."""
        return 4

    def _require(self, x: Tensor, y: Tensor) -> None:
        if self.paired:
            require_pair(x, y, same_width=True)
        else:
            fewest = min(x.shape[0], y.shape[0])  # the samples may differ in size, not in width or device
            require_pair(x[:fewest], y[:fewest], same_width=True)
