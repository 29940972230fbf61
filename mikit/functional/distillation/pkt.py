"""Affinities between the rows of one sample, as probabilities, and how far a student's are from a teacher's.

Probabilities of both sides are compared through their ratio less 1, entry by entry. Where a kernel is nearly flat all
logarithms cancel but for their last digits; sums of such ratios keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.distillation.pkt_kernels import affinities, entries_of
from mikit.functional.engine.operators import closed_form, full_precision
from mikit.functional.engine.pairwise import Strip
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
    r"""Probabilistic knowledge transfer: how far the student's neighbourhoods are from the teacher's.

    .. math:: \frac{1}{n} \sum_i \sum_{j \ne i} p_{j|i} \log \frac{p_{j|i}}{q_{j|i}}, \qquad
              p_{j|i} = \frac{K(t_i, t_j)}{\sum_{k \ne i} K(t_i, t_k)}, \quad
              q_{j|i} = \frac{K(s_i, s_j)}{\sum_{k \ne i} K(s_i, s_k)}

    and for ``divergence="jeffreys"`` the sum over j is of ``(p - q)(log p - log q)``. The kernels are

    - ``"cosine"``: ``(cos(a, b) + 1) / 2``;
    - ``"student"``: ``1 / (1 + sqrt(|a - b|² + 1e-6))``, Student's t of one degree with the distance not squared;
    - ``"combined"``: the sum of the divergences under these two.

    Args:
        student: Rows, ``(n, d_s)``.
        teacher: Rows, ``(n, d_t)``, paired with those of the student; the widths may differ.
        kernel: What makes two rows alike.
        divergence: ``"kl"``, of the student's probabilities from the teacher's, or ``"jeffreys"``, which adds the
            other direction.
        diagonal: Whether a row counts among its own neighbours. It is then the nearest to itself on both sides,
            whatever was learned.
        compat: ``"pkth"`` for the scale and the form of the released code: the diagonal is counted, whatever
            ``diagonal`` says; the mean is over all n² entries, so that the value falls with the batch; and the KL is
            of ``p log((p + 1e-7) / (q + 1e-7))``. Epsilons that the released code adds to norms are not added.
        strip: Rows handled at a time; None chooses. Values do not depend on it, up to rounding.

    Returns:
        0-dim tensor in the common dtype of both sides, float32 at least, differentiable once in both. Unit: nats.
        Kind: a discrepancy, 0 if and only if the probabilities agree.

    Raises:
        InputError: If a side is not ``(n, d)``, rows do not pair up, there are fewer than two rows, or a setting is
            not one of those named.

    Cost:
        2 n² (d_s + d_t) operations for the value, and 4 n² d more for the gradient of a side of width d, in the same
        pass; O(n (d_s + d_t)) memory and a few strips. A side of 2 n columns or more, such as whole maps, is read for
        its Gram matrix and once more for its gradient, 2 n² d operations each, and not copied; O(n²) memory. Second
        derivatives are refused.

    Pitfalls:
        - Not information. It compares who is near whom.
        - Cosines of non-negative features are all near one value, probabilities all near ``1 / (n - 1)``, and the
          value far below 1: it needs a large weight beside another loss. Kernels are never computed in half precision.
        - A batch defines the neighbours, so a short last batch is another objective, and accumulating gradients over
          small batches is not a large batch.
        - A cosine nearer to -1 than 16 machine epsilons is taken to be that far off, so that no logarithm is infinite.
        - A row of zeros has no direction: its cosine is 0 with every row and itself, and its gradient 0.
        - The Student kernel depends on the scale of the features; the cosine on their origin.

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
    _require_known("kernel", kernel, ("cosine", "student", "combined"))
    _require_known("divergence", divergence, ("kl", "jeffreys"))
    _require_known("compat", compat, (None, "pkth"))
    require_rows(student, "student", fewest=2)
    require_rows(teacher, "teacher", fewest=2)
    require_paired(student, teacher)
    require_one_device(student, teacher)
    dtype = working_dtype(student, teacher)
    released = compat is not None
    epsilon = _RELEASED_EPSILON if released and divergence == "kl" else 0.0
    total = torch.zeros((), dtype=torch.float64, device=student.device)
    for one in ("cosine", "student") if kernel == "combined" else (kernel,):
        (own, own_given), (aim, aim_given) = (entries_of(rows, one, dtype) for rows in (student, teacher))
        total = total + _between(own, aim, own_given, aim_given, one, divergence, diagonal or released, epsilon, strip)
    return (total / student.shape[0] if released else total).to(dtype)


