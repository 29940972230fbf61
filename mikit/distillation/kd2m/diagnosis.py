"""What a discrepancy on a sample means: its bias taken off, its null, and whether it is regression in disguise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.distillation.kd2m.classes import ClassLaw
from mikit.estimators.discrepancy import Discrepancy
from mikit.functional.transport.plans import optimal_plan

__all__ = ["ClassGap", "GapDiagnosis", "diagnosed"]

_TRANSPORT = ("wasserstein", "sinkhorn_divergence")
_MOSTLY = 0.5


@final
@dataclass(frozen=True, kw_only=True)
class ClassGap:
    """One line of the table of classes; the fields are those of :class:`GapDiagnosis`.

    Attributes:
        label: The class.
        rows: Its rows.
        share: What it counts, ``P(y)``; 0 where it has too few rows for the metric.
        value: The gap; nan where there are too few rows.
        debiased: The gap with its bias taken off; nan where the rows cannot be halved.
        null: The teacher against itself.
        identity_fraction: Share of rows matched with their own partner; None for metrics that transport nothing.
    """

    label: int
    rows: int
    share: float
    value: float
    debiased: float
    null: float
    identity_fraction: float | None


@final
@dataclass(frozen=True, kw_only=True)
class GapDiagnosis:
    r"""A discrepancy between a student's and a teacher's law, beside what it has to be read against.

    With random halves :math:`S_1, S_2` of the student's rows and the same halves :math:`T_1, T_2` of the teacher's,
    ``apart`` is :math:`\tfrac12 [D(S_1, T_2) + D(S_2, T_1)]`, ``null`` is :math:`D(T_1, T_2)`, and ``debiased`` is
    ``apart`` less :math:`\tfrac12 [D(S_1, S_2) + D(T_1, T_2)]`, or ``apart`` for a metric that is unbiased. By class,
    all are means over the classes that can be halved, with ``P(y)``.

    Attributes:
        metric: What compares, with its settings.
        form: ``"marginal"``, ``"class"`` or ``"joint"``.
        rows: Rows a side.
        value: The gap of all rows, in units of the loss.
        apart: The gap of halves that share no input.
        null: The teacher against itself, at that size.
        null_spread: Standard deviation of ``null`` over the halvings; nan for one.
        debiased: The gap with its bias taken off; never clipped.
        identity_fraction: Share of the rows that exact transport matches with their own partner, of transport metrics.
        identity_chance: What a random matching gives.
        partners: Mean squared distance of partners over that of strangers: 1 where the pairing says nothing, however
            small the gap.
        single_row_classes: Share of the classes present that have one row.
        left_out_classes: Share of those with fewer rows than the metric takes.
        classes: One entry for each class present; empty unless by class.
    """

    metric: str
    form: str
    rows: int
    value: float
    apart: float
    null: float
    null_spread: float
    debiased: float
    identity_fraction: float | None
    identity_chance: float | None
    partners: float
    single_row_classes: float
    left_out_classes: float
    classes: tuple[ClassGap, ...] = ()

    @property
    def pointwise(self) -> bool:
        """Whether most rows are matched with their own partner, so that matching laws is regression in disguise."""
        return self.identity_fraction is not None and self.identity_fraction > _MOSTLY

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        said = [
            f"{self.metric}, {self.form}, {self.rows} rows: gap {self.value:.4g}, debiased {self.debiased:.4g}.",
            f"Halves of the teacher against each other: {self.null:.4g} (spread {self.null_spread:.2g}); student and "
            f"teacher at that size: {self.apart:.4g}.",
            f"Partners are {self.partners:.3g} times as far apart as strangers (squared).",
        ]
        if self.identity_fraction is not None:
            what = ": this is regression on partners in disguise." if self.pointwise else "."
            said.append(
                f"Exact transport matches {self.identity_fraction:.0%} of the rows with their own partner (chance "
                f"{self.identity_chance:.1%}){what}"
            )
        if self.form == "class":
            said.append(
                f"Of {len(self.classes)} classes, {self.single_row_classes:.0%} have one row; "
                f"{self.left_out_classes:.0%} have too few for the metric and are left out."
            )
        return "\n".join(said)


def diagnosed(
    metric: Discrepancy,
    laws: Sequence[ClassLaw],
    both: tuple[Tensor, Tensor],
    *,
    form: str,
    standard: float,
    fewest: int,
    halvings: int,
    generator: torch.Generator | None,
) -> GapDiagnosis:
    """Return the diagnosis of student and teacher given law by law, without a queue.

    Args:
        metric: What compares.
        laws: One for each class, or one in all.
        both: All rows of student and teacher, on the scale of the comparison.
        form: What to call it.
        standard: What values are divided by.
        fewest: Rows that ``metric`` takes at least.
        halvings: How often to halve.
        generator: Where the halves are drawn from; None: seed 0.
    """
    if halvings < 1:
        raise InputError(f"halvings is {halvings}; it must be at least 1.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    by_class = form == "class"
    compared = [not by_class or (law.rows >= fewest and law.share > 0) for law in laws]
    total = sum(law.share for law, taken in zip(laws, compared, strict=True) if taken)
    if total == 0:
        raise InputError(
            f"No class has {fewest} rows, the fewest that {type(metric).__name__} compares. Pass more rows."
        )
    readings = [
        _read(metric, law, fewest, halvings, generator, standard) if taken else None
        for law, taken in zip(laws, compared, strict=True)
    ]
    read = [(law.share, one) for law, one in zip(laws, readings, strict=True) if one is not None]
    halved = [(share, one) for share, one in read if one.nulls]
    nulls = [_mean([(share, one.nulls[index]) for share, one in halved]) for index in range(halvings)]
    spread = float(torch.tensor(nulls, dtype=torch.float64).std()) if halvings > 1 else math.nan
    moved = [(share, one.identity) for share, one in read if one.identity is not None]
    return GapDiagnosis(
        metric=metric.describe(),
        form=form,
        rows=len(both[0]),
        value=_mean([(share, one.value) for share, one in read]),
        apart=_mean([(share, one.apart) for share, one in halved]),
        null=sum(nulls) / halvings,
        null_spread=spread,
        debiased=_mean([(share, one.debiased) for share, one in halved]),
        identity_fraction=_mean(moved) if moved else None,
        identity_chance=_mean([(share, 1 / one.rows) for share, one in read]) if moved else None,
        partners=_partners(*both),
        single_row_classes=sum(law.rows == 1 for law in laws) / len(laws) if by_class else 0.0,
        left_out_classes=compared.count(False) / len(laws),
        classes=tuple(_line(law, one, total) for law, one in zip(laws, readings, strict=True) if law.label is not None),
    )


class _Reading(NamedTuple):
    """One law: the values of all rows, and means over the halvings."""

    rows: int
    value: float
    apart: float
    debiased: float
    nulls: list[float]
    identity: float | None


def _read(
    metric: Discrepancy, law: ClassLaw, fewest: int, halvings: int, generator: torch.Generator, standard: float
) -> _Reading:
    def gap(of_x: Tensor, of_y: Tensor, first: Tensor, second: Tensor) -> float:
        weights = {} if law.weights is None else {"weights_x": law.weights[first], "weights_y": law.weights[second]}
        return float(metric.estimate(of_x[first], of_y[second], **weights)) / standard

    student, teacher = law.student, law.teacher
    count = len(student)
    everything = torch.arange(count, device=student.device)
    value = gap(student, teacher, everything, everything)
    identity = _identity(law) if metric.name in _TRANSPORT else None
    if law.rows // 2 < fewest:
        return _Reading(law.rows, value, math.nan, math.nan, [], identity)
    apart, own, nulls = [], [], []
    for _ in range(halvings):
        order = torch.randperm(count, generator=generator, device=generator.device).to(student.device)
        one, other = order[: count // 2], order[count // 2 : 2 * (count // 2)]
        apart.append((gap(student, teacher, one, other) + gap(student, teacher, other, one)) / 2)
        own.append(gap(student, student, one, other))
        nulls.append(gap(teacher, teacher, one, other))
    away = sum(apart) / halvings
    bias = (
        0.0
        if metric.unbiased or metric.debias
        else sum(a + b for a, b in zip(own, nulls, strict=True)) / (2 * halvings)
    )
    return _Reading(law.rows, value, away, away - bias, nulls, identity)


def _identity(law: ClassLaw) -> float:
    plan = optimal_plan(law.student, law.teacher, weights_x=law.weights, weights_y=law.weights)
    return float(plan.mass[plan.rows == plan.columns].sum())


def _partners(student: Tensor, teacher: Tensor) -> float:
    n = len(student)
    student, teacher = student.double(), teacher.double()
    own = float((student - teacher).square().sum(dim=1).mean())
    apart = float((student.mean(dim=0) - teacher.mean(dim=0)).square().sum())
    spreads = sum(float(rows.var(dim=0, unbiased=False).sum()) for rows in (student, teacher))
    strangers = (n * (apart + spreads) - own) / (n - 1) if n > 1 else math.nan
    return own / strangers if strangers > 0 else math.nan


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    total = sum(share for share, _ in pairs)
    return sum(share * value for share, value in pairs) / total if total > 0 else math.nan


def _line(law: ClassLaw, reading: _Reading | None, total: float) -> ClassGap:
    assert law.label is not None
    if reading is None:
        nan = math.nan
        return ClassGap(
            label=law.label, rows=law.rows, share=0.0, value=nan, debiased=nan, null=nan, identity_fraction=None
        )
    return ClassGap(
        label=law.label,
        rows=law.rows,
        share=law.share / total,
        value=reading.value,
        debiased=reading.debiased,
        null=sum(reading.nulls) / len(reading.nulls) if reading.nulls else math.nan,
        identity_fraction=reading.identity,
    )
