"""PKT: matches the neighborhoods of a batch between student and teacher."""

from __future__ import annotations

from typing import Literal, Self, cast, final

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.distillation.losses.base import PairedGap
from mikit.estimators.base import require_pair
from mikit.functional.distillation.pkt import pkt

__all__ = ["PKT"]

KERNELS = ("cosine", "student", "combined")
DIVERGENCES = ("kl", "jeffreys")


@final
class PKT(PairedGap):
    r"""Probabilistic knowledge transfer between features ``(n, d_s)`` and ``(n, d_t)``, whose widths may differ.

    Formula: with :math:`p_{j|i}` and :math:`q_{j|i}` the probabilities that sample j is the neighbor of sample i,
    under a kernel of the teacher's and of the student's features; a sample is never its own neighbor,

    .. math:: \frac{1}{n} \sum_i \sum_{j \ne i} p_{j|i} \log \frac{p_{j|i}}{q_{j|i}}
              \quad \text{or, for Jeffreys,} \quad
              \frac{1}{n} \sum_i \sum_{j \ne i} (p_{j|i} - q_{j|i}) (\log p_{j|i} - \log q_{j|i}).

    ``estimate`` is this number. ``forward`` divides it by ``standard``, its value between the teacher and the teacher
    on other inputs, which is 1 until it is set by :meth:`between` or :meth:`calibrate`. So a weight of 1 adds about 1
    to the loss if the student's neighborhoods are those of other inputs, for any kernel, width and network. The mean is
    over samples and not over pairs, so the value does not decrease with the batch size.

    Args:
        kernel: ``"cosine"``; ``"student"``, Student's t of the distance; ``"combined"``, the sum of both values.
        divergence: ``"kl"``, of the student from the teacher, or ``"jeffreys"``, which adds the other direction.
        diagonal: Whether a sample counts among its own neighbors.
        compat: ``"pkth"`` for the value of the released code: with the diagonal, the mean over all n² pairs, and
            ``standard`` 1. See :func:`mikit.functional.pkt`.

    Shapes:
        Student ``(n, d_s)``, teacher ``(n, d_t)``; sample i of both is from one input.

    Unit: nats (``estimate``).

    Kind: discrepancy, 0 if and only if the probabilities agree. Never negative.

    Raises:
        InputError: If an option does not exist, samples are not paired or fewer than three, or all neighborhoods of the
            teacher are alike, which gives no ``standard``.

    Cost:
        ``2 n² (d_s + d_t)`` operations, about three times that with the gradient; memory for a few blocks of pairs.
        Whole maps are read for their Gram matrix and not copied: see :func:`mikit.functional.pkt`.

    Pitfalls:
        It does not measure information: it compares neighborhoods. The batch defines the neighbors, so drop a short
        last batch, and do not replace a large batch by accumulated gradients of small ones. For non-negative features
        the probabilities are nearly uniform and values in nats far below 1, so without ``between`` the weight must be
        in the hundreds. The cosine depends on the origin of the features and Student's t on their scale: with it,
        features of very different size cannot agree. A student wider than the batch can match all neighborhoods without
        any other information on the teacher.

    Source:
        Passalis and Tefas (2018), arXiv 1803.10837, for cosine and KL; Passalis, Tzelepi and Tefas (2020), arXiv
        2005.00727, and the released code passalis/pkth 5766e63, for Student's t, Jeffreys and their sum. The masked
        diagonal, the mean over samples and ``standard`` are mikit's; RepDistiller multiplies its mean over pairs by
        30000.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> teacher = torch.randn(64, 16, generator=g)
        >>> student = teacher[:, :8] + 0.1 * torch.randn(64, 8, generator=g)
        >>> kd = PKT.between(student, teacher)
        >>> kd(teacher, teacher).item() < 1e-6 < kd(student, teacher).item() < kd(student.roll(1, 0), teacher).item()
        True
    """

    standard: Tensor

    recommended_weight = 10.0

    name = "pkt"
    unit = "nats"

    def __init__(
        self,
        kernel: str = "cosine",
        *,
        divergence: str = "kl",
        diagonal: bool = False,
        compat: str | None = None,
    ) -> None:
        super().__init__()
        require.one_of(kernel, "kernel", KERNELS)
        require.one_of(divergence, "divergence", DIVERGENCES)
        if compat not in (None, "pkth"):
            raise InputError(f'compat is "{compat}"; it must be None or "pkth".')
        self.kernel = kernel
        self.divergence = divergence
        self.diagonal = diagonal
        self.compat = compat
        self.symmetric = divergence == "jeffreys"
        self.register_buffer("standard", torch.ones((), dtype=torch.float64))

    @classmethod
    def between(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        kernel: str = "cosine",
        divergence: str = "kl",
        diagonal: bool = False,
        compat: str | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build from example features; those of the teacher set the unit of the loss.

        Args:
            x: Student features ``(n, d_s)``.
            y: Teacher features ``(n, d_t)``, about one batch.
            kernel: As in the class.
            divergence: As in the class.
            diagonal: As in the class.
            compat: As in the class.
            generator: Source of the assignment to other inputs; None: seed 0.
        """
        require_pair(x, y, minimum=3)
        loss = cls(kernel, divergence=divergence, diagonal=diagonal, compat=compat).to(y.device)
        loss.calibrate(y, generator=generator)
        return loss

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return a copy with the same settings and the unit of these features."""
        return type(self).between(
            x,
            y,
            kernel=self.kernel,
            divergence=self.divergence,
            diagonal=self.diagonal,
            compat=self.compat,
            generator=generator,
        )

    @torch.no_grad()
    def calibrate(self, teacher: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Set ``standard`` from a teacher's features ``(n, d)``; with ``compat`` it stays 1.

        Raises:
            InputError: If there are fewer than three samples, or all their neighborhoods are alike.
        """
        require_pair(teacher, teacher, minimum=3)
        if self.compat is not None:
            return
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        order = torch.randperm(teacher.shape[0], generator=generator, device=generator.device).to(teacher.device)
        rows = teacher[order].double()
        standard = float(self.gap(rows.roll(1, 0), rows))
        if not standard > 1e-9:
            raise InputError(
                f"PKT of the teacher against itself on other inputs is {standard:.3g} nats (kernel {self.kernel}). "
                "All neighborhoods are alike, so there is nothing to transfer. Choose another layer, or take "
                "its features before the ReLU."
            )
        self.standard.fill_(standard)

    def gap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the value in nats."""
        return pkt(
            x,
            y,
            kernel=cast(Literal["cosine", "student", "combined"], self.kernel),
            divergence=cast(Literal["kl", "jeffreys"], self.divergence),
            diagonal=self.diagonal,
            compat=cast(Literal["pkth"] | None, self.compat),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the value divided by ``standard``; the teacher gets no gradient."""
        value = super().forward(x, y)
        return value / self.standard.to(value.dtype)

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 3: any two samples have one neighbor each."""
        return 3

    def extra_repr(self) -> str:
        """Return the settings."""
        shown = f"kernel={self.kernel!r}, divergence={self.divergence!r}"
        shown += ", diagonal=True" if self.diagonal else ""
        return shown + (f", compat={self.compat!r}" if self.compat else "")

    def require(self, x: Tensor, y: Tensor) -> None:
        """Raise :class:`~mikit.InputError` unless these are paired samples, three at least."""
        require_pair(x, y, minimum=3)
