"""Information flow as a vector, layer by layer; which layer goes with which; how far two flows are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.flow.monotone import monotone_alignment
from mikit.functional.kernels.dependence import cka

__all__ = [
    "FlowDivergence",
    "depth_matching",
    "flow_divergence",
    "flow_vector",
    "monotone_matching",
    "nearest_matching",
]


@final
class FlowDivergence(NamedTuple):
    """How far a student's flow is from a teacher's.

    Attributes:
        intermediate: The sum over all layers but the last.
        last: The term of the last layer.
    """

    intermediate: float
    last: float

    @property
    def total(self) -> float:
        """Both together: ``D_F``."""
        return self.intermediate + self.last


def flow_vector(layers: Sequence[Tensor], labels: Tensor) -> Tensor:
    r"""What every layer has to do with the labels, on a scale that layers of all widths share.

    Formula: ``ω_l = CKA(X_l, one-hot labels)``, from U-statistics and with the median bandwidth of each layer; see
    :func:`mikit.functional.cka`.

    Args:
        layers: Rows ``(n, d_l)`` or maps ``(n, c, h, w)``, which are flattened; in network order.
        labels: Class indices ``(n,)``.

    Returns:
        Tensor ``(layers,)``, float64, without gradient. Unit: dimensionless: about 0 for labels that say nothing of the
        layer, 1 for classes that are points equally far apart. Kind: an index, not information in nats.

    Raises:
        InputError: If there is no layer, labels do not fit, or there is one class only.

    Cost:
        O(n² d) a layer.

    Pitfalls:
        - Compare flows of the same rows only. It is not QMI, whose values two layers cannot share, and not the mutual
          information of the definition.
        - The distances of a map of many cells are all alike, and its value low.

    Source:
        The vector over layers: Passalis, Tzelepi and Tefas (2020), arXiv 2005.00727. The index in it is mikit's choice;
        the released code (passalis/pkth 5766e63) computes none.

    Example:
        >>> labels = torch.arange(60) % 3
        >>> noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> flow = flow_vector([noise, noise + 3 * torch.eye(3, 4)[labels]], labels)
        >>> flow[0].item() < 0.1 < 0.3 < flow[1].item()
        True
    """
    if not layers:
        raise InputError("There are no layers; pass the activations of one layer at least.")
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; pass one class index a row."
        )
    codes = torch.unique(labels, return_inverse=True)[1]
    if int(codes.max()) < 1:
        raise InputError("All labels are one class, of which no layer can say anything. Pass rows of several classes.")
    targets = torch.nn.functional.one_hot(codes).double()
    with torch.no_grad():
        found = [cka(layer.detach().double().flatten(1), targets, bandwidth_y=1.0, unbiased=True) for layer in layers]
    return torch.stack(found)


def nearest_matching(student: Tensor, teacher: Tensor) -> tuple[int, ...]:
    """The teacher's layer whose entry of the flow vector is nearest, for every layer of the student.

    Formula: ``κ(i) = argmin_j (ω_s[i] - ω_t[j])²``, the first of equals; the last layer goes with the last.

    Args:
        student: Flow vector ``(layers_s,)``.
        teacher: Flow vector ``(layers_t,)``.

    Returns:
        The teacher's layer for each of the student's, counted from 0.

    Raises:
        InputError: If a flow is not a finite vector.

    Cost:
        O(layers_s layers_t).

    Pitfalls:
        Several layers can go with one, and their order can be turned round; :func:`monotone_matching` keeps it.

    Source:
        As :func:`flow_divergence`.

    Example:
        >>> nearest_matching(torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0.0, 0.6, 1.0]))
        (1, 0, 2)
    """
    costs = _costs(student, teacher)
    return (*(int(row.argmin()) for row in costs[:-1]), costs.shape[1] - 1)


def monotone_matching(student: Tensor, teacher: Tensor) -> tuple[int, ...]:
    """The matching with the smallest divergence among those that never go back.

    Formula: ``min Σ_i (ω_s[i] - ω_t[κ(i)])²`` over ``κ(1) <= κ(2) <= ... <= κ(N) = last``, by dynamic programming.

    Args:
        student: Flow vector ``(layers_s,)``.
        teacher: Flow vector ``(layers_t,)``.

    Returns:
        The teacher's layer for each of the student's, counted from 0; the earliest of equals.

    Raises:
        InputError: If a flow is not a finite vector.

    Cost:
        O(layers_s layers_t).

    Pitfalls:
        Several layers can still go with one.

    Source:
        Ours: alignment by dynamic programming.

    Example:
        >>> monotone_matching(torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0.0, 0.6, 1.0]))
        (0, 0, 2)
    """
    costs = _costs(student, teacher).numpy(force=True)
    costs[-1, :-1] = np.inf
    return monotone_alignment(costs)


def depth_matching(student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's layer at the same share of the depth, for every layer of the student.

    Formula: ``κ(i) = ceil(i N_t / N_s)``, both counted from 1: one to one for equal numbers, the last with the last.

    Args:
        student: Number of layers of the student.
        teacher: Number of layers of the teacher.

    Returns:
        The teacher's layer for each of the student's, counted from 0.

    Raises:
        InputError: If a number is below 1.

    Cost:
        None.

    Pitfalls:
        Depth says nothing of what a layer holds.

    Source:
        Ours.

    Example:
        >>> depth_matching(3, 3), depth_matching(2, 4), depth_matching(4, 2)
        ((0, 1, 2), (1, 3), (0, 0, 1, 1))
    """
    if student < 1 or teacher < 1:
        raise InputError(f"There are {student} student and {teacher} teacher layers; both need one at least.")
    return tuple(-(-i * teacher // student) - 1 for i in range(1, student + 1))


def flow_divergence(student: Tensor, teacher: Tensor, matching: Sequence[int]) -> FlowDivergence:
    """How far a student's flow is from a teacher's, with the term of the last layer apart.

    Formula: ``D_F = Σ_i (ω_s[i] - ω_t[κ(i)])²``.

    Args:
        student: Flow vector ``(layers_s,)``.
        teacher: Flow vector ``(layers_t,)``.
        matching: ``κ``: a teacher's layer, counted from 0, for each of the student's.

    Returns:
        The sum without the last layer, and the term of the last. Unit: that of the flow, squared. Kind: a discrepancy.

    Raises:
        InputError: If a flow is not a finite vector, or the matching does not fit.

    Cost:
        O(layers_s).

    Pitfalls:
        - With :func:`nearest_matching` it is small for any student whose layers lie in the teacher's range. Compare
          students under one matching.
        - A sum: students of more layers have more terms.

    Source:
        Passalis, Tzelepi and Tefas (2020), arXiv 2005.00727. The formula is written from the description of the method.

    Example:
        >>> found = flow_divergence(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 0.8]), (0, 1))
        >>> round(found.intermediate, 3), round(found.last, 3), round(found.total, 3)
        (0.25, 0.04, 0.29)
    """
    costs = _costs(student, teacher)
    if len(matching) != costs.shape[0] or not all(0 <= j < costs.shape[1] for j in matching):
        raise InputError(
            f"The matching is {tuple(matching)} for {costs.shape[0]} student and {costs.shape[1]} teacher layers; it "
            "needs one teacher layer, counted from 0, for each of the student's."
        )
    terms = [float(costs[i, j]) for i, j in enumerate(matching)]
    return FlowDivergence(sum(terms[:-1]), terms[-1])


def _costs(student: Tensor, teacher: Tensor) -> Tensor:
    for name, flow in (("student", student), ("teacher", teacher)):
        if flow.ndim != 1 or flow.shape[0] == 0 or not bool(flow.isfinite().all()):
            raise InputError(
                f"The {name}'s flow has shape {tuple(flow.shape)}; pass a vector of finite numbers, one a layer."
            )
    return (student.detach().double()[:, None] - teacher.detach().double()).square()
