"""The losses that students are trained with, and the text that names them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.datasets import ImagePart
from mikit.distillation import (
    DistillationTerm,
    Ingredient,
    distillation_terms,
    example_features,
    random_stream,
    read_ingredients,
)
from mikit.estimators import VID
from mikit.models import ResNet8

__all__ = ["ALONE", "BuildLosses", "NamedLosses", "StageVID", "label_of", "read_losses", "read_pairs"]

ALONE = "alone"
"""The student that is trained without a teacher."""

BuildLosses = Callable[[nn.Module, nn.Module, ImagePart, int], dict[str, DistillationTerm]]
"""Builds the losses of a student from student, teacher, the student's images and the seed."""

_EXAMPLES = 256


@final
@dataclass(frozen=True)
class NamedLosses:
    """Losses by the names of :func:`read_losses`; a :data:`BuildLosses`.

    Attributes:
        losses: Losses whose sum trains one student.
        pairs: Layers of student and teacher for losses on features; None for the default layers of each loss.
        batch: Images per training step.
    """

    losses: tuple[Ingredient, ...]
    pairs: tuple[tuple[str, str], ...] | None
    batch: int

    def __call__(
        self, student: nn.Module, teacher: nn.Module, part: ImagePart, seed: int
    ) -> dict[str, DistillationTerm]:
        """Build the losses from up to 256 of the student's images."""
        generator = random_stream(seed, "losses")
        some = part.rows(torch.randperm(len(part), generator=generator)[:_EXAMPLES])
        device = next(student.parameters()).device
        return distillation_terms(
            self.losses,
            student,
            teacher,
            some.images.to(device),
            some.labels.to(device),
            batch=self.batch,
            pairs=self.pairs,
            generator=generator,
        )


@final
@dataclass(frozen=True)
class StageVID:
    """VID between feature maps of the same layers; a :data:`BuildLosses`.

    Attributes:
        layers: The layers.
        weight: Weight of the VID loss of each layer.
        broken: Whether each image is paired with the teacher's features of another image: a control.
    """

    layers: tuple[str, ...]
    weight: float
    broken: bool

    def __call__(
        self, student: nn.Module, teacher: nn.Module, part: ImagePart, seed: int
    ) -> dict[str, DistillationTerm]:
        """Build one loss per layer from all images of the student."""
        generator = random_stream(seed, "losses")
        terms = {}
        for layer in self.layers:
            vid = VID.between(
                *example_features(student, teacher, part.images, layer, readout="whole"), generator=generator
            )
            loss = _OfAnotherImage(vid) if self.broken else vid
            terms[layer] = DistillationTerm(loss=loss, layer=layer, weight=self.weight, readout="whole")
        return terms


@final
class _OfAnotherImage(nn.Module):
    """VID with the teacher's activations of another image of the batch."""

    def __init__(self, vid: VID) -> None:
        super().__init__()
        self.vid = vid

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        loss: Tensor = self.vid(student, teacher.roll(1, dims=0))
        return loss

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of VID."""
        return self.vid.param_groups()


def label_of(losses: tuple[Ingredient, ...]) -> str:
    """Return the name of a student by its losses: ``"alone"``, ``"vid"``, ``"vid:2+hinton"``."""
    return "+".join(one.label for one in losses) or ALONE


def read_losses(text: str) -> tuple[tuple[Ingredient, ...], ...]:
    """Parse the losses of each student from text such as ``"vid,hinton:0.5,vid+hinton"``.

    Args:
        text: Names of losses separated by commas, one student each. ``:0.5`` sets a weight; ``+`` joins losses that
            train one student together.

    Returns:
        The losses of each student.

    Raises:
        InputError: If a loss is unknown or its name is empty, or a student is named twice.

    Example:
        >>> [[one.label for one in losses] for losses in read_losses("hinton:0.5,vid+hinton")]
        [['hinton:0.5'], ['vid', 'hinton']]
    """
    found: dict[str, tuple[Ingredient, ...]] = {}
    for part in text.split(","):
        if not part.strip():
            raise InputError(f'--loss is "{text}", which contains an empty name. Separate names by commas: vid,hinton.')
        losses = read_ingredients(part)
        if label_of(losses) in found:
            raise InputError(f'--loss is "{text}", which names {label_of(losses)} twice. Name it once.')
        found[label_of(losses)] = losses
    return tuple(found.values())


def read_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Parse pairs of layers of student and teacher from text such as ``"stage2:stage3,pool"``.

    Args:
        text: Pairs separated by commas: the student's layer, a colon and the teacher's layer; one name if they are the
            same.

    Returns:
        The pairs.

    Raises:
        InputError: If a pair is malformed, a layer does not exist (the error suggests similar names), or a pair is
            named twice.

    Example:
        >>> read_pairs("stage2:stage3,pool")
        (('stage2', 'stage3'), ('pool', 'pool'))
    """
    known = ResNet8.layers
    pairs: list[tuple[str, str]] = []
    for part in text.split(","):
        student, colon, teacher = (piece.strip() for piece in part.partition(":"))
        for name in (student, teacher) if colon else (student,):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
                hint = f" Did you mean {' or '.join(near)}?" if near else ""
                raise InputError(
                    f'pairs is "{text}", but the networks have no layer "{name}".{hint} Their layers are '
                    f"{', '.join(known)}; write a pair as student:teacher, such as stage2:stage3."
                )
        pair = (student, teacher if colon else student)
        if pair in pairs:
            raise InputError(f'pairs is "{text}", which names {":".join(pair)} twice. Name it once.')
        pairs.append(pair)
    return tuple(pairs)
