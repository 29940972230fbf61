"""Gromov-Wasserstein discrepancy: two samples of any widths, compared by the distances within each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.samples import require_one_device, require_rows, sample_weights, working_dtype
from mikit.functional.transport.plans import linear_programs, require_finite

__all__ = ["GromovSolution", "gromov_plan", "gromov_wasserstein2"]

_Array = npt.NDArray[Any]

_MOST_STEPS = 1000


@final
class GromovSolution(NamedTuple):
    """A plan at which the Gromov-Wasserstein discrepancy has a local minimum.

    Args:
        plan: ``(n, m)``, float64, whose sums are the weights.
        starts: Values reached from each start, the least of which the plan has.
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
    r"""Squared Gromov-Wasserstein discrepancy of two samples, whose widths may differ.

    .. math:: GW^2 = \min_P \sum_{ijkl} \bigl(c(x_i, x_k) - c(y_j, y_l)\bigr)^2 P_{ij} P_{kl}

    over plans with the weights of the rows as marginals: how far the distances within one sample must be from those
    within the other, whoever is matched with whom.

    Args:
        x: First sample, ``(n, d_x)``.
        y: Second sample, ``(m, d_y)``.
        cost: ``c``: ``"euclidean"``, ``"squared euclidean"``, or ``"cosine"`` (one less the cosine of the angle between
            two rows, seen from the origin).
        weights_x: Weights of the rows of ``x``, ``(n,)``, not negative; divided by their sum. None: equal. Constants
            for the gradient.
        weights_y: Likewise for ``y``, ``(m,)``.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable in both with the plan held
        constant. Unit: that of ``c``, squared: feature² for ``"euclidean"``. Kind: a discrepancy, 0 for samples that
        are equal up to what ``c`` does not see, and from above: the least of two local minima.

    Raises:
        InputError: If a sample is not ``(n, d)``, devices differ, weights do not fit, the cost has another name, a row
            has no length under ``"cosine"``, or POT is missing.

    Cost:
        O(n m (n + m)) a step and some ten to a hundred steps from each of two starts, on the CPU: 0.05 seconds at
        128 rows, a second at 500. O(n² + m² + n m) memory.

    Pitfalls:
        - The problem is not convex and what is found is a local minimum: the value may exceed the least one, by an
          amount that is not known, and jumps where another one takes over.
        - Blind to rotations, reflections and shifts under the Euclidean costs, and to scale under ``"cosine"``: a
          value of 0 does not mean equal features.
        - Too large on small samples, as every distance of empirical laws.
        - Blind to pairing: shuffling the rows of one sample changes nothing.

    Source:
        Mémoli (2011), "Gromov-Wasserstein distances and the metric approach to object matching"; solved by conditional
        gradients as by Peyré, Cuturi and Solomon (2016) and Vayer, Chapel, Flamary, Tavenard and Courty (2019). The
        gradient is Danskin's: that of the value under the plan.

    Example:
        >>> import pytest; _ = pytest.importorskip("ot")
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> turned = torch.tensor([[0.0, 3.0], [0.0, 2.0], [0.0, 0.0]])  # the same distances in the plane
        >>> round(gromov_wasserstein2(x, turned).item(), 6)
        0.0
        >>> round(gromov_wasserstein2(x, 2 * turned).item(), 4)  # each distance twice as long
        3.1111
    """
    measured = _measured(cost)
    a, b, weights_a, weights_b = _prepared(x, y, weights_x, weights_y)
    if not bool((a.sum() + b.sum()).isfinite()):
        # There is no plan among NaNs; the answer is what every other formula gives.
        return ((a.sum() + b.sum()) * torch.nan).to(working_dtype(x, y))
    with torch.autocast(x.device.type, enabled=False):
        within_x, within_y = measured(a, "x"), measured(b, "y")
        plan = _solved(within_x.detach(), within_y.detach(), weights_a, weights_b).plan
        # With the marginals known, the four-fold sum is three of two.
        own = weights_a @ within_x.square() @ weights_a + weights_b @ within_y.square() @ weights_b
        value: Tensor = own - 2 * (within_x * (plan @ within_y @ plan.T)).sum()
    return value.to(working_dtype(x, y))


def gromov_plan(
    x: Tensor,
    y: Tensor,
    *,
    cost: str = "euclidean",
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
) -> GromovSolution:
    """Plan behind :func:`gromov_wasserstein2`, and the values from each start.

    The starts are the plan that ignores the samples and the one that matches rows by the distances they see, sorted.
    Neither depends on the order of the rows.

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
        Starts that end in different values show that the problem has several minima; starts that agree do not show
        that there is only one. Among symmetric samples it is arbitrary who is matched with whom.

    Source:
        As :func:`gromov_wasserstein2`; the second start is the third lower bound of Mémoli (2011).

    Example:
        >>> import pytest; _ = pytest.importorskip("ot")
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> gromov_plan(x, x.flip(0)).plan.argmax(dim=1)
        tensor([2, 1, 0])
    """
    measured = _measured(cost)
    a, b, weights_a, weights_b = _prepared(x, y, weights_x, weights_y)
    require_finite(a, b)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _solved(measured(a, "x"), measured(b, "y"), weights_a, weights_b)


