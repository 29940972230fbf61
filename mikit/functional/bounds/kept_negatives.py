"""Contrastive objectives over stacked matrices of scores in which some negatives are excluded.

The formulas are those of :mod:`mikit.functional.bounds.infonce_scores` and :mod:`mikit.functional.bounds.ratio_scores`,
with a mask of the combinations that are negatives, such as those with another label. There may be one matrix for each
position of a feature map.
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
    """Return a mask ``(n, n)`` of the negatives: not the diagonal, and no two rows with equal ``labels`` ``(n,)``.

    Labels on another device than the CPU, or in a compiled graph, are not checked for a negative that remains; without
    one the objectives are NaN.

    Example:
        >>> kept_negatives(3, torch.tensor([0, 1, 0])).int().tolist()
        [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    if labels is None:
        return ~torch.eye(n, dtype=torch.bool, device=device)
    if labels.ndim != 1 or labels.shape[0] != n:
        raise InputError(
            f"labels has shape {tuple(labels.shape)}, but there are {n} samples. Pass one class index per sample."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels has dtype {labels.dtype}; class indices are whole numbers, such as torch.long.")
    kept = labels[:, None] != labels[None, :]
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(kept.any()):
        raise InputError(
            f"All {n} samples have one label, so no negative is left once those of the same label are excluded. Use "
            "batches of several classes, or pass no labels."
        )
    return kept


def shifted_partners(kept: Tensor, shift: Tensor | int) -> tuple[Tensor, Tensor]:
    """Return for each row the one negative that a cyclic shift selects, ``(n,)``, and whether it has any, ``(n,)``.

    It is the first of ``i + shift, i + shift + 1, ...``, modulo n, that is a negative of ``i``; a row without negatives
    is its own partner. Where all others are negatives this is a derangement. ``shift`` is from 1 to ``n - 1``.

    Example:
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
    """Return the Jensen-Shannon objective with one negative per row, in expectation :func:`~mikit.functional.jsd`.

    ``positives`` and ``negatives`` are scores ``(n, p)``, one column per position; rows without a partner have no
    negative term.
    """
    weights = has.to(positives)
    missed = (softplus(negatives).mean(dim=1) * weights).sum() / weights.sum()
    return 2 * math.log(2) - softplus(-positives).mean() - missed


def jsd_with_kept(scores: Tensor, kept: Tensor) -> Tensor:
    """Return the Jensen-Shannon objective over the kept negatives, the mean over matrices of scores ``(p, n, n)``.

    Example:
        >>> from mikit.functional.bounds.ratio_scores import jsd_from_scores
        >>> scores = torch.randn(1, 4, 4)
        >>> bool(torch.allclose(jsd_with_kept(scores, kept_negatives(4)), jsd_from_scores(scores[0])))
        True
    """
    missed = torch.where(kept, softplus(scores), 0.0).sum() / (kept.sum() * scores.shape[0])
    return 2 * math.log(2) - softplus(-_positives(scores)).mean() - missed


def infonce_with_kept(scores: Tensor, kept: Tensor) -> Tensor:
    """Return InfoNCE in both directions, each row among its ``K_i`` kept negatives; the mean over ``(p, n, n)`` scores.

    Formula: ``mean_i s_ii - log (1/(1 + K_i)) (exp s_ii + Σ_j exp s_ij)``, averaged with the same for the transposed
    scores. It is a lower bound on the information where all negatives are kept, and a training objective otherwise.
    """
    n = scores.shape[-1]
    shown = kept | torch.eye(n, dtype=torch.bool, device=kept.device)
    candidates = shown.sum(dim=1).to(scores).log()
    masked = scores.masked_fill(~shown, -math.inf)
    spread = _positives(scores) - (masked.logsumexp(dim=-1) + masked.logsumexp(dim=-2)) / 2
    return (spread + candidates).mean()


def anchored_infonce_with_kept(scores: Tensor, kept: Tensor, *, relative_anchor: float = 4.0) -> Tensor:
    """Return the anchored InfoNCE objective, each row among its ``K_i`` kept negatives; the mean over ``(p, n, n)``.

    Formula: :func:`~mikit.functional.anchored_infonce` with ``K = K_i``, the anchor ``relative_anchor · K_i``, and the
    first kept negative after row i left out of the candidates. Rows without a negative do not contribute.

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
