"""Student and teacher as modules: how they are called, what is required of them, and how a look leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError

__all__ = ["output_of", "require_teacher", "require_uncompiled", "restored_buffers", "unchanged"]


def output_of(network: nn.Module, inputs: Tensor | Mapping[str, Any]) -> Any:
    """Return the output of ``network`` for ``inputs``; the entries of a mapping are passed by keyword.

    Example:
        >>> output_of(nn.Linear(2, 3), {"input": torch.ones(4, 2)}).shape
        torch.Size([4, 3])
    """
    return network(**inputs) if isinstance(inputs, Mapping) else network(inputs)


def require_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Raise :class:`~mikit.InputError` unless ``teacher`` is another network than ``student``, in evaluation mode."""
    if teacher is student:
        raise InputError("Teacher and student are the same module. Pass two different networks.")
    if any(module.training for module in teacher.modules()):
        raise InputError(
            "The teacher is in training mode, so its features would depend on the batch and its statistics would "
            "change. Call teacher.eval()."
        )


def require_uncompiled(network: nn.Module, name: str) -> None:
    """Raise :class:`~mikit.InputError` if ``network`` is compiled as a whole."""
    if hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None:
        raise InputError(
            f"The {name} is compiled, and hooks have no effect in a compiled graph. Pass the network as it was before "
            "torch.compile, and compile parts of it that contain no captured layer."
        )


@contextmanager
def restored_buffers(module: nn.Module) -> Iterator[None]:
    """Restore the buffers of a module after the block."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore the buffers and modes of a module and torch's random state after the block."""
    modes = [(part, part.training) for part in module.modules()]
    with torch.random.fork_rng(), restored_buffers(module):
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode
