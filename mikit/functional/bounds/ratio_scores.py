"""JSD, NWJ, DV and SMILE for any critic: from the scores of all pairs, given whole or a strip of rows at a time.

:mod:`mikit.functional.bounds.ratios` has the same for the dot-product critic, streamed and with its gradient formed in
the same pass; what each of them is stands there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus as softplus_of

from mikit.core.errors import InputError
from mikit.functional.bounds.infonce_scores import require_pairs, score_strip, square_scores
from mikit.functional.engine.pairwise import spans

__all__ = [
    "dv_from_scores",
    "dv_influence",
    "jsd_from_scores",
    "log_mean_ratios",
    "nwj_from_scores",
    "nwj_influence",
    "require_clip",
    "smile_from_scores",
    "smile_influence",
]


def jsd_from_scores(scores: Tensor) -> Tensor:
    """Return the Jensen-Shannon objective for given critic scores.

    Formula: that of :func:`jsd`, with these scores in place of dot products.

    Args:
        scores: ``(n, n)``, scores of all pairs with the positives on the diagonal.

    Returns:
        0-dim, differentiable.

    Unit: nats, of the Jensen-Shannon divergence.

    Kind: training objective; see :func:`jsd`.

    Raises:
        InputError: If the scores are not square or ``n < 2``.

    Cost:
        ``O(n²)`` time and memory.

    Pitfalls:
        As :func:`jsd`.

    Source:
        As :func:`jsd`.

    Example:
        >>> abs(jsd_from_scores(torch.zeros(3, 3)).item()) < 1e-6
        True
    """
    scores = square_scores(scores)
    with torch.autocast(scores.device.type, enabled=False):
        positives, others = scores.diagonal(), _off_diagonal(scores)
        return -softplus_of(-positives).mean() - softplus_of(others).mean() + 2 * math.log(2)


def nwj_from_scores(scores: Tensor) -> Tensor:
    """Return the bound of Nguyen, Wainwright and Jordan for given critic scores.

    Formula: that of :func:`nwj`, with these scores in place of dot products.

    Args:
        scores: ``(n, n)``, scores of all pairs with the positives on the diagonal.

    Returns:
        0-dim, differentiable.

    Unit: nats.

    Kind: lower bound in expectation, on rows that did not fit the critic.

    Raises:
        InputError: If the scores are not square or ``n < 2``.

    Cost:
        ``O(n²)`` time and memory.

    Pitfalls:
        As :func:`nwj`.

    Source:
        As :func:`nwj`.

    Example:
        >>> round(nwj_from_scores(torch.ones(3, 3)).item(), 6)
        0.0
    """
    scores = square_scores(scores)
    with torch.autocast(scores.device.type, enabled=False):
        return scores.diagonal().mean() - (_off_diagonal(scores) - 1).exp().mean()


def dv_from_scores(scores: Tensor) -> Tensor:
    """Return the Donsker-Varadhan expression for given critic scores.

    Formula: that of :func:`dv`, with these scores in place of dot products.

    Args:
        scores: ``(n, n)``, scores of all pairs with the positives on the diagonal.

    Returns:
        0-dim, differentiable.

    Unit: nats.

    Kind: lower bound in the limit of many rows that did not fit the critic; see :func:`dv`.

    Raises:
        InputError: If the scores are not square or ``n < 2``.

    Cost:
        ``O(n²)`` time and memory.

    Pitfalls:
        As :func:`dv`.

    Source:
        As :func:`dv`.

    Example:
        >>> round(dv_from_scores(torch.ones(3, 3)).item(), 6)
        0.0
    """
    scores = square_scores(scores)
    with torch.autocast(scores.device.type, enabled=False):
        others = _off_diagonal(scores)
        return scores.diagonal().mean() - others.logsumexp(dim=0) + math.log(others.shape[0])


def smile_from_scores(scores: Tensor, *, clip: float = 5.0) -> Tensor:
    """Return the SMILE read-out for given critic scores.

    Formula: that of :func:`smile`, with these scores in place of dot products.

    Args:
        scores: ``(n, n)``, scores of all pairs with the positives on the diagonal.
        clip: The limit ``τ > 0`` of the negatives' exponents.

    Returns:
        0-dim, differentiable.

    Unit: nats.

    Kind: estimate, neither a lower nor an upper bound.

    Raises:
        InputError: If the scores are not square or ``n < 2``, or if ``clip`` is not positive.

    Cost:
        ``O(n²)`` time and memory.

    Pitfalls:
        As :func:`smile`.

    Source:
        As :func:`smile`.

    Example:
        >>> torch.allclose(smile_from_scores(torch.eye(3), clip=9.0), dv_from_scores(torch.eye(3)))
        True
    """
    scores = square_scores(scores)
    require_clip(clip)
    with torch.autocast(scores.device.type, enabled=False):
        others = _off_diagonal(scores).clamp(-clip, clip)
        return scores.diagonal().mean() - others.logsumexp(dim=0) + math.log(others.shape[0])


def log_mean_ratios(
    score_rows: Callable[[int, int], Tensor], n: int, *, clip: float | None = None, strip: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return every sample's score as a pair, and the mean ratio of its row and of its column as negatives.

    Formula: ``s_kk``, ``log (1/(n-1)) Σ_{j≠k} exp s_kj`` and ``log (1/(n-1)) Σ_{i≠k} exp s_ik``.

    Args:
        score_rows: Maps ``start, stop`` to scores ``(stop - start, n)`` of these rows against all ``n`` candidates.
            The block may be overwritten.
        n: Number of samples.
        clip: Limit of the negatives' exponents; none if None.
        strip: Rows asked for at once.

    Returns:
        Three tensors ``(n,)`` in float64, without gradient. Logarithms, so that nothing overflows.

    Unit: nats.

    Kind: the two roles of a sample in any objective of this module.

    Raises:
        InputError: If ``n < 2``, or if ``clip`` is not positive.

    Cost:
        One pass over all ``n²`` scores with two exponentials each; ``O(strip · n)`` memory.

    Pitfalls:
        The rows and the columns are two views of the same scores: their means agree, and are not two samples.

    Source:
        The first-order projection of a U-statistic (Hoeffding, 1948).

    Example:
        >>> scores = torch.tensor([[3.0, 0.0], [1.0, 5.0]])
        >>> [part.tolist() for part in log_mean_ratios(lambda start, stop: scores[start:stop].clone(), 2)]
        [[3.0, 5.0], [0.0, 1.0], [1.0, 0.0]]
    """
    require_pairs(n)
    if clip is not None:
        require_clip(clip)
    positives, of_rows, of_columns = [], [], None
    with torch.no_grad():
        for part in spans(n, n, strip):
            block = score_strip(score_rows, part)
            own = block.diagonal(part.start)
            positives.append(own.to(torch.float64, copy=True))
            if clip is not None:
                block = block.clamp(-clip, clip)
                own = block.diagonal(part.start)
            own.fill_(-math.inf)
            of_rows.append(block.logsumexp(dim=1).double())
            columns = block.logsumexp(dim=0).double()
            of_columns = columns if of_columns is None else torch.logaddexp(of_columns, columns)
        assert of_columns is not None
        return torch.cat(positives), torch.cat(of_rows) - math.log(n - 1), of_columns - math.log(n - 1)


