"""The parameters of losses in an optimizer: their groups, and a check that none is missing."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from mikit.core.errors import InputError

__all__ = ["check_optimizer", "groups_of"]


def check_optimizer(optimizer: Optimizer, *modules: nn.Module) -> None:
    """Raise unless ``optimizer`` contains every trainable parameter of ``modules`` exactly once.

    Args:
        optimizer: The optimizer that trains them.
        *modules: The losses, and optionally the student.

    Raises:
        InputError: If a parameter is missing and would never be trained, or occurs twice and would be updated twice in
            a step.

    Cost:
        One pass over the parameters.

    Pitfalls:
        Call it after the losses and the optimizer are built. It cannot see a parameter that no module has registered,
        such as one in a plain list.

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
    # By identity: equality of tensors compares their values, and two parameters may start with the same.
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    present = set(given)
    # torch refuses a parameter in two groups, but only warns of one that is twice in a group.
    twice = len(given) - len(present)
    if twice:
        raise InputError(f"The optimizer contains {twice} parameters twice; each step would update them twice.")
    for module in modules:
        missing = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in present]
        if missing:
            shown = ", ".join(missing[:5]) + (" and more" if len(missing) > 5 else "")
            raise InputError(
                f"The optimizer lacks {len(missing)} trainable parameters of {type(module).__name__} ({shown}), so "
                "they would never be trained. Build it from [{'params': student.parameters()}, *loss.param_groups()]."
            )


def groups_of(loss: nn.Module) -> list[dict[str, Any]]:
    """Return the parameter groups of a loss: its ``param_groups()``, or its trainable parameters in one group."""
    param_groups = getattr(loss, "param_groups", None)
    if param_groups is not None:
        groups: list[dict[str, Any]] = param_groups()
        return groups
    trained = [p for p in loss.parameters() if p.requires_grad]
    return [{"params": trained}] if trained else []
