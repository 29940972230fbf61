"""The scale of a teacher's features, on which KD²M compares student and teacher."""

from __future__ import annotations

import math
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.core.inputs import refuse_non_finite
from mikit.distillation.kd2m.queue import take_shapes

__all__ = ["MatchedProjection", "TeacherScale", "moments", "unrelated_standard"]


@final
class TeacherScale(nn.Module):
    """Subtracts the mean of a teacher's features and divides by their spread, the root of ``E |t - mean|²``.

    Example:
        >>> scale = TeacherScale()
        >>> scale.take(torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
        >>> scale(torch.tensor([[3.0, 4.0], [6.0, 8.0]]))  # the mean, and one spread away from it
        tensor([[0.0000, 0.0000],
                [0.6000, 0.8000]])
    """

    # The spread is one number for all features: angles, correlations and dead units stay as they are, and the teacher's
    # mean squared length becomes 1 in any width, so a fixed bandwidth means the same for every layer.
    centre: Tensor  # spelled as in state dicts of 0.1
    spread: Tensor
    standard: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.empty(0))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("standard", torch.ones(()))

    @property
    def known(self) -> bool:
        """Whether the scale was taken from a teacher."""
        return self.centre.numel() > 0

    @torch.no_grad()
    def take(self, teacher: Tensor) -> None:
        """Take mean and spread from a teacher's features ``(n, d)``; ``standard`` becomes 1."""
        mean, spread = moments(teacher, "The teacher's features")
        dtype = torch.float64 if teacher.dtype == torch.float64 else torch.float32
        self.centre, self.spread = mean.to(dtype), spread.to(dtype)
        self.standard = torch.ones((), dtype=dtype, device=teacher.device)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the features on the teacher's scale, in float32 or wider; unchanged before :meth:`take`."""
        if not self.known:
            return rows
        if rows.shape[1] != self.centre.shape[0]:
            raise InputError(
                f"The teacher has {rows.shape[1]} features, but the loss was built for a teacher with "
                f"{self.centre.shape[0]}. The student comes first."
            )
        scaled: Tensor = (rows.to(torch.promote_types(rows.dtype, self.centre.dtype)) - self.centre) / self.spread
        return scaled

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}centre")
        if stored is not None and (not self.known or stored.shape == self.centre.shape):
            take_shapes(self, state_dict, prefix, "centre", "spread", "standard")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def moments(rows: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Return the mean ``(d,)`` and the spread, 0-dim, in float64; refuse features that have no spread."""
    if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] < 1:
        raise InputError(f"{what} have shape {tuple(rows.shape)}; pass (n, d), at least two samples.")
    refuse_non_finite(rows, what)
    rows = rows.detach().double()
    mean = rows.mean(dim=0)
    spread = (rows - mean).square().sum(dim=1).mean().sqrt()
    if not bool(spread > torch.finfo(torch.float32).eps * mean.norm()):
        raise InputError(
            f"{what} are the same in all {rows.shape[0]} samples, so they have no scale. Pass other samples."
        )
    return mean, spread


@torch.no_grad()
def unrelated_standard(n: int, d: int, *, generator: torch.Generator | None) -> Tensor:
    """Return ``(n, d)`` samples unrelated to a teacher, on the teacher's scale; seed 0 if ``generator`` is None."""
    # Isotropic normal with the teacher's spread, around a point one spread from its mean: wrong in its mean and in its
    # shape, but not in its scale. This is about what an untrained student gives.
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn = torch.randn(n + 1, d, generator=generator, device=generator.device, dtype=torch.float64)
    direction: Tensor = drawn[0] / drawn[0].norm()
    return drawn[1:] / math.sqrt(d) + direction


@final
class MatchedProjection(nn.Module):
    r"""Linear map whose outputs start with the mean and the spread of a teacher's features.

    :math:`x \mapsto \bar t + \tfrac{s_t}{\sqrt{d_t}}\, [W (x - \bar x) \sqrt{d_s} / s_s + b]` with means and spreads
    of example features as constants; ``W`` and ``b`` are trained.

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
        """Build from example features ``(n, d_student)`` and ``(m, d_teacher)``; draw from torch if no generator."""
        mean, spread = moments(student, "The student's features")
        target, target_spread = moments(teacher, "The teacher's features")
        d_student, d_teacher = student.shape[1], teacher.shape[1]
        dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        projection = cls(d_student, d_teacher).to(device=student.device, dtype=dtype)
        # Constants bring both sides to unit scale, so that W and b train at the learning rates of the networks for
        # features of any scale.
        projection.shift.copy_(mean)
        projection.factor.copy_(math.sqrt(d_student) / spread)
        projection.target.copy_(target)
        projection.target_factor.copy_(target_spread / math.sqrt(d_teacher))
        weight = projection.linear.weight
        device = "cpu" if generator is None else generator.device
        weight.copy_(torch.randn(weight.shape, generator=generator, device=device))
        projection.linear.bias.zero_()
        # Rescaled by what the drawn map really gives on these features: correlated features do not have the spread that
        # random weights promise.
        spread_now = moments(projection(student.to(dtype)), "The student's features")[1]
        weight.mul_((target_spread.to(spread_now.device) / spread_now).to(dtype))
        return projection

    def forward(self, rows: Tensor) -> Tensor:
        """Return the features in the teacher's space."""
        mapped: Tensor = self.linear((rows - self.shift) * self.factor)
        return self.target + self.target_factor * mapped
