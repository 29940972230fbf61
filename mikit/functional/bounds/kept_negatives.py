"""Contrastive objectives over stacked matrices of scores in which some of the negatives do not count.

The formulas are those of :mod:`mikit.functional.bounds.infonce_scores` and :mod:`mikit.functional.bounds.ratio_scores`,
except that a mask says which combinations are negatives: those with another label, say. One matrix may stand for each
position of a map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mikit.core.errors import InputError

__all__ = [
    "anchored_infonce_with_kept",
    "infonce_with_kept",
    "jsd_of_partners",
    "jsd_with_kept",
    "kept_negatives",
    "shifted_partners",
]


def kept_negatives(n: int, labels: Tensor | None = None, *, device: torch.device | None = None) -> Tensor:
    """Return which of the ``n²`` combinations are negatives: none on the diagonal, none of two rows with one label.

    Args:
        n: Number of rows.
        labels: Class indices ``(n,)``; None: all other rows are negatives.
        device: Where the mask is to be; that of the labels where there are any.

    Returns:
        Booleans ``(n, n)``.

    Raises:
        InputError: If the labels do not fit, or lie on the CPU and are all alike, so that no negative is left. Labels
            on another device, or in a compiled graph, are not looked at; the objectives are then nan.

    Example:
        >>> kept_negatives(3, torch.tensor([0, 1, 0])).int().tolist()
        [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    if labels is None:
        return ~torch.eye(n, dtype=torch.bool, device=device)
    if labels.ndim != 1 or labels.shape[0] != n:
        raise InputError(f"labels has shape {tuple(labels.shape)}, but there are {n} rows. Pass one class index a row.")
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels has dtype {labels.dtype}; class indices are whole numbers, such as torch.long.")
    kept = labels[:, None] != labels[None, :]
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(kept.any()):
        raise InputError(
            f"All {n} rows have one label, so no negative is left once those of the same label are excluded. Use "
            "batches of several classes, or pass no labels."
        )
    return kept


def shifted_partners(kept: Tensor, shift: Tensor | int) -> tuple[Tensor, Tensor]:
    """Return for each row the one negative that a cyclic shift gives it, and whether it has any.

    Formula: ``j(i)`` is the first of ``i + shift, i + shift + 1, ...``, modulo n, that is a negative of ``i``. Where
    all others are, that is ``i + shift`` itself: a derangement, with no row its own negative.

    Args:
        kept: Which combinations are negatives, ``(n, n)``.
        shift: From 1 to ``n - 1``; a number or a 0-dim tensor.

    Returns:
        Rows ``(n,)``, and booleans ``(n,)``. A row without any negative is its own partner, and marked False.

    Cost:
        ``O(n²)`` booleans.

    Example:
        >>> shifted_partners(kept_negatives(4), 1)[0].tolist()
        [1, 2, 3, 0]
        >>> shifted_partners(kept_negatives(4, torch.tensor([0, 0, 1, 1])), 1)[0].tolist()
        [2, 2, 0, 0]
    """
    rows = torch.arange(kept.shape[0], device=kept.device)
    candidates = (rows[:, None] + shift + rows[None, :]) % kept.shape[0]
    allowed = kept.gather(1, candidates)
    first = allowed.int().argmax(dim=1, keepdim=True)
    has = allowed.any(dim=1)
    return torch.where(has, candidates.gather(1, first)[:, 0], rows), has


def jsd_of_partners(positives: Tensor, negatives: Tensor, has: Tensor) -> Tensor:
    """Return the Jensen-Shannon objective with one negative a row.

    Formula: ``mean -log(1 + exp(-s⁺)) - mean log(1 + exp s⁻) + 2 log 2``, the second mean over rows that have a
    negative.

    Args:
        positives: Scores of pairs, ``(n, p)``, one column a position.
        negatives: Scores of each row with its partner, ``(n, p)``.
        has: Whether a row has a partner, ``(n,)``.

    Returns:
        0-dim.

    Unit: nats, of the Jensen-Shannon divergence.

    Kind: training objective, as :func:`~mikit.functional.jsd`: in expectation the two are the same.

    Example:
        >>> jsd_of_partners(torch.zeros(3, 1), torch.zeros(3, 1), torch.ones(3, dtype=torch.bool)).abs() < 1e-6
        tensor(True)
    """
    weights = has.to(positives)
    missed = (softplus(negatives).mean(dim=1) * weights).sum() / weights.sum()
    return 2 * math.log(2) - softplus(-positives).mean() - missed


def jsd_with_kept(scores: Tensor, kept: Tensor) -> Tensor:
    """Return the Jensen-Shannon objective whose second mean is over the kept negatives.

    Args:
        scores: ``(p, n, n)``, positives on the diagonals, student rows first.
        kept: Which combinations are negatives, ``(n, n)``.

    Returns:
        0-dim: the mean over the ``p`` matrices.

    Unit: nats, of the Jensen-Shannon divergence.

    Kind: training objective, as :func:`~mikit.functional.jsd`.

    Example:
        >>> scores = torch.randn(2, 4, 4)
        >>> from mikit.functional.bounds.ratio_scores import jsd_from_scores
        >>> whole = (jsd_from_scores(scores[0]) + jsd_from_scores(scores[1])) / 2
        >>> bool(torch.allclose(jsd_with_kept(scores, kept_negatives(4)), whole))
        True
    """
    missed = torch.where(kept, softplus(scores), 0.0).sum() / (kept.sum() * scores.shape[0])
    return 2 * math.log(2) - softplus(-_positives(scores)).mean() - missed


def infonce_with_kept(scores: Tensor, kept: Tensor) -> Tensor:
    """Return InfoNCE in both directions, each row among its own kept negatives.

    Formula: ``mean_i s_ii - log (1/(1 + K_i)) (exp s_ii + Σ_j exp s_ij)``, the sum over the ``K_i`` kept negatives,
    averaged with the same for the transposed scores.

    Args:
        scores: ``(p, n, n)``.
        kept: ``(n, n)``, symmetric.

    Returns:
        0-dim: the mean over the matrices.

    Unit: nats.

    Kind: lower bound on the information where all others are kept; a training objective otherwise.

    Example:
        >>> float(infonce_with_kept(torch.zeros(2, 5, 5), kept_negatives(5)))
        0.0
    """
    n = scores.shape[-1]
    shown = kept | torch.eye(n, dtype=torch.bool, device=kept.device)
    candidates = shown.sum(dim=1).to(scores).log()
    masked = scores.masked_fill(~shown, -math.inf)
    spread = _positives(scores) - (masked.logsumexp(dim=-1) + masked.logsumexp(dim=-2)) / 2
    return (spread + candidates).mean()


def anchored_infonce_with_kept(scores: Tensor, kept: Tensor, *, relative_anchor: float = 4.0) -> Tensor:
    """Return the anchored InfoNCE objective, each row among its own kept negatives.

    Formula: that of :func:`~mikit.functional.anchored_infonce` with ``K = K_i``, the number of kept negatives, the
    anchor ``relative_anchor · K_i``, and the first kept negative after row i left out of the candidates.

    Args:
        scores: ``(p, n, n)``.
        kept: ``(n, n)``. Rows without a negative do not count.
        relative_anchor: The anchor over the number of candidates, above 0.

    Returns:
        0-dim, below 0: the mean over the matrices.

    Unit: nats, of a classification's log-likelihood.

    Kind: training objective.

    Example:
        >>> from mikit.functional.bounds.infonce_scores import anchored_infonce_from_scores
        >>> scores = torch.randn(1, 4, 4)
        >>> whole = anchored_infonce_from_scores(scores[0], anchor=12.0)
        >>> bool(torch.allclose(anchored_infonce_with_kept(scores, kept_negatives(4)), whole))
        True
    """
    share = 1 / (1 + relative_anchor)
    left_out, has = shifted_partners(kept, 1)
    rows = torch.arange(kept.shape[0], device=kept.device)
    counts = kept.sum(dim=1).clamp(min=1)
    anchors = (relative_anchor * counts.to(scores)).log()
    others = kept & (left_out[:, None] != rows[None, :])
    floor = anchors.expand(scores.shape[:-1])
    shared = torch.cat([scores.masked_fill(~others, -math.inf), floor[..., None]], dim=-1).logsumexp(dim=-1)
    positives = _positives(scores)
    found = positives - torch.logaddexp(shared, positives)
    absent = anchors - torch.logaddexp(shared, scores[..., rows, left_out])
    terms = share * found + (1 - share) * absent
    weights = has.to(scores)
    return (terms.mean(dim=0) * weights).sum() / weights.sum()


def _positives(scores: Tensor) -> Tensor:
    return scores.diagonal(dim1=-2, dim2=-1)
