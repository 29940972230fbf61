"""Discrepancies between feature maps with different numbers of channels: of their attention, and of their channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mikit.core.errors import InputError
from mikit.functional.engine.samples import require_one_device, require_paired, working_dtype

__all__ = ["attention_gap", "channel_mmd2", "pooled_alike"]


def attention_gap(student: Tensor, teacher: Tensor, *, power: float = 2.0) -> Tensor:
    r"""Mean squared distance of a student's and a teacher's attention maps, each normalized to length 1.

    .. math:: \frac1n \sum_i \left\| \frac{Q^S_i}{\|Q^S_i\|} - \frac{Q^T_i}{\|Q^T_i\|} \right\|^2, \qquad
              Q_{i,hw} = \sum_c |A_{i,chw}|^p

    ``p`` is ``power``. Larger maps are average-pooled to the smaller height and width. The value is dimensionless and
    at most 2. The sum runs over cells where released codes take the mean, so a weight of 1000 there corresponds to 3.9
    here for 16 × 16 cells, and to 15.6 for 8 × 8. A map of zeros has distance 1 to any other and no gradient. Zagoruyko
    and Komodakis (2017), arXiv 1612.03928.
    """
    if not 1 <= power < math.inf:
        raise InputError(f"power is {power}; it must be finite and at least 1.")
    student, teacher = pooled_alike(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        first, second = (_unit(_scaled(maps).abs().pow(power).sum(dim=1).flatten(1)) for maps in (student, teacher))
        return (first - second).square().sum(dim=1).mean()


def channel_mmd2(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared MMD between the channels of a student's and a teacher's map of one image, averaged over images.

    .. math:: \frac1n \sum_i \left[ \operatorname{mean}_{cc'} k(u_c, u_{c'}) + \operatorname{mean}_{cc'} k(v_c, v_{c'})
              - 2 \operatorname{mean}_{cc'} k(u_c, v_{c'}) \right], \qquad k(a, b) = (a^\top b)^2

    with :math:`u_c`, :math:`v_c` the channels as unit vectors over the cells. Larger maps are average-pooled as in
    :func:`attention_gap`. The sample are the channels of one image, so their order is ignored. Maps of one cell give 0.
    Neuron selectivity transfer: Huang and Wang (2017), arXiv 1707.01219; the form as in RepDistiller 1e2f816.
    """
    student, teacher = pooled_alike(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        first, second = (_unit(_scaled(maps).flatten(2)) for maps in (student, teacher))
        # The mean of (a.b)² over channels is the inner product of mean outer products. Their difference is squared as a
        # whole, so small gaps keep their digits; it has as many entries as there are pairs of cells.
        if first.shape[2] <= first.shape[1] + second.shape[1]:
            gap = first.mT @ first / first.shape[1] - second.mT @ second / second.shape[1]
            return gap.square().sum(dim=(1, 2)).mean()
        within = (first @ first.mT).square().mean(dim=(1, 2)) + (second @ second.mT).square().mean(dim=(1, 2))
        return (within - 2 * (first @ second.mT).square().mean(dim=(1, 2))).mean()


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return paired maps in their common dtype, at least float32, average-pooled to the smaller height and width."""
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
    """Return maps with largest entry 1, so that powers do not overflow; normalization removes the factor again."""
    largest = maps.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1.0)


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1; a zero vector stays zero, with a gradient of 0."""
    squared = vectors.square().sum(dim=-1, keepdim=True)
    some = squared > torch.finfo(vectors.dtype).tiny
    return vectors * torch.where(some, torch.where(some, squared, 1.0).rsqrt(), 0.0)
