"""Differential entropy from distances to nearest neighbors, and mutual information as a sum of such entropies.

The probability of the ball that reaches to the j-th neighbor of a sample has the expected logarithm ``ψ(j) - ψ(n)``,
whatever the distribution. If the density is taken as constant inside the ball, its radius gives the log density at the
sample. The error of that assumption depends on j, so that weighted sums over several j cancel its leading terms.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.neighbors.samples import columns_of, require_neighbors, varying_columns
from mikit.functional.neighbors.trees import Floats

__all__ = [
    "entropy_weights",
    "kozachenko_leonenko",
    "weighted_kl_mi",
    "weighted_kl_pointwise",
    "weighted_kozachenko_leonenko",
]

_TREE_WIDTH = 8  # columns up to which a k-d tree finds twenty neighbors faster than comparing all pairs
_SINGULAR = 1e-12  # eigenvalues of a correlation matrix below this are rounding


def kozachenko_leonenko(x: Tensor, k: int = 3, *, whiten: bool = False) -> Tensor:
    r"""Differential entropy by the k-th nearest neighbor.

    .. math:: \hat H = \psi(n) - \psi(k) + \log V_d + \frac dn \sum_i \log \rho_{k,i}

    with :math:`\rho_{k,i}` the Euclidean distance of sample i from its k-th neighbor and :math:`V_d` the volume of the
    unit ball in d dimensions.

    Args:
        x: Samples of a distribution with a density, ``(n, d)`` or ``(n,)``.
        k: Number of neighbors, ``1 <= k < n``. A larger k means less variance and more bias.
        whiten: Whether to compute the entropy of the whitened samples and add the log determinant of the map. This is
            the same quantity, estimated with less bias where columns are correlated or differ in scale.

    Returns:
        0-dim float64 tensor on the device of ``x``, without gradient. Unit: nats. Kind: an estimate. Differential
        entropy may be negative and depends on the units: scaling all columns by a adds ``d log a``.

    Raises:
        InputError: If a value is not finite, if ``k`` is not between 1 and n - 1, if samples coincide so that a
            distance is 0, or if the columns are linearly dependent: the entropy is then minus infinity.

    Cost:
        Up to eight columns: a k-d tree on the CPU. Above: all pairs in float64, O(n² d) time and O(n · strip) memory
        for blocks of ``strip`` rows, on the device of ``x``.

    Pitfalls:
        - The bias grows with the dimension: it decreases as n^(-2/d) at best.
        - Entropies of layers are not comparable, because each depends on the scale of its units. Mutual information is
          comparable.

    Source:
        Kozachenko and Leonenko (1987), "Sample Estimate of the Entropy of a Random Vector".

    Example:
        >>> x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
        >>> abs(kozachenko_leonenko(x).item() - 1.4189) < 0.1  # log(2πe) / 2
        True
    """
    rows = _density_rows(x, "x", k)
    weights = np.zeros(k)
    weights[-1] = 1.0
    return _terms(rows, weights, whiten, "x").mean()


def weighted_kozachenko_leonenko(x: Tensor, k: int = 20, *, whiten: bool = False) -> Tensor:
    r"""Differential entropy by several neighbors, weighted so that the leading terms of the bias cancel.

    .. math:: \hat H = \sum_{j \le k} w_j \left[\psi(n) - \psi(j) + \log V_d + \frac dn \sum_i \log \rho_{j,i}\right]

    The weights are those of smallest norm on the neighbors :math:`\lfloor k/d \rfloor, \lfloor 2k/d \rfloor, \dots, k`
    that cancel :math:`\lfloor d/4 \rfloor` terms. Up to three columns no term needs to be cancelled, and the neighbors
    are averaged.

    Args:
        x: Samples of a distribution with a density, ``(n, d)`` or ``(n,)``.
        k: The farthest neighbor used, ``1 <= k < n``.
        whiten: As in :func:`kozachenko_leonenko`.

    Returns:
        0-dim float64 tensor on the device of ``x``, without gradient. Unit: nats. Kind: an estimate.

    Raises:
        InputError: As :func:`kozachenko_leonenko`, and if ``k`` is too small for the number of columns.

    Cost:
        As :func:`kozachenko_leonenko`.

    Pitfalls:
        - Weights of both signs increase the variance: with 8 columns the standard error is about three times that of
          one neighbor. More neighbors reduce it.
        - The cancelled expansion is that of smooth densities. At the edge of a support, and in heavy tails, the error
          has other terms too.

    Source:
        Berrett, Samworth and Yuan (2019), "Efficient multivariate entropy estimation via k-nearest neighbour
        distances", Annals of Statistics 47, with ψ(n) where they have log(n - 1).

    Example:
        >>> x = torch.rand(2000, 5, generator=torch.Generator().manual_seed(0))
        >>> kozachenko_leonenko(x).item() > 0.4, weighted_kozachenko_leonenko(x).item() < 0.3  # the truth is 0
        (True, True)
    """
    rows = _density_rows(x, "x", k)
    return _terms(rows, entropy_weights(k, rows.shape[1]), whiten, "x").mean()


def weighted_kl_mi(x: Tensor, y: Tensor, k: int = 20, *, whiten: bool = True) -> Tensor:
    r"""Mutual information as a sum of entropies, each from weighted nearest neighbors.

    .. math:: \hat I(X; Y) = \hat H(X) + \hat H(Y) - \hat H(X, Y)

    with the entropies of :func:`weighted_kozachenko_leonenko`. With whitening, the log determinants contain the linear
    dependence and the neighbors estimate the rest, so that strong correlation costs no accuracy.

    Args:
        x: First variable, ``(n, d_x)`` or ``(n,)``, with a density.
        y: Second variable, ``(n, d_y)`` or ``(n,)``, so that both together have a density.
        k: The farthest neighbor used, ``1 <= k < n``.
        whiten: Whether to whiten x, y and the two together.

    Returns:
        0-dim float64 tensor on the device of ``x``, without gradient. Unit: nats. Kind: an estimate, not a bound,
        never clipped. The number of samples sets no upper limit.

    Raises:
        InputError: If the rows do not pair up, and as :func:`weighted_kozachenko_leonenko` does. Ties raise an error,
            because the entropy of a distribution with an atom is minus infinity. Columns that contain a single value
            are dropped.

    Cost:
        Three entropies: up to eight columns in all by k-d trees, above by all pairs.

    Pitfalls:
        - Activations after a ReLU, labels and integers have no density; use :func:`~mikit.functional.ksg` for them.
        - The three errors do not cancel. With ten columns or more in all, the bias is tenths of a nat, in either
          direction.

    Source:
        As :func:`weighted_kozachenko_leonenko`.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 1, generator=g)
        >>> y = 0.6 * x + 0.8 * torch.randn(2000, 1, generator=g)
        >>> abs(weighted_kl_mi(x, y).item() - 0.223) < 0.1  # the truth is -log(1 - 0.6²) / 2 = 0.223 nats
        True
    """
    return weighted_kl_pointwise(x, y, k, whiten=whiten).mean()


def weighted_kl_pointwise(x: Tensor, y: Tensor, k: int = 20, *, whiten: bool = True) -> Tensor:
    """Return the contribution of every sample to :func:`weighted_kl_mi` in nats, ``(n,)``; their mean is the estimate.

    Samples share neighbors, so the contributions are not independent, and the standard error computed as if they were
    is not exact.

    Example:
        >>> x = torch.linspace(0, 1, 50)
        >>> weighted_kl_pointwise(x, torch.ones(50), 5).abs().max().item()  # a constant: no information
        0.0
    """
    rows_x, rows_y = columns_of(x, "x"), columns_of(y, "y")
    require_neighbors(rows_x, rows_y, k, None, None)
    rows_x, rows_y = varying_columns(rows_x), varying_columns(rows_y)
    if rows_x.shape[1] == 0 or rows_y.shape[1] == 0:
        return torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    parts = []
    for rows, name in ((rows_x, "x"), (rows_y, "y"), (torch.cat([rows_x, rows_y], dim=1), "x and y together")):
        _require_density(rows, name)
        parts.append(_terms(rows, entropy_weights(k, rows.shape[1]), whiten, name))
    return parts[0] + parts[1] - parts[2]


def entropy_weights(k: int, d: int) -> Floats:
    r"""Return the weights ``(k,)`` of the neighbors 1 to k that cancel the leading bias of an entropy in d dimensions.

    They have the smallest Euclidean norm among weights with :math:`\sum_j w_j = 1` and
    :math:`\sum_j w_j \Gamma(j + 2l/d) / \Gamma(j) = 0` for :math:`l = 1, \dots, \lfloor d/4 \rfloor`. In many
    dimensions these conditions are nearly the same, and the weights are large.

    Example:
        >>> entropy_weights(4, 2).round(6).tolist()
        [0.0, 0.5, 0.0, 0.5]
    """
    if k < 1 or d < 1:
        raise InputError(f"k is {k} and d is {d}; both must be at least 1.")
    # Neighbors k/d, 2k/d, ..., k only: near ones have much variance, and adjacent ones give nearly the same equation.
    steps = np.arange(1, d + 1) * k // d
    near = np.unique(steps[steps > 0])
    conditions = d // 4
    if near.shape[0] <= conditions:
        raise InputError(
            f"{k} neighbors are too few to cancel the bias in {d} features: at least {conditions + 1} are needed. Use "
            "a larger k or fewer features."
        )
    # E[ρ_j^(2l)] is proportional to Γ(j + 2l/d) / Γ(j), the l-th term of the bias at neighbor j. Rows are divided by
    # their largest entry because these ratios grow as j^(2l/d), which would make the equations ill-conditioned.
    left = np.exp(gammaln(near + 2 * np.arange(conditions + 1)[:, None] / d) - gammaln(near))
    largest = left.max(axis=1, keepdims=True)
    right = np.zeros(conditions + 1)
    right[0] = 1.0
    weights = np.zeros(k)
    weights[near - 1] = np.linalg.lstsq(left / largest, right, rcond=None)[0]
    return weights


def _density_rows(x: Tensor, name: str, k: int) -> Tensor:
    rows = columns_of(x, name)
    require_neighbors(rows, rows, k, None, None)
    if rows.shape[1] == 0:
        raise InputError(f"{name} has no features, so it has no entropy.")
    _require_density(rows, name)
    return rows


def _require_density(rows: Tensor, name: str) -> None:
    n, d = rows.shape
    if n <= d:
        raise InputError(
            f"There are {n} samples for {d} features of {name}. Nearest neighbors need more samples than features. "
            "Reduce the dimension first."
        )
    if _moments(rows)[2][0] < _SINGULAR:
        raise InputError(
            f"The features of {name} are linearly dependent, so there is no density and the entropy is minus infinity. "
            "Drop constant and repeated features. If y is a function of x without noise, the information is infinite."
        )


def _moments(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the means, the SDs, and the eigenvalues (ascending) and eigenvectors of the correlation matrix."""
    mean = rows.mean(dim=0)
    deviation = (rows - mean).square().mean(dim=0).sqrt()
    if bool((deviation <= 1e-14 * mean.abs()).any()):
        return mean, deviation, torch.zeros_like(mean), torch.eye(mean.shape[0], dtype=rows.dtype, device=rows.device)
    standard = (rows - mean) / deviation
    values, axes = torch.linalg.eigh(standard.T @ standard / rows.shape[0])
    return mean, deviation, values, axes


