"""A bounded memory of a teacher's features, class by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError

__all__ = ["FeatureQueue", "take_shapes"]


def take_shapes(module: nn.Module, state: Mapping[str, Any], prefix: str, *names: str) -> None:
    """Give buffers of ``module`` the shapes and dtypes they have in ``state``, so that the state can be loaded.

    Example:
        >>> import torch
        >>> module = nn.Module()
        >>> module.register_buffer("rows", torch.empty(0))
        >>> take_shapes(module, {"rows": torch.zeros(3, 2)}, "", "rows")
        >>> module.rows.shape
        torch.Size([3, 2])
    """
    for name in names:
        stored = state.get(f"{prefix}{name}")
        own = getattr(module, name)
        if stored is not None and (stored.shape != own.shape or stored.dtype != own.dtype):
            setattr(module, name, own.new_zeros(stored.shape, dtype=stored.dtype))


@final
class FeatureQueue(nn.Module):
    """The last rows of every class, in a ring for each; the oldest row of a class makes room for a new one.

    Rows are kept detached. Everything is a buffer, so it travels with the state dict, of which it takes the number of
    classes; it never trains.

    Args:
        size: Rows kept of every class.
        width: Columns of a row.
        classes: Number of classes; more are added when a larger label comes.
        dtype: Of the rows.

    Raises:
        InputError: If a size is below 1.

    Cost:
        ``classes · size · width`` numbers of memory; ``push`` is O(n (width + log n)).

    Pitfalls:
        A row kept from an earlier batch was seen under another augmentation. A teacher that trains leaves stale rows
        behind. Classes added later change the shape of a buffer, which data-parallel training with broadcast buffers
        does not follow; name the number of classes there.

    Example:
        >>> queue = FeatureQueue(size=2, width=1)
        >>> queue.push(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([0, 1, 0, 0]))
        >>> rows, labels = queue.contents()  # the first row of class 0 had to go
        >>> rows[:, 0].tolist(), labels.tolist()
        ([4.0, 3.0, 2.0], [0, 0, 1])
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, width: int, *, classes: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if size < 1 or width < 1 or classes < 0:
            raise InputError(
                f"A queue was asked to keep {size} rows of {width} columns for {classes} classes. Rows and columns "
                "must be at least 1, and classes cannot be negative."
            )
        self.size = size
        self.width = width
        self.register_buffer("rows", torch.zeros(classes, size, width, dtype=dtype))
        self.register_buffer("pushed", torch.zeros(classes, dtype=torch.long))

    @property
    def classes(self) -> int:
        """Number of classes it has room for."""
        return self.rows.shape[0]

    @torch.no_grad()
    def push(self, rows: Tensor, labels: Tensor) -> None:
        """Add ``rows`` ``(n, width)`` of the classes ``labels`` ``(n,)``; of more than fit, the last ones stay.

        Raises:
            InputError: If shapes do not fit or a label is negative.
        """
        if rows.ndim != 2 or rows.shape[1] != self.width or labels.shape != rows.shape[:1]:
            raise InputError(
                f"The queue keeps rows of {self.width} columns with a label each; it was given shapes "
                f"{tuple(rows.shape)} and {tuple(labels.shape)}."
            )
        if not len(labels):
            return
        labels = labels.to(self.rows.device)
        lowest, highest = labels.min().item(), labels.max().item()
        if lowest < 0:
            raise InputError(f"A label is {lowest}; classes are counted from 0.")
        self._make_room(int(highest) + 1)
        order = labels.argsort(stable=True)
        sorted_labels = labels[order]
        counts = torch.bincount(labels, minlength=self.classes)
        rank = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[sorted_labels]
        stays = rank >= counts[sorted_labels] - self.size
        slots = (self.pushed[sorted_labels] + rank) % self.size
        self.rows[sorted_labels[stays], slots[stays]] = rows.detach()[order][stays].to(self.rows)
        self.pushed += counts

    def of(self, label: int, count: int) -> Tensor:
        """Return the first ``count`` rows kept of a class; :meth:`counts` says how many there are."""
        return self.rows[label, :count]

    def counts(self) -> list[int]:
        """Return how many rows are kept of every class."""
        kept: list[int] = self.pushed.clamp(max=self.size).tolist()
        return kept

    def contents(self) -> tuple[Tensor, Tensor]:
        """Return all rows kept and their labels, class by class."""
        counts = self.pushed.clamp(max=self.size)
        held = torch.arange(self.size, device=counts.device) < counts[:, None]
        labels = torch.arange(self.classes, device=counts.device)[:, None].expand_as(held)
        return self.rows[held], labels[held]

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