def _solved(within_x: Tensor, within_y: Tensor, weights_x: Tensor, weights_y: Tensor) -> GromovSolution:
    program = linear_programs("The Gromov-Wasserstein discrepancy")
    kept_x, kept_y = weights_x.nonzero()[:, 0], weights_y.nonzero()[:, 0]
    c_x, c_y = (c[kept][:, kept].cpu().numpy() for c, kept in ((within_x, kept_x), (within_y, kept_y)))
    a, b = weights_x[kept_x].cpu().numpy(), weights_y[kept_y].cpu().numpy()
    # Costs of about 1: the solver's tolerances are absolute.
    size = max(float(c_x.max(initial=0)), float(c_y.max(initial=0)), np.finfo(float).tiny)
    c_x, c_y = c_x / size, c_y / size
    plans, values = [], []
    for start in (None, _by_sorted_distances(program, c_x, c_y, a, b)):
        plan = program.gromov.gromov_wasserstein(
            c_x, c_y, a, b, loss_fun="square_loss", symmetric=True, G0=start, max_iter=_MOST_STEPS
        )
        own = a @ np.square(c_x) @ a + b @ np.square(c_y) @ b
        plans.append(plan)
        values.append(size**2 * float(own - 2 * np.sum(c_x * (plan @ c_y @ plan.T))))
    # Values that differ by rounding are one value; which plan it has must not depend on the order of the rows.
    best = 1 if values[1] < values[0] - 1e-12 * size**2 else 0
    plan = torch.zeros(within_x.shape[0], within_y.shape[0], dtype=torch.float64)
    plan[kept_x.cpu()[:, None], kept_y.cpu()] = torch.from_numpy(plans[best])
    return GromovSolution(plan.to(within_x.device), (values[0], values[1]))


def _by_sorted_distances(program: Any, c_x: _Array, c_y: _Array, a: _Array, b: _Array) -> _Array:
    """Return the plan whose cost between two rows is the distance of the distances they see."""
    seen_x, seen_y = (_quantiles(c, weights) for c, weights in ((c_x, a), (c_y, b)))
    squares = np.square(seen_x).sum(1)[:, None] + np.square(seen_y).sum(1) - 2 * seen_x @ seen_y.T
    plan: _Array = program.emd(a, b, squares.clip(min=0))
    return plan


def _quantiles(costs: _Array, weights: _Array, count: int = 64) -> _Array:
    """Return quantiles of the distances that each row sees, ``(n, count)``."""
    order = costs.argsort(axis=1)
    reached = weights[order].cumsum(axis=1)
    levels = (np.arange(count) + 0.5) / count * (1 - 1e-12)
    at = np.stack([np.searchsorted(row, levels) for row in reached]).clip(max=costs.shape[1] - 1)
    quantiles: _Array = np.take_along_axis(np.take_along_axis(costs, order, axis=1), at, axis=1)
    return quantiles


def _measured(cost: str) -> Callable[[Tensor, str], Tensor]:
    try:
        return {"euclidean": _euclidean, "squared euclidean": _squared, "cosine": _cosine}[cost]
    except KeyError:
        raise InputError(f'cost is "{cost}"; it must be "euclidean", "squared euclidean" or "cosine".') from None


def _squared(rows: Tensor, name: str) -> Tensor:
    rows = rows - rows.detach().mean(dim=0)
    lengths = rows.square().sum(dim=1)
    squares = lengths[:, None] + lengths - 2 * rows @ rows.T
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return squares.clamp(min=0).masked_fill(own, 0.0)


def _euclidean(rows: Tensor, name: str) -> Tensor:
    squares = _squared(rows, name)
    apart = squares > 0
    # The root has no derivative at 0, where the gradient is 0, its smallest subgradient.
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


def _cosine(rows: Tensor, name: str) -> Tensor:
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if not bool((lengths > 0).all()):
        row = int((~(lengths > 0)).nonzero()[0, 0])
        raise InputError(f'Row {row} of {name} has no direction, so no cosine. Remove it or use cost="euclidean".')
    directions = rows / lengths[:, None]
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    costs: Tensor = (1 - directions @ directions.T).masked_fill(own, 0.0)
    return costs


def _prepared(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_rows(x, "x")
    require_rows(y, "y")
    require_one_device(x, y)
    weights = []
    for sample, given, name in ((x, weights_x, "x"), (y, weights_y, "y")):
        own = sample_weights(sample, given, name)
        n = sample.shape[0]
        weights.append(torch.full((n,), 1 / n, dtype=torch.float64, device=sample.device) if own is None else own)
    return x.double(), y.double(), weights[0], weights[1]
