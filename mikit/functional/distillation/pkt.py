"""Affinities between the samples of one side as probabilities, and the divergence of a student's from a teacher's.

The probabilities of both sides are compared through their ratio minus 1, entry by entry. Where a kernel is nearly flat,
all but the last digits of the logarithms cancel; sums of such ratios keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mikit.core import require
from mikit.functional.distillation.pkt_kernels import affinities, entries_of
from mikit.functional.engine.operators import closed_form, full_precision
from mikit.functional.engine.pairwise import Block
from mikit.functional.engine.samples import require_one_device, require_paired, require_rows, working_dtype

__all__ = ["affinity", "pkt"]

# Inside the logarithm of the released code.
_RELEASED_EPSILON = 1e-7


def pkt(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Literal["cosine", "student", "combined"] = "cosine",
    divergence: Literal["kl", "jeffreys"] = "kl",
    diagonal: bool = False,
    compat: Literal["pkth"] | None = None,
    strip: int | None = None,
) -> Tensor:
    r"""Probabilistic knowledge transfer: the divergence of the student's neighborhood probabilities from the teacher's.

    .. math:: \frac{1}{n} \sum_i \sum_{j \ne i} p_{j|i} \log \frac{p_{j|i}}{q_{j|i}}, \qquad
              p_{j|i} = \frac{K(t_i, t_j)}{\sum_{k \ne i} K(t_i, t_k)}, \quad
              q_{j|i} = \frac{K(s_i, s_j)}{\sum_{k \ne i} K(s_i, s_k)}

    For ``divergence="jeffreys"`` the sum over j is of ``(p - q)(log p - log q)``. The kernels are

    - ``"cosine"``: ``(cos(a, b) + 1) / 2``;
    - ``"student"``: ``1 / (1 + sqrt(|a - b|² + 1e-6))``, Student's t of one degree with the distance not squared;
    - ``"combined"``: the sum of the divergences under these two.

    Args:
        student: Features ``(n, d_s)``.
        teacher: Features ``(n, d_t)`` of the same samples; the widths may differ.
        kernel: The kernel that measures the similarity of two samples.
        divergence: ``"kl"``, of the student's probabilities from the teacher's, or ``"jeffreys"``, which adds the
            other direction.
        diagonal: Whether a sample counts as its own neighbor. It is then its own nearest neighbor on both sides,
            whatever was learned.
        compat: ``"pkth"`` for the scale and form of the released code: the diagonal is counted whatever ``diagonal``
            is; the mean is over all n² entries, so the value falls with the batch size; and the KL is of
            ``p log((p + 1e-7) / (q + 1e-7))``. The epsilons that the released code adds to norms are not added.
        strip: Number of rows in a block of the kernel matrix; None chooses one. Values do not depend on it, up to
            rounding.

    Returns:
        0-dim tensor in the common dtype of both sides, at least float32, differentiable once in both. Unit: nats.
        Kind: a discrepancy, 0 if and only if the probabilities are equal.

    Raises:
        InputError: If a side is not ``(n, d)``, the samples do not match, there are fewer than two, or an option has an
            unknown value.

    Cost:
        2 n² (d_s + d_t) operations for the value, and 4 n² d more for the gradient of a side of width d, in the same
        pass; O(n (d_s + d_t)) memory plus a few blocks. A side with at least 2 n columns, such as whole maps, is read
        once for its Gram matrix and once for its gradient, 2 n² d operations each, without a copy; O(n²) memory. Second
        derivatives raise an error.

    Pitfalls:
        - It is not information. It compares which samples are neighbors.
        - Cosines of non-negative features are all close to one value, probabilities all close to ``1 / (n - 1)``, and
          the value is far below 1: it needs a large weight beside another loss. Kernels are never computed in half
          precision.
        - The neighbors are those in the batch, so a short last batch is a different objective, and accumulating
          gradients over small batches is not equivalent to a large batch.
        - A cosine closer to -1 than 16 machine epsilons is clamped there, so that no logarithm is infinite.
        - A zero row has no direction: its cosine with every row and with itself is 0, and so is its gradient.
        - The Student kernel depends on the scale of the features; the cosine depends on their origin.

    Source:
        Passalis and Tefas (2018), "Learning Deep Representations with Probabilistic Knowledge Transfer" (cosine, KL);
        Passalis, Tzelepi and Tefas (2020), "Heterogeneous Knowledge Distillation using Information Flow Modeling" and
        its released code (Student kernel, Jeffreys, their sum).

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
        >>> turned = teacher @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> abs(pkt(turned, teacher).item()) < 1e-9 < pkt(turned.roll(1, 0), teacher).item()
        True
    """
    require.one_of(kernel, "kernel", ("cosine", "student", "combined"))
    require.one_of(divergence, "divergence", ("kl", "jeffreys"))
    if compat is not None:
        require.one_of(compat, "compat", ("pkth",))
    require_rows(student, "student", fewest=2)
    require_rows(teacher, "teacher", fewest=2)
    require_paired(student, teacher)
    require_one_device(student, teacher)
    dtype = working_dtype(student, teacher)
    released = compat is not None
    form = "released kl" if released and divergence == "kl" else divergence
    total = torch.zeros((), dtype=torch.float64, device=student.device)
    for one in ("cosine", "student") if kernel == "combined" else (kernel,):
        (of_student, student_given), (of_teacher, teacher_given) = (
            entries_of(rows, one, dtype) for rows in (student, teacher)
        )
        given = [student_given, teacher_given]
        total = total + _between(of_student, of_teacher, given, one, form, diagonal or released, strip)
    return (total / student.shape[0] if released else total).to(dtype)


def affinity(
    x: Tensor, *, kernel: Literal["cosine", "student"] = "cosine", diagonal: bool = False, strip: int | None = None
) -> Tensor:
    """Probability of every sample as the neighbor of every other, as :func:`pkt` compares them.

    Formula: ``p_ij = K(x_i, x_j) / Σ_{k ≠ i} K(x_i, x_k)``, and 0 for ``i = j`` unless ``diagonal``.

    Args:
        x: Features ``(n, d)``.
        kernel: ``"cosine"`` or ``"student"``, as in :func:`pkt`.
        diagonal: Whether a sample counts as its own neighbor.
        strip: Number of rows in a block; None chooses one.

    Returns:
        Tensor ``(n, n)`` in the dtype of ``x``, at least float32, without gradient; rows sum to 1. Unit:
        dimensionless. Kind: probabilities.

    Raises:
        InputError: If ``x`` is not ``(n, d)``, has fewer than two rows, or the kernel is unknown.

    Cost:
        O(n² d) time and O(n²) memory for the whole matrix. Meant for plots and tests; :func:`pkt` never stores it.

    Pitfalls:
        See :func:`pkt`.

    Source:
        See :func:`pkt`.

    Example:
        >>> affinity(torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 3.0]])) * 3  # twice as much for the same direction
        tensor([[0.0000, 2.0000, 1.0000],
                [2.0000, 0.0000, 1.0000],
                [1.5000, 1.5000, 0.0000]])
    """
    require.one_of(kernel, "kernel", ("cosine", "student"))
    require_rows(x, "x", fewest=2)
    dtype = working_dtype(x)
    with full_precision(x.device):
        entries, given = entries_of(x, kernel, dtype)
        side = affinities(entries, kernel, given=given, diagonal=diagonal, epsilon=0.0, wanted=False)
        return torch.cat([part.values.clone() for part in side.blocks(strip)])


@closed_form
def _between(
    wants: Sequence[bool],
    student: Tensor,
    teacher: Tensor,
    given: Sequence[bool],
    kernel: str,
    divergence: str,
    diagonal: bool,
    strip: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    n = student.shape[0]
    epsilon = _RELEASED_EPSILON if divergence == "released kl" else 0.0
    students, teachers = (
        affinities(entries, kernel, given=is_given, diagonal=diagonal, epsilon=epsilon, wanted=want)
        for entries, is_given, want in zip((student, teacher), given, wants, strict=True)
    )
    minus_one = student.new_tensor(-1.0)
    symmetric = divergence == "jeffreys"
    total = student.new_zeros((), dtype=torch.float64)
    buffers: Tensor | None = None
    for q, p in zip(students.blocks(strip), teachers.blocks(strip), strict=True):
        if buffers is None:
            buffers = q.values.new_empty(4, *q.values.shape)
        excess, log, slopes, products = buffers[:, : q.values.shape[0]]
        torch.addcdiv(minus_one, p.values, q.values, out=excess)  # p / q - 1
        if not diagonal:
            q.diagonal_of(excess).zero_()
        torch.log1p(excess, out=log)
        if symmetric:
            terms = _row_products(q.values, torch.mul(excess, log, out=slopes), products)
        else:
            # The excess has mean 0 under q. Subtracting that mean leaves sums of squares of small numbers instead of
            # the difference of large ones.
            terms = _row_products(p.values, log, products) - _row_products(q.values, excess, products)
            if epsilon:
                terms -= epsilon * log.sum(dim=1)
        total += terms.sum(dtype=torch.float64)
        # Derivatives in the probabilities, up to a constant of the row.
        if wants[0]:
            if symmetric or epsilon:
                torch.add(excess, log, out=slopes) if symmetric else slopes.copy_(excess)
                _to_the_kernel(slopes, q, epsilon, products)
            students.add(q, slopes if symmetric or epsilon else excess, -1 / n)
        if wants[1]:
            torch.div(excess, excess + 1, out=slopes).add_(log) if symmetric else slopes.copy_(log)
            _to_the_kernel(slopes, p, epsilon, products)
            teachers.add(p, slopes, 1 / n)
    return total / n, students.gradient(), teachers.gradient()


def _to_the_kernel(slopes: Tensor, part: Block, epsilon: float, buffer: Tensor) -> None:
    """Turn derivatives in the probabilities into those in the kernel times the sum of its row, in place.

    The entries of a row with itself have no effect and keep whatever value results.
    """
    if epsilon:
        slopes.sub_(torch.div(epsilon, part.values, out=buffer))
    mean = _row_products(part.values, slopes, buffer)
    if epsilon:
        mean -= epsilon * slopes.sum(dim=1)
    slopes.sub_(mean[:, None])


def _row_products(a: Tensor, b: Tensor, buffer: Tensor) -> Tensor:
    return torch.mul(a, b, out=buffer).sum(dim=1)
