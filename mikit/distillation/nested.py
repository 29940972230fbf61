"""Tensors in nested containers: mappings, named tuples, tuples and lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from mikit.core.errors import InputError

__all__ = ["tensors_in", "with_tensors"]


def tensors_in(value: Any, what: str) -> list[Tensor]:
    """Return the tensors of a nested container, in its order; refuse other leaves. ``what`` is its name in errors.

    Example:
        >>> import torch
        >>> [one.shape[0] for one in tensors_in({"a": torch.zeros(2), "b": [torch.zeros(3)]}, "features")]
        [2, 3]
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [one for name in value for one in tensors_in(value[name], f"{what}[{name!r}]")]
    if isinstance(value, tuple | list):
        return [one for index, part in enumerate(value) for one in tensors_in(part, f"{what}[{index}]")]
    raise InputError(f"{what} is a {type(value).__name__}. Pass a tensor, or a mapping, a tuple or a list of tensors.")


def with_tensors(value: Any, tensors: Iterable[Tensor]) -> Any:
    """Return a container of the same form with ``tensors`` in the order of :func:`tensors_in`; mappings become dicts.

    Example:
        >>> import torch
        >>> with_tensors({"a": torch.zeros(2), "b": (torch.zeros(3),)}, [torch.ones(1), torch.ones(1)])
        {'a': tensor([1.]), 'b': (tensor([1.]),)}
    """
    # One iterator for the whole recursion: every leaf takes the next tensor, in the order in which they were found.
    return _rebuilt(value, iter(tensors))


def _rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {name: _rebuilt(value[name], tensors) for name in value}
    parts = [_rebuilt(part, tensors) for part in value]
    if hasattr(value, "_fields"):  # a named tuple is built from positional arguments
        return type(value)(*parts)
    return tuple(parts) if isinstance(value, tuple) else parts
