"""Standard errors by leaving out blocks of rows, for statistics that are no mean over rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mikit.core.errors import InputError

__all__ = ["jackknife_standard_error"]

_BLOCKS = 20


@torch.no_grad()
def jackknife_standard_error(
    statistic: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    groups: Tensor | None = None,
    fewest: int = 2,
) -> float | None:
    r"""Return the standard error of a statistic of two samples, from its values without one block of rows at a time.

    .. math:: \mathrm{SE}^2 = \frac{B - 1}{B} \sum_b (T_{-b} - \bar T)^2

    Samples of one size lose the same rows, because row ``i`` of both may belong to one input; those of different sizes
    lose rows in turn, and their variances add up. Two neighbouring rows always go together, so that what deals the rows
    alternately into halves deals the rest as before.

    Args:
        statistic: Takes both samples.
        x: First sample, ``(n, d_x)``.
        y: Second sample, ``(m, d_y)``.
        groups: Group of each row, as codes from 0; rows of one group go together. For samples of one size.
        fewest: Rows that the statistic needs.

    Returns:
        The standard error; infinity for a single group, None where too few rows would be left. For equal laws, where a
        distance of samples answers to pairs of rows, it is too large by up to a factor of root two.

    Raises:
        InputError: If groups come with samples of different sizes.

    Cost:
        The statistic twenty times, on all but a twentieth of the rows; more often where few rows can be spared.

    Source:
        Quenouille and Tukey; Efron and Stein (1981), "The jackknife estimate of variance", for its direction.
    """
    if x.shape[0] != y.shape[0]:
        if groups is not None:
            raise InputError(
                f"groups belong to rows of both samples, but x has {x.shape[0]} rows and y has {y.shape[0]}. Average "
                "the rows of each group first, or leave groups out."
            )
        own = _left_out(lambda kept: statistic(x[kept], y), _pairs(x, fewest))
        other = _left_out(lambda kept: statistic(x, y[kept]), _pairs(y, fewest))
        return None if own is None or other is None else math.sqrt(own + other)
    if groups is not None:
        codes = int(groups.max()) + 1
        if codes < 2:
            return math.inf
        blocks: Tensor | None = groups % min(codes, _BLOCKS)
        if x.shape[0] - int(torch.bincount(groups % min(codes, _BLOCKS)).max()) < fewest:
            blocks = None
    else:
        blocks = _pairs(x, fewest)
    variance = _left_out(lambda kept: statistic(x[kept], y[kept]), blocks)
    return None if variance is None else math.sqrt(variance)


def _pairs(sample: Tensor, fewest: int) -> Tensor | None:
    """Return the block of each row, of two rows at least; None if leaving out two leaves too few."""
    n = sample.shape[0]
    most = n // 2
    spare = n - fewest
    if spare < 2 or most < 2:
        return None
    blocks = min(max(_BLOCKS, math.ceil(n / spare)), most)
    codes = torch.arange(n, device=sample.device) // 2 % blocks
    return codes if int(torch.bincount(codes).max()) <= spare else torch.arange(n, device=sample.device) // 2 % most


def _left_out(statistic: Callable[[Tensor], Tensor], blocks: Tensor | None) -> float | None:
    if blocks is None:
        return None
    count = int(blocks.max()) + 1
    values = torch.stack([statistic(blocks != block).double() for block in range(count)])
    return float((values - values.mean()).square().sum() * (count - 1) / count)
