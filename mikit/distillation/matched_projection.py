"""A trained linear map from a student's features to a teacher's width, well scaled on both sides."""

from __future__ import annotations

import math
from typing import Self, final

import torch
from torch import Tensor, nn

from mikit.distillation.teacher_scale import moments

__all__ = ["MatchedProjection"]


@final
class MatchedProjection(nn.Module):
    r"""Linear map that starts with the mean and the spread of a teacher's features, whatever the student's are.

    Formula: :math:`x \mapsto \bar t + \tfrac{s_t}{\sqrt{d_t}}\, [W (x - \bar x) \sqrt{d_s} / s_s + b]` with the means
    and spreads of example features as constants. ``W`` and ``b`` train, at rates that suit networks, wherever student
    and teacher lie.

    Args:
        d_student: The student's width.
        d_teacher: The teacher's width.

    Shapes:
        ``(n, d_student)`` to ``(n, d_teacher)``.

    Cost:
        O(n d_student d_teacher).

    Pitfalls:
        The constants are those of the example features; a student that moves away is followed by training alone.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = 30 + torch.randn(64, 3, generator=g), 5 * torch.randn(64, 8, generator=g)
        >>> projection = MatchedProjection.between(x, y, generator=g)
        >>> torch.allclose(projection(x).mean(0), y.mean(0), atol=1e-4)
        True
    """

    shift: Tensor
    factor: Tensor
    target: Tensor
    target_factor: Tensor

    def __init__(self, d_student: int, d_teacher: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_student, d_teacher)
        self.register_buffer("shift", torch.zeros(d_student))
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("target", torch.zeros(d_teacher))
        self.register_buffer("target_factor", torch.ones(()))

    @classmethod
    @torch.no_grad()
    def between(cls, student: Tensor, teacher: Tensor, *, generator: torch.Generator | None = None) -> Self:
        """Build from example features ``(n, d_student)`` and ``(m, d_teacher)``.

        Args:
            student: The student's.
            teacher: The teacher's.
            generator: Where the weights are drawn from; torch's global generator if None.
        """
        mean, spread = moments(student, "The student's features")
        target, target_spread = moments(teacher, "The teacher's features")
        d_student, d_teacher = student.shape[1], teacher.shape[1]
        dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        projection = cls(d_student, d_teacher).to(device=student.device, dtype=dtype)
        projection.shift.copy_(mean)
        projection.factor.copy_(math.sqrt(d_student) / spread)
        projection.target.copy_(target)
        projection.target_factor.copy_(target_spread / math.sqrt(d_teacher))
        weight = projection.linear.weight
        device = "cpu" if generator is None else generator.device
        weight.copy_(torch.randn(weight.shape, generator=generator, device=device))
        projection.linear.bias.zero_()
        spread_now = moments(projection(student.to(dtype)), "The student's features")[1]
        weight.mul_((target_spread.to(spread_now.device) / spread_now).to(dtype))
        return projection

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows in the teacher's space."""
        moved: Tensor = self.linear((rows - self.shift) * self.factor)
        return self.target + self.target_factor * moved
