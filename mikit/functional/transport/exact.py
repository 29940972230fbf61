"""Exact Wasserstein distances of two samples, with the gradient of the cost under the optimal plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.functional.engine.operators import closed_form, unwanted
from mikit.functional.engine.samples import require_paired, require_rows
from mikit.functional.transport.plans import optimal_plan, prepared_samples, require_order, solved_plan

__all__ = ["IdentityFraction", "identity_fraction", "wasserstein", "wasserstein2"]


@final
class IdentityFraction(NamedTuple):
    """The fraction of a plan's mass that matches row ``i`` with row ``i``, and its expectation by chance, ``1 / n``."""

    share: float
    chance: float


def wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    p: float = 2.0,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
) -> Tensor:
    r"""Wasserstein distance of two samples, solved exactly.

    .. math:: W_p = \Bigl( \min_P \sum_{ij} P_{ij} \lVert x_i - y_j \rVert^p \Bigr)^{1/p}

    over plans whose marginals are the weights of the samples.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        p: The order, at least 1.
        weights_x: Weights of the rows of ``x``, ``(n,)``, not negative; divided by their sum. None: equal. The gradient
            treats them as constants.
        weights_y: Likewise for ``y``, ``(m,)``.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit: that of
        the features. Kind: a distance of the two empirical distributions.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths or devices differ, ``p`` is below 1, weights have the wrong
            shape, are negative, not finite or all 0; and if POT is missing where sizes or weights differ.

    Cost:
        O(n m d) for the costs and, in practice, between quadratic and cubic in the number of samples for the plan: on
        one core a millisecond at 128 samples, 20 at 512, 100 at 1,000. O(n m) memory. The plan is computed on the CPU.
        The gradient adds O((n + m) d).

    Pitfalls:
        - Too large on small samples: two samples of size 128 from one normal distribution in 512 dimensions are farther
          from each other than a sample is from 0. Subtract the distance of two halves of one sample, as
          ``Wasserstein(debias=True)`` does.
        - On paired samples with many features the plan may match each row with its partner; see
          :func:`identity_fraction`.
        - At distance 0 the root has no derivative; the gradient there is 0, its smallest subgradient. The same holds
          for rows at distance 0 under ``p = 1``. If two plans are optimal, the gradient is that of one of them.
        - Blind to pairing: shuffling the rows of one sample does not change the value.

    Source:
        Kantorovich (1942); Villani (2009), "Optimal Transport: Old and New". The gradient follows from Danskin's
        theorem: it is that of the cost under the optimal plan.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(wasserstein(x, x.flip(0) + torch.tensor([3.0, 4.0, 0.0])).item(), 5)  # a shift by 5
        5.0
    """
    require_order(p)
    a, b, weights = prepared_samples(x, y, weights_x, weights_y)
    power = _transport_cost(a, b, *weights, float(p))
    at_zero = power == 0
    root = torch.where(at_zero, 1.0, power) ** (1 / p)
    return torch.where(at_zero, 0.0, root).to(a.dtype)


def wasserstein2(x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None) -> Tensor:
    r"""Squared 2-Wasserstein distance of two samples, the square of :func:`wasserstein` with ``p = 2``.

    .. math:: W_2^2 = \min_P \sum_{ij} P_{ij} \lVert x_i - y_j \rVert^2

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        weights_x: As in :func:`wasserstein`.
        weights_y: As in :func:`wasserstein`.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit: that of
        the features, squared. Kind: a squared distance of the two empirical distributions; at most the mean squared
        difference of paired rows.

    Raises:
        InputError: As :func:`wasserstein`.

    Cost:
        As :func:`wasserstein`.

    Pitfalls:
        As :func:`wasserstein`; the square is smooth where the distance is 0.

    Source:
        As :func:`wasserstein`.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [3.0]])
        >>> wasserstein2(x, y).item()  # 0 goes to 3 and 1 to 5
        12.5
    """
    a, b, weights = prepared_samples(x, y, weights_x, weights_y)
    return _transport_cost(a, b, *weights, 2.0).to(a.dtype)


def identity_fraction(x: Tensor, y: Tensor, *, p: float = 2.0) -> IdentityFraction:
    r"""Fraction of the optimal plan's mass on the diagonal, for paired samples.

    .. math:: \sum_i P_{ii}, \qquad \text{by chance } 1 / n

    If it is close to 1, the transport cost is the mean cost between partners: matching two distributions then amounts
    to regression of each row on its partner. If it is close to chance, the plan does not depend on the pairing.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(n, d)``; row ``i`` of both is one input.
        p: As in :func:`wasserstein`.

    Returns:
        The fraction (``share``) and its expectation by chance. Unit: dimensionless, between 0 and 1. Kind: a diagnostic
        of a plan.

    Raises:
        InputError: As :func:`optimal_plan`, and if the samples differ in their number of rows.

    Cost:
        As :func:`wasserstein`.

    Pitfalls:
        It depends on the batch: it is larger with fewer samples and more features. Among repeated rows the matching is
        arbitrary.

    Source:
        mikit.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, noise = torch.randn(2, 128, 64, generator=generator)
        >>> identity_fraction(x, 0.5 * x + 0.75**0.5 * noise).share > 0.9
        True
        >>> identity_fraction(x, noise).share < 0.1
        True
    """
    require_rows(x, "x")
    require_rows(y, "y")
    require_paired(x, y)
    plan = optimal_plan(x, y, p=p)
    diagonal = plan.rows == plan.columns
    return IdentityFraction(float(plan.mass[diagonal].sum()), 1 / x.shape[0])


@closed_form
def _transport_cost(
    wants: Sequence[bool], x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cost of the optimal plan and its gradients under that plan."""
    entries = solved_plan(x, y, weights_x, weights_y, p)
    if entries is None:
        # There is no plan for NaNs; return NaN, as every other formula does.
        nan = x.new_full((), torch.nan, dtype=torch.float64)
        return nan, torch.full_like(x, torch.nan), torch.full_like(y, torch.nan)
    if entries.cost is not None and not any(wants):
        return entries.cost, unwanted(x), unwanted(y)
    # The difference of two floats is exact up to its own rounding, whatever their offset, whereas the costs that the
    # solver used are differences of squares. The plan has O(n + m) entries, so this is cheap. `out=` avoids allocating
    # memory, which takes longer than the subtraction.
    moves = y.index_select(0, entries.columns)
    torch.sub(x if entries.mass is None else x.index_select(0, entries.rows), moves, out=moves)
    mass: Tensor | float = 1 / x.shape[0] if entries.mass is None else entries.mass
    if entries.cost is not None and p == 2:
        value, factors = entries.cost, 2 * mass
    else:
        lengths = torch.linalg.vector_norm(moves, dim=1).double()
        value = (mass * lengths.pow(p)).sum()
        if not any(wants):
            return value, unwanted(x), unwanted(y)
        factors = 2 * mass if p == 2 else p * mass * torch.where(lengths > 0, lengths, 1.0).pow(p - 2)
    moves.mul_(factors.to(x.dtype)[:, None] if isinstance(factors, Tensor) else factors)
    gradient_x, gradient_y = unwanted(x), unwanted(y)
    if wants[0]:
        gradient_x = moves if entries.mass is None else torch.zeros_like(x).index_add_(0, entries.rows, moves)
    if wants[1]:
        gradient_y = torch.zeros_like(y).index_add_(0, entries.columns, moves, alpha=-1)
    return value, gradient_x, gradient_y
