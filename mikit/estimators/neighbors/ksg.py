"""Mutual information from nearest neighbours, as an instrument."""

from __future__ import annotations

from typing import NoReturn, final

import torch
from scipy.special import digamma
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.core.rows import require_paired
from mikit.estimators.base import Estimator, clustered_standard_error, require_pair
from mikit.functional.gaussian.canonical import rank_gaussianise
from mikit.functional.neighbors.entropy import weighted_kl_pointwise
from mikit.functional.neighbors.ksg import Metric, ksg_pointwise
from mikit.functional.neighbors.ross import ross_pointwise

__all__ = ["KSG", "Ross", "WeightedKL"]

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
        copula: Replace each column by its normal scores first: keeps the information, and makes the estimate blind to
            monotone maps of single columns, heavy tails among them.

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

    def __init__(self, k: int = 3, *, metric: Metric | None = None, scale: bool = True, copula: bool = False) -> None:
        super().__init__()
        if k < 1:
            raise InputError(f"k is {k}; a sample needs at least 1 neighbour.")
        if metric not in (None, "euclidean", "chebyshev"):
            raise InputError(f"metric is {metric!r}. Choose 'euclidean', 'chebyshev' or None.")
        self.k = k
        self.metric: Metric | None = metric
        self.scale = scale
        self.copula = copula

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"k={self.k}, metric={self.metric!r}, scale={self.scale}, copula={self.copula}"

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
        if self.copula:
            x, y = rank_gaussianise(x), rank_gaussianise(y)
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
        return (_dimension(torch.cat([x, y], dim=1), "low"),)

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return ``k + 2``: with ``k + 1`` rows all others are neighbours, and nothing is left to compare."""
        return self.k + 2


@final
class Ross(Estimator):
    """Mutual information of rows ``(n, d)`` and class labels ``(n,)`` by k nearest neighbours: no model, few columns.

    Formula: ``I = ψ(n) + mean of [ψ(k_i) - ψ(n_c(i)) - ψ(m_i)]``, where ``m_i`` counts the samples strictly nearer to
    sample i than its k-th neighbour of its own class, ``k_i`` those of its class, and ``n_c`` is the size of the class;
    see :func:`mikit.functional.ross_mi`.

    Args:
        k: Number of neighbours. Larger means less variance and more bias. Classes of k samples or fewer are searched
            for as many as they have.
        metric: Distance between rows, ``"euclidean"`` or ``"chebyshev"``. None: Chebyshev up to four columns, Euclidean
            above.
        scale: Whether to bring every column to unit variance first.

    Shapes:
        ``x`` is ``(n, d)``, the labels ``(n,)``, with ``n >= k + 2``.

    Unit: nats.

    Kind: estimate, neither an upper nor a lower bound; never clipped, so independent rows give negative values about
    half of the time. The truth is at most the entropy of the labels.

    Raises:
        TypeError: If called as a loss. Counts of neighbours have no gradient.
        InputError: If the rows do not pair up, there are too few, or no class has two samples.

    Checks:
        The rows in classes of k samples or fewer: warns above 1 %, fails above 10 %. Classes of one sample are left out
        of the value, and the check says how many there are. The effective dimension: warns above 10, fails above 25.

    Cost:
        Up to four columns: ``O(n log n)`` time, ``O(n)`` memory. Above: ``O(n² d)`` time, ``O(n)`` memory.

    Pitfalls:
        Reads too low in many columns, and its standard error does not show that; there, ``LabelInformation`` with a
        probe that suits the features finds more. Rows that repeat one item are not independent; name them in
        ``groups``. A batch average is not the estimate of the whole sample.

    Source:
        Ross (2014), "Mutual Information between Discrete and Continuous Data Sets", PLoS ONE 9(2), e87357.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.randint(2, (2000,), generator=generator)
        >>> x = torch.randn(2000, 1, generator=generator) + 2.0 * labels[:, None]
        >>> abs(Ross().estimate(x, labels).item() - 0.337) < 0.05  # the truth, by quadrature
        True
    """

    name = "ross"
    unit = "nats"
    kind = "estimate"
    explains = "labels"
    differentiable = False

    def __init__(self, k: int = 3, *, metric: Metric | None = None, scale: bool = True) -> None:
        super().__init__()
        _require_settings(k, metric)
        self.k = k
        self.metric: Metric | None = metric
        self.scale = scale

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"k={self.k}, metric={self.metric!r}, scale={self.scale}"

    def forward(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raise TypeError: there is nothing to minimise."""
        raise TypeError(
            "Ross has no gradient: counts of neighbours are piecewise constant, so as a loss it would train nothing. "
            "Train with LabelInformation and report Ross with estimate or mikit.measure."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information in nats, never clipped."""
        return self.pointwise(x, y).mean()

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the contribution of every row, ``(n,)``, in nats; their mean is the estimate."""
        _require_labelled(x, y, self.k + 2)
        return ross_pointwise(x, y, self.k, metric=self.metric, scale=self.scale)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        """Return the standard error of the contributions, clustered by ``groups``, times 1.4.

        Samples share neighbours, so their contributions are not independent. The factor is empirical: the spread over
        two Gaussian classes in 1 to 16 columns was 0.8 to 1.6 times the error without it, and 0.6 times where the
        classes are so far apart that the value is their entropy.
        """
        return _SHARED_NEIGHBOURS * clustered_standard_error(self.pointwise(x, y), groups)

    def ceiling(self, n: int) -> float:
        """Return ``ψ(n) - ψ(2)``: what n rows in classes of two would show. The labels' entropy is the nearer limit."""
        return float(digamma(n) - digamma(2))

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return whether the classes are large enough, and whether neighbours can handle the dimension."""
        sizes = torch.bincount(y)
        single, small = int((sizes == 1).sum()), int(sizes[sizes <= self.k].sum())
        share, name = small / y.shape[0], "rows in small classes"
        said = f"{small} of {y.shape[0]} rows are in classes of {self.k} samples or fewer"
        if single:
            said += f"; {single} classes of one sample are left out of the value"
        outcome, threshold = ("fail", 0.1) if share > 0.1 else ("warn" if share > 0.01 else "pass", 0.01)
        return (Check(name, outcome, share, threshold, f"{said}."), _dimension(x, "low"))

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return ``k + 2``: with ``k + 1`` rows all others are neighbours, and nothing is left to compare."""
        return self.k + 2


@final
class WeightedKL(Estimator):
    """Mutual information of rows ``(n, d_x)``, ``(n, d_y)`` that have a density, as a sum of three entropies.

    Formula: ``I = H(X) + H(Y) - H(X, Y)``, each entropy from the distances to the 1st to k-th nearest neighbours, with
    weights that cancel the leading terms of its bias, in whitened coordinates; see
    :func:`mikit.functional.weighted_kl_mi`.

    Args:
        k: The farthest neighbour used. Larger means less variance and more bias.

    Shapes:
        ``x`` is ``(n, d_x)``, ``y`` is ``(n, d_y)``, with paired rows and more of them than columns and than ``k + 1``.

    Unit: nats.

    Kind: estimate, neither an upper nor a lower bound; never clipped. Symmetric. There is no ceiling in the number of
    rows: linear dependence of any strength is read from determinants.

    Raises:
        TypeError: If called as a loss.
        InputError: If the rows do not pair up, there are too few, rows coincide (an atom has no density), or columns
            are linearly dependent.

    Checks:
        The effective joint dimension: warns above 6, fails above 12.

    Cost:
        Up to eight columns in all: k-d trees. Above: ``O(n² (d_x + d_y))`` time, ``O(n)`` memory.

    Pitfalls:
        Does not read activations behind a ReLU, labels or whole numbers: those hold atoms, and it refuses them. Smooth
        densities suit it; from six columns on in all the bias is tenths of a nat at a thousand rows, in either
        direction, and its standard error does not show that.

    Source:
        Berrett, Samworth and Yuan (2019), "Efficient multivariate entropy estimation via k-nearest neighbour
        distances", Annals of Statistics 47.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 1, generator=generator)
        >>> y = x + 0.001 * torch.randn(1000, 1, generator=generator)
        >>> abs(WeightedKL().estimate(x, y).item() - 6.908) < 0.15  # more than log(1000 / 3), where KSG ends
        True
    """

    name = "weighted_kl"
    unit = "nats"
    kind = "estimate"
    needs_density = True
    differentiable = False
    symmetric = True

    def __init__(self, k: int = 20) -> None:
        super().__init__()
        _require_settings(k, None)
        self.k = k

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"k={self.k}"

    def forward(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raise TypeError: there is nothing to minimise."""
        raise TypeError(
            "WeightedKL is not a loss: nothing here differentiates which rows are neighbours. Train with a "
            "differentiable measure (InfoNCE, JSD or VID) and report WeightedKL with estimate or mikit.measure."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information in nats, never clipped."""
        return self.pointwise(x, y).mean()

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the contribution of every row, ``(n,)``, in nats; their mean is the estimate."""
        require_pair(x, y, minimum=self.k + 2)
        return weighted_kl_pointwise(x, y, self.k)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        """Return the standard error of the contributions, clustered by ``groups``, times 1.4.

        Samples share neighbours, so their contributions are not independent. The factor is empirical: the spread over
        Gaussian samples of 2 to 8 columns in all was 1.0 to 1.6 times the error without it.
        """
        return _SHARED_NEIGHBOURS * clustered_standard_error(self.pointwise(x, y), groups)

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return whether the weights can correct the bias in this joint dimension: warns above 6, fails above 12.

        The dimension is that of :class:`KSG`.
        """
        return (_dimension(torch.cat([x, y], dim=1), "high or too low", 6.0, 12.0),)

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return how many rows the neighbours and the covariance of all columns need."""
        return max(self.k, d_x + d_y) + 2


def _require_settings(k: int, metric: Metric | None) -> None:
    if k < 1:
        raise InputError(f"k is {k}; a sample needs at least 1 neighbour.")
    if metric not in (None, "euclidean", "chebyshev"):
        raise InputError(f"metric is {metric!r}. Choose 'euclidean', 'chebyshev' or None.")


def _require_labelled(x: Tensor, y: Tensor, minimum: int) -> None:
    if x.ndim != 2:
        raise InputError(
            f"x has shape {tuple(x.shape)}, but this measure reads rows of shape (n, d). Pool or flatten feature maps "
            "and tokens first; mikit.activations.readout has the usual ways."
        )
    require_paired(x, y, minimum=minimum)


def _dimension(rows: Tensor, reads: str, high: float = 10.0, highest: float = 25.0) -> Check:
    """Return whether neighbours can handle the dimension, the participation ratio of the standardised columns."""
    columns = rows.double()
    columns = columns - columns.mean(0)
    spread = columns.square().mean(0).sqrt()
    columns = columns[:, spread > 0] / spread[spread > 0]
    gram = columns.T @ columns / max(columns.shape[0], 1)
    dimension = float(gram.diagonal().sum() ** 2 / gram.square().sum()) if columns.shape[1] else 0.0
    name, said = "effective dimension", f"The sample fills about {dimension:.1f} dimensions"
    if dimension > highest:
        return Check(name, "fail", dimension, highest, f"{said}; nearest neighbours read far too {reads} here.")
    if dimension > high:
        return Check(name, "warn", dimension, high, f"{said}; above {high:.0f}, nearest neighbours read too {reads}.")
    return Check(name, "pass", dimension, high, f"{said}.")
