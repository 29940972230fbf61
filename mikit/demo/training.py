"""One network of the demo: trained, recorded at its phases, scored. Every function here is a function of its inputs."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mikit.activations import ActivationStore, capture, hash_of_array, record_activations
from mikit.datasets import ImageData, ImagePart
from mikit.demo.settings import ALONE, BROKEN, TAUGHT, DemoSettings
from mikit.errors import InputError
from mikit.estimators import VID
from mikit.models import ResNet8

__all__ = ["TEACHER", "Run", "Trained", "train"]

TEACHER = "teacher"
# Streams of random numbers of one seed. All kinds of student share the first and the second.
_WEIGHTS, _VIEWS, _HEADS = 0, 1, 2
_BATCH_TO_RECORD = 500


@final
@dataclass(frozen=True)
class Run:
    """One network to train.

    Attributes:
        network: ``"teacher"``, ``"alone"``, ``"VID"`` or ``"VID, pairing broken"``.
        seed: Seed of everything that is drawn.
        store: Folder of the activation store to make.
        teacher: The trained teacher's state, for the students that learn from it.
    """

    network: str
    seed: int
    store: Path
    teacher: dict[str, Tensor] | None = None

    def work(self, settings: DemoSettings) -> float:
        """Return the expected time relative to the other runs, for a progress bar."""
        if self.network == TEACHER:
            return 16.0 * settings.teacher_epochs
        steps = settings.student_epochs * settings.per_class / settings.student_batch
        return steps * (1.0 if self.network == ALONE else 2.0)


@final
@dataclass(frozen=True)
class Trained:
    """What a run leaves besides its store.

    Attributes:
        run: The run.
        accuracy: Accuracy on the test images by phase.
        state: The trained parameters and buffers.
        wall_time: Seconds.
    """

    run: Run
    accuracy: dict[int, float]
    state: dict[str, Tensor]
    wall_time: float


def train(run: Run, data: ImageData, settings: DemoSettings) -> Trained:
    """Train one network, record its activations on the test images at every phase, and note its accuracies.

    Raises:
        InputError: If the training diverges.
    """
    start = time.perf_counter()
    with _one_thread():
        is_teacher = run.network == TEACHER
        part = data.train if is_teacher else data.train.per_class(settings.per_class, seed=run.seed)
        width = settings.teacher_width if is_teacher else settings.student_width
        network = _network(data, width, _stream(run.seed, _WEIGHTS))
        store = ActivationStore(
            run.store, network=run.network, seed=run.seed, data_hash=hash_of_array(data.test.images)
        )
        store.set_training_ids(part.ids)
        phases = settings.teacher_phases if is_teacher else settings.student_phases
        accuracy = {}
        for epoch in _epochs(run, network, part, data, settings):
            if epoch in phases:
                images = torch.split(data.test.images, _BATCH_TO_RECORD)
                record_activations(network, images, ResNet8.layers, store, ids=data.test.ids, phase=epoch)
                accuracy[epoch] = _accuracy(network, data.test)
                store.note(epoch, accuracy=accuracy[epoch], accuracy_n=len(data.test))
        store.set_labels(data.test.ids, data.test.labels.numpy())
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    return Trained(run, accuracy, state, time.perf_counter() - start)


def _epochs(run: Run, network: ResNet8, part: ImagePart, data: ImageData, settings: DemoSettings) -> Iterator[int]:
    """Train, and yield the number of epochs done: 0 before the first step."""
    is_teacher = run.network == TEACHER
    epochs = settings.teacher_epochs if is_teacher else settings.student_epochs
    batch = min(settings.teacher_batch if is_teacher else settings.student_batch, len(part))
    rate = settings.teacher_rate if is_teacher else settings.student_rate
    with _loss(run, network, part, data, settings) as (loss_of, groups):
        groups = [{"params": list(network.parameters())}, *groups]
        groups = [{"weight_decay": settings.weight_decay, **group} for group in groups]
        optimiser = torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=True)
        steps = len(part) // batch
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, rate, total_steps=epochs * steps, pct_start=settings.warm_up, cycle_momentum=False
        )
        generator = _stream(run.seed, _VIEWS)
        yield 0
        for epoch in range(1, epochs + 1):
            network.train()
            order = torch.randperm(len(part), generator=generator)
            for rows in torch.split(order[: steps * batch], batch):
                loss = loss_of(data.views(part.images[rows], generator=generator), part.labels[rows])
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                if not is_teacher:
                    nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
                optimiser.step()
                schedule.step()
            if not math.isfinite(float(loss.detach())):
                raise InputError(
                    f'The network "{run.network}" with seed {run.seed} diverged in epoch {epoch}: its loss is '
                    f"{float(loss.detach())}. Images of your own may need a lower learning rate than {rate:g}."
                )
            yield epoch


class _Loss(Protocol):
    def __call__(self, views: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one batch of views."""


