"""A small trainer: one loop for networks that learn from labels, from a teacher, or from both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mikit.activations import CapturedActivations, capture
from mikit.core.errors import InputError
from mikit.distillation.training.checkpoints import Checkpoint, described_run
from mikit.distillation.training.curve import EpochRecord, TrainingCurve, write_log
from mikit.distillation.training.optimizers import check_optimizer
from mikit.distillation.training.plan import DistillationTerm, TrainingPlan, random_stream

__all__ = ["Views", "accuracy_on", "logits_on", "train_network", "train_student"]

_BATCH_TO_EVALUATE = 500


class Views(Protocol):
    """Draws augmented views of a batch of images, such as the ``views`` of :mod:`mikit.datasets`."""

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return views of ``images``, drawn from ``generator`` only."""


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
        network: Gives logits ``(n, classes)`` for images; on any device.
        images: Float tensor, samples along the first axis.
        labels: Class indices ``(n,)``.
        plan: Everything else that decides the run.
        views: Augmentation; none if None.
        held_out: Images and labels to look at after epochs. They never train and choose nothing.
        folder: Where to keep ``checkpoint.pt`` and ``log.jsonl``. A run that was interrupted, by ``kill -9`` too,
            goes on from there and gives the numbers of one that was not; a finished one returns at once.
        on_epoch: Called with the number of epochs done and the network: before the first step with 0, then after every
            epoch, before that epoch's checkpoint; see :class:`~mikit.distillation.PhaseRecorder`. It must leave
            training undisturbed. After an interruption it is called again for the epoch that was not checkpointed.
        progress: Show a bar with the time left on standard error.

    Returns:
        One record an epoch. A run whose loss or parameters stop being finite ends with that epoch; the curve says so in
        ``diverged`` and refuses to tell an accuracy, the log holds that epoch, the checkpoint the one before.

    Raises:
        InputError: If images and labels do not fit each other or the plan, or the folder holds another run.

    Cost:
        The forward and backward passes; one synchronisation and one checkpoint an epoch.

    Pitfalls:
        The number of threads decides the last bits of a sum, and training amplifies them: call
        ``torch.set_num_threads(1)`` where runs must repeat to the bit on other machines.

    Example:
        >>> from mikit.datasets import digits
        >>> from mikit.models import ResNet8
        >>> data = digits()
        >>> part = data.train.per_class(5, seed=0)
        >>> network = ResNet8(width=0.25, generator=random_stream(0, "weights"))
        >>> plan = TrainingPlan(epochs=2, batch=25, rate=0.1)
        >>> curve = train_network(network, part.images, part.labels, plan, views=data.views)
        >>> len(curve.records), curve.records[1].task < curve.records[0].task
        (2, True)
    """
    run = _Run(network, None, {}, images, labels, plan, views, held_out)
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

    Formula: every step minimises

    .. math:: \mathrm{CE}(\text{student}(v), y) + \sum_k w_k \, L_k(s_k, t_k)

    over one batch of views :math:`v`, which student and teacher both see; the teacher gets no gradient.

    Args:
        student: The network to train.
        teacher: The trained network, in evaluation mode.
        terms: The losses by name, as the log shows them; built from :func:`~mikit.distillation.example_features`. Their
            parameters train with the student.
        images: As for :func:`train_network`, and so are the other arguments.
        labels: Class indices ``(n,)``.
        plan: Everything else that decides the run.
        views: Augmentation; none if None.
        held_out: Images and labels to look at after epochs.
        folder: Where to keep checkpoint and log; the checkpoint holds the losses' parameters and buffers too.
        on_epoch: Called before the first step and after every epoch.
        progress: Show a bar.

    Returns:
        One record an epoch, as :func:`train_network`.

    Raises:
        InputError: If the teacher is in training mode or is the student, if there is no term, if a layer does not
            exist, and as :func:`train_network`.

    Cost:
        The student's forward and backward passes, the teacher's forward pass, and the losses.

    Pitfalls:
        A student alone with the same seed and initial weights sees the same views, so gains are paired: compare runs
        seed by seed.

    Example:
        >>> import mikit
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
    if teacher is student:
        raise InputError("Teacher and student are one module; a student learns from another network.")
    if any(module.training for module in teacher.modules()):
        raise InputError(
            "The teacher is in training mode, so its features would depend on the batch and its statistics would move. "
            "Call teacher.eval()."
        )
    if not terms:
        raise InputError("terms is empty, so nothing would be learned from the teacher. Use train_network instead.")
    run = _Run(student, teacher, terms, images, labels, plan, views, held_out)
    return run.train(folder, on_epoch, progress)


def logits_on(network: nn.Module, images: Tensor, *, autocast: bool = False) -> Tensor:
    """Return what ``network`` gives for ``images`` in evaluation mode, on the CPU; its mode is left as it was.

    Example:
        >>> logits_on(nn.Dropout(), torch.ones(3, 2)).tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    was_training = network.training
    network.eval()
    device = _device(network)
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return torch.cat([network(some.to(device)).cpu() for some in torch.split(images, _BATCH_TO_EVALUATE)])
    finally:
        network.train(was_training)


