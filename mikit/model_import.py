"""A network from a function that the user names: ``module:factory``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from torch import nn

from mikit.errors import InputError

__all__ = ["model_from"]


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
