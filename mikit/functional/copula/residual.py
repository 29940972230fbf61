"""What nearest neighbours see in data beyond a sample drawn from a model of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.gaussian.canonical import bartlett_rank, canonical_form, rank_gaussianise
from mikit.functional.neighbors.entropy import weighted_kl_pointwise
from mikit.functional.neighbors.ksg import ksg_pointwise

__all__ = ["WIDEST_FOR_KSG", "WIDEST_FOR_WEIGHTED", "Residual", "leading_pairs", "neighbour_residual"]

WIDEST_FOR_KSG, WIDEST_FOR_WEIGHTED = 20, 8
"""Columns of both sides up to which neighbours are asked by KSG, and by weighted Kozachenko-Leonenko entropies."""

_MOST_ROWS = 20_000
_MOST_TIED = 0.02


@final
@dataclass(frozen=True)
class Residual:
    """The information of the data less that of a drawn sample, as neighbours see both.

    Attributes:
        value: In nats.
        error: Its standard error, as if neighbours were not shared.
        method: ``"weighted"`` or ``"ksg"``.
    """

    value: float
    error: float
    method: str


def neighbour_residual(x: Tensor, y: Tensor, rows: Tensor, partners: Tensor) -> Residual | None:
    r"""Return the difference of nearest-neighbour information between data and a drawn pairing of the same rows.

    .. math:: \hat I(x_i; y_i) - \frac1k \sum_{j=1}^k \hat I(x_i; y_{\sigma_j(i)})

    Both samples have the same marginals, so only the joint entropies differ; the bias of neighbours, which grows with
    the dependence and the columns, cancels as far as the two joint laws are alike. With up to 8 columns and few ties
    the weighted Kozachenko-Leonenko entropies are compared, with up to 20 KSG of one neighbour, and above that nothing.

    Args:
        x: ``(n, d_x)``.
        y: ``(n, d_y)``.
        rows: ``(m,)``, row numbers; the first 20,000 are used.
        partners: ``(m, k)``, the row of ``y`` that was drawn for each, in each of ``k`` draws.

    Returns:
        The residual; None with more than 20 columns in all.

    Raises:
        InputError: If there are too few rows for the neighbours.

    Cost:
        ``1 + k`` estimates by neighbours.

    Pitfalls:
        What lies far from the drawn sample in many columns is seen in part only. A drawn sample with too little
        dependence leaves the bias of the data uncancelled.

    Source:
        mikit's own.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(800, 1, generator=g)
        >>> rows = torch.arange(800)
        >>> found = neighbour_residual(x, x.abs() + 0.5 * torch.randn(800, 1, generator=g), rows, rows.flip(0)[:, None])
        >>> found.method, found.value > 0.3
        ('weighted', True)
    """
    width = x.shape[1] + y.shape[1]
    if width > WIDEST_FOR_KSG:
        return None
    rows, partners = rows[:_MOST_ROWS], partners[:_MOST_ROWS]
    if width <= WIDEST_FOR_WEIGHTED and max(_tied(x), _tied(y)) <= _MOST_TIED:
        try:
            return _residual(x, y, rows, partners, weighted_kl_pointwise, "weighted")
        except InputError:  # Columns that follow from each other have no density; counting needs none.
            pass
    return _residual(x, y, rows, partners, partial(ksg_pointwise, k=1), "ksg")


def leading_pairs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the normal scores of the canonical pairs that are correlated, where they are few enough for neighbours.

    What the leading pairs say of each other is at most what all columns do, and where dependence is confined to a few
    directions it is all of it.

    Args:
        x: ``(n, d_x)``, normal scores.
        y: ``(n, d_y)``.

    Returns:
        ``(n, r)`` of each side with ``r`` by Bartlett's test; None if no pair is correlated or more than four are.

    Raises:
        InputError: If a linear combination of ``x`` equals one of ``y`` exactly.

    Cost:
        ``O(n d² + d³)``.

    Pitfalls:
        The directions are fitted on the rows they are read on, which matters where columns are not far fewer than rows.

    Source:
        Bartlett's sequential test (1941) for the rank.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(800, 12, generator=g)
        >>> y = torch.cat([x[:, :1], torch.randn(800, 11, generator=g)], 1) + torch.randn(800, 12, generator=g)
        >>> leading_pairs(x, y)[0].shape
        torch.Size([800, 1])
    """
    form = canonical_form(x, y)
    rank = bartlett_rank(form.correlations, x.shape[0], x.shape[1], y.shape[1])
    if not 1 <= rank <= WIDEST_FOR_WEIGHTED // 2:
        return None
    sides = ((x, form.mean_x, form.directions_x), (y, form.mean_y, form.directions_y))
    own, other = (rank_gaussianise((side.double() - mean) @ directions[:, :rank]) for side, mean, directions in sides)
    return own, other


def _residual(
    x: Tensor, y: Tensor, rows: Tensor, partners: Tensor, reading: Callable[[Tensor, Tensor], Tensor], method: str
) -> Residual:
    own = reading(x[rows], y[rows])
    other = torch.stack([reading(x[rows], y[drawn]) for drawn in partners.T]).mean(0)
    error = float(((own.var() + other.var()) / own.shape[0]).sqrt())
    return Residual(float(own.mean() - other.mean()), error, method)


def _tied(rows: Tensor) -> float:
    """Return the largest share of entries of a column that repeat another."""
    ordered = rows.sort(dim=0).values
    return float((ordered[1:] == ordered[:-1]).double().mean(0).max())