def _terms(rows: Tensor, weights: Floats, whiten: bool, name: str) -> Tensor:
    """Return one term per sample; their mean is the entropy."""
    n, d = rows.shape
    added = 0.0
    if whiten:
        # H(X) = H(AX) - log|det A|. Whitened samples are nearly round, so that the density varies less inside a
        # Euclidean ball, and the determinant carries the linear dependence without any neighbor error.
        mean, deviation, values, axes = _moments(rows)
        rows = ((rows - mean) / deviation) @ (axes / values.sqrt())
        added = float(deviation.log().sum() + 0.5 * values.log().sum())
    used = np.flatnonzero(weights)
    distances = _distances(rows, int(used[-1]) + 1)[:, torch.from_numpy(used).to(rows.device)]
    touching = (distances[:, 0] == 0).nonzero()
    if touching.shape[0]:
        raise InputError(
            f"{touching.shape[0]} of the {n} samples of {name} coincide with {int(used[0]) + 1} others or more; the "
            f"first is row {int(touching[0, 0])}. Where values repeat there is no density and the entropy is minus "
            "infinity. For the information of such data use ksg, which counts coincident samples."
        )
    volume = 0.5 * d * math.log(math.pi) - float(gammaln(0.5 * d + 1))
    shares = float((weights[used] * (digamma(n) - digamma(used + 1))).sum())
    chosen = torch.from_numpy(weights[used]).to(rows.device)
    # The weights sum to 1, so what does not depend on the neighbor is added once.
    return d * (distances.log() @ chosen) + (shares + volume + added)


