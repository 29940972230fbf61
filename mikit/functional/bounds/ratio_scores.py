"""JSD, NWJ, DV and SMILE for any critic, from the scores of all pairs: as one matrix or a block of rows at a time.

:mod:`mikit.functional.bounds.ratios` describes them, and computes them for the dot-product critic with their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus as softplus_of

from mikit.core import require
from mikit.functional.bounds.infonce_scores import require_pairs, score_block, square_scores
from mikit.functional.engine.pairwise import spans

__all__ = [
    "dv_from_scores",
    "dv_influence",
    "jsd_from_scores",
    "log_mean_ratios",
    "nwj_from_scores",
    "nwj_influence",
    "smile_from_scores",
    "smile_influence",
]


def jsd_from_scores(scores: Tensor) -> Tensor:
    """Return :func:`~mikit.functional.jsd` with critic scores ``(n, n)`` in place of dot products."""
    scores = square_scores(scores)
    with torch.autocast(scores.device.type, enabled=False):
        positives, others = scores.diagonal(), _off_diagonal(scores)
        return -softplus_of(-positives).mean() - softplus_of(others).mean() + 2 * math.log(2)


def nwj_from_scores(scores: Tensor) -> Tensor:
    """Return :func:`~mikit.functional.nwj` with critic scores ``(n, n)`` in place of dot products."""
    scores = square_scores(scores)
    with torch.autocast(scores.device.type, enabled=False):
        return scores.diagonal().mean() - (_off_diagonal(scores) - 1).exp().mean()


def dv_from_scores(scores: Tensor) -> Tensor:
    """Return :func:`~mikit.functional.dv` with critic scores ``(n, n)`` in place of dot products."""
    scores = square_scores(scores)
    with torch.autocast(scores.device.type, enabled=False):
        others = _off_diagonal(scores)
        return scores.diagonal().mean() - others.logsumexp(dim=0) + math.log(others.shape[0])


def smile_from_scores(scores: Tensor, *, clip: float = 5.0) -> Tensor:
    """Return :func:`~mikit.functional.smile` with critic scores ``(n, n)`` in place of dot products."""
    scores = square_scores(scores)
    require.positive(clip, "clip")
    with torch.autocast(scores.device.type, enabled=False):
        others = _off_diagonal(scores).clamp(-clip, clip)
        return scores.diagonal().mean() - others.logsumexp(dim=0) + math.log(others.shape[0])


def log_mean_ratios(
    score_rows: Callable[[int, int], Tensor], n: int, *, clip: float | None = None, strip: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return every sample's score as a pair, and the log mean ratio of its row and of its column as negatives.

    Formula: ``s_kk``, ``log (1/(n-1)) Σ_{j≠k} exp s_kj`` and ``log (1/(n-1)) Σ_{i≠k} exp s_ik``, three tensors ``(n,)``
    in float64 without gradient. ``score_rows(start, stop)`` returns the scores ``(stop - start, n)`` of these rows
    against all candidates; they may be overwritten. ``clip`` limits the exponents of the negatives.

    Example:
        >>> scores = torch.tensor([[3.0, 0.0], [1.0, 5.0]])
        >>> [part.tolist() for part in log_mean_ratios(lambda start, stop: scores[start:stop].clone(), 2)]
        [[3.0, 5.0], [0.0, 1.0], [1.0, 0.0]]
    """
    require_pairs(n)
    if clip is not None:
        require.positive(clip, "clip")
    positives, of_rows, of_columns = [], [], None
    with torch.no_grad():
        for part in spans(n, n, strip):
            block = score_block(score_rows, part)
            diagonal = block.diagonal(part.start)
            positives.append(diagonal.to(torch.float64, copy=True))
            if clip is not None:
                block = block.clamp(-clip, clip)
                diagonal = block.diagonal(part.start)
            diagonal.fill_(-math.inf)  # the positives are not among the negatives
            of_rows.append(block.logsumexp(dim=1).double())
            columns = block.logsumexp(dim=0).double()
            of_columns = columns if of_columns is None else torch.logaddexp(of_columns, columns)
        assert of_columns is not None
        return torch.cat(positives), torch.cat(of_rows) - math.log(n - 1), of_columns - math.log(n - 1)


def nwj_influence(score_rows: Callable[[int, int], Tensor], n: int, *, strip: int | None = None) -> Tensor:
    """Return each sample's influence on the bound of Nguyen, Wainwright and Jordan, ``(n,)``; the mean is the bound.

    Formula: ``s_kk - (r_k + c_k - U) / e`` with ``r_k`` and ``c_k`` the mean of ``exp s`` over the negatives in row and
    column ``k``, and ``U`` over all: a sample counts once as a positive and twice as a negative. It is the first-order
    projection of a U-statistic (Hoeffding, 1948) and misses variance of order ``1/n²``. Where a few samples dominate
    ``U``, the spread understates the error: such samples are missing from most batches. All values are minus infinity
    where the mean ratio overflows float64.
    """
    positives, of_rows, of_columns = log_mean_ratios(score_rows, n, strip=strip)
    of_rows, of_columns = (of_rows - 1).exp(), (of_columns - 1).exp()
    negatives = of_rows + of_columns - of_rows.mean()
    return positives - torch.where(of_rows.mean().isfinite(), negatives, math.inf)


def dv_influence(score_rows: Callable[[int, int], Tensor], n: int, *, strip: int | None = None) -> Tensor:
    """Return each sample's influence on the Donsker-Varadhan expression, ``(n,)``; the mean is the expression.

    Formula: ``s_kk - log U - (r_k + c_k) / U + 2`` with ``r_k``, ``c_k`` and ``U`` as in :func:`nwj_influence`: the
    delta method over the projection of a U-statistic. The upward bias of the logarithm, about half of the variance of
    the mean ratio over its square, is not included.
    """
    return _influence_on_logarithm(*log_mean_ratios(score_rows, n, strip=strip))


def smile_influence(
    score_rows: Callable[[int, int], Tensor], n: int, *, clip: float = 5.0, strip: int | None = None
) -> Tensor:
    """Return each sample's influence on the SMILE estimate, ``(n,)``; the mean is the estimate.

    It is :func:`dv_influence` with the exponents of the negatives clipped to ``[-clip, clip]``. The bias of the
    clipping is not included.
    """
    return _influence_on_logarithm(*log_mean_ratios(score_rows, n, clip=clip, strip=strip))


def _influence_on_logarithm(positives: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
    normalizer = of_rows.logsumexp(dim=0) - math.log(of_rows.shape[0])
    return positives - normalizer - (of_rows - normalizer).exp() - (of_columns - normalizer).exp() + 2


def _off_diagonal(scores: Tensor) -> Tensor:
    """Return the ``n (n - 1)`` scores off the diagonal."""
    n = scores.shape[0]
    # In the flattened matrix exactly n scores follow each diagonal one but the last. Reshaped without the first entry,
    # every row of n + 1 therefore ends with a diagonal one, and no mask is needed.
    return scores.flatten()[1:].view(n - 1, n + 1)[:, :-1].flatten()
