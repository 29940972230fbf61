"""A teacher from a file of weights: nothing but tensors is read, and everything must fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.datasets import ImageData
from mikit.models import ResNet8

__all__ = ["load_teacher"]

_STEM, _LAST = "stem.0.weight", "fc.weight"
_CHANNELS_AT_WIDTH_1 = 64


def load_teacher(path: str | Path, data: ImageData) -> ResNet8:
    """Return a trained :class:`~mikit.models.ResNet8` for ``data``, in evaluation mode.

    Args:
        path: A ``.safetensors`` file such as ``networks/teacher.safetensors`` of an earlier run, or a ``.pt`` file of a
            state dict, read without unpickling anything but tensors; a ``checkpoint.pt`` of the trainer serves as well.
            The width is that of the weights.
        data: The images it is to be shown.

    Raises:
        InputError: If the file cannot be read, holds no weights of a ResNet8, or these are for images of other channels
            or classes.
    """
    file = Path(path)
    state = _state(file)
    if missing := [name for name in (_STEM, _LAST) if not isinstance(state.get(name), Tensor)]:
        raise InputError(
            f'{file} holds no "{missing[0]}", so it is no state dict of a mikit.models.ResNet8; it holds '
            f"{', '.join(map(repr, list(state)[:4])) or 'nothing'}. Use networks/teacher.safetensors of an earlier run."
        )
    channels, (classes, widest) = state[_STEM].shape[1], state[_LAST].shape
    for name, found, needed in (("channels", channels, data.channels), ("classes", classes, data.classes)):
        if found != needed:
            raise InputError(
                f"The teacher in {file} was trained for {found} {name}, but {data.name} has {needed}. Give the data it "
                "was trained on, or leave out --teacher to train one."
            )
    network = ResNet8(channels=channels, classes=classes, width=widest / _CHANNELS_AT_WIDTH_1)
    try:
        network.load_state_dict(state)
    except RuntimeError as cause:
        raise InputError(
            f"The weights in {file} do not fit a ResNet8 of width {widest / _CHANNELS_AT_WIDTH_1:g}: "
            f"{' '.join(str(cause).split())[:300]}."
        ) from cause
    if lost := [name for name, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise InputError(f'"{lost[0]}" in {file} is not finite: the training of this teacher diverged. Use another.')
    return network.eval()


def _state(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"There is no file {file}. Pass a .safetensors or .pt file of a teacher's weights.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as cause:
        raise InputError(
            f"{file} cannot be read as weights ({type(cause).__name__}). Pass a .safetensors file, or a .pt file that "
            "holds a state dict and nothing else; pickled objects are not loaded."
        ) from cause
    if isinstance(content, dict) and isinstance(content.get("network"), dict):
        content = content["network"]
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, and no state dict of a network.")
    return content