def nwj_influence(score_rows: Callable[[int, int], Tensor], n: int, *, strip: int | None = None) -> Tensor:
    """Return each sample's influence on the bound of Nguyen, Wainwright and Jordan; the mean is the bound.

    Formula: ``s_kk - (r_k + c_k - U) / e`` with ``r_k`` and ``c_k`` the mean of ``exp s`` over the negatives in row and
    column ``k``, and ``U`` over all: a sample counts as a pair, and twice as a negative.

    Args:
        score_rows: As in :func:`log_mean_ratios`.
        n: Number of samples.
        strip: Rows asked for at once.

    Returns:
        ``(n,)`` in float64, in nats, without gradient. All minus infinity where the mean ratio leaves float64.

    Unit: nats.

    Kind: influence contributions of a lower bound.

    Raises:
        InputError: If ``n < 2``.

    Cost:
        As :func:`log_mean_ratios`.

    Pitfalls:
        First order: it leaves out the part of the variance that falls with ``1/n²``. Where a few samples carry ``U``,
        their spread understates the error: those that would carry more were not met.

    Source:
        The first-order projection of a U-statistic (Hoeffding, 1948), with both roles of a sample.

    Example:
        >>> scores = torch.eye(4)
        >>> terms = nwj_influence(lambda start, stop: scores[start:stop].clone(), 4)
        >>> bool(torch.allclose(terms.mean(), nwj_from_scores(scores).double()))
        True
    """
    positives, of_rows, of_columns = log_mean_ratios(score_rows, n, strip=strip)
    of_rows, of_columns = (of_rows - 1).exp(), (of_columns - 1).exp()
    negatives = of_rows + of_columns - of_rows.mean()
    return positives - torch.where(of_rows.mean().isfinite(), negatives, math.inf)


