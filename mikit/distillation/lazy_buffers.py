"""Buffers whose shape is known only once data were seen, in a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["take_shapes"]


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
