"""Mutual information of rows and class labels, from distances to the nearest neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.neighbors.counts import Metric
from mikit.functional.neighbors.ksg import (
    _EPSILON,
    _TREE_WIDTH,
    _columns,
    _distinct,
    _near,
    _require,
    _scaled,
    _varying,
)
from mikit.functional.neighbors.subspaces import counts_in_subspaces

__all__ = ["ross_mi", "ross_pointwise"]

_Floats = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]


def ross_mi(
    x: Tensor,
    labels: Tensor,
    k: int = 3,
    *,
    metric: Metric | None = None,
    scale: bool = True,
    strip: int | None = None,
) -> Tensor:
    r"""Mutual information of numbers and class labels by the nearest neighbours of Ross.

    .. math:: \hat I = \psi(n) + \frac1n \sum_i \left[\psi(k_i) - \psi(n_{c(i)}) - \psi(m_i)\right]

    With :math:`\varepsilon_i` the distance from sample i to its k-th neighbour among the samples of its own class,
    :math:`m_i` counts the samples of any class strictly nearer than :math:`\varepsilon_i`, and :math:`k_i` those of its
    own class, the sample itself included; :math:`n_c` is the size of class c. Without ties :math:`k_i = k`. Where k or
    more samples of its class coincide with sample i the coincident samples are counted, so x may hold atoms. No noise
    is added, so there is nothing to seed.

    A class with k samples or fewer is searched for as many neighbours as it has. A class of one sample has none: it is
    left out of the sums and of n, as scikit-learn leaves it out, and what is reported is the information about the
    other classes.

    Columns are centred and scaled, and those that hold a single value dropped, as in :func:`~mikit.functional.ksg`.

    Args:
        x: Numbers, ``(n, d)`` or ``(n,)``, any floating or integer dtype.
        labels: Class of each row, ``(n,)``: integers, in any coding.
        k: Number of neighbours, ``1 <= k < n``. Larger means less variance and more bias.
        metric: Distance between rows of x. None: Chebyshev up to four columns, Euclidean above.
        scale: Whether to bring every column to unit variance. Without it units decide which columns count.
        strip: Rows handled at a time where all pairs are compared; None chooses. Values do not depend on it.

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
        - Biased towards 0 in high dimension, where a ball that holds k samples of one class reaches past the class.
        - Labels in the order of magnitude of n, most of them rare, leave nothing to compare.
        - The information is at most the entropy of the labels; the estimate may exceed that of their frequencies, by
          about (C - 1) / 2n for C classes that lie far apart.

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
    """Contribution of every sample to :func:`ross_mi`, whose mean is the estimate.

    The only sample of a class has none of its own; it carries the mean of the others.

    Args:
        x: Numbers, ``(n, d)`` or ``(n,)``.
        labels: Class of each row, ``(n,)``.
        k: Number of neighbours.
        metric: As in :func:`ross_mi`.
        scale: As in :func:`ross_mi`.
        strip: As in :func:`ross_mi`.

    Returns:
        Float64 tensor ``(n,)`` on the device of ``x``, without gradient. Unit: nats. Kind: an estimate.

    Raises:
        InputError: As :func:`ross_mi`.

    Cost:
        As :func:`ross_mi`.

    Pitfalls:
        Samples share neighbours, so the contributions are not independent: the standard error computed as if they were
        is not exact.

    Source:
        As :func:`ross_mi`.

    Example:
        >>> ross_pointwise(torch.ones(6), torch.tensor([0, 1, 0, 1, 0, 1]), k=1).abs().max().item()
        0.0
    """
    contributions, kept = _contributions(x, labels, k, metric, scale, strip)
    return torch.where(kept, contributions, contributions[kept].mean())


def _contributions(
    x: Tensor, labels: Tensor, k: int, metric: Metric | None, scale: bool, strip: int | None
) -> tuple[Tensor, Tensor]:
    """Return the contribution of every sample, and which of them have one."""
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"The labels have shape {tuple(labels.shape)} and dtype {labels.dtype}. Pass one integer per row, shape "
            "(n,)."
        )
    if labels.shape[0] != x.shape[0]:
        raise InputError(f"x has {x.shape[0]} rows and there are {labels.shape[0]} labels. Pass one label per row.")
    if labels.device != x.device:
        raise InputError(f"x is on {x.device} and the labels are on {labels.device}. Move both to one device.")
    everything, codes = _columns(x, "x"), torch.unique(labels, return_inverse=True)[1]
    _require(everything, codes[:, None], k, metric, strip)
    sizes = torch.bincount(codes)[codes]
    kept = sizes > 1
    if not bool(kept.any()):
        raise InputError(
            f"Each of the {x.shape[0]} rows has a class of its own, so no row has a neighbour in its class. Pass "
            "labels that repeat; for numbers use ksg."
        )
    found = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    rows, codes, sizes = _varying(everything[kept]), codes[kept], sizes[kept]
    if rows.shape[1] == 0:
        return found, kept
    chosen: Metric = metric if metric is not None else ("chebyshev" if rows.shape[1] <= _TREE_WIDTH else "euclidean")
    space, offset = _scaled(rows, chosen, scale)
    reach = (sizes - 1).clamp(max=k)
    if rows.shape[1] == 1 or (rows.shape[1] <= _TREE_WIDTH and chosen == "chebyshev"):
        own, near = _by_trees(space.cpu().numpy(), codes.cpu().numpy(), k, offset)
    else:
        own, (near,) = counts_in_subspaces([space], reach, [[0]], chosen, offset, codes=codes, strip=strip)
    values = digamma(rows.shape[0]) + digamma(own) - (digamma(sizes.cpu().numpy()) + digamma(near))
    found[kept] = torch.from_numpy(values).to(x.device)
    return found, kept


def _by_trees(space: _Floats, codes: _Integers, k: int, offset: float) -> tuple[_Integers, _Integers]:
    """Return how many samples of its class, and of any, are strictly nearer to each sample than its k-th neighbour."""
    radius, own = np.empty(space.shape[0]), np.empty(space.shape[0], dtype=np.int64)
    order = np.argsort(codes, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        points = space[rows]
        reach = min(k, rows.shape[0] - 1)
        first, place, copies = _distinct(points)
        queries = points[first]
        # More copies of a point than its neighbours change no distance, but slow the tree down.
        tree = cKDTree(np.repeat(queries, np.minimum(copies, reach + 1), axis=0), balanced_tree=False)
        found = tree.query(queries, k=reach + 1, p=np.inf, workers=torch.get_num_threads())
        distances = np.asarray(found[0])
        kth = distances[:, reach]
        # Neighbours at equal distances come out unequal by the rounding of their columns, which this takes off.
        inner = np.maximum(kth - 8 * _EPSILON * (np.abs(queries).max(axis=1) + kth + offset), 0.0)
        radius[rows] = inner[place]
        own[rows] = np.where(kth > 0, (distances <= inner[:, None]).sum(axis=1), copies)[place]
    return own, _near(space, radius)
