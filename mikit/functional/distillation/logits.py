"""Divergences of a student's class probabilities from a teacher's at a temperature, whole and in two parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.engine.operators import passed_if
from mikit.functional.engine.samples import (
    require_one_device,
    require_paired,
    require_rows,
    require_same_width,
    working_dtype,
)

__all__ = ["decoupled_kl", "softened_kl"]


def softened_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Mean KL divergence of a student's softened class probabilities from a teacher's, in nats, from logits.

    .. math:: \frac1n \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(t_i / T) \,\|\, \mathrm{softmax}(s_i / T)\bigr)

    Gradients shrink as ``1 / T²`` for large ``T``, so losses multiply by ``T²``. Hinton, Vinyals and Dean (2015).

    Example:
        >>> teacher = torch.tensor([[0.0, math.log(3.0)]])
        >>> round(softened_kl(torch.zeros(1, 2), teacher).item(), 4)  # log 2 minus the entropy of (1/4, 3/4)
        0.1308
    """
    student, teacher = _logits(student, teacher, temperature)
    with torch.autocast(student.device.type, enabled=False):
        return _kl(torch.log_softmax(teacher, dim=1), torch.log_softmax(student, dim=1)).mean()


def decoupled_kl(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Return the two parts of :func:`softened_kl`, averaged over samples: target class, and other classes.

    .. math:: \mathrm{KL} = \mathrm{KL}\bigl((p_y, 1 - p_y) \| (q_y, 1 - q_y)\bigr)
              + (1 - p_y)\, \mathrm{KL}(\hat p \| \hat q)

    with :math:`\hat p`, :math:`\hat q` the probabilities of the classes other than y, normalized to sum to 1. The
    second part is returned without its factor ``1 - p_y``; with two classes it is 0. The split is elementary; as losses
    they follow the released code of DKD (megvii-research/mdistiller e8c5bb3).
    """
    student, teacher = _logits(student, teacher, temperature)
    if labels.shape != student.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}, but there are {student.shape[0]} rows "
            "of logits; pass one class index per sample."
        )
    labels = passed_if(
        labels.long(),
        ((labels >= 0) & (labels < student.shape[1])).all(),
        f"A label is not one of the {student.shape[1]} classes of the logits, which are counted from 0. Check the "
        "number of classes of the networks.",
    )
    with torch.autocast(student.device.type, enabled=False):
        target = torch.zeros_like(student, dtype=torch.bool).scatter_(1, labels[:, None], True)
        p, q = (_parted(logits, labels, target) for logits in (teacher, student))
        binary = _kl(p[0], q[0]).mean()
        among = _kl(p[1], q[1], without=target).mean()
    return binary, among


def _parted(logits: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log probabilities of target and rest ``(n, 2)``, and of the classes within the rest."""
    rest = logits.masked_fill(target, -math.inf)
    among = torch.logsumexp(rest, dim=1, keepdim=True)
    chosen = logits.gather(1, labels[:, None])
    return torch.log_softmax(torch.cat([chosen, among], dim=1), dim=1), (rest - among)


def _kl(log_p: Tensor, log_q: Tensor, without: Tensor | None = None) -> Tensor:
    """Return the divergence of every row; the entries ``without`` have probability 0 on both sides."""
    if without is not None:
        log_p, log_q = log_p.masked_fill(without, 0.0), log_q.masked_fill(without, 0.0)
    # Masked entries have equal logarithms, so their terms are 0.
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _logits(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    require.positive(temperature, "temperature")
    require_rows(student, "student")
    require_rows(teacher, "teacher")
    require_paired(student, teacher)
    require_one_device(student, teacher)
    require_same_width(student, teacher)
    if student.shape[1] < 2:
        raise InputError(
            "The logits have one class; a softmax over one class is 1. Pass (n, classes) with at least two classes."
        )
    dtype = working_dtype(student, teacher)
    return student.to(dtype) / temperature, teacher.to(dtype) / temperature
