"""Objectives that compare the scores of pairs with those of all other combinations: JSD, NWJ, DV, SMILE.

Each is at its best when the critic is the logarithm of the density ratio of the joint law and the product of its
marginals (up to a constant for some), and each asks one number of the joint law (the n positives on the diagonal) and
one of the product law (the n (n - 1) other combinations). The positives never appear among the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus as softplus_of

from mikit.errors import InputError
from mikit.functional.bounds import dot_critic
from mikit.functional.closed import closed_form
from mikit.functional.pairwise import (
    Gradient,
    clipped_exponential,
    exp_,
    exponential,
    scores,
    softplus,
    spans,
    sum_over_pairs,
)
from mikit.functional.scored import require_pairs, score_strip, square_scores

__all__ = [
    "dv",
    "dv_from_scores",
    "dv_influence",
    "jsd",
    "jsd_from_scores",
    "log_mean_ratios",
    "nwj",
    "nwj_from_scores",
    "nwj_influence",
    "smile",
    "smile_from_scores",
    "smile_influence",
]


def jsd(x: Tensor, y: Tensor, *, temperature: float | Tensor = 1.0, strip: int | None = None) -> Tensor:
    r"""Return the Jensen-Shannon objective for the dot-product critic ``s_ij = x_i . y_j / temperature``.

    .. math:: -\frac1n \sum_i \log(1 + e^{-s_{ii}}) - \frac1{n(n-1)} \sum_{i \ne j} \log(1 + e^{s_{ij}}) + 2 \log 2

    Args:
        x: Embeddings ``(n, d)``; row ``i`` belongs to row ``i`` of ``y``.
        y: Embeddings ``(n, d)``.
        temperature: What scores are divided by; a positive number or a 0-dim tensor, which may be learned.
        strip: Rows of scores held at once; chosen from the device by default. It changes memory, not the value.

    Returns:
        0-dim, differentiable once. The loss to minimise is its negative.

    Unit: nats, of the Jensen-Shannon divergence, not of mutual information.

    Kind: lower bound, in expectation, on twice the Jensen-Shannon divergence between the joint law and the product of
    the marginals, hence at most ``2 log 2 = 1.386``. 0 for a critic that scores everything 0.

    Raises:
        InputError: If the shapes are not two equal ``(n, d)`` with ``n >= 2``, or the temperature is not positive.

    Cost:
        ``O(n² d)`` time in three matrix products for value and gradients together; ``O(strip · n + n d)`` memory.

    Pitfalls:
        A training objective, never a number of nats of information: at the best critic it stays below 1.386 whatever
        the information. The mean score of pairs that did not fit the critic is the read-out, or :func:`nwj`.

    Source:
        Nowozin, Cseke and Tomioka (2016), "f-GAN", for the variational form; as in Deep InfoMax (Hjelm and others,
        2019), whose code adds the same constant, with all other combinations as negatives.

    Example:
        >>> x = torch.eye(4)
        >>> abs(jsd(0 * x, x).item()) < 1e-6, jsd(5 * x, x).item() > 0
        (True, True)
    """
    a, b = dot_critic(x, y, temperature)
    return _jsd(a, b, strip).to(a.dtype)


def nwj(x: Tensor, y: Tensor, *, temperature: float | Tensor = 1.0, strip: int | None = None) -> Tensor:
    r"""Return the bound of Nguyen, Wainwright and Jordan for the dot-product critic ``s_ij = x_i . y_j / temperature``.

    .. math:: \frac1n \sum_i s_{ii} - \frac1{e\, n(n-1)} \sum_{i \ne j} e^{s_{ij}}

    Args:
        x: Embeddings ``(n, d)``.
        y: Embeddings ``(n, d)``.
        temperature: As in :func:`jsd`.
        strip: As in :func:`jsd`.

    Returns:
        0-dim, differentiable once. The loss to minimise is its negative.

    Unit: nats.

    Kind: lower bound on ``I(x; y)``, in expectation, on rows that did not fit the critic. Tight where the critic is
    1 plus the logarithm of the density ratio.

    Raises:
        InputError: As :func:`jsd`.

    Cost:
        As :func:`jsd`.

    Pitfalls:
        The second mean is one of exponentials: its variance grows like the exponential of the information, and single
        pairs rule it. Scores beyond 88 overflow float32 to minus infinity, which is then the honest value.

    Source:
        Nguyen, Wainwright and Jordan (2010); the form of Poole and others (2019).

    Example:
        >>> rows = torch.ones(5, 1)  # every score is 1, the best constant
        >>> round(nwj(rows, rows).item(), 6)
        0.0
    """
    a, b = dot_critic(x, y, temperature)
    return _nwj(a, b, strip).to(a.dtype)


def dv(x: Tensor, y: Tensor, *, temperature: float | Tensor = 1.0, strip: int | None = None) -> Tensor:
    r"""Return the Donsker-Varadhan expression for the dot-product critic ``s_ij = x_i . y_j / temperature``.

    .. math:: \frac1n \sum_i s_{ii} - \log \frac1{n(n-1)} \sum_{i \ne j} e^{s_{ij}}

    Args:
        x: Embeddings ``(n, d)``.
        y: Embeddings ``(n, d)``.
        temperature: As in :func:`jsd`.
        strip: As in :func:`jsd`.

    Returns:
        0-dim, differentiable once. The loss to minimise is its negative.

    Unit: nats.

    Kind: lower bound on ``I(x; y)`` in the limit of many rows that did not fit the critic. At finite n the logarithm of
    a mean makes it larger on average, so it is no strict bound.

    Raises:
        InputError: As :func:`jsd`.

    Cost:
        As :func:`jsd`.

    Pitfalls:
        One row of negatives can rule the mean: the variance grows like the exponential of the information, and on
        rows that fitted the critic the value has no limit but the scores. A gradient over a mini-batch is biased,
        because the logarithm is taken of the batch's mean.

    Source:
        Donsker and Varadhan (1983); as a critic's objective Belghazi and others (2018).

    Example:
        >>> rows = torch.ones(5, 1)
        >>> round(dv(rows, rows).item(), 6)
        0.0
    """
    a, b = dot_critic(x, y, temperature)
    return _dv(a, b, strip).to(a.dtype)


def smile(
    x: Tensor, y: Tensor, *, clip: float = 5.0, temperature: float | Tensor = 1.0, strip: int | None = None
) -> Tensor:
    r"""Return the SMILE read-out for the dot-product critic ``s_ij = x_i . y_j / temperature``.

    .. math:: \frac1n \sum_i s_{ii} - \log \frac1{n(n-1)} \sum_{i \ne j} \exp \min(\max(s_{ij}, -\tau), \tau)

    :func:`dv` with the exponents of the second mean clipped to ``[-τ, τ]``: less variance, for a bias.

    Args:
        x: Embeddings ``(n, d)``.
        y: Embeddings ``(n, d)``.
        clip: The limit ``τ > 0``.
        temperature: As in :func:`jsd`.
        strip: As in :func:`jsd`.

    Returns:
        0-dim, differentiable once; scores beyond the limit have no gradient as negatives.

    Unit: nats.

    Kind: estimate, neither a lower nor an upper bound.

    Raises:
        InputError: As :func:`jsd`, and if ``clip`` is not positive.

    Cost:
        As :func:`jsd`.

    Pitfalls:
        Meant for a critic trained with :func:`jsd`. As an objective it can be driven up without limit: negatives above
        the limit cost nothing. Values with different limits do not compare.

    Source:
        Song and Ermon (2020), "Understanding the Limitations of Variational Mutual Information Estimators".

    Example:
        >>> x = 4 * torch.eye(3)
        >>> torch.allclose(smile(x, x, clip=100.0), dv(x, x))
        True
    """
    a, b = dot_critic(x, y, temperature)
    _require_clip(clip)
    return _smile(a, b, clip, strip).to(a.dtype)


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
    _require_clip(clip)
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
        _require_clip(clip)
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


def _require_clip(clip: float) -> None:
    if not 0 < clip < math.inf:
        raise InputError(f"clip is {clip}; the limit of the exponents must be positive and finite.")


@closed_form
def _jsd(wants: Sequence[bool], a: Tensor, b: Tensor, strip: int | None) -> tuple[Tensor, Tensor, Tensor]:
    n = a.shape[0]
    total, *negatives = sum_over_pairs(a, b, softplus, wants=wants, hollow=True, strip=strip)
    positives = (a * b).sum(dim=1)
    value = -softplus_of(-positives).mean(dtype=torch.float64) - total / (n * (n - 1)) + 2 * math.log(2)
    slopes = torch.sigmoid(-positives)[:, None] / n
    return value, *_joined(wants, a, b, slopes, negatives, total.new_tensor(-1 / (n * (n - 1))))


@closed_form
def _nwj(wants: Sequence[bool], a: Tensor, b: Tensor, strip: int | None) -> tuple[Tensor, Tensor, Tensor]:
    n = a.shape[0]
    total, *negatives = sum_over_pairs(a, b, exponential, wants=wants, hollow=True, strip=strip)
    factor = total.new_tensor(-1 / (math.e * n * (n - 1)))
    value = (a * b).sum(dim=1).mean(dtype=torch.float64) + factor * total
    return value, *_joined(wants, a, b, 1 / n, negatives, factor)


@closed_form
def _smile(
    wants: Sequence[bool], a: Tensor, b: Tensor, clip: float, strip: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    n = a.shape[0]
    total, *negatives = sum_over_pairs(a, b, clipped_exponential(clip), wants=wants, hollow=True, strip=strip)
    value = (a * b).sum(dim=1).mean(dtype=torch.float64) - total.log() + math.log(n * (n - 1))
    return value, *_joined(wants, a, b, 1 / n, negatives, -1 / total)


@closed_form
def _dv(wants: Sequence[bool], a: Tensor, b: Tensor, strip: int | None) -> tuple[Tensor, Tensor, Tensor]:
    n = a.shape[0]
    gradient = Gradient(a, b, wants)
    # Exponentials relative to the largest score met so far: what was summed before is brought down when it grows.
    largest = a.new_full((), -math.inf)
    total = a.new_zeros((), dtype=torch.float64)
    for part in scores(a, b, strip=strip):
        part.own_of(part.values).fill_(-math.inf)
        known, largest = largest, torch.maximum(largest, part.values.amax())
        down = (known - largest).exp()
        exponentials = exp_(part.values.sub_(largest))
        total = total * down + exponentials.sum(dim=1).sum(dtype=torch.float64)
        if any(wants):
            gradient.rescale(down)
            gradient.add(part, exponentials)
    value = (a * b).sum(dim=1).mean(dtype=torch.float64) - total.log() - largest + math.log(n * (n - 1))
    return value, *_joined(wants, a, b, 1 / n, gradient.both(), -1 / total)


def _joined(
    wants: Sequence[bool],
    a: Tensor,
    b: Tensor,
    slopes: Tensor | float,
    negatives: Sequence[Tensor],
    factor: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return ``factor`` times the gradients of the negatives, plus those of the positives, whose slopes are given."""
    of_a, of_b = negatives
    if wants[0]:
        of_a.mul_(factor).add_(b * slopes)
    if wants[1]:
        of_b.mul_(factor).add_(a * slopes)
    return of_a, of_b
