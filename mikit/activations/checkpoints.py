"""Activations from saved checkpoints: which file is which phase, weights and nothing else, phase after phase."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mikit.activations.layer_names import readouts_by_layer
from mikit.activations.readout import Readout
from mikit.activations.recorder import Recorder
from mikit.activations.store.hashing import hash_of_model
from mikit.activations.store.store import ActivationStore
from mikit.core.errors import InputError

__all__ = ["CHECKPOINT_ENDINGS", "RecordedCheckpoints", "find_checkpoints", "load_weights", "record_checkpoints"]

CHECKPOINT_ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors")
"""How the names of checkpoints end."""

_NESTED = ("network", "state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
_PLACE = "{phase}"
_FINGERPRINT = "weights_fingerprint"


@final
@dataclass(frozen=True)
class RecordedCheckpoints:
    """What :func:`record_checkpoints` did.

    Attributes:
        recorded: Phases recorded now.
        skipped: Phases that the store held already, from the same weights.
    """

    recorded: tuple[int, ...]
    skipped: tuple[int, ...]


def find_checkpoints(folder: str | os.PathLike[str], pattern: str = "*{phase}") -> dict[int, Path]:
    """Return the checkpoints in a folder by phase.

    Args:
        folder: The folder; folders inside are not searched.
        pattern: Name of the files. ``{phase}`` stands for the digits of the phase, ``*`` for anything. Any of the
            endings ``.pt``, ``.pth``, ``.ckpt`` and ``.safetensors`` may follow where the pattern has none.

    Returns:
        The files by phase, ascending.

    Raises:
        InputError: If there is no such folder, the pattern has not exactly one ``{phase}``, no file matches, or two
            files are one phase.

    Cost:
        One look at the folder.

    Pitfalls:
        With the default the number before the ending is the phase: in ``epoch=3-step=1200.ckpt`` that is the step. Pass
        ``"epoch={phase}-*"``.

    Source:
        None.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     for epoch in (0, 10, 2):
        ...         _ = Path(place, f"resnet18-epoch{epoch}.pt").write_bytes(b"")
        ...     [(phase, path.name) for phase, path in find_checkpoints(place).items()]
        [(0, 'resnet18-epoch0.pt'), (2, 'resnet18-epoch2.pt'), (10, 'resnet18-epoch10.pt')]
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"There is no folder {str(place)!r} of checkpoints. Check the path.")
    if pattern.count(_PLACE) != 1:
        raise InputError(
            f'The pattern "{pattern}" holds {_PLACE} {pattern.count(_PLACE)} times. Write it once, where file '
            f'names have the number of the phase: "epoch-{_PLACE}".'
        )
    named = re.escape(pattern).replace(re.escape(_PLACE), r"(?P<phase>\d+)").replace(re.escape("*"), ".*?")
    if not pattern.endswith((*CHECKPOINT_ENDINGS, "*")):
        named += f"(?:{'|'.join(map(re.escape, CHECKPOINT_ENDINGS))})"
    found: dict[int, Path] = {}
    names = sorted(entry.name for entry in place.iterdir() if entry.is_file())
    for name in names:
        match = re.fullmatch(named, name)
        if match is None or not name.endswith(CHECKPOINT_ENDINGS):
            continue
        phase = int(match["phase"])
        if phase in found:
            raise InputError(
                f'{found[phase].name} and {name} in {str(place)!r} are both phase {phase} by the pattern "{pattern}". '
                f'Write a pattern that only one of them matches: "epoch-{_PLACE}.pt".'
            )
        found[phase] = place / name
    if not found:
        held = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise InputError(
            f'No file in {str(place)!r} matches the pattern "{pattern}"; it holds {held or "no files"}. Checkpoints '
            f"are named by their phase and end in {', '.join(CHECKPOINT_ENDINGS)}."
        )
    return dict(sorted(found.items()))


