"""The plan of exact optimal transport between two samples, and its potentials.

For samples of equal size and equal weights this is an assignment problem, which SciPy solves. All others are linear
programs, which need POT. Plans are computed in float64, on the CPU.
"""

from __future__ import annotations

import math
import types
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.operators import full_precision
from mikit.functional.engine.samples import (
    require_one_device,
    require_rows,
    require_same_width,
    sample_weights,
    working_dtype,
)

__all__ = [
    "Entries",
    "Potentials",
    "TransportPlan",
    "filled_weights",
    "linear_programs",
    "optimal_plan",
    "prepared_samples",
    "require_finite",
    "require_order",
    "solved_plan",
    "transport_potentials",
]

_Array = npt.NDArray[Any]

_MOST_PIVOTS = 10_000_000
# A mean cost smaller than this fraction of the largest cost is computed again from differences of rows.
_LEAST_OF_LARGEST = 1e-6


@final
@dataclass(frozen=True)
class TransportPlan:
    """An optimal plan, by its nonzero entries.

    Attributes:
        rows: Row of ``x`` of each entry, ``(k,)``.
        columns: Row of ``y`` of each entry, ``(k,)``.
        mass: Mass of each entry, ``(k,)``, float64, with sum 1.
        sizes: Number of rows of ``x`` and of ``y``.
    """

    rows: Tensor
    columns: Tensor
    mass: Tensor
    sizes: tuple[int, int]

    def dense(self) -> Tensor:
        """Return the plan as a matrix, ``(n, m)``, float64, whose sums are the weights."""
        plan = torch.zeros(self.sizes, dtype=torch.float64, device=self.mass.device)
        return plan.index_put_((self.rows, self.columns), self.mass)


@final
class Potentials(NamedTuple):
    """Kantorovich potentials, float64, of x ``(n,)`` and of y ``(m,)``.

    Their weighted means add up to the transport cost, and no pair costs less than the sum of its two potentials.
    """

    of_x: Tensor
    of_y: Tensor


def optimal_plan(
    x: Tensor,
    y: Tensor,
    *,
    p: float = 2.0,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
) -> TransportPlan:
    r"""Plan that moves one sample onto another at the least cost :math:`\lVert x_i - y_j \rVert^p`.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        p: As in :func:`wasserstein`.
        weights_x: As in :func:`wasserstein`.
        weights_y: As in :func:`wasserstein`.

    Returns:
        The plan, by its at most ``n + m - 1`` nonzero entries, without gradient. Unit: fractions of the total mass.
        Kind: a coupling.

    Raises:
        InputError: As :func:`wasserstein`, and if a number is not finite.

    Cost:
        As :func:`wasserstein`.

    Pitfalls:
        If several plans are optimal, as with repeated rows, it is one of them.

    Source:
        As :func:`wasserstein`.

    Example:
        >>> plan = optimal_plan(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [3.0]]))
        >>> plan.dense()
        tensor([[0.0000, 0.5000],
                [0.5000, 0.0000]], dtype=torch.float64)
    """
    require_order(p)
    a, b, weights = prepared_samples(x, y, weights_x, weights_y)
    with full_precision(x.device):
        require_finite(a, b)
        entries = solved_plan(a, b, *weights, float(p))
    assert entries is not None
    n = x.shape[0]
    mass = torch.full((n,), 1 / n, dtype=torch.float64, device=x.device) if entries.mass is None else entries.mass
    return TransportPlan(entries.rows, entries.columns, mass, (n, y.shape[0]))


