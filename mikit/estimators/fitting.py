"""How a learned measure is fitted: minibatch AdamW with early stopping on rows that were not trained on."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError

__all__ = ["FitRecord", "Training", "minimise"]


@final
@dataclass(frozen=True)
class Training:
    """A training recipe.

    Attributes:
        steps: Optimiser steps at most.
        batch: Rows per step; the whole sample where it is smaller.
        learning_rate: Peak rate of a one-cycle schedule (10 % warm-up, cosine decay).
        weight_decay: Decoupled weight decay, for the groups that do not set their own.
        every: Steps between two looks at the select part.
        patience: Looks without improvement after which training stops.
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
            if getattr(self, name) < 1:
                raise InputError(f"Training.{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.learning_rate > 0:
            raise InputError(f"Training.learning_rate is {self.learning_rate}; it must be positive.")


@final
@dataclass(frozen=True)
class FitRecord:
    """What happened during a fit.

    Attributes:
        steps: Optimiser steps taken; 0 for a measure without learned parts or with a closed form.
        best_step: Step whose state was kept.
        history: Pairs of step and loss on the select part (on the fit part where there is no select part).
        stopped_early: Whether patience ran out before the last step.
    """

    steps: int = 0
    best_step: int = 0
    history: tuple[tuple[int, float], ...] = ()
    stopped_early: bool = False


def minimise(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    param_groups: Iterable[Mapping[str, Any]],
    select: tuple[Tensor, Tensor] | None,
    generator: torch.Generator,
    training: Training,
) -> FitRecord:
    """Minimise ``module(x, y)`` by AdamW over shuffled minibatches and restore the best state on ``select``.

    The loss is watched on ``select`` (on the fit rows where there is none), starting with the untrained state, so
    that a fit which never helps leaves the module as it was built.

    Raises:
        InputError: If the loss turns NaN or infinite, with the step at which it did.
    """
    groups = [{"weight_decay": training.weight_decay, **group} for group in param_groups]
    parameters = [p for group in groups for p in group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, training.learning_rate, total_steps=training.steps + 1, pct_start=0.1, cycle_momentum=False
    )
    watched = select if select is not None else (x, y)
    history = [(0, _evaluate(module, *watched))]
    best_loss, best_step, best_state = history[0][1], 0, copy.deepcopy(module.state_dict())
    n, batch = x.shape[0], min(training.batch, x.shape[0])
    order, position, looks_without_gain, step = torch.empty(0, dtype=torch.long), 0, 0, 0
    module.train()
    for step in range(1, training.steps + 1):
        if position + batch > order.shape[0]:
            order, position = torch.randperm(n, generator=generator), 0
        rows = order[position : position + batch].to(x.device)
        position += batch
        loss = module(x[rows], y[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, training.clip)
        optimiser.step()
        schedule.step()
        if step % training.every == 0 or step == training.steps:
            value = _evaluate(module, *watched)
            history.append((step, value))
            if not math.isfinite(value):
                raise InputError(
                    f"The loss of {type(module).__name__} became {value} after {step} training steps. Lower "
                    f"Training.learning_rate (now {training.learning_rate:g}) or standardise the features."
                )
            if value < best_loss:
                best_loss, best_step, looks_without_gain = value, step, 0
                best_state = copy.deepcopy(module.state_dict())
            else:
                looks_without_gain += 1
                if looks_without_gain >= training.patience:
                    break
    module.load_state_dict(best_state)
    module.eval()
    return FitRecord(step, best_step, tuple(history), stopped_early=step < training.steps)


def _evaluate(module: nn.Module, x: Tensor, y: Tensor) -> float:
    module.eval()
    with torch.no_grad():
        value = float(module(x, y))
    module.train()
    return value
