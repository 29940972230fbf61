"""Information flow as a vector over layers, rules that match layers, and the divergence of two flows."""

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
    """Divergence of a student's information flow from a teacher's.

    Attributes:
        intermediate: Sum over all layers but the last.
        last: Term of the last layer.
    """

    intermediate: float
    last: float

    @property
    def total(self) -> float:
        """The sum of both: ``D_F``."""
        return self.intermediate + self.last


def flow_vector(layers: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the dependence of every layer on the labels, ``(layers,)`` in float64 without gradient.

    Formula: ``ω_l = CKA(X_l, one-hot labels)``, from U-statistics and with the median bandwidth of each layer
    (:func:`mikit.functional.cka`): about 0 for labels independent of the layer, 1 for classes that are equidistant
    points. Layers are ``(n, d_l)`` or maps, which are flattened, in network order; labels are class indices ``(n,)``.
    Compare flows of the same samples only. Maps of many cells have nearly equal distances, and hence low values. The
    vector over layers is from Passalis, Tzelepi and Tefas (2020), arXiv 2005.00727; the index is mikit's choice, since
    the released code (passalis/pkth 5766e63) computes none. Unlike QMI, all layers share one scale. ``O(n² d)`` per
    layer.
    """
    if not layers:
        raise InputError("There are no layers; pass the activations of at least one layer.")
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; pass one class index per sample."
        )
    codes = torch.unique(labels, return_inverse=True)[1]
    if int(codes.max()) < 1:
        raise InputError(
            "All labels are of one class, so no layer can carry information about them. Pass samples of several "
            "classes."
        )
    targets = torch.nn.functional.one_hot(codes).double()
    with torch.no_grad():
        found = [cka(layer.detach().double().flatten(1), targets, bandwidth_y=1.0, unbiased=True) for layer in layers]
    return torch.stack(found)


def nearest_matching(student: Tensor, teacher: Tensor) -> tuple[int, ...]:
    """Return, for every layer of the student, the teacher layer with the nearest entry of the flow vector.

    Formula: ``κ(i) = argmin_j (ω_s[i] - ω_t[j])²``, the first of equals, counted from 0; the last layer is matched with
    the last. Several layers can share a partner, and their order can be reversed; :func:`monotone_matching` keeps it.

    Example:
        >>> nearest_matching(torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0.0, 0.6, 1.0]))
        (1, 0, 2)
    """
    costs = _costs(student, teacher)
    return (*(int(row.argmin()) for row in costs[:-1]), costs.shape[1] - 1)


def monotone_matching(student: Tensor, teacher: Tensor) -> tuple[int, ...]:
    """Return the matching with the smallest divergence among those that keep the order of layers.

    Formula: ``min Σ_i (ω_s[i] - ω_t[κ(i)])²`` over ``κ(1) <= κ(2) <= ... <= κ(N) = last``, by dynamic programming,
    counted from 0; the earliest of equals. Several layers can share a partner.

    Example:
        >>> monotone_matching(torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0.0, 0.6, 1.0]))
        (0, 0, 2)
    """
    costs = _costs(student, teacher).numpy(force=True)
    costs[-1, :-1] = np.inf
    return monotone_alignment(costs)


def depth_matching(student: int, teacher: int) -> tuple[int, ...]:
    """Return, for every layer of the student, the teacher layer at the same relative depth.

    Formula: ``κ(i) = ceil(i N_t / N_s)``, both counted from 1; the returned layers are counted from 0. Equal numbers of
    layers are matched one to one. Depth says nothing about the content of a layer.

    Example:
        >>> depth_matching(3, 3), depth_matching(2, 4), depth_matching(4, 2)
        ((0, 1, 2), (1, 3), (0, 0, 1, 1))
    """
    if student < 1 or teacher < 1:
        raise InputError(f"There are {student} student and {teacher} teacher layers; both need at least one.")
    return tuple(-(-i * teacher // student) - 1 for i in range(1, student + 1))


def flow_divergence(student: Tensor, teacher: Tensor, matching: Sequence[int]) -> FlowDivergence:
    """Return ``D_F = Σ_i (ω_s[i] - ω_t[κ(i)])²``, with the term of the last layer separate.

    ``matching`` is ``κ``: a teacher layer, counted from 0, for each student layer. With :func:`nearest_matching` it is
    small for any student whose layers lie in the teacher's range, so compare students under one matching. Students with
    more layers have more terms. Passalis, Tzelepi and Tefas (2020), arXiv 2005.00727; written from the description.

    Example:
        >>> found = flow_divergence(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 0.8]), (0, 1))
        >>> round(found.intermediate, 3), round(found.last, 3), round(found.total, 3)
        (0.25, 0.04, 0.29)
    """
    costs = _costs(student, teacher)
    if len(matching) != costs.shape[0] or not all(0 <= j < costs.shape[1] for j in matching):
        raise InputError(
            f"The matching is {tuple(matching)} for {costs.shape[0]} student and {costs.shape[1]} teacher layers; it "
            "needs one teacher layer, counted from 0, per student layer."
        )
    terms = [float(costs[i, j]) for i, j in enumerate(matching)]
    return FlowDivergence(sum(terms[:-1]), terms[-1])


def _costs(student: Tensor, teacher: Tensor) -> Tensor:
    for name, flow in (("student", student), ("teacher", teacher)):
        if flow.ndim != 1 or flow.shape[0] == 0 or not bool(flow.isfinite().all()):
            raise InputError(
                f"The {name}'s flow has shape {tuple(flow.shape)}; pass a vector of finite numbers, one per layer."
            )
    return (student.detach().double()[:, None] - teacher.detach().double()).square()
