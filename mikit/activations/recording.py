"""Running a model over data and collecting its activations, in memory or in a store."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

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

__all__ = ["Recording", "class_indices", "collect_activations", "record", "record_activations"]

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

    Recording does not change a training run: no gradient is computed, and the train flags of all submodules, the
    buffers and the random state of torch are restored, even after an exception.

    Args:
        model: The network; inputs are moved to the device of its first parameter.
        batches: Batches in the order of ``ids``. A tensor is passed unchanged; of a tuple or list (inputs, labels) the
            first entry is passed; a mapping is passed by keyword. A loader that shuffles is refused, because its order
            is not that of ``ids``.
        layers: Dotted module names, or a module and its readout, ``"layer2:pool4"``; layers are stored under these
            names.
        store: The store to append to.
        ids: One sample id per sample, ``(n,)``, integers or strings.
        phase: The phase of training, from 0, such as the epoch.
        labels: Class indices, ``(n,)``. If they are passed, the fraction of samples whose largest output is that of
            their label is noted for the phase as ``accuracy``, and n as ``accuracy_n``.
        readout: As for :func:`~mikit.activations.capture`; the store records its name.
        dtype: Floating-point type to store; by default that of the model.

    Returns:
        The number of samples recorded.

    Raises:
        InputError: If a layer or readout does not exist, if the layers give different numbers of samples for a batch,
            if there is not one id per sample, if labels are not class indices of the model's output, or if the store
            refuses the samples (see ``append``).

    Cost: One forward pass over the data; up to 256 MiB of activations are in memory before they are written.

    Pitfalls:
        Samples are matched to ids by order only. With random augmentation, samples of one id differ between networks:
        use the deterministic evaluation transform. If a recording of more than 256 MiB is interrupted, the samples
        written so far remain; ``store.discard(phase)`` removes them. :class:`~mikit.Recorder` does so by itself.

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
    return record(model, batches, store, Recording(tuple(layers), ids, phase, labels, readout, dtype))


@final
@dataclass(frozen=True)
class Recording:
    """What :func:`record_activations` records.

    ``alone`` means that the model is in evaluation mode and nothing else uses it, so that nothing has to be restored.
    A thread beside the training must set it, because restoring the random state would undo draws of the training.
    """

    layers: tuple[str, ...]
    ids: Any
    phase: int
    labels: Any = None
    readout: str | Readout | Mapping[str, str | Readout] = "pool"
    dtype: torch.dtype | None = None
    alone: bool = False


def record(model: nn.Module, batches: Iterable[Any], store: ActivationStore, what: Recording) -> int:
    """Run ``model`` over ``batches``, append to ``store``, and return the number of samples."""
    sample_ids = checked_ids(list(what.ids) if isinstance(what.ids, range) else what.ids, "ids")
    classes = None if what.labels is None else class_indices(what.labels, sample_ids.shape[0])
    names = {layer: found.name for layer, found in readouts_by_layer(what.readout, what.layers).items()}
    held: dict[str, list[Tensor]] = {layer: [] for layer in what.layers}
    rows = written = size = right = 0

    def append() -> None:
        nonlocal written, size
        joined = {layer: torch.cat(parts) for layer, parts in held.items()}
        store.append(joined, ids=sample_ids[written:rows], phase=what.phase, readouts=names)
        for parts in held.values():
            parts.clear()
        written, size = rows, 0

    with closing(_read_batches(model, batches, what)) as gathered:
        for acts, output in gathered:
            count = next(iter(acts.values())).shape[0]
            if rows + count > sample_ids.shape[0]:
                raise InputError(
                    f"The batches contain more samples than the {sample_ids.shape[0]} ids. Pass one id per sample, in "
                    "order."
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
            f"The batches contain {rows} samples, but there are {sample_ids.shape[0]} ids. Pass one id per sample, in "
            "order."
        )
    if classes is not None:  # Before the last append, so that a phase with all samples always has its accuracy.
        store.note(what.phase, accuracy=right / rows, accuracy_n=rows)
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

    As :func:`record_activations`, but without a store.

    Args:
        model: The network.
        batches: Batches, as for :func:`record_activations`.
        layers: Dotted module names, as for :func:`~mikit.activations.capture`.
        readout: As for :func:`~mikit.activations.capture`.
        dtype: Floating-point type of the result; by default that of the model.

    Returns:
        For each layer a tensor on the CPU, with the samples in the order of ``batches``.

    Raises:
        InputError: If a layer or readout does not exist, or there are no batches.

    Cost: One forward pass over the data, and twice the memory of the result.

    Pitfalls:
        There are no sample ids by which the pairing of two networks could be checked: use the same batches in the same
        order.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> collect_activations(model, torch.ones(6, 3).split(4), ["1"])["1"].shape
        torch.Size([6, 2])
    """
    held: dict[str, list[Tensor]] = {}
    what = Recording(tuple(layers), None, 0, readout=readout, dtype=dtype)
    with closing(_read_batches(model, batches, what)) as gathered:
        for acts, _ in gathered:
            for layer, value in acts.items():
                held.setdefault(layer, []).append(value)
    if not held:
        raise InputError("batches is empty.")
    return {layer: torch.cat(parts) for layer, parts in held.items()}


