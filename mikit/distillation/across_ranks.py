"""Losses over the samples of all ranks: a gather with a gradient, scaled for data-parallel averaging."""

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
from mikit.distillation.training.optimizers import groups_of

__all__ = ["AcrossRanks", "gathered_rows"]

_Nest = TypeVar("_Nest")


@final
class AcrossRanks(nn.Module):
    r"""A loss over the samples of all ranks: in data-parallel training its gradient is that of a single process.

    Formula: :math:`L([x_1; \dots; x_R], [y_1; \dots; y_R])` on each of the ``R`` ranks, with :func:`gathered_rows` of
    both sides and of the labels. Ranks may have different numbers of samples.

    Args:
        loss: A loss of student and teacher: one of mikit, or any module with two arguments, such as
            ``nn.CrossEntropyLoss()`` with the labels in place of the teacher.

    Shapes:
        Student ``(n_r, ...)`` and teacher ``(m_r, ...)`` on rank ``r``, or mappings, tuples and lists of such tensors
        if the loss takes those (:class:`mikit.MIMKD`, :class:`mikit.InformationFlow`); labels ``(n_r,)``, or
        ``(n_r, classes)`` if the loss takes those. Returns a 0-dim tensor, equal on all ranks.

    Unit: that of the loss.

    Kind: that of the loss, for the samples of all ranks.

    Raises:
        InputError: If ``loss`` is not a module; if labels or a generator are passed to a loss that takes none; if ranks
            pass different numbers of tensors, or tensors that do not fit each other; and as the loss does.

    Cost:
        The loss over all samples, on every rank, and a collective for each tensor and two more. Numbers of samples are
        read on the host.

    Pitfalls:
        - Those of :func:`gathered_rows`.
        - The loss's own parameters get the same gradient on every rank. Wrap the loss in data-parallel training
          together with the student all the same, because otherwise rounding makes the copies differ.
        - A loss with random draws must draw the same on every rank. :class:`mikit.SlicedWasserstein` counts its draws
          and does so. :class:`mikit.MIMKD` with one negative takes a ``generator``: pass one with the same seed on
          every rank.
        - A mean over samples, such as :class:`mikit.VID` with its learned variance, needs no gather if all ranks have
          equally many samples: the mean over ranks is then the mean over samples. For an uneven batch it is not, and
          this class is needed.

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
            raise InputError(f"loss is a {type(loss).__name__}; AcrossRanks wraps a torch module.")
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
        """Return the loss over the samples of all ranks; the teacher and its labels get no gradient.

        Args:
            x: This rank's features of the student.
            y: This rank's features of the teacher.
            labels: This rank's class indices or soft labels, for a loss that takes them.
            student_labels: This rank's soft labels or logits of the student, which get a gradient, for a loss that
                takes them (:class:`mikit.KD2M` with ``conditional="joint"``).
            teacher_labels: The same of the teacher.
            generator: For a loss that takes one; its state must be the same on every rank.
        """
        every = {
            "labels": labels,
            "student_labels": student_labels,
            "teacher_labels": None if teacher_labels is None else teacher_labels.detach(),
        }
        given = {name: value for name, value in every.items() if value is not None}
        options: dict[str, Any] = {} if generator is None else {"generator": generator}
        for name in (*given, *options):
            if name not in self._takes:
                raise InputError(f"The loss {type(self.loss).__name__} takes no {name}. Call AcrossRanks without it.")
        # Detached here: the loss sees gathered features, so its own detach would come after a collective in the graph.
        y = with_tensors(y, [one.detach() for one in tensors_in(y, "y")])
        x, y, given = gathered_rows((x, y, given))
        value: Tensor = self.loss(x, y, **given, **options)
        return value

    def param_groups(self) -> list[dict[str, Any]]:
        """Return those of the loss."""
        return groups_of(self.loss)


def gathered_rows(rows: _Nest) -> _Nest:
    r"""Gather the samples of all ranks, in the order of the ranks, with a gradient to those of this rank.

    Formula: :math:`Z = [z_1; \dots; z_R]`, and backward :math:`\bar z_r = R \, \bar Z_r`, so that the mean over ranks
    in data-parallel training is the gradient of a single process.

    Args:
        rows: This rank's samples ``(n_r, ...)``, or a mapping, tuple or list of such tensors; ``n_r`` may differ
            between ranks and tensors.

    Returns:
        ``(Σ n_r, ...)``, the same on every rank, in the form of ``rows``; ``rows`` unchanged if no process group is
        initialized.

    Unit: that of ``rows``.

    Kind: exact.

    Raises:
        InputError: If ``rows`` contains a single number or anything but tensors, or the ranks' tensors differ in shape
            or dtype.

    Cost:
        A collective for each tensor and two more in the forward pass, none in the backward pass. Numbers of samples are
        read on the host.

    Pitfalls:
        - Every rank must call it equally often, or the others wait forever: give all ranks equally many batches.
        - All ranks must compute the same loss from the gathered samples.
        - The gradient is correct for a mean over ranks. If gradients are summed instead, it is too large by the number
          of ranks.
        - It breaks the graph of ``torch.compile``; the computation that follows is compiled.

    Source:
        The chain rule; the scaling is derived here.

    Example:
        >>> gathered_rows(torch.ones(3, 2)).shape  # one process: nothing to gather
        torch.Size([3, 2])
    """
    gathered: _Nest = with_tensors(rows, _gathered(tensors_in(rows, "rows")))
    return gathered


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives it no types
def _gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the samples of all ranks for each of these tensors."""
    for rows in tensors:
        if rows.ndim == 0:
            raise InputError("A single number cannot be gathered. Pass tensors (n, ...), with one row for each sample.")
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return list(tensors)
    sizes = _sizes(tensors)
    gathered: Any = _GatheredRows.apply
    return [gathered(rows, counts) for rows, counts in zip(tensors, sizes, strict=True)]


