"""The risk gap of a student's features under the teacher's head, its bounds, and how loose they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.inputs import as_rows
from mikit.core.measurement import plain
from mikit.functional.distillation.risk import class_risks

__all__ = ["ClassRisk", "RiskGap", "risk_gap"]


@final
@dataclass(frozen=True)
class ClassRisk:
    """One class of the head. Figures are NaN where the class has no samples.

    Attributes:
        label: Its row of the head's weights.
        student_rows, teacher_rows: Numbers of samples.
        student_risk: Mean cross-entropy of the head on the student's samples, in nats.
        teacher_risk: The same on the teacher's samples.
        lipschitz: Lipschitz constant of the cross-entropy of this label, in nats per unit of the features.
        wasserstein1, wasserstein2: 1- and 2-Wasserstein distance of the two distributions of this class.
        bound: ``lipschitz * wasserstein1``, which the gap of this class cannot exceed.
    """

    label: int
    student_rows: int
    teacher_rows: int
    student_risk: float
    teacher_risk: float
    lipschitz: float
    wasserstein1: float
    wasserstein2: float
    bound: float

    @property
    def gap(self) -> float:
        """Risk of the student's samples minus that of the teacher's, in nats."""
        return self.student_risk - self.teacher_risk


@final
@dataclass(frozen=True, kw_only=True)
class RiskGap:
    """A gap of risks under the teacher's head, and bounds on its size.

    Attributes:
        student_risk: Mean cross-entropy of the teacher's head on the student's features, in nats.
        teacher_risk: The same on the teacher's own features.
        bound: ``Σ_y P(y) L_y W1(y)``, the smallest of the bounds.
        bound_w2: ``Σ_y P(y) L_y W2(y)``, at least ``bound``.
        bound_paired: ``Σ_y P(y) L_y mean|z_S - z_T|`` over paired samples, at least ``bound``; None where samples
            are not paired.
        bound_paired_rms: The same with the root of the mean square, at least both ``bound_w2`` and ``bound_paired``.
        head_swap: Contribution of the student's own head: its risk minus that of the teacher's head on the student's
            features; None unless the student's logits were given.
        classes: One entry for each class of the head.
        empty: Classes of the head without samples, which have no weight.
    """

    student_risk: float
    teacher_risk: float
    bound: float
    bound_w2: float
    bound_paired: float | None
    bound_paired_rms: float | None
    head_swap: float | None
    classes: tuple[ClassRisk, ...]
    empty: tuple[int, ...]

    @property
    def gap(self) -> float:
        """Risk of the student's features minus that of the teacher's, under the teacher's head, in nats."""
        return self.student_risk - self.teacher_risk

    @property
    def ratio(self) -> float | None:
        """The bound divided by the size of the gap; None where the gap is 0."""
        return None if self.gap == 0 else self.bound / abs(self.gap)

    @property
    def total_gap(self) -> float | None:
        """Risk of the student with its own head minus the teacher's: ``gap + head_swap``; None without logits."""
        return None if self.head_swap is None else self.gap + self.head_swap

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers; numbers that are not finite become strings."""
        content = {**asdict(self), "gap": self.gap, "ratio": self.ratio, "total_gap": self.total_gap}
        content["classes"] = [{**asdict(one), "gap": one.gap} for one in self.classes]
        described: dict[str, Any] = plain(content)
        return described

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f", {self.ratio:.3g} times the gap"
        lines = [
            f"gap {self.gap:+.4g} nats: the teacher's head has risk {self.student_risk:.4g} on the student's features "
            f"and {self.teacher_risk:.4g} on its own",
            f"  |gap| is at most {self.bound:.4g} by class-wise W1{ratio}; {self.bound_w2:.4g} by class-wise W2"
            + ("" if self.bound_paired is None else f"; {self.bound_paired:.4g} by paired samples"),
        ]
        if self.head_swap is not None:
            lines.append(f"  the student's own head adds {self.head_swap:+.4g}: {self.total_gap:+.4g} in all")
        if self.empty:
            lines.append(f"  no samples of class {', '.join(map(str, self.empty))}: not evaluated")
        lines.append("  class samples     gap      L_y       W1    bound")
        shown = sorted((one for one in self.classes if one.teacher_rows), key=lambda one: -one.bound * one.teacher_rows)
        for one in shown[:10]:
            rows = (
                f"{one.student_rows}"
                if one.student_rows == one.teacher_rows
                else f"{one.student_rows}/{one.teacher_rows}"
            )
            lines.append(
                f"  {one.label:5d} {rows:>6} {one.gap:+8.4f} {one.lipschitz:8.3f} {one.wasserstein1:8.3f} "
                f"{one.bound:8.3f}"
            )
        if len(shown) > 10:
            lines.append(f"  and {len(shown) - 10} more, in .classes")
        return "\n".join(lines)


def risk_gap(
    student: Any,
    teacher: Any,
    labels: Any,
    weight: Any,
    bias: Any = None,
    *,
    teacher_labels: Any = None,
    project: Callable[[Tensor], Tensor] | None = None,
    student_logits: Any = None,
) -> RiskGap:
    r"""Compare the risk of the teacher's head on two networks' features with a bound from class-wise distances.

    Formula: with the head :math:`h(z) = \mathrm{softmax}(W z + b)`, cross-entropy and
    :math:`L_y = \max_k \|w_k - w_y\|`,

    .. math:: |R(h, Z_S) - R(h, Z_T)| \le \sum_y P(y) L_y W_1(y) \le \sum_y P(y) L_y W_2(y)

    by Kantorovich's duality in each class: the cross-entropy of label :math:`y` is :math:`L_y`-Lipschitz in the
    features. For paired samples the first sum is at most :math:`\sum_y P(y) L_y \overline{\|z_S - z_T\|}`, and the
    second at most the same with the root of the mean square. All hold exactly for the given samples, without a term for
    sampling.

    Args:
        student: Student features, ``(n, d_s)``.
        teacher: Teacher features, ``(m, d)``, as its head reads them.
        labels: Class of each student sample, ``(n,)``: rows of the head, 0 to ``C - 1``.
        weight: The teacher head's weights, ``(C, d)``.
        bias: Its bias, ``(C,)``; None for no bias.
        teacher_labels: Class of each teacher sample, ``(m,)``, if the two networks saw different samples. ``P(y)`` is
            the fraction among the teacher's samples. None: row i of both networks is one sample.
        project: Map from the student's features to the teacher's space, ``(n, d_s)`` to ``(n, d)``; None if they share
            one space.
        student_logits: Logits of the student's own head, ``(n, C)``, whose risk is then compared with that of the
            teacher's.

    Returns:
        A frozen :class:`RiskGap`: the gap, its bounds, their ratio and a table of the classes.

    Unit: nats.

    Kind: a measured gap and upper bounds on its size.

    Raises:
        InputError: If an array cannot be used, shapes do not match, a label is no row of the head, or a class has
            samples of one network only; or if POT is missing and a class has different numbers of samples.

    Cost:
        Two exact transport problems for each class, between the square and the cube of its samples each; O(n²) memory.

    Pitfalls:
        The bound is loose, often by a factor of a hundred: it identifies the classes that can increase the risk, not by
        how much. Bounds on these samples are not bounds on new ones. Without labels no such bound holds: equal
        distributions of all features are possible although classes have changed places. ``project`` must be the map in
        use; one that was fitted for this purpose answers another question.

    Source:
        mikit's own; the duality is by Kantorovich and Rubinstein.

    Example:
        >>> teacher = np.array([[2.0, 0.0], [0.0, 2.0]])
        >>> found = risk_gap(teacher - 0.5, teacher, [0, 1], np.eye(2))
        >>> round(found.gap, 6), round(found.bound, 6)  # Equal shifts of both logits do not change the risk.
        (0.0, 1.0)
    """
    x, y, head = (
        as_rows(part, name) for part, name in ((student, "student"), (teacher, "teacher"), (weight, "weight"))
    )
    offset = torch.zeros(head.shape[0], dtype=torch.float64) if bias is None else as_rows(bias, "bias")[:, 0]
    if project is not None:
        with torch.no_grad():
            x = as_rows(project(x), "the result of project")
    of_x = _class_indices(labels, "labels")
    of_y = None if teacher_labels is None else _class_indices(teacher_labels, "teacher_labels")
    x, y, head, offset = (part.detach().cpu() for part in (x, y, head, offset))
    if project is None and x.ndim == 2 and y.ndim == 2 and x.shape[1] != y.shape[1]:
        raise InputError(
            f"The student has {x.shape[1]} features and the teacher {y.shape[1]}; pass project, the map from one to "
            "the other."
        )
    found = class_risks(x, y, of_x, of_y, head, offset)
    present = found.rows_y > 0
    swap = None
    if student_logits is not None:
        swap = _own_risk(student_logits, of_x, found.prior) - _total(found.prior, found.risk_x, present)

    def bounded(distances: Tensor) -> float:
        return _total(found.prior, found.lipschitz * distances, present)

    return RiskGap(
        student_risk=_total(found.prior, found.risk_x, present),
        teacher_risk=_total(found.prior, found.risk_y, present),
        bound=bounded(found.wasserstein1),
        bound_w2=bounded(found.wasserstein2),
        bound_paired=None if of_y is not None else bounded(found.paired1),
        bound_paired_rms=None if of_y is not None else bounded(found.paired2),
        head_swap=swap,
        classes=tuple(
            ClassRisk(
                label=label,
                student_rows=int(found.rows_x[label]),
                teacher_rows=int(found.rows_y[label]),
                student_risk=float(found.risk_x[label]),
                teacher_risk=float(found.risk_y[label]),
                lipschitz=float(found.lipschitz[label]),
                wasserstein1=float(found.wasserstein1[label]),
                wasserstein2=float(found.wasserstein2[label]),
                bound=float(found.lipschitz[label] * found.wasserstein1[label]),
            )
            for label in range(head.shape[0])
        ),
        empty=tuple(torch.nonzero(~present)[:, 0].tolist()),
    )


def _total(prior: Tensor, figures: Tensor, present: Tensor) -> float:
    return float((prior * figures)[present].sum())


def _own_risk(logits: Any, labels: Tensor, prior: Tensor) -> float:
    rows = as_rows(logits, "student_logits").detach().cpu().double()
    if rows.shape != (labels.shape[0], prior.shape[0]):
        raise InputError(
            f"student_logits has shape {tuple(rows.shape)}; pass one row for each sample and one column for "
            f"each class, ({labels.shape[0]}, {prior.shape[0]})."
        )
    losses = torch.nn.functional.cross_entropy(rows, labels, reduction="none")
    return math.fsum(float(prior[label] * losses[labels == label].mean()) for label in torch.unique(labels).tolist())


def _class_indices(value: Any, name: str) -> Tensor:
    """Return labels unchanged: unlike codes of categories they are row indices of the head."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}. Pass one label per sample, shape (n,).")
    if array.dtype.kind not in "iuf" or not bool(np.all(array == np.round(array))):
        raise InputError(f"{name} must be whole numbers that name rows of the head, from 0 on.")
    return torch.from_numpy(array.astype(np.int64))
