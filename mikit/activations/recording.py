"""Running a model over data and gathering its activations, in memory or in a store."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from mikit.activations.capturing import capture
from mikit.activations.layer_names import readouts_by_layer
from mikit.activations.readout import Readout
from mikit.activations.store.store import ActivationStore
from mikit.activations.store.validation import checked_ids
from mikit.core.errors import InputError

__all__ = ["class_indices", "collect_activations", "record_activations", "record_rows"]

_BYTES_HELD = 256 << 20  # Activations held in memory before they are appended to a store.


def record_activations(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str],
    store: ActivationStore,
    *,
    ids: Any,
    phase: int,
    labels: Any = None,
    readout: str | Readout | Mapping[str, str | Readout] = "pool",
    dtype: torch.dtype | None = None,
) -> int:
    """Run ``model`` over ``batches`` in evaluation mode and append the activations of ``layers`` to ``store``.

    Nothing of the training run changes: no gradient is recorded, every submodule gets its own train flag back, every
    buffer its values, and torch its random state, also when something raises.

    Args:
        model: The network; inputs are moved to the device of its first parameter.
        batches: Batches in the order of ``ids``. A tensor is passed on as it is; of a tuple or list (inputs, labels)
            the first entry; a mapping by keyword. A loader that shuffles is refused: its order is not that of ``ids``.
        layers: Dotted module names, or a module and its readout, ``"layer2:pool4"``; under that name it is stored.
        store: Where to append.
        ids: One sample id per row, ``(n,)``, whole numbers or strings.
        phase: Which phase of training this is, from 0; an epoch, say.
        labels: Class indices, ``(n,)``. With them the share of rows whose largest output is that of their label is
            noted for the phase as ``accuracy``, and n as ``accuracy_n``.
        readout: As for :func:`~mikit.activations.capture`; recorded in the store by name.
        dtype: Floating-point type to store; by default as the model gives it.

    Returns:
        The number of rows recorded.

    Raises:
        InputError: If a layer or readout does not exist, if a layer gives another number of rows than the batch before
            it, if there are more or fewer rows than ids, if labels are no class indices of the model's output, or if
            the store refuses the rows (see ``append``).

    Cost: One forward pass over the data; up to 256 MiB of activations are held before they are written.

    Pitfalls:
        Rows are matched to ids by order alone. Augmentation that is drawn anew makes rows of one id differ between
        networks: use the plain evaluation transform. A recording that stops half-way, above 256 MiB, leaves the rows
        written so far; ``store.discard(phase)`` clears them. :class:`~mikit.Recorder` does that by itself.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ActivationStore(folder + "/student", network="student", seed=0)
        ...     record_activations(model, torch.ones(6, 3).split(2), ["0"], store, ids=range(6), phase=0)
        ...     store.shape("0", 0)
        6
        (6, 2)
    """
    return record_rows(
        model, batches, layers, store, ids=ids, phase=phase, labels=labels, readout=readout, dtype=dtype, alone=False
    )


def record_rows(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str],
    store: ActivationStore,
    *,
    ids: Any,
    phase: int,
    labels: Any,
    readout: str | Readout | Mapping[str, str | Readout],
    dtype: torch.dtype | None,
    alone: bool,
) -> int:
    """Do what :func:`record_activations` does.

    Args:
        model: The network.
        batches: Batches.
        layers: Dotted module names.
        store: Where to append.
        ids: Sample ids.
        phase: The phase.
        labels: Class indices, or None.
        readout: What to keep.
        dtype: Type to store.
        alone: Nobody else uses ``model``, and it is in evaluation mode: nothing has to be put back. A thread beside
            the training must say so, because putting back the random state would undo the draws of the training.
    """
    sample_ids = checked_ids(list(ids) if isinstance(ids, range) else ids, "ids")
    classes = None if labels is None else class_indices(labels, sample_ids.shape[0])
    names = {layer: how.name for layer, how in readouts_by_layer(readout, tuple(layers)).items()}
    held: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    rows = written = size = right = 0

    def append() -> None:
        nonlocal written, size
        joined = {layer: torch.cat(parts) for layer, parts in held.items()}
        store.append(joined, ids=sample_ids[written:rows], phase=phase, readouts=names)
        for parts in held.values():
            parts.clear()
        written, size = rows, 0

    with closing(_read_batches(model, batches, layers, readout, dtype, alone=alone)) as gathered:
        for acts, output in gathered:
            count = next(iter(acts.values())).shape[0]
            if rows + count > sample_ids.shape[0]:
                raise InputError(
                    f"The batches hold more rows than the {sample_ids.shape[0]} ids. Pass one id per row, in order."
                )
            if classes is not None:
                right += _right(output, classes[rows : rows + count])
            rows += count
            for layer, value in acts.items():
                held[layer].append(value)
                size += value.nbytes
            if size >= _BYTES_HELD and rows < sample_ids.shape[0]:
                append()
    if rows < sample_ids.shape[0]:
        raise InputError(
            f"The batches hold {rows} rows, but there are {sample_ids.shape[0]} ids. Pass one id per row, in order."
        )
    if classes is not None:  # Before the last rows, so that a phase with all its rows has its accuracy.
        store.note(phase, accuracy=right / rows, accuracy_n=rows)
    append()
    return rows


def collect_activations(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str],
    *,
    readout: str | Readout | Mapping[str, str | Readout] = "pool",
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Run ``model`` over ``batches`` in evaluation mode and return the activations of ``layers`` in memory.

    The same as :func:`record_activations` without a store.

    Args:
        model: The network.
        batches: Batches, as for :func:`record_activations`.
        layers: Dotted module names, as for :func:`~mikit.activations.capture`.
        readout: As for :func:`~mikit.activations.capture`.
        dtype: Floating-point type to keep.

    Returns:
        For each layer a tensor on the CPU with one row per sample, in the order of ``batches``.

    Raises:
        InputError: If a layer or readout does not exist, or there are no batches.

    Cost: One forward pass over the data, and twice the memory of what is returned.

    Pitfalls:
        There are no sample ids to check the pairing of two networks by: use the same batches, in the same order.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> collect_activations(model, torch.ones(6, 3).split(4), ["1"])["1"].shape
        torch.Size([6, 2])
    """
    held: dict[str, list[Tensor]] = {}
    with closing(_read_batches(model, batches, layers, readout, dtype, alone=False)) as gathered:
        for acts, _ in gathered:
            for layer, value in acts.items():
                held.setdefault(layer, []).append(value)
    if not held:
        raise InputError("There are no batches to run the model on.")
    return {layer: torch.cat(parts) for layer, parts in held.items()}


