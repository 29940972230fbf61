"""Contrastive representation distillation with the negatives of the batch."""

from __future__ import annotations

import math
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mikit.core import require
from mikit.core.errors import InputError
from mikit.distillation.losses.base import split_decay
from mikit.estimators.base import Estimator, require_pair, seeded
from mikit.functional.bounds.infonce_scores import infonce_from_scores
from mikit.functional.engine.operators import passed_if

__all__ = ["CRD"]


@final
class CRD(Estimator):
    r"""Contrastive distillation of features ``(n, d)`` in the batch: identify the teacher's sample of the same input.

    Formula: with unit vectors :math:`u = W_s s / |W_s s|`, :math:`v = W_t t / |W_t t|` of standardized features and
    scores
    :math:`u_i^\top v_j / \tau`, ``estimate`` is the InfoNCE bound, averaged over both directions, and ``forward`` its
    negative. With ``labels=``, samples of one class are not negatives of each other; this concerns the loss alone.

    Args:
        d_student: The student's width.
        d_teacher: The teacher's width.
        embedding: Width of the projections.
        temperature: ``τ``.

    Shapes:
        Student ``(n, d_student)``, teacher ``(n, d_teacher)``; ``labels`` ``(n,)``.

    Unit: nats.

    Kind: lower bound in expectation, on samples that did not fit the projections; at most ``log n``.

    Raises:
        InputError: If widths, labels or settings do not fit, or all samples of a batch have one label.

    Cost:
        ``O(n (d_student + d_teacher) embedding + n² embedding)`` time and ``O(n²)`` memory.

    Pitfalls:
        It differs from the released CRD, which stores all training samples and draws 16384 negatives by index: here the
        negatives are the batch, and neither an index nor a memory bank is needed. Weight 1 was not tuned; released
        scripts use 0.8 for theirs. At temperature 0.07 scores lie within ``± 1 / 0.07`` nats, and the bound saturates
        at ``log n``. The loss with labels is not a bound. Without labels, with ten classes, 1 of 10 negatives of a
        sample has its label.

    Source:
        Tian, Krishnan and Isola (2020), arXiv 1910.10699, for the method; embedding 128 and ``τ = 0.07`` as in
        mdistiller a08d46f. InfoNCE in place of its estimator is mikit's choice.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> s, t = torch.randn(32, 8, generator=g), torch.randn(32, 16, generator=g)
        >>> crd = CRD.between(s, t, generator=g)
        >>> crd(s, t).item() == -crd.estimate(s, t).item()
        True
    """

    mean_student: Tensor
    scale_student: Tensor
    mean_teacher: Tensor
    scale_teacher: Tensor

    name = "crd"
    unit = "nats"
    kind = "lower bound"
    learned = True

    def __init__(self, d_student: int, d_teacher: int, *, embedding: int = 128, temperature: float = 0.07) -> None:
        super().__init__()
        for name, size in (("d_student", d_student), ("d_teacher", d_teacher), ("embedding", embedding)):
            require.positive(size, name)
        require.positive(temperature, "temperature")
        self.d_student, self.d_teacher = d_student, d_teacher
        self.embedding, self.temperature = embedding, temperature
        self.project_student = nn.Linear(d_student, embedding)
        self.project_teacher = nn.Linear(d_teacher, embedding)
        for side, width in (("student", d_student), ("teacher", d_teacher)):
            self.register_buffer(f"mean_{side}", torch.zeros(width))
            self.register_buffer(f"scale_{side}", torch.ones(width))

    @classmethod
    def between(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        embedding: int = 128,
        temperature: float = 0.07,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build from example features, which set widths and scales.

        Args:
            x: Student features ``(n, d_student)``.
            y: Teacher features ``(n, d_teacher)``.
            embedding: As in the class.
            temperature: As in the class.
            generator: Source of the initial projections; torch's global generator if None.
        """
        require_pair(x, y)
        with seeded(generator):
            loss = cls(x.shape[1], y.shape[1], embedding=embedding, temperature=temperature).to(x.device)
        for side, value in (("student", x.detach()), ("teacher", y.detach())):
            dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
            mean = value.double().mean(dim=0)
            deviation = (value.double() - mean).square().mean(dim=0).sqrt()
            usable = deviation > torch.finfo(dtype).eps * mean.abs()
            setattr(loss, f"mean_{side}", mean.to(dtype))
            setattr(loss, f"scale_{side}", torch.where(usable, deviation, 1.0).to(dtype))
        return loss

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an untrained copy with the same settings for these features."""
        return type(self).between(x, y, embedding=self.embedding, temperature=self.temperature, generator=generator)

    def forward(self, x: Tensor, y: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """Return minus the bound; the teacher's features get no gradient.

        Args:
            x: Student features.
            y: Teacher features.
            labels: Class indices ``(n,)``: samples of one class are then not negatives of each other.
        """
        scores = self.scores(x, y.detach())
        if labels is not None:
            scores = _without_own_class(scores, labels)
        return -infonce_from_scores(scores, both_directions=True)

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the InfoNCE bound in nats, with all negatives and without gradient."""
        return infonce_from_scores(self.scores(x, y), both_directions=True).detach()

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the scores ``(n, n)`` of all pairs."""
        require_pair(x, y)
        if x.shape[1] != self.d_student or y.shape[1] != self.d_teacher:
            raise InputError(
                f"x has {x.shape[1]} features and y has {y.shape[1]}, but this CRD was built for a student of "
                f"{self.d_student} and a teacher of {self.d_teacher}. The student comes first."
            )
        with torch.autocast(x.device.type, enabled=False):
            student = (x - self.mean_student) / self.scale_student
            teacher = (y - self.mean_teacher) / self.scale_teacher
            dtype = self.project_student.weight.dtype
            u = nn.functional.normalize(self.project_student(student.to(dtype)), dim=1)
            v = nn.functional.normalize(self.project_teacher(teacher.to(dtype)), dim=1)
            return u @ v.T / self.temperature

    def ceiling(self, n: int) -> float:
        """Return ``log n``."""
        return math.log(n)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the projections, and their biases without weight decay."""
        return split_decay(self)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"embedding={self.embedding}, temperature={self.temperature}"


def _without_own_class(scores: Tensor, labels: Tensor) -> Tensor:
    n = scores.shape[0]
    if labels.shape != (n,) or labels.is_floating_point():
        raise InputError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype} for {n} samples; pass one class "
            "index for each sample."
        )
    same = labels[:, None] == labels
    same = passed_if(
        same,
        ~same.all(),
        "All labels of this batch are the same, so no negative is left. Shuffle the batches, or pass no labels.",
    )
    itself = torch.eye(n, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(same & ~itself, -math.inf)
