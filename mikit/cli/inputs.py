"""Inputs and networks of commands: the ``.npz`` file of probe inputs, the factory of a network, the device."""

from __future__ import annotations

import importlib
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from mikit.activations import read_array
from mikit.core import require
from mikit.core.errors import InputError
from mikit.datasets import from_npz

__all__ = ["ProbeInputs", "model_from", "read_probe", "require_device"]


_PARTS = {"train_images", "train_labels", "test_images", "test_labels"}
_KNOWN = {"images", "labels", "ids", "training_ids"}


@final
@dataclass(frozen=True)
class ProbeInputs:
    """Inputs to record activations on.

    Attributes:
        images: The inputs, ``(n, ...)``.
        labels: Class indices, ``(n,)``, or None.
        ids: Sample ids, ``(n,)``.
        training_ids: Ids of the samples the network was trained on, or None.
    """

    images: Tensor
    labels: np.ndarray | None
    ids: np.ndarray
    training_ids: np.ndarray | None


def read_probe(path: str | Path) -> ProbeInputs:
    """Read inputs from a ``.npz`` file, and their labels and ids if the file contains them.

    The file has the arrays ``images``, as inputs of the network, and optionally ``labels``, ``ids`` (0, 1, 2, ... by
    default) and ``training_ids``; or those of :func:`mikit.datasets.from_npz`, of which the standardized test part is
    used.

    Raises:
        InputError: If the file is missing or damaged, or an array is missing, unknown, or of the wrong type or length.
    """
    file = Path(path)
    names = _names(file)
    if names >= _PARTS:
        part = from_npz(file).test
        return ProbeInputs(part.images, part.labels.numpy(), part.ids, None)
    if "images" not in names:
        raise InputError(
            f'{file} has no array "images"; it contains {", ".join(sorted(names)) or "nothing"}. Save "images", and '
            'optionally "labels", "ids" and "training_ids"; or the four arrays of mikit.datasets.from_npz.'
        )
    if unknown := sorted(names - _KNOWN):
        raise InputError(
            f'{file} contains the unknown array "{unknown[0]}" besides "images". Leave it out, or name it "labels", '
            '"ids" or "training_ids".'
        )
    read = {name: read_array(file, key=name).values for name in sorted(names)}
    images = read["images"]
    if images.dtype.kind == "f":
        inputs = torch.from_numpy(images.astype(np.float32))
    elif images.dtype.kind in "iu" and images.dtype != np.uint8:
        inputs = torch.from_numpy(images.astype(np.int64))
    else:
        raise InputError(
            f'In {file}, "images" has dtype {images.dtype}, so the scaling that the network needs is unknown. Save the '
            "inputs of the network: floating-point numbers, or token ids as int64."
        )
    if inputs.ndim < 2 or inputs.shape[0] == 0:
        raise InputError(f'In {file}, "images" has shape {tuple(inputs.shape)}; it needs samples along the first axis.')
    ids = read.get("ids", np.arange(inputs.shape[0]))
    for name, array in (("labels", read.get("labels")), ("ids", ids)):
        if array is not None and array.shape != (inputs.shape[0],):
            raise InputError(
                f'In {file}, "{name}" has shape {array.shape} for {inputs.shape[0]} images; it needs one per image.'
            )
    return ProbeInputs(inputs, read.get("labels"), ids, read.get("training_ids"))


def _names(file: Path) -> set[str]:
    if not file.is_file():
        raise InputError(f'There is no file {file}. Pass a .npz file with "images".')
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as cause:
        raise InputError(f"{file} is not a .npz file, or it is damaged: {cause}.") from cause


def model_from(reference: str, *, folder: Path | None = None) -> nn.Module:
    """Import a module, call one of its functions without arguments, and return the network.

    Args:
        reference: ``"module:factory"``; dots lead into packages and classes.
        folder: The folder that is searched first; by default the current one.

    Raises:
        InputError: If the reference is malformed, the module or the factory does not exist or raises an exception, or
            the factory does not return an ``nn.Module``.
    """
    module_name, colon, factory_name = reference.partition(":")
    if not colon or not module_name or not factory_name:
        raise InputError(f'"{reference}" is not a factory. Write module:factory, such as networks:student.')
    place = str(Path.cwd() if folder is None else folder)
    sys.path.insert(0, place)
    try:
        return _call_factory(module_name, factory_name, place)
    finally:
        sys.path.remove(place)


def _call_factory(module_name: str, factory_name: str, place: str) -> nn.Module:
    importlib.invalidate_caches()
    try:
        factory: object = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        if cause.name is not None and (module_name == cause.name or module_name.startswith(f"{cause.name}.")):
            raise InputError(
                f'There is no module "{cause.name}", neither in {place} nor installed. Run the command in the folder '
                "that contains it."
            ) from cause
        raise InputError(f'The module "{module_name}" cannot be imported: {cause}.') from cause
    except Exception as cause:
        raise InputError(f'The module "{module_name}" cannot be imported: {type(cause).__name__}: {cause}.') from cause
    for name in factory_name.split("."):
        if not hasattr(factory, name):
            raise InputError(f'The module "{module_name}" has no "{factory_name}". Check the name after the colon.')
        factory = getattr(factory, name)
    if not callable(factory):
        raise InputError(
            f"{module_name}:{factory_name} is a {type(factory).__name__} and cannot be called. Name a function that "
            "returns the network."
        )
    try:
        model = factory()
    except Exception as cause:
        raise InputError(
            f"{module_name}:{factory_name} raised {type(cause).__name__}: {cause}. It is called without arguments and "
            "returns the network."
        ) from cause
    if not isinstance(model, nn.Module):
        raise InputError(f"{module_name}:{factory_name} returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def require_device(device: str) -> None:
    """Require ``cpu`` or an available ``cuda``."""
    require.one_of(device, "--device", ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but torch sees no CUDA device here. Leave it out to use the CPU.")
