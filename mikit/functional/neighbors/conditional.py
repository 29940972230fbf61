"""Mutual information of two variables given a third, from distances to the nearest neighbors."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import digamma
from torch import Tensor

from mikit.functional.neighbors.distances import Metric
from mikit.functional.neighbors.samples import (
    chosen_metric,
    columns_of,
    require_finite,
    require_neighbors,
    require_same_rows,
    scaled,
    varying_columns,
)
from mikit.functional.neighbors.subspaces import counts_in_subspaces
from mikit.functional.neighbors.trees import TREE_WIDTH, counts_by_tree

__all__ = ["conditional_mi", "conditional_pointwise"]


def conditional_mi(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    k: int = 3,
    *,
    metric: Metric | None = None,
    scale: bool = True,
    strip: int | None = None,
) -> Tensor:
    r"""Conditional mutual information I(X; Y | Z) by the nearest neighbors of Frenzel and Pompe.

    .. math:: \hat I = \frac1n \sum_i \left[\psi(m_i) - \psi(m_{xz,i}) - \psi(m_{yz,i}) + \psi(m_{z,i})\right]

    Here :math:`\varepsilon_i` is the distance from sample i to its k-th neighbor, and the distance of two samples is
    the largest of their distances in x, in y and in z. Each m counts the samples strictly nearer than
    :math:`\varepsilon_i`, including the sample itself: in the space of all three, in (x, z), in (y, z) and in z.
    Without ties :math:`m_i = k`. Where k or more samples coincide with sample i, the coincident samples are counted,
    which is the plug-in estimate for discrete variables. Any of the three may therefore be labels or contain atoms.
    With a constant z this is :func:`~mikit.functional.ksg`. No noise is added, so no seed is needed.

    Columns are centered, scaled and dropped as in :func:`~mikit.functional.ksg`, separately for each variable.

    Args:
        x: First variable, ``(n, d_x)`` or ``(n,)``, any floating or integer dtype.
        y: Second variable, ``(n, d_y)`` or ``(n,)``; row i belongs to row i of ``x``.
        z: The conditioning variable, ``(n, d_z)`` or ``(n,)``; row i belongs to row i of ``x``.
        k: Number of neighbors, ``1 <= k < n``. A larger k means less variance and more bias.
        metric: Distance inside each variable. None: Chebyshev up to four columns in all, Euclidean above.
        scale: Whether to scale columns and variables. Without it the columns are only centered.
        strip: Number of rows processed at a time where all pairs are compared; None chooses. It does not change values.

    Returns:
        0-dim float64 tensor on the device of ``x``, without gradient. Unit: nats. Kind: an estimate, not a bound,
        never clipped.

    Raises:
        InputError: If the shapes do not pair up, if ``k`` is not between 1 and n - 1, or if a value is not finite.

    Cost:
        Up to four columns in all under the Chebyshev distance: k-d trees, O(n log n) time and O(n) memory, on the CPU.
        Otherwise all pairs in float64, O(n² (d_x + d_y + d_z)) time and O(n · strip) memory, on the device of ``x``.

    Pitfalls:
        - Biased towards 0, and in lower dimension than :func:`~mikit.functional.ksg`, because the ball grows with the
          columns of all three. Two Gaussian columns that share 0.83 nats given one column give 0.83 at n = 2000, and
          0.62 given six, five of which are irrelevant. A value near 0 with many columns in z is no evidence of
          independence.
        - Where z determines x, or nearly, too few samples share a value of z, and the estimate is 0.
        - Permuting y also breaks its dependence on z. Such a null is one of full independence, not of independence
          given z.

    Source:
        Frenzel and Pompe (2007), "Partial Mutual Information for Coupling Analysis of Multivariate Time Series",
        Physical Review Letters 99, 204101. Counting coincident samples: as in :func:`~mikit.functional.ksg`.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.randn(1500, 1, generator=g)
        >>> x, y = (z + 0.5 * torch.randn(1500, 1, generator=g) for _ in range(2))
        >>> abs(conditional_mi(x, y, z).item()) < 0.1  # x and y share 0.51 nats, all of it through z
        True
    """
    return conditional_pointwise(x, y, z, k, metric=metric, scale=scale, strip=strip).mean()


def conditional_pointwise(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    k: int = 3,
    *,
    metric: Metric | None = None,
    scale: bool = True,
    strip: int | None = None,
) -> Tensor:
    """Return the contribution of every sample to :func:`conditional_mi` in nats, ``(n,)``; their mean is the estimate.

    Samples share neighbors, so the contributions are not independent: the standard error computed as if they were is
    too small.

    Example:
        >>> x = torch.linspace(0, 1, 50)
        >>> conditional_pointwise(x, x, x).abs().max().item()  # given x, no uncertainty is left
        0.0
    """
    rows = [columns_of(value, name) for value, name in ((x, "x"), (y, "y"), (z, "z"))]
    require_neighbors(rows[0], rows[1], k, metric, strip)
    require_same_rows(rows[0], rows[2], "z")
    require_finite(rows[2], "z")
    n = x.shape[0]
    rows = [varying_columns(value) for value in rows]
    if rows[0].shape[1] == 0 or rows[1].shape[1] == 0:
        return torch.zeros(n, dtype=torch.float64, device=x.device)
    width = sum(value.shape[1] for value in rows)
    chosen = chosen_metric(metric, width)
    given = rows[2].shape[1] > 0
    prepared = [scaled(value, chosen, scale) for value in (rows if given else rows[:2])]
    spaces, offset = [space for space, _ in prepared], max(off for _, off in prepared)
    if width <= TREE_WIDTH and chosen == "chebyshev":
        a, b, *c = (space.cpu().numpy() for space in spaces)
        # Under the Chebyshev distance, (x, z) and (y, z) side by side have the distances of (x, y, z): repeating the
        # columns of z changes no maximum. The counts of two spaces thus also serve three.
        together, near_xz, near_yz = counts_by_tree(np.hstack([a, *c]), np.hstack([b, *c]), k, offset)
        near_z = counts_by_tree(c[0], np.hstack([a, b]), k, offset)[1] if given else np.full(n, n)
    else:
        subspaces = [[0, 2], [1, 2], [2]] if given else [[0], [1]]
        reach = torch.full((n,), k, device=x.device)
        together, counts = counts_in_subspaces(spaces, reach, subspaces, chosen, offset, strip=strip)
        near_xz, near_yz, near_z = (*counts, np.full(n, n))[:3]
    contributions = (digamma(together) + digamma(near_z)) - (digamma(near_xz) + digamma(near_yz))
    return torch.from_numpy(contributions).to(x.device)
