"""Names of layers to record: a module, or a module and how it is read, so that one is read in several ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mikit.activations.readout import Readout, parse_readout
from mikit.core.errors import InputError

__all__ = ["listed", "module_and_readout", "readouts_by_layer"]


def module_and_readout(layer: str) -> tuple[str, Readout | None]:
    """Return the module a layer names, and the readout it names after a colon, if there is one.

    Args:
        layer: ``"layer2"``, or ``"layer2:pool4"`` for what the readout ``"pool4"`` gives of it.

    Pitfalls:
        A module whose own name has a colon and the name of a readout after it cannot be named.

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
        return layer, None  # The module that is looked for has the colon in its name, or there is none.


def readouts_by_layer(
    readout: str | Readout | Mapping[str, str | Readout], layers: Sequence[str]
) -> dict[str, Readout]:
    """Return how each layer is read: as its own name says, and the others as ``readout`` says.

    Raises:
        InputError: If a readout does not exist, is missing for a layer, or is given for a layer that is not there or
            names its own.
    """
    own = {layer: module_and_readout(layer)[1] if isinstance(layer, str) else None for layer in layers}
    if not isinstance(readout, Mapping):
        common = parse_readout(readout)
        return {layer: common if found is None else found for layer, found in own.items()}
    if twice := [layer for layer in readout if own.get(layer) is not None]:
        raise InputError(f"readout names {listed(twice)}, which says itself how it is read. Leave it out of readout.")
    if missing := [layer for layer, found in own.items() if found is None and layer not in readout]:
        raise InputError(f"readout names none for the layers {listed(missing)}. Give one for each layer.")
    if extra := [layer for layer in readout if layer not in own]:
        raise InputError(f"readout names {listed(extra)}, which is not among the layers {listed(layers)}.")
    return {layer: parse_readout(readout[layer]) if found is None else found for layer, found in own.items()}


def listed(names: Sequence[str], word: str = "and") -> str:
    """Return names as a list in a sentence; of many only the first dozen."""
    shown = [repr(name) for name in names[:12]]
    if len(names) > 12:
        return f"{', '.join(shown)} and {len(names) - 12} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {word} {shown[-1]}"
