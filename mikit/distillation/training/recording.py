"""Activations recorded at chosen epochs of training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, final

from torch import Tensor, nn

from mikit.activations import ActivationStore, Recorder

__all__ = ["PhaseRecorder"]


@final
class PhaseRecorder:
    """A :class:`~mikit.Recorder` that gets its network in the call; pass it to a trainer as ``on_epoch``.

    Args:
        store: The store.
        images: The images to record on, ``(n, c, h, w)``; the same for all networks that are compared.
        ids: Their sample ids.
        layers: Layers to record.
        phases: Epochs after which to record; 0 is the untrained network.
        labels: Class indices; with them the accuracy on the images is stored with every phase.
        batch: Number of images in a forward pass.

    Raises:
        InputError: As :class:`~mikit.Recorder`, at the first phase.

    Pitfalls:
        A phase that is already in the store is recorded again: a run that was interrupted reaches it twice.

    Example:
        >>> import tempfile, torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ActivationStore(folder + "/student", network="student", seed=0)
        ...     record = PhaseRecorder(store, torch.zeros(6, 1, 8, 8), ids=range(6), layers=["1"], phases=[0, 2])
        ...     for epoch in range(3):
        ...         record(epoch, network)
        ...     store.phases
        (0, 2)
    """

    def __init__(
        self,
        store: ActivationStore,
        images: Tensor,
        *,
        ids: Any,
        layers: Sequence[str],
        phases: Collection[int],
        labels: Any = None,
        batch: int = 500,
    ) -> None:
        self._store, self._images, self._ids = store, images, ids
        self._layers, self._phases, self._labels, self._batch = tuple(layers), frozenset(phases), labels, batch
        self._network: nn.Module | None = None
        self._recorder: Recorder | None = None

    def __call__(self, epoch: int, network: nn.Module) -> None:
        """Record, if ``epoch`` is one of the phases."""
        if epoch not in self._phases:
            return
        if self._recorder is None or self._network is not network:
            self._network = network
            self._recorder = Recorder(
                self._store,
                network,
                self._images,
                ids=self._ids,
                layers=self._layers,
                schedule=self._phases,
                labels=self._labels,
                batch=self._batch,
            )
        self._recorder(epoch)
