"""Preprocessing of VID's inputs: the layout and size of both sides, and their standardization."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from mikit.core.errors import InputError
from mikit.core.rows import require_paired
from mikit.functional.vid.residuals import at_least_float32

__all__ = [
    "RESIZES",
    "FeaturePair",
    "as_samples",
    "channel_moments",
    "require_layouts",
    "require_squarable",
    "resized_alike",
]


RESIZES = ("pool", "interpolate")


def require_layouts(x: Tensor, y: Tensor) -> None:
    """Raise unless ``x`` and ``y`` are paired vectors, paired maps, or vectors of a student with maps of a teacher."""
    if x.ndim not in (2, 4) or y.ndim not in (2, 4) or (x.ndim, y.ndim) == (4, 2):
        raise InputError(
            f"x has shape {tuple(x.shape)} and y has shape {tuple(y.shape)}. VID needs vectors (n, d) on both sides, "
            "maps (n, c, h, w) on both sides, or vectors of a student with maps of a teacher. Bring both to one "
            "layout, for example by pooling."
        )
    require_paired(x, y)


def resized_alike(x: Tensor, y: Tensor, resize: str) -> tuple[Tensor, Tensor]:
    """Return both sides with maps of one size; without maps on both sides, unchanged.

    ``"pool"``: both are average-pooled to the smaller height and the smaller width. ``"interpolate"``: the student's
    maps are interpolated bilinearly to the teacher's size.
    """
    if x.ndim == 2 or x.shape[2:] == y.shape[2:]:
        return x, y
    if resize == "interpolate":
        return interpolate(at_least_float32(x), size=y.shape[2:], mode="bilinear", align_corners=False), y
    size = (min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3]))
    return _pooled(x, size), _pooled(y, size)


def as_samples(x: Tensor) -> Tensor:
    """Return maps as one vector per position, ``(n h w, c)``; vectors unchanged."""
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).flatten(0, 2)


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance per channel, in float64 for float64 features and float32 otherwise."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    x64 = x.detach().double()
    mean = x64.mean(dim=axes, keepdim=True)
    variance = (x64 - mean).square().mean(dim=axes)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return mean.flatten().to(dtype), variance.to(dtype)


def require_squarable(x: Tensor, name: str) -> None:
    """Raise if the range of the values of ``x`` overflows or underflows when float32 squares it."""
    span = float(x.detach().amax().double() - x.detach().amin().double())
    if span > 0 and not 1e-15 < span < 1e15:
        raise InputError(
            f"The values of {name} span {span:.1e}, which float32 cannot square. Divide them by a constant first; this "
            "does not change the information."
        )


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else adaptive_avg_pool2d(at_least_float32(x), size)


_LAYOUTS = {2: "vectors (n, d)", 4: "maps (n, c, h, w)"}


@final
class FeaturePair(nn.Module):
    """Checks both sides, brings maps to one size, and contains the statistics that standardize them.

    Args:
        d_student: The student's width or channels.
        d_teacher: The teacher's width or channels.
        layouts: Number of axes of the student's and of the teacher's features, 2 or 4 each.
        resize: ``"pool"`` or ``"interpolate"``; None refuses maps of different sizes.
        size: Height and width that the teacher's maps must have; any if None.
        standardize: Whether features are standardized; if not, constant channels count like the others.
    """

    student_mean: Tensor
    student_scale: Tensor
    teacher_mean: Tensor
    teacher_variance: Tensor
    live: Tensor

    def __init__(
        self,
        d_student: int,
        d_teacher: int,
        *,
        layouts: tuple[int, int],
        resize: str | None,
        size: tuple[int, int] | None,
        standardize: bool,
    ) -> None:
        super().__init__()
        self.d_student = d_student
        self.d_teacher = d_teacher
        self.layouts = layouts
        self.resize = resize
        self.size = size
        self.standardize = standardize
        self.register_buffer("student_mean", torch.zeros(d_student))
        self.register_buffer("student_scale", torch.ones(d_student))
        self.register_buffer("teacher_mean", torch.zeros(d_teacher))
        self.register_buffer("teacher_variance", torch.ones(d_teacher))
        self.register_buffer("live", torch.ones(d_teacher, dtype=torch.bool))

    def aligned(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return both sides with maps of one size; raise if layouts, widths or sizes are not the expected ones."""
        require_layouts(x, y)
        if (x.ndim, y.ndim) != self.layouts:
            raise InputError(
                f"This VID was built for {_LAYOUTS[self.layouts[0]]} of a student and {_LAYOUTS[self.layouts[1]]} of a "
                f"teacher, but x has shape {tuple(x.shape)} and y has shape {tuple(y.shape)}. Build it with "
                "VID.between from features of these layers."
            )
        if x.shape[1] != self.d_student or y.shape[1] != self.d_teacher:
            raise InputError(
                f"x has {x.shape[1]} features and y has {y.shape[1]}, but this VID was built for a student of "
                f"{self.d_student} and a teacher of {self.d_teacher}. The student comes first."
            )
        if self.size is not None and tuple(y.shape[2:]) != self.size:
            raise InputError(
                f"The teacher's maps are {y.shape[2]} x {y.shape[3]}, but this VID's head predicts maps of "
                f"{self.size[0]} x {self.size[1]}. Build it with VID.between from maps of that size."
            )
        if self.resize is None and x.shape[2:] != y.shape[2:]:
            raise InputError(
                f"The student's maps are {x.shape[2]} x {x.shape[3]} and the teacher's {y.shape[2]} x {y.shape[3]}. "
                "The released code that this VID reproduces has no rule for different sizes. Pool one side first, or "
                "leave out compat."
            )
        return (x, y) if self.resize is None else resized_alike(x, y, self.resize)

    def student(self, x: Tensor) -> Tensor:
        """Return the student's features, standardized."""
        if not self.standardize:
            return x
        return _standardized(x, self.student_mean, self.student_scale)

    def teacher(self, y: Tensor) -> Tensor:
        """Return the teacher's features, standardized."""
        if not self.standardize:
            return y
        return _standardized(y, self.teacher_mean, self.teacher_unit())

    def teacher_unit(self) -> Tensor:
        """Return the scale that the teacher's channels are divided by."""
        if not self.standardize:
            return torch.ones_like(self.teacher_variance)
        return torch.where(self.live, self.teacher_variance, 1.0).sqrt()

    def teacher_moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of each channel of the teacher, standardized."""
        if not self.standardize:
            return self.teacher_mean, self.teacher_variance
        return torch.zeros_like(self.teacher_mean), torch.ones_like(self.teacher_mean)

    def counted(self) -> Tensor:
        """Return which channels contribute to the loss."""
        return self.live if self.standardize else torch.ones_like(self.live)

    @torch.no_grad()
    def take_statistics(self, x: Tensor, y: Tensor, *, scale_per_column: bool) -> None:
        """Compute means and scales from example features, and ``live``: which of the teacher's channels vary."""
        require_squarable(x, "x")
        require_squarable(y, "y")
        mean, variance = channel_moments(x)
        scale = variance.sqrt()
        if not scale_per_column:
            scale = variance.mean().sqrt().expand_as(scale)
        # A spread below the rounding error of the mean is rounding noise, and would be scaled up to unit variance.
        usable = scale > torch.finfo(mean.dtype).eps * mean.abs()
        self.student_mean = mean
        self.student_scale = torch.where(usable, scale, 1.0)
        self.teacher_mean, self.teacher_variance = channel_moments(y)
        self.live = self.teacher_variance.sqrt() > torch.finfo(mean.dtype).eps * self.teacher_mean.abs()

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{self.d_student}, {self.d_teacher}, layouts={self.layouts}, resize={self.resize!r}"


def _standardized(x: Tensor, center: Tensor, unit: Tensor) -> Tensor:
    """Return ``(x - center) / unit`` per channel."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    # Subtracted before scaling: the difference is exact up to the rounding of x itself, whereas scaling first would
    # round both terms again and, for a mean of thousands of units, leave a tenth of that precision.
    return (x - center.view(shape)) * unit.reciprocal().view(shape)
