"""Baseline distillation losses on features: regression, attention maps, and MMD across channels."""

from __future__ import annotations

import math
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mikit.core import require
from mikit.core.errors import InputError
from mikit.distillation.losses.base import PairedGap, require_maps, split_decay
from mikit.estimators.base import require_pair, seeded
from mikit.functional.distillation.feature_maps import attention_gap, channel_mmd2, pooled_alike

__all__ = ["AttentionTransfer", "ChannelMMD", "FitNet"]


@final
class FitNet(PairedGap):
    r"""Regression of the teacher's features by a linear map of the student's, ``(n, d)`` or maps ``(n, c, h, w)``.

    Formula: ``estimate`` is the mean over all entries of :math:`(r(s) - t)^2 / V`, with ``V`` the mean variance of the
    teacher's channels in the example features: about the fraction of the teacher's variance that is not explained.
    ``forward`` is 5 times that. The map :math:`r(s) = m + \sqrt V\, W (s - a) / b` is a 1×1 convolution for maps;
    ``m``, ``V``, ``a`` and ``b`` are constants. Larger maps are average-pooled to the smaller height and the smaller
    width.

    Args:
        d_student: The student's width or channels.
        d_teacher: The teacher's width or channels.
        spatial: Whether features are maps.

    Shapes:
        ``(n, d_student)`` and ``(n, d_teacher)``, or maps ``(n, c, h, w)`` of any two sizes.

    Unit: dimensionless.

    Kind: discrepancy. Never negative.

    Raises:
        InputError: If layouts or widths do not fit, or the teacher's example features are constant.

    Cost:
        ``O(n h w d_student d_teacher)``.

    Pitfalls:
        The factor 5 corresponds to a plain mean squared error with weight 10 on maps of variance 0.48, and was not
        tuned on another data set. Channels of the teacher with a large variance dominate; :class:`mikit.VID` divides
        each by its variance. Constants come from the example features: compute the student's in training mode.

    Source:
        Romero and others (2015), arXiv 1412.6550, for the method; the unit, the teacher's variance, is mikit's.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> s, t = torch.randn(8, 4, 8, 8, generator=g), torch.randn(8, 6, 4, 4, generator=g)
        >>> hint = FitNet.between(s, t, generator=g)
        >>> hint(s, t).shape, len(hint.param_groups())
        (torch.Size([]), 2)
    """

    student_mean: Tensor
    student_scale: Tensor
    teacher_mean: Tensor
    teacher_scale: Tensor

    name = "fitnet"
    learned = True
    shapes = ("nd", "nchw")
    strength = 5.0

    def __init__(self, d_student: int, d_teacher: int, *, spatial: bool = False) -> None:
        super().__init__()
        require.at_least(d_student, "d_student")
        require.at_least(d_teacher, "d_teacher")
        self.d_student, self.d_teacher, self.spatial = d_student, d_teacher, spatial
        self.regressor = nn.Conv2d(d_student, d_teacher, 1) if spatial else nn.Linear(d_student, d_teacher)
        self.register_buffer("student_mean", torch.zeros(d_student))
        self.register_buffer("student_scale", torch.ones(()))
        self.register_buffer("teacher_mean", torch.zeros(d_teacher))
        self.register_buffer("teacher_scale", torch.ones(()))

    @classmethod
    def between(cls, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Self:
        """Build from example features, which set widths and scales.

        Args:
            x: Student features.
            y: Teacher features of the same layout.
            generator: Source of the initial map; torch's global generator if None.
        """
        _require_layout(x, y)
        with seeded(generator):
            hint = cls(x.shape[1], y.shape[1], spatial=x.ndim == 4).to(x.device)
        dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
        for side, value in (("student", x.detach().double()), ("teacher", y.detach().double())):
            axes = [axis for axis in range(value.ndim) if axis != 1]
            mean = value.mean(dim=axes, keepdim=True)
            scale = (value - mean).square().mean().sqrt()
            if not float(scale) > 0 or not math.isfinite(float(scale)):
                raise InputError(
                    f"The {side}'s example features have a standard deviation of {float(scale):.3g}, so regression is "
                    "not possible. Pass finite features of more than one input."
                )
            setattr(hint, f"{side}_mean", mean.flatten().to(dtype))
            setattr(hint, f"{side}_scale", scale.to(dtype))
        return hint

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an untrained copy for these features."""
        return type(self).between(x, y, generator=generator)

    def gap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error over the teacher's variance."""
        if self.spatial:
            x, y = pooled_alike(x, y)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        rows = (x - self.student_mean.view(shape)) / self.student_scale
        aim = (y - self.teacher_mean.view(shape)) / self.teacher_scale
        found: Tensor = self.regressor(rows.to(self.regressor.weight.dtype))
        return (found.to(aim.dtype) - aim).square().mean()

    def require(self, x: Tensor, y: Tensor) -> None:
        """Raise :class:`~mikit.InputError` unless layout and widths are those of the example features."""
        _require_layout(x, y)
        if (x.ndim == 4) != self.spatial or x.shape[1] != self.d_student or y.shape[1] != self.d_teacher:
            layout = "maps (n, c, h, w)" if self.spatial else "rows (n, d)"
            raise InputError(
                f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}, but this FitNet was built for {layout} of "
                f"{self.d_student} student and {self.d_teacher} teacher features. The student comes first."
            )

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the map, and its bias without weight decay."""
        return split_decay(self)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"d_student={self.d_student}, d_teacher={self.d_teacher}, spatial={self.spatial}"


@final
class AttentionTransfer(PairedGap):
    r"""Attention transfer between feature maps ``(n, c, h, w)``: compares where activations are large.

    Formula: ``estimate`` is the squared distance between both attention maps, each of length 1, summed over cells and
    averaged over images; see :func:`mikit.functional.distillation.feature_maps.attention_gap`. ``forward`` is 4 times
    that.

    Args:
        power: ``p`` of the attention map :math:`\sum_c |A_c|^p`.

    Shapes:
        Maps of any two numbers of channels and sizes; the larger is average-pooled to the smaller.

    Unit: dimensionless, between 0 and 2.

    Kind: discrepancy. Never negative.

    Raises:
        InputError: If a side is not ``(n, c, h, w)``, images do not pair up, or the power is below 1.

    Cost:
        One pass over the maps.

    Pitfalls:
        Released codes use the mean over cells with a weight of 1000, which is 1, 4 and 16 times this sum for maps of
        32, 16 and 8 cells a side. The factor 4 is the middle one. With the mean, the same weight is 16 times as strong
        on maps with 16 times fewer cells. The factor here does not depend on the size; it was not tested on small maps.

    Source:
        Zagoruyko and Komodakis (2017), arXiv 1612.03928; weight 1000 and the mean over cells: RepDistiller and
        mdistiller a08d46f.

    Example:
        >>> student, teacher = torch.rand(4, 3, 8, 8), torch.rand(4, 6, 4, 4)
        >>> 0 < AttentionTransfer()(student, teacher).item() < 8
        True
    """

    name = "attention_transfer"
    shapes = ("nchw",)
    strength = 4.0

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        if not 1 <= power < math.inf:
            raise InputError(f"power is {power}; it must be finite and at least 1.")
        self.power = power

    def gap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the squared distance of the attention maps."""
        return attention_gap(x, y, power=self.power)

    def require(self, x: Tensor, y: Tensor) -> None:
        """Raise :class:`~mikit.InputError` unless these are maps of the same images."""
        require_maps(x, y, "AttentionTransfer")

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"power={self.power}"


