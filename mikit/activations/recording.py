"""Running a model over data and gathering its activations, in memory or in a store."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from mikit.activations.admission import checked_ids
from mikit.activations.capturing import capture
from mikit.activations.readout import Readout, parse_readout
from mikit.activations.store import ActivationStore
from mikit.errors import InputError

__all__ = ["collect_activations", "record_activations"]

_BYTES_HELD = 256 << 20  # Activations held in memory before they are appended to a store.


def record_activations(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str],
    store: ActivationStore,
    *,
    ids: Any,
    phase: int,
    readout: str | Readout | Mapping[str, str | Readout] = "pool",
    dtype: torch.dtype | None = None,
) -> int:
    """Run ``model`` over ``batches`` in evaluation mode and append the activations of ``layers`` to ``store``.

    Nothing of the training run changes: no gradient is recorded, every submodule gets its own train flag back, batch
    statistics stay, and so does torch's random state, also when something raises.

    Args:
        model: The network; inputs are moved to the device of its first parameter.
        batches: Batches in the order of ``ids``. A tensor is passed on as it is; of a tuple or list (inputs, labels)
            the first entry; a mapping by keyword. A loader that shuffles is refused: its order is not that of ``ids``.
        layers: Dotted module names.
        store: Where to append.
        ids: One sample id per row, ``(n,)``, whole numbers or strings.
        phase: Which phase of training this is, from 0; an epoch, say.
        readout: As for :func:`~mikit.activations.capture`; recorded in the store by name.
        dtype: Floating-point type to store; by default as the model gives it.

    Returns:
        The number of rows recorded.

    Raises:
        InputError: If a layer or readout does not exist, if a layer gives another number of rows than the batch before
            it, if there are more or fewer rows than ids, or if the store refuses the rows (see ``append``).

    Cost: One forward pass over the data; up to 256 MiB of activations are held before they are written.

    Pitfalls:
        Rows are matched to ids by order alone. Augmentation that is drawn anew makes rows of one id differ between
        networks: use the plain evaluation transform. A recording that stops half-way, above 256 MiB, leaves the rows
        written so far; ``store.discard(phase)`` clears them.

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
    sample_ids = checked_ids(list(ids) if isinstance(ids, range) else ids, "ids")
    names = _names(readout, layers)
    held: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    rows = written = size = 0

    def append() -> None:
        nonlocal written, size
        joined = {layer: torch.cat(parts) for layer, parts in held.items()}
        store.append(joined, ids=sample_ids[written:rows], phase=phase, readouts=names)
        for parts in held.values():
            parts.clear()
        written, size = rows, 0

    with closing(_read_batches(model, batches, layers, readout, dtype)) as gathered:
        for acts in gathered:
            count = next(iter(acts.values())).shape[0]
            if rows + count > sample_ids.shape[0]:
                raise InputError(
                    f"The batches hold more rows than the {sample_ids.shape[0]} ids. Pass one id per row, in order."
                )
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
        layers: Dotted module names.
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
    with closing(_read_batches(model, batches, layers, readout, dtype)) as gathered:
        for acts in gathered:
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
) -> Generator[dict[str, Tensor], None, None]:
    sampler = batches.sampler if isinstance(batches, DataLoader) else None
    if isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)):
        raise InputError(
            "The loader draws its samples in random order, so its rows cannot be told apart. Pass a loader with "
            "shuffle=False over the same data set."
        )
    with (
        _evaluating(model) as device,
        capture(model, layers, readout=readout, device="cpu", dtype=dtype) as acts,
    ):
        for batch in batches:
            with torch.no_grad():
                _run(model, batch, device)
            values = dict(acts)
            rows = {layer: value.shape[0] for layer, value in values.items()}
            if len(set(rows.values())) > 1:
                raise InputError(
                    f"The layers give different numbers of rows for one batch: {rows}. The first axis must be the "
                    "samples; look for layers that put time or patches first."
                )
            yield values


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[torch.device | None]:
    """Put the model into evaluation mode; afterwards restore every train flag and torch's random state."""
    flags = [(module, module.training) for module in model.modules()]
    device = next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), None)
    # An iterator over a DataLoader draws a seed for its workers even where there are none.
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        try:
            model.eval()
            yield device
        finally:
            for module, flag in flags:
                module.training = flag


def _run(model: nn.Module, batch: Any, device: torch.device | None) -> None:
    if isinstance(batch, Mapping):
        model(**{key: _moved(value, device) for key, value in batch.items()})
        return
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise InputError("A batch is an empty tuple. Pass the inputs, or (inputs, labels).")
        batch = batch[0]
    model(_moved(batch, device))


def _moved(value: Any, device: torch.device | None) -> Any:
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def _names(readout: str | Readout | Mapping[str, str | Readout], layers: Sequence[str]) -> dict[str, str]:
    if isinstance(readout, Mapping):
        return {layer: parse_readout(value).name for layer, value in readout.items()}
    return dict.fromkeys(layers, parse_readout(readout).name)
