"""Bounds on the risk of a linear softmax head from the distances between class-wise distributions of features."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.samples import require_one_device, require_rows, require_same_width
from mikit.functional.transport.exact import wasserstein

__all__ = ["ClassRisks", "class_risks", "cross_entropy_lipschitz"]


@final
class ClassRisks(NamedTuple):
    """Risks and bounds of every class of a head, ``(C,)`` each, in float64; NaN for classes without samples.

    ``_x`` is the student and ``_y`` the teacher; distances are in the unit of the features.
    """

    rows_x: Tensor  # Number of samples.
    rows_y: Tensor
    prior: Tensor  # Fraction of each class among the teacher's samples.
    lipschitz: Tensor  # Constant of the cross-entropy of each label, in nats per feature.
    risk_x: Tensor  # Mean cross-entropy, in nats.
    risk_y: Tensor
    wasserstein1: Tensor  # 1-Wasserstein distance of the class's distributions.
    wasserstein2: Tensor  # 2-Wasserstein distance.
    paired1: Tensor  # Mean distance of paired samples; NaN if samples are not paired.
    paired2: Tensor  # Root of their mean squared distance.


def cross_entropy_lipschitz(weight: Tensor) -> Tensor:
    r"""Return the Lipschitz constant of every label's cross-entropy under a linear softmax head ``(C, d)``.

    .. math:: L_y = \max_k \|w_k - w_y\|_2

    in the features, since the gradient is :math:`\nabla_z \ell(z, y) = \sum_k p_k(z) (w_k - w_y)`, an average of such
    differences. The constant is approached far from the origin and never exceeded. It may be much larger than any
    gradient at the observed features. In nats per unit of the features; ``O(C² d)`` time.
    """
    require_rows(weight, "weight")
    with torch.autocast(weight.device.type, enabled=False):
        rows = weight.detach().double()
        # Row by row, because a matrix product loses digits of differences between long rows.
        return torch.stack([(rows - row).norm(dim=1).max() for row in rows])


def class_risks(
    x: Tensor, y: Tensor, labels_x: Tensor, labels_y: Tensor | None, weight: Tensor, bias: Tensor
) -> ClassRisks:
    """Return the risk of a head on student and teacher features by class, and the distances that bound the gap.

    ``x (n, d)`` are student features in the teacher's space, ``y (m, d)`` teacher features, with labels from 0 to
    ``C - 1``; without ``labels_y`` samples are paired and share the labels. ``weight (C, d)`` and ``bias (C,)`` are the
    head's. Solves two exact transport problems per class, which needs POT if a class has different numbers of samples.
    Distances of classes with few samples are large by chance.
    """
    _require(x, y, labels_x, labels_y, weight, bias)
    x, y, weight, bias = (part.detach().double() for part in (x, y, weight, bias))
    count = weight.shape[0]
    paired = labels_y is None
    labels_y = labels_x if labels_y is None else labels_y
    rows_x, rows_y = (torch.bincount(labels, minlength=count) for labels in (labels_x, labels_y))
    for label in range(count):
        if (rows_x[label] == 0) != (rows_y[label] == 0):
            raise InputError(
                f"Class {label} has {int(rows_x[label])} samples of the student and {int(rows_y[label])} of the "
                "teacher; each class needs samples of both. Record both networks on the same samples."
            )
    with torch.autocast(x.device.type, enabled=False):
        loss_x, loss_y = (
            torch.nn.functional.cross_entropy(rows @ weight.T + bias, labels, reduction="none")
            for rows, labels in ((x, labels_x), (y, labels_y))
        )
        found = {name: x.new_full((count,), float("nan")) for name in ("rx", "ry", "w1", "w2", "p1", "p2")}
        for label in torch.nonzero(rows_x)[:, 0].tolist():
            of_x, of_y = labels_x == label, labels_y == label
            a, b = x[of_x], y[of_y]
            found["rx"][label], found["ry"][label] = loss_x[of_x].mean(), loss_y[of_y].mean()
            found["w1"][label], found["w2"][label] = wasserstein(a, b, p=1.0), wasserstein(a, b, p=2.0)
            if paired:
                lengths = (a - b).norm(dim=1)
                found["p1"][label], found["p2"][label] = lengths.mean(), lengths.square().mean().sqrt()
    prior = rows_y.double() / rows_y.sum()
    return ClassRisks(rows_x, rows_y, prior, cross_entropy_lipschitz(weight), *found.values())


def _require(x: Tensor, y: Tensor, labels_x: Tensor, labels_y: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    for rows, name in ((x, "the student's features"), (y, "the teacher's features"), (weight, "weight")):
        require_rows(rows, name)
    require_same_width(x, y)
    if weight.shape[1] != y.shape[1]:
        raise InputError(
            f"weight has {weight.shape[1]} columns and the teacher's features have {y.shape[1]}; pass the head of "
            "these features, one row per class."
        )
    if bias.shape != (weight.shape[0],):
        raise InputError(
            f"bias has shape {tuple(bias.shape)}; pass one number for each of the {weight.shape[0]} classes."
        )
    for rows, labels, name in ((x, labels_x, "labels"), (y, labels_y, "teacher_labels")):
        if labels is None:
            if x.shape[0] != y.shape[0]:
                raise InputError(
                    f"The student has {x.shape[0]} samples and the teacher {y.shape[0]}, so samples are not paired; "
                    "pass teacher_labels as well."
                )
            continue
        if labels.shape != (rows.shape[0],) or labels.is_floating_point():
            raise InputError(
                f"{name} has shape {tuple(labels.shape)}; pass one integer for each of the {rows.shape[0]} samples."
            )
        if int(labels.min()) < 0 or int(labels.max()) >= weight.shape[0]:
            raise InputError(
                f"{name} run from {int(labels.min())} to {int(labels.max())}, but the head has {weight.shape[0]} "
                f"classes; labels are its rows, 0 to {weight.shape[0] - 1}."
            )
    for part in (y, labels_x, weight, bias):
        require_one_device(x, part)
