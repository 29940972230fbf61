"""The nearest-neighbor estimator of the information of features about class labels."""

from __future__ import annotations

from typing import NoReturn, final

import torch
from scipy.special import digamma
from torch import Tensor

from mikit.core.measurement import Check
from mikit.core.rows import require_paired
from mikit.estimators.base import Estimator, clustered_standard_error, require_matrix
from mikit.estimators.neighbors.checks import SHARED_NEIGHBORS, dimension_check, require_settings
from mikit.functional.neighbors.distances import Metric
from mikit.functional.neighbors.ross import ross_pointwise

__all__ = ["Ross"]


@final
class Ross(Estimator):
    """Mutual information of features ``(n, d)`` and class labels ``(n,)`` by k nearest neighbors, for few dimensions.

    Formula: ``I = ψ(n) + mean of [ψ(k_i) - ψ(n_c(i)) - ψ(m_i)]``, where ``m_i`` counts the samples strictly nearer to
    sample i than its k-th neighbor within its class, ``k_i`` those of its class, and ``n_c`` is the size of the class;
    see :func:`mikit.functional.ross_mi`.

    Args:
        k: Number of neighbors. A larger k means less variance and more bias. In classes of k samples or fewer, all
            other samples of the class are used.
        metric: Distance between samples, ``"euclidean"`` or ``"chebyshev"``. None: Chebyshev up to four columns,
            Euclidean above.
        scale: Whether to scale every column to unit variance first.

    Shapes:
        ``x`` is ``(n, d)``, the labels ``(n,)``, with ``n >= k + 2``.

    Unit: nats.

    Kind: estimate, neither an upper nor a lower bound; never clipped, so independent samples give negative values about
    half of the time. The truth is at most the entropy of the labels.

    Raises:
        TypeError: If called as a loss. Counts of neighbors have no gradient.
        InputError: If the samples do not pair up, there are too few, or no class has two samples.

    Checks:
        The samples in classes of k samples or fewer: warns above 1 %, fails above 10 %. Classes of one sample are left
        out of the value, and the check states their number. The effective dimension: warns above 10, fails above 25.

    Cost:
        Up to four columns: ``O(n log n)`` time, ``O(n)`` memory. Above: ``O(n² d)`` time, ``O(n)`` memory.

    Pitfalls:
        Too low with many columns, and its standard error does not show that; there, ``LabelInformation`` with a probe
        that suits the features finds more. Samples that repeat one item are not independent; pass ``groups``. A batch
        average is not the estimate of the whole sample.

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
        require_settings(k, metric)
        self.k = k
        self.metric: Metric | None = metric
        self.scale = scale

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        return f"k={self.k}, metric={self.metric!r}, scale={self.scale}"

    def forward(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raise TypeError, because there is no gradient."""
        raise TypeError(
            "Ross has no gradient, because counts of neighbors are piecewise constant. Train with LabelInformation and "
            "report Ross with estimate or mikit.measure."
        )

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the information in nats, never clipped."""
        return self.pointwise(x, y).mean()

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the contribution of every sample, ``(n,)``, in nats; their mean is the estimate."""
        _require_labeled(x, y, self.k + 2)
        return ross_pointwise(x, y, self.k, metric=self.metric, scale=self.scale)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        """Return the standard error of the contributions, clustered by ``groups``, times 1.4.

        Samples share neighbors, so their contributions are not independent. The factor is empirical: for two Gaussian
        classes in 1 to 16 columns, the SD of the estimate was 0.8 to 1.6 times the error without it, and 0.6 times if
        the classes are so far apart that the value is their entropy.
        """
        return SHARED_NEIGHBORS * clustered_standard_error(self.pointwise(x, y), groups)

    def ceiling(self, n: int) -> float:
        """Return ``ψ(n) - ψ(2)``, the value for n samples in classes of two; the labels' entropy is a closer limit."""
        return float(digamma(n) - digamma(2))

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Check the sizes of the classes and the effective dimension."""
        sizes = torch.bincount(y)
        single, small = int((sizes == 1).sum()), int(sizes[sizes <= self.k].sum())
        sentence = f"{small} of {y.shape[0]} samples are in classes of {self.k} samples or fewer"
        if single:
            left_out = "class of one sample is" if single == 1 else "classes of one sample are"
            sentence += f"; {single} {left_out} left out of the value"
        sentence += "."
        share = small / y.shape[0]
        classes = Check.judged("rows in small classes", share, passed=sentence, otherwise=sentence, warn=0.01, fail=0.1)
        return classes, dimension_check(x, "low")

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return ``k + 2``: with ``k + 1`` samples all others are neighbors, and nothing is left to compare."""
        return self.k + 2


def _require_labeled(x: Tensor, y: Tensor, minimum: int) -> None:
    require_matrix(x, "x")
    require_paired(x, y, minimum=minimum)
