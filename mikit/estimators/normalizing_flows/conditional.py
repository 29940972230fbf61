"""Conditional mutual information by normalizing flows, on samples that were not fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from scipy.stats import t as student_t
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.inputs import as_group_codes, as_rows
from mikit.core.rows import FEWEST_IN_A_FOLD, split_folds
from mikit.estimators.base import Estimator, clustered_standard_error, require_matrix, seeded
from mikit.estimators.fitting import Training
from mikit.estimators.normalizing_flows.densities import FlowOptions, FlowPair
from mikit.estimators.normalizing_flows.flow_mi import FlowMI

__all__ = ["ConditionalInformation", "held_out_conditional_mi"]


@final
@dataclass(frozen=True, kw_only=True)
class ConditionalInformation:
    """A held-out conditional mutual information and its sampling error.

    Attributes:
        value: The estimate, in ``unit``; never clipped.
        standard_error: Sampling standard error; samples of one group count as one observation.
        interval: 95 % sampling interval of ``value``. It does not account for bias.
        contributions: Contribution of each sample, ``(n,)`` float64 in the given order; their mean is ``value``.
        sizes: Largest number of samples of the fit, select and report parts, number of all samples, and three widths.
        unit: ``"nats"``.
        kind: ``"estimate"``, neither a lower nor an upper bound.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    contributions: Tensor
    sizes: Mapping[str, int]
    unit: str = "nats"
    kind: str = "estimate"


def held_out_conditional_mi(
    x: Any,
    y: Any,
    z: Any,
    *,
    groups: Any = None,
    folds: int = 5,
    training: Training | None = None,
    width: int = 256,
    depth: int = 3,
    transforms: int = 2,
    dropout: float = 0.1,
    seed: int = 0,
) -> ConditionalInformation:
    """Conditional mutual information I(X; Y | Z) as a difference of two held-out cross-entropies, by normalizing flows.

    Formula: ``(1/n) Σ_i [log q(y_i | x_i, z_i) - log q(y_i | z_i)]``. Each sample is reported once, by flows that were
    fitted on other folds and stopped early on one more. Both densities share a flow, as in :class:`~mikit.FlowMI`, and
    start as Gaussian regressions, so the value before training is the Gaussian conditional information.

    Args:
        x: First variable, ``(n, d_x)`` or ``(n,)``.
        y: Second variable, the one that is explained, ``(n, d_y)`` or ``(n,)``; it must have a density.
        z: The conditioning variable, ``(n, d_z)`` or ``(n,)``.
        groups: One entry per sample; samples of one group stay in one fold and count as one observation.
        folds: Number of parts of the samples; each reports in turn, the next one selects, the others fit.
        training: Training recipe in place of that of :class:`~mikit.FlowMI`.
        width: Hidden units per layer of the perceptrons of the conditions.
        depth: Their hidden layers.
        transforms: Spline transforms in the flow that both densities share.
        dropout: Fraction of the perceptrons' hidden units left out in training.
        seed: Seed of every random draw. The global generators are not changed.

    Returns:
        A frozen :class:`ConditionalInformation`. Unit: nats. Kind: an estimate, not a bound, never clipped.

    Raises:
        InputError: If an array cannot be used (NaN, infinity, shape, dtype), if the samples do not match, if there are
            too few samples or groups, if a setting is out of range, or if the loss becomes NaN or infinite.

    Cost:
        ``folds`` fits, each about one and a half times one of :class:`~mikit.FlowMI`.

    Pitfalls:
        Biased low if the dependence is nonlinear and there are few samples, and biased high if ``q(y|z)`` misses what
        ``z`` contains about ``y`` and ``x`` repeats it. If ``z`` determines ``y``, the quantity does not exist. Folds
        share samples, so the flows of two folds are similar; the standard error does not account for this. For integer
        ``y``, or ``y`` after a ReLU, use :func:`~mikit.functional.conditional_mi`.

    Source:
        The chain rule ``I(X; Y | Z) = h(Y | Z) - h(Y | X, Z)`` with held-out cross-entropies; no single paper.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.randn(800, 1, generator=g)
        >>> x, y = (z + 0.5 * torch.randn(800, 1, generator=g) for _ in range(2))
        >>> quick = Training(steps=20, batch=200, every=10)
        >>> estimated = held_out_conditional_mi(x, y, z, folds=3, width=16, training=quick)
        >>> abs(estimated.value) < 0.03  # x and y share 0.51 nats, all of it through z
        True
    """
    require.seed(seed)
    if folds < 3:
        raise InputError(f"folds is {folds}; at least 3 are needed: one to fit, one to select and one to report.")
    x, y, z = _variables(x, y, z, folds)
    n = x.shape[0]
    codes = None if groups is None else as_group_codes(groups, n)
    generator = torch.Generator().manual_seed(seed)
    parts = split_folds(n, folds, groups=codes, generator=generator)
    # z comes first, because the second density is given only the first columns of the condition.
    condition = torch.cat([z, x], dim=1)
    options = FlowOptions(width, depth, transforms, dropout)
    contributions = torch.empty(n, dtype=torch.float64)
    largest = {"fit": 0, "select": 0, "report": 0}
    for turn in range(folds):
        # The fold that stops training is not the one that is reported: choosing the best state on the reported samples
        # would bias the estimate upward.
        report, select = parts[turn], parts[(turn + 1) % folds]
        fit = torch.cat([parts[(turn + step) % folds] for step in range(2, folds)]).sort().values
        watched = (condition[select], y[select])
        with seeded(generator):
            flows = FlowPair(y.shape[1], condition.shape[1], z.shape[1], options).to(x.device)
            flows.start_from(condition[fit], y[fit])
            estimator = _ConditionalFlows(flows)
            estimator.fit(condition[fit], y[fit], select=watched, generator=generator, training=training)
        flows.shrink(condition[fit], watched)
        contributions[report] = estimator.pointwise(condition[report], y[report]).cpu()
        for name, part in (("fit", fit), ("select", select), ("report", report)):
            largest[name] = max(largest[name], part.shape[0])
    widths = {"d_x": x.shape[1], "d_y": y.shape[1], "d_z": z.shape[1]}
    return _with_error(contributions, codes, {**largest, "n": n, **widths})


