"""What is done beside training: activations recorded at phases, and example features to build losses from."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.activations import ActivationStore, Readout, Recorder, capture
from mikit.errors import InputError

__all__ = ["PhaseRecorder", "example_features", "example_layers", "output_of"]


@final
class PhaseRecorder:
    """A :class:`~mikit.Recorder` that learns its network at the call; hand it to a trainer as ``on_epoch``.

    Args:
        store: The store.
        images: The images to record on, ``(n, c, h, w)``; the same for all networks that are to be compared.
        ids: Their sample ids.
        layers: Layers to record.
        phases: Epochs after which to record; 0 is the untrained network.
        labels: Class indices; with them the accuracy on the images is noted with every phase.
        batch: Images a forward pass.

    Raises:
        InputError: As :class:`~mikit.Recorder`, at the first phase.

    Pitfalls:
        A phase that stands in the store already is recorded anew: a run that was killed comes by it twice.

    Example:
        >>> import tempfile
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


def example_features(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor | Mapping[str, Any],
    layer: str,
    teacher_layer: str | None = None,
    *,
    readout: str | Readout = "pool",
) -> tuple[Tensor, Tensor]:
    """Return one pair of features to build a loss from: ``VID.between(*example_features(...))``.

    The student runs in training mode, because batch normalisation scales features there and not with its untrained
    statistics; it is a copy that runs, so nothing of the student changes. The teacher runs as it is.

    Args:
        student: The student, usually untrained.
        teacher: The teacher, in evaluation mode.
        images: A batch large enough for the statistics that the loss takes from it; a mapping is passed by keyword.
        layer: Layer of the student.
        teacher_layer: Layer of the teacher; the same name if None.
        readout: What to keep of an activation.

    Returns:
        The student's and the teacher's activations, without gradient.

    Raises:
        InputError: If a layer does not exist or cannot be read out.

    Cost:
        One forward pass of both networks and a copy of the student.

    Example:
        >>> student, teacher = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 5)).eval()
        >>> f_s, f_t = example_features(student, teacher, torch.ones(8, 4), "0")
        >>> f_s.shape, f_t.shape
        (torch.Size([8, 3]), torch.Size([8, 5]))
    """
    source = layer if teacher_layer is None else teacher_layer
    own, told = example_layers(student, teacher, images, [layer], [source], readout=readout)
    return own[layer], told[layer]


def example_layers(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor | Mapping[str, Any],
    layers: Sequence[str],
    teacher_layers: Sequence[str] | None = None,
    *,
    readout: str | Readout = "whole",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return features of several layers to build one loss from: ``MIMKD.between(*example_layers(...))``.

    As :func:`example_features`, for losses that read mappings.

    Args:
        student: The student, usually untrained.
        teacher: The teacher, in evaluation mode.
        images: A batch; a mapping is passed by keyword.
        layers: Layers of the student.
        teacher_layers: As many of the teacher; the same names if None.
        readout: What to keep of an activation.

    Returns:
        The student's activations by layer, and the teacher's under the names of the student's layers.

    Raises:
        InputError: If a layer does not exist or cannot be read out, or there are not as many on both sides.

    Example:
        >>> student, teacher = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 5)).eval()
        >>> f_s, f_t = example_layers(student, teacher, torch.ones(8, 4), ["0"])
        >>> f_s["0"].shape, f_t["0"].shape
        (torch.Size([8, 3]), torch.Size([8, 5]))
    """
    sources = tuple(layers if teacher_layers is None else teacher_layers)
    if len(sources) != len(layers):
        raise InputError(
            f"There are {len(layers)} layers of the student {tuple(layers)} and {len(sources)} of the teacher "
            f"{sources}; name as many of each."
        )
    example = copy.deepcopy(student).train()
    with (
        torch.no_grad(),
        torch.random.fork_rng(),
        capture(example, layers, readout=readout) as own,
        capture(teacher, sources, readout=readout) as told,
    ):
        output_of(example, images)
        output_of(teacher, images)
        students = {layer: own[layer] for layer in layers}
        return students, {layer: told[source] for layer, source in zip(layers, sources, strict=True)}


def output_of(network: nn.Module, inputs: Tensor | Mapping[str, Any]) -> Any:
    """Return what ``network`` gives for ``inputs``; the entries of a mapping are passed by keyword.

    Example:
        >>> output_of(nn.Linear(2, 3), {"input": torch.ones(4, 2)}).shape
        torch.Size([4, 3])
    """
    return network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
