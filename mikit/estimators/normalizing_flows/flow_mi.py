"""Mutual information as a difference of two entropies that normalizing flows estimate."""

from __future__ import annotations

from typing import Any, Self, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.estimators.base import Estimator, require_examples, require_pair, seeded
from mikit.estimators.fitting import FitData, FitRecord, Training
from mikit.estimators.normalizing_flows.densities import FlowOptions, FlowPair

__all__ = ["FlowMI"]

_TIED = 0.05


@final
class FlowMI(Estimator):
    r"""Mutual information of samples ``(n, d_x)``, ``(n, d_y)`` as a difference of entropies by normalizing flows.

    Formula: ``I = h(y) - h(y|x)``, estimated on samples that were not fitted as
    ``(1/n) Σ_i [log q(y_i|x_i) - log q(y_i)]``. First, a stored increasing map makes each column approximately normal.
    Then both densities share one flow ``T`` (autoregressive splines and linear maps): ``w = T(y)``, and ``q(w|x)`` is a
    Gaussian regression in closed form whose residual is shifted and scaled by a perceptron of ``x`` and transformed by
    a spline flow; ``q(w)`` is the same without ``x``. The Jacobians of the maps and of ``T`` cancel. Before training
    the value is that of a Gaussian distribution.

    ``fit`` estimates the maps and the Gaussian start from the fit part, trains, and keeps the state that does best on
    the select part; this may be the Gaussian start. Then it shrinks the perceptron's output toward its mean, by the
    amount that does best on the select part.

    Args:
        d_x: Width of the student's features.
        d_y: Width of the teacher's features.
        width: Hidden units per layer of the perceptron of ``x``.
        depth: Its hidden layers.
        transforms: Spline transforms in ``T``.
        dropout: Fraction of the perceptron's hidden units left out in training, in ``[0, 1)``.

    Unit: nats.

    Kind: estimate, neither a lower nor an upper bound: a poor ``q(y|x)`` lowers it, a poor ``q(y)`` raises it.

    Raises:
        InputError: If the sizes do not fit, the samples do not match, or the loss becomes NaN or infinite.

    Cost:
        ``O(n)`` time per pass, with about ``5 d_y · 23 · 64 + width² depth`` multiplications per sample, and one
        Cholesky factor of ``d_x + d_y`` columns. Memory ``O(batch · d_y · 23)`` in training; estimates are computed in
        blocks.

    Pitfalls:
        The teacher must have a density: constant features, labels and the zeros of a ReLU have none, and no model fits
        them; the check "the teacher has a density" shows this. Biased low if the dependence is nonlinear and there are
        few samples. Has no upper limit in ``n``, so exact relations give a large number instead of infinity. Slow
        above some hundred columns of ``y``: reduce those first. Not symmetric: it models ``y``. In training mode a call
        draws from torch's global random numbers for the dropout.

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
        self.flows = FlowPair(d_y, d_x, 0, FlowOptions(width, depth, transforms, dropout))

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
            x: Student features ``(n, d_x)``.
            y: Teacher features ``(n, d_y)``.
            width: As in the class.
            depth: As in the class.
            transforms: As in the class.
            dropout: As in the class.
            generator: Source of the networks' initial weights; torch's global generator if None.
        """
        require_examples(x, y)
        with seeded(generator):
            estimator = cls(
                x.shape[1], y.shape[1], width=width, depth=depth, transforms=transforms, dropout=dropout
            ).to(x.device)
        estimator.flows.start_from(x, y)
        return estimator

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same hyperparameters, built for ``x`` and ``y``."""
        return type(self).between(
            x,
            y,
            width=self.width,
            depth=self.depth,
            transforms=self.transforms,
            dropout=self.dropout,
            generator=generator,
        )

    def _fit(self, data: FitData) -> FitRecord:
        """Fit the maps and the Gaussian start in closed form, train, and shrink what training has learned."""
        require_examples(data.x, data.y)
        self._require_widths(data.x, data.y)
        self.flows.start_from(data.x, data.y)
        # Dropout draws from the global generator.
        with seeded(data.generator):
            record = super()._fit(data)
        if data.select is not None:
            self.flows.shrink(data.x, data.select)
        return record

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean of ``-log q(y|x) - log q(y)`` of the mapped columns; the teacher ``y`` gets no gradient."""
        require_pair(x, y)
        self._require_widths(x, y)
        informed, uninformed = self.flows.log_densities(x, y.detach())
        return -(informed + uninformed).mean()

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean log-ratio of the two densities, in nats; negative if ``q(y|x)`` is worse than ``q(y)``."""
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log q(y|x) - log q(y)`` of each sample, float64."""
        require_pair(x, y)
        self._require_widths(x, y)
        informed, uninformed = self.flows.log_densities(x, y)
        return informed.double() - uninformed.double()

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return whether the teacher has a density: the largest fraction of samples with one value of a column."""
        share = _largest_atom(y)
        check = Check.judged(
            "the teacher has a density",
            share,
            passed="No feature of y has the same value in many samples, so a density can describe it.",
            otherwise=(
                f"One feature of y has the same value in {share:.0%} of the samples. A normalizing flow is a density "
                "and cannot describe that; use KSG or InfoNCE, which need no density."
            ),
            warn=_TIED,
        )
        return (check,)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return matrices in one group and vectors, without weight decay, in another."""
        return self.flows.param_groups()

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        sizes = f"{self.d_x}, {self.d_y}, width={self.width}, depth={self.depth}"
        return f"{sizes}, transforms={self.transforms}, dropout={self.dropout:g}"

    def _require_widths(self, x: Tensor, y: Tensor) -> None:
        if x.shape[1] != self.d_x or y.shape[1] != self.d_y:
            raise InputError(
                f"x has {x.shape[1]} features and y has {y.shape[1]}, but this FlowMI was built for {self.d_x} and "
                f"{self.d_y}. Build it with FlowMI.between from features of those layers."
            )


def _largest_atom(rows: Tensor) -> float:
    """Return the largest fraction of rows with the same value in a column that varies."""
    ordered = rows.detach().sort(dim=0).values
    share = 0.0
    for column in ordered.T:
        counts = torch.unique_consecutive(column, return_counts=True)[1]
        if counts.shape[0] > 1:
            share = max(share, float(counts.max()) / rows.shape[0])
    return share
