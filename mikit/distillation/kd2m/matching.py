"""What KD²M compares: its state, and the samples of student and teacher, all together or class by class."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.distillation.kd2m.classes import ClassSamples, by_class, by_soft_label, fewest_rows, mean_over_classes
from mikit.distillation.kd2m.labels import GivenLabels, Labels, balancing_weight
from mikit.distillation.kd2m.queue import FeatureQueue
from mikit.distillation.kd2m.scale import TeacherScale
from mikit.distillation.kd2m.settings import KD2MOptions, require_weighted
from mikit.estimators import Estimator
from mikit.estimators.base import require_pair

__all__ = ["DistributionMatching"]


class DistributionMatching(Estimator):
    """State and comparison of :class:`mikit.KD2M`, which adds building, calibration and diagnosis."""

    label_weight: Tensor

    unit = "dimensionless"
    kind = "discrepancy"
    needs_pairs = False
    zero_when_independent = False

    def __init__(self, options: KD2MOptions, projection: nn.Module | None) -> None:
        super().__init__()
        self._options = options
        self.metric = options.metric
        self.conditional = options.conditional
        self.scale = options.scale
        self.projection = projection
        self.prior = None if options.prior is None else tuple(float(one) for one in options.prior)
        self.classes = options.classes if self.prior is None else len(self.prior)
        self.queue_size = options.queue_size
        self.queue: FeatureQueue | None = None
        self.teacher_scale = TeacherScale()
        self.register_buffer("label_weight", torch.tensor(float(options.label_weight or 0)))
        self.learned = projection is not None and any(p.requires_grad for p in projection.parameters())
        self.needs_pairs = self.metric.needs_pairs or self.conditional is not None
        self.orderless = self.metric.orderless
        self.unit = self.metric.unit if self.scale is None else "dimensionless"
        self._weighed = options.label_weight is not None
        self._fewest: int | None = None
        self._warned = False

    def _mapped(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return both sides in the teacher's space, on the teacher's scale."""
        fewest = min(x.shape[0], y.shape[0])
        require_pair(x[:fewest], y[:fewest], minimum=1)
        y = y.detach()
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        student, teacher = x.to(dtype), y.to(dtype)
        if self.projection is not None:
            weight = next(self.projection.parameters(), student)
            student = self.projection(student.to(weight.dtype)).to(dtype)
        if student.shape[1] != teacher.shape[1]:
            raise InputError(
                f"The student has {student.shape[1]} features{' after the projection' if self.projection else ''} and "
                f"the teacher {teacher.shape[1]}. Build the loss with KD2M.between, or pass a projection."
            )
        if self.scale is not None and not self.teacher_scale.known:
            raise InputError(
                "This KD2M has not seen the teacher's features, so it has no scale. Build it with KD2M.between from "
                "example features, call calibrate(teacher), or pass scale=None."
            )
        return self.teacher_scale(student), self.teacher_scale(teacher)

    def _value(
        self, compare: Callable[..., Tensor], student: Tensor, teacher: Tensor, given: GivenLabels, *, training: bool
    ) -> Tensor:
        if self.conditional == "class":
            value: Tensor = self._over_classes(compare, student, teacher, given, training)
        else:
            value = self._all_of(student, teacher, given, keep=training and self.training).compared(compare)
        return value / self.teacher_scale.standard

    # Numbers of samples by class decide the shapes and are read on the host, which a compiled graph cannot do.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives it no types
    def _over_classes(
        self, compare: Callable[..., Tensor], student: Tensor, teacher: Tensor, given: GivenLabels, training: bool
    ) -> Tensor:
        queue = self._queue_for(teacher) if training else None
        groups = self._classes_of(student, teacher, given, queue)
        value, left_out = mean_over_classes(self.metric, compare, groups, self._fewest_for(teacher))
        if training and left_out and not self._warned:
            self._warned = True
            warnings.warn(
                f"{left_out} of the {len(groups)} classes in this batch have fewer samples than the {self._fewest} "
                f"that {type(self.metric).__name__} needs, or a prior of 0. They are left out, here and in later "
                "batches; terms() gives their share. Class-balanced batches avoid it.",
                stacklevel=7,
            )
        # After the loss: a sample that joined first would be compared with the student as its own partner and again as
        # a sample of the queue.
        if queue is not None and self.training and given.labels is not None and given.labels.ndim == 1:
            queue.push(teacher, given.labels)
        return value

    def _classes_of(
        self, student: Tensor, teacher: Tensor, given: GivenLabels, queue: FeatureQueue | None
    ) -> list[ClassSamples]:
        given.require_shared(self.conditional)
        require_pair(student, teacher, minimum=1)
        labels = Labels.read(given.labels, len(teacher), "labels")
        if not labels.soft:
            return by_class(student, teacher, labels.counted(self.classes), queue=queue, prior=self.prior)
        require_weighted(self.metric, self._options.queue)
        return by_soft_label(student, teacher, labels.values, prior=self.prior)

    def _all_of(self, student: Tensor, teacher: Tensor, given: GivenLabels, *, keep: bool = False) -> ClassSamples:
        """Return all samples as one group; for ``"joint"`` with the weighted labels as further features."""
        if self.conditional == "joint":
            of_student, of_teacher = given.coordinates(len(student), len(teacher), self.classes)
            root = self._weigh(teacher, of_teacher, keep=keep).sqrt()
            student = torch.cat([student, root * of_student.to(student)], dim=1)
            teacher = torch.cat([teacher, root * of_teacher.to(teacher)], dim=1)
        else:
            given.require_shared(self.conditional)
        return ClassSamples(None, 1.0, student, teacher, None, len(student))

    def _fewest_for(self, rows: Tensor) -> int:
        if self._fewest is None:
            self._fewest = fewest_rows(self.metric, rows)
        return self._fewest

    def _weigh(self, rows: Tensor, coordinates: Tensor, *, keep: bool = True) -> Tensor:
        """Return the label weight, computed from these samples if it is not known yet."""
        if self._weighed:
            return self.label_weight
        weight = balancing_weight(rows, coordinates)
        if keep:
            self.label_weight, self._weighed = weight, True
        return weight

    def _queue_for(self, rows: Tensor) -> FeatureQueue | None:
        if self.queue_size and self.queue is None:
            queue = FeatureQueue(self.queue_size, rows.shape[1], classes=self.classes or 0, dtype=rows.dtype)
            self.queue = queue.to(rows.device)
        return self.queue

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}queue.rows")
        if stored is not None and self.queue_size == stored.shape[1]:
            self._queue_for(stored.new_empty(0, stored.shape[2], device=self.label_weight.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._weighed = float(self.label_weight) > 0
