"""The inputs that every network is shown, from one ``.npz`` file."""

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
from mikit.core.errors import InputError
from mikit.datasets import from_npz

__all__ = ["ProbeInputs", "model_from", "read_probe"]


_PARTS = {"train_images", "train_labels", "test_images", "test_labels"}
_OWN = {"images", "labels", "ids", "training_ids"}


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
    """Read inputs, and their labels and ids where they are there.

    Args:
        path: A ``.npz`` file with ``images``, as the network reads them, and if wanted ``labels``, ``ids`` (0, 1, 2,
            ... without) and ``training_ids``; or one for :func:`mikit.datasets.from_npz`, of which the test part is
            taken, standardised and numbered as there.

    Raises:
        InputError: If the file is missing or damaged, holds neither, or an array that is unknown, of another type or
            length.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(folder + "/probe.npz", images=np.zeros((5, 1, 8, 8), np.float32), labels=np.arange(5))
        ...     probe = read_probe(folder + "/probe.npz")
        >>> probe.images.shape, probe.ids.tolist()
        (torch.Size([5, 1, 8, 8]), [0, 1, 2, 3, 4])
    """
    file = Path(path)
    names = _names(file)
    if names >= _PARTS:
        part = from_npz(file).test
        return ProbeInputs(part.images, part.labels.numpy(), part.ids, None)
    if "images" not in names:
        raise InputError(
            f'{file} has no array "images"; it holds {", ".join(sorted(names)) or "nothing"}. Save "images", and if '
            'wanted "labels", "ids" and "training_ids"; or the four arrays of mikit.datasets.from_npz.'
        )
    if strange := sorted(names - _OWN):
        raise InputError(
            f'{file} holds "{strange[0]}", which is not known beside "images". Leave it out, or name it "labels", '
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
            f'In {file}, "images" has dtype {images.dtype}, and how the network scales them cannot be known. Save them '
            "as the network reads them: as floating-point numbers, or token ids as int64."
        )
    if inputs.ndim < 2 or inputs.shape[0] == 0:
        raise InputError(f'In {file}, "images" has shape {tuple(inputs.shape)}; it must hold one row for each sample.')
    ids = read.get("ids", np.arange(inputs.shape[0]))
    for name, array in (("labels", read.get("labels")), ("ids", ids)):
        if array is not None and array.shape != (inputs.shape[0],):
            raise InputError(
                f'In {file}, "{name}" has shape {array.shape} for {inputs.shape[0]} images; there must be one each.'
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
    """Import a module, call a function of it, and return the network it gives.

    Args:
        reference: ``"module:factory"``; dots lead into packages and classes. The factory is called without arguments.
        folder: Where the module is looked for first; the current folder if None.

    Raises:
        InputError: If it is not written so, the module or the factory does not exist or raises, or what it gives is no
            ``nn.Module``.

    Pitfalls:
        Importing a module runs it: name your own.

    Example:
        >>> type(model_from("mikit.models:ResNet8")).__name__
        'ResNet8'
    """
    module_name, colon, factory_name = reference.partition(":")
    if not colon or not module_name or not factory_name:
        raise InputError(f'"{reference}" names no factory. Write module:factory, such as networks:student.')
    place = str(Path.cwd() if folder is None else folder)
    sys.path.insert(0, place)
    try:
        return _called(module_name, factory_name, place)
    finally:
        sys.path.remove(place)


def _called(module_name: str, factory_name: str, place: str) -> nn.Module:
    importlib.invalidate_caches()
    try:
        factory: object = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        if cause.name is not None and (module_name == cause.name or module_name.startswith(f"{cause.name}.")):
            raise InputError(
                f'There is no module "{cause.name}", neither in {place} nor installed. Run the command in the folder '
                "that holds it."
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
        raise InputError(f"{module_name}:{factory_name} returned a {type(model).__name__} and no torch.nn.Module.")
    return model
