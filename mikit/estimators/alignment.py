"""How a student's and a teacher's features meet: one layout, one size of maps, moments per channel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from mikit.errors import InputError
from mikit.rows import require_paired

__all__ = ["RESIZES", "as_samples", "channel_moments", "require_layouts", "require_squarable", "resized_alike"]

RESIZES = ("pool", "interpolate")


def require_layouts(x: Tensor, y: Tensor) -> None:
    """Raise unless ``x`` and ``y`` are paired rows, paired maps, or rows of a student beside maps of a teacher."""
    if x.ndim not in (2, 4) or y.ndim not in (2, 4) or (x.ndim, y.ndim) == (4, 2):
        raise InputError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}. VID reads two sets of rows (n, d), two sets of maps "
            "(n, c, h, w), or rows of a student beside maps of a teacher; bring both to one layout, with a readout "
            "such as pooling."
        )
    require_paired(x, y)


def resized_alike(x: Tensor, y: Tensor, resize: str) -> tuple[Tensor, Tensor]:
    """Return both sides with maps of one size; rows, and rows beside maps, as they are.

    ``"pool"``: both are average-pooled to the smaller height and the smaller width. ``"interpolate"``: the student is
    brought to the teacher's size bilinearly, and the teacher stays as it is.
    """
    if x.ndim == 2 or x.shape[2:] == y.shape[2:]:
        return x, y
    if resize == "interpolate":
        return interpolate(_at_least_float32(x), size=y.shape[2:], mode="bilinear", align_corners=False), y
    size = (min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3]))
    return _pooled(x, size), _pooled(y, size)


def as_samples(x: Tensor) -> Tensor:
    """Return maps as one row per position, ``(n h w, c)``; rows as they are."""
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
    """Raise if the values of ``x`` span more or less than float32 can square."""
    span = float(x.detach().amax().double() - x.detach().amin().double())
    if span > 0 and not 1e-15 < span < 1e15:
        raise InputError(
            f"The values of {name} span {span:.1e}, which float32 cannot square. Divide them by a constant first; the "
            "information does not change."
        )


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else adaptive_avg_pool2d(_at_least_float32(x), size)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