@final
class ChannelMMD(PairedGap):
    """Squared MMD across the channels of one image, between feature maps ``(n, c, h, w)``; also known as NST.

    Formula: see :func:`mikit.functional.distillation.feature_maps.channel_mmd2`; ``forward`` multiplies by
    ``strength``.

    Args:
        strength: Factor of the loss; by default the weight in the released scripts.

    Shapes:
        Maps of any two numbers of channels and sizes; the larger is average-pooled to the smaller.

    Unit: dimensionless, at most 2.

    Kind: discrepancy. Never negative but for rounding.

    Raises:
        InputError: If a side is not ``(n, c, h, w)``, or images do not pair up.

    Cost:
        ``O(n h w (c_s + c_t)²)`` at most.

    Pitfalls:
        The samples are the channels of one image, not the images of a batch, so it is not the MMD between
        distributions of features; that is :class:`mikit.MMD`. The identity of the channels is lost. The strength was
        not tuned for mikit.

    Source:
        Huang and Wang (2017), arXiv 1707.01219, as "neuron selectivity transfer"; the form of RepDistiller 1e2f816,
        whose script gives it a weight of 50, as mdistiller a08d46f does.

    Example:
        >>> student, teacher = torch.rand(4, 3, 8, 8), torch.rand(4, 6, 4, 4)
        >>> ChannelMMD()(student, teacher).item() > 0
        True
    """

    name = "channel_mmd"
    shapes = ("nchw",)

    def __init__(self, *, strength: float = 50.0) -> None:
        super().__init__()
        require.positive(strength, "strength")
        self.strength = strength

    def gap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the squared MMD."""
        return channel_mmd2(x, y)

    def require(self, x: Tensor, y: Tensor) -> None:
        """Raise :class:`~mikit.InputError` unless these are maps of the same images."""
        require_maps(x, y, "ChannelMMD")

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"strength={self.strength}"


def _require_layout(x: Tensor, y: Tensor) -> None:
    if x.ndim == 4 or y.ndim == 4:
        require_maps(x, y, "FitNet, with one side a map,")
    else:
        require_pair(x, y)