def load_weights(path: str | os.PathLike[str], *, key: str | None = None) -> dict[str, Tensor]:
    """Return the state dict in a file; nothing but tensors and plain values is unpickled.

    Args:
        path: A ``.safetensors`` file, or a file of ``torch.save``: a state dict, or a dict that holds one under
            ``network`` (a checkpoint of :func:`~mikit.distillation.train_network`), ``state_dict``,
            ``model_state_dict`` or ``model``.
        key: Where else it stands.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        InputError: If the file is missing or damaged, holds pickled objects, or no state dict is found.

    Cost:
        Reads the file.

    Pitfalls:
        A checkpoint with arguments or a configuration beside the weights, saved as objects, is refused as a whole: save
        the weights alone where you trust it.

    Source:
        None.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": nn.Linear(2, 1).state_dict(), "epoch": 3}, folder + "/epoch3.pt")
        ...     list(load_weights(folder + "/epoch3.pt"))
        ['weight', 'bias']
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"There is no file {str(file)!r}. Check the path.")
    try:
        if file.suffix == ".safetensors":
            content: Any = dict(load_file(file))
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as cause:  # What damage raises is open-ended.
        raise InputError(
            f"{str(file)!r} cannot be read as weights ({type(cause).__name__}). Pass a .safetensors file, or one that "
            "torch.save wrote of tensors and plain values; pickled objects are not loaded."
        ) from cause
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            raise InputError(f"{str(file)!r} holds nothing under {key!r}; it holds {_listed(content)}.")
        content = content[key]
    elif not _is_state(content) and isinstance(content, Mapping):
        nested = [name for name in _NESTED if _is_state(content.get(name))]
        if len(nested) == 1:
            content = content[nested[0]]
    if not _is_state(content):
        raise InputError(
            f"{str(file)!r} holds no state dict: it holds {_listed(content)}. Name the entry that is one, or save "
            "model.state_dict()."
        )
    return {str(name): value for name, value in content.items()}


def record_checkpoints(
    model: nn.Module,
    checkpoints: Mapping[int, str | os.PathLike[str]],
    store: ActivationStore,
    images: Tensor | Mapping[str, Tensor],
    *,
    ids: Any,
    layers: Sequence[str],
    labels: Any = None,
    readout: str | Readout | Mapping[str, str | Readout] = "pool",
    dtype: torch.dtype | None = None,
    batch: int = 500,
    key: str | None = None,
    progress: Callable[[int, bool], None] | None = None,
) -> RecordedCheckpoints:
    """Record activations at every checkpoint of a finished training; one that was interrupted goes on.

    Args:
        model: A network of that architecture, on any device; it takes the weights of one checkpoint after the other.
        checkpoints: Files by phase, as :func:`find_checkpoints` gives them.
        store: Where to record.
        images: The inputs, ``(n, ...)``, or a mapping of tensors that is passed by keyword.
        ids: Sample ids, ``(n,)``.
        layers: Layers to record.
        labels: Class indices; they are set in the store, and accuracies are noted.
        readout: What to keep of an activation.
        dtype: Floating-point type to store.
        batch: Rows of a forward pass.
        key: Where a checkpoint holds its state dict, as for :func:`load_weights`.
        progress: Called before each phase with its number, and whether it is skipped.

    Returns:
        Which phases were recorded, and which stood in the store already.

    Raises:
        InputError: If a checkpoint cannot be read or does not fit the model, the store holds a phase of other weights,
            or other layers or readouts, or as :class:`~mikit.Recorder`. Phases before stay recorded.

    Cost:
        Reading the checkpoints, those of stored phases too, and one forward pass over the inputs for each new phase.

    Pitfalls:
        The store notes a number made from the weights with every phase; one recorded by other means has none, and is
        then recorded anew. The model keeps the weights of the last checkpoint.

    Source:
        None.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for epoch in (0, 5):
        ...         torch.save(model.state_dict(), f"{folder}/epoch-{epoch}.pt")
        ...     store = ActivationStore(folder + "/store", network="student")
        ...     record_checkpoints(
        ...         model, find_checkpoints(folder), store, torch.ones(4, 3), ids=range(4), layers=["0"]
        ...     )
        RecordedCheckpoints(recorded=(0, 5), skipped=())
    """
    told = progress or (lambda phase, skipped: None)
    model.eval()
    recorder = Recorder(
        store,
        model,
        images,
        ids=ids,
        layers=layers,
        schedule=list(checkpoints),
        labels=labels,
        readout=readout,
        dtype=dtype,
        batch=batch,
    )
    _require_same_layers(store, layers, readout)
    recorded, skipped = [], []
    missing = recorder.missing
    for phase in recorder.schedule:
        weights = load_weights(checkpoints[phase], key=key)
        _fill(model, weights, checkpoints[phase])
        fingerprint = _fingerprint(model)
        noted = store.notes.get(phase, {})
        held = noted.get(_FINGERPRINT)
        if phase not in missing and held is not None and held != fingerprint:
            raise InputError(
                f"Phase {phase} in the store {str(store.path)!r} was recorded from other weights than those of "
                f"{str(checkpoints[phase])!r}. Record them into a store of their own."
            )
        complete = phase not in missing and held is not None and (labels is None or "accuracy" in noted)
        told(phase, complete)
        if complete:
            skipped.append(phase)
            continue
        try:
            recorder(phase)
        except InputError as cause:
            raise InputError(f"The checkpoint {str(checkpoints[phase])!r} was not recorded. {cause}") from cause
        store.note(phase, **{_FINGERPRINT: fingerprint})
        recorded.append(phase)
    return RecordedCheckpoints(tuple(recorded), tuple(skipped))


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(entry, Tensor) for entry in value.values())


def _listed(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    names = [repr(str(name)) for name in content]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


def _fill(model: nn.Module, weights: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Give the model its weights; names may carry the prefix of a wrapper for distributed or compiled training."""
    known = set(model.state_dict())
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in weights) and not known & set(weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as cause:
        raise InputError(
            f"The weights in {str(path)!r} do not fit the model: {' '.join(str(cause).split())[:400]}. Give the "
            "factory of the network they are from."
        ) from cause


def _fingerprint(model: nn.Module) -> float:
    """Return a whole number made from the weights, small enough to be exact among the notes of a store."""
    return float(int(hash_of_model(model.state_dict())[:12], 16))


def _require_same_layers(
    store: ActivationStore, layers: Collection[str], readout: str | Readout | Mapping[str, str | Readout]
) -> None:
    if not store.layers:
        return
    if set(store.layers) != set(layers):
        raise InputError(
            f"The store {str(store.path)!r} holds the layers {list(store.layers)}, not {list(layers)}. Name the same "
            "layers to go on with it, or another folder."
        )
    wanted_of = readouts_by_layer(readout, tuple(layers))
    for layer in store.layers:
        wanted = wanted_of[layer].name
        if wanted != store.readout(layer):
            raise InputError(
                f'The store {str(store.path)!r} holds layer {layer!r} by the readout "{store.readout(layer)}", not '
                f'"{wanted}". Name the same to go on with it, or another folder.'
            )
