"""Everything that decides a run of ``mikit distill`` besides the images, and how its words are read."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import final

from mikit.core.errors import InputError
from mikit.datasets import ImageData
from mikit.distillation import Ingredient, TrainingPlan, read_ingredients
from mikit.models import ResNet8

__all__ = ["ALONE", "TEACHER", "DistillSettings", "distill_settings", "label_of", "read_losses", "read_pairs"]

ALONE = "alone"
TEACHER = "teacher"
_LOOKS = 16


@final
@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """What decides a run.

    Attributes:
        losses: What each kind of student learns from, several losses that act together in one entry.
        seeds: One student of each kind per seed, which draws the initial weights, the labelled images, their order and
            their views, alike for all kinds.
        pairs: Layers of student and teacher for losses on features; None for each loss's own.
        per_class: Labelled images a class for the students.
        teacher_width: Width factor of the teacher.
        student_width: Width factor of the students.
        teacher_epochs: Epochs over all training images; 0 where the teacher comes from a file.
        teacher_batch: Images a step.
        teacher_rate: Peak learning rate.
        epochs: Epochs over the students' labelled images.
        batch: Images a step.
        rate: Peak learning rate.
        record: Whether activations are stored at phases.
        device: Where networks are trained.
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
        """Return how the teacher is trained."""
        return TrainingPlan(
            epochs=self.teacher_epochs,
            batch=self.teacher_batch,
            rate=self.teacher_rate,
            clip=None,
            evaluate_every=max(1, self.teacher_epochs // _LOOKS),
        )

    def student_plan(self, seed: int) -> TrainingPlan:
        """Return how every student of a seed is trained."""
        return TrainingPlan(
            epochs=self.epochs,
            batch=self.batch,
            rate=self.rate,
            evaluate_every=max(1, self.epochs // _LOOKS),
            seed=seed,
        )

    def phases(self, epochs: int) -> tuple[int, ...]:
        """Return the epochs after which activations are stored: 0, and ever later ones up to the last."""
        return tuple(sorted({0, *(-(-epochs // 2**power) for power in range(6))}))

    def decides(self) -> dict[str, object]:
        """Return what all students of a folder share, as plain values; losses and seeds may be added later."""
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
        losses: Names of losses, as :func:`read_losses` reads them.
        pairs: Layers, as :func:`read_pairs` reads them; None for each loss's own.
        seeds: Students of each kind.
        per_class: Labelled images a class; None: 5, or 100 for larger images.
        epochs: Epochs of the students; None: 128, or 40.
        teacher_epochs: Epochs of the teacher; None: 16, or 32.
        record: Whether activations are stored at phases.
        device: Where networks are trained.

    Raises:
        InputError: If a name cannot be read, or a number lies outside its range.

    Example:
        >>> from mikit.datasets import digits
        >>> settings = distill_settings(digits(), losses="vid,hinton:0.5", seeds=2)
        >>> [label_of(one) for one in settings.losses], settings.epochs
        (['vid', 'hinton:0.5'], 128)
    """
    for name, value in (("seeds", seeds), ("per-class", per_class), ("epochs", epochs)):
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; it must be at least 1.")
    if teacher_epochs is not None and teacher_epochs < 1:
        raise InputError(f"--teacher-epochs is {teacher_epochs}; it must be at least 1.")
    large = min(data.train.images.shape[-2:]) >= 16
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


def label_of(losses: tuple[Ingredient, ...]) -> str:
    """Return what a kind of student is called: ``"alone"``, ``"vid"``, ``"vid:2+hinton"``."""
    return "+".join(one.label for one in losses) or ALONE


def read_losses(text: str) -> tuple[tuple[Ingredient, ...], ...]:
    """Return what each student learns from, from ``"vid,hinton:0.5,vid+hinton"``.

    Raises:
        InputError: If there is no such loss, nothing is named, or a student stands twice.
    """
    found: dict[str, tuple[Ingredient, ...]] = {}
    for part in text.split(","):
        if not part.strip():
            raise InputError(
                f'--loss is "{text}", which names an empty loss. Write names with commas between: vid,hinton.'
            )
        losses = read_ingredients(part)
        if label_of(losses) in found:
            raise InputError(f'--loss is "{text}", in which {label_of(losses)} stands twice. Name it once.')
        found[label_of(losses)] = losses
    return tuple(found.values())


def read_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Return layers of student and teacher from ``"stage2:stage3,pool"``.

    Raises:
        InputError: If a pair is no name or two, a layer does not exist (near misses are told), or a pair stands twice.

    Example:
        >>> read_pairs("stage2:stage3,pool")
        (('stage2', 'stage3'), ('pool', 'pool'))
    """
    known = ResNet8.layers
    pairs: list[tuple[str, str]] = []
    for part in text.split(","):
        own, colon, source = (piece.strip() for piece in part.partition(":"))
        for name in (own, source) if colon else (own,):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
                hint = f" Did you mean {' or '.join(near)}?" if near else ""
                raise InputError(
                    f'--pairs is "{text}", but the networks have no layer "{name}".{hint} Their layers are '
                    f"{', '.join(known)}; a pair is the student's and the teacher's, stage2:stage3."
                )
        pair = (own, source if colon else own)
        if pair in pairs:
            raise InputError(f'--pairs is "{text}", in which {":".join(pair)} stands twice. Name it once.')
        pairs.append(pair)
    return tuple(pairs)
