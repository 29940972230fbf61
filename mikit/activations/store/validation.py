"""Validation of everything that enters a store, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mikit.activations.store.manifest import Layer
from mikit.core.errors import InputError
from mikit.core.inputs import as_labels, refuse_non_finite

__all__ = [
    "agreed_id_kind",
    "agreed_layers",
    "checked_batch",
    "checked_ids",
    "checked_labels",
    "checked_notes",
    "described_layers",
    "phase_number",
    "shown_id",
]


def checked_ids(value: Any, name: str) -> np.ndarray:
    """Return sample ids as int64 or strings, ``(n,)``; errors call them ``name``.

    Raises:
        InputError: If there are none, they are neither integers nor strings, or one is repeated.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype == object and all(isinstance(entry, str) for entry in array.flat):
        array = array.astype(str)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}. Pass one id per sample, shape (n,).")
    if array.dtype.kind not in "iuU":
        raise InputError(f"{name} has dtype {array.dtype}. Sample ids are integers or strings.")
    if array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{name} contains {int(array.max())}, which does not fit into int64. Pass strings.")
    if array.dtype.kind == "U" and any("\0" in entry for entry in array.tolist()):
        raise InputError(f"{name} contains a string with a zero byte. Use other ids.")
    distinct, counts = np.unique(array, return_counts=True)
    if distinct.size != array.size:
        raise InputError(
            f"{name} contains the sample id {shown_id(distinct[counts > 1][0])} {int(counts.max())} times. Samples are "
            "joined by id, so every id must be unique."
        )
    return np.array(array, dtype=np.int64 if array.dtype.kind in "iu" else array.dtype.newbyteorder("="))


def shown_id(value: Any) -> str:
    """Return a sample id as an error message shows it."""
    return f'"{value}"' if isinstance(value, str) else str(value)


def checked_labels(labels: Any, count: int) -> np.ndarray:
    """Return ``count`` labels as int64 or strings.

    Raises:
        InputError: If there is another number of labels, or they are not categories.
    """
    values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if as_labels(values).shape[0] != count:
        raise InputError(f"There are {values.shape[0]} labels for {count} ids. Pass one label per id.")
    values = values.reshape(-1)
    if values.dtype.kind in "uf" and float(np.abs(values).max()) >= 2.0**63:
        raise InputError(f"The labels reach {np.abs(values).max()}, which does not fit into int64. Pass strings.")
    return values.astype(str if values.dtype.kind in "US" else np.int64)


def checked_notes(phase: int, scalars: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars as finite floats.

    Raises:
        InputError: If one is not a finite number.
    """
    checked: dict[str, float] = {}
    for name, value in scalars.items():
        try:
            checked[name] = float(value)
        except (TypeError, ValueError) as cause:
            raise InputError(f"The note {name!r} is {value!r}. Pass a number.") from cause
        if not np.isfinite(checked[name]):
            raise InputError(f"The note {name!r} for phase {phase} is {value}. Pass a finite number.")
    return checked


def checked_batch(batch: Mapping[str, Any], ids: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the activations of each layer in the form in which they are stored, and the sample ids.

    Raises:
        InputError: If there are no layers, or an array or the ids are invalid or of another length.
    """
    arrays = {layer: _stored_form(value, f"layer {layer!r}") for layer, value in batch.items()}
    if not arrays:
        raise InputError("The batch contains no layers.")
    checked = checked_ids(ids, "ids")
    for layer, array in arrays.items():
        if array.shape[0] != checked.shape[0]:
            raise InputError(
                f"The layer {layer!r} has {array.shape[0]} samples, but there are {checked.shape[0]} ids. Pass one id "
                "per sample."
            )
    return arrays, checked


def _stored_form(value: Any, name: str) -> np.ndarray:
    """Return an array in the form in which it is stored: float16 to float64, little-endian, contiguous, ``(n, ...)``.

    Raises:
        InputError: If it is not an array of real numbers, is empty, or contains NaN or infinity.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise InputError(f"{name} is a tensor of layout {value.layout}. Pass a dense tensor.")
        tensor = value.detach().cpu()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    else:
        try:
            array = np.asarray(value)
        except ValueError as cause:
            raise InputError(f"{name} is not a rectangular array: {cause}.") from cause
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{name} has dtype {array.dtype}. Pass an array of real numbers, samples along the first axis."
        )
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.ndim == 0 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}. Pass at least one sample and one feature.")
    if not np.isfinite(array).all():
        refuse_non_finite(torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="))), name)
    rows = array[:, None] if array.ndim == 1 else array
    return np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))


def described_layers(arrays: Mapping[str, np.ndarray], readouts: Mapping[str, str] | str) -> tuple[Layer, ...]:
    """Return the description of the layers of a batch for the manifest.

    Raises:
        InputError: If a name is invalid, or a readout is missing or belongs to no layer.
    """
    if isinstance(readouts, Mapping) and (extra := [layer for layer in readouts if layer not in arrays]):
        raise InputError(f"readouts names {extra[0]!r}, which is not a layer of the batch. Pass one for each layer.")
    return tuple(
        Layer(_layer_name(layer), _readout_name(readouts, layer), str(array.dtype), array.shape[1:])
        for layer, array in arrays.items()
    )


def agreed_layers(stored: tuple[Layer, ...], described: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the layers of a store, to which those of a batch must be equal; those of the first batch if it is empty.

    Raises:
        InputError: If a layer is missing or new, or its readout, dtype or sample shape differ.
    """
    if not stored:
        return described
    given = {layer.name: layer for layer in described}
    names = [layer.name for layer in stored]
    if set(given) != set(names):
        raise InputError(
            f"The store contains the layers {names}, but the batch contains {list(given)}. Append all layers of a "
            "batch together, and the same layers every time."
        )
    for layer in stored:
        new = given[layer.name]
        for what, old_value, new_value in (
            ("readout", layer.readout, new.readout),
            ("dtype", layer.dtype, new.dtype),
            ("shape of one sample", layer.shape, new.shape),
        ):
            if old_value != new_value:
                raise InputError(
                    f"The {what} of layer {layer.name!r} is {old_value!r} in the store, but {new_value!r} in this "
                    "batch. Record a layer in the same way every time."
                )
    return stored


def agreed_id_kind(stored: str | None, ids: np.ndarray) -> str:
    """Return the type of ids, ``"int64"`` or ``"str"``.

    Raises:
        InputError: If the store has ids of the other type.
    """
    kind = "str" if ids.dtype.kind == "U" else "int64"
    if stored is not None and stored != kind:
        raise InputError(
            f"The ids of the store are {stored}, but these are {kind}. Use one type of id for the whole store."
        )
    return kind


def _layer_name(layer: Any) -> str:
    if not isinstance(layer, str) or not layer:
        raise InputError(f"The batch contains a layer named {layer!r}. Layer names are strings that are not empty.")
    return layer


def phase_number(phase: Any) -> int:
    """Return a phase as an int.

    Raises:
        InputError: If it is not an integer from 0.
    """
    if isinstance(phase, bool) or not isinstance(phase, (int, np.integer)) or phase < 0:
        raise InputError(f"phase is {phase!r}. A phase is an integer from 0: the epoch or step of training.")
    return int(phase)


def _readout_name(readouts: Mapping[str, str] | str, layer: str) -> str:
    name = readouts if isinstance(readouts, str) else readouts.get(layer)
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise InputError(f"The readout of layer {layer!r} is {name!r}. Pass a string of 1 to 200 characters.")
    return name
