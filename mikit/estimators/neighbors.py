"""Mutual information from nearest neighbours, as an instrument."""

from __future__ import annotations

from typing import NoReturn, final

import torch
from scipy.special import digamma
from torch import Tensor

from mikit.errors import InputError
from mikit.estimators.base import Estimator, clustered_standard_error, require_pair
from mikit.functional.neighbors import Metric, ksg_pointwise
from mikit.measurement import Check

__all__ = ["KSG"]

# Measured on Gaussian pairs of 1 + 1 to 16 + 16 columns with 0 to 2 nats, k of 3 and 10 and 300 to 2,000 rows: the
# estimate spreads by 0.9 to 1.6 times the standard error its contributions would have if they were independent.
_SHARED_NEIGHBOURS = 1.4


@final
class KSG(Estimator):
    """Mutual information of rows ``(n, d_x)``, ``(n, d_y)`` by k nearest neighbours: no model, few columns.

    Formula: ``I = ψ(n) + mean of [ψ(m_i) - ψ(m_x,i) - ψ(m_y,i)]``, where the ``m`` count the samples strictly nearer to
    sample i than its k-th neighbour, in the joint space, in x and in y; see :func:`mikit.functional.ksg`.

    Args:
        k: Number of neighbours. Larger means less variance and more bias.
        metric: Distance inside each space, ``"euclidean"`` or ``"chebyshev"``. None: Chebyshev up to four columns in
            all, as scikit-learn has it; Euclidean above.
        scale: Whether to bring every column to unit variance and both spaces to one size first. Without it, units
            decide which columns count.

    Shapes:
        ``x`` is ``(n, d_x)``, ``y`` is ``(n, d_y)``, with paired rows and ``n >= k + 2``.

    Unit: nats.

    Kind: estimate, neither an upper nor a lower bound; never clipped, so independent rows give negative values about
    half of the time. Symmetric. Biased towards 0 when the dependence is strong or the dimension high.

    Raises:
        TypeError: If called as a loss. Counts of neighbours have no gradient.
        InputError: If the rows do not pair up, or there are too few.

    Checks:
        The effective joint dimension: warns above 10, fails above 25.

    Cost:
        Up to four columns in all: ``O(n log n)`` time, ``O(n)`` memory. Above: ``O(n² (d_x + d_y))`` time,
        ``O(n)`` memory.

    Pitfalls:
        Reads far too low above about ten columns, or within a nat or two of its ceiling, and its standard error does
        not show that: read the ceiling next to the value. Rows that repeat one item are not independent; name them in
        ``groups``. A batch average is not the estimate of the whole sample.

    Source:
        Kraskov, Stögbauer and Grassberger (2004), Physical Review E 69, 066138, algorithm 1.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 1, generator=generator)
        >>> y = 0.6 * x + 0.8 * torch.randn(1000, 1, generator=generator)
        >>> abs(KSG().estimate(x, y).item() - 0.223) < 0.1  # the truth is -log(1 - 0.6²) / 2 = 0.223 nats
        True
    """

    name = "ksg"
    unit = "nats"
    kind = "estimate"
    differentiable = False
    symmetric = True

    def __init__(self, k: int = 3, *, metric: Metric | None = None, scale: bool = True) -> None:
        super().__init__()
        if k < 1:
            raise InputError(f"k is {k}; a sample needs at least 1 neighbour.")
        if metric not in (None, "euclidean", "chebyshev"):
            raise InputError(f"metric is {metric!r}. Choose 'euclidean', 'chebyshev' or None.")
        self.k = k
        self.metric: Metric | None = metric
        self.scale = scale

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"k={self.k}, metric={self.metric!r}, scale={self.scale}"

    def forward(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raise TypeError: there is nothing to minimise."""
        raise TypeError(
            "KSG has no gradient: counts of neighbours are piecewise constant, so as a loss it would train nothing. "
            "Train with a differentiable measure (InfoNCE, JSD or VID) and report KSG with estimate or mikit.measure."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information in nats, never clipped."""
        return self.pointwise(x, y).mean()

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the contribution of every row, ``(n,)``, in nats; their mean is the estimate."""
        require_pair(x, y, minimum=self.k + 2)
        return ksg_pointwise(x, y, self.k, metric=self.metric, scale=self.scale)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        """Return the standard error of the contributions, clustered by ``groups``, times 1.4.

        Samples share neighbours, so their contributions are not independent. The factor is empirical: the result was
        between 0.9 and 1.6 times the spread over Gaussian samples of 1 to 16 columns a side.
        """
        return _SHARED_NEIGHBOURS * clustered_standard_error(self.pointwise(x, y), groups)

    def ceiling(self, n: int) -> float:
        """Return ``ψ(n) - ψ(k)``, about ``log(n / k)``: the most that n rows without ties can show."""
        return float(digamma(n) - digamma(self.k))

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return whether the joint dimension is one that neighbours can handle: warns above 10, fails above 25.

        The dimension is the participation ratio ``(Σ λ)² / Σ λ²`` of the spectrum of the standardised columns.
        """
        columns = torch.cat([x, y], dim=1).double()
        columns = columns - columns.mean(0)
        spread = columns.square().mean(0).sqrt()
        columns = columns[:, spread > 0] / spread[spread > 0]
        gram = columns.T @ columns / max(columns.shape[0], 1)
        dimension = float(gram.diagonal().sum() ** 2 / gram.square().sum()) if columns.shape[1] else 0.0
        name, said = "effective dimension", f"The joint sample fills about {dimension:.1f} dimensions"
        if dimension > 25:
            return (Check(name, "fail", dimension, 25.0, f"{said}; nearest neighbours read far below the truth here."),)
        if dimension > 10:
            return (Check(name, "warn", dimension, 10.0, f"{said}; above 10, nearest neighbours read low."),)
        return (Check(name, "pass", dimension, 10.0, f"{said}."),)

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return ``k + 2``: with ``k + 1`` rows all others are neighbours, and nothing is left to compare."""
        return self.k + 2
