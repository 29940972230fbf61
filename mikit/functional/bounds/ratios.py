"""Objectives that compare the scores of pairs with those of all other combinations: JSD, NWJ, DV, SMILE.

Each is optimal when the critic is the logarithm of the ratio of the joint density to the product of the marginals (up
to a constant for some). Each takes one mean over the joint distribution (the n positives on the diagonal) and one over
the product of the marginals (the n (n - 1) other combinations). The positives are never among the negatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus as softplus_of

from mikit.core import require
from mikit.functional.bounds.infonce import dot_critic
from mikit.functional.engine.epilogues import clipped_exponential, exp_, exponential, softplus
from mikit.functional.engine.operators import closed_form
from mikit.functional.engine.pairwise import Gradient, scores, sum_over_pairs

__all__ = ["dv", "jsd", "nwj", "smile"]


def jsd(x: Tensor, y: Tensor, *, temperature: float | Tensor = 1.0, strip: int | None = None) -> Tensor:
    r"""Return the Jensen-Shannon objective for the dot-product critic ``s_ij = x_i . y_j / temperature``.

    .. math:: -\frac1n \sum_i \log(1 + e^{-s_{ii}}) - \frac1{n(n-1)} \sum_{i \ne j} \log(1 + e^{s_{ij}}) + 2 \log 2

    Args:
        x: Embeddings ``(n, d)``; row ``i`` belongs to row ``i`` of ``y``.
        y: Embeddings ``(n, d)``.
        temperature: Divisor of the scores; a positive number or a 0-dim tensor, which may be learned.
        strip: Rows of scores in memory at a time; None chooses by the device. It changes memory, not the value.

    Returns:
        0-dim, differentiable once. The loss to minimize is its negative.

    Unit: nats, of the Jensen-Shannon divergence, not of mutual information.

    Kind: lower bound, in expectation, on twice the Jensen-Shannon divergence between the joint distribution and the
    product of the marginals, hence at most ``2 log 2 = 1.386``. 0 for a critic whose scores are all 0.

    Raises:
        InputError: If the shapes are not two equal ``(n, d)`` with ``n >= 2``, or the temperature is not positive.

    Cost:
        ``O(n² d)`` time in three matrix products for value and gradients together; ``O(strip · n + n d)`` memory.

    Pitfalls:
        A training objective, not an estimate of information: for the optimal critic it is below 1.386, however large
        the information. Estimate the information by the mean score of pairs that the critic was not fitted to, or by
        :func:`nwj`.

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
        0-dim, differentiable once. The loss to minimize is its negative.

    Unit: nats.

    Kind: lower bound on ``I(x; y)``, in expectation, on rows that the critic was not fitted to. Tight where the critic
    is 1 plus the logarithm of the density ratio.

    Raises:
        InputError: As :func:`jsd`.

    Cost:
        As :func:`jsd`.

    Pitfalls:
        The second mean is over exponentials: its variance grows exponentially with the information, and single pairs
        dominate it. Scores above 88 overflow float32, and the result is then minus infinity.

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
        0-dim, differentiable once. The loss to minimize is its negative.

    Unit: nats.

    Kind: lower bound on ``I(x; y)`` in the limit of many rows that the critic was not fitted to. At finite n the
    logarithm of a mean biases it upwards, so it is not a strict bound.

    Raises:
        InputError: As :func:`jsd`.

    Cost:
        As :func:`jsd`.

    Pitfalls:
        One row of negatives can dominate the mean: the variance grows exponentially with the information, and on the
        rows that the critic was fitted to the value is unbounded. A mini-batch gradient is biased, because the
        logarithm is taken of the mean over the batch.

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
    r"""Return the SMILE estimate for the dot-product critic ``s_ij = x_i . y_j / temperature``.

    .. math:: \frac1n \sum_i s_{ii} - \log \frac1{n(n-1)} \sum_{i \ne j} \exp \min(\max(s_{ij}, -\tau), \tau)

    :func:`dv` with the exponents of the second mean clipped to ``[-τ, τ]``: less variance, but a bias.

    Args:
        x: Embeddings ``(n, d)``.
        y: Embeddings ``(n, d)``.
        clip: The limit ``τ > 0``.
        temperature: As in :func:`jsd`.
        strip: As in :func:`jsd`.

    Returns:
        0-dim, differentiable once; negatives with scores beyond the limit have no gradient.

    Unit: nats.

    Kind: estimate, neither a lower nor an upper bound.

    Raises:
        InputError: As :func:`jsd`, and if ``clip`` is not positive.

    Cost:
        As :func:`jsd`.

    Pitfalls:
        Meant for a critic trained with :func:`jsd`. As an objective it is unbounded: negatives above the limit cost
        nothing. Values with different limits are not comparable.

    Source:
        Song and Ermon (2020), "Understanding the Limitations of Variational Mutual Information Estimators".

    Example:
        >>> x = 4 * torch.eye(3)
        >>> torch.allclose(smile(x, x, clip=100.0), dv(x, x))
        True
    """
    a, b = dot_critic(x, y, temperature)
    require.positive(clip, "clip")
    return _smile(a, b, clip, strip).to(a.dtype)


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
    # One normalizer for all pairs: exponentials are relative to the largest score met so far, and what was summed
    # before is scaled down when the maximum grows. A fixed reference would overflow, a pass for the maximum cost a
    # product.
    largest = a.new_full((), -math.inf)
    total = a.new_zeros((), dtype=torch.float64)
    for block in scores(a, b, strip=strip):
        block.diagonal_of(block.values).fill_(-math.inf)
        known, largest = largest, torch.maximum(largest, block.values.amax())
        down = (known - largest).exp()
        exponentials = exp_(block.values.sub_(largest))
        total = total * down + exponentials.sum(dim=1).sum(dtype=torch.float64)
        if any(wants):
            gradient.rescale(down)
            gradient.add(block, exponentials)
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