def transport_potentials(
    x: Tensor,
    y: Tensor,
    *,
    p: float = 2.0,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
) -> Potentials:
    r"""Kantorovich potentials of two samples for the cost :math:`\lVert x_i - y_j \rVert^p`.

    .. math:: W_p^p = \max_{f, g} \sum_i a_i f_i + \sum_j b_j g_j \quad\text{with}\quad
              f_i + g_j \le \lVert x_i - y_j \rVert^p

    The potential of a row is the derivative of the value in its weight, so that the spread of the potentials gives the
    sampling error.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        p: As in :func:`wasserstein`.
        weights_x: As in :func:`wasserstein`; all positive.
        weights_y: Likewise for ``y``.

    Returns:
        The potentials, without gradient. Unit: that of the features, to the power ``p``. Kind: a solution of the dual
        problem. For samples of equal size and equal weights, the mean of the largest and the smallest solution.

    Raises:
        InputError: As :func:`optimal_plan`, and if a weight is 0.

    Cost:
        As :func:`wasserstein`, and some tens of passes over the costs.

    Pitfalls:
        A constant can be moved from one side to the other, and in small samples there are further solutions.

    Source:
        Kantorovich (1942). For an optimal assignment, the potentials are shortest paths over its alternating cycles.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [3.0]])
        >>> f, g = transport_potentials(x, y)
        >>> round(float(f.mean() + g.mean()), 6)
        12.5
    """
    require_order(p)
    a, b, (weights_a, weights_b) = prepared_samples(x, y, weights_x, weights_y)
    with full_precision(x.device):
        require_finite(a, b)
        costs = _costs(*_around_the_first(a, b), float(p))
        if weights_a is None and weights_b is None and x.shape[0] == y.shape[0]:
            f, g = _shortest_paths(costs)
        else:
            filled = filled_weights(a, weights_a).cpu().numpy(), filled_weights(b, weights_b).cpu().numpy()
            if min(filled[0].min(), filled[1].min()) == 0:
                raise InputError("A row of weight 0 has no potential. Remove rows of weight 0.")
            log = linear_programs("Potentials of samples whose sizes or weights differ").emd(
                *filled, costs, numItermax=_MOST_PIVOTS, log=True
            )[1]
            f, g = log["u"], log["v"]
    return Potentials(torch.from_numpy(f).to(x.device), torch.from_numpy(g).to(x.device))


def linear_programs(what: str) -> types.ModuleType:
    """Return POT, or raise an error that says why ``what`` needs it and how to install it."""
    try:
        import ot
    except ImportError as cause:
        raise InputError(
            f"{what} needs POT, which is not installed. Run: pip install 'mikit[transport]'. Exact transport between "
            "samples of equal size without weights, SinkhornDivergence and SlicedWasserstein do not need it."
        ) from cause
    module: types.ModuleType = ot
    return module


def require_finite(x: Tensor, y: Tensor) -> None:
    """Raise an error if a number is not finite; a plan needs finite costs."""
    for sample, name in ((x, "x"), (y, "y")):
        broken = (~sample.isfinite()).any(dim=1).nonzero()
        if len(broken):
            raise InputError(
                f"Row {int(broken[0, 0])} of {name} contains a number that is not finite, so there is no plan. Remove "
                "the row."
            )


def require_order(p: float) -> None:
    """Raise an error unless ``p`` is the order of a Wasserstein distance."""
    if not 1 <= p < math.inf:
        raise InputError(f"p is {p}; the order of a Wasserstein distance must be at least 1 and finite.")


