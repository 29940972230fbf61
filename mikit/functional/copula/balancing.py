"""Scores of all pairs made a proper law: both marginals hold, and pairings can be drawn from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.core.errors import InputError

__all__ = ["balanced_log_ratios", "drawn_pairing"]


def balanced_log_ratios(scores: Tensor, *, rounds: int = 8) -> Tensor:
    r"""Log density ratios whose law has uniform marginals over the rows of both sides.

    .. math:: r_{ij} = s_{ij} + a_i + b_j, \qquad \frac1n \sum_j e^{r_{ij}} = 1, \qquad \frac1n \sum_i e^{r_{ij}} = 1

    A log density ratio of a joint law to the product of its marginals has both properties; a critic's scores have them
    only after this scaling, which removes what a critic gets wrong about either side alone. The mean of the diagonal is
    then a read-out of mutual information that no single pair of rows can dominate, unlike one with a global normaliser.

    Args:
        scores: ``(n, n)``, a critic's scores of all pairs.
        rounds: Passes of Sinkhorn's algorithm over rows and columns; the columns are exact after each.

    Returns:
        ``(n, n)``, in the precision of ``scores``; nats.

    Raises:
        InputError: If ``scores`` is not square.

    Cost:
        ``O(n² rounds)`` time and ``O(n²)`` memory.

    Pitfalls:
        No entry can exceed ``log n``, so information of more than about ``log n - 2`` nats is read too low.

    Source:
        Sinkhorn's matrix scaling.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> ratios = balanced_log_ratios(torch.randn(50, 50, generator=g))
        >>> bool(torch.allclose(ratios.exp().mean(0), torch.ones(50), atol=1e-5))
        True
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise InputError(f"scores has shape {tuple(scores.shape)}; balancing needs a square matrix of all pairs.")
    n = math.log(scores.shape[0])
    rows = n - torch.logsumexp(scores, 1, keepdim=True)
    columns = n - torch.logsumexp(scores + rows, 0, keepdim=True)
    # One pass in logarithms brings every sum near 1; from there products with the exponentials are safe and quicker.
    ratios = scores + rows
    ratios += columns
    weights = ratios.exp()
    size = scores.shape[0]
    own, other = torch.ones_like(scores[:, 0]), torch.ones_like(scores[0])
    for _ in range(rounds - 1):
        own = size / (weights @ other)
        other = size / (own @ weights)
    ratios += own.log()[:, None]
    ratios += other.log()
    return ratios


def drawn_pairing(log_ratios: Tensor, *, generator: torch.Generator, sweeps: int = 3000) -> Tensor:
    r"""Draw a pairing of the rows from the law that log ratios describe.

    The law of permutations is :math:`p(\sigma) \propto \exp \sum_i r_{i \sigma(i)}`. Starting from a random pairing,
    each sweep splits the rows into couples and lets each swap its partners with the probability of Metropolis. The
    pairs ``(x_i, y_σ(i))`` are then a sample in which both sides keep exactly the rows they have, and only the
    dependence is the critic's: whatever differs between it and the data is what the critic has missed.

    Args:
        log_ratios: ``(n, n)``, scores of all pairs; what rows or columns have in common does not matter.
        generator: Where the draws come from.
        sweeps: Rounds of swaps.

    Returns:
        ``(n,)``, the row of ``y`` that belongs to each row of ``x``.

    Raises:
        InputError: If ``log_ratios`` is not square.

    Cost:
        ``O(n sweeps)`` time beyond the matrix.

    Pitfalls:
        Mixes slowly where few pairings are likely: at 5 nats one swap in a hundred is accepted, so each row is moved
        some thirty times in 3,000 sweeps; far above that the sample stays nearer to independence than the law.

    Source:
        Metropolis, Rosenbluth, Rosenbluth, Teller and Teller, 1953, for the acceptance rule.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> one_to_one = 20 * torch.eye(6)
        >>> drawn_pairing(one_to_one, generator=g, sweeps=200).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    if log_ratios.ndim != 2 or log_ratios.shape[0] != log_ratios.shape[1]:
        raise InputError(f"log_ratios has shape {tuple(log_ratios.shape)}; a pairing needs a square matrix.")
    n = log_ratios.shape[0]
    device = log_ratios.device
    pairing = torch.randperm(n, generator=generator).to(device)
    half = n // 2
    for _ in range(sweeps if half else 0):
        order = torch.randperm(n, generator=generator).to(device)
        first, second = order[:half], order[half : 2 * half]
        own, other = pairing[first], pairing[second]
        gain = log_ratios[first, other] + log_ratios[second, own]
        gain -= log_ratios[first, own] + log_ratios[second, other]
        swap = torch.rand(half, generator=generator).log().to(device) < gain
        pairing[first] = torch.where(swap, other, own)
        pairing[second] = torch.where(swap, own, other)
    return pairing
