"""An auxiliary teacher: of the student's architecture but wider, so that layers correspond."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.distillation.examples import example_features
from mikit.distillation.losses.pkt import PKT
from mikit.distillation.training.curve import TrainingCurve
from mikit.distillation.training.plan import DistillationTerm, TrainingPlan, random_stream
from mikit.distillation.training.run import Views
from mikit.distillation.training.trainer import train_student

__all__ = ["auxiliary_teacher", "train_auxiliary_teacher"]


def auxiliary_teacher(
    model_factory: Callable[..., nn.Module], width: float, *, generator: torch.Generator | None = None
) -> nn.Module:
    """Build a network of the student's architecture at another width.

    Args:
        model_factory: Called with ``width=`` and ``generator=``, such as ``functools.partial(ResNet8, channels=1)``.
        width: Its width factor: about twice the student's.
        generator: Source of the initial weights.

    Raises:
        InputError: If the factory does not return a module.

    Pitfalls:
        Pass the factory of the student; it is not checked that the layers correspond.

    Source:
        Passalis, Tzelepi and Tefas (2020), arXiv 2005.00727, for the idea; the released code (passalis/pkth 5766e63)
        has about twice the student's neurons in every layer.

    Example:
        >>> from mikit.models import ResNet8
        >>> auxiliary_teacher(ResNet8, 0.5).fc.in_features
        32
    """
    network = model_factory(width=width, generator=generator)
    if not isinstance(network, nn.Module):
        raise InputError(f"The factory returned a {type(network).__name__}; it must return a torch module.")
    return network


def train_auxiliary_teacher(
    model_factory: Callable[..., nn.Module],
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor,
    plan: TrainingPlan,
    *,
    width: float,
    layer: str,
    teacher_layer: str | None = None,
    weight: float = 1.0,
    views: Views | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
    folder: Path | None = None,
    progress: bool = False,
) -> tuple[nn.Module, TrainingCurve]:
    """Build an auxiliary teacher and train it by cross-entropy and by PKT from the teacher's last layer.

    Args:
        model_factory: As for :func:`auxiliary_teacher`.
        teacher: The trained network, in evaluation mode.
        images: As for :func:`~mikit.distillation.train_student`.
        labels: Class indices ``(n,)``.
        plan: All other settings of the run; its seed also draws the weights.
        width: As for :func:`auxiliary_teacher`.
        layer: The last layer before the logits, of the auxiliary teacher.
        teacher_layer: The same of the teacher; the same name if None.
        weight: Weight of the PKT (combined kernel, Jeffreys) in its unit.
        views: Augmentation; none if None.
        held_out: As for :func:`~mikit.distillation.train_student`.
        folder: As for :func:`~mikit.distillation.train_student`.
        progress: Show a progress bar.

    Returns:
        The network in evaluation mode, ready to teach, and its curve.

    Raises:
        InputError: As :func:`~mikit.distillation.train_student`.

    Cost:
        One training.

    Pitfalls:
        The released procedure starts from a network trained on labels and distills without labels; here the loss is
        the sum of both.

    Source:
        As :func:`auxiliary_teacher`.

    Example:
        >>> from mikit.datasets import digits
        >>> from mikit.models import ResNet8
        >>> part = digits().train.per_class(4, seed=0)
        >>> teacher = ResNet8(width=0.5).eval()
        >>> plan = TrainingPlan(epochs=1, batch=20, rate=0.05)
        >>> network, curve = train_auxiliary_teacher(
        ...     ResNet8, teacher, part.images, part.labels, plan, width=0.25, layer="pool"
        ... )
        >>> network.training, list(curve.records[0].terms)
        (False, ['pkt'])
    """
    network = auxiliary_teacher(model_factory, width, generator=random_stream(plan.seed, "weights"))
    device = next(network.parameters()).device
    some = images[: max(plan.batch, 3)].to(device)
    examples = example_features(network, teacher, some, layer, teacher_layer)
    pkt = PKT.between(*examples, kernel="combined", divergence="jeffreys", generator=random_stream(plan.seed, "losses"))
    terms = {"pkt": DistillationTerm(loss=pkt, layer=layer, teacher_layer=teacher_layer, weight=weight)}
    curve = train_student(
        network, teacher, terms, images, labels, plan, views=views, held_out=held_out, folder=folder, progress=progress
    )
    return network.eval(), curve