def _variables(x: Any, y: Any, z: Any, folds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three variables as matrices; raise if they do not match or are too few."""
    x, y, z = (_matrix(value, name) for value, name in ((x, "x"), (y, "y"), (z, "z")))
    n = x.shape[0]
    if not n == y.shape[0] == z.shape[0]:
        raise InputError(
            f"x has {n} samples, y has {y.shape[0]} and z has {z.shape[0]}. Row i of all three must come from the same "
            "sample."
        )
    if n // folds < FEWEST_IN_A_FOLD:
        raise InputError(f"There are {n} samples; {folds} folds need at least {FEWEST_IN_A_FOLD * folds}.")
    if not x.device == y.device == z.device:
        raise InputError(f"x is on {x.device}, y on {y.device} and z on {z.device}. Use one device.")
    return x, y, z


def _with_error(contributions: Tensor, codes: Tensor | None, sizes: Mapping[str, int]) -> ConditionalInformation:
    """Return the mean of the contributions with its error; samples of one group count as one observation."""
    value = float(contributions.mean())
    error = clustered_standard_error(contributions, codes)
    units = contributions.shape[0] if codes is None else int(codes.max()) + 1
    # Student's t rather than the normal quantile: there may be few groups.
    reach = float(student_t.ppf(0.975, max(units - 1, 1))) * error
    return ConditionalInformation(
        value=value,
        standard_error=error,
        interval=(value - reach, value + reach),
        contributions=contributions,
        sizes=sizes,
    )


@final
class _ConditionalFlows(Estimator):
    """The two densities as an estimator of the condition (``x``) and ``y``, so that it is fitted like any other."""

    name = "conditional flows"
    unit = "nats"
    kind = "estimate"
    learned = True
    recipe = FlowMI.recipe

    def __init__(self, flows: FlowPair) -> None:
        super().__init__()
        self.flows = flows

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        informed, uninformed = self.flows.log_densities(x, y.detach())
        return -(informed + uninformed).mean()

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        informed, uninformed = self.flows.log_densities(x, y)
        return informed.double() - uninformed.double()

    def param_groups(self) -> list[dict[str, Any]]:
        return self.flows.param_groups()


def _matrix(value: Any, name: str) -> Tensor:
    rows = as_rows(value, name)
    require_matrix(rows, name)
    return rows
