"""Example features of a student and a teacher, from which losses take their widths and statistics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mikit.activations import Readout, capture
from mikit.core.errors import InputError
from mikit.distillation.networks import output_of

__all__ = ["example_features", "example_layers"]


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

    The student runs in training mode, so that batch normalization uses the statistics of the batch and not its
    untrained ones. A copy of it is run, so the student does not change. The teacher runs in its present mode.

    Args:
        student: The student, usually untrained.
        teacher: The teacher, in evaluation mode.
        images: A batch, large enough for the statistics of the loss; a mapping is passed by keyword.
        layer: Layer of the student.
        teacher_layer: Layer of the teacher; the same name if None.
        readout: Pooling of the activations, as for :func:`mikit.capture`.

    Returns:
        The student's and the teacher's activations, without gradient.

    Raises:
        InputError: If a layer does not exist or the readout does not fit its activations.

    Cost:
        One forward pass of both networks and a copy of the student.

    Example:
        >>> student, teacher = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 5)).eval()
        >>> f_s, f_t = example_features(student, teacher, torch.ones(8, 4), "0")
        >>> f_s.shape, f_t.shape
        (torch.Size([8, 3]), torch.Size([8, 5]))
    """
    source = layer if teacher_layer is None else teacher_layer
    students, teachers = example_layers(student, teacher, images, [layer], [source], readout=readout)
    return students[layer], teachers[layer]


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

    As :func:`example_features`, for losses on several layers.

    Args:
        student: The student, usually untrained.
        teacher: The teacher, in evaluation mode.
        images: A batch; a mapping is passed by keyword.
        layers: Layers of the student.
        teacher_layers: As many layers of the teacher; the same names if None.
        readout: Pooling of the activations, as for :func:`mikit.capture`.

    Returns:
        The student's activations by layer, and the teacher's under the names of the student's layers.

    Raises:
        InputError: If a layer does not exist, the readout does not fit its activations, or the numbers of layers
            differ.

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
            f"{sources}. Pass equally many of each."
        )
    example = copy.deepcopy(student).train()
    with (
        torch.no_grad(),
        torch.random.fork_rng(),
        capture(example, layers, readout=readout) as of_student,
        capture(teacher, sources, readout=readout) as of_teacher,
    ):
        output_of(example, images)
        output_of(teacher, images)
        students = {layer: of_student[layer] for layer in layers}
        return students, {layer: of_teacher[source] for layer, source in zip(layers, sources, strict=True)}