def accuracy_on(network: nn.Module, images: Tensor, labels: Tensor, *, autocast: bool = False) -> float:
    """Return the share of ``images`` that ``network`` classifies right, in evaluation mode.

    Example:
        >>> accuracy_on(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 0]))
        0.75
    """
    guesses = logits_on(network, images, autocast=autocast).argmax(1)
    return float((guesses == labels.cpu()).double().mean())


@final
class _Run:
    """One training run: what it trains on, its loss, its steps."""

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module | None,
        terms: Mapping[str, DistillationTerm],
        images: Tensor,
        labels: Tensor,
        plan: TrainingPlan,
        views: Views | None,
        held_out: tuple[Tensor, Tensor] | None,
    ) -> None:
        _require_labelled(images, labels, "images")
        if held_out is not None:
            _require_labelled(*held_out, "held-out images")
        if plan.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch names no such form
        self.network, self.teacher, self.terms = network, teacher, dict(terms)
        self.images, self.labels, self.plan = images, labels, plan
        self.views, self.held_out = views, held_out
        self.device = _device(network)
        self.batch = min(plan.batch, images.shape[0])
        self.steps = images.shape[0] // self.batch
        self.generator = random_stream(plan.seed, "views")
        self.optimiser, self.schedule = self._optimiser()

    def train(
        self, folder: Path | None, on_epoch: Callable[[int, nn.Module], None] | None, progress: bool
    ) -> TrainingCurve:
        """Train from the start or from the checkpoint."""
        told = on_epoch or (lambda epoch, network: None)
        with torch.random.fork_rng(), self._captured() as acts, _bar(progress, self.plan.epochs) as show:
            torch.manual_seed(random_stream(self.plan.seed, "network").initial_seed())
            checkpoint = None if folder is None else self._checkpoint(folder)
            records = [] if checkpoint is None else checkpoint.load()
            if not records:
                told(0, self.network)
            for epoch in range(len(records) + 1, self.plan.epochs + 1):
                show(len(records))
                records.append(self._epoch(epoch, acts))
                if folder is not None:
                    write_log(folder / "log.jsonl", records)
                if (diverged := self._divergence(records[-1])) is not None:
                    return TrainingCurve(self.plan, tuple(records), diverged)
                told(epoch, self.network)
                if checkpoint is not None:
                    checkpoint.save(records)
            show(len(records))
            if folder is not None:  # The log may have been lost, or be ahead of the checkpoint.
                write_log(folder / "log.jsonl", records)
        return TrainingCurve(self.plan, tuple(records))

    def _epoch(self, epoch: int, acts: Mapping[str, tuple[CapturedActivations, CapturedActivations]]) -> EpochRecord:
        start = time.perf_counter()
        self.network.train()
        for term in self.terms.values():
            told: Callable[[int], None] | None = getattr(term.loss, "set_epoch", None)
            if told is not None:
                told(epoch - 1)
        sums = torch.zeros(3 + len(self.terms), dtype=torch.float64, device=self.device)
        order = torch.randperm(self.images.shape[0], generator=self.generator)
        for rows in torch.split(order[: self.steps * self.batch], self.batch):
            images, labels = self.images[rows], self.labels[rows].to(self.device)
            if self.views is not None:
                images = self.views(images, generator=self.generator)
            images = images.to(self.device)
            if self.plan.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.autocast):
                if self.teacher is not None:
                    with torch.no_grad():
                        self.teacher(images)
                logits = self.network(images)
                loss = task = cross_entropy(logits, labels)
                values = []
                for name, term in self.terms.items():
                    value = term.value(*acts[name], labels)
                    loss = loss + term.weight * value
                    values.append(value)
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            if self.plan.clip is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip)
            self.optimiser.step()
            self.schedule.step()
            right = (logits.detach().argmax(1) == labels).double().mean()
            sums += torch.stack([entry.detach().double() for entry in (loss, task, right, *values)])
        means = [float(entry) for entry in sums / self.steps]
        looked = epoch % self.plan.evaluate_every == 0 or epoch == self.plan.epochs
        return EpochRecord(
            epoch=epoch,
            loss=means[0],
            task=means[1],
            terms=dict(zip(self.terms, means[3:], strict=True)),
            train_accuracy=means[2],
            accuracy=self._accuracy() if looked else None,
            rate=float(self.optimiser.param_groups[0]["lr"]),
            seconds=time.perf_counter() - start,
        )

    def _accuracy(self) -> float | None:
        if self.held_out is None:
            return None
        return accuracy_on(self.network, *self.held_out, autocast=self.plan.autocast)

    def _divergence(self, record: EpochRecord) -> str | None:
        """Return in a sentence what is no longer finite; None where everything is."""
        values = {"the loss": record.loss, "cross-entropy": record.task, **record.terms}
        lost = [f"{name} is {value:g}" for name, value in values.items() if not math.isfinite(value)]
        lost += [
            f"the parameter {name!r} is not finite"
            for name, parameter in self.network.named_parameters()
            if not bool(torch.isfinite(parameter).all())
        ][:1]
        if not lost:
            return None
        return (
            f"The training with seed {self.plan.seed} diverged in epoch {record.epoch}: {', '.join(lost)}. Lower the "
            "learning rate or the weights of the losses, or clip the gradient."
        )

    def _optimiser(self) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.OneCycleLR]:
        plan = self.plan
        groups: list[dict[str, Any]] = [{"params": list(self.network.parameters())}]
        for term in self.terms.values():
            own = getattr(term.loss, "param_groups", None)
            trained = [parameter for parameter in term.loss.parameters() if parameter.requires_grad]
            groups += own() if own is not None else [{"params": trained}] if trained else []
        groups = [{"weight_decay": plan.weight_decay, "lr": plan.rate, **group} for group in groups]
        optimiser = torch.optim.SGD(groups, lr=plan.rate, momentum=plan.momentum, nesterov=plan.momentum > 0)
        check_optimizer(optimiser, self.network, *(term.loss for term in self.terms.values()))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            [group["lr"] for group in groups],
            total_steps=plan.epochs * self.steps,
            pct_start=plan.warm_up,
            cycle_momentum=False,
        )
        return optimiser, schedule

    def _checkpoint(self, folder: Path) -> Checkpoint:
        folder.mkdir(parents=True, exist_ok=True)
        run = described_run(self.plan, self.network, self.teacher, self.terms, self.images, self.labels)
        return Checkpoint(
            folder / "checkpoint.pt",
            run,
            network=self.network,
            losses={name: term.loss for name, term in self.terms.items()},
            optimiser=self.optimiser,
            schedule=self.schedule,
            views=self.generator,
        )

    @contextmanager
    def _captured(self) -> Iterator[dict[str, tuple[CapturedActivations, CapturedActivations]]]:
        """Give the activations of every term; the hooks are gone after the block."""
        with ExitStack() as stack:
            acts = {}
            for name, term in self.terms.items():
                assert self.teacher is not None
                own = capture(self.network, term.layers, readout=term.readout, detach=False)
                source = capture(self.teacher, term.sources, readout=term.readout)
                acts[name] = (stack.enter_context(own), stack.enter_context(source))
            yield acts


def _device(network: nn.Module) -> torch.device:
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _require_labelled(images: Tensor, labels: Tensor, what: str) -> None:
    if labels.ndim != 1 or labels.dtype != torch.long or labels.shape[0] != images.shape[0] or not len(labels):
        raise InputError(
            f"The {what} have shape {tuple(images.shape)} and their labels dtype {labels.dtype} and shape "
            f"{tuple(labels.shape)}; give one class index (torch.long) for every image, and at least one image."
        )


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function that moves a bar on standard error to the epochs done."""
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("Training", total=total)
        yield lambda done: bar.update(task, completed=done)
