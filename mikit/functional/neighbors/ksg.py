"""Mutual information from distances to the nearest neighbours.

One rule serves samples with a density, atoms (the zeros behind a ReLU), labels and mixtures of them. Around every
sample lies a ball that reaches to, but does not include, its k-th nearest neighbour in the joint space; where k or
more samples coincide with it, the ball is that point alone. The samples inside the ball are counted in the joint
space and in each space by itself, and every count includes the sample at the centre.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.samples import constant_columns
from mikit.functional.neighbors.counts import Metric, counts_by_strips as _counts_by_strips

__all__ = ["Metric", "ksg", "ksg_pointwise"]

_TREE_WIDTH = 4  # joint columns up to which a k-d tree beats comparing all pairs
_EPSILON = float(np.finfo(np.float64).eps)

_Floats = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]


def ksg(
    x: Tensor,
    y: Tensor,
    k: int = 3,
    *,
    metric: Metric | None = None,
    scale: bool = True,
    strip: int | None = None,
) -> Tensor:
    r"""Mutual information by the k-nearest-neighbour estimator of Kraskov, Stögbauer and Grassberger (algorithm 1).

    .. math:: \hat I = \psi(n) + \frac1n \sum_i \left[\psi(m_i) - \psi(m_{x,i}) - \psi(m_{y,i})\right]

    With :math:`\varepsilon_i` the distance from sample i to its k-th neighbour, where the distance of two samples is
    the larger of their distances in x and in y, :math:`m_i`, :math:`m_{x,i}` and :math:`m_{y,i}` count the samples
    strictly nearer than :math:`\varepsilon_i` in the joint space, in x and in y, the sample itself included. Without
    ties :math:`m_i = k` and this is algorithm 1. Where k or more samples coincide with sample i
    (:math:`\varepsilon_i = 0`) the coincident samples are counted, which is the plug-in estimate for discrete
    variables. No noise is added, so there is nothing to seed.

    Before any distance, columns are centred, columns that hold a single value are dropped (they carry no
    information), each remaining column is divided by its standard deviation, and each space is divided by one number:
    the root mean square norm of its rows. A single column is thus left at unit variance.

    Args:
        x: First variable, ``(n, d_x)`` or ``(n,)``, any floating or integer dtype.
        y: Second variable, ``(n, d_y)`` or ``(n,)``; row i belongs to row i of ``x``.
        k: Number of neighbours, ``1 <= k < n``. Larger means less variance and more bias.
        metric: Distance inside each space. None: Chebyshev up to four columns in all, as scikit-learn has it;
            Euclidean above, where it underestimates less. Columns that hold a single value do not count.
        scale: Whether to scale columns and spaces as above. Without it the columns are only centred, and units decide
            which space the distance looks at.
        strip: Rows handled at a time where all pairs are compared; None chooses. Values do not depend on it.

    Returns:
        0-dim float64 tensor on the device of ``x``, without gradient. Unit: nats. Kind: an estimate, not a bound,
        never clipped: independent samples give negative values about half of the time. Biased towards 0 when the
        dependence is strong or the dimension high: without ties it cannot exceed ``psi(n) - psi(k)``.

    Raises:
        InputError: If the shapes do not pair up, if ``k`` is not between 1 and n - 1, or if a value is not finite.

    Cost:
        Up to four columns in all (Chebyshev, or one column each): k-d tree, O(n log n) time and O(n) memory, on the
        CPU. Otherwise all pairs, O(n² (d_x + d_y)) time and O(n (d_x + d_y + strip)) memory, on the device of ``x``.
        What is counted are float64 distances in both cases: where all pairs are compared, float32 decides only what its
        rounding cannot change. Labels, atoms and repeated rows leave it so many ties that float64 does all of it.

    Pitfalls:
        - Far below the truth in high dimension, with a small apparent error: 16 + 16 Gaussian columns holding 2.30
          nats give about 0.96 at n = 5000 (0.74 with the Chebyshev distance). Reduce the dimension first, or use a
          learned estimator.
        - A deterministic, continuous function of x shares infinitely many nats with it; the estimate then only says
          ``log n``.
        - Rows that are copies of each other, or patches of one image, are not independent samples and give large
          values for independent variables.
        - Mutual information does not change under monotone maps of a column, this estimate does; heavy tails are
          best mapped to normal scores first.

    Source:
        Kraskov, Stögbauer and Grassberger (2004), Physical Review E 69, 066138. Counting coincident samples follows
        Gao, Kannan, Oh and Viswanath (2017), "Estimating Mutual Information for Discrete-Continuous Mixtures".

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 1, generator=generator)
        >>> y = 0.9 * x + (1 - 0.9**2) ** 0.5 * torch.randn(2000, 1, generator=generator)
        >>> abs(ksg(x, y).item() - 0.83) < 0.1  # the truth is -log(1 - 0.9²) / 2 = 0.83 nats
        True
    """
    return ksg_pointwise(x, y, k, metric=metric, scale=scale, strip=strip).mean()


def ksg_pointwise(
    x: Tensor,
    y: Tensor,
    k: int = 3,
    *,
    metric: Metric | None = None,
    scale: bool = True,
    strip: int | None = None,
) -> Tensor:
    """Contribution of every sample to :func:`ksg`, whose mean is the estimate.

    Args:
        x: First variable, ``(n, d_x)`` or ``(n,)``.
        y: Second variable, ``(n, d_y)`` or ``(n,)``.
        k: Number of neighbours.
        metric: As in :func:`ksg`.
        scale: As in :func:`ksg`.
        strip: As in :func:`ksg`.

    Returns:
        Float64 tensor ``(n,)`` on the device of ``x``, without gradient. Unit: nats. Kind: an estimate.

    Raises:
        InputError: As :func:`ksg`.

    Cost:
        As :func:`ksg`.

    Pitfalls:
        Samples share neighbours, so the contributions are not independent: the standard error computed as if they were
        is too small, by up to 40 % on Gaussian pairs, and it says nothing about the bias.

    Source:
        As :func:`ksg`.

    Example:
        >>> x = torch.linspace(0, 1, 50)
        >>> contributions = ksg_pointwise(x, torch.ones(50))
        >>> contributions.shape, contributions.abs().max().item()  # a constant carries no information
        (torch.Size([50]), 0.0)
    """
    rows_x, rows_y = _columns(x, "x"), _columns(y, "y")
    n = rows_x.shape[0]
    _require(rows_x, rows_y, k, metric, strip)
    rows_x, rows_y = _varying(rows_x), _varying(rows_y)
    if rows_x.shape[1] == 0 or rows_y.shape[1] == 0:
        return torch.zeros(n, dtype=torch.float64, device=x.device)
    width = rows_x.shape[1] + rows_y.shape[1]
    chosen: Metric = metric if metric is not None else ("chebyshev" if width <= _TREE_WIDTH else "euclidean")
    space_x, offset_x = _scaled(rows_x, chosen, scale)
    space_y, offset_y = _scaled(rows_y, chosen, scale)
    offset = max(offset_x, offset_y)
    if width <= _TREE_WIDTH and (chosen == "chebyshev" or width == 2):
        joint, near_x, near_y = _counts_by_tree(space_x.cpu().numpy(), space_y.cpu().numpy(), k, offset)
    else:
        joint, near_x, near_y = _counts_by_strips(space_x, space_y, k, chosen, offset, strip)
    contributions = digamma(n) + digamma(joint) - (digamma(near_x) + digamma(near_y))
    return torch.from_numpy(contributions).to(x.device)


def _columns(value: Tensor, name: str) -> Tensor:
    if value.ndim not in (1, 2):
        raise InputError(
            f"{name} has shape {tuple(value.shape)}, but neighbours are searched among rows of shape (n, d). Pool or "
            "flatten feature maps and tokens first."
        )
    if value.is_complex():
        raise InputError(f"{name} is complex ({value.dtype}). Pass real numbers: real and imaginary parts as columns.")
    rows = value.detach().to(torch.float64)
    return rows[:, None] if rows.ndim == 1 else rows


def _require(x: Tensor, y: Tensor, k: int, metric: Metric | None, strip: int | None) -> None:
    if x.shape[0] != y.shape[0]:
        raise InputError(f"x has {x.shape[0]} rows and y has {y.shape[0]}. Row i of both must be the same sample.")
    if x.device != y.device:
        raise InputError(f"x is on {x.device} and y is on {y.device}. Move both to one device.")
    if metric not in (None, "euclidean", "chebyshev"):
        raise InputError(f"metric is {metric!r}. Choose 'euclidean', 'chebyshev' or None.")
    if k < 1:
        raise InputError(f"k is {k}; a sample needs at least 1 neighbour.")
    if x.shape[0] <= k:
        raise InputError(
            f"There are {x.shape[0]} rows, but {k} neighbours of each need at least {k + 1}. Use more rows or a "
            "smaller k."
        )
    if strip is not None and strip < 1:
        raise InputError(f"strip is {strip}; at least 1 row must be handled at a time.")
    for name, value in (("x", x), ("y", y)):
        finite = torch.isfinite(value).all(dim=1)
        if not bool(finite.all()):
            bad = (~finite).nonzero()
            raise InputError(
                f"{name} holds NaN or infinity in {bad.shape[0]} of {value.shape[0]} rows; the first is row "
                f"{int(bad[0, 0])}. Mend or remove those rows in both arrays."
            )


def _varying(rows: Tensor) -> Tensor:
    """Return the columns that hold more than one value."""
    if rows.shape[1] == 0:
        return rows
    varies = ~constant_columns(rows)
    return rows if bool(varies.all()) else rows[:, varies]


def _scaled(rows: Tensor, metric: Metric, scale: bool) -> tuple[Tensor, float]:
    """Return the rows centred (and scaled), and how far their columns were off centre in the units they are left in."""
    reach = rows.amax(dim=0) - rows.amin(dim=0)
    if not scale:
        mean = rows.mean(dim=0)
        return rows - mean, float(mean.abs().max())
    # Dividing by the range first keeps the squares of tiny and of huge columns inside float64.
    rows = rows / reach
    mean = rows.mean(dim=0)
    squares = rows.sub_(mean).square()
    deviation = squares.mean(dim=0).sqrt()
    torch.square(rows.div_(deviation), out=squares)
    norm = (squares.sum(dim=1) if metric == "euclidean" else squares.amax(dim=1)).mean().sqrt()
    return rows.div_(norm), float((mean / deviation).abs().max() / norm)


# ---------------------------------------------------------------------------------------------------- few columns


def _counts_by_tree(x: _Floats, y: _Floats, k: int, offset: float) -> tuple[_Integers, _Integers, _Integers]:
    """Count as the module says, by k-d trees under the Chebyshev metric."""
    points = np.concatenate([x, y], axis=1)
    # Samples that coincide are searched for once, and only k + 1 of them are kept as neighbours: further copies
    # change no k-th distance, but would turn one leaf of the tree into a search through all of them.
    first, codes, copies = _distinct(points)
    queries = points[first]
    tree = cKDTree(np.repeat(queries, np.minimum(copies, k + 1), axis=0), balanced_tree=False)
    distances = np.asarray(tree.query(queries, k=k + 1, p=np.inf, workers=torch.get_num_threads())[0])
    # Neighbours at equal distances come out unequal by the rounding of their columns, which this takes off.
    slack = 8 * _EPSILON * (np.abs(queries).max(axis=1) + distances[:, k] + offset)
    radius = np.maximum(distances[:, k] - slack, 0.0)
    joint = np.where(distances[:, k] > 0, (distances <= radius[:, None]).sum(axis=1), copies)
    radius = radius[codes]
    return joint[codes], _near(x, radius), _near(y, radius)


def _near(space: _Floats, radius: _Floats) -> _Integers:
    """Return how many samples lie within ``radius[i]`` of sample i, itself included."""
    if space.shape[1] == 1:
        return _near_on_line(space[:, 0], radius)
    counts = cKDTree(space).query_ball_point(
        space, radius, p=np.inf, return_length=True, workers=torch.get_num_threads()
    )
    return cast("_Integers", np.asarray(counts, dtype=np.int64))


def _near_on_line(values: _Floats, radius: _Floats) -> _Integers:
    order = np.argsort(values, kind="stable")
    ordered, reach = values[order], radius[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    distinct, below = ordered[starts], np.append(starts, values.shape[0])
    # Rounding of value ± radius can put a sample at distance radius on the wrong side of an edge. None is there: the
    # k-th neighbour is farther by more than that rounding, or the radius is 0 and nothing is rounded.
    low = np.searchsorted(distinct, ordered - reach, side="left")
    high = np.searchsorted(distinct, ordered + reach, side="right")
    counts = np.empty(values.shape[0], dtype=np.int64)
    counts[order] = below[high] - below[low]
    return counts


def _distinct(points: _Floats) -> tuple[_Integers, _Integers, _Integers]:
    """Return the first row of every distinct one, the distinct row each row is, and how often each occurs."""
    n = points.shape[0]
    codes = np.zeros(n, dtype=np.int64)
    count = 1
    for column in points.T:
        if np.unique(column).shape[0] == n:  # then all rows are distinct
            return np.arange(n), np.arange(n), np.ones(n, dtype=np.int64)
        values, inverse = np.unique(column, return_inverse=True)
        distinct, codes = np.unique(codes * values.shape[0] + inverse, return_inverse=True)
        count = distinct.shape[0]
    first = np.empty(count, dtype=np.int64)
    first[codes[::-1]] = np.arange(n)[::-1]
    return first, codes, np.bincount(codes, minlength=count)
