"""The base class of all estimators, and helpers for building and checking them.

An :class:`Estimator` is an ``nn.Module``. ``forward`` returns the loss to minimize, ``estimate`` the number to report;
they are two methods because the best training objective is often not the best estimate.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.core.inputs import refuse_non_finite
from mikit.core.measurement import Check
from mikit.core.rows import require_paired
from mikit.estimators.fitting import FitData, FitRecord, Training, minimize

__all__ = ["Estimator", "Reading", "clustered_standard_error", "require_examples", "require_pair", "seeded"]


@final
@dataclass(frozen=True, kw_only=True)
class Reading:
    """The results of an estimator on one sample.

    ``value`` and ``standard_error`` (None if unknown) are in the estimator's unit. ``checks`` are those that only this
    estimator needs, ``parts`` other estimates on the same sample by name, for comparison only, and ``note`` one line on
    what the estimator decided; empty where there was nothing to decide.
    """

    value: float
    standard_error: float | None
    checks: tuple[Check, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


class Estimator(nn.Module, abc.ABC):
    """A measure of dependence or difference between ``x`` and ``y``: a loss when called, an estimator when measured.

    ``x`` contains the student's features (the condition) and ``y`` the teacher's (what is explained); samples are
    paired. Subclasses set the class attributes and implement ``forward`` and ``estimate``. Estimators with a learned
    head or critic are built from example features with ``between``, fitted with ``fit``, and reset with ``fresh``.

    Attributes:
        name: Name in the registry, as used by :func:`mikit.measure` and the command line.
        unit: Unit of ``estimate``: ``"nats"``, ``"feature"``, ``"feature²"`` or ``"dimensionless"``.
        kind: What the number is: ``"lower bound"``, ``"upper bound"``, ``"estimate"``, ``"V-information"``,
            ``"index"`` or ``"discrepancy"``.
        differentiable: Whether ``forward`` has a gradient. If not, ``forward`` raises ``TypeError``.
        learned: Whether ``fit`` must run before ``estimate`` is meaningful.
        symmetric: Whether ``estimate(x, y)`` equals ``estimate(y, x)``.
        orderless: Whether the value is independent of the order of the samples. False for estimators that compare
            blocks or halves of the samples, which should come in random order.
        explains: What ``y`` is: ``"vectors"`` of shape ``(n, d)`` or ``"labels"`` of shape ``(n,)``.
        reads: What ``x`` contains: ``"numbers"``, or ``"categories"``, whose rows repeat.
        shapes: Layouts that are accepted: ``"nd"``, ``"nchw"``, ``"ntd"``.
        needs_pairs: Whether sample ``i`` of ``x`` belongs to sample ``i`` of ``y``. If not, the sample sizes may
            differ.
        needs_density: Whether ties bias the estimate, because it uses densities or correlations rather than counts.
        costly: Whether one estimate takes seconds. Controls that repeat the estimate are then left out.
        zero_when_independent: Whether the number is 0 for independent ``x`` and ``y``. Discrepancies compare two
            distributions and are 0 for equal ones instead.
        recommended_weight: Factor of the loss beside a cross-entropy, as a starting point. Recipes and
            :class:`~mikit.LayerPairs` give weights as multiples of it.
        recipe: How ``fit`` trains by default.
    """

    name: ClassVar[str]
    unit: str
    kind: ClassVar[str]
    differentiable: bool = True
    learned: bool = False
    symmetric: bool = False
    orderless: bool = True
    recommended_weight: float = 1.0
    explains: ClassVar[str] = "vectors"
    reads: ClassVar[str] = "numbers"
    shapes: ClassVar[tuple[str, ...]] = ("nd",)
    needs_pairs: bool = True
    needs_density: ClassVar[bool] = False
    costly: ClassVar[bool] = False
    zero_when_independent: ClassVar[bool] = True
    recipe: ClassVar[Training] = Training()

    @abc.abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss, 0-dim, always to minimize."""

    @abc.abstractmethod
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the number to report, 0-dim, in ``unit``; never clipped, never negated."""

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the ``(n,)`` contributions whose mean is ``estimate(x, y)``, or None if there are none."""
        return None

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the sampling standard error of ``estimate(x, y)``, clustered by ``groups``; None if unknown."""
        with torch.no_grad():
            contributions = self.pointwise(x, y)
        return None if contributions is None else clustered_standard_error(contributions, groups)

    def ceiling(self, n: int) -> float | None:
        """Return the upper limit of the estimate for ``n`` samples, in ``unit``; None if there is no such limit."""
        return None

    def choose(
        self, x: Tensor, y: Tensor, *, groups: Tensor | None = None, generator: torch.Generator
    ) -> tuple[Estimator, str]:
        """Return the estimator to use for these data, and the reason in one line: itself, unless it chooses others."""
        return self, ""

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return the checks that only this estimator needs, on the samples it reports on."""
        return ()

    @torch.no_grad()
    def read(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> Reading:
        """Return value, standard error and checks together; overridden where this saves repeated work."""
        return Reading(
            value=float(self.estimate(x, y)),
            standard_error=self.standard_error(x, y, groups=groups),
            checks=self.checks(x, y),
        )

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return the smallest number of samples that ``estimate`` accepts for these widths."""
        return 2

    @classmethod
    def between(cls, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Self:
        """Return an instance with default hyperparameters, sized and initialized from example features."""
        return cls()

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same hyperparameters, sized and initialized for ``x`` and ``y``."""
        return copy.deepcopy(self)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        select: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator,
        training: Training | None = None,
    ) -> FitRecord:
        """Fit the learned parts on ``x`` and ``y``; keep the state that does best on ``select``.

        Args:
            x: Student features of the fit part.
            y: Teacher features of the fit part.
            select: Features ``(x, y)`` of the select part, for early stopping and similar choices.
            generator: Source of every random draw.
            training: Recipe; ``recipe`` of the class if None.
        """
        return self._fit(FitData(x, y, select, generator, training))

    def _fit(self, data: FitData) -> FitRecord:
        """Fit as :meth:`fit` describes; estimators with a way of fitting of their own override this."""
        if not self.learned:
            return FitRecord()
        return minimize(self, data, param_groups=self.param_groups(), training=data.training or self.recipe)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups for an optimizer; parameters without weight decay are in a group of their own."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [{"params": parameters}] if parameters else []

    def describe(self) -> str:
        """Return the name and the hyperparameters, for provenance."""
        extra = self.extra_repr()
        return f"{type(self).__name__}({extra})"


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Draw torch's global random numbers from ``generator`` inside the block and restore the global state after it.

    With ``generator=None`` the block uses the global state, like any torch code.
    """
    if generator is None:
        yield
        return
    # Layers of torch.nn can only be initialized from the global generator, so it is seeded for a while.
    seed = int(torch.randint(2**62, (1,), generator=generator).item())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def require_matrix(value: Tensor, name: str) -> None:
    """Raise :class:`~mikit.InputError` unless ``value`` has shape ``(n, d)``."""
    if value.ndim != 2:
        raise InputError(
            f"{name} has shape {tuple(value.shape)}, but this estimator needs shape (n, d). Pool or flatten feature "
            "maps and tokens first, for example with mikit.activations.readout."
        )


def require_pair(x: Tensor, y: Tensor, *, minimum: int = 2, same_width: bool = False) -> None:
    """Raise :class:`~mikit.InputError` unless ``x`` and ``y`` are two ``(n, d)`` tensors of paired rows."""
    require_matrix(x, "x")
    require_matrix(y, "y")
    require_paired(x, y, minimum=minimum)
    if same_width and x.shape[1] != y.shape[1]:
        raise InputError(
            f"x has {x.shape[1]} features and y has {y.shape[1]}, but this estimator compares two distributions in one "
            "space. Map the student's features to the teacher's width first."
        )


def require_examples(x: Tensor, y: Tensor) -> None:
    """Raise :class:`~mikit.InputError` unless ``x`` and ``y`` are paired rows of finite numbers."""
    require_pair(x, y)
    refuse_non_finite(x, "x")
    refuse_non_finite(y, "y")


def clustered_standard_error(contributions: Tensor, groups: Tensor | None = None) -> float:
    """Return the standard error of the mean of ``contributions``; samples of one group count as one observation."""
    centered = contributions.detach().double() - contributions.detach().double().mean()
    n = centered.shape[0]
    if groups is None:
        if n < 2:
            return float("inf")
        return float((centered.square().sum() / (n - 1) / n).sqrt())
    clusters = int(groups.max()) + 1
    if clusters < 2:
        return float("inf")
    sums = torch.zeros(clusters, dtype=torch.float64, device=centered.device).index_add_(0, groups, centered)
    return float((sums.square().sum() * clusters / (clusters - 1)).sqrt() / n)
