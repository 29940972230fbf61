"""Hashes that show whether two activations come from the same weights and the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.provenance import data_hash

__all__ = ["hash_of_array", "hash_of_model"]


def hash_of_array(value: Any) -> str:
    """Return a SHA-256 of dtype, shape and content of an array: a store's ``data_hash``.

    Args:
        value: NumPy array or tensor of numbers: the inputs of both networks.

    Returns:
        64 hexadecimal digits; equal for a tensor and the NumPy array with the same content.

    Raises:
        InputError: If the array does not consist of numbers.

    Cost: One pass over the data; blocks of 65,536 samples are copied if the array is not contiguous.

    Pitfalls:
        The hash depends on the order of the samples and on the dtype: 1.0 in float32 and in float64 differ.

    Example:
        >>> hash_of_array(np.arange(3)) == hash_of_array(torch.arange(3))
        True
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "biufc":
            raise InputError(f"An array of dtype {array.dtype} has no hash. Pass an array of numbers.")
        tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(_content_hash(tensor).encode())
    return digest.hexdigest()


def hash_of_model(state_dict: Mapping[str, Any]) -> str:
    """Return a SHA-256 of the names, dtypes, shapes and values of a state dict: a store's ``model_hash``.

    Args:
        state_dict: The value of ``model.state_dict()``.

    Returns:
        64 hexadecimal digits, independent of device and of the order of the names.

    Raises:
        InputError: If an entry is not a tensor.

    Cost: One pass over the weights; copies one tensor at a time to the CPU.

    Pitfalls:
        The hash depends on prefixes: the same weights have other names if the model is compiled or wrapped for
        distributed training. Pass the state dict of the inner module.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> before = hash_of_model(layer.state_dict())
        >>> _ = layer.weight.data.add_(1)
        >>> before == hash_of_model(layer.state_dict())
        False
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name]
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"The entry {name!r} of the state dict is a {type(tensor).__name__}, not a tensor, and cannot be "
                "hashed. Leave it out."
            )
        digest.update(f"{name}\0{hash_of_array(tensor)}\0".encode())
    return digest.hexdigest()


def _content_hash(tensor: Tensor) -> str:
    flat = tensor.reshape(-1)
    # NumPy has no bfloat16 or float8, so their bytes are hashed.
    return data_hash(flat.view(torch.uint8) if flat.dtype.is_floating_point and flat.dtype.itemsize < 4 else flat)
