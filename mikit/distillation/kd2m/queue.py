"""A bounded queue of a teacher's features for each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError

__all__ = ["FeatureQueue", "take_shapes"]


def take_shapes(module: nn.Module, state: Mapping[str, Any], prefix: str, *names: str) -> None:
    """Give buffers of ``module`` the shapes and dtypes that they have in ``state``, so that ``state`` can be loaded."""
    for name in names:
        stored = state.get(f"{prefix}{name}")
        buffer = getattr(module, name)
        if stored is not None and (stored.shape != buffer.shape or stored.dtype != buffer.dtype):
            setattr(module, name, buffer.new_zeros(stored.shape, dtype=stored.dtype))


@final
class FeatureQueue(nn.Module):
    """The last features of every class, in a ring buffer for each class; a new sample replaces the oldest of its class.

    Features are stored detached. All state is in buffers, so it is saved in the state dict and never trained. Loading a
    state dict also sets the number of classes.

    Args:
        size: Number of samples stored for every class.
        width: Number of features of a sample.
        classes: Number of classes; more are added when a larger label is pushed.
        dtype: Data type of the features.

    Raises:
        InputError: If a size is below 1.

    Cost:
        Memory for ``classes · size · width`` numbers; ``push`` is O(n (width + log n)).

    Pitfalls:
        Features of an earlier batch come from another augmentation of the image. If the teacher trains, the stored
        features become outdated. Adding classes changes the shape of a buffer, which data-parallel training with
        broadcast buffers does not support; pass ``classes`` there.

    Example:
        >>> queue = FeatureQueue(size=2, width=1)
        >>> queue.push(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([0, 1, 0, 0]))
        >>> rows, labels = queue.contents()  # the first sample of class 0 was replaced
        >>> rows[:, 0].tolist(), labels.tolist()
        ([4.0, 3.0, 2.0], [0, 0, 1])
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, width: int, *, classes: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if size < 1 or width < 1 or classes < 0:
            raise InputError(
                f"The queue has size {size}, width {width} and {classes} classes. Size and width must be at least 1, "
                "and classes cannot be negative."
            )
        self.size = size
        self.width = width
        self.register_buffer("rows", torch.zeros(classes, size, width, dtype=dtype))
        self.register_buffer("pushed", torch.zeros(classes, dtype=torch.long))

    @property
    def classes(self) -> int:
        """Number of classes that it has room for."""
        return self.rows.shape[0]

    @torch.no_grad()
    def push(self, rows: Tensor, labels: Tensor) -> None:
        """Add features ``(n, width)`` with class indices ``(n,)``; if there are more than fit, the last ones are kept.

        Raises:
            InputError: If shapes do not fit or a label is negative.
        """
        if rows.ndim != 2 or rows.shape[1] != self.width or labels.shape != rows.shape[:1]:
            raise InputError(
                f"The samples have shape {tuple(rows.shape)} and the labels {tuple(labels.shape)}; the queue stores "
                f"samples of {self.width} features with one label each."
            )
        if not len(labels):
            return
        labels = labels.to(self.rows.device)
        lowest, highest = labels.min().item(), labels.max().item()
        if lowest < 0:
            raise InputError(f"A label is {lowest}; classes are counted from 0.")
        self._make_room(int(highest) + 1)
        # All classes are written in one indexed assignment. The rank of a sample within its class gives its slot in the
        # ring; samples that a later one of the same batch would overwrite are dropped first, because the order in which
        # repeated indices are written is undefined.
        order = labels.argsort(stable=True)
        sorted_labels = labels[order]
        counts = torch.bincount(labels, minlength=self.classes)
        rank = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[sorted_labels]
        stays = rank >= counts[sorted_labels] - self.size
        slots = (self.pushed[sorted_labels] + rank) % self.size
        self.rows[sorted_labels[stays], slots[stays]] = rows.detach()[order][stays].to(self.rows)
        self.pushed += counts

    def of(self, label: int, count: int) -> Tensor:
        """Return the first ``count`` stored features of a class; :meth:`counts` gives how many there are."""
        return self.rows[label, :count]

    def counts(self) -> list[int]:
        """Return the number of stored samples of every class."""
        kept: list[int] = self.pushed.clamp(max=self.size).tolist()
        return kept

    def contents(self) -> tuple[Tensor, Tensor]:
        """Return all stored features and their labels, class by class."""
        counts = self.pushed.clamp(max=self.size)
        filled = torch.arange(self.size, device=counts.device) < counts[:, None]
        labels = torch.arange(self.classes, device=counts.device)[:, None].expand_as(filled)
        return self.rows[filled], labels[filled]

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"size={self.size}, width={self.width}, classes={self.classes}"

    def _make_room(self, classes: int) -> None:
        missing = classes - self.classes
        if missing > 0:
            self.rows = torch.cat([self.rows, self.rows.new_zeros(missing, self.size, self.width)])
            self.pushed = torch.cat([self.pushed, self.pushed.new_zeros(missing)])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}rows")
        if stored is not None and stored.shape[1:] == self.rows.shape[1:]:
            take_shapes(self, state_dict, prefix, "rows", "pushed")
        super()._load_from_state_dict(state_dict, prefix, *rest)
