"""Diagnosis of a discrepancy on a sample: its bias, its null value, and whether it is regression in disguise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.distillation.kd2m.classes import ClassSamples
from mikit.estimators.discrepancy import Discrepancy
from mikit.functional.transport.plans import optimal_plan

__all__ = ["ClassGap", "GapDiagnosis", "Halving", "diagnosed"]

_TRANSPORT = ("wasserstein", "sinkhorn_divergence")
_MOSTLY = 0.5


@final
@dataclass(frozen=True, kw_only=True)
class ClassGap:
    """The gap of one class; the fields are those of :class:`GapDiagnosis`.

    Attributes:
        label: The class.
        rows: Number of its samples.
        share: Its weight in the mean over classes, ``P(y)``; 0 if it has too few samples for the metric.
        value: The gap; nan if there are too few samples.
        debiased: The bias-corrected gap; nan if the samples cannot be halved.
        null: The gap between halves of the teacher.
        identity_fraction: Share of samples matched with their own partner; None for metrics without transport.
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
    r"""A discrepancy between the distributions of a student and a teacher, with reference values for comparison.

    With random halves :math:`S_1, S_2` of the student's samples and the same halves :math:`T_1, T_2` of the teacher's,
    ``apart`` is :math:`\tfrac12 [D(S_1, T_2) + D(S_2, T_1)]`, ``null`` is :math:`D(T_1, T_2)`, and ``debiased`` is
    ``apart`` minus :math:`\tfrac12 [D(S_1, S_2) + D(T_1, T_2)]`, or ``apart`` for an unbiased metric. With
    ``conditional="class"`` all are means with ``P(y)`` over the classes that can be halved.

    Attributes:
        metric: The metric, with its settings.
        form: ``"marginal"``, ``"class"`` or ``"joint"``.
        rows: Number of samples of each network.
        value: The gap of all samples, in units of the loss.
        apart: The gap of halves that share no input.
        null: The gap between halves of the teacher.
        null_spread: Standard deviation of ``null`` over the halvings; nan for one halving.
        debiased: The bias-corrected gap; never clipped.
        identity_fraction: Share of the samples that exact transport matches with their own partner; None for metrics
            without transport.
        identity_chance: The same for a random matching.
        partners: Mean squared distance of partners over that of strangers: 1 if the pairing carries no information,
            however small the gap.
        single_row_classes: Share of the classes present that have one sample.
        left_out_classes: Share of the classes with fewer samples than the metric needs.
        classes: One entry for each class present; empty unless ``form`` is ``"class"``.
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
        """Whether most samples are matched with their own partner, so that the loss acts as regression."""
        return self.identity_fraction is not None and self.identity_fraction > _MOSTLY

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.metric}, {self.form}, {self.rows} samples: gap {self.value:.4g}, debiased {self.debiased:.4g}.",
            f"Halves of the teacher against each other: {self.null:.4g} (spread {self.null_spread:.2g}); student and "
            f"teacher at that size: {self.apart:.4g}.",
            f"The squared distance of partners is {self.partners:.3g} times that of strangers.",
        ]
        if self.identity_fraction is not None:
            end = ": the loss acts as regression on partners." if self.pointwise else "."
            lines.append(
                f"Exact transport matches {self.identity_fraction:.0%} of the samples with their own partner (chance "
                f"{self.identity_chance:.1%}){end}"
            )
        if self.form == "class":
            lines.append(
                f"Of {len(self.classes)} classes, {self.single_row_classes:.0%} have one sample; "
                f"{self.left_out_classes:.0%} have too few for the metric and are left out."
            )
        return "\n".join(lines)


class _Gap(NamedTuple):
    """The gap of all samples of a class, and means over the halvings."""

    rows: int
    value: float
    apart: float
    debiased: float
    nulls: list[float]
    identity: float | None


@final
@dataclass(frozen=True)
class Halving:
    """How gaps are measured: by which metric, in which unit, and over how many random halvings."""

    metric: Discrepancy
    unit: float
    fewest: int
    count: int
    generator: torch.Generator

    def measured(self, group: ClassSamples) -> _Gap:
        """Return the gap of one class."""
        student, teacher = group.student, group.teacher
        size = len(student)
        every = torch.arange(size, device=student.device)
        value = self._gap(group, student, teacher, every, every)
        identity = _identity(group) if self.metric.name in _TRANSPORT else None
        if group.rows // 2 < self.fewest:
            return _Gap(group.rows, value, math.nan, math.nan, [], identity)
        apart, within, nulls = [], [], []
        for _ in range(self.count):
            order = torch.randperm(size, generator=self.generator, device=self.generator.device).to(student.device)
            first, second = order[: size // 2], order[size // 2 : 2 * (size // 2)]
            # Halves that share no input: a student sample and its own partner are alike because they come from one
            # image, which would make the gap of dependent samples smaller than that of their distributions.
            cross = (self._gap(group, student, teacher, *one) for one in ((first, second), (second, first)))
            apart.append(sum(cross) / 2)
            within.append(self._gap(group, student, student, first, second))
            nulls.append(self._gap(group, teacher, teacher, first, second))
        mean = sum(apart) / self.count
        # Two halves of one distribution have a gap of 0; what a biased metric gives for them is its bias at this size.
        unbiased = self.metric.unbiased or self.metric.debias
        bias = 0.0 if unbiased else sum(a + b for a, b in zip(within, nulls, strict=True)) / (2 * self.count)
        return _Gap(group.rows, value, mean, mean - bias, nulls, identity)

    def _gap(self, group: ClassSamples, x: Tensor, y: Tensor, first: Tensor, second: Tensor) -> float:
        weights = {}
        if group.weights is not None:
            weights = {"weights_x": group.weights[first], "weights_y": group.weights[second]}
        return float(self.metric.estimate(x[first], y[second], **weights)) / self.unit


def diagnosed(
    halving: Halving, groups: Sequence[ClassSamples], both: tuple[Tensor, Tensor], *, form: str
) -> GapDiagnosis:
    """Return the diagnosis of student and teacher, from one group for each class, or one in all, without a queue."""
    require.at_least(halving.count, "halvings")
    metric, fewest, by_class = halving.metric, halving.fewest, form == "class"
    compared = [not by_class or (group.rows >= fewest and group.share > 0) for group in groups]
    total = sum(group.share for group, taken in zip(groups, compared, strict=True) if taken)
    if total == 0:
        raise InputError(
            f"No class has {fewest} samples, the fewest that {type(metric).__name__} compares. Pass more samples."
        )
    gaps = [halving.measured(group) if taken else None for group, taken in zip(groups, compared, strict=True)]
    found = [(group.share, gap) for group, gap in zip(groups, gaps, strict=True) if gap is not None]
    halved = [(share, gap) for share, gap in found if gap.nulls]
    nulls = [_mean([(share, gap.nulls[index]) for share, gap in halved]) for index in range(halving.count)]
    spread = float(torch.tensor(nulls, dtype=torch.float64).std()) if halving.count > 1 else math.nan
    matched = [(share, gap.identity) for share, gap in found if gap.identity is not None]
    classes = [_class_gap(group, gap, total) for group, gap in zip(groups, gaps, strict=True)]
    return GapDiagnosis(
        metric=metric.describe(),
        form=form,
        rows=len(both[0]),
        value=_mean([(share, gap.value) for share, gap in found]),
        apart=_mean([(share, gap.apart) for share, gap in halved]),
        null=sum(nulls) / halving.count,
        null_spread=spread,
        debiased=_mean([(share, gap.debiased) for share, gap in halved]),
        identity_fraction=_mean(matched) if matched else None,
        identity_chance=_mean([(share, 1 / gap.rows) for share, gap in found]) if matched else None,
        partners=_partners(*both),
        single_row_classes=sum(group.rows == 1 for group in groups) / len(groups) if by_class else 0.0,
        left_out_classes=compared.count(False) / len(groups),
        classes=tuple(one for one in classes if one is not None),
    )


def _identity(group: ClassSamples) -> float:
    plan = optimal_plan(group.student, group.teacher, weights_x=group.weights, weights_y=group.weights)
    return float(plan.mass[plan.rows == plan.columns].sum())


def _partners(student: Tensor, teacher: Tensor) -> float:
    n = len(student)
    student, teacher = student.double(), teacher.double()
    partners = float((student - teacher).square().sum(dim=1).mean())
    # The mean over all n^2 pairs follows from means and variances in O(n d); without the n partners it is the mean over
    # strangers.
    apart = float((student.mean(dim=0) - teacher.mean(dim=0)).square().sum())
    spreads = sum(float(rows.var(dim=0, unbiased=False).sum()) for rows in (student, teacher))
    strangers = (n * (apart + spreads) - partners) / (n - 1) if n > 1 else math.nan
    return partners / strangers if strangers > 0 else math.nan


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    total = sum(share for share, _ in pairs)
    return sum(share * value for share, value in pairs) / total if total > 0 else math.nan


def _class_gap(group: ClassSamples, gap: _Gap | None, total: float) -> ClassGap | None:
    if group.label is None:
        return None
    nan = math.nan
    if gap is None:
        return ClassGap(
            label=group.label, rows=group.rows, share=0.0, value=nan, debiased=nan, null=nan, identity_fraction=None
        )
    return ClassGap(
        label=group.label,
        rows=group.rows,
        share=group.share / total,
        value=gap.value,
        debiased=gap.debiased,
        null=sum(gap.nulls) / len(gap.nulls) if gap.nulls else nan,
        identity_fraction=gap.identity,
    )
