"""Products and eigenbases of moments on a device, in float64: what factors and pairs of layers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["device_cross_products", "device_eigh", "device_rows"]

Array = NDArray[Any]


def device_rows(rows: Array, device: torch.device) -> Tensor:
    """Return rows on the device, in float64."""
    return torch.tensor(rows).to(device=device, dtype=torch.float64)


def device_cross_products(first: Tensor, second: Tensor, parts: Sequence[Array | slice]) -> Array:
    """Return ``Σ_i a_i b_iᵀ`` per fold, ``(k, d_a, d_b)``, of rows on one device.

    Args:
        first: ``(n, d_a)``, float64.
        second: ``(n, d_b)``, float64, rows paired with ``first``.
        parts: The folds.

    Example:
        >>> rows = torch.arange(8.0, dtype=torch.float64).reshape(4, 2)
        >>> device_cross_products(rows, rows[:, :1], [slice(0, 2), slice(2, 4)]).tolist()
        [[[4.0], [6.0]], [[52.0], [62.0]]]
    """
    products = [first[part].T @ second[part] for part in parts]
    return np.asarray(torch.stack(products).cpu().numpy())


def device_eigh(matrices: Array, device: torch.device) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors of symmetric matrices, as :func:`numpy.linalg.eigh` does."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(matrices).to(device))
    return np.asarray(values.cpu().numpy()), np.ascontiguousarray(vectors.cpu().numpy())