def _read_batches(
    model: nn.Module, batches: Iterable[Any], what: Recording
) -> Generator[tuple[dict[str, Tensor], Any], None, None]:
    """Yield activations and output of the model for each batch."""
    sampler = batches.sampler if isinstance(batches, DataLoader) else None
    if isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)):
        raise InputError(
            "The loader draws its samples in random order, so they cannot be matched to ids. Pass a loader with "
            "shuffle=False over the same data set."
        )
    device = next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), None)
    with (
        nullcontext() if what.alone else _evaluating(model, device),
        capture(model, what.layers, readout=what.readout, device="cpu", dtype=what.dtype) as acts,
    ):
        for batch in batches:
            with torch.no_grad():
                output = _run(model, batch, device)
            values = dict(acts)
            rows = {layer: value.shape[0] for layer, value in values.items()}
            if len(set(rows.values())) > 1:
                raise InputError(
                    f"The layers give different numbers of samples for one batch: {rows}. The first axis must be the "
                    "samples; check for layers with time or patches first."
                )
            yield values, output


@contextmanager
def _evaluating(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Set evaluation mode; afterwards restore train flags, buffers and torch's random state."""
    flags = [(module, module.training) for module in model.modules()]
    # Batch statistics do not change in evaluation mode, but a module may still count its calls or track its inputs.
    buffers = [
        (module, name, buffer, None if _unmade(buffer) else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    # An iterator over a DataLoader draws a seed for its workers even if there are none.
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        try:
            model.eval()
            yield
        finally:
            for module, flag in flags:
                module.training = flag
            for module, name, buffer, before in buffers:
                if before is None:  # Lazy: initialized by the first batch.
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
        InputError: If they are not integers from 0, one for each sample.
    """
    values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if values.shape != (rows,) or values.dtype.kind not in "iu":
        raise InputError(
            f"The labels have dtype {values.dtype} and shape {values.shape} for {rows} ids. Pass one class index per "
            "sample, in the order of the ids."
        )
    if values.min() < 0:
        raise InputError(f"The labels contain {values.min()}. Class indices start at 0.")
    return torch.from_numpy(values.astype(np.int64))


def _right(output: Any, classes: Tensor) -> int:
    """Return the number of samples whose largest output is that of their class."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != classes.shape[0]:
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
        raise InputError(
            f"The model returns a {type(output).__name__}{shape} for {classes.shape[0]} samples, which cannot be "
            "compared with labels: logits (n, classes) were expected. Leave out labels."
        )
    if int(classes.max()) >= logits.shape[1]:
        raise InputError(
            f"The labels contain {int(classes.max())}, but the model has {logits.shape[1]} classes, 0 to "
            f"{logits.shape[1] - 1}. Pass the class indices that it was trained on."
        )
    return int((logits.detach().argmax(1).cpu() == classes).sum())
