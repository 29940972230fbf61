"""Contrastive bounds for any critic: from the scores of all pairs, as one matrix or a strip of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.pairwise import spans
from mikit.functional.engine.samples import working_dtype

__all__ = [
    "anchored_infonce_from_scores",
    "infonce_from_scores",
    "infonce_influence",
    "infonce_pointwise_from_scores",
    "infonce_row_terms",
    "require_pairs",
    "score_strip",
    "square_scores",
]


def infonce_from_scores(scores: Tensor, *, both_directions: bool = False) -> Tensor:
    """Return the InfoNCE bound for given critic scores.

    Formula: ``(1/n) Σ_i [ s_ii - log (1/n) Σ_j exp s_ij ] <= log n``.

    Args:
        scores: ``(n, n)``, scores of all pairs with the positives on the diagonal; row ``i`` holds the candidates
            for ``x_i``.
        both_directions: Whether to average with the same expression for the transposed scores.

    Returns:
        0-dim, in nats.

    Unit: nats.

    Kind: lower bound in expectation, on rows that did not fit the critic.

    Raises:
        InputError: If the scores are not square or ``n < 2``.

    Cost:
        ``O(n²)`` time and memory.

    Pitfalls:
        As :func:`infonce`. To leave a candidate out (a second view of the same item) set its score to ``-inf``.

    Source:
        van den Oord, Li, Vinyals, 2018.

    Example:
        >>> float(infonce_from_scores(torch.zeros(5, 5)))  # a critic that sees nothing
        0.0
    """
    return infonce_pointwise_from_scores(scores, both_directions=both_directions).mean()


def infonce_pointwise_from_scores(scores: Tensor, *, both_directions: bool = False) -> Tensor:
    """Return the rows' terms of :func:`infonce_from_scores`; their mean is the bound.

    Args:
        scores: ``(n, n)`` with the positives on the diagonal.
        both_directions: Whether to average both directions.

    Returns:
        ``(n,)``, in nats.

    Unit: nats.

    Kind: terms of a lower bound; see :func:`infonce_from_scores`.

    Raises:
        InputError: If the scores are not square or ``n < 2``.

    Cost:
        ``O(n²)`` time and memory.

    Pitfalls:
        The terms share their negatives; see :func:`infonce_influence` for a standard error.

    Source:
        van den Oord, Li, Vinyals, 2018.

    Example:
        >>> infonce_pointwise_from_scores(torch.zeros(3, 3)).tolist()
        [0.0, 0.0, 0.0]
    """
    scores = square_scores(scores)
    with torch.autocast(scores.device.type, enabled=False):
        terms = infonce_row_terms(scores, 0)
        return 0.5 * (terms + infonce_row_terms(scores.T, 0)) if both_directions else terms


def anchored_infonce_from_scores(scores: Tensor, *, anchor: float = 1.0) -> Tensor:
    """Return the anchored InfoNCE objective for given critic scores.

    Formula: that of :func:`~mikit.functional.anchored_infonce`, with these scores in place of dot products.

    Args:
        scores: ``(n, n)``, scores of all pairs with the positives on the diagonal.
        anchor: The constant ``ν > 0``.

    Returns:
        0-dim, to be maximised, below 0.

    Unit: nats, of a classification's log-likelihood.

    Kind: training objective; no estimate of information.

    Raises:
        InputError: If the scores are not square, ``n < 3``, or the anchor is not positive.

    Cost:
        ``O(n²)`` time and memory.

    Pitfalls:
        As :func:`~mikit.functional.anchored_infonce`.

    Source:
        As :func:`~mikit.functional.anchored_infonce`.

    Example:
        >>> anchored_infonce_from_scores(9 * torch.eye(4)) > anchored_infonce_from_scores(torch.eye(4))
        tensor(True)
    """
    scores = square_scores(scores, fewest=3)
    if not 0 < anchor < math.inf:
        raise InputError(f"anchor is {anchor}; it must be positive and finite.")
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
    """Return each sample's influence on the InfoNCE bound; the mean is the bound, the spread its sampling error.

    Formula: ``s_kk - log (1/n) Σ_j exp s_kj - (w_k - 1)`` with ``w_k = Σ_i softmax_j(s_ij)_k``, which has mean 1: the
    first part is sample ``k`` as a positive, the second as everybody's negative.

    Args:
        score_rows: Maps ``start, stop`` to scores ``(stop - start, n)`` of these rows against all ``n`` candidates.
        n: Number of samples.
        both_directions: Whether to average both directions; needs a second pass over the scores.
        strip: Rows asked for at once.

    Returns:
        ``(n,)``, in nats, without gradient.

    Unit: nats.

    Kind: influence contributions of a lower bound.

    Raises:
        InputError: If ``n < 2``.

    Cost:
        One pass over all ``n²`` scores, two for both directions; ``O(strip · n)`` memory.

    Pitfalls:
        First order: it leaves out the part of the variance that falls with ``1/n²``. It speaks of the sample the bound
        is evaluated on, not of how the critic came about.

    Source:
        The functional delta method (von Mises expansion) applied to the bound.

    Example:
        >>> scores = torch.eye(4)
        >>> terms = infonce_influence(lambda start, stop: scores[start:stop], 4)
        >>> bool(torch.allclose(terms.mean(), infonce_from_scores(scores)))
        True
    """
    require_pairs(n)
    with torch.no_grad():
        row_terms, row_weights, positives, column_lse = [], None, [], None
        parts = list(spans(n, n, strip))
        for part in parts:
            block = score_strip(score_rows, part)
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
        blocks = (score_strip(score_rows, part) for part in parts)
        sums = [(block - column_lse).exp_().sum(dim=1) for block in blocks]
        other = torch.cat(positives) - column_lse + math.log(n) - (torch.cat(sums) - 1)
        return 0.5 * (influence + other)


def infonce_row_terms(block: Tensor, start: int) -> Tensor:
    """Return ``s_ii - log mean_j exp s_ij`` for a strip of rows that begins at row ``start``."""
    return block.diagonal(start) - block.logsumexp(dim=1) + math.log(block.shape[1])


def score_strip(score_rows: Callable[[int, int], Tensor], rows: slice) -> Tensor:
    """Return the scores of a strip of rows, in float32 at least."""
    block = score_rows(rows.start, rows.stop)
    return block.to(working_dtype(block))


def square_scores(scores: Tensor, *, fewest: int = 2) -> Tensor:
    """Return scores of all pairs in float32 at least; refuse what is not ``(n, n)`` with ``n >= fewest``."""
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise InputError(f"scores has shape {tuple(scores.shape)}; a contrast needs one score for every pair, (n, n).")
    require_pairs(scores.shape[0], fewest)
    return scores.to(working_dtype(scores))


def require_pairs(n: int, fewest: int = 2) -> None:
    """Refuse fewer than ``fewest`` pairs of rows."""
    if n < fewest:
        raise InputError(
            f"There {'is' if n == 1 else 'are'} {n} pair{'s' * (n != 1)} of rows; a contrast takes at least {fewest}, "
            "so that every positive has its negatives."
        )
