"""A copy of a network that runs beside its training, on weights that were set aside in a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.core.files import sync_folder, write_atomically

__all__ = ["Replica", "unwrapped", "write_weights"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside one that is compiled or wrapped for distributed training.

    The inner network runs without the exchange between processes and without compilation, with the same weights.

    Example:
        >>> inner = nn.Linear(2, 1)
        >>> unwrapped(inner) is inner
        True
    """
    while True:
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        inner = getattr(inner, "_orig_mod", inner)  # What torch.compile gives.
        if inner is model or not isinstance(inner, nn.Module):
            return model
        model = inner


def write_weights(model: nn.Module, path: Path) -> None:
    """Write a copy of parameters and buffers to ``path``, whole or not at all, and through to the disk.

    Raises:
        InputError: If the state of the model holds something besides tensors, or the disk refuses.
    """
    content = save({name: value.cpu().contiguous().clone() for name, value in _tensors(model).items()})
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
        sync_folder(path.parent)
    except OSError as cause:
        raise InputError(f"The weights could not be set aside in {str(path)!r}: {cause}.") from cause


@final
class Replica:
    """A copy of a network in evaluation mode that shares nothing with it.

    Args:
        model: The network.
        trial: Runs a network on a few rows.

    Attributes:
        network: The copy.

    Raises:
        InputError: If the network cannot be copied, if a hook of it would act on things outside of the copy, if its
            state holds something besides tensors, or if it draws random numbers in evaluation mode: a thread that
            draws beside the training would change what the training draws.

    Cost:
        The memory of the weights, on their device.
    """

    def __init__(self, model: nn.Module, trial: Callable[[nn.Module], object]) -> None:
        _tensors(model)
        try:
            self.network = copy.deepcopy(model)
        except Exception as cause:  # Whatever a module holds that cannot be copied.
            raise InputError(
                f"The network cannot be copied ({type(cause).__name__}: {cause}), so it cannot be recorded in the "
                "background. Pass background=False."
            ) from cause
        _refuse_shared_hooks(model, self.network)
        self.network.eval().requires_grad_(False)
        for parameter in self.network.parameters():
            parameter.grad = None
        if _draws(self.network, trial):
            raise InputError(
                "The network draws random numbers in evaluation mode, which in the background would change those of "
                "the training. Pass background=False."
            )

    def load(self, path: Path) -> None:
        """Take the weights from a file.

        Raises:
            InputError: If it cannot be read, or its weights are those of another network.
        """
        try:
            state = load_file(path)
        except Exception as cause:  # What damage raises is open-ended.
            raise InputError(
                f"The weights in {str(path)!r} cannot be read ({type(cause).__name__}: {cause}). Delete the file to "
                "give that phase up."
            ) from cause
        try:
            self.network.load_state_dict(state)
        except RuntimeError as cause:
            raise InputError(
                f"The weights in {str(path)!r} do not fit this network: {' '.join(str(cause).split())[:300]}. Record "
                "with the network they are from, or delete the file to give that phase up."
            ) from cause


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"The entry {name!r} of the network's state is a {type(value).__name__} and no tensor, so the network "
                "cannot be recorded in the background. Pass background=False."
            )
        if isinstance(value, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
            raise InputError(
                f"{name!r} has no shape yet: its layer is lazy. Run the network once before making the recorder."
            )
    return state


def _refuse_shared_hooks(model: nn.Module, copied: nn.Module) -> None:
    for (name, one), other in zip(model.named_modules(), copied.modules(), strict=True):
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            hooks: Any = zip(getattr(one, kind).values(), getattr(other, kind).values(), strict=True)
            if any(first is second for first, second in hooks):
                where = f"The module {name!r}" if name else "The network"
                raise InputError(
                    f"{where} has a hook that a copy of it shares, so the recorder would call it beside the training. "
                    "Make the recorder before the hooks are registered, or pass background=False."
                )


def _draws(network: nn.Module, trial: Callable[[nn.Module], object]) -> bool:
    devices = sorted({tensor.device.index or 0 for tensor in network.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        before = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
        trial(network)
        after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    return any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
