"""Gromov-Wasserstein discrepancy: comparing samples of different dimension by the distances within each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.engine.samples import require_one_device, require_rows, sample_weights, working_dtype
from mikit.functional.transport.plans import filled_weights, linear_programs, require_finite

__all__ = ["COSTS", "GromovSolution", "gromov_plan", "gromov_wasserstein2"]

_Array = npt.NDArray[Any]

COSTS = ("euclidean", "squared euclidean", "cosine")
_MOST_STEPS = 1000


@final
class GromovSolution(NamedTuple):
    """A ``plan`` ``(n, m)``, float64, at a local minimum, and the values reached from each start.

    The value of the plan is the smallest of ``starts``.
    """

    plan: Tensor
    starts: tuple[float, ...]


def gromov_wasserstein2(
    x: Tensor,
    y: Tensor,
    *,
    cost: str = "euclidean",
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
) -> Tensor:
    r"""Squared Gromov-Wasserstein discrepancy of two samples, which may differ in width.

    .. math:: GW^2 = \min_P \sum_{ijkl} \bigl(c(x_i, x_k) - c(y_j, y_l)\bigr)^2 P_{ij} P_{kl}

    over plans whose marginals are the weights of the samples: the smallest mean squared difference between the
    distances within one sample and those within the other, over all matchings.

    Args:
        x: First sample, ``(n, d_x)``.
        y: Second sample, ``(m, d_y)``.
        cost: ``c``: ``"euclidean"``, ``"squared euclidean"``, or ``"cosine"`` (one minus the cosine of the angle
            between two rows).
        weights_x: Weights of the rows of ``x``, ``(n,)``, not negative; divided by their sum. None: equal. The gradient
            treats them as constants.
        weights_y: Likewise for ``y``, ``(m,)``.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable in both with the plan held
        constant. Unit: that of ``c``, squared: feature² for ``"euclidean"``. Kind: a discrepancy, 0 for samples that
        are equal up to transformations that ``c`` ignores, and from above: the smaller of two local minima.

    Raises:
        InputError: If a sample is not ``(n, d)``, devices differ, weights have the wrong shape, the cost is unknown, a
            row has length 0 under ``"cosine"``, or POT is missing.

    Cost:
        O(n m (n + m)) per step and some ten to a hundred steps from each of two starts, on the CPU: 0.05 seconds at
        128 samples, a second at 500. O(n² + m² + n m) memory.

    Pitfalls:
        - The problem is not convex, and the solution is a local minimum: the value may exceed the global minimum by an
          unknown amount, and it jumps where another local minimum takes over.
        - Blind to rotations, reflections and shifts under the Euclidean costs, and to scale under ``"cosine"``: a
          value of 0 does not mean equal features.
        - Too large on small samples, like every distance of empirical distributions.
        - Blind to pairing: shuffling the rows of one sample does not change the value.

    Source:
        Mémoli (2011), "Gromov-Wasserstein distances and the metric approach to object matching"; solved by conditional
        gradients as in Peyré, Cuturi and Solomon (2016) and Vayer, Chapel, Flamary, Tavenard and Courty (2019). The
        gradient follows from Danskin's theorem: it is that of the value under the plan.

    Example:
        >>> import pytest; _ = pytest.importorskip("ot")
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> turned = torch.tensor([[0.0, 3.0], [0.0, 2.0], [0.0, 0.0]])  # the same distances in the plane
        >>> round(gromov_wasserstein2(x, turned).item(), 6)
        0.0
        >>> round(gromov_wasserstein2(x, 2 * turned).item(), 4)  # each distance twice as long
        3.1111
    """
    measured = _cost_function(cost)
    a, b, weights_a, weights_b = _prepared(x, y, weights_x, weights_y)
    if not bool((a.sum() + b.sum()).isfinite()):
        # There is no plan for NaNs; return NaN, as every other formula does.
        return ((a.sum() + b.sum()) * torch.nan).to(working_dtype(x, y))
    with torch.autocast(x.device.type, enabled=False):
        within_x, within_y = measured(a, "x"), measured(b, "y")
        plan = _solved(within_x.detach(), within_y.detach(), weights_a, weights_b).plan
        # (c_x - c_y)² = c_x² + c_y² - 2 c_x c_y. The sums of the squares depend on the plan's marginals only, and the
        # mixed term is a product of matrices, so that no sum over four indices is needed.
        squares = weights_a @ within_x.square() @ weights_a + weights_b @ within_y.square() @ weights_b
        value: Tensor = squares - 2 * (within_x * (plan @ within_y @ plan.T)).sum()
    return value.to(working_dtype(x, y))


def gromov_plan(
    x: Tensor,
    y: Tensor,
    *,
    cost: str = "euclidean",
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
) -> GromovSolution:
    """Plan of :func:`gromov_wasserstein2`, and the values from each start.

    The starts are the product of the weights, which ignores the samples, and the plan that matches rows by their sorted
    distances to the other rows. Neither depends on the order of the rows.

    Args:
        x: As in :func:`gromov_wasserstein2`.
        y: As in :func:`gromov_wasserstein2`.
        cost: As in :func:`gromov_wasserstein2`.
        weights_x: As in :func:`gromov_wasserstein2`.
        weights_y: As in :func:`gromov_wasserstein2`.

    Returns:
        The better plan and both values, without gradient. Unit of the values: that of the cost, squared. Kind: local
        minima.

    Raises:
        InputError: As :func:`gromov_wasserstein2`, and if a number is not finite.

    Cost:
        As :func:`gromov_wasserstein2`.

    Pitfalls:
        If the starts end in different values, the problem has several minima; if they agree, it may still have several.
        Among symmetric samples the matching is arbitrary.

    Source:
        As :func:`gromov_wasserstein2`; the second start is the third lower bound of Mémoli (2011).

    Example:
        >>> import pytest; _ = pytest.importorskip("ot")
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> gromov_plan(x, x.flip(0)).plan.argmax(dim=1)
        tensor([2, 1, 0])
    """
    measured = _cost_function(cost)
    a, b, weights_a, weights_b = _prepared(x, y, weights_x, weights_y)
    require_finite(a, b)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _solved(measured(a, "x"), measured(b, "y"), weights_a, weights_b)


def _solved(within_x: Tensor, within_y: Tensor, weights_x: Tensor, weights_y: Tensor) -> GromovSolution:
    """Return the better of two local minima, from the distances within each sample."""
    program = linear_programs("The Gromov-Wasserstein discrepancy")
    kept_x, kept_y = weights_x.nonzero()[:, 0], weights_y.nonzero()[:, 0]
    c_x, c_y = (c[kept][:, kept].cpu().numpy() for c, kept in ((within_x, kept_x), (within_y, kept_y)))
    a, b = weights_x[kept_x].cpu().numpy(), weights_y[kept_y].cpu().numpy()
    # Costs are scaled to about 1, because the solver's tolerances are absolute.
    size = max(float(c_x.max(initial=0)), float(c_y.max(initial=0)), np.finfo(float).tiny)
    c_x, c_y = c_x / size, c_y / size
    plans, values = [], []
    # The problem is not convex, so the descent starts twice: from the product of the weights, which is POT's default
    # and ignores the samples, and from a plan that already matches rows.
    for start in (None, _by_sorted_distances(program, c_x, c_y, a, b)):
        plan = program.gromov.gromov_wasserstein(
            c_x, c_y, a, b, loss_fun="square_loss", symmetric=True, G0=start, max_iter=_MOST_STEPS
        )
        squares = a @ np.square(c_x) @ a + b @ np.square(c_y) @ b
        plans.append(plan)
        values.append(size**2 * float(squares - 2 * np.sum(c_x * (plan @ c_y @ plan.T))))
    # Values that differ by rounding count as equal. Otherwise the order of the rows would decide which plan is
    # returned.
    best = 1 if values[1] < values[0] - 1e-12 * size**2 else 0
    plan = torch.zeros(within_x.shape[0], within_y.shape[0], dtype=torch.float64)
    plan[kept_x.cpu()[:, None], kept_y.cpu()] = torch.from_numpy(plans[best])
    return GromovSolution(plan.to(within_x.device), (values[0], values[1]))


def _by_sorted_distances(program: Any, c_x: _Array, c_y: _Array, a: _Array, b: _Array) -> _Array:
    """Return the plan whose cost between two rows compares the distributions of their distances to other rows."""
    of_x, of_y = (_quantiles(c, weights) for c, weights in ((c_x, a), (c_y, b)))
    squares = np.square(of_x).sum(1)[:, None] + np.square(of_y).sum(1) - 2 * of_x @ of_y.T
    plan: _Array = program.emd(a, b, squares.clip(min=0))
    return plan


def _quantiles(costs: _Array, weights: _Array, count: int = 64) -> _Array:
    """Return quantiles of the distances of each row to all rows, ``(n, count)``."""
    order = costs.argsort(axis=1)
    reached = weights[order].cumsum(axis=1)
    levels = (np.arange(count) + 0.5) / count * (1 - 1e-12)
    at = np.stack([np.searchsorted(row, levels) for row in reached]).clip(max=costs.shape[1] - 1)
    quantiles: _Array = np.take_along_axis(np.take_along_axis(costs, order, axis=1), at, axis=1)
    return quantiles


def _cost_function(cost: str) -> Callable[[Tensor, str], Tensor]:
    require.one_of(cost, "cost", COSTS)
    return {"euclidean": _euclidean, "squared euclidean": _squared, "cosine": _cosine}[cost]


def _squared(rows: Tensor, name: str) -> Tensor:
    rows = rows - rows.detach().mean(dim=0)
    lengths = rows.square().sum(dim=1)
    squares = lengths[:, None] + lengths - 2 * rows @ rows.T
    diagonal = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return squares.clamp(min=0).masked_fill(diagonal, 0.0)


def _euclidean(rows: Tensor, name: str) -> Tensor:
    squares = _squared(rows, name)
    apart = squares > 0
    # The root has no derivative at 0; the gradient there is 0, its smallest subgradient.
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


def _cosine(rows: Tensor, name: str) -> Tensor:
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if not bool((lengths > 0).all()):
        row = int((~(lengths > 0)).nonzero()[0, 0])
        raise InputError(
            f'Row {row} of {name} has length 0, so its cosines are undefined. Remove it or use cost="euclidean".'
        )
    directions = rows / lengths[:, None]
    diagonal = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    costs: Tensor = (1 - directions @ directions.T).masked_fill(diagonal, 0.0)
    return costs


def _prepared(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_rows(x, "x")
    require_rows(y, "y")
    require_one_device(x, y)
    weights_x, weights_y = sample_weights(x, weights_x, "x"), sample_weights(y, weights_y, "y")
    return x.double(), y.double(), filled_weights(x, weights_x), filled_weights(y, weights_y)