@final
class _FromLabels:
    """Cross-entropy alone."""

    def __init__(self, network: ResNet8) -> None:
        self.network = network

    def __call__(self, views: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.network(views), labels)


@final
class _Distilled:
    """Cross-entropy plus VID at each stage, on the same views for teacher and student."""

    def __init__(
        self,
        network: ResNet8,
        teacher: ResNet8,
        heads: dict[str, VID],
        acts: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
        *,
        weight: float,
        broken: bool,
    ) -> None:
        self.network, self.teacher, self.heads = network, teacher, heads
        self.own, self.told = acts
        self.weight, self.broken = weight, broken

    def __call__(self, views: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher(views)
        loss = cross_entropy(self.network(views), labels)
        for layer, head in self.heads.items():
            target = self.told[layer].roll(1, dims=0) if self.broken else self.told[layer]
            loss = loss + self.weight * head(self.own[layer], target)
        return loss


@contextmanager
def _loss(
    run: Run, network: ResNet8, part: ImagePart, data: ImageData, settings: DemoSettings
) -> Iterator[tuple[_Loss, list[dict[str, Any]]]]:
    """Give the loss of a run and the parameter groups it brings along; the hooks are gone after the block."""
    if run.network not in (TAUGHT, BROKEN):
        yield _FromLabels(network), []
        return
    assert run.teacher is not None
    teacher = _network(data, settings.teacher_width, torch.Generator())
    teacher.load_state_dict(run.teacher)
    teacher.eval()
    # Batch normalisation scales features in training mode, which the untrained statistics do not; a copy of the student
    # shows them, so that its own statistics stay untouched.
    example = copy.deepcopy(network).train()
    generator = _stream(run.seed, _HEADS)
    layers = settings.vid_layers
    with (
        torch.no_grad(),
        capture(example, layers, readout="whole") as own,
        capture(teacher, layers, readout="whole") as told,
    ):
        example(part.images)
        teacher(part.images)
        heads = {layer: VID.between(own[layer], told[layer], generator=generator) for layer in layers}
    groups = [group for head in heads.values() for group in head.param_groups()]
    with (
        capture(network, layers, readout="whole", detach=False) as own,
        capture(teacher, layers, readout="whole") as told,
    ):
        broken = run.network == BROKEN
        yield _Distilled(network, teacher, heads, (own, told), weight=settings.vid_weight, broken=broken), groups


def _network(data: ImageData, width: float, generator: torch.Generator) -> ResNet8:
    return ResNet8(channels=data.channels, classes=data.classes, width=width, generator=generator)


def _accuracy(network: ResNet8, part: ImagePart) -> float:
    network.eval()
    with torch.no_grad():
        guesses = torch.cat([network(images).argmax(1) for images in torch.split(part.images, _BATCH_TO_RECORD)])
    return float((guesses == part.labels).double().mean())


def _stream(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 101 + purpose)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, so that the result does not depend on how many the machine has; then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