def dv_influence(score_rows: Callable[[int, int], Tensor], n: int, *, strip: int | None = None) -> Tensor:
    """Return each sample's influence on the Donsker-Varadhan expression; the mean is the expression.

    Formula: ``s_kk - log U - (r_k + c_k) / U + 2`` with ``r_k``, ``c_k`` and ``U`` as in :func:`nwj_influence`.

    Args:
        score_rows: As in :func:`log_mean_ratios`.
        n: Number of samples.
        strip: Rows asked for at once.

    Returns:
        ``(n,)`` in float64, in nats, without gradient; finite for finite scores.

    Unit: nats.

    Kind: influence contributions of an estimate.

    Raises:
        InputError: If ``n < 2``.

    Cost:
        As :func:`log_mean_ratios`.

    Pitfalls:
        As :func:`nwj_influence`. The upward bias of the logarithm, about half of the variance of the mean ratio over
        its square, is not in it.

    Source:
        The delta method over the projection of a U-statistic (Hoeffding, 1948).

    Example:
        >>> scores = torch.eye(4)
        >>> terms = dv_influence(lambda start, stop: scores[start:stop].clone(), 4)
        >>> bool(torch.allclose(terms.mean(), dv_from_scores(scores).double()))
        True
    """
    return _influence_on_logarithm(*log_mean_ratios(score_rows, n, strip=strip))


def smile_influence(
    score_rows: Callable[[int, int], Tensor], n: int, *, clip: float = 5.0, strip: int | None = None
) -> Tensor:
    """Return each sample's influence on the SMILE read-out; the mean is the read-out.

    Formula: that of :func:`dv_influence`, with the negatives' exponents clipped to ``[-clip, clip]``.

    Args:
        score_rows: As in :func:`log_mean_ratios`.
        n: Number of samples.
        clip: The limit ``τ > 0``.
        strip: Rows asked for at once.

    Returns:
        ``(n,)`` in float64, in nats, without gradient; finite for finite scores.

    Unit: nats.

    Kind: influence contributions of an estimate.

    Raises:
        InputError: If ``n < 2``, or if ``clip`` is not positive.

    Cost:
        As :func:`log_mean_ratios`.

    Pitfalls:
        The bias of the clipping is not in it.

    Source:
        As :func:`dv_influence`.

    Example:
        >>> scores = torch.eye(4)
        >>> terms = smile_influence(lambda start, stop: scores[start:stop].clone(), 4, clip=0.5)
        >>> bool(torch.allclose(terms.mean(), smile_from_scores(scores, clip=0.5).double()))
        True
    """
    return _influence_on_logarithm(*log_mean_ratios(score_rows, n, clip=clip, strip=strip))


def _influence_on_logarithm(positives: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
    normaliser = of_rows.logsumexp(dim=0) - math.log(of_rows.shape[0])
    return positives - normaliser - (of_rows - normaliser).exp() - (of_columns - normaliser).exp() + 2


def _off_diagonal(scores: Tensor) -> Tensor:
    """Return the ``n (n - 1)`` scores beside the diagonal: behind each one but the last of the diagonal lie n."""
    n = scores.shape[0]
    return scores.flatten()[1:].view(n - 1, n + 1)[:, :-1].flatten()


def require_clip(clip: float) -> None:
    """Refuse a limit of the exponents that is not positive and finite."""
    if not 0 < clip < math.inf:
        raise InputError(f"clip is {clip}; the limit of the exponents must be positive and finite.")
