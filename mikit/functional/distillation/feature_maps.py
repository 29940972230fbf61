"""Gaps between feature maps that do not need one number of channels: of their attention, and of their channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mikit.core.errors import InputError
from mikit.functional.engine.samples import require_one_device, require_paired, working_dtype

__all__ = ["attention_gap", "channel_mmd2", "pooled_alike"]


def attention_gap(student: Tensor, teacher: Tensor, *, power: float = 2.0) -> Tensor:
    r"""Squared distance of the attention maps of a student and a teacher, each of length 1.

    .. math:: \frac1n \sum_i \left\| \frac{Q^S_i}{\|Q^S_i\|} - \frac{Q^T_i}{\|Q^T_i\|} \right\|^2, \qquad
              Q_{i,hw} = \sum_c |A_{i,chw}|^p

    The sum runs over cells, the mean over images: between 0 and 2 for maps of any size. Larger maps are average-pooled
    to the smaller height and the smaller width first.

    Args:
        student: Maps ``(n, c_s, h_s, w_s)``.
        teacher: Maps ``(n, c_t, h_t, w_t)`` of the same images.
        power: ``p``.

    Returns:
        0-dim tensor in the common dtype, float32 at least, differentiable in both. Unit: dimensionless. Kind: a
        discrepancy.

    Raises:
        InputError: If a side is not ``(n, c, h, w)``, images do not pair up, or the power is below 1.

    Cost:
        One pass over the maps.

    Pitfalls:
        - Released codes take the mean over cells, so that their weight depends on the size of the maps: 1000 there is
          3.9 here for 16 × 16 cells, and 15.6 for 8 × 8.
        - A map of zeros has attention 0, at distance 1 from any other, and no gradient.

    Source:
        Zagoruyko and Komodakis (2017), arXiv 1612.03928, for the method; the reduction as in no released code.

    Example:
        >>> maps = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> attention_gap(5 * maps, maps).item() < 1e-10 < attention_gap(maps.flip(-1), maps).item() < 2
        True
    """
    if not 1 <= power < math.inf:
        raise InputError(f"power is {power}; it must be finite and at least 1.")
    student, teacher = pooled_alike(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        own, aim = (_unit(_scaled(maps).abs().pow(power).sum(dim=1).flatten(1)) for maps in (student, teacher))
        return (own - aim).square().sum(dim=1).mean()


def channel_mmd2(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared MMD between the channels of a student's and of a teacher's map of one image, mean over images.

    .. math:: \frac1n \sum_i \left[ \operatorname{mean}_{cc'} k(u_c, u_{c'}) + \operatorname{mean}_{cc'} k(v_c, v_{c'})
              - 2 \operatorname{mean}_{cc'} k(u_c, v_{c'}) \right], \qquad k(a, b) = (a^\top b)^2

    with :math:`u_c`, :math:`v_c` the student's and the teacher's channels of image i, as vectors over the cells of
    length 1. Larger maps are average-pooled to the smaller height and the smaller width first.

    Args:
        student: Maps ``(n, c_s, h_s, w_s)``.
        teacher: Maps ``(n, c_t, h_t, w_t)`` of the same images.

    Returns:
        0-dim tensor in the common dtype, float32 at least, differentiable in both. Unit: dimensionless, at most 2.
        Kind: a discrepancy; biased, with each channel's kernel with itself.

    Raises:
        InputError: If a side is not ``(n, c, h, w)`` or images do not pair up.

    Cost:
        O(n h w (c_s + c_t)²) at most; where cells are fewer than channels, O(n (h w)² (c_s + c_t)).

    Pitfalls:
        - Not the MMD of two laws of features: channels of one image are the sample, and which channel is which is lost.
        - For one cell all channels are +1 or -1 and the value is 0: it needs maps.

    Source:
        Huang and Wang (2017), arXiv 1707.01219, neuron selectivity transfer; the form as in RepDistiller 1e2f816.

    Example:
        >>> maps = torch.rand(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> channel_mmd2(maps[:, torch.tensor([5, 3, 1, 0, 2, 4])], maps).item() < 1e-6  # the order is not seen
        True
    """
    student, teacher = pooled_alike(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        own, aim = (_unit(_scaled(maps).flatten(2)) for maps in (student, teacher))
        # The mean of (a.b)² over channels is the inner product of mean outer products, whose difference is squared as
        # a whole: small gaps keep their digits, and there are as many entries as pairs of cells.
        if own.shape[2] <= own.shape[1] + aim.shape[1]:
            gap = own.mT @ own / own.shape[1] - aim.mT @ aim / aim.shape[1]
            return gap.square().sum(dim=(1, 2)).mean()
        within = (own @ own.mT).square().mean(dim=(1, 2)) + (aim @ aim.mT).square().mean(dim=(1, 2))
        return (within - 2 * (own @ aim.mT).square().mean(dim=(1, 2))).mean()


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return paired maps in their common dtype, float32 at least, average-pooled to the smaller height and width.

    Raises:
        InputError: If a side is not ``(n, c, h, w)``, images do not pair up, or they are on two devices.
    """
    for name, maps in (("student", student), ("teacher", teacher)):
        if maps.ndim != 4 or maps.is_complex() or 0 in maps.shape:
            raise InputError(f"{name} has shape {tuple(maps.shape)}; pass real feature maps (n, c, h, w).")
    require_paired(student, teacher)
    require_one_device(student, teacher)
    dtype = working_dtype(student, teacher)
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    first, second = (
        maps.to(dtype) if maps.shape[2:] == size else adaptive_avg_pool2d(maps.to(dtype), size)
        for maps in (student, teacher)
    )
    return first, second


def _scaled(maps: Tensor) -> Tensor:
    """Return maps with largest entry 1, so that powers stay in range; what follows does not see a constant factor."""
    largest = maps.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1.0)


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1; one of zeros stays, with a gradient of 0."""
    squared = vectors.square().sum(dim=-1, keepdim=True)
    some = squared > torch.finfo(vectors.dtype).tiny
    return vectors * torch.where(some, torch.where(some, squared, 1.0).rsqrt(), 0.0)
