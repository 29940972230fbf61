"""The contract every measure keeps: called it is a loss, measured it is an instrument.

An :class:`Estimator` is an ``nn.Module``. ``forward`` returns the loss to minimise, ``estimate`` the number to
report; they are two methods because the best objective is often not the best read-out. Measures that learn a head
or a critic are built from example features with ``between``, fitted with ``fit`` and started anew with ``fresh``.
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
from mikit.core.measurement import Check
from mikit.core.rows import require_paired
from mikit.estimators.fitting import FitRecord, Training, minimise

__all__ = ["Estimator", "Reading", "clustered_standard_error", "require_pair", "seeded"]


@final
@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an instrument reads on a sample, in one pass.

    Attributes:
        value: The number, in the instrument's unit.
        standard_error: Its sampling error; None if unknown.
        checks: The checks that only this instrument needs.
        parts: Other readings of the same sample, by name, for comparison only.
        note: What was decided on the way, in one line; empty where there was nothing to decide.
    """

    value: float
    standard_error: float | None
    checks: tuple[Check, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


class Estimator(nn.Module, abc.ABC):
    """A measure of what ``x`` says about ``y``: a loss when called, an instrument when measured.

    ``x`` is the student (what conditions) and ``y`` the teacher (what is explained); rows are paired. Subclasses
    set the class attributes, write ``forward`` and ``estimate``, and are final.

    Attributes:
        name: Name in the registry, as used by :func:`mikit.measure` and the command line.
        unit: Unit of ``estimate``: ``"nats"``, ``"feature"``, ``"feature²"`` or ``"dimensionless"``.
        kind: What the number is: ``"lower bound"``, ``"upper bound"``, ``"estimate"``, ``"V-information"``,
            ``"index"`` or ``"discrepancy"``.
        differentiable: Whether ``forward`` has a gradient. If not, ``forward`` raises ``TypeError``.
        learned: Whether ``fit`` must run before ``estimate`` means anything.
        symmetric: Whether ``estimate(x, y)`` equals ``estimate(y, x)``.
        orderless: Whether the order of the rows leaves the value. What compares blocks or halves of the rows, which
            should come in random order, says False.
        explains: What ``y`` is: ``"vectors"`` of shape ``(n, d)`` or ``"labels"`` of shape ``(n,)``.
        reads: What ``x`` holds: ``"numbers"``, or ``"categories"``, of which rows repeat.
        shapes: Layouts that are read: ``"nd"``, ``"nchw"``, ``"ntd"``.
        needs_pairs: Whether row ``i`` of ``x`` belongs to row ``i`` of ``y``. If not, the row counts may differ.
        needs_density: Whether ties hurt it, because it reads densities or correlations rather than counts.
        costly: Whether one estimate takes seconds, so that controls which repeat it are left out.
        zero_when_independent: Whether the number is 0 for independent ``x`` and ``y``. Discrepancies compare two
            laws and are 0 for equal ones instead.
        recommended_weight: What the loss is multiplied with beside a cross-entropy, to start from. Recipes and
            :class:`~mikit.LayerPairs` count weights in this unit.
        recipe: How ``fit`` trains, unless told otherwise.
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
        """Return the loss, 0-dim, always to minimise."""

    @abc.abstractmethod
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the number to report, 0-dim, in ``unit``; never clipped, never negated."""

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the ``(n,)`` contributions whose mean is ``estimate(x, y)``, or None where there are none."""
        return None

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the sampling standard error of ``estimate(x, y)``, clustered by ``groups``; None if unknown."""
        with torch.no_grad():
            contributions = self.pointwise(x, y)
        return None if contributions is None else clustered_standard_error(contributions, groups)

    def ceiling(self, n: int) -> float | None:
        """Return what ``n`` samples can show at most, in ``unit``; None if there is no such limit."""
        return None

    def choose(
        self, x: Tensor, y: Tensor, *, groups: Tensor | None = None, generator: torch.Generator
    ) -> tuple[Estimator, str]:
        """Return the estimator to measure these data with and one line that says why; itself unless it is a chooser."""
        return self, ""

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return the checks that only this instrument needs, on the rows it reports on."""
        return ()

    @torch.no_grad()
    def read(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> Reading:
        """Return value, standard error and own checks at once; what fits itself on the sample overrides this."""
        return Reading(
            value=float(self.estimate(x, y)),
            standard_error=self.standard_error(x, y, groups=groups),
            checks=self.checks(x, y),
        )

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return the fewest rows ``estimate`` accepts for these widths."""
        return 2

    @classmethod
    def between(cls, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Self:
        """Return an instance with default hyper-parameters, sized and initialised from example features."""
        return cls()

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same hyper-parameters, sized and initialised for ``x`` and ``y``."""
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
        """Fit the learned parts on ``x`` and ``y``; keep the state that does best on ``select``."""
        if not self.learned:
            return FitRecord()
        return minimise(
            self,
            x,
            y,
            param_groups=self.param_groups(),
            select=select,
            generator=generator,
            training=training or self.recipe,
        )

    def param_groups(self) -> list[dict[str, Any]]:
        """Return what to hand to an optimiser: every trainable parameter, those not to decay in their own group."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [{"params": parameters}] if parameters else []

    def describe(self) -> str:
        """Return the name and the hyper-parameters, for provenance."""
        extra = self.extra_repr()
        return f"{type(self).__name__}({extra})"


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Draw torch's global random numbers from ``generator`` inside the block and restore the global state after it.

    ``nn`` layers initialise from the global generator only; this makes a build reproducible without leaving a trace.
    With ``generator=None`` the block runs on the global state, as any torch code does.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (1,), generator=generator).item())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def require_pair(x: Tensor, y: Tensor, *, minimum: int = 2, same_width: bool = False) -> None:
    """Raise :class:`~mikit.InputError` unless ``x`` and ``y`` are two ``(n, d)`` tensors of paired rows."""
    for name, value in (("x", x), ("y", y)):
        if value.ndim != 2:
            raise InputError(
                f"{name} has shape {tuple(value.shape)}, but this measure reads rows of shape (n, d). Pool or flatten "
                "feature maps and tokens first; mikit.activations.readout has the usual ways."
            )
    require_paired(x, y, minimum=minimum)
    if same_width and x.shape[1] != y.shape[1]:
        raise InputError(
            f"x has {x.shape[1]} columns and y has {y.shape[1]}, but this measure compares two laws in one space. Map "
            "the student's features to the teacher's width first."
        )


def clustered_standard_error(contributions: Tensor, groups: Tensor | None = None) -> float:
    """Return the standard error of the mean of ``contributions``; rows of one group count as one observation."""
    centred = contributions.detach().double() - contributions.detach().double().mean()
    n = centred.shape[0]
    if groups is None:
        if n < 2:
            return float("inf")
        return float((centred.square().sum() / (n - 1) / n).sqrt())
    clusters = int(groups.max()) + 1
    if clusters < 2:
        return float("inf")
    sums = torch.zeros(clusters, dtype=torch.float64, device=centred.device).index_add_(0, groups, centred)
    return float((sums.square().sum() * clusters / (clusters - 1)).sqrt() / n)
