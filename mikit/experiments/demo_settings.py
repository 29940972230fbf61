"""What the demo does, in numbers: every one of them is stored with the results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from mikit.core.errors import InputError
from mikit.datasets import ImageData
from mikit.models import ResNet8

__all__ = ["ALONE", "BROKEN", "TAUGHT", "DemoSettings", "settings_for"]

ALONE = "alone"
TAUGHT = "VID"
BROKEN = "VID, pairing broken"

_ROWS_PER_COLUMN = 5


@final
@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Everything that decides a demo run, besides the data.

    Attributes:
        seeds: One run of every student per seed; the seed draws the initial weights, the labelled images, their order
            and their views, alike for every kind of student.
        teacher_width: Width factor of the teacher.
        student_width: Width factor of the students.
        per_class: Labelled images a class that a student is trained on.
        teacher_epochs: Epochs over the whole training part.
        teacher_batch: Images a step.
        teacher_rate: Peak learning rate.
        student_epochs: Epochs over the student's labelled images.
        student_batch: Images a step.
        student_rate: Peak learning rate.
        teacher_phases: Epochs after which the teacher is recorded; 0 is the untrained network.
        student_phases: Epochs after which the students are recorded.
        momentum: Nesterov momentum of stochastic gradient descent.
        weight_decay: Weight decay, not applied to VID's variances.
        warm_up: Share of the steps in which the one-cycle schedule rises.
        clip: Largest norm of the students' gradient.
        vid_layers: Layers whose maps VID compares, each with its namesake.
        vid_weight: Weight of the VID loss (mean over channels, summed over layers); cross-entropy has weight 1.
        noise: Declared teacher noise of the recovered share.
        folds: Folds of held-out information.
        probe: Probe of the label information.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    teacher_width: float = 2.0
    student_width: float = 0.5
    per_class: int = 5
    teacher_epochs: int = 16
    teacher_batch: int = 50
    teacher_rate: float = 0.1
    student_epochs: int = 128
    student_batch: int = 25
    student_rate: float = 0.1
    teacher_phases: tuple[int, ...] = (0, 2, 16)
    student_phases: tuple[int, ...] = (0, 4, 8, 16, 32, 64, 128)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.2
    clip: float = 5.0
    vid_layers: tuple[str, ...] = ("stage1", "stage2", "stage3")
    vid_weight: float = 10.0
    noise: tuple[float, ...] = (0.1, 0.3, 1.0)
    folds: int = 5
    probe: str = "logistic"

    def __post_init__(self) -> None:
        for who, phases, epochs in (
            ("teacher", self.teacher_phases, self.teacher_epochs),
            ("student", self.student_phases, self.student_epochs),
        ):
            if not phases or sorted(set(phases)) != list(phases) or phases[0] < 0 or phases[-1] != epochs:
                raise InputError(
                    f"{who}_phases is {phases}; it must ascend and end at the last epoch, {epochs}, and cannot be "
                    "negative."
                )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"seeds is {self.seeds}; it must hold at least one seed, none twice and none negative.")


def settings_for(data: ImageData, *, seeds: int = 3, quick: bool = False) -> DemoSettings:
    """Return settings that suit ``data``: small networks for digits, wider ones for images of 16×16 and more.

    Args:
        data: The data.
        seeds: Runs of every student.
        quick: Fewer epochs and phases and the quick probe: shows that everything works, and little else.

    Raises:
        InputError: If ``seeds`` is less than 1, or the data have too few images for the settings.
    """
    if seeds < 1:
        raise InputError(f"The demo was asked for {seeds} seeds; it needs at least 1.")
    chosen = tuple(range(seeds))
    large = min(data.train.images.shape[-2:]) >= 16
    if large:
        settings = DemoSettings(
            seeds=chosen,
            student_width=1.0,
            per_class=20 if quick else 100,
            teacher_epochs=2 if quick else 32,
            teacher_batch=128,
            teacher_rate=0.2,
            student_epochs=4 if quick else 40,
            student_batch=64,
            teacher_phases=(0, 2) if quick else (0, 4, 32),
            student_phases=(0, 4) if quick else (0, 1, 2, 4, 8, 16, 28, 40),
            probe="lda" if quick else "logistic",
        )
    elif quick:
        settings = DemoSettings(
            seeds=chosen,
            teacher_epochs=6,
            student_epochs=32,
            teacher_phases=(0, 6),
            student_phases=(0, 8, 32),
            noise=(0.3,),
            probe="lda",
        )
    else:
        settings = DemoSettings(seeds=chosen)
    _require_enough(data, settings)
    return settings


def _require_enough(data: ImageData, settings: DemoSettings) -> None:
    """Refuse before any training what could not be measured after it."""
    widest = sum(
        ResNet8(channels=data.channels, classes=data.classes, width=width).fc.in_features
        for width in (settings.teacher_width, settings.student_width)
    )
    if len(data.test) < _ROWS_PER_COLUMN * widest:
        raise InputError(
            f"{data.name} has {len(data.test)} test images; the widest layers have {widest} columns together, and five "
            f"images a column, {_ROWS_PER_COLUMN * widest}, are needed to measure what one says about the other."
        )
    if len(data.train) < settings.teacher_batch:
        raise InputError(
            f"{data.name} has {len(data.train)} training images; the demo needs at least {settings.teacher_batch}."
        )
    data.train.per_class(settings.per_class, seed=settings.seeds[0])
