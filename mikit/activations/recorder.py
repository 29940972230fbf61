"""A recorder of activations for any training loop."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from mikit.activations.capturing import capture
from mikit.activations.readout import Readout
from mikit.activations.recording import Recording, class_indices, record
from mikit.activations.replica import Replica, unwrapped, write_weights
from mikit.activations.store.store import ActivationStore
from mikit.activations.store.validation import checked_ids, phase_number
from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.files import TEMPORARY_PREFIX

__all__ = ["Recorder", "checked_schedule", "phase_schedule"]


_LARGEST = 1 << 40


def phase_schedule(epochs: int, *, per_doubling: int = 1) -> tuple[int, ...]:
    r"""Return phases to record: 0, then a fixed number for every doubling of the training time, and the last.

    Formula: with :math:`T` epochs and :math:`m` phases per doubling,

    .. math:: \{0, T\} \cup \{\lfloor 2^{k/m} + 1/2 \rfloor \le T : k = 0, 1, \dots\}

    which is every epoch up to about :math:`1.4\, m`, and logarithmic after that.

    Args:
        epochs: Epochs of the training, at least 1; or steps if the recorder is called with steps.
        per_doubling: Phases per doubling, at least 1.

    Returns:
        Distinct phases in ascending order; 0 is the untrained network.

    Raises:
        InputError: If a number is out of range.

    Cost:
        ``per_doubling × log2(epochs)`` phases and a few more.

    Pitfalls:
        The last two phases can be close together. The figures of mikit draw phases at equal distances, so the schedule
        looks linear although it is not.

    Source:
        Elementary.

    Example:
        >>> phase_schedule(40)
        (0, 1, 2, 4, 8, 16, 32, 40)
        >>> phase_schedule(20, per_doubling=4)
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 20)
    """
    for name, value in (("epochs", epochs), ("per_doubling", per_doubling)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LARGEST:
            raise InputError(f"{name} is {value!r}. Pass an integer of at least 1.")
    phases, k = {0, epochs}, 0
    while (phase := math.floor(2.0 ** (k / per_doubling) + 0.5)) <= epochs:
        phases.add(phase)
        k += 1
    return tuple(sorted(phases))


def checked_schedule(schedule: Collection[int]) -> tuple[int, ...]:
    """Return a schedule in ascending order.

    Raises:
        InputError: If it is empty, or an entry is not a phase.
    """
    if isinstance(schedule, (str, bytes)) or not isinstance(schedule, Collection):
        raise InputError(f"The schedule is {schedule!r}. Pass a list of phases, or mikit.phase_schedule(epochs).")
    phases = tuple(sorted({phase_number(phase) for phase in schedule}))
    if not phases:
        raise InputError("The schedule is empty, so nothing would be recorded. Pass mikit.phase_schedule(epochs).")
    return phases


_PENDING, _SNAPSHOT = "pending", re.compile(r"phase-(\d+)\.safetensors")
_WAITING = 2  # Phases in the queue before a call waits.
_TRIED = 2  # Samples of the trial that shows whether a network draws random numbers.


@final
class Recorder:
    """Records activations of selected layers on fixed inputs at selected phases of any training loop.

    Call it with the number of completed epochs: with 0 before the first step, then after every epoch. At a phase of the
    schedule it runs the network over the inputs in evaluation mode; otherwise it does nothing. Recording does not
    change the training: train flags, buffers and the random state of torch are restored.

    A phase that is already in the store is recorded again, because a training that is resumed from its last checkpoint
    reaches it twice.

    Args:
        store: The store; use a separate store for each network and run.
        model: The network that is trained. If it is compiled or wrapped for distributed training, the inner network is
            run, and layers have their names in the inner network.
        images: The inputs, ``(n, ...)``, the same for all networks to be compared; a mapping of tensors is passed by
            keyword.
        ids: Sample ids, ``(n,)``.
        layers: Layers to record; ``"layer2:pool4"`` includes a readout, as for :func:`~mikit.capture`.
        schedule: Phases to record, as :func:`~mikit.phase_schedule` returns them; 0 is the untrained network.
        labels: Class indices, ``(n,)``. They are set in the store, and the accuracy on the inputs is noted for every
            phase.
        readout: How activations are pooled, as for :func:`~mikit.capture`.
        dtype: Floating-point type to store; by default that of the network.
        batch: Samples per forward pass.
        background: Copy the weights at the call, and run a copy of the network in a thread while the training
            continues. Use the recorder as a context manager, or call :meth:`close`. On a CPU whose cores are all used
            by the training this is not faster.

    Attributes:
        store: The store.
        schedule: The phases in ascending order.

    Raises:
        InputError: If a layer, readout or phase does not exist, if there is not one id and one label per input, if the
            store contains samples of other inputs or other labels, if the network cannot run in the background, or if
            the store refuses a phase. An error in the background is raised at the next call and by :meth:`close`.

    Cost:
        One forward pass over the inputs at each phase, and writing the activations; ``docs/recording.md`` has figures.
        In the background: the memory of one more network, writing its weights at each phase, and waiting while two
        phases are in the queue.

    Pitfalls:
        - After a call in the background the weights are in ``STORE/pending`` until their phase is recorded. If the
          process is killed, the next recorder on the store records them first. A checkpoint can be written as soon as
          the call returns.
        - In the foreground, hooks of the network run during recording. In the background, hooks that would be shared
          with the training are refused.
        - Random states other than torch's global generators are not restored.
        - In a distributed training call it in one process only.

    Example:
        >>> import tempfile
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.zeros(6, 1, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ActivationStore(folder + "/student", network="student", seed=0)
        ...     with Recorder(store, network, images, ids=range(6), layers=["1"], schedule=[0, 2]) as recorder:
        ...         for epoch in range(3):
        ...             recorder(epoch)
        ...     store.phases
        (0, 2)
    """

    def __init__(
        self,
        store: ActivationStore,
        model: nn.Module,
        images: Tensor | Mapping[str, Tensor],
        *,
        ids: Any,
        layers: Sequence[str],
        schedule: Collection[int],
        labels: Any = None,
        readout: str | Readout | Mapping[str, str | Readout] = "pool",
        dtype: torch.dtype | None = None,
        batch: int = 500,
        background: bool = False,
    ) -> None:
        require.at_least(batch, "batch")
        self.store, self.schedule = store, checked_schedule(schedule)
        self._model, self._images = unwrapped(model), images
        self._ids = checked_ids(list(ids) if isinstance(ids, range) else ids, "ids")
        self._labels = None if labels is None else class_indices(labels, self._ids.size).numpy()
        self._layers, self._readout, self._dtype, self._batch = tuple(layers), readout, dtype, batch
        self._require_fitting()
        with capture(self._model, layers, readout=readout, dtype=dtype):
            pass  # This checks the names before the first epoch.
        self._replica: Replica | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._jobs: dict[int, Future[None]] = {}
        self._closed = False
        waiting = self._waiting()
        if background or waiting:
            self._replica = Replica(self._model, self._try)
        if background:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="mikit-recorder")
            for phase in waiting:
                self._jobs[phase] = self._thread.submit(self._record_waiting, phase)
        else:
            for phase in waiting:
                self._record_waiting(phase)

    def __call__(self, phase: int, network: nn.Module | None = None) -> None:
        """Record, if ``phase`` is in the schedule.

        Args:
            phase: Completed epochs.
            network: The network, if a trainer passes it; it must be that of the recorder.

        Raises:
            InputError: If the recorder was closed, ``network`` is another network, an earlier phase failed in the
                background, or the store refuses this phase.
        """
        number = phase_number(phase)
        if self._closed:
            raise InputError("The recorder was closed. Make a new recorder on the same store to continue.")
        if network is not None and unwrapped(network) is not self._model:
            raise InputError("This recorder belongs to another network. Make one recorder and one store per network.")
        for done in [one for one, job in self._jobs.items() if job.done()]:
            self._finish(done)
        if number not in self.schedule:
            return
        if self._thread is None:
            self._record(self._model, number, alone=False)
            return
        if number in self._jobs:
            self._finish(number)
        while len(self._jobs) >= _WAITING:
            self._finish(next(iter(self._jobs)))
        write_weights(self._model, self._snapshot(number))
        self._jobs[number] = self._thread.submit(self._record_waiting, number)

    @property
    def missing(self) -> tuple[int, ...]:
        """Phases of the schedule that are not in the store for all inputs."""
        stored = self.store.phases
        return tuple(
            phase for phase in self.schedule if phase not in stored or self.store.ids(phase).size != self._ids.size
        )

    def close(self) -> None:
        """Wait for the phases in the queue.

        Raises:
            InputError: If one of them could not be recorded; it names the first.
        """
        self._closed = True
        faults: list[Exception] = []
        for phase in list(self._jobs):
            try:
                self._finish(phase)
            except Exception as fault:
                faults.append(fault)
        if self._thread is not None:
            self._thread.shutdown()
        with suppress(OSError):  # It does not exist, or contains the weights of a failed phase.
            (self.store.path / _PENDING).rmdir()
        if faults:
            for other in faults[1:]:
                faults[0].add_note(str(other))
            raise faults[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            self.close()
        except Exception as fault:
            if error is None:
                raise
            error.add_note(str(fault))

    def _record(self, network: nn.Module, phase: int, *, alone: bool) -> None:
        if phase in self.store.phases:
            self.store.discard(phase)
        what = Recording(self._layers, self._ids, phase, self._labels, self._readout, self._dtype, alone)
        record(network, self._batches(), self.store, what)

    def _record_waiting(self, phase: int) -> None:
        """Record a phase from its saved weights, and remove them."""
        assert self._replica is not None
        path = self._snapshot(phase)
        with _separate_stream(self._replica.network):
            self._replica.load(path)
            self._record(self._replica.network, phase, alone=True)
        path.unlink()

    def _finish(self, phase: int) -> None:
        """Wait for a phase, and raise its error if there was one."""
        try:
            self._jobs.pop(phase).result()
        except InputError as cause:
            raise InputError(
                f"Phase {phase} could not be recorded in the background. {cause} Its weights are in "
                f"{str(self._snapshot(phase))!r}: a new recorder on this store tries again; delete the file to skip "
                "the phase."
            ) from cause
        except Exception as cause:
            cause.add_note(f"This happened while phase {phase} was being recorded in the background.")
            raise

    def _batches(self, rows: int | None = None) -> Iterator[Tensor | dict[str, Tensor]]:
        count = self._ids.size if rows is None else min(rows, self._ids.size)
        for start in range(0, count, self._batch):
            part = slice(start, min(start + self._batch, count))
            if isinstance(self._images, Mapping):
                yield {name: value[part] for name, value in self._images.items()}
            else:
                yield self._images[part]

    def _try(self, network: nn.Module) -> None:
        first = next(self._batches(_TRIED))
        device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
        with torch.no_grad():
            if isinstance(first, dict):
                network(**{name: value.to(device) for name, value in first.items()})
            else:
                network(first.to(device))

    def _snapshot(self, phase: int) -> Path:
        return self.store.path / _PENDING / f"phase-{phase:06d}.safetensors"

    def _waiting(self) -> list[int]:
        """Return the phases whose weights were left by a killed process."""
        folder = self.store.path / _PENDING
        entries = list(folder.iterdir()) if folder.is_dir() else []
        for entry in entries:
            if entry.name.startswith(TEMPORARY_PREFIX):
                entry.unlink(missing_ok=True)
        names = (_SNAPSHOT.fullmatch(entry.name) for entry in entries)
        return sorted(int(name[1]) for name in names if name)

    def _require_fitting(self) -> None:
        """Check inputs, ids and labels, and compare them with the store."""
        named = self._images if isinstance(self._images, Mapping) else {"images": self._images}
        for name, value in named.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != self._ids.size:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"{name} is {shape} for {self._ids.size} ids. Pass a tensor with one sample per id, in order."
                )
        for phase in self.store.phases[-1:]:
            stored = self.store.ids(phase)
            other = stored[~np.isin(stored, self._ids)]
            if other.size:
                raise InputError(
                    f"Phase {phase} in the store {str(self.store.path)!r} contains {other.size} samples that are not "
                    f"among these inputs; the first is {other[0]}. Record all phases of a store on the same inputs."
                )
        if self._labels is None:
            return
        labels = self.store.labels_for(self._ids)
        if labels is None:
            self.store.set_labels(self._ids, self._labels)
        elif not np.array_equal(labels, self._labels):
            raise InputError(
                f"The store {str(self.store.path)!r} contains other labels for these ids. Pass the same labels, or "
                "leave out labels."
            )


def _separate_stream(network: nn.Module) -> Any:
    """Return a context with a separate stream on a GPU."""
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
