"""What a gap between class-wise laws of features can cost a linear softmax head, at most."""

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
    """Risks and bounds of every class of a head, ``(C,)`` each, in float64; NaN where a class has no rows.

    Attributes:
        rows_x: Rows of the student.
        rows_y: Rows of the teacher.
        prior: Share of each class among the teacher's rows.
        lipschitz: Constant of the cross-entropy of each label, in nats per feature.
        risk_x: Mean cross-entropy of the student's rows, in nats.
        risk_y: That of the teacher's.
        wasserstein1: 1-Wasserstein distance of the class's laws, in the unit of the features.
        wasserstein2: 2-Wasserstein distance.
        paired1: Mean distance of paired rows; NaN throughout where rows are not paired.
        paired2: Root of their mean squared distance.
    """

    rows_x: Tensor
    rows_y: Tensor
    prior: Tensor
    lipschitz: Tensor
    risk_x: Tensor
    risk_y: Tensor
    wasserstein1: Tensor
    wasserstein2: Tensor
    paired1: Tensor
    paired2: Tensor


def cross_entropy_lipschitz(weight: Tensor) -> Tensor:
    r"""Lipschitz constant of the cross-entropy of every label under a linear softmax head, as a function of features.

    .. math:: L_y = \max_k \|w_k - w_y\|_2

    since the gradient is :math:`\nabla_z \ell(z, y) = \sum_k p_k(z) (w_k - w_y)`, a mean of such differences.

    Args:
        weight: The head's weights, ``(C, d)``.

    Returns:
        Tensor ``(C,)``, float64. Unit: nats per unit of the features. Kind: a constant that is reached in the limit of
        features far out, and never exceeded.

    Raises:
        InputError: If the weights are not ``(C, d)``.

    Cost:
        O(C² d) time, O(C²) memory.

    Pitfalls:
        Far from the features that occur it may be much larger than any gradient met there.

    Source:
        mikit's own; the gradient of the cross-entropy is elementary.

    Example:
        >>> cross_entropy_lipschitz(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])).tolist()
        [1.4142135623730951, 1.4142135623730951, 1.4142135623730951]
    """
    require_rows(weight, "weight")
    with torch.autocast(weight.device.type, enabled=False):
        rows = weight.detach().double()
        # Row by row: differences of long rows lose digits in a matrix product.
        return torch.stack([(rows - own).norm(dim=1).max() for own in rows])


def class_risks(
    x: Tensor, y: Tensor, labels_x: Tensor, labels_y: Tensor | None, weight: Tensor, bias: Tensor
) -> ClassRisks:
    """Risk of a head on features of a student and of a teacher, class by class, and the distances that bound the gap.

    Args:
        x: Student features in the teacher's space, ``(n, d)``.
        y: Teacher features, ``(m, d)``.
        labels_x: Class of each row of ``x``, ``(n,)``, from 0 to ``C - 1``.
        labels_y: Class of each row of ``y``, ``(m,)``; None: rows are paired and share the labels.
        weight: The head's weights, ``(C, d)``.
        bias: The head's bias, ``(C,)``.

    Returns:
        :class:`ClassRisks`, without gradient.

    Raises:
        InputError: If shapes or devices do not fit, a label is no row of the head, or a class has rows of one network
            only; and if POT is missing where a class has different numbers of rows.

    Cost:
        An exact transport problem of each class, twice; see :func:`wasserstein`.

    Pitfalls:
        Distances of classes with few rows are large by chance: with one row they are those of pairs.

    Source:
        mikit's own.

    Example:
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [2.0]])
        >>> found = class_risks(x, y, torch.tensor([0, 0]), None, torch.tensor([[1.0], [-1.0]]), torch.zeros(2))
        >>> found.wasserstein1.tolist(), found.lipschitz.tolist()
        ([0.5, nan], [2.0, 2.0])
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
                f"Class {label} has {int(rows_x[label])} rows of the student and {int(rows_y[label])} of the teacher; "
                "the law of a class needs rows of both. Record both networks on the same samples."
            )
    with torch.autocast(x.device.type, enabled=False):
        loss_x, loss_y = (
            torch.nn.functional.cross_entropy(rows @ weight.T + bias, labels, reduction="none")
            for rows, labels in ((x, labels_x), (y, labels_y))
        )
        columns = {name: x.new_full((count,), float("nan")) for name in ("rx", "ry", "w1", "w2", "p1", "p2")}
        for label in torch.nonzero(rows_x)[:, 0].tolist():
            of_x, of_y = labels_x == label, labels_y == label
            a, b = x[of_x], y[of_y]
            columns["rx"][label], columns["ry"][label] = loss_x[of_x].mean(), loss_y[of_y].mean()
            columns["w1"][label], columns["w2"][label] = wasserstein(a, b, p=1.0), wasserstein(a, b, p=2.0)
            if paired:
                lengths = (a - b).norm(dim=1)
                columns["p1"][label], columns["p2"][label] = lengths.mean(), lengths.square().mean().sqrt()
    prior = rows_y.double() / rows_y.sum()
    return ClassRisks(rows_x, rows_y, prior, cross_entropy_lipschitz(weight), *columns.values())


def _require(x: Tensor, y: Tensor, labels_x: Tensor, labels_y: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    for rows, name in ((x, "the student's features"), (y, "the teacher's features"), (weight, "weight")):
        require_rows(rows, name)
    require_same_width(x, y)
    if weight.shape[1] != y.shape[1]:
        raise InputError(
            f"weight has {weight.shape[1]} columns and the teacher's features have {y.shape[1]}; pass the head that "
            "reads these features, one row a class."
        )
    if bias.shape != (weight.shape[0],):
        raise InputError(
            f"bias has shape {tuple(bias.shape)}; pass one number for each of the {weight.shape[0]} classes."
        )
    for rows, labels, name in ((x, labels_x, "labels"), (y, labels_y, "teacher_labels")):
        if labels is None:
            if x.shape[0] != y.shape[0]:
                raise InputError(
                    f"The student has {x.shape[0]} rows and the teacher {y.shape[0]}, so rows are not paired; pass "
                    "teacher_labels as well."
                )
            continue
        if labels.shape != (rows.shape[0],) or labels.is_floating_point():
            raise InputError(
                f"{name} has shape {tuple(labels.shape)}; pass one whole number for each of the {rows.shape[0]} rows."
            )
        if int(labels.min()) < 0 or int(labels.max()) >= weight.shape[0]:
            raise InputError(
                f"{name} run from {int(labels.min())} to {int(labels.max())}, but the head has {weight.shape[0]} "
                f"classes; labels are its rows, 0 to {weight.shape[0] - 1}."
            )
    for part in (y, labels_x, weight, bias):
        require_one_device(x, part)
