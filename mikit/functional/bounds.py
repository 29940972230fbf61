"""Contrastive bounds on mutual information, streamed in strips of rows so that no n x n tensor is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mikit.errors import InputError

__all__ = [
    "infonce",
    "infonce_from_scores",
    "infonce_influence",
    "infonce_pointwise",
    "infonce_pointwise_from_scores",
]

# Scores held at once. Larger strips do not run faster on a CPU; a GPU needs more work per launch.
_STRIP_ENTRIES_CPU = 2**22
_STRIP_ENTRIES_GPU = 2**26


def infonce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    both_directions: bool = False,
    strip: int | None = None,
) -> Tensor:
    """Return the InfoNCE bound for the dot-product critic ``s_ij = x_i . y_j / temperature``.

    Formula: ``(1/n) Σ_i [ s_ii - log (1/n) Σ_j exp s_ij ] <= log n``. With ``both_directions`` the mean of this and the
    same expression for the transposed scores.

    Args:
        x: Embeddings ``(n, d)``; row ``i`` belongs to row ``i`` of ``y``.
        y: Embeddings ``(n, d)``.
        temperature: What scores are divided by; a positive number or a 0-dim tensor, which may be learned.
        both_directions: Whether to average the choice of ``y`` given ``x`` with that of ``x`` given ``y``.
        strip: Rows of scores held at once; chosen from the device by default. It changes memory, not the value.

    Returns:
        0-dim, in nats. The loss to minimise is its negative.

    Unit: nats.

    Kind: lower bound on ``I(x; y)``, in expectation, on rows that did not choose the embeddings. On rows that did, it
    bounds nothing.

    Raises:
        InputError: If the shapes are not two equal ``(n, d)`` with ``n >= 2``, or the temperature is not positive.

    Cost:
        ``O(n² d)`` time in three matrix products for value and gradient together (six for both directions), no second
        pass in ``backward``; ``O(strip · n + n d)`` memory. Not twice differentiable.

    Pitfalls:
        The value cannot pass ``log n`` and is biased low well before it. It depends on ``n``, so values from different
        batch sizes do not compare. The positive is among the ``n`` candidates.

    Source:
        van den Oord, Li, Vinyals, 2018, written as a bound. The gradient is formed strip by strip in ``forward``: a
        strip of rows holds its whole softmax.

    Example:
        >>> x = torch.eye(4) * 100  # every row finds its partner with certainty
        >>> round(float(infonce(x, x)), 4) == round(math.log(4), 4)
        True
    """
    a, b = _embeddings(x, y, temperature)
    rows = _strip_rows(a.shape[0], a.device, strip)
    with torch.autocast(a.device.type, enabled=False):
        value = _mean_bound(a, b, rows)
        if both_directions:
            value = 0.5 * (value + _mean_bound(b, a, rows))
    return value


def infonce_pointwise(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    both_directions: bool = False,
    strip: int | None = None,
) -> Tensor:
    """Return the rows' terms of :func:`infonce`, ``s_ii - log (1/n) Σ_j exp s_ij``; their mean is the bound.

    Args:
        x: Embeddings ``(n, d)``.
        y: Embeddings ``(n, d)``.
        temperature: What scores are divided by.
        both_directions: Whether to average both directions.
        strip: Rows of scores held at once.

    Returns:
        ``(n,)``, in nats.

    Unit: nats.

    Kind: terms of a lower bound; see :func:`infonce`.

    Raises:
        InputError: As :func:`infonce`.

    Cost:
        ``O(n² d)`` time and ``O(strip · n)`` memory without gradients. With gradients autograd keeps all strips, so
        ``O(n²)`` memory: differentiate :func:`infonce` instead.

    Pitfalls:
        The terms share their negatives, so their spread is not the sampling error of the mean:
        :func:`infonce_influence` is.

    Source:
        As :func:`infonce`.

    Example:
        >>> x = torch.eye(3)
        >>> bool(torch.allclose(infonce_pointwise(x, x).mean(), infonce(x, x)))
        True
    """
    a, b = _embeddings(x, y, temperature)
    n = a.shape[0]
    rows = _strip_rows(n, a.device, strip)
    with torch.autocast(a.device.type, enabled=False):
        terms = torch.cat([_row_terms(a[s:e] @ b.T, s) for s, e in _spans(n, rows)])
        if both_directions:
            terms = 0.5 * (terms + torch.cat([_row_terms(b[s:e] @ a.T, s) for s, e in _spans(n, rows)]))
    return terms


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
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise InputError(f"scores has shape {tuple(scores.shape)}; InfoNCE needs one score for every pair, (n, n).")
    _require_negatives(scores.shape[0])
    with torch.autocast(scores.device.type, enabled=False):
        scores = _at_least_float32(scores)
        terms = _row_terms(scores, 0)
        return 0.5 * (terms + _row_terms(scores.T, 0)) if both_directions else terms


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
    _require_negatives(n)
    with torch.no_grad():
        row_terms, row_weights, positives, column_lse = [], None, [], None
        rows = strip or max(1, min(n, _STRIP_ENTRIES_CPU // n))
        for start, stop in _spans(n, rows):
            scores = _at_least_float32(score_rows(start, stop))
            positive = scores.diagonal(start)
            lse = scores.logsumexp(dim=1)
            weights = (scores - lse[:, None]).exp_().sum(dim=0)
            row_weights = weights if row_weights is None else row_weights + weights
            row_terms.append(positive - lse + math.log(n))
            positives.append(positive)
            if both_directions:
                columns = scores.logsumexp(dim=0)
                column_lse = columns if column_lse is None else torch.logaddexp(column_lse, columns)
        assert row_weights is not None
        influence = torch.cat(row_terms) - (row_weights - 1)
        if column_lse is None:
            return influence
        spans = _spans(n, rows)
        sums = [(_at_least_float32(score_rows(s, e)) - column_lse).exp_().sum(dim=1) for s, e in spans]
        other = torch.cat(positives) - column_lse + math.log(n) - (torch.cat(sums) - 1)
        return 0.5 * (influence + other)


@final
class _MeanBound(torch.autograd.Function):
    """The mean of the row terms of ``a @ b.T``, with both gradients formed in ``forward``."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, rows: int) -> Tensor:
        n = a.shape[0]
        grad_a, grad_b = torch.empty_like(a), b.new_zeros(b.shape)
        terms = []
        for start, stop in _spans(n, rows):
            part = a[start:stop]
            p = part @ b.T
            positive = p.diagonal(start).clone()
            peak = p.amax(dim=1, keepdim=True)
            total = p.sub_(peak).exp_().sum(dim=1, keepdim=True)
            terms.append(positive - peak[:, 0] - total[:, 0].log() + math.log(n))
            # 1 / total goes into the thin operand instead of the strip.
            grad_a[start:stop] = (b[start:stop] - (p @ b) / total) / n
            grad_b -= p.T @ (part / total)
        grad_b += a
        ctx.save_for_backward(grad_a, grad_b.div_(n))
        return torch.cat(terms).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_a, grad_b = ctx.saved_tensors
        return grad * grad_a, grad * grad_b, None


