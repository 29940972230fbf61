"""Fitting learned estimators: minibatch AdamW with early stopping on samples that were not trained on."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.core import require
from mikit.core.errors import InputError

__all__ = ["FitData", "FitRecord", "Training", "minimize"]


@final
@dataclass(frozen=True)
class Training:
    """A training recipe.

    Attributes:
        steps: Largest number of optimizer steps.
        batch: Samples per step; all samples where there are fewer.
        learning_rate: Peak rate of a one-cycle schedule (10 % warm-up, cosine decay).
        weight_decay: Decoupled weight decay, for the parameter groups that do not set their own.
        every: Steps between two evaluations on the select part.
        patience: Evaluations without improvement after which training stops.
        clip: Largest gradient norm.
    """

    steps: int = 1000
    batch: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    every: int = 25
    patience: int = 12
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "every", "patience"):
            require.at_least(getattr(self, name), f"Training.{name}")
        if not self.learning_rate > 0:
            raise InputError(f"Training.learning_rate is {self.learning_rate}; it must be positive.")


@final
@dataclass(frozen=True)
class FitRecord:
    """The course of a fit.

    Attributes:
        steps: Optimizer steps taken; 0 for an estimator without learned parts or with a closed form.
        best_step: Step whose state was kept.
        history: Pairs of step and loss on the select part (on the fit part where there is no select part).
        stopped_early: Whether patience ran out before the last step.
    """

    steps: int = 0
    best_step: int = 0
    history: tuple[tuple[int, float], ...] = ()
    stopped_early: bool = False


@final
@dataclass(frozen=True)
class FitData:
    """The arguments of :meth:`~mikit.estimators.Estimator.fit`, as its hook ``_fit`` gets them."""

    x: Tensor
    y: Tensor
    select: tuple[Tensor, Tensor] | None
    generator: torch.Generator
    training: Training | None

    @property
    def watched(self) -> tuple[Tensor, Tensor]:
        """The select part, or the fit part where there is no select part."""
        return (self.x, self.y) if self.select is None else self.select

    @property
    def pooled(self) -> tuple[Tensor, Tensor]:
        """The fit and select parts together."""
        if self.select is None:
            return self.x, self.y
        return torch.cat([self.x, self.select[0]]), torch.cat([self.y, self.select[1]])


def minimize(
    module: nn.Module, data: FitData, *, param_groups: Iterable[Mapping[str, Any]], training: Training
) -> FitRecord:
    """Minimize ``module(x, y)`` by AdamW over shuffled minibatches and restore the best state on the watched part.

    Raises:
        InputError: If the loss becomes NaN or infinite, with the step at which it did.
    """
    groups = [{"weight_decay": training.weight_decay, **group} for group in param_groups]
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
    # One rate more than there are steps, because the schedule also advances after the last step.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, total_steps=training.steps + 1, pct_start=0.1, cycle_momentum=False
    )
    # The untrained state is the first candidate: a fit that only memorizes the fit part leaves the module as it was
    # built. A normalizing flow, for one, starts at the Gaussian solution, which is hard to beat with few samples.
    history = [(0, _evaluate(module, *data.watched))]
    best_loss, best_step, best_state = history[0][1], 0, copy.deepcopy(module.state_dict())
    batches = _shuffled_batches(data.x.shape[0], training.batch, data.generator)
    without_gain, step = 0, 0
    module.train()
    for step in range(1, training.steps + 1):
        rows = next(batches).to(data.x.device)
        loss = module(data.x[rows], data.y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, training.clip)
        optimizer.step()
        schedule.step()
        if step % training.every and step < training.steps:
            continue
        value = _evaluate(module, *data.watched)
        history.append((step, value))
        if not math.isfinite(value):
            raise InputError(
                f"The loss of {type(module).__name__} became {value} after {step} training steps. Lower "
                f"Training.learning_rate (now {training.learning_rate:g}) or standardize the features."
            )
        if value < best_loss:
            best_loss, best_step, without_gain = value, step, 0
            best_state = copy.deepcopy(module.state_dict())
            continue
        without_gain += 1
        if without_gain >= training.patience:
            break
    # Evaluations on the select part are noisy, so training went on past the minimum; return to it.
    module.load_state_dict(best_state)
    module.eval()
    return FitRecord(step, best_step, tuple(history), stopped_early=step < training.steps)


def _shuffled_batches(n: int, most: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield row indices of batches of one size, endlessly, in a new order each epoch."""
    size = min(most, n)
    while True:
        order = torch.randperm(n, generator=generator)
        # The rest of an epoch that does not fill a batch is dropped. Contrastive objectives depend on the number of
        # samples (InfoNCE is at most its logarithm), so a smaller batch would have another objective.
        yield from (order[start : start + size] for start in range(0, n - size + 1, size))


def _evaluate(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the loss in evaluation mode: without dropout, and without a change of running averages."""
    module.eval()
    with torch.no_grad():
        value = float(module(x, y))
    module.train()
    return value
