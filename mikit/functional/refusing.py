"""Refusals that depend on values and hold inside a compiled graph as well."""

from __future__ import annotations

import torch
from torch import Tensor

from mikit.errors import InputError

__all__ = ["passed_if"]


def passed_if(value: Tensor, holds: Tensor, otherwise: str) -> Tensor:
    """Return ``value`` if ``holds``, a 0-dim boolean, is true; raise :class:`~mikit.errors.InputError` if not.

    For ``torch.compile`` it is an operator, which stays in the graph whole and refuses when the graph runs. Use what it
    returns, or the compiler leaves it out.

    Args:
        value: Integers or booleans, such as labels: there is no gradient.
        holds: What must be true.
        otherwise: The sentence to refuse with.

    Example:
        >>> labels = torch.tensor([0, 2])
        >>> passed_if(labels, labels.max() < 3, "There are 3 classes.")
        tensor([0, 2])
        >>> passed_if(labels, labels.max() < 2, "There are 2 classes.")
        Traceback (most recent call last):
        mikit.errors.InputError: There are 2 classes.
    """
    if torch.compiler.is_compiling():
        passed: Tensor = _passed_if(value, holds, otherwise)
        return passed
    if not bool(holds):
        raise InputError(otherwise)
    return value


@torch.library.custom_op("mikit::passed_if", mutates_args=())
def _passed_if(value: Tensor, holds: Tensor, otherwise: str) -> Tensor:
    if not bool(holds):
        raise InputError(otherwise)
    return value.clone()


@_passed_if.register_fake
def _(value: Tensor, holds: Tensor, otherwise: str) -> Tensor:
    return torch.empty_like(value)
