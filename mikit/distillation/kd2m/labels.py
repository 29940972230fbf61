"""Labels as KD²M receives them, and labels as points of a space."""

from __future__ import annotations

from typing import NamedTuple, Self, final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mikit.core.errors import InputError
from mikit.functional.engine.operators import passed_if

__all__ = ["GivenLabels", "Labels", "balancing_weight", "label_coordinates", "mean_cost"]


@final
class Labels(NamedTuple):
    """Labels that fit their samples: class indices ``(n,)``, or one number for each class, ``(n, classes)``."""

    values: Tensor

    @classmethod
    def read(cls, labels: Tensor | None, n: int, name: str) -> Self:
        """Return the labels of ``n`` samples; raise :class:`~mikit.InputError` if they do not fit."""
        if labels is None:
            raise InputError(
                "The labels of the batch are missing. Pass labels=, one class index for each sample; without labels "
                "only conditional=None can be used."
            )
        if labels.ndim not in (1, 2) or labels.shape[0] != n:
            raise InputError(
                f"{name} has shape {tuple(labels.shape)}, but there are {n} samples. Pass class indices ({n},) or one "
                f"number for each class, ({n}, classes)."
            )
        if labels.ndim == 1 and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
            raise InputError(f"{name} has dtype {labels.dtype}; class indices are whole numbers, such as torch.long.")
        if labels.ndim == 2 and not labels.is_floating_point():
            raise InputError(f"{name} has dtype {labels.dtype}; labels (n, classes) must be floating point.")
        return cls(labels)

    @property
    def soft(self) -> bool:
        """Whether there is a number for each class."""
        return self.values.ndim == 2

    def counted(self, classes: int | None) -> Tensor:
        """Return class indices after checking that they lie in ``[0, classes)``."""
        if torch.compiler.is_compiling():  # The values are known only when the graph runs.
            known = self.values >= 0 if classes is None else (self.values >= 0) & (self.values < classes)
            most = "" if classes is None else f", and there are {classes}"
            message = f"A label is not a class index. Classes are counted from 0{most}. Leave out unlabeled samples."
            return passed_if(self.values.long(), known.all(), message)
        lowest, highest = (int(end) for end in torch.stack(torch.aminmax(self.values)).tolist())
        if lowest < 0:
            raise InputError(f"A label is {lowest}; classes are counted from 0. Leave out unlabeled samples.")
        if classes is not None and highest >= classes:
            raise InputError(f"A label is {highest}, but there are {classes} classes, counted from 0.")
        return self.values.long()


@final
class GivenLabels(NamedTuple):
    """The labels of one call: those of both sides, or those of each."""

    labels: Tensor | None
    student_labels: Tensor | None
    teacher_labels: Tensor | None

    def require_shared(self, conditional: str | None) -> None:
        """Refuse separate labels of each side; only ``conditional="joint"`` takes them."""
        if self.student_labels is not None or self.teacher_labels is not None:
            raise InputError(
                f'student_labels and teacher_labels go with conditional="joint", not {conditional!r}. Pass labels=.'
            )

    def coordinates(self, students: int, teachers: int, classes: int | None) -> tuple[Tensor, Tensor]:
        """Return the labels of student and teacher samples as points of one space."""
        student, teacher = (
            Labels.read(self.labels if given is None else given, n, "labels" if given is None else name)
            for given, n, name in (
                (self.student_labels, students, "student_labels"),
                (self.teacher_labels, teachers, "teacher_labels"),
            )
        )
        widths = [labels.values.shape[1] for labels in (student, teacher) if labels.soft]
        classes = max(widths) if widths else classes
        of_student, of_teacher = label_coordinates(student, classes), label_coordinates(teacher, classes).detach()
        if of_student.shape[1] != of_teacher.shape[1]:
            raise InputError(
                f"The student's labels have {of_student.shape[1]} coordinates and the teacher's {of_teacher.shape[1]}. "
                "Both must have the same classes; pass classes= if class indices leave some out."
            )
        return of_student, of_teacher


def label_coordinates(labels: Labels, classes: int | None) -> Tensor:
    """Return labels as points: class indices one-hot, soft labels or logits unchanged.

    Example:
        >>> label_coordinates(Labels(torch.tensor([1, 0])), 3)
        tensor([[0., 1., 0.],
                [1., 0., 0.]])
    """
    if labels.soft:
        return labels.values
    return one_hot(labels.counted(classes), -1 if classes is None else classes).float()


def mean_cost(points: Tensor) -> Tensor:
    """Return the mean squared distance of two different points, without gradient.

    Example:
        >>> mean_cost(torch.tensor([[0.0], [1.0], [3.0]])).item()  # of 1, 4 and 9
        4.666666666666667
    """
    # E |a - b|^2 is twice the variance: O(n d) in place of all pairs.
    return 2 * points.detach().double().var(dim=0).sum()


def balancing_weight(features: Tensor, coordinates: Tensor) -> Tensor:
    """Return the label weight at which two labels are as far apart, on average, as two feature vectors."""
    of_labels = mean_cost(coordinates)
    if not float(of_labels) > 0:
        raise InputError(
            "All labels of these samples are alike, so the label weight cannot be derived from them. Pass "
            "label_weight=, or samples of several classes first."
        )
    return (mean_cost(features) / of_labels).to(features)
