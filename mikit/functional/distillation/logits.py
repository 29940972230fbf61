"""How far a student's class probabilities are from a teacher's, at a temperature, whole and in its two parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
    r"""Mean Kullback-Leibler divergence of a student's softened class probabilities from a teacher's.

    .. math:: \frac1n \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(t_i / T) \,\|\, \mathrm{softmax}(s_i / T)\bigr)

    Args:
        student: Logits, ``(n, classes)``.
        teacher: Logits of the same inputs, ``(n, classes)``.
        temperature: ``T``.

    Returns:
        0-dim tensor in the common dtype, float32 at least, differentiable in both. Unit: nats. Kind: a discrepancy, 0
        if and only if the probabilities agree.

    Raises:
        InputError: If the logits are not two paired ``(n, classes)`` of two classes at least, or the temperature is not
            positive.

    Cost:
        O(n classes).

    Pitfalls:
        - Gradients shrink by ``1 / T²`` for large ``T``: a loss multiplies by ``T²``.
        - Logits, not probabilities: those would be softened once more.

    Source:
        Hinton, Vinyals and Dean (2015), arXiv 1503.02531.

    Example:
        >>> teacher = torch.tensor([[0.0, math.log(3.0)]])
        >>> round(softened_kl(torch.zeros(1, 2), teacher).item(), 4)  # log 2 less the entropy of (1/4, 3/4)
        0.1308
    """
    student, teacher = _logits(student, teacher, temperature)
    with torch.autocast(student.device.type, enabled=False):
        return _kl(torch.log_softmax(teacher, dim=1), torch.log_softmax(student, dim=1)).mean()


def decoupled_kl(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""The two parts of :func:`softened_kl`: of the label against the rest, and among the rest.

    .. math:: \mathrm{KL} = \mathrm{KL}\bigl((p_y, 1 - p_y) \| (q_y, 1 - q_y)\bigr)
              + (1 - p_y)\, \mathrm{KL}(\hat p \| \hat q)

    with :math:`\hat p`, :math:`\hat q` the probabilities of the classes but y, scaled to sum to 1. The second part is
    returned without its factor ``1 - p_y``.

    Args:
        student: Logits, ``(n, classes)``.
        teacher: Logits of the same inputs.
        labels: Class indices, ``(n,)``.
        temperature: ``T``.

    Returns:
        Two 0-dim tensors, means over the rows: target class, other classes. Unit: nats. Kind: discrepancies.

    Raises:
        InputError: As :func:`softened_kl`, and if there is not one class index a row.

    Cost:
        O(n classes).

    Pitfalls:
        With two classes there is nothing among the rest, and the second part is 0.

    Source:
        The identity is elementary; the two parts as losses: released code of DKD (megvii-research/mdistiller e8c5bb3).

    Example:
        >>> student, teacher = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
        >>> label = torch.zeros(5, dtype=torch.long)
        >>> [round(part.item(), 3) for part in decoupled_kl(teacher, teacher, label)]
        [0.0, 0.0]
    """
    student, teacher = _logits(student, teacher, temperature)
    if labels.shape != student.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}, but there are {student.shape[0]} rows "
            "of logits; pass one class index a row."
        )
    labels = passed_if(
        labels.long(),
        ((labels >= 0) & (labels < student.shape[1])).all(),
        f"A label does not lie among the {student.shape[1]} classes of the logits, which are counted from 0. Check "
        "which classes the networks were built for.",
    )
    with torch.autocast(student.device.type, enabled=False):
        target = torch.zeros_like(student, dtype=torch.bool).scatter_(1, labels[:, None], True)
        own, others = (_parted(logits, labels, target) for logits in (teacher, student))
        binary = _kl(own[0], others[0]).mean()
        among = _kl(own[1], others[1], without=target).mean()
    return binary, among


def _parted(logits: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log probabilities of target and rest ``(n, 2)``, and of the classes among the rest."""
    rest = logits.masked_fill(target, -math.inf)
    among = torch.logsumexp(rest, dim=1, keepdim=True)
    own = logits.gather(1, labels[:, None])
    return torch.log_softmax(torch.cat([own, among], dim=1), dim=1), (rest - among)


def _kl(log_p: Tensor, log_q: Tensor, without: Tensor | None = None) -> Tensor:
    """Return the divergence of every row; entries ``without`` have probability 0 on both sides."""
    if without is not None:
        log_p, log_q = log_p.masked_fill(without, 0.0), log_q.masked_fill(without, 0.0)
    # Masked entries have equal logarithms, so that their probability of 1 adds nothing.
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _logits(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}; it must be positive and finite.")
    require_rows(student, "student")
    require_rows(teacher, "teacher")
    require_paired(student, teacher)
    require_one_device(student, teacher)
    require_same_width(student, teacher)
    if student.shape[1] < 2:
        raise InputError("The logits have one class; a softmax over one class is 1. Pass (n, classes), two at least.")
    dtype = working_dtype(student, teacher)
    return student.to(dtype) / temperature, teacher.to(dtype) / temperature
