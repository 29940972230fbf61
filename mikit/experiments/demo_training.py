"""One network of the demo: trained, recorded at its phases, scored. Every function here is a function of its inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.activations import ActivationStore, hash_of_array
from mikit.core.errors import InputError
from mikit.core.provenance import one_thread
from mikit.datasets import ImageData, ImagePart
from mikit.distillation import (
    DistillationTerm,
    PhaseRecorder,
    TrainingPlan,
    example_features,
    random_stream,
    train_network,
    train_student,
)
from mikit.estimators import VID
from mikit.experiments.demo_settings import ALONE, BROKEN, TAUGHT, DemoSettings
from mikit.models import ResNet8

__all__ = ["TEACHER", "Run", "Trained", "train"]

TEACHER = "teacher"


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
    with one_thread():
        is_teacher = run.network == TEACHER
        part = data.train if is_teacher else data.train.per_class(settings.per_class, seed=run.seed)
        width = settings.teacher_width if is_teacher else settings.student_width
        network = _network(data, width, random_stream(run.seed, "weights"))
        store = ActivationStore(
            run.store, network=run.network, seed=run.seed, data_hash=hash_of_array(data.test.images)
        )
        store.set_training_ids(part.ids)
        phases = settings.teacher_phases if is_teacher else settings.student_phases
        record = PhaseRecorder(
            store, data.test.images, ids=data.test.ids, layers=ResNet8.layers, phases=phases, labels=data.test.labels
        )
        _fit(run, network, part, data, settings, record)
        store.set_labels(data.test.ids, data.test.labels.numpy())
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    accuracy = {phase: notes["accuracy"] for phase, notes in store.notes.items()}
    return Trained(run, accuracy, state, time.perf_counter() - start)


def _fit(
    run: Run,
    network: ResNet8,
    part: ImagePart,
    data: ImageData,
    settings: DemoSettings,
    on_epoch: Callable[[int, nn.Module], None],
) -> None:
    plan = _plan(run, settings)
    if run.network in (TAUGHT, BROKEN):
        teacher = _network(data, settings.teacher_width, torch.Generator())
        assert run.teacher is not None
        teacher.load_state_dict(run.teacher)
        teacher.eval()
        terms = _terms(run, network, teacher, part, settings)
        curve = train_student(
            network, teacher, terms, part.images, part.labels, plan, views=data.views, on_epoch=on_epoch
        )
    else:
        curve = train_network(network, part.images, part.labels, plan, views=data.views, on_epoch=on_epoch)
    if curve.diverged is not None:
        last = curve.records[-1]
        raise InputError(
            f'The network "{run.network}" with seed {run.seed} diverged in epoch {last.epoch}: its loss is '
            f"{last.loss:g}. Images of your own may need a lower learning rate than {plan.rate:g}."
        )


def _plan(run: Run, settings: DemoSettings) -> TrainingPlan:
    is_teacher = run.network == TEACHER
    return TrainingPlan(
        epochs=settings.teacher_epochs if is_teacher else settings.student_epochs,
        batch=settings.teacher_batch if is_teacher else settings.student_batch,
        rate=settings.teacher_rate if is_teacher else settings.student_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        warm_up=settings.warm_up,
        clip=None if is_teacher else settings.clip,
        seed=run.seed,
    )


def _terms(
    run: Run, network: ResNet8, teacher: ResNet8, part: ImagePart, settings: DemoSettings
) -> dict[str, DistillationTerm]:
    """Return VID at each stage, between maps."""
    generator = random_stream(run.seed, "losses")
    terms = {}
    for layer in settings.vid_layers:
        example = example_features(network, teacher, part.images, layer, readout="whole")
        vid = VID.between(*example, generator=generator)
        loss = _OfAnotherImage(vid) if run.network == BROKEN else vid
        terms[layer] = DistillationTerm(loss=loss, layer=layer, weight=settings.vid_weight, readout="whole")
    return terms


@final
class _OfAnotherImage(nn.Module):
    """VID towards the teacher's activations of another image of the batch."""

    def __init__(self, vid: VID) -> None:
        super().__init__()
        self.vid = vid

    def forward(self, own: Tensor, told: Tensor) -> Tensor:
        loss: Tensor = self.vid(own, told.roll(1, dims=0))
        return loss

    def param_groups(self) -> list[dict[str, Any]]:
        """Return VID's."""
        return self.vid.param_groups()


def _network(data: ImageData, width: float, generator: torch.Generator) -> ResNet8:
    return ResNet8(channels=data.channels, classes=data.classes, width=width, generator=generator)
