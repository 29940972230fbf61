"""One training run: its data, its loss, its steps, and how it is resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mikit.activations import CapturedActivations, capture
from mikit.core.errors import InputError
from mikit.distillation.training.checkpoints import Checkpoint, described_run
from mikit.distillation.training.curve import EpochRecord, TrainingCurve, write_log
from mikit.distillation.training.evaluation import accuracy_on, device_of
from mikit.distillation.training.optimizers import check_optimizer, groups_of
from mikit.distillation.training.plan import DistillationTerm, TrainingPlan, random_stream

__all__ = ["Run", "RunData", "Views"]


class Views(Protocol):
    """Draws augmented views of a batch of images, such as the ``views`` of :mod:`mikit.datasets`."""

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return views of ``images``, drawn from ``generator`` only."""


@final
@dataclass(frozen=True)
class RunData:
    """The images of a run: those to train on, their augmentation, and those to evaluate on."""

    images: Tensor
    labels: Tensor
    views: Views | None
    held_out: tuple[Tensor, Tensor] | None

    def __post_init__(self) -> None:
        _require_labeled(self.images, self.labels, "images")
        if self.held_out is not None:
            _require_labeled(*self.held_out, "held-out images")


@final
class Run:
    """One training run: its data, its loss, its steps."""

    def __init__(
        self,
        network: nn.Module,
        data: RunData,
        plan: TrainingPlan,
        teacher: nn.Module | None = None,
        terms: Mapping[str, DistillationTerm] | None = None,
    ) -> None:
        if plan.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch names no such form
        self.network, self.data, self.plan = network, data, plan
        self.teacher, self.terms = teacher, dict(terms or {})
        self.device = device_of(network)
        self.batch = min(plan.batch, len(data.images))
        self.steps = len(data.images) // self.batch
        self.generator = random_stream(plan.seed, "views")
        self.optimizer, self.schedule = self._optimizer()

    def train(
        self, folder: Path | None, on_epoch: Callable[[int, nn.Module], None] | None, progress: bool
    ) -> TrainingCurve:
        """Train from the start or from the checkpoint."""
        notify = on_epoch or (lambda epoch, network: None)
        with torch.random.fork_rng(), self._captured() as acts, _bar(progress, self.plan.epochs) as show:
            # Dropout draws from torch's global state, which fork_rng restores for the caller. Order and views have a
            # generator of their own, so a loss or a network that draws more does not change the images that are seen.
            torch.manual_seed(random_stream(self.plan.seed, "network").initial_seed())
            checkpoint = None if folder is None else self._checkpoint(folder)
            records = [] if checkpoint is None else checkpoint.load()
            if not records:
                notify(0, self.network)
            for epoch in range(len(records) + 1, self.plan.epochs + 1):
                show(len(records))
                records.append(self._epoch(epoch, acts))
                # Log first, checkpoint last: a run that is killed in between repeats the epoch from the checkpoint and
                # writes the same line again, and ``on_epoch`` is called twice rather than never.
                if folder is not None:
                    write_log(folder / "log.jsonl", records)
                if (diverged := self._divergence(records[-1])) is not None:
                    return TrainingCurve(self.plan, tuple(records), diverged)
                notify(epoch, self.network)
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
            set_epoch: Callable[[int], None] | None = getattr(term.loss, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch - 1)
        # Sums stay on the device and are read once: every look at a value would make each step wait for the device.
        sums = torch.zeros(3 + len(self.terms), dtype=torch.float64, device=self.device)
        for images, labels in self._batches():
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
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            # The network alone: the losses' own parameters would take part in the norm, and a critic with a large
            # gradient would shrink the student's step.
            if self.plan.clip is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip)
            self.optimizer.step()
            self.schedule.step()
            right = (logits.detach().argmax(1) == labels).double().mean()
            sums += torch.stack([entry.detach().double() for entry in (loss, task, right, *values)])
        means = [float(entry) for entry in sums / self.steps]
        evaluated = epoch % self.plan.evaluate_every == 0 or epoch == self.plan.epochs
        return EpochRecord(
            epoch=epoch,
            loss=means[0],
            task=means[1],
            terms=dict(zip(self.terms, means[3:], strict=True)),
            train_accuracy=means[2],
            accuracy=self._accuracy() if evaluated else None,
            rate=float(self.optimizer.param_groups[0]["lr"]),
            seconds=time.perf_counter() - start,
        )

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the views and labels of an epoch; a last, smaller batch is left out."""
        data = self.data
        order = torch.randperm(len(data.images), generator=self.generator)
        for rows in torch.split(order[: self.steps * self.batch], self.batch):
            images, labels = data.images[rows], data.labels[rows].to(self.device)
            if data.views is not None:
                images = data.views(images, generator=self.generator)
            images = images.to(self.device)
            if self.plan.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels

    def _accuracy(self) -> float | None:
        if self.data.held_out is None:
            return None
        return accuracy_on(self.network, *self.data.held_out, autocast=self.plan.autocast)

    def _divergence(self, record: EpochRecord) -> str | None:
        """Return a sentence on what is no longer finite; None if everything is finite."""
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

    def _optimizer(self) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.OneCycleLR]:
        plan = self.plan
        groups: list[dict[str, Any]] = [{"params": list(self.network.parameters())}]
        groups += [group for term in self.terms.values() for group in groups_of(term.loss)]
        groups = [{"weight_decay": plan.weight_decay, "lr": plan.rate, **group} for group in groups]
        optimizer = torch.optim.SGD(groups, lr=plan.rate, momentum=plan.momentum, nesterov=plan.momentum > 0)
        check_optimizer(optimizer, self.network, *(term.loss for term in self.terms.values()))
        # One peak rate for each group: a single number would give the losses' parameters the rate of the network.
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in groups],
            total_steps=plan.epochs * self.steps,
            pct_start=plan.warm_up,
            cycle_momentum=False,
        )
        return optimizer, schedule

    def _checkpoint(self, folder: Path) -> Checkpoint:
        folder.mkdir(parents=True, exist_ok=True)
        run = described_run(self.plan, self.network, self.teacher, self.terms, self.data.images, self.data.labels)
        return Checkpoint(
            folder / "checkpoint.pt",
            run,
            network=self.network,
            losses={name: term.loss for name, term in self.terms.items()},
            optimizer=self.optimizer,
            schedule=self.schedule,
            views=self.generator,
        )

    @contextmanager
    def _captured(self) -> Iterator[dict[str, tuple[CapturedActivations, CapturedActivations]]]:
        """Yield the activations of every term; the hooks are removed after the block."""
        with ExitStack() as stack:
            acts = {}
            for name, term in self.terms.items():
                assert self.teacher is not None
                students = capture(self.network, term.layers, readout=term.readout, detach=False)
                teachers = capture(self.teacher, term.sources, readout=term.readout)
                acts[name] = (stack.enter_context(students), stack.enter_context(teachers))
            yield acts


def _require_labeled(images: Tensor, labels: Tensor, what: str) -> None:
    if labels.ndim != 1 or labels.dtype != torch.long or labels.shape[0] != images.shape[0] or not len(labels):
        raise InputError(
            f"The {what} have shape {tuple(images.shape)} and their labels dtype {labels.dtype} and shape "
            f"{tuple(labels.shape)}; pass one class index (torch.long) for every image, and at least one image."
        )


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves a progress bar on standard error to the number of finished epochs."""
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("Training", total=total)
        yield lambda done: bar.update(task, completed=done)
