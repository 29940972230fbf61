"""What two variables share beyond a third, read by flows on rows that were not fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from scipy.stats import t as student_t
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.inputs import as_group_codes, as_rows
from mikit.core.rows import split_folds
from mikit.estimators.base import Estimator, clustered_standard_error, seeded
from mikit.estimators.fitting import Training, minimise
from mikit.estimators.normalizing_flows.densities import FlowPair
from mikit.estimators.normalizing_flows.flow_mi import FlowMI

__all__ = ["ConditionalInformation", "held_out_conditional_mi"]

_FEWEST_IN_A_FOLD = 4


@final
@dataclass(frozen=True, kw_only=True)
class ConditionalInformation:
    """A held-out conditional information and its sampling error.

    Attributes:
        value: The estimate, in ``unit``; never clipped.
        standard_error: Sampling standard error; rows of one group count as one observation.
        interval: 95 % sampling interval of ``value``. It holds the estimator's target, not its bias.
        contributions: What each row adds, ``(n,)`` float64 in the order given; their mean is ``value``.
        sizes: Rows that fit, select and report in one turn (the largest), all rows, and the three widths.
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
    """Conditional mutual information I(X; Y | Z) as a difference of two cross-entropies of held-out rows, by flows.

    Formula: ``(1/n) Σ_i [log q(y_i | x_i, z_i) - log q(y_i | z_i)]``. Each row is reported once, by flows that were
    fitted on other folds and stopped by one more. Both densities share a flow, as in :class:`~mikit.FlowMI`, and start
    as Gaussian regressions, so that the value before training is the Gaussian partial information.

    Args:
        x: First variable, ``(n, d_x)`` or ``(n,)``.
        y: Second variable, the one that is explained, ``(n, d_y)`` or ``(n,)``; it must have a density.
        z: The variable that is given, ``(n, d_z)`` or ``(n,)``.
        groups: One entry per row; rows of one group stay in one fold and count as one observation.
        folds: Parts the rows are dealt into; each reports in turn, the next one selects, the others fit.
        training: Training recipe in place of that of :class:`~mikit.FlowMI`.
        width: Hidden units per layer of the perceptrons that read the conditions.
        depth: Their hidden layers.
        transforms: Spline transforms in the flow both densities share.
        dropout: Share of the perceptrons' hidden units left out in training.
        seed: Seed of every random draw. The global generators are left alone.

    Returns:
        A frozen :class:`ConditionalInformation`. Unit: nats. Kind: an estimate, not a bound, never clipped.

    Raises:
        InputError: If an array cannot be used (NaN, infinity, shape, dtype), if rows do not match, if there are too few
            rows or groups, if a setting is out of range, or if the loss turns NaN or infinite while fitting.

    Cost:
        ``folds`` fits, each about one and a half times one of :class:`~mikit.FlowMI`.

    Pitfalls:
        Errs low where the dependence is bent and rows are few, and high where ``q(y|z)`` misses what ``z`` says of
        ``y`` and ``x`` repeats it. Where ``z`` determines ``y`` the quantity does not exist. Folds share rows, so the
        standard error leaves out that the flows of two folds resemble each other. With integer or ReLU'd ``y`` use
        :func:`~mikit.functional.conditional_mi`.

    Source:
        The chain rule ``I(X; Y | Z) = h(Y | Z) - h(Y | X, Z)`` with held-out cross-entropies; no single paper.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.randn(800, 1, generator=g)
        >>> x, y = (z + 0.5 * torch.randn(800, 1, generator=g) for _ in range(2))
        >>> quick = Training(steps=20, batch=200, every=10)
        >>> told = held_out_conditional_mi(x, y, z, folds=3, width=16, training=quick)
        >>> abs(told.value) < 0.03  # x and y share 0.51 nats, all of it through z
        True
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**62:
        raise InputError(f"seed is {seed!r}; it must be a whole number from 0 to 2**62.")
    if folds < 3:
        raise InputError(f"folds is {folds}; at least 3 are needed: one to fit, one to select and one to report.")
    first, second, given = (_matrix(value, name) for value, name in ((x, "x"), (y, "y"), (z, "z")))
    n = first.shape[0]
    if not n == second.shape[0] == given.shape[0]:
        raise InputError(
            f"x has {n} rows, y has {second.shape[0]} and z has {given.shape[0]}. Row i of all three must come "
            "from the same sample."
        )
    if n // folds < _FEWEST_IN_A_FOLD:
        raise InputError(f"There are {n} rows; {folds} folds need at least {_FEWEST_IN_A_FOLD * folds}.")
    if not first.device == second.device == given.device:
        raise InputError(f"x is on {first.device}, y on {second.device} and z on {given.device}. Use one device.")
    codes = None if groups is None else as_group_codes(groups, n)
    condition = torch.cat([given, first], dim=1)
    generator = torch.Generator().manual_seed(seed)
    parts = split_folds(n, folds, groups=codes, generator=generator)
    contributions = torch.empty(n, dtype=torch.float64)
    largest = {"fit": 0, "select": 0, "report": 0}
    for turn in range(folds):
        report, select = parts[turn], parts[(turn + 1) % folds]
        fit = torch.cat([parts[(turn + step) % folds] for step in range(2, folds)]).sort().values
        with seeded(generator):
            instrument = _ConditionalFlows(
                FlowPair(
                    second.shape[1],
                    condition.shape[1],
                    given.shape[1],
                    width=width,
                    depth=depth,
                    transforms=transforms,
                    dropout=dropout,
                )
            ).to(first.device)
            instrument.flows.start_from(condition[fit], second[fit])
            watched = (condition[select], second[select])
            minimise(
                instrument,
                condition[fit],
                second[fit],
                param_groups=instrument.param_groups(),
                select=watched,
                generator=generator,
                training=training or FlowMI.recipe,
            )
        instrument.flows.settle(condition[fit], second[fit], watched)
        contributions[report] = instrument.pointwise(condition[report], second[report]).cpu()
        for name, part in (("fit", fit), ("select", select), ("report", report)):
            largest[name] = max(largest[name], part.shape[0])
    value = float(contributions.mean())
    error = clustered_standard_error(contributions, codes)
    units = n if codes is None else int(codes.max()) + 1
    reach = float(student_t.ppf(0.975, max(units - 1, 1))) * error
    widths = {"d_x": first.shape[1], "d_y": second.shape[1], "d_z": given.shape[1]}
    return ConditionalInformation(
        value=value,
        standard_error=error,
        interval=(value - reach, value + reach),
        contributions=contributions,
        sizes={**largest, "n": n, **widths},
    )


@final
class _ConditionalFlows(Estimator):
    """The two densities as a measure of condition against ``y``, so that they are fitted like any other."""

    name = "conditional flows"
    unit = "nats"
    kind = "estimate"
    learned = True

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
    if rows.ndim != 2:
        raise InputError(
            f"{name} has shape {tuple(rows.shape)}, but rows of shape (n, d) are read. Pool or flatten feature maps "
            "and tokens first; mikit.activations.readout has the usual ways."
        )
    return rows
