"""Contrastive bounds for any critic, from the scores of all pairs: as one matrix or a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.engine.pairwise import spans
from mikit.functional.engine.samples import working_dtype

__all__ = [
    "anchored_infonce_from_scores",
    "infonce_from_scores",
    "infonce_influence",
    "require_pairs",
    "score_block",
    "square_scores",
]


def infonce_from_scores(scores: Tensor, *, both_directions: bool = False) -> Tensor:
    """Return the InfoNCE bound for given critic scores.

    Formula: ``(1/n) Σ_i [ s_ii - log (1/n) Σ_j exp s_ij ] <= log n``.

    Args:
        scores: ``(n, n)``, scores of all pairs with the positives on the diagonal; row ``i`` contains the candidates
            for ``x_i``.
        both_directions: Whether to average with the same expression for the transposed scores.

    Returns:
        0-dim, in nats.

    Unit: nats.

    Kind: lower bound in expectation, on rows that the critic was not fitted to.

    Raises:
        InputError: If the scores are not square or ``n < 2``.

    Cost:
        ``O(n²)`` time and memory.

    Pitfalls:
        As :func:`infonce`. To exclude a candidate (a second view of the same item) set its score to ``-inf``.

    Source:
        van den Oord, Li, Vinyals, 2018.

    Example:
        >>> float(infonce_from_scores(torch.zeros(5, 5)))  # an uninformative critic
        0.0
    """
    scores = square_scores(scores)
    with torch.autocast(scores.device.type, enabled=False):
        terms = _row_terms(scores)
        return (0.5 * (terms + _row_terms(scores.T)) if both_directions else terms).mean()


def anchored_infonce_from_scores(scores: Tensor, *, anchor: float = 1.0) -> Tensor:
    """Return :func:`~mikit.functional.anchored_infonce` with critic scores ``(n, n)`` in place of dot products."""
    scores = square_scores(scores, fewest=3)
    require.positive(anchor, "anchor")
    n = scores.shape[0]
    share = (n - 1) / (n - 1 + anchor)
    rows = torch.arange(n, device=scores.device)
    left_out = (rows + 1) % n
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    hidden[rows, rows] = hidden[rows, left_out] = True
    with torch.autocast(scores.device.type, enabled=False):
        level = scores.new_full((n, 1), math.log(anchor))
        shared = torch.cat([scores.masked_fill(hidden, -math.inf), level], dim=1).logsumexp(dim=1)
        positives = scores.diagonal()
        found = positives - torch.logaddexp(shared, positives)
        absent = math.log(anchor) - torch.logaddexp(shared, scores[rows, left_out])
        return (share * found + (1 - share) * absent).mean()


def infonce_influence(
    score_rows: Callable[[int, int], Tensor], n: int, *, both_directions: bool = False, strip: int | None = None
) -> Tensor:
    """Return each sample's influence on the InfoNCE bound, ``(n,)``; the mean is the bound, the spread its error.

    Formula: ``s_kk - log (1/n) Σ_j exp s_kj - (w_k - 1)`` with ``w_k = Σ_i softmax_j(s_ij)_k``, which has mean 1:
    sample ``k`` as a positive, and as a negative of all others. It is the functional delta method (von Mises
    expansion), of first order: it misses variance of order ``1/n²``, and the variance from fitting the critic.

    ``score_rows(start, stop)`` returns the scores ``(stop - start, n)`` of these rows against all candidates. It is
    called for all rows once, or twice with ``both_directions``.
    """
    require_pairs(n)
    with torch.no_grad():
        row_terms, row_weights, positives, column_lse = [], None, [], None
        parts = list(spans(n, n, strip))
        for part in parts:
            block = score_block(score_rows, part)
            positive = block.diagonal(part.start)
            lse = block.logsumexp(dim=1)
            weights = (block - lse[:, None]).exp_().sum(dim=0)
            row_weights = weights if row_weights is None else row_weights + weights
            row_terms.append(positive - lse + math.log(n))
            positives.append(positive)
            if both_directions:
                columns = block.logsumexp(dim=0)
                column_lse = columns if column_lse is None else torch.logaddexp(column_lse, columns)
        assert row_weights is not None
        influence = torch.cat(row_terms) - (row_weights - 1)
        if column_lse is None:
            return influence
        # The weights over columns need the normalizers of whole columns, which are known after the first pass only.
        blocks = (score_block(score_rows, part) for part in parts)
        sums = [(block - column_lse).exp_().sum(dim=1) for block in blocks]
        other = torch.cat(positives) - column_lse + math.log(n) - (torch.cat(sums) - 1)
        return 0.5 * (influence + other)


def _row_terms(scores: Tensor) -> Tensor:
    return scores.diagonal() - scores.logsumexp(dim=1) + math.log(scores.shape[1])


def score_block(score_rows: Callable[[int, int], Tensor], rows: slice) -> Tensor:
    """Return the scores of a block of rows, in float32 at least."""
    block = score_rows(rows.start, rows.stop)
    return block.to(working_dtype(block))


def square_scores(scores: Tensor, *, fewest: int = 2) -> Tensor:
    """Return the scores in float32 at least; raise unless they are ``(n, n)`` with ``n >= fewest``."""
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise InputError(f"scores has shape {tuple(scores.shape)}; a contrast needs one score for every pair, (n, n).")
    require_pairs(scores.shape[0], fewest)
    return scores.to(working_dtype(scores))


def require_pairs(n: int, fewest: int = 2) -> None:
    """Require at least ``fewest`` pairs of rows."""
    if n < fewest:
        raise InputError(
            f"There {'is' if n == 1 else 'are'} {n} pair{'s' * (n != 1)} of samples; a contrast needs at least "
            f"{fewest}, so that every positive has negatives."
        )
