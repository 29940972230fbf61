"""A small trainer: one loop for networks that learn from labels, from a teacher, or from both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.distillation.networks import require_teacher
from mikit.distillation.training.curve import TrainingCurve
from mikit.distillation.training.plan import DistillationTerm, TrainingPlan
from mikit.distillation.training.run import Run, RunData, Views

__all__ = ["train_network", "train_student"]


def train_network(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    plan: TrainingPlan,
    *,
    views: Views | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
    folder: Path | None = None,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    progress: bool = False,
) -> TrainingCurve:
    """Train ``network`` on labels, in place.

    Args:
        network: Returns logits ``(n, classes)`` for images; on any device.
        images: Float tensor, samples along the first axis.
        labels: Class indices ``(n,)``.
        plan: All other settings of the run.
        views: Augmentation; none if None.
        held_out: Images and labels to evaluate on after epochs. They are used for nothing else.
        folder: Folder for ``checkpoint.pt`` and ``log.jsonl``. An interrupted run, even by ``kill -9``, is resumed from
            there, with the same results as an uninterrupted one; a finished run returns at once.
        on_epoch: Called with the number of finished epochs and the network: before the first step with 0, then after
            every epoch, before that epoch's checkpoint; see :class:`~mikit.distillation.PhaseRecorder`. It must not
            change the state of training. After an interruption it is called again for the epoch without a checkpoint.
        progress: Show a progress bar with the remaining time on standard error.

    Returns:
        One record per epoch. If the loss or a parameter is no longer finite, the run ends with that epoch: ``diverged``
        of the curve is set and its accuracy raises, the log contains that epoch, and the checkpoint the one before.

    Raises:
        InputError: If images and labels do not fit each other or the plan, or the folder contains another run.

    Cost:
        The forward and backward passes; one synchronization and one checkpoint per epoch.

    Pitfalls:
        The number of threads affects the last bits of sums, and training amplifies such differences: call
        ``torch.set_num_threads(1)`` if runs must be bitwise reproducible on other machines.

    Example:
        >>> from mikit.datasets import digits
        >>> from mikit.distillation import random_stream
        >>> from mikit.models import ResNet8
        >>> data = digits()
        >>> part = data.train.per_class(5, seed=0)
        >>> network = ResNet8(width=0.25, generator=random_stream(0, "weights"))
        >>> plan = TrainingPlan(epochs=2, batch=25, rate=0.1)
        >>> curve = train_network(network, part.images, part.labels, plan, views=data.views)
        >>> len(curve.records), curve.records[1].task < curve.records[0].task
        (2, True)
    """
    run = Run(network, RunData(images, labels, views, held_out), plan)
    return run.train(folder, on_epoch, progress)


def train_student(
    student: nn.Module,
    teacher: nn.Module,
    terms: Mapping[str, DistillationTerm],
    images: Tensor,
    labels: Tensor,
    plan: TrainingPlan,
    *,
    views: Views | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
    folder: Path | None = None,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    progress: bool = False,
) -> TrainingCurve:
    r"""Train ``student`` on labels and on a teacher's activations, in place.

    Formula: every step minimizes

    .. math:: \mathrm{CE}(\text{student}(v), y) + \sum_k w_k \, L_k(s_k, t_k)

    over one batch of views :math:`v` for both student and teacher; the teacher gets no gradient.

    Args:
        student: The network to train.
        teacher: The trained network, in evaluation mode.
        terms: The losses by name, as in the log; built from :func:`~mikit.distillation.example_features`. Their
            parameters train with the student.
        images: As for :func:`train_network`, and so are the other arguments.
        labels: Class indices ``(n,)``.
        plan: All other settings of the run.
        views: Augmentation; none if None.
        held_out: Images and labels to evaluate on after epochs.
        folder: Folder for checkpoint and log; the checkpoint contains the losses' parameters and buffers as well.
        on_epoch: Called before the first step and after every epoch.
        progress: Show a progress bar.

    Returns:
        One record per epoch, as :func:`train_network`.

    Raises:
        InputError: If the teacher is in training mode or is the student, if there is no term, if a layer does not
            exist, and as :func:`train_network`.

    Cost:
        The student's forward and backward passes, the teacher's forward pass, and the losses.

    Pitfalls:
        A student trained alone with the same seed and initial weights gets the same views, so runs are paired: compare
        them seed by seed.

    Example:
        >>> import mikit, torch
        >>> data = mikit.datasets.digits()
        >>> part = data.train.per_class(5, seed=0)
        >>> student, teacher = (mikit.models.ResNet8(width=width) for width in (0.25, 0.5))
        >>> vid = mikit.VID.between(torch.randn(64, 16), torch.randn(64, 32))
        >>> plan = TrainingPlan(epochs=1, batch=25, rate=0.05)
        >>> terms = {"vid": DistillationTerm(loss=vid, layer="pool")}
        >>> curve = train_student(student, teacher.eval(), terms, part.images, part.labels, plan, views=data.views)
        >>> list(curve.records[0].terms)
        ['vid']
    """
    require_teacher(teacher, student)
    if not terms:
        raise InputError("terms is empty, so nothing would be learned from the teacher. Use train_network instead.")
    run = Run(student, RunData(images, labels, views, held_out), plan, teacher, terms)
    return run.train(folder, on_epoch, progress)
