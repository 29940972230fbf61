"""The settings of ``mikit demo`` and ``mikit distill``: everything that determines a result besides the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from mikit.core import require
from mikit.core.errors import InputError
from mikit.datasets import ImageData
from mikit.distillation import Ingredient, TrainingPlan
from mikit.experiments.losses import read_losses, read_pairs
from mikit.models import ResNet8

__all__ = ["DemoSettings", "DistillSettings", "distill_settings", "settings_for"]

_SAMPLES_PER_FEATURE = 5
_EVALUATIONS = 16


@final
@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Everything that determines a demo run besides the images.

    Attributes:
        seeds: Every student is trained once per seed. The seed draws the initial weights, the labeled images, their
            order and their augmented views, which are the same for all kinds of student.
        teacher_width: Width factor of the teacher.
        student_width: Width factor of the students.
        per_class: Labeled images per class for the students.
        teacher_epochs: Epochs over all training images.
        teacher_batch: Images per step.
        teacher_rate: Peak learning rate.
        student_epochs: Epochs over the student's labeled images.
        student_batch: Images per step.
        student_rate: Peak learning rate.
        teacher_phases: Epochs after which the teacher is recorded; 0 is the untrained network.
        student_phases: Epochs after which the students are recorded.
        momentum: Nesterov momentum of stochastic gradient descent.
        weight_decay: Weight decay, not applied to the variances of VID.
        warm_up: Fraction of the steps in which the one-cycle schedule increases the learning rate.
        clip: Maximum norm of the students' gradient.
        vid_layers: Layers whose feature maps VID compares, each with the teacher's layer of the same name.
        vid_weight: Weight of the VID loss (mean over channels, summed over layers); cross-entropy has weight 1.
        noise: Teacher noise levels at which the recovered fraction of information is estimated.
        folds: Cross-validation folds of held-out information.
        probe: Probe of the label information.

    Raises:
        InputError: If the phases are not ascending or do not end at the last epoch, or the seeds are not distinct
            numbers from 0.
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
                    f"{who}_phases is {phases}; the phases must ascend from 0 or later and end at the last epoch, "
                    f"{epochs}."
                )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"seeds is {self.seeds}; it must contain at least one seed, no duplicates, none negative.")


def settings_for(data: ImageData, *, seeds: int = 3, quick: bool = False) -> DemoSettings:
    """Return demo settings that suit ``data``: small networks for digits, wider ones for images of 16×16 and more.

    Args:
        data: The images.
        seeds: Number of seeds.
        quick: Fewer epochs and phases, and a faster probe: this only shows that everything works.

    Returns:
        The settings.

    Raises:
        InputError: If ``seeds`` is less than 1, or there are too few images for the settings.

    Example:
        >>> from mikit.datasets import digits
        >>> settings_for(digits(), seeds=2).student_epochs
        128
    """
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; the demo needs at least 1.")
    chosen = tuple(range(seeds))
    if _is_large(data):
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


@final
@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Everything that determines a run of ``mikit distill`` besides the images.

    Attributes:
        losses: The losses of each kind of student; several losses in one entry train one student together.
        seeds: Every student is trained once per seed. The seed draws the initial weights, the labeled images, their
            order and their augmented views, which are the same for all kinds of student.
        pairs: Layers of student and teacher for losses on features; None for the default layers of each loss.
        per_class: Labeled images per class for the students.
        teacher_width: Width factor of the teacher.
        student_width: Width factor of the students.
        teacher_epochs: Epochs over all training images; 0 if the teacher is loaded from a file.
        teacher_batch: Images per step.
        teacher_rate: Peak learning rate.
        epochs: Epochs over the students' labeled images.
        batch: Images per step.
        rate: Peak learning rate.
        record: Whether activations are recorded at phases.
        device: Where the networks are trained.
    """

    losses: tuple[tuple[Ingredient, ...], ...]
    seeds: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...] | None
    per_class: int
    teacher_width: float
    student_width: float
    teacher_epochs: int
    teacher_batch: int
    teacher_rate: float
    epochs: int
    batch: int
    rate: float
    record: bool
    device: str = "cpu"

    def teacher_plan(self) -> TrainingPlan:
        """Return the training plan of the teacher."""
        return TrainingPlan(
            epochs=self.teacher_epochs,
            batch=self.teacher_batch,
            rate=self.teacher_rate,
            clip=None,
            evaluate_every=max(1, self.teacher_epochs // _EVALUATIONS),
        )

    def student_plan(self, seed: int) -> TrainingPlan:
        """Return the training plan of every student of a seed."""
        return TrainingPlan(
            epochs=self.epochs,
            batch=self.batch,
            rate=self.rate,
            evaluate_every=max(1, self.epochs // _EVALUATIONS),
            seed=seed,
        )

    def phases(self, epochs: int) -> tuple[int, ...]:
        """Return the epochs after which activations are recorded: 0, then at increasing distances up to the last."""
        return tuple(sorted({0, *(-(-epochs // 2**power) for power in range(6))}))

    def decides(self) -> dict[str, object]:
        """Return the settings that all students of a folder share, as plain values; losses and seeds can be added."""
        return {
            "pairs": None if self.pairs is None else [":".join(pair) for pair in self.pairs],
            "per_class": self.per_class,
            "teacher_width": self.teacher_width,
            "student_width": self.student_width,
            "teacher_epochs": self.teacher_epochs,
            "teacher_batch": self.teacher_batch,
            "teacher_rate": self.teacher_rate,
            "epochs": self.epochs,
            "batch": self.batch,
            "rate": self.rate,
            "record": self.record,
        }


def distill_settings(
    data: ImageData,
    *,
    losses: str = "vid,hinton",
    pairs: str | None = None,
    seeds: int = 3,
    per_class: int | None = None,
    epochs: int | None = None,
    teacher_epochs: int | None = None,
    record: bool = False,
    device: str = "cpu",
) -> DistillSettings:
    """Return settings that suit ``data``: small networks for digits, wider ones for images of 16×16 and more.

    Args:
        data: The images.
        losses: Names of losses, as :func:`read_losses` parses them.
        pairs: Layers, as :func:`read_pairs` parses them; None for the default layers of each loss.
        seeds: Students of each kind.
        per_class: Labeled images per class; None: 5, or 100 for larger images.
        epochs: Epochs of the students; None: 128, or 40 for larger images.
        teacher_epochs: Epochs of the teacher; None: 16, or 32 for larger images.
        record: Whether activations are recorded at phases.
        device: Where the networks are trained.

    Returns:
        The settings.

    Raises:
        InputError: If a name cannot be parsed, or a number is out of range.

    Example:
        >>> from mikit.datasets import digits
        >>> settings = distill_settings(digits(), losses="vid,hinton:0.5", seeds=2)
        >>> len(settings.losses), settings.epochs
        (2, 128)
    """
    numbers = {"seeds": seeds, "per_class": per_class, "epochs": epochs, "teacher_epochs": teacher_epochs}
    for name, value in numbers.items():
        if value is not None:
            require.at_least(value, name)
    large = _is_large(data)
    return DistillSettings(
        losses=read_losses(losses),
        seeds=tuple(range(seeds)),
        pairs=None if pairs is None else read_pairs(pairs),
        per_class=per_class or (100 if large else 5),
        teacher_width=2.0,
        student_width=1.0 if large else 0.5,
        teacher_epochs=teacher_epochs or (32 if large else 16),
        teacher_batch=128 if large else 50,
        teacher_rate=0.2 if large else 0.1,
        epochs=epochs or (40 if large else 128),
        batch=64 if large else 25,
        rate=0.1,
        record=record,
        device=device,
    )


def _is_large(data: ImageData) -> bool:
    return min(data.train.images.shape[-2:]) >= 16


def _require_enough(data: ImageData, settings: DemoSettings) -> None:
    """Refuse too few images before any training."""
    widest = sum(
        ResNet8(channels=data.channels, classes=data.classes, width=width).fc.in_features
        for width in (settings.teacher_width, settings.student_width)
    )
    needed = _SAMPLES_PER_FEATURE * widest
    if len(data.test) < needed:
        raise InputError(
            f"{data.name} has {len(data.test)} test images; the demo needs {needed}, five for each of the {widest} "
            "features of the widest layers of teacher and student, to estimate the information between them."
        )
    if len(data.train) < settings.teacher_batch:
        raise InputError(
            f"{data.name} has {len(data.train)} training images; the demo needs at least {settings.teacher_batch}."
        )
    data.train.per_class(settings.per_class, seed=settings.seeds[0])
