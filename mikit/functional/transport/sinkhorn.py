"""Entropic optimal transport between two samples: potentials, and the debiased divergence with its gradient."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import ConvergenceWarning, InputError
from mikit.functional.engine.operators import closed_form, full_precision, unwanted
from mikit.functional.engine.samples import (
    require_one_device,
    require_rows,
    require_same_width,
    sample_weights,
    working_dtype,
)
from mikit.functional.transport.plans import filled_weights
from mikit.functional.transport.scaling import (
    EntropicProblem,
    Settings,
    centered_points,
    self_transport,
    soft_minimum,
)

__all__ = ["HELD_ENTRIES", "SinkhornSolution", "sinkhorn", "sinkhorn_divergence"]

HELD_ENTRIES = 2**26
"""Most entries of a kernel matrix kept in memory by default, 256 MiB in float32. Larger ones are recomputed."""


@final
@dataclass(frozen=True)
class SinkhornSolution:
    r"""A solution: the plan is :math:`P_{ij} = a_i b_j \exp((f_i + g_j - |x_i - y_j|^2 / 2) / \varepsilon)`.

    Attributes:
        value: Entropic transport cost, 0-dim.
        potential_x: :math:`f`, ``(n,)``.
        potential_y: :math:`g`, ``(m,)``.
        marginal_error: Sum of absolute differences between the plan's marginals and the weights, before the last update
            of ``potential_y``, after which its marginal is exact.
        iterations: Updates of both potentials.
        converged: Whether the marginal error is within the tolerance.
    """

    value: Tensor
    potential_x: Tensor
    potential_y: Tensor
    marginal_error: float
    iterations: int
    converged: bool


def sinkhorn(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    tolerance: float = 3e-4,
    max_iterations: int = 1000,
    held_entries: int = HELD_ENTRIES,
    strip: int | None = None,
) -> SinkhornSolution:
    r"""Entropic optimal transport between two samples, for the cost :math:`|x_i - y_j|^2 / 2`.

    .. math:: \mathrm{OT}_\varepsilon = \min_P \sum_{ij} P_{ij} \tfrac12 |x_i - y_j|^2
              + \varepsilon\, \mathrm{KL}(P \,\|\, a \otimes b)
              = \max_{f, g} \sum_i a_i f_i + \sum_j b_j g_j - \varepsilon \Bigl(\sum_{ij} P_{ij} - 1\Bigr)

    over plans with marginals ``a`` and ``b``, the weights of the samples.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        epsilon: Strength of the entropic regularization, in the unit of the cost, which is half of a squared distance.
        weights_x: Weights of the rows of ``x``, ``(n,)``, not negative; divided by their sum. None: equal.
        weights_y: Likewise for ``y``, ``(m,)``.
        tolerance: Largest sum of absolute differences between the plan's marginals and the weights, whose sums are 1.
        max_iterations: Updates of both potentials after which to stop, even without convergence.
        held_entries: As in :func:`sinkhorn_divergence`.
        strip: As in :func:`sinkhorn_divergence`.

    Returns:
        Value, potentials, the marginal error reached and whether it is within the tolerance. Without gradients. Unit
        of the value and the potentials: that of the features, squared. Kind of the value: a cost; it approaches the
        maximum over potentials from below, and is not 0 for equal samples.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths or devices differ, weights have the wrong shape, are negative,
            not finite or all 0, or ``epsilon`` or ``tolerance`` is not positive.

    Cost:
        As :func:`sinkhorn_divergence`, without its self terms and gradients.

    Pitfalls:
        There is no warning: check ``converged``. The potentials are determined up to a constant that is added to one
        and subtracted from the other.

    Source:
        Cuturi (2013), "Sinkhorn Distances". Over-relaxation of the updates: Thibault, Chizat, Dossal and Papadakis
        (2021); its strength is computed from the observed rate by Young's relation.

    Example:
        >>> x, y = torch.tensor([[0.0]]), torch.tensor([[3.0]])
        >>> solution = sinkhorn(x, y, epsilon=0.1)
        >>> solution.value.item(), solution.converged  # the only plan costs 3² / 2
        (4.5, True)
    """
    settings = Settings(epsilon, tolerance, max_iterations, held_entries, strip)
    a, b, dtype = _prepared(x, y, weights_x, weights_y, settings)
    with full_precision(x.device):
        points_x, points_y = centered_points(x.to(dtype), a), centered_points(y.to(dtype), b)
        kept_x, kept_y = points_x.kept(), points_y.kept()
        problem = EntropicProblem(kept_x, kept_y, settings)
        iterations = problem.solve()
        plan = problem.plan((False, False))
        # Rows of weight 0 take no part in the iteration. Their potentials follow from those of the other sample.
        f, g = plan.potential_x, plan.potential_y
        if len(kept_x.rows) < len(points_x.rows):
            f = soft_minimum(points_x.rows, kept_y, g, settings)
        if len(kept_y.rows) < len(points_y.rows):
            g = soft_minimum(points_y.rows, kept_x, plan.potential_x, settings)
        shift = points_x.mean - points_y.mean
        between_means = 0.5 * shift.square().sum()
        # |x - y|² of the points before centering is that of the centered ones, plus a term in x, a term in y and a
        # constant. Such terms move the potentials and leave the plan as it is.
        f = f + points_x.rows.double() @ shift + between_means
        g = g - points_y.rows.double() @ shift
    return SinkhornSolution(
        value=(plan.value + between_means).to(dtype),
        potential_x=f.to(dtype),
        potential_y=g.to(dtype),
        marginal_error=plan.marginal_error,
        iterations=iterations,
        converged=plan.marginal_error <= tolerance,
    )


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    tolerance: float = 3e-4,
    max_iterations: int = 1000,
    held_entries: int = HELD_ENTRIES,
    strip: int | None = None,
) -> Tensor:
    r"""Debiased entropic transport cost between two samples, for the cost :math:`|x_i - y_j|^2 / 2`.

    .. math:: S_\varepsilon(x, y) = \mathrm{OT}_\varepsilon(x, y) - \tfrac12 \mathrm{OT}_\varepsilon(x, x)
              - \tfrac12 \mathrm{OT}_\varepsilon(y, y)

    with :math:`\mathrm{OT}_\varepsilon` as in :func:`sinkhorn`. It converges to half of the squared 2-Wasserstein
    distance as ``epsilon`` goes to 0, and to half of the squared distance of the means as ``epsilon`` grows.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``.
        epsilon: Strength of the entropic regularization, in the unit of the cost, which is half of a squared distance.
            A few percent of the mean cost is a usual choice. The ``blur`` of geomloss with ``p = 2`` is its square
            root.
        weights_x: Weights of the rows of ``x``, ``(n,)``, not negative; divided by their sum. None: equal. The gradient
            treats them as constants.
        weights_y: Likewise for ``y``, ``(m,)``.
        tolerance: Largest sum of absolute differences between the marginals of each plan and the weights, whose sums
            are 1. The error of the value is of second order in it, that of the gradient of first.
        max_iterations: Updates of both potentials after which to stop, even without convergence.
        held_entries: Most entries of a kernel matrix kept in memory. Larger kernels are recomputed in every iteration,
            in blocks of rows. This affects time and memory, and changes values only by rounding.
        strip: Number of rows per block; None chooses.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit: that of
        the features, squared. Kind: a discrepancy, 0 for equal samples and positive otherwise when solved exactly;
        never clipped, so rounding and a loose tolerance may leave a small negative value.

    Raises:
        InputError: As :func:`sinkhorn`.

    Warns:
        ConvergenceWarning: If the tolerance is not reached. The value is then still a difference of values of the dual
            problem, and the gradient that of an approximate plan.

    Cost:
        O(n m d) once, then O(n m) per iteration, and O(n m + (n + m) d) memory, while ``n m`` is within
        ``held_entries``; above, O(n m d) per iteration and O(strip (n + m) + (n + m) d) memory. The number of
        iterations grows about as the inverse of ``epsilon``. The self terms need two or three iterations. Gradients are
        computed from the plans with another O(n m d), without unrolling the iterations.

    Pitfalls:
        - Compare only values of one ``epsilon``; scale it with the features.
        - Blind to pairing: shuffling the rows of one sample does not change the value.
        - Below a percent of the mean cost many iterations are needed, and float32 rounding affects the logarithms: by
          about ``1e-7`` times the largest score over ``epsilon``.
        - Far above all costs the value is a small difference of numbers of the size of ``epsilon``: the relative error
          of float32 is 2e-4 at a thousand times the mean cost, and 2 % at a hundred thousand times. Pass float64 there.

    Source:
        Genevay, Peyré and Cuturi (2018); Feydy, Séjourné, Vialard, Amari, Trouvé and Peyré (2019), "Interpolating
        between Optimal Transport and MMD using Sinkhorn Divergences". The gradient follows from Danskin's theorem: it
        is that of the cost under the optimal plan.

    Example:
        >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> round(sinkhorn_divergence(x, x + 2, epsilon=0.5).item(), 4)  # a shift costs half of its square
        6.0
    """
    settings = Settings(float(epsilon), float(tolerance), max_iterations, held_entries, strip)
    a, b, dtype = _prepared(x, y, weights_x, weights_y, settings)
    # An operator of torch takes numbers and lists of numbers, and no dataclass.
    accuracy, limits = [settings.epsilon, settings.tolerance], [settings.max_iterations, settings.held_entries]
    return _divergence(x.to(dtype), y.to(dtype), a, b, accuracy, limits, strip).to(dtype)


@closed_form
def _divergence(
    wants: Sequence[bool],
    x: Tensor,
    y: Tensor,
    weights_x: Tensor | None,
    weights_y: Tensor | None,
    accuracy: list[float],
    limits: list[int],
    strip: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the divergence and its gradients; the lists are the first and the next two fields of ``Settings``."""
    assert weights_x is not None
    assert weights_y is not None
    (epsilon, tolerance), (max_iterations, held_entries) = accuracy, limits
    settings = Settings(epsilon, tolerance, max_iterations, held_entries, strip)
    points_x, points_y = centered_points(x, weights_x), centered_points(y, weights_y)
    kept_x, kept_y = points_x.kept(), points_y.kept()
    problem = EntropicProblem(kept_x, kept_y, settings)
    iterations = problem.solve()
    plan = problem.plan(wants)
    del problem  # and the kernel that it keeps, before those of the self terms are made
    self_x, self_y = self_transport(kept_x, settings, wants[0]), self_transport(kept_y, settings, wants[1])
    error = max(plan.marginal_error, self_x.marginal_error, self_y.marginal_error)
    if not error <= tolerance:
        warnings.warn(
            f"The Sinkhorn divergence stopped after {iterations} iterations with a marginal error of {error:.1e}, "
            f"above the tolerance of {tolerance:.1e}; its gradient may be off by some multiple of that. Raise epsilon, "
            "max_iterations or the tolerance, or pass float64.",
            ConvergenceWarning,
            stacklevel=2,
        )
    shift = points_x.mean - points_y.mean
    value = plan.value + 0.5 * shift.square().sum() - 0.5 * (self_x.value + self_y.value)
    # Danskin's theorem: at the optimum the gradient is that of the cost with the plan fixed, which is the mean of
    # x_i - y_j over the partners of each row. The iterations are not differentiated.
    gradients = []
    for wanted, points, kept, image, self_image, sign in (
        (wants[0], points_x, kept_x, plan.image_x, self_x.image_x, 1.0),
        (wants[1], points_y, kept_y, plan.image_y, self_y.image_x, -1.0),
    ):
        gradients.append(points.gradient(kept, self_image - image, sign * shift) if wanted else unwanted(points.rows))
    return value, gradients[0], gradients[1]


def _prepared(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Return the weights in float64, with sum 1, and the dtype to compute in."""
    require_rows(x, "x")
    require_rows(y, "y")
    require_same_width(x, y)
    require_one_device(x, y)
    require.positive(settings.epsilon, "epsilon", "in the unit of half a squared distance")
    if not settings.tolerance > 0:
        raise InputError(f"tolerance is {settings.tolerance}; it must be positive. The default is 3e-4.")
    require.at_least(settings.max_iterations, "max_iterations")
    weights_x, weights_y = sample_weights(x, weights_x, "x"), sample_weights(y, weights_y, "y")
    return filled_weights(x, weights_x), filled_weights(y, weights_y), working_dtype(x, y)
