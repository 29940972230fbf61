"""What may enter a store: arrays, sample ids and names, each checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mikit.activations.store.manifest import Layer
from mikit.core.errors import InputError
from mikit.core.inputs import refuse_non_finite

__all__ = ["agreed_id_kind", "agreed_layers", "checked_ids", "described_layers", "phase_number", "rows_to_store"]


def checked_ids(value: Any, name: str) -> np.ndarray:
    """Return sample ids as int64 or strings, ``(n,)``.

    Args:
        value: Whole numbers or strings, one per sample: array, tensor or sequence.
        name: What to call them in an error.

    Raises:
        InputError: If there are none, they are neither whole numbers nor strings, or one stands twice.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype == object and all(isinstance(entry, str) for entry in array.flat):
        array = array.astype(str)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}. Pass one sample id per row, shape (n,).")
    if array.dtype.kind not in "iuU":
        raise InputError(f"{name} has dtype {array.dtype}. Sample ids are whole numbers or strings.")
    if array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{name} holds {int(array.max())}, which does not fit into int64. Pass strings.")
    if array.dtype.kind == "U" and any("\0" in entry for entry in array.tolist()):
        raise InputError(f"{name} holds a string with a zero byte in it. Use other ids.")
    distinct, counts = np.unique(array, return_counts=True)
    if distinct.size != array.size:
        raise InputError(
            f"The sample id {distinct[counts > 1][0]!r} stands {int(counts.max())} times in {name}; rows are joined by "
            "id, so every id must be unique."
        )
    return np.array(array, dtype=np.int64 if array.dtype.kind in "iu" else array.dtype.newbyteorder("="))


def rows_to_store(value: Any, name: str) -> np.ndarray:
    """Return an array as it is stored: float16 to float64, little-endian, contiguous, finite, ``(n, ...)``.

    Raises:
        InputError: If it is not an array of real numbers, is empty, or holds NaN or infinity.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise InputError(f"{name} is a tensor of layout {value.layout}. Pass a dense one.")
        tensor = value.detach().cpu()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    else:
        try:
            array = np.asarray(value)
        except ValueError as cause:
            raise InputError(f"{name} is not a rectangular array: {cause}.") from cause
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} has dtype {array.dtype}. Pass an array of real numbers, one row per sample.")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.ndim == 0 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}. Pass at least one row and one column.")
    if not np.isfinite(array).all():
        refuse_non_finite(torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="))), name)
    rows = array[:, None] if array.ndim == 1 else array
    return np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))


def described_layers(arrays: Mapping[str, np.ndarray], readouts: Mapping[str, str] | str) -> tuple[Layer, ...]:
    """Return what the manifest says about the layers of a batch.

    Raises:
        InputError: If a layer or readout has no proper name, or a readout is missing or given for no layer.
    """
    if isinstance(readouts, Mapping) and (extra := [layer for layer in readouts if layer not in arrays]):
        raise InputError(f"readouts names {extra[0]!r}, which is not a layer of the batch. Give one for each layer.")
    return tuple(
        Layer(_layer_name(layer), _readout_name(readouts, layer), str(array.dtype), array.shape[1:])
        for layer, array in arrays.items()
    )


def agreed_layers(held: tuple[Layer, ...], described: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the layers of a store, which those of a batch must equal; those of the batch if it is the first.

    Raises:
        InputError: If a layer is missing or new, or its readout, dtype or sample shape differ.
    """
    if not held:
        return described
    given = {layer.name: layer for layer in described}
    names = [layer.name for layer in held]
    if set(given) != set(names):
        raise InputError(
            f"The store holds the layers {names}, but the batch holds {list(given)}. Append all layers of a batch at "
            "once, and the same layers every time."
        )
    for layer in held:
        new = given[layer.name]
        for what, old_value, new_value in (
            ("readout", layer.readout, new.readout),
            ("dtype", layer.dtype, new.dtype),
            ("shape of one sample", layer.shape, new.shape),
        ):
            if old_value != new_value:
                raise InputError(
                    f"The {what} of layer {layer.name!r} is {old_value!r} in the store, but {new_value!r} in this "
                    "batch. Record a layer the same way every time."
                )
    return held


def agreed_id_kind(held: str | None, ids: np.ndarray) -> str:
    """Return ``"int64"`` or ``"str"``, which must be what the store has.

    Raises:
        InputError: If it is not.
    """
    kind = "str" if ids.dtype.kind == "U" else "int64"
    if held is not None and held != kind:
        raise InputError(f"The ids of the store are {held}, but these are {kind}. Use one kind of id throughout.")
    return kind


def _layer_name(layer: Any) -> str:
    if not isinstance(layer, str) or not layer:
        raise InputError(f"The batch names a layer {layer!r}. Layer names are strings that are not empty.")
    return layer


def phase_number(phase: Any) -> int:
    """Return a phase as an int.

    Raises:
        InputError: If it is not a whole number from 0.
    """
    if isinstance(phase, bool) or not isinstance(phase, (int, np.integer)) or phase < 0:
        raise InputError(f"phase is {phase!r}. Phases are whole numbers from 0: the epoch or step of training.")
    return int(phase)


def _readout_name(readouts: Mapping[str, str] | str, layer: str) -> str:
    name = readouts if isinstance(readouts, str) else readouts.get(layer)
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise InputError(f"The readout of layer {layer!r} is {name!r}. Name it with a string of 1 to 200 characters.")
    return name
