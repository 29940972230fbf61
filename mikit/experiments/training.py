"""One network of ``mikit distill``: trained from its checkpoint on, recorded at its phases, scored."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from mikit.activations import ActivationStore, hash_of_array
from mikit.core.errors import InputError
from mikit.core.provenance import one_thread
from mikit.datasets import ImageData, ImagePart
from mikit.distillation import (
    DistillationTerm,
    Ingredient,
    PhaseRecorder,
    TrainingCurve,
    distillation_terms,
    random_stream,
    train_network,
    train_student,
)
from mikit.experiments.settings import TEACHER, DistillSettings, label_of
from mikit.models import ResNet8

__all__ = ["Run", "Trained", "require_losses", "train", "train_teacher"]

_EXAMPLES = 256


@final
@dataclass(frozen=True)
class Run:
    """One student to train.

    Attributes:
        losses: What it learns from; nothing for the student alone.
        seed: Its seed.
        out: Folder of the whole run.
    """

    losses: tuple[Ingredient, ...]
    seed: int
    out: Path

    @property
    def label(self) -> str:
        """What its kind is called."""
        return label_of(self.losses)

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.label.replace(':', '-')}-seed{self.seed}"

    def work(self) -> float:
        """Return the expected time relative to the student alone."""
        return 2.0 if self.losses else 1.0


@final
@dataclass(frozen=True)
class Trained:
    """What a run leaves besides its files.

    Attributes:
        run: The run.
        curve: Its epochs.
        state: Trained parameters and buffers.
    """

    run: Run
    curve: TrainingCurve
    state: dict[str, Tensor]


def train_teacher(data: ImageData, settings: DistillSettings, out: Path, given: ResNet8 | None) -> ResNet8:
    """Return the teacher, trained or given, recorded where that was asked for.

    Raises:
        InputError: If its training diverges.
    """
    if given is not None:
        store, recorded = _recorder(data, settings, out, TEACHER, 0, None, [1])
        if store is not None and 1 not in store.phases:
            recorded(1, given)
        return given
    teacher = fresh(data, settings.teacher_width, 0).to(settings.device)
    phases = settings.phases(settings.teacher_epochs)
    _, recorded = _recorder(data, settings, out, TEACHER, 0, data.train, phases)
    curve = train_network(
        teacher,
        data.train.images,
        data.train.labels,
        settings.teacher_plan(),
        views=data.views,
        held_out=(data.test.images, data.test.labels),
        folder=out / TEACHER,
        on_epoch=recorded,
    )
    if curve.diverged is not None:
        raise InputError(f"There is no teacher to learn from. {curve.diverged}")
    return teacher.eval()


def train(run: Run, data: ImageData, settings: DistillSettings, teacher: dict[str, Tensor]) -> Trained:
    """Train one student, or go on with it; a run that diverges says so in its curve."""
    with one_thread():
        part = data.train.per_class(settings.per_class, seed=run.seed)
        student = fresh(data, settings.student_width, run.seed).to(settings.device)
        phases = settings.phases(settings.epochs)
        _, recorded = _recorder(data, settings, run.out, run.label, run.seed, part, phases, name=run.name)
        plan, folder = settings.student_plan(run.seed), run.out / "students" / run.name
        held_out = (data.test.images, data.test.labels)
        images, labels = part.images, part.labels
        if run.losses:
            master = fresh(data, settings.teacher_width, 0)
            master.load_state_dict(teacher)
            master.to(settings.device).eval()
            terms = built(run.losses, student, master, part, settings, run.seed)
            curve = train_student(
                student,
                master,
                terms,
                images,
                labels,
                plan,
                views=data.views,
                held_out=held_out,
                folder=folder,
                on_epoch=recorded,
            )
        else:
            curve = train_network(
                student, images, labels, plan, views=data.views, held_out=held_out, folder=folder, on_epoch=recorded
            )
    return Trained(run, curve, {name: value.detach().cpu().clone() for name, value in student.state_dict().items()})


def require_losses(data: ImageData, settings: DistillSettings, teacher: ResNet8 | None) -> None:
    """Refuse, before anything is trained, losses that cannot stand between their layers."""
    part = data.train.per_class(settings.per_class, seed=settings.seeds[0])
    teacher = teacher or fresh(data, settings.teacher_width, 0).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What there is to say is said of the trained teacher.
        for losses in settings.losses:
            student = fresh(data, settings.student_width, 0).to(settings.device)
            built(losses, student, teacher.to(settings.device), part, settings, settings.seeds[0])


def built(
    losses: tuple[Ingredient, ...],
    student: nn.Module,
    teacher: nn.Module,
    part: ImagePart,
    settings: DistillSettings,
    seed: int,
) -> dict[str, DistillationTerm]:
    """Return the losses of a student, from some of its own images."""
    generator = random_stream(seed, "losses")
    some = part.rows(torch.randperm(len(part), generator=generator)[:_EXAMPLES])
    return distillation_terms(
        losses,
        student,
        teacher,
        some.images.to(settings.device),
        some.labels.to(settings.device),
        batch=settings.batch,
        pairs=settings.pairs,
        generator=generator,
    )


def fresh(data: ImageData, width: float, seed: int) -> ResNet8:
    """Return an untrained network, the same for all kinds of student of a seed."""
    generator = random_stream(seed, "weights")
    return ResNet8(channels=data.channels, classes=data.classes, width=width, generator=generator)


def _recorder(
    data: ImageData,
    settings: DistillSettings,
    out: Path,
    network: str,
    seed: int,
    part: ImagePart | None,
    phases: tuple[int, ...] | list[int],
    *,
    name: str = TEACHER,
) -> tuple[ActivationStore | None, Callable[[int, nn.Module], None]]:
    """Return the store of a network and what records into it; nothing where recording was not asked for."""
    if not settings.record:
        return None, lambda epoch, trained: None
    store = ActivationStore(
        out / "stores" / name, network=network, seed=seed, data_hash=hash_of_array(data.test.images)
    )
    if part is not None:
        store.set_training_ids(part.ids)
    store.set_labels(data.test.ids, data.test.labels.numpy())
    record = PhaseRecorder(
        store, data.test.images, ids=data.test.ids, layers=ResNet8.layers, phases=phases, labels=data.test.labels
    )
    return store, record