def prepared_samples(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    """Return two samples of equal width in their working dtype, and their weights, None where equal."""
    require_rows(x, "x")
    require_rows(y, "y")
    require_same_width(x, y)
    require_one_device(x, y)
    dtype = working_dtype(x, y)
    return x.to(dtype), y.to(dtype), (sample_weights(x, weights_x, "x"), sample_weights(y, weights_y, "y"))


@final
class Entries(NamedTuple):
    """The nonzero entries of a plan; without ``mass`` those of an assignment, whose rows are in order.

    ``mass`` is float64 with sum 1. ``cost`` is their mean cost, 0-dim float64, if it is known with enough digits.
    """

    rows: Tensor
    columns: Tensor
    mass: Tensor | None
    cost: Tensor | None


def solved_plan(x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None, p: float) -> Entries | None:
    """Return an optimal plan of samples from :func:`prepared_samples`; None if a cost is not finite."""
    n, m = x.shape[0], y.shape[0]
    a, b = _around_the_first(x, y)
    if weights_x is None and weights_y is None and n == m:
        # An assignment does not change if a constant is added to a row or a column of the costs. For p = 2 the squared
        # lengths are such constants, so the product alone is enough.
        costs = (a @ b.T).numpy() if p == 2 else _costs(a, b, p)
        try:
            rows, columns = linear_sum_assignment(costs)
        except ValueError:  # SciPy's error for NaNs
            return None
        return Entries(torch.from_numpy(rows).to(x.device), torch.from_numpy(columns).to(x.device), None, None)
    filled_x, filled_y = filled_weights(x, weights_x).cpu(), filled_weights(y, weights_y).cpu()
    kept_x, kept_y = filled_x.nonzero()[:, 0], filled_y.nonzero()[:, 0]
    program = linear_programs("Exact transport between samples whose sizes or weights differ")
    costs = _costs(a, b, p)
    if not math.isfinite(costs.sum()):
        return None
    if len(kept_x) < n or len(kept_y) < m:
        costs = np.ascontiguousarray(costs[np.ix_(kept_x.numpy(), kept_y.numpy())])
    plan = program.emd(filled_x[kept_x].numpy(), filled_y[kept_y].numpy(), costs, numItermax=_MOST_PIVOTS)
    rows, columns = plan.nonzero()
    mass = plan[rows, columns]
    cost = float(mass @ costs[rows, columns])
    # Costs are differences of squares, so those of coincident rows are only rounding. A mean cost that may consist of
    # rounding is not returned.
    digits = cost > _LEAST_OF_LARGEST * float(costs.max())
    of_x, of_y = torch.from_numpy(rows), torch.from_numpy(columns)
    if len(kept_x) < n or len(kept_y) < m:
        of_x, of_y = kept_x[of_x], kept_y[of_y]
    value = torch.tensor(cost, dtype=torch.float64, device=x.device) if digits else None
    return Entries(of_x.to(x.device), of_y.to(x.device), torch.from_numpy(mass).to(x.device), value)


def _around_the_first(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return minus the first and plus the second sample, float64 on the CPU, both around the mean of the first.

    With the sign, ``a . b`` is a cost. A common shift does not change plans, and a center among the rows keeps digits.
    """
    a, b = (rows.detach().to("cpu", torch.float64, copy=True) for rows in (x, y))
    center = a.mean(dim=0)
    return torch.sub(center, a, out=a), b.sub_(center)


def _costs(a: Tensor, b: Tensor, p: float) -> _Array:
    lengths_a, lengths_b = (torch.linalg.vector_norm(rows, dim=1).square_() for rows in (a, b))
    squares = (lengths_a[:, None] + lengths_b).addmm_(a, b.T, alpha=2).clamp_(min=0)
    costs: _Array = (squares if p == 2 else squares.pow_(p / 2)).numpy()
    return costs


def _shortest_paths(costs: _Array) -> tuple[_Array, _Array]:
    """Return potentials of an assignment problem: the mean of the two extreme solutions, each around its mean."""
    _, columns = linear_sum_assignment(costs)
    matched = costs[:, columns]
    partner = matched.diagonal().copy()
    # On matched pairs f + g equals the cost, which determines g. All other constraints then read f_i <= f_k + D_ki,
    # where D_ki is the extra cost if row i takes the partner of row k. Such systems are solved by shortest paths
    # (Bellman-Ford); the assignment is optimal, so there is no negative cycle. Paths in both directions give the
    # largest and the smallest solution. Their mean does not depend on the order of the rows.
    detours = (matched - partner).T
    rounding = 1e-12 * float(np.abs(costs).max())
    solutions = []
    for lengths in (detours, detours.T):
        distance = np.zeros(costs.shape[0])
        while True:
            shorter = (distance[:, None] + lengths).min(axis=0)
            if not (shorter < distance - rounding).any():
                break
            distance = np.minimum(distance, shorter)
        solutions.append(distance - distance.mean())
    f = (solutions[0] - solutions[1]) / 2
    g = np.empty_like(f)
    g[columns] = partner - f
    return f, g


def filled_weights(sample: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weights, or equal ones of sum 1 if they are None."""
    n = sample.shape[0]
    return torch.full((n,), 1 / n, dtype=torch.float64, device=sample.device) if weights is None else weights