def _distances(rows: Tensor, k: int) -> Tensor:
    """Return the Euclidean distances of the 1st to the k-th neighbor of every row, ``(n, k)``."""
    n, d = rows.shape
    if d <= _TREE_WIDTH:
        points = rows.cpu().numpy()
        tree = cKDTree(points, balanced_tree=False)
        found = np.asarray(tree.query(points, k=k + 1, workers=torch.get_num_threads())[0])
        return torch.from_numpy(found[:, 1:]).to(rows.device)
    squares = rows.square().sum(dim=1)
    across = torch.cat([-2 * rows, torch.ones_like(rows[:, :1]), squares[:, None]], dim=1).T.contiguous()
    strip = max(1, 2**21 // n if rows.device.type == "cpu" else 2**26 // n)
    out = rows.new_empty(n, k)
    for start in range(0, n, strip):
        own = slice(start, min(start + strip, n))
        queries = torch.cat([rows[own], squares[own, None], torch.ones_like(rows[own, :1])], dim=1)
        between = queries @ across
        between.diagonal(start).fill_(torch.inf)
        nearest = between.topk(k, dim=1, largest=False).indices
        # The product loses digits of small distances to cancellation, so the distances of the selected rows are
        # computed again from differences. Their logarithm is what the estimate needs.
        out[own] = (rows[own, None] - rows[nearest]).square().sum(dim=2).sqrt().sort(dim=1).values
    return out
