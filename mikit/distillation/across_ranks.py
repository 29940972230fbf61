"""Losses over the rows of all ranks: a gather with a gradient, scaled for the averaging of data-parallel training."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Sequence
from typing import Any, TypeVar, final

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

from mikit.core.errors import InputError
from mikit.distillation.nested import tensors_in, with_tensors

__all__ = ["AcrossRanks", "gathered_rows"]

_Nest = TypeVar("_Nest")


@final
class AcrossRanks(nn.Module):
    r"""A loss over the rows of all ranks: under data-parallel training its gradient is the single process's.

    Formula: :math:`L([x_1; \dots; x_R], [y_1; \dots; y_R])` on each of the ``R`` ranks, with :func:`gathered_rows` of
    both sides and of the labels. The rows may be unevenly dealt.

    Args:
        loss: A loss that is called with student and teacher: one of mikit, or any module such as
            ``nn.CrossEntropyLoss()``, with the labels in the teacher's place.

    Shapes:
        Student ``(n_r, ...)`` and teacher ``(m_r, ...)`` on rank ``r``, or mappings, tuples and lists of such tensors
        where the loss takes those (:class:`mikit.MIMKD`, :class:`mikit.InformationFlow`); labels ``(n_r,)``, or
        ``(n_r, classes)`` where the loss takes those. Returns a 0-dim tensor, equal on all ranks.

    Unit: that of the loss.

    Kind: that of the loss, of all rows.

    Raises:
        InputError: If ``loss`` is no module; if labels or a generator are given to a loss that takes none; if ranks
            bring different numbers of tensors, or tensors that do not fit each other; and what the loss refuses.

    Cost:
        The loss over all rows, on every rank, and a collective for each tensor and two more. Numbers of rows are read
        on the host.

    Pitfalls:
        - Those of :func:`gathered_rows`.
        - What the loss learns gets the same gradient on every rank. Wrap it in data-parallel training together with the
          student all the same, or rounding drives the copies apart.
        - A loss that draws at random must draw alike on every rank. :class:`mikit.SlicedWasserstein` counts its draws
          and does. :class:`mikit.MIMKD` with one negative takes a ``generator``: give it one of the same seed on
          every rank.
        - A mean over rows, such as :class:`mikit.VID` with its learned variance, needs no gather while all ranks hold
          as many rows: the mean over ranks is the mean over rows. With an uneven batch it is not, and with this it is.

    Source:
        The chain rule; the scaling is derived here.

    Example:
        >>> import mikit
        >>> g = torch.Generator().manual_seed(0)
        >>> loss = AcrossRanks(mikit.MMD())  # one process: the loss itself
        >>> loss(torch.randn(32, 4, generator=g), torch.randn(32, 4, generator=g)).shape
        torch.Size([])
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module):
            raise InputError(f"AcrossRanks wraps a loss module; it was given a {type(loss).__name__}.")
        self.loss = loss
        self._takes = frozenset(inspect.signature(loss.forward).parameters)

    def forward(
        self,
        x: Any,
        y: Any,
        *,
        labels: Tensor | None = None,
        student_labels: Tensor | None = None,
        teacher_labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss over the rows of all ranks; the teacher and its labels get no gradient.

        Args:
            x: This rank's rows of the student.
            y: This rank's rows of the teacher.
            labels: This rank's class indices or soft labels, for a loss that takes them.
            student_labels: This rank's soft labels or logits of the student, which get a gradient, for a loss that
                takes them (:class:`mikit.KD2M` with ``conditional="joint"``).
            teacher_labels: Likewise of the teacher.
            generator: For a loss that takes one: of the same state on every rank. It is not gathered.
        """
        told = {
            "labels": labels,
            "student_labels": student_labels,
            "teacher_labels": None if teacher_labels is None else teacher_labels.detach(),
        }
        given = {name: value for name, value in told.items() if value is not None}
        options: dict[str, Any] = {} if generator is None else {"generator": generator}
        for name in (*given, *options):
            if name not in self._takes:
                raise InputError(f"The loss {type(self.loss).__name__} takes no {name}. Call AcrossRanks without.")
        y = with_tensors(y, [one.detach() for one in tensors_in(y, "y")])
        x, y, given = gathered_rows((x, y, given))
        value: Tensor = self.loss(x, y, **given, **options)
        return value

    def param_groups(self) -> list[dict[str, Any]]:
        """Return those of the loss."""
        own = getattr(self.loss, "param_groups", None)
        trained = [p for p in self.loss.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = own() if own is not None else [{"params": trained}] if trained else []
        return groups


def gathered_rows(rows: _Nest) -> _Nest:
    r"""Rows of all ranks, in the order of the ranks, with a gradient to those of this rank.

    Formula: :math:`Z = [z_1; \dots; z_R]`, and backward :math:`\bar z_r = R \, \bar Z_r`, so that the mean over ranks
    which data-parallel training takes gives the gradient of the single process.

    Args:
        rows: This rank's rows ``(n_r, ...)``, or a mapping, tuple or list of such tensors; ``n_r`` may differ between
            ranks and tensors.

    Returns:
        ``(Σ n_r, ...)``, the same on every rank, in the form of ``rows``; ``rows`` as it is where no process group
        runs.

    Unit: that of the rows.

    Kind: exact.

    Raises:
        InputError: If ``rows`` holds a single number or what is no tensor, or the ranks' rows differ in shape or dtype.

    Cost:
        A collective for each tensor and two more forward, none backward. Reads the numbers of rows on the host.

    Pitfalls:
        - Every rank must call it equally often, or the others wait for ever: give all ranks as many batches.
        - All ranks must form the same loss of the gathered rows.
        - The gradient is right for a mean over ranks. Where gradients are summed instead, it is too large by the number
          of ranks.
        - Under ``torch.compile`` it breaks the graph; what is computed of the rows compiles.

    Source:
        The chain rule; the scaling is derived here.

    Example:
        >>> gathered_rows(torch.ones(3, 2)).shape  # one process: nothing to gather
        torch.Size([3, 2])
    """
    gathered: _Nest = with_tensors(rows, _gathered(tensors_in(rows, "rows")))
    return gathered


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives it no types
def _gathered(held: Sequence[Tensor]) -> list[Tensor]:
    """Return the rows of all ranks for each of these tensors."""
    for rows in held:
        if rows.ndim == 0:
            raise InputError("A single number cannot be gathered. Give rows (n, ...), one for each sample.")
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return list(held)
    sizes = _sizes(held)
    gathered: Any = _GatheredRows.apply
    return [gathered(rows, counts) for rows, counts in zip(held, sizes, strict=True)]


def _sizes(held: Sequence[Tensor]) -> list[list[int]]:
    """Return for each tensor how many rows each rank has; refuse tensors that would not fit beside each other."""
    said = ", ".join(
        f"{str(rows.dtype).removeprefix('torch.')} ({', '.join(['n', *map(str, rows.shape[1:])])})" for rows in held
    )
    # A gather of shapes that differ waits for ever, so that first comes one whose shape is always the same.
    digests = _from_all_ranks(torch.tensor([zlib.crc32(said.encode())], device=held[0].device))
    for rank, digest in enumerate(digests):
        if not torch.equal(digest, digests[0]):
            raise InputError(
                f"Ranks 0 and {rank} bring tensors of different numbers, shapes or dtypes. Rank "
                f"{distributed.get_rank()} brings {said}. All but the numbers of rows must agree on all ranks."
            )
    counts = _from_all_ranks(torch.tensor([rows.shape[0] for rows in held], device=held[0].device))
    sizes: list[list[int]] = torch.stack(counts).T.tolist()
    return sizes


def _from_all_ranks(own: Tensor) -> list[Tensor]:
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, own)
    return every


@final
class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        # The collective takes equal shapes only: the last batch may be uneven.
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        rank = distributed.get_rank()
        ctx.start, ctx.own, ctx.ranks = sum(counts[:rank]), counts[rank], len(counts)
        return torch.cat([part[:count] for part, count in zip(_from_all_ranks(padded), counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Every rank holds the same loss, so its own rows need no exchange; the factor undoes the mean over ranks.
        own: Tensor = gradient[ctx.start : ctx.start + ctx.own]
        return own * float(ctx.ranks), None
