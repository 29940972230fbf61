"""The mistake most often made with losses that learn: their parameters never reach the optimiser."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from mikit.core.errors import InputError

__all__ = ["check_optimizer"]


def check_optimizer(optimizer: Optimizer, *modules: nn.Module) -> None:
    """Raise unless ``optimizer`` holds every trainable parameter of ``modules``, each once.

    Args:
        optimizer: The optimiser that is to train them.
        *modules: The losses, and the student if you like.

    Raises:
        InputError: If a parameter would never train, or stands there twice and would be stepped twice.

    Cost:
        One pass over the parameters.

    Pitfalls:
        Call it after the losses are built and after the optimiser is made. It cannot see a parameter that no module
        has registered (one kept in a plain list, say).

    Example:
        >>> import mikit, torch
        >>> student = torch.nn.Linear(4, 3)
        >>> kd = mikit.VID.between(torch.randn(64, 3), torch.randn(64, 5))
        >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        >>> check_optimizer(optimizer, student, kd)
        Traceback (most recent call last):
        mikit.core.errors.InputError: ...
        >>> optimizer = torch.optim.SGD([{"params": student.parameters()}, *kd.param_groups()], lr=0.1)
        >>> check_optimizer(optimizer, student, kd)
    """
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    twice = len(held) - len(set(held))
    if twice:
        raise InputError(f"The optimiser holds {twice} parameters twice; each step would move them twice.")
    for module in modules:
        missing = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in set(held)]
        if missing:
            shown = ", ".join(missing[:5]) + (" and more" if len(missing) > 5 else "")
            raise InputError(
                f"The optimiser lacks {len(missing)} trainable parameters of {type(module).__name__} ({shown}), so "
                "they would never train. Build it from [{'params': student.parameters()}, *loss.param_groups()]."
            )
