"""Mutual information of samples and class labels, from distances to the nearest neighbors."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.neighbors.distances import EPSILON, Integers, Metric
from mikit.functional.neighbors.samples import (
    chosen_metric,
    columns_of,
    require_neighbors,
    require_same_rows,
    scaled,
    varying_columns,
)
from mikit.functional.neighbors.subspaces import counts_in_subspaces
from mikit.functional.neighbors.trees import TREE_WIDTH, Floats, distinct_rows, near_counts

__all__ = ["ross_mi", "ross_pointwise"]


def ross_mi(
    x: Tensor,
    labels: Tensor,
    k: int = 3,
    *,
    metric: Metric | None = None,
    scale: bool = True,
    strip: int | None = None,
) -> Tensor:
    r"""Mutual information of continuous features and class labels by the nearest neighbors of Ross.

    .. math:: \hat I = \psi(n) + \frac1n \sum_i \left[\psi(k_i) - \psi(n_{c(i)}) - \psi(m_i)\right]

    Here :math:`\varepsilon_i` is the distance from sample i to its k-th neighbor among the samples of its class. The
    count :math:`m_i` is the number of samples of any class strictly nearer than :math:`\varepsilon_i`, and :math:`k_i`
    that of samples of its class, both including the sample itself; :math:`n_c` is the size of class c. Without ties
    :math:`k_i = k`. Where k or more samples of its class coincide with sample i, the coincident samples are counted, so
    x may contain atoms. No noise is added, so no seed is needed.

    In a class of k samples or fewer, all other samples of the class are the neighbors. A class of one sample has none:
    it is left out of the sums and of n, as in scikit-learn, and the result is the information about the other classes.

    Columns are centered and scaled, and those that contain a single value dropped, as in :func:`~mikit.functional.ksg`.

    Args:
        x: Features, ``(n, d)`` or ``(n,)``, any floating or integer dtype.
        labels: Class of each sample, ``(n,)``: integers, in any coding.
        k: Number of neighbors, ``1 <= k < n``. A larger k means less variance and more bias.
        metric: Distance between samples of x. None: Chebyshev up to four columns, Euclidean above.
        scale: Whether to scale every column to unit variance. Without it units determine which columns count.
        strip: Number of rows processed at a time where all pairs are compared; None chooses. It does not change values.

    Returns:
        0-dim float64 tensor on the device of ``x``, without gradient. Unit: nats. Kind: an estimate, not a bound,
        never clipped (scikit-learn sets negative values to 0).

    Raises:
        InputError: If the shapes do not pair up, if ``k`` is not between 1 and n - 1, if a value is not finite, or if
            no class has two samples.

    Cost:
        Up to four columns under the Chebyshev distance: k-d trees, O(n log n) time and O(n) memory, on the CPU.
        Otherwise all pairs in float64, O(n² d) time and O(n · strip) memory, on the device of ``x``.

    Pitfalls:
        - Biased towards 0 in high dimension, where a ball with k samples of one class reaches beyond the class.
        - If the number of classes is of the order of n and most are rare, there is almost nothing to compare.
        - The information is at most the entropy of the labels. The estimate may exceed the entropy of their
          frequencies, by about (C - 1) / 2n for C well separated classes.

    Source:
        Ross (2014), "Mutual Information between Discrete and Continuous Data Sets", PLoS ONE 9(2), e87357.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> labels = torch.randint(2, (2000,), generator=g)
        >>> x = torch.randn(2000, generator=g) + 2 * labels
        >>> abs(ross_mi(x, labels).item() - 0.337) < 0.05  # the truth, by quadrature
        True
    """
    contributions, kept = _contributions(x, labels, k, metric, scale, strip)
    return contributions[kept].mean()


def ross_pointwise(
    x: Tensor,
    labels: Tensor,
    k: int = 3,
    *,
    metric: Metric | None = None,
    scale: bool = True,
    strip: int | None = None,
) -> Tensor:
    """Return the contribution of every sample to :func:`ross_mi` in nats, ``(n,)``; their mean is the estimate.

    The only sample of a class has no contribution and is assigned the mean of the others. Samples share neighbors, so
    the contributions are not independent, and the standard error computed as if they were is not exact.

    Example:
        >>> ross_pointwise(torch.ones(6), torch.tensor([0, 1, 0, 1, 0, 1]), k=1).abs().max().item()
        0.0
    """
    contributions, kept = _contributions(x, labels, k, metric, scale, strip)
    return torch.where(kept, contributions, contributions[kept].mean())


def _contributions(
    x: Tensor, labels: Tensor, k: int, metric: Metric | None, scale: bool, strip: int | None
) -> tuple[Tensor, Tensor]:
    """Return the contribution of every sample, and which samples have one."""
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"The labels have shape {tuple(labels.shape)} and dtype {labels.dtype}. Pass one integer per sample, shape "
            "(n,)."
        )
    require_same_rows(x, labels, "labels")
    everything, codes = columns_of(x, "x"), torch.unique(labels, return_inverse=True)[1]
    require_neighbors(everything, codes[:, None], k, metric, strip)
    sizes = torch.bincount(codes)[codes]
    kept = sizes > 1
    if not bool(kept.any()):
        raise InputError(
            f"Each of the {x.shape[0]} samples has a different label, so no sample has a neighbor in its class. Pass "
            "labels that repeat, or use ksg for continuous variables."
        )
    found = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    rows, codes, sizes = varying_columns(everything[kept]), codes[kept], sizes[kept]
    if rows.shape[1] == 0:
        return found, kept
    chosen = chosen_metric(metric, rows.shape[1])
    space, offset = scaled(rows, chosen, scale)
    reach = (sizes - 1).clamp(max=k)
    if rows.shape[1] == 1 or (rows.shape[1] <= TREE_WIDTH and chosen == "chebyshev"):
        own, near = _by_trees(space.cpu().numpy(), codes.cpu().numpy(), k, offset)
    else:
        own, (near,) = counts_in_subspaces([space], reach, [[0]], chosen, offset, codes=codes, strip=strip)
    values = digamma(rows.shape[0]) + digamma(own) - (digamma(sizes.cpu().numpy()) + digamma(near))
    found[kept] = torch.from_numpy(values).to(x.device)
    return found, kept


def _by_trees(space: Floats, codes: Integers, k: int, offset: float) -> tuple[Integers, Integers]:
    """Count the samples of the same class, and of any, strictly nearer to each sample than its k-th neighbor."""
    radius, own = np.empty(space.shape[0]), np.empty(space.shape[0], dtype=np.int64)
    order = np.argsort(codes, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        points = space[rows]
        reach = min(k, rows.shape[0] - 1)
        first, place, copies = distinct_rows(points)
        queries = points[first]
        # More copies of a point than its neighbors change no distance, but slow the tree down.
        tree = cKDTree(np.repeat(queries, np.minimum(copies, reach + 1), axis=0), balanced_tree=False)
        found = tree.query(queries, k=reach + 1, p=np.inf, workers=torch.get_num_threads())
        distances = np.asarray(found[0])
        kth = distances[:, reach]
        # Neighbors at equal distances come out unequal by the rounding of their columns, which the slack removes.
        inner = np.maximum(kth - 8 * EPSILON * (np.abs(queries).max(axis=1) + kth + offset), 0.0)
        radius[rows] = inner[place]
        own[rows] = np.where(kth > 0, (distances <= inner[:, None]).sum(axis=1), copies)[place]
    return own, near_counts(space, radius)
