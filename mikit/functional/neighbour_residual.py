"""What nearest neighbours see in data beyond a sample drawn from a model of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from mikit.errors import InputError
from mikit.functional.nearest_entropy import weighted_kl_pointwise
from mikit.functional.neighbors import ksg_pointwise

__all__ = ["Residual", "neighbour_residual"]

_WIDEST_FOR_KSG, _WIDEST_FOR_WEIGHTED = 20, 8
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

    .. math:: \hat I(x_i; y_i) - \hat I(x_i; y_{\sigma(i)})

    Both samples have the same marginals, so only the joint entropies differ; the bias of neighbours, which grows with
    the dependence and the columns, cancels as far as the two joint laws are alike. With up to 8 columns and few ties
    the weighted Kozachenko-Leonenko entropies are compared, with up to 20 KSG of one neighbour, and above that nothing.

    Args:
        x: ``(n, d_x)``.
        y: ``(n, d_y)``.
        rows: ``(m,)``, row numbers; the first 20,000 are used.
        partners: ``(m,)``, the row of ``y`` that was drawn for each.

    Returns:
        The residual; None with more than 20 columns in all.

    Raises:
        InputError: If there are too few rows for the neighbours.

    Cost:
        Two estimates by neighbours.

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
        >>> found = neighbour_residual(x, x.abs() + 0.5 * torch.randn(800, 1, generator=g), rows, rows.flip(0))
        >>> found.method, found.value > 0.3
        ('weighted', True)
    """
    width = x.shape[1] + y.shape[1]
    if width > _WIDEST_FOR_KSG:
        return None
    rows, partners = rows[:_MOST_ROWS], partners[:_MOST_ROWS]
    data, drawn = (x[rows], y[rows]), (x[rows], y[partners])
    if width <= _WIDEST_FOR_WEIGHTED and max(_tied(x), _tied(y)) <= _MOST_TIED:
        try:
            return _residual(weighted_kl_pointwise(*data), weighted_kl_pointwise(*drawn), "weighted")
        except InputError:  # Columns that follow from each other have no density; counting needs none.
            pass
    return _residual(ksg_pointwise(*data, 1), ksg_pointwise(*drawn, 1), "ksg")


def _residual(own: Tensor, other: Tensor, method: str) -> Residual:
    error = float(((own.var() + other.var()) / own.shape[0]).sqrt())
    return Residual(float(own.mean() - other.mean()), error, method)


def _tied(rows: Tensor) -> float:
    """Return the largest share of entries of a column that repeat another."""
    ordered = rows.sort(dim=0).values
    return float((ordered[1:] == ordered[:-1]).double().mean(0).max())