def _sizes(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the number of samples of each rank for each tensor; refuse tensors that do not fit each other."""
    shapes = ", ".join(
        f"{str(rows.dtype).removeprefix('torch.')} ({', '.join(['n', *map(str, rows.shape[1:])])})" for rows in tensors
    )
    # A collective whose shapes differ between ranks waits forever instead of failing. So the shapes are compared first,
    # by a checksum, which is one number whatever they are; then every rank raises the same error.
    digests = _from_all_ranks(torch.tensor([zlib.crc32(shapes.encode())], device=tensors[0].device))
    for rank, digest in enumerate(digests):
        if not torch.equal(digest, digests[0]):
            raise InputError(
                f"Ranks 0 and {rank} pass different numbers of tensors, or tensors of different shapes or dtypes. Rank "
                f"{distributed.get_rank()} passes {shapes}. Only the numbers of samples may differ between ranks."
            )
    counts = _from_all_ranks(torch.tensor([rows.shape[0] for rows in tensors], device=tensors[0].device))
    sizes: list[list[int]] = torch.stack(counts).T.tolist()
    return sizes


def _from_all_ranks(tensor: Tensor) -> list[Tensor]:
    every = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, tensor)
    return every


@final
class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        # all_gather needs equal shapes on all ranks, and the last batch may be uneven.
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        rank = distributed.get_rank()
        ctx.start, ctx.count, ctx.ranks = sum(counts[:rank]), counts[rank], len(counts)
        return torch.cat([part[:count] for part, count in zip(_from_all_ranks(padded), counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Every rank computes the same loss from the same gathered samples, so it already has the whole gradient of its
        # own samples and needs no exchange. Each rank's parameters then get only the share of its own samples, which
        # must be summed over ranks; data-parallel training averages instead, and the factor undoes its division.
        part: Tensor = gradient[ctx.start : ctx.start + ctx.count]
        return part * float(ctx.ranks), None
