"""Balance a critic's scores of all pairs to a joint distribution, and sample pairings from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.core.errors import InputError

__all__ = ["balanced_log_ratios", "drawn_pairing"]


def balanced_log_ratios(scores: Tensor, *, rounds: int = 8) -> Tensor:
    r"""Return log density ratios ``r (n, n)`` of a joint distribution with uniform marginals over both samples.

    .. math:: r_{ij} = s_{ij} + a_i + b_j, \qquad \frac1n \sum_j e^{r_{ij}} = 1, \qquad \frac1n \sum_i e^{r_{ij}} = 1

    ``rounds`` counts the passes of Sinkhorn's algorithm; the column sums are exact after each. No entry can exceed
    ``log n``, so information above about ``log n - 2`` nats is underestimated. ``O(n² rounds)`` time.

    Example:
        >>> ratios = balanced_log_ratios(torch.randn(50, 50, generator=torch.Generator().manual_seed(0)))
        >>> bool(torch.allclose(ratios.exp().mean(0), torch.ones(50), atol=1e-5))
        True
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise InputError(f"scores has shape {tuple(scores.shape)}; balancing needs a square matrix of all pairs.")
    # A log density ratio of a joint distribution to the product of its marginals satisfies both sums exactly; the
    # scores of a critic do not. Balancing removes every error that is a function of one side alone. It also bounds what
    # one pair can contribute to the mean of the diagonal, unlike the single global normalizer of a Donsker-Varadhan
    # bound.
    n = math.log(scores.shape[0])
    rows = n - torch.logsumexp(scores, 1, keepdim=True)
    columns = n - torch.logsumexp(scores + rows, 0, keepdim=True)
    # One pass in logarithms brings every sum near 1. From there products with the exponentials neither overflow nor
    # underflow, and they are quicker.
    ratios = scores + rows
    ratios += columns
    weights = ratios.exp()
    size = scores.shape[0]
    row_factor, column_factor = torch.ones_like(scores[:, 0]), torch.ones_like(scores[0])
    for _ in range(rounds - 1):
        row_factor = size / (weights @ column_factor)
        column_factor = size / (row_factor @ weights)
    ratios += row_factor.log()[:, None]
    ratios += column_factor.log()
    return ratios


def drawn_pairing(log_ratios: Tensor, *, generator: torch.Generator, sweeps: int = 3000) -> Tensor:
    r"""Sample a pairing from the distribution that the log ratios describe, ``(n,)``: the ``y`` row of each ``x`` row.

    Permutations have probability :math:`p(\sigma) \propto \exp \sum_i r_{i \sigma(i)}`; constants of a row or of a
    column cancel. It mixes slowly where few pairings are likely: at 5 nats one swap in a hundred is accepted, so in
    3,000 ``sweeps`` each row moves about thirty times. Far above that the sample stays too close to independence.

    Example:
        >>> one_to_one = 20 * torch.eye(6)
        >>> drawn_pairing(one_to_one, generator=torch.Generator().manual_seed(0), sweeps=200).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    if log_ratios.ndim != 2 or log_ratios.shape[0] != log_ratios.shape[1]:
        raise InputError(f"log_ratios has shape {tuple(log_ratios.shape)}; a pairing needs a square matrix.")
    n = log_ratios.shape[0]
    device = log_ratios.device
    pairing = torch.randperm(n, generator=generator).to(device)
    half = n // 2
    # A permutation rather than independent draws: both sides keep exactly their own rows, so the sample differs from
    # the data in its dependence alone, which is the critic's. Disjoint couples can all be swapped at once: the
    # acceptance of one swap (Metropolis et al., 1953) does not depend on the others.
    for _ in range(sweeps if half else 0):
        order = torch.randperm(n, generator=generator).to(device)
        first, second = order[:half], order[half : 2 * half]
        partner, other = pairing[first], pairing[second]
        gain = log_ratios[first, other] + log_ratios[second, partner]
        gain -= log_ratios[first, partner] + log_ratios[second, other]
        swap = torch.rand(half, generator=generator).log().to(device) < gain
        pairing[first] = torch.where(swap, other, partner)
        pairing[second] = torch.where(swap, partner, other)
    return pairing
