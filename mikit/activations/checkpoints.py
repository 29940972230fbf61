"""Recording activations from saved checkpoints."""

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
"""Endings of the names of checkpoints."""

_NESTED = ("network", "state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
_PLACE = "{phase}"
_FINGERPRINT = "weights_fingerprint"


@final
@dataclass(frozen=True)
class RecordedCheckpoints:
    """The result of :func:`record_checkpoints`.

    Attributes:
        recorded: Phases recorded by this call.
        skipped: Phases that were already in the store, from the same weights.
    """

    recorded: tuple[int, ...]
    skipped: tuple[int, ...]


def find_checkpoints(folder: str | os.PathLike[str], pattern: str = "*{phase}") -> dict[int, Path]:
    """Return the checkpoints in a folder by phase.

    Args:
        folder: The folder; subfolders are not searched.
        pattern: Pattern of the file names. ``{phase}`` matches the digits of the phase, ``*`` anything. If the pattern
            has no ending, each of ``.pt``, ``.pth``, ``.ckpt`` and ``.safetensors`` matches.

    Returns:
        The files by phase, in ascending order.

    Raises:
        InputError: If there is no such folder, the pattern does not contain exactly one ``{phase}``, no file matches,
            or two files have the same phase.

    Cost:
        Lists the folder once.

    Pitfalls:
        By default the number before the ending is the phase: in ``epoch=3-step=1200.ckpt`` that is the step. Pass
        ``"epoch={phase}-*"`` to use the epoch.

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
            f'The pattern "{pattern}" contains {_PLACE} {pattern.count(_PLACE)} times. Write it once, in place of the '
            f'number of the phase: "epoch-{_PLACE}".'
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
                f'{found[phase].name} and {name} in {str(place)!r} are both phase {phase} of the pattern "{pattern}". '
                f'Use a pattern that matches only one of them: "epoch-{_PLACE}.pt".'
            )
        found[phase] = place / name
    if not found:
        present = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise InputError(
            f'No file in {str(place)!r} matches the pattern "{pattern}"; it contains {present or "no files"}. The name '
            f"of a checkpoint must contain its phase and end in {', '.join(CHECKPOINT_ENDINGS)}."
        )
    return dict(sorted(found.items()))


def load_weights(path: str | os.PathLike[str], *, key: str | None = None) -> dict[str, Tensor]:
    """Return the state dict in a file; only tensors and plain values are unpickled.

    Args:
        path: A ``.safetensors`` file, or a file of ``torch.save``: a state dict, or a dict that contains one under
            ``network`` (a checkpoint of :func:`~mikit.distillation.train_network`), ``state_dict``,
            ``model_state_dict`` or ``model``.
        key: Another key of the state dict.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        InputError: If the file is missing or damaged, contains pickled objects, or contains no state dict.

    Cost:
        Reads the file.

    Pitfalls:
        A checkpoint that also contains Python objects, such as parsed arguments, is refused completely. If you trust
        the file, load it yourself and save only the weights.

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
    except Exception as cause:  # A damaged file can raise almost any exception.
        raise InputError(
            f"{str(file)!r} cannot be read as weights ({type(cause).__name__}). Pass a .safetensors file, or a file of "
            "torch.save with tensors and plain values only; pickled objects are not loaded."
        ) from cause
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            raise InputError(f"{str(file)!r} has no key {key!r}; it contains {_listed(content)}.")
        content = content[key]
    elif not _is_state(content) and isinstance(content, Mapping):
        nested = [name for name in _NESTED if _is_state(content.get(name))]
        if len(nested) == 1:
            content = content[nested[0]]
    if not _is_state(content):
        raise InputError(
            f"{str(file)!r} contains no state dict: it contains {_listed(content)}. Pass the key of the state dict, or "
            "save model.state_dict()."
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
    """Record activations at every checkpoint of a finished training, or resume an interrupted recording.

    Args:
        model: A network of that architecture, on any device; the weights of each checkpoint are loaded into it.
        checkpoints: Files by phase, as :func:`find_checkpoints` returns them.
        store: The store.
        images: The inputs, ``(n, ...)``, or a mapping of tensors that is passed by keyword.
        ids: Sample ids, ``(n,)``.
        layers: Layers to record.
        labels: Class indices; they are set in the store, and accuracies are noted.
        readout: How activations are pooled, as for :func:`~mikit.capture`.
        dtype: Floating-point type to store.
        batch: Samples per forward pass.
        key: Key of the state dict in a checkpoint, as for :func:`load_weights`.
        progress: Called before each phase with its number and whether it is skipped.

    Returns:
        The phases that were recorded, and those that were already in the store.

    Raises:
        InputError: If a checkpoint cannot be read or does not fit the model, the store contains a phase of other
            weights, or other layers or readouts, or as :class:`~mikit.Recorder`. Earlier phases stay recorded.

    Cost:
        Reading all checkpoints, and one forward pass over the inputs for each new phase.

    Pitfalls:
        The store notes a fingerprint of the weights for every phase. A phase without one, recorded by other means, is
        recorded again. The model keeps the weights of the last checkpoint.

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
    report = progress or (lambda phase, skipped: None)
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
        stored = noted.get(_FINGERPRINT)
        if phase not in missing and stored is not None and stored != fingerprint:
            raise InputError(
                f"Phase {phase} in the store {str(store.path)!r} was recorded from other weights than those of "
                f"{str(checkpoints[phase])!r}. Use another store for these checkpoints."
            )
        complete = phase not in missing and stored is not None and (labels is None or "accuracy" in noted)
        report(phase, complete)
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
    """Load weights; names may have the prefix of a wrapper for distributed or compiled training."""
    known = set(model.state_dict())
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in weights) and not known & set(weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as cause:
        raise InputError(
            f"The weights in {str(path)!r} do not fit the model: {' '.join(str(cause).split())[:400]}. Pass the "
            "network that they belong to."
        ) from cause


def _fingerprint(model: nn.Module) -> float:
    """Return a hash of the weights as an integer that a float represents exactly, for the notes of a store."""
    return float(int(hash_of_model(model.state_dict())[:12], 16))


def _require_same_layers(
    store: ActivationStore, layers: Collection[str], readout: str | Readout | Mapping[str, str | Readout]
) -> None:
    if not store.layers:
        return
    if set(store.layers) != set(layers):
        raise InputError(
            f"The store {str(store.path)!r} contains the layers {list(store.layers)}, not {list(layers)}. Pass the "
            "same layers to resume, or another folder."
        )
    wanted_of = readouts_by_layer(readout, tuple(layers))
    for layer in store.layers:
        wanted = wanted_of[layer].name
        if wanted != store.readout(layer):
            raise InputError(
                f'The store {str(store.path)!r} contains layer {layer!r} with the readout "{store.readout(layer)}", '
                f'not "{wanted}". Pass the same readout to resume, or another folder.'
            )
