"""Mutual information as a difference of entropies, both read by normalising flows."""

from __future__ import annotations

from typing import Any, Self, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.inputs import refuse_non_finite
from mikit.core.measurement import Check
from mikit.estimators.base import Estimator, require_pair, seeded
from mikit.estimators.fitting import FitRecord, Training
from mikit.estimators.normalizing_flows.densities import FlowPair

__all__ = ["FlowMI"]

_TIED = 0.05


@final
class FlowMI(Estimator):
    r"""Mutual information of rows ``(n, d_x)`` and ``(n, d_y)`` as a difference of entropies by normalising flows.

    Formula: ``I = h(y) - h(y|x)``, read on rows that were not fitted as ``(1/n) Σ_i [log q(y_i|x_i) - log q(y_i)]``.
    Each column is first brought close to a normal shape by a stored rising map. Then one flow ``T`` (autoregressive
    splines and linear maps) serves both densities: ``w = T(y)``, and ``q(w|x)`` is a Gaussian regression in closed form
    whose residual a perceptron of ``x`` shifts and scales and a spline flow bends; ``q(w)`` is the same without ``x``.
    Jacobians of the maps and of ``T`` cancel. Before training the value is that of the Gaussian law.

    Args:
        d_x: Width of the student's rows.
        d_y: Width of the teacher's rows.
        width: Hidden units per layer of the perceptron that reads ``x``.
        depth: Its hidden layers.
        transforms: Spline transforms in ``T``.
        dropout: Share of the perceptron's hidden units left out in training, in ``[0, 1)``.

    Unit: nats.

    Kind: estimate, neither a lower nor an upper bound: a poor ``q(y|x)`` lowers it, a poor ``q(y)`` raises it.

    Raises:
        InputError: If sizes do not fit, rows do not match, or the loss turns NaN or infinite while fitting.

    Cost:
        ``O(n)`` time per pass, with about ``5 d_y · 23 · 64 + width² depth`` multiplications a row, and one Cholesky
        factor of ``d_x + d_y`` columns. Memory ``O(batch · d_y · 23)`` in training; estimates run in strips.

    Pitfalls:
        Needs a teacher with a density: constant stretches, labels and ReLU's zeros have none, and the value is then
        that of a density that never fits; the check "the teacher has a density" shows it. Errs low where the
        dependence is bent and the rows are few. Has no ceiling in ``n``, so exact relations give a large number
        instead of infinity. Slow beyond some hundred columns of ``y``: reduce those first. Not symmetric: it models
        ``y``. In training mode a call draws from torch's global random numbers for the dropout.

    Source:
        McAllester and Stratos (2020), "Formal Limitations on the Measurement of Mutual Information", for the
        difference of entropies; the splines of Durkan and others (2019), as in zuko.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 1, generator=g)
        >>> y = (0.9 * x + 0.19**0.5 * torch.randn(1000, 1, generator=g)) ** 3  # the truth is 0.83 nats
        >>> flow = FlowMI.between(x[:600], y[:600], width=32, generator=g)
        >>> quick = Training(steps=50, batch=200)
        >>> _ = flow.fit(x[:600], y[:600], select=(x[600:800], y[600:800]), generator=g, training=quick)
        >>> 0.6 < float(flow.estimate(x[800:], y[800:])) < 1.1
        True
    """

    name = "flow"
    unit = "nats"
    kind = "estimate"
    needs_density = True
    learned = True
    recipe = Training(steps=1000, batch=512, learning_rate=1e-2, weight_decay=0.3, every=25, patience=8)

    def __init__(
        self,
        d_x: int,
        d_y: int,
        *,
        width: int = 256,
        depth: int = 3,
        transforms: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.d_x = d_x
        self.d_y = d_y
        self.width = width
        self.depth = depth
        self.transforms = transforms
        self.dropout = dropout
        self.flows = FlowPair(d_y, d_x, 0, width=width, depth=depth, transforms=transforms, dropout=dropout)

    @classmethod
    def between(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        width: int = 256,
        depth: int = 3,
        transforms: int = 2,
        dropout: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build from example features, which set the sizes, the maps of the columns and the Gaussian start.

        Args:
            x: Student rows ``(n, d_x)``.
            y: Teacher rows ``(n, d_y)``.
            width: As in the class.
            depth: As in the class.
            transforms: As in the class.
            dropout: As in the class.
            generator: Where the networks' start comes from; torch's global generator if None.
        """
        _require_examples(x, y)
        with seeded(generator):
            estimator = cls(
                x.shape[1], y.shape[1], width=width, depth=depth, transforms=transforms, dropout=dropout
            ).to(x.device)
        estimator.flows.start_from(x, y)
        return estimator

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same hyper-parameters, built for ``x`` and ``y``."""
        return type(self).between(
            x,
            y,
            width=self.width,
            depth=self.depth,
            transforms=self.transforms,
            dropout=self.dropout,
            generator=generator,
        )

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        select: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator,
        training: Training | None = None,
    ) -> FitRecord:
        """Take the columns' maps and the Gaussian start from ``x`` and ``y``, then train on them.

        The state that does best on ``select`` is kept; it may be the Gaussian start. Then what the perceptron says is
        drawn to its mean, by the amount that does best on ``select``.
        """
        _require_examples(x, y)
        self._require_widths(x, y)
        self.flows.start_from(x, y)
        with seeded(generator):
            record = super().fit(x, y, select=select, generator=generator, training=training)
        if select is not None:
            self.flows.settle(x, y, select)
        return record

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean of ``-log q(y|x) - log q(y)`` in the mapped columns; the teacher ``y`` gets no gradient."""
        require_pair(x, y)
        self._require_widths(x, y)
        informed, uninformed = self.flows.log_densities(x, y.detach())
        return -(informed + uninformed).mean()

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean log-ratio of the two densities, in nats; below 0 where knowing ``x`` misleads."""
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return each row's ``log q(y|x) - log q(y)``, float64."""
        require_pair(x, y)
        self._require_widths(x, y)
        informed, uninformed = self.flows.log_densities(x, y)
        return informed.double() - uninformed.double()

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return whether the teacher has a density: the largest share of rows that hold one value of a column."""
        share = _largest_atom(y)
        if share <= _TIED:
            sentence = "No column of y repeats a value in many rows, so a density can describe it."
        else:
            sentence = (
                f"One column of y holds the same value in {share:.0%} of the rows. A flow is a density and cannot "
                "describe that; use KSG or InfoNCE, which need none."
            )
        return (Check("the teacher has a density", "pass" if share <= _TIED else "warn", share, _TIED, sentence),)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return matrices in one group and vectors, undecayed, in another."""
        return self.flows.param_groups()

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        sizes = f"{self.d_x}, {self.d_y}, width={self.width}, depth={self.depth}"
        return f"{sizes}, transforms={self.transforms}, dropout={self.dropout:g}"

    def _require_widths(self, x: Tensor, y: Tensor) -> None:
        if x.shape[1] != self.d_x or y.shape[1] != self.d_y:
            raise InputError(
                f"x has {x.shape[1]} columns and y has {y.shape[1]}, but this FlowMI was built for {self.d_x} and "
                f"{self.d_y}. Build it with FlowMI.between from features of those layers."
            )


def _require_examples(x: Tensor, y: Tensor) -> None:
    require_pair(x, y)
    refuse_non_finite(x, "x")
    refuse_non_finite(y, "y")


def _largest_atom(rows: Tensor) -> float:
    """Return the largest share of rows that hold one and the same value in a column that varies."""
    ordered = rows.detach().sort(dim=0).values
    share = 0.0
    for column in ordered.T:
        counts = torch.unique_consecutive(column, return_counts=True)[1]
        if counts.shape[0] > 1:
            share = max(share, float(counts.max()) / rows.shape[0])
    return share
