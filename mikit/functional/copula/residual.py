"""Compare the data with a sample drawn from a model of them, by nearest-neighbor estimates of information."""

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

__all__ = ["WIDEST_FOR_KSG", "WIDEST_FOR_WEIGHTED", "Residual", "leading_pairs", "neighbor_residual"]

WIDEST_FOR_KSG, WIDEST_FOR_WEIGHTED = 20, 8
"""Most columns of both sides together for KSG, and for weighted Kozachenko-Leonenko entropies."""

_MOST_ROWS = 20_000
_MOST_TIED = 0.02


@final
@dataclass(frozen=True)
class Residual:
    """The nearest-neighbor information of the data minus that of a drawn sample.

    Attributes:
        value: In nats.
        error: Its standard error, computed as if no two rows shared neighbors.
        method: ``"weighted"`` or ``"ksg"``.
    """

    value: float
    error: float
    method: str


def neighbor_residual(x: Tensor, y: Tensor, rows: Tensor, partners: Tensor) -> Residual | None:
    r"""Return the difference of nearest-neighbor information between the data and drawn pairings of the same rows.

    .. math:: \hat I(x_i; y_i) - \frac1k \sum_{j=1}^k \hat I(x_i; y_{\sigma_j(i)})

    ``rows (m,)`` are row numbers, of which the first 20,000 are used; ``partners (m, k)`` are the ``y`` rows drawn for
    each, in each of ``k`` draws. None with more than 20 columns in total. It costs ``1 + k`` nearest-neighbor
    estimates.

    What lies far from the drawn sample in many columns is only partly detected. If the drawn sample has too little
    dependence, some of the bias of the data remains.
    """
    # Both samples have the same marginals, so only their joint entropies differ. The bias of nearest-neighbor estimates
    # grows with the dependence and with the columns; it cancels as far as the two joint distributions are alike. The
    # weighted entropies have less bias but need a density, hence few columns and few ties; counting needs neither.
    width = x.shape[1] + y.shape[1]
    if width > WIDEST_FOR_KSG:
        return None
    rows, partners = rows[:_MOST_ROWS], partners[:_MOST_ROWS]
    if width <= WIDEST_FOR_WEIGHTED and max(_tied(x), _tied(y)) <= _MOST_TIED:
        try:
            return _residual(x, y, rows, partners, weighted_kl_pointwise, "weighted")
        except InputError:  # Columns that determine each other have no joint density.
            pass
    return _residual(x, y, rows, partners, partial(ksg_pointwise, k=1), "ksg")


def leading_pairs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the normal scores ``(n, r)`` of each side's correlated canonical pairs, if there are at most four.

    ``x`` and ``y`` are normal scores, and ``r`` comes from Bartlett's sequential test (1941). None if no pair is
    correlated or more than four are. The directions are fitted on the samples they are evaluated on, which matters
    unless there are far fewer columns than samples. ``O(n d² + d³)`` time.
    """
    # By data processing the leading pairs share at most the information that all columns share. Where the dependence is
    # confined to a few directions they share all of it, in few enough columns for nearest neighbors.
    form = canonical_form(x, y)
    rank = bartlett_rank(form.correlations, x.shape[0], x.shape[1], y.shape[1])
    if not 1 <= rank <= WIDEST_FOR_WEIGHTED // 2:
        return None
    sides = ((x, form.mean_x, form.directions_x), (y, form.mean_y, form.directions_y))
    first, second = (rank_gaussianise((side.double() - mean) @ axes[:, :rank]) for side, mean, axes in sides)
    return first, second


def _residual(
    x: Tensor, y: Tensor, rows: Tensor, partners: Tensor, pointwise: Callable[[Tensor, Tensor], Tensor], method: str
) -> Residual:
    data = pointwise(x[rows], y[rows])
    sampled = torch.stack([pointwise(x[rows], y[drawn]) for drawn in partners.T]).mean(0)
    error = float(((data.var() + sampled.var()) / data.shape[0]).sqrt())
    return Residual(float(data.mean() - sampled.mean()), error, method)


def _tied(rows: Tensor) -> float:
    """Return the largest fraction of the entries of a column that repeat another entry."""
    ordered = rows.sort(dim=0).values
    return float((ordered[1:] == ordered[:-1]).double().mean(0).max())
