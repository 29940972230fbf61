"""A copy of a network that runs during its training, with weights from a file."""

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

    The inner network has the same weights and runs without communication between processes and without compilation.

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
    """Write a copy of parameters and buffers to ``path``, atomically and synced to the disk.

    Raises:
        InputError: If the state of the model contains something besides tensors, or the disk cannot be written.
    """
    content = save({name: value.cpu().contiguous().clone() for name, value in _tensors(model).items()})
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
        sync_folder(path.parent)
    except OSError as cause:
        raise InputError(f"The weights could not be written to {str(path)!r}: {cause}.") from cause


@final
class Replica:
    """A copy of a network in evaluation mode that shares nothing with it.

    ``trial`` runs a network on a few samples, to find out whether it draws random numbers: a thread that draws during
    the training would change what the training draws.

    Raises:
        InputError: If the network cannot be copied, one of its hooks would act on objects outside the copy, its state
            contains something besides tensors, or it draws random numbers in evaluation mode.
    """

    def __init__(self, model: nn.Module, trial: Callable[[nn.Module], object]) -> None:
        _tensors(model)
        try:
            self.network = copy.deepcopy(model)
        except Exception as cause:  # A module may contain anything.
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
        """Load the weights from a file.

        Raises:
            InputError: If it cannot be read, or its weights belong to another network.
        """
        try:
            state = load_file(path)
        except Exception as cause:  # A damaged file can raise almost any exception.
            raise InputError(
                f"The weights in {str(path)!r} cannot be read ({type(cause).__name__}: {cause}). Delete the file to "
                "skip that phase."
            ) from cause
        try:
            self.network.load_state_dict(state)
        except RuntimeError as cause:
            raise InputError(
                f"The weights in {str(path)!r} do not fit this network: {' '.join(str(cause).split())[:300]}. Record "
                "with the network they belong to, or delete the file to skip that phase."
            ) from cause


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"The entry {name!r} of the network's state is a {type(value).__name__}, not a tensor, so the network "
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
            # deepcopy does not copy functions, so a hook of the copy may still refer to the original network.
            if any(first is second for first, second in hooks):
                where = f"The module {name!r}" if name else "The network"
                raise InputError(
                    f"{where} has a hook that a copy of it shares, so the recorder would call it during the training. "
                    "Make the recorder before the hooks are registered, or pass background=False."
                )


def _draws(network: nn.Module, trial: Callable[[nn.Module], object]) -> bool:
    devices = sorted({tensor.device.index or 0 for tensor in network.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        before = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
        trial(network)
        after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    return any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
