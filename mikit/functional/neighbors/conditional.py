"""Mutual information of two variables given a third, from distances to the nearest neighbours."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import digamma
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.neighbors.counts import Metric
from mikit.functional.neighbors.ksg import _TREE_WIDTH, _columns, _counts_by_tree, _require, _scaled, _varying
from mikit.functional.neighbors.subspaces import counts_in_subspaces

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
    r"""Conditional mutual information I(X; Y | Z) by the nearest neighbours of Frenzel and Pompe.

    .. math:: \hat I = \frac1n \sum_i \left[\psi(m_i) - \psi(m_{xz,i}) - \psi(m_{yz,i}) + \psi(m_{z,i})\right]

    With :math:`\varepsilon_i` the distance from sample i to its k-th neighbour, where the distance of two samples is
    the largest of their distances in x, in y and in z, the m count the samples strictly nearer than
    :math:`\varepsilon_i` in the space of all three, in (x, z), in (y, z) and in z, the sample itself included. Without
    ties :math:`m_i = k`. Where k or more samples coincide with sample i, the coincident samples are counted, which is
    the plug-in estimate for discrete variables; so any of the three may be labels or hold atoms. With a constant z this
    is :func:`~mikit.functional.ksg`. No noise is added, so there is nothing to seed.

    Columns are centred, scaled and dropped as in :func:`~mikit.functional.ksg`, each variable by itself.

    Args:
        x: First variable, ``(n, d_x)`` or ``(n,)``, any floating or integer dtype.
        y: Second variable, ``(n, d_y)`` or ``(n,)``; row i belongs to row i of ``x``.
        z: The variable that is given, ``(n, d_z)`` or ``(n,)``; row i belongs to row i of ``x``.
        k: Number of neighbours, ``1 <= k < n``. Larger means less variance and more bias.
        metric: Distance inside each variable. None: Chebyshev up to four columns in all, Euclidean above.
        scale: Whether to scale columns and variables. Without it the columns are only centred.
        strip: Rows handled at a time where all pairs are compared; None chooses. Values do not depend on it.

    Returns:
        0-dim float64 tensor on the device of ``x``, without gradient. Unit: nats. Kind: an estimate, not a bound,
        never clipped.

    Raises:
        InputError: If the shapes do not pair up, if ``k`` is not between 1 and n - 1, or if a value is not finite.

    Cost:
        Up to four columns in all under the Chebyshev distance: k-d trees, O(n log n) time and O(n) memory, on the CPU.
        Otherwise all pairs in float64, O(n² (d_x + d_y + d_z)) time and O(n · strip) memory, on the device of ``x``.

    Pitfalls:
        - Biased towards 0, and sooner than :func:`~mikit.functional.ksg`: the ball grows with the columns of all three.
          Two Gaussian columns that share 0.83 nats given one column give 0.83 at n = 2000, and 0.62 given six, five of
          which say nothing. A value near 0 with many columns in z is no evidence of independence.
        - Where z determines x, or nearly, too few samples share a value of z to see anything: the estimate is 0.
        - Permuting y breaks its tie to z as well, so such a null is one of full independence, not of independence
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
    """Contribution of every sample to :func:`conditional_mi`, whose mean is the estimate.

    Args:
        x: First variable, ``(n, d_x)`` or ``(n,)``.
        y: Second variable, ``(n, d_y)`` or ``(n,)``.
        z: The variable that is given, ``(n, d_z)`` or ``(n,)``.
        k: Number of neighbours.
        metric: As in :func:`conditional_mi`.
        scale: As in :func:`conditional_mi`.
        strip: As in :func:`conditional_mi`.

    Returns:
        Float64 tensor ``(n,)`` on the device of ``x``, without gradient. Unit: nats. Kind: an estimate.

    Raises:
        InputError: As :func:`conditional_mi`.

    Cost:
        As :func:`conditional_mi`.

    Pitfalls:
        Samples share neighbours, so the contributions are not independent: the standard error computed as if they were
        is too small.

    Source:
        As :func:`conditional_mi`.

    Example:
        >>> x = torch.linspace(0, 1, 50)
        >>> conditional_pointwise(x, x, x).abs().max().item()  # given x, nothing is left to share
        0.0
    """
    rows = [_columns(value, name) for value, name in ((x, "x"), (y, "y"), (z, "z"))]
    _require(rows[0], rows[1], k, metric, strip)
    _require_third(rows[0], rows[2])
    n = x.shape[0]
    rows = [_varying(value) for value in rows]
    if rows[0].shape[1] == 0 or rows[1].shape[1] == 0:
        return torch.zeros(n, dtype=torch.float64, device=x.device)
    width = sum(value.shape[1] for value in rows)
    chosen: Metric = metric if metric is not None else ("chebyshev" if width <= _TREE_WIDTH else "euclidean")
    given = rows[2].shape[1] > 0
    scaled = [_scaled(value, chosen, scale) for value in (rows if given else rows[:2])]
    spaces, offset = [space for space, _ in scaled], max(off for _, off in scaled)
    if width <= _TREE_WIDTH and chosen == "chebyshev":
        a, b, *c = (space.cpu().numpy() for space in spaces)
        together, near_xz, near_yz = _counts_by_tree(np.hstack([a, *c]), np.hstack([b, *c]), k, offset)
        near_z = _counts_by_tree(c[0], np.hstack([a, b]), k, offset)[1] if given else np.full(n, n)
    else:
        subspaces = [[0, 2], [1, 2], [2]] if given else [[0], [1]]
        reach = torch.full((n,), k, device=x.device)
        together, counts = counts_in_subspaces(spaces, reach, subspaces, chosen, offset, strip=strip)
        near_xz, near_yz, near_z = (*counts, np.full(n, n))[:3]
    contributions = (digamma(together) + digamma(near_z)) - (digamma(near_xz) + digamma(near_yz))
    return torch.from_numpy(contributions).to(x.device)


def _require_third(x: Tensor, z: Tensor) -> None:
    if z.shape[0] != x.shape[0]:
        raise InputError(f"x has {x.shape[0]} rows and z has {z.shape[0]}. Row i of both must be the same sample.")
    if z.device != x.device:
        raise InputError(f"x is on {x.device} and z is on {z.device}. Move both to one device.")
    bad = (~torch.isfinite(z).all(dim=1)).nonzero()
    if bad.shape[0]:
        raise InputError(
            f"z holds NaN or infinity in {bad.shape[0]} of {z.shape[0]} rows; the first is row {int(bad[0, 0])}. Mend "
            "or remove those rows in all arrays."
        )
