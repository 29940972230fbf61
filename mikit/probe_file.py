"""The inputs that every network is shown, from one ``.npz`` file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from mikit.activations import read_array
from mikit.datasets import from_npz
from mikit.errors import InputError

__all__ = ["ProbeInputs", "read_probe"]

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