def _read_batches(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str],
    readout: str | Readout | Mapping[str, str | Readout],
    dtype: torch.dtype | None,
    *,
    alone: bool,
) -> Generator[tuple[dict[str, Tensor], Any], None, None]:
    sampler = batches.sampler if isinstance(batches, DataLoader) else None
    if isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)):
        raise InputError(
            "The loader draws its samples in random order, so its rows cannot be told apart. Pass a loader with "
            "shuffle=False over the same data set."
        )
    device = next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), None)
    with (
        nullcontext() if alone else _evaluating(model, device),
        capture(model, layers, readout=readout, device="cpu", dtype=dtype) as acts,
    ):
        for batch in batches:
            with torch.no_grad():
                output = _run(model, batch, device)
            values = dict(acts)
            rows = {layer: value.shape[0] for layer, value in values.items()}
            if len(set(rows.values())) > 1:
                raise InputError(
                    f"The layers give different numbers of rows for one batch: {rows}. The first axis must be the "
                    "samples; look for layers that put time or patches first."
                )
            yield values, output


@contextmanager
def _evaluating(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Put the model into evaluation mode; afterwards restore train flags, buffers and torch's random state."""
    flags = [(module, module.training) for module in model.modules()]
    # Batch statistics stay in evaluation mode, but a module may count its calls, or follow its inputs, all the same.
    buffers = [
        (module, name, buffer, None if _unmade(buffer) else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    # An iterator over a DataLoader draws a seed for its workers even where there are none.
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        try:
            model.eval()
            yield
        finally:
            for module, flag in flags:
                module.training = flag
            for module, name, buffer, before in buffers:
                if before is None:  # Lazy, and made by its first batch.
                    continue
                module._buffers[name] = buffer
                if not torch.equal(buffer, before):
                    with torch.no_grad():
                        buffer.copy_(before)


def _unmade(buffer: Tensor) -> bool:
    return isinstance(buffer, nn.parameter.UninitializedBuffer)


def _run(model: nn.Module, batch: Any, device: torch.device | None) -> Any:
    if isinstance(batch, Mapping):
        return model(**{key: _moved(value, device) for key, value in batch.items()})
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise InputError("A batch is an empty tuple. Pass the inputs, or (inputs, labels).")
        batch = batch[0]
    return model(_moved(batch, device))


def _moved(value: Any, device: torch.device | None) -> Any:
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def class_indices(labels: Any, rows: int) -> Tensor:
    """Return labels as class indices, ``(n,)``.

    Raises:
        InputError: If they are not whole numbers from 0, one for each row.
    """
    values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if values.shape != (rows,) or values.dtype.kind not in "iu":
        raise InputError(
            f"The labels have dtype {values.dtype} and shape {values.shape} for {rows} ids. Pass one class index per "
            "row, in the order of the ids."
        )
    if values.min() < 0:
        raise InputError(f"The labels hold {values.min()}. Class indices count from 0.")
    return torch.from_numpy(values.astype(np.int64))


def _right(output: Any, classes: Tensor) -> int:
    """Return how many rows of the output are largest at their class."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != classes.shape[0]:
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
        raise InputError(
            f"The model gives a {type(output).__name__}{shape} for {classes.shape[0]} rows, so labels have nothing to "
            "be compared with: logits (n, classes) were expected. Leave out labels."
        )
    if int(classes.max()) >= logits.shape[1]:
        raise InputError(
            f"The labels hold {int(classes.max())}, but the model gives {logits.shape[1]} classes, 0 to "
            f"{logits.shape[1] - 1}. Pass the class indices it was trained on."
        )
    return int((logits.detach().argmax(1).cpu() == classes).sum())
