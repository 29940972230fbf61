"""Standard errors by leaving out blocks of samples, for statistics that are not means over samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mikit.core.rows import require_common_groups

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
    """Return the block jackknife's standard error of ``statistic(x, y)``, which needs ``fewest`` rows.

    ``SE² = (B - 1)/B Σ_b (T_{-b} - T̄)²`` over ``B`` blocks, 20 where enough rows can be spared. Rows of one group are
    left out together. Infinity for a single group; None if too few rows would be left.

    Pitfalls:
        For equal distributions a distance depends on pairs of rows, and the error is too large by up to ``√2``.

    Source:
        Quenouille and Tukey; Efron and Stein (1981), "The jackknife estimate of variance", for its direction.
    """
    require_common_groups(x, y, groups)
    if x.shape[0] != y.shape[0]:
        # Samples of different sizes have no common rows, so they are independent and their variances add up.
        of_x = _variance(lambda kept: statistic(x[kept], y), _blocks_of_pairs(x, fewest))
        of_y = _variance(lambda kept: statistic(x, y[kept]), _blocks_of_pairs(y, fewest))
        return None if of_x is None or of_y is None else math.sqrt(of_x + of_y)
    if groups is None:
        blocks = _blocks_of_pairs(x, fewest)
    elif int(groups.max()) == 0:
        return math.inf
    else:
        codes = groups % min(int(groups.max()) + 1, _BLOCKS)
        blocks = codes if x.shape[0] - int(torch.bincount(codes).max()) >= fewest else None
    # Samples of one size lose the same rows, because row i of both may come from the same input.
    variance = _variance(lambda kept: statistic(x[kept], y[kept]), blocks)
    return None if variance is None else math.sqrt(variance)


def _blocks_of_pairs(sample: Tensor, fewest: int) -> Tensor | None:
    """Return the block of each row; None if too few rows would be left without one of the blocks."""
    n = sample.shape[0]
    most = n // 2
    spare = n - fewest
    if spare < 2 or most < 2:
        return None
    # Rows 2i and 2i + 1 share a block. A debiased discrepancy compares the even rows with the odd ones; without one row
    # of a pair, all later rows would change sides, and the values without a block would differ for that reason alone.
    pairs = torch.arange(n, device=sample.device) // 2
    # More blocks than 20 where few rows can be spared: then each block has fewer rows.
    codes = pairs % min(max(_BLOCKS, math.ceil(n / spare)), most)
    return codes if int(torch.bincount(codes).max()) <= spare else pairs % most


def _variance(statistic: Callable[[Tensor], Tensor], blocks: Tensor | None) -> float | None:
    """Return the jackknife variance of a statistic of the rows that are kept; None without blocks."""
    if blocks is None:
        return None
    count = int(blocks.max()) + 1
    values = torch.stack([statistic(blocks != block).double() for block in range(count)])
    # Any two of these samples share most of their rows, so their values are close; the factor of about ``count`` in
    # place of 1 / (count - 1) makes up for it.
    return float((values - values.mean()).square().sum() * (count - 1) / count)