def _mean_bound(a: Tensor, b: Tensor, rows: int) -> Tensor:
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        apply: Callable[[Tensor, Tensor, int], Tensor] = _MeanBound.apply
        return apply(a, b, rows)
    return torch.cat([_row_terms(a[s:e] @ b.T, s) for s, e in _spans(a.shape[0], rows)]).mean()


def _row_terms(scores: Tensor, start: int) -> Tensor:
    """Return ``s_ii - log mean_j exp s_ij`` for a strip of rows that begins at row ``start``."""
    return scores.diagonal(start) - scores.logsumexp(dim=1) + math.log(scores.shape[1])


def _spans(n: int, rows: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + rows, n)) for start in range(0, n, rows))


def _strip_rows(n: int, device: torch.device, strip: int | None) -> int:
    if strip is not None:
        if strip < 1:
            raise InputError(f"strip is {strip}; it must be at least 1 row.")
        return strip
    return max(1, min(n, (_STRIP_ENTRIES_CPU if device.type == "cpu" else _STRIP_ENTRIES_GPU) // n))


def _embeddings(x: Tensor, y: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or x.shape != y.shape:
        raise InputError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; the dot-product critic needs two equal (n, d). "
            "Bring both to one width with a critic from mikit.critics."
        )
    _require_negatives(x.shape[0])
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise InputError(f"temperature is {temperature}; it must be positive.")
    a, b = _at_least_float32(x), _at_least_float32(y)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype) / temperature, b.to(dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _require_negatives(n: int) -> None:
    if n < 2:
        raise InputError(f"InfoNCE was given {n} pair{'s' * (n != 1)}; it needs at least 2 to have a negative.")