def affinity(
    x: Tensor, *, kernel: Literal["cosine", "student"] = "cosine", diagonal: bool = False, strip: int | None = None
) -> Tensor:
    """Probability of every row as the neighbour of every other, as :func:`pkt` compares them.

    Formula: ``p_ij = K(x_i, x_j) / Σ_{k ≠ i} K(x_i, x_k)``, and 0 for ``i = j`` unless ``diagonal``.

    Args:
        x: Rows, ``(n, d)``.
        kernel: ``"cosine"`` or ``"student"``, as in :func:`pkt`.
        diagonal: Whether a row counts among its own neighbours.
        strip: Rows computed at a time; None chooses.

    Returns:
        Tensor ``(n, n)`` in the dtype of ``x``, float32 at least, without gradient; rows sum to 1. Unit:
        dimensionless. Kind: probabilities.

    Raises:
        InputError: If ``x`` is not ``(n, d)``, has fewer than two rows, or the kernel is not one of those named.

    Cost:
        O(n² d) time and O(n²) memory: the whole matrix. For plots and tests; :func:`pkt` never holds it.

    Pitfalls:
        As :func:`pkt`.

    Source:
        As :func:`pkt`.

    Example:
        >>> affinity(torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 3.0]])) * 3  # twice as much for the same direction
        tensor([[0.0000, 2.0000, 1.0000],
                [2.0000, 0.0000, 1.0000],
                [1.5000, 1.5000, 0.0000]])
    """
    _require_known("kernel", kernel, ("cosine", "student"))
    require_rows(x, "x", fewest=2)
    dtype = working_dtype(x)
    with full_precision(x.device):
        entries, given = entries_of(x, kernel, dtype)
        side = affinities(entries, kernel, given=given, diagonal=diagonal, epsilon=0.0, wanted=False)
        return torch.cat([part.values.clone() for part in side.strips(strip)])


@closed_form
def _between(
    wants: Sequence[bool],
    student: Tensor,
    teacher: Tensor,
    student_given: bool,
    teacher_given: bool,
    kernel: str,
    divergence: str,
    diagonal: bool,
    epsilon: float,
    strip: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    n = student.shape[0]
    own, aim = (
        affinities(of, kernel, given=given, diagonal=diagonal, epsilon=epsilon, wanted=want)
        for of, given, want in zip((student, teacher), (student_given, teacher_given), wants, strict=True)
    )
    minus_one = student.new_tensor(-1.0)
    symmetric = divergence == "jeffreys"
    total = student.new_zeros((), dtype=torch.float64)
    buffers: Tensor | None = None
    for q, p in zip(own.strips(strip), aim.strips(strip), strict=True):
        if buffers is None:
            buffers = q.values.new_empty(4, *q.values.shape)
        excess, log, slopes, products = buffers[:, : q.values.shape[0]]
        torch.addcdiv(minus_one, p.values, q.values, out=excess)  # p / q - 1
        if not diagonal:
            q.own_of(excess).zero_()
        torch.log1p(excess, out=log)
        if symmetric:
            terms = _row_products(q.values, torch.mul(excess, log, out=slopes), products)
        else:
            # The excess has no mean under q. Taking it off leaves sums of squares of small numbers, not of the numbers.
            terms = _row_products(p.values, log, products) - _row_products(q.values, excess, products)
            if epsilon:
                terms -= epsilon * log.sum(dim=1)
        total += terms.sum(dtype=torch.float64)
        # Derivatives in the probabilities, up to a constant of the row.
        if wants[0]:
            if symmetric or epsilon:
                torch.add(excess, log, out=slopes) if symmetric else slopes.copy_(excess)
                _to_the_kernel(slopes, q, epsilon, products)
            own.add(q, slopes if symmetric or epsilon else excess, -1 / n)
        if wants[1]:
            torch.div(excess, excess + 1, out=slopes).add_(log) if symmetric else slopes.copy_(log)
            _to_the_kernel(slopes, p, epsilon, products)
            aim.add(p, slopes, 1 / n)
    return total / n, own.gradient(), aim.gradient()


def _to_the_kernel(slopes: Tensor, part: Strip, epsilon: float, buffer: Tensor) -> None:
    """Make of the derivatives in the probabilities those in the kernel, times the sum of its row, in place.

    Those of a row in itself are of no effect, and left as they come out.
    """
    if epsilon:
        slopes.sub_(torch.div(epsilon, part.values, out=buffer))
    mean = _row_products(part.values, slopes, buffer)
    if epsilon:
        mean -= epsilon * slopes.sum(dim=1)
    slopes.sub_(mean[:, None])


def _row_products(a: Tensor, b: Tensor, buffer: Tensor) -> Tensor:
    return torch.mul(a, b, out=buffer).sum(dim=1)


def _require_known(name: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(map(repr, known))}.")
