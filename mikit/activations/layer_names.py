"""Names of readouts and layers: a layer is a module, or a module and its readout, as in ``"layer2:pool4"``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from mikit.activations.readout import FirstToken, Flatten, Grid, Pool, Projection, Readout, Tokens, Whole
from mikit.core.errors import InputError

__all__ = ["READOUT_NAMES", "listed", "module_and_readout", "parse_readout", "readouts_by_layer"]

READOUT_NAMES = (
    "pool",
    "flatten",
    "tokens",
    "cls",
    "whole",
    "pool<g>",
    "projection:<width>",
    "projection:<width>@<seed>",
)
"""The names that :func:`parse_readout` knows; ``<...>`` stands for an integer."""

_FIXED: dict[str, Callable[[], Readout]] = {
    "pool": Pool,
    "flatten": Flatten,
    "tokens": Tokens,
    "cls": FirstToken,
    "whole": Whole,
}
_GRID = re.compile(r"pool([1-9][0-9]{0,3})")
_PROJECTION = re.compile(r"projection:([1-9][0-9]{0,8})(?:@(0|[1-9][0-9]{0,18}))?")


def parse_readout(name: str | Readout) -> Readout:
    """Return the readout with a name; a readout is returned unchanged.

    Args:
        name: One of :data:`READOUT_NAMES`.

    Returns:
        The readout.

    Raises:
        InputError: If there is no such readout.

    Cost: None.

    Pitfalls:
        ``"pool4"`` is a grid of 4 by 4 cells, not pooling to four features.

    Example:
        >>> parse_readout("projection:64")
        Projection(width=64, seed=0)
        >>> parse_readout("pool4").name
        'pool4'
    """
    if isinstance(name, Readout):
        return name
    if isinstance(name, str):
        if name in _FIXED:
            return _FIXED[name]()
        if match := _GRID.fullmatch(name):
            return Grid(int(match[1]))
        if match := _PROJECTION.fullmatch(name):
            return Projection(int(match[1]), int(match[2] or 0))
    raise InputError(f'There is no readout "{name}". The readouts are {", ".join(READOUT_NAMES)}.')


def module_and_readout(layer: str) -> tuple[str, Readout | None]:
    """Return the module of a layer, and the readout after a colon if there is one.

    A module whose own name ends in a colon and the name of a readout cannot be named.

    Example:
        >>> module_and_readout("layer2:projection:64")
        ('layer2', Projection(width=64, seed=0))
        >>> module_and_readout("layer2"), module_and_readout("layer2:7")
        (('layer2', None), ('layer2:7', None))
    """
    module, colon, name = layer.partition(":")
    if not colon:
        return layer, None
    try:
        return module, parse_readout(name)
    except InputError:
        return layer, None  # The colon may be part of the module's name.


def readouts_by_layer(
    readout: str | Readout | Mapping[str, str | Readout], layers: Sequence[str]
) -> dict[str, Readout]:
    """Return the readout of each layer: the one in its name, or else that of ``readout``.

    Raises:
        InputError: If a readout does not exist, is missing for a layer, or is passed for an unknown layer or one that
            has a readout in its name.
    """
    named = {layer: module_and_readout(layer)[1] if isinstance(layer, str) else None for layer in layers}
    if not isinstance(readout, Mapping):
        common = parse_readout(readout)
        return {layer: common if found is None else found for layer, found in named.items()}
    if twice := [layer for layer in readout if named.get(layer) is not None]:
        raise InputError(f"readout names {listed(twice)}, whose name contains its readout. Leave it out of readout.")
    if missing := [layer for layer, found in named.items() if found is None and layer not in readout]:
        raise InputError(f"readout has no entry for the layers {listed(missing)}. Pass one for each layer.")
    if extra := [layer for layer in readout if layer not in named]:
        raise InputError(f"readout names {listed(extra)}, which is not among the layers {listed(layers)}.")
    return {layer: parse_readout(readout[layer]) if found is None else found for layer, found in named.items()}


def listed(names: Sequence[str], word: str = "and") -> str:
    """Return names as a list in a sentence; only the first twelve of many."""
    shown = [repr(name) for name in names[:12]]
    if len(names) > 12:
        return f"{', '.join(shown)} and {len(names) - 12} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {word} {shown[-1]}"
