"""Loading a teacher from a file of weights."""

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
            state dict or a ``checkpoint.pt`` of the trainer, of which only tensors and plain values are unpickled. The
            width of the network is inferred from the weights.
        data: The images that it will classify.

    Returns:
        The network.

    Raises:
        InputError: If the file cannot be read, contains no weights of a ResNet8 or weights that are not finite, or was
            trained for images with other channels or classes.

    Pitfalls:
        The file does not say which images the network was trained on. If they include test images of ``data``, the
        accuracy of the teacher is too high.

    Example:
        >>> load_teacher("run/networks/teacher.safetensors", data)  # doctest: +SKIP
    """
    file = Path(path)
    state = _state(file)
    if missing := [name for name in (_STEM, _LAST) if not isinstance(state.get(name), Tensor)]:
        raise InputError(
            f'{file} contains no "{missing[0]}", so it is not a state dict of a mikit.models.ResNet8; it contains '
            f"{', '.join(map(repr, list(state)[:4])) or 'nothing'}. Use networks/teacher.safetensors of an earlier run."
        )
    channels, (classes, widest) = state[_STEM].shape[1], state[_LAST].shape
    for name, found, needed in (("channels", channels, data.channels), ("classes", classes, data.classes)):
        if found != needed:
            raise InputError(
                f"The teacher in {file} was trained for {found} {name}, but {data.name} has {needed}. Pass the data it "
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
    if infinite := [name for name, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise InputError(f'"{infinite[0]}" in {file} is not finite: the training of the teacher diverged. Use another.')
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
            "contains only a state dict; pickled objects are not loaded."
        ) from cause
    if isinstance(content, dict) and isinstance(content.get("network"), dict):
        content = content["network"]
    if not isinstance(content, dict):
        raise InputError(f"{file} contains a {type(content).__name__}, not a state dict of a network.")
    return content
