"""A critic that starts as the log density ratio of a Gaussian distribution and learns what that leaves out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.estimators.base import seeded
from mikit.functional.bounds.infonce import infonce
from mikit.functional.copula.coordinates import AnchoredCoordinates

__all__ = ["RECIPES", "AnchoredCritic", "Recipe", "train_anchored"]

_LEAKY_SLOPE = 0.2


@final
@dataclass(frozen=True)
class Recipe:
    """The architecture and training of a critic."""

    coordinates: bool  # Whether the network sees all coordinates of a side besides its features.
    width: int
    depth: int
    activation: str  # "silu", "gelu" or "leaky_relu".
    dropout: float
    learned_anchor: bool  # Whether the Gaussian part is trained as well.
    learning_rate: float  # Peak of a one-cycle schedule.
    weight_decay: float  # Of the weight matrices.
    steps: int  # Upper limit.
    every: int  # Steps between evaluations on the select rows.
    patience: int  # Evaluations without improvement after which training stops.


RECIPES: dict[str, Recipe] = {
    "small": Recipe(False, 96, 2, "silu", 0.0, False, 3e-3, 0.3, 400, 20, 8),
    "deep": Recipe(True, 128, 3, "gelu", 0.0, True, 6e-3, 0.1, 1200, 50, 10),
    "broad": Recipe(True, 256, 2, "leaky_relu", 0.2, True, 2e-3, 0.1, 800, 50, 6),
}
"""Fast and smooth, long and flexible, or wide and regularized by dropout."""

_EMBEDDING = 32
_BATCH = 512


@final
class AnchoredCritic(nn.Module):
    """``s(x, y) = Gaussian log ratio + <u(x), v(y)> + a(x) + b(y)``, written as one product of embeddings.

    ``coordinates`` of both sides determine the sizes and the Gaussian part; ``recipe`` the architecture.
    """

    def __init__(self, coordinates: AnchoredCoordinates, recipe: Recipe) -> None:
        super().__init__()
        self.sees_coordinates = recipe.coordinates
        self.residual = True
        sides = ((coordinates.x, coordinates.features_x), (coordinates.y, coordinates.features_y))
        self.nets = nn.ModuleList(
            _perceptron(features.shape[1] + (canonical.shape[1] if recipe.coordinates else 0), recipe)
            for canonical, features in sides
        )
        # In canonical coordinates the log ratio of a Gaussian is Σ_i ρ x y / (1 - ρ²) - ρ² (x² + y²) / (2 (1 - ρ²)): a
        # diagonal bilinear form plus squares of each side. Training starts there, so a critic never has to learn the
        # linear dependence, and its gain over the copula is measured against the same function.
        rho = coordinates.correlations.float()
        root = (rho / (1 - rho.square())).sqrt()
        quadratic = -rho.square() / (2 * (1 - rho.square()))
        rank, trained = rho.shape[0], recipe.learned_anchor
        self.skips = nn.ParameterList(
            nn.Parameter(torch.zeros(side.shape[1], rank, device=side.device), requires_grad=trained)
            for side, _ in sides
        )
        self.squares = nn.ParameterList(
            nn.Parameter(torch.zeros(side.shape[1], device=side.device), requires_grad=trained) for side, _ in sides
        )
        with torch.no_grad():
            for skip, square in zip(self.skips, self.squares, strict=True):
                skip[:rank] = torch.diag(root)
                square[:rank] = quadratic

    def embed(self, coordinates: AnchoredCoordinates, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``u (n, k)`` and ``v (n, k)`` of these rows; the scores of all their pairs are ``u @ v.T``."""
        x, offset_x = self._side(0, coordinates.x[rows], coordinates.features_x[rows])
        y, offset_y = self._side(1, coordinates.y[rows], coordinates.features_y[rows])
        one = torch.ones_like(offset_x)
        return torch.cat([x, offset_x, one], 1), torch.cat([y, one, offset_y], 1)

    def _side(self, side: int, coordinates: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        offset = (coordinates.square() @ self.squares[side])[:, None]
        linear = coordinates @ self.skips[side]
        if not self.residual:
            return linear, offset
        found = self.nets[side](torch.cat([coordinates, features], 1) if self.sees_coordinates else features)
        return torch.cat([found[:, :-1], linear], 1), offset + found[:, -1:]

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the weight matrices, which decay, and all other trained parameters."""
        decayed = [p for p in self.nets.parameters() if p.ndim > 1]
        others = [p for p in self.nets.parameters() if p.ndim <= 1]
        others += [p for p in (*self.skips, *self.squares) if p.requires_grad]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@final
@dataclass(frozen=True)
class Trained:
    """A critic after training.

    Attributes:
        critic: In its best state.
        gain: Its InfoNCE on the select rows minus that of the Gaussian part alone, in nats.
        best_step: Step of that value; 0 if training never helped, in which case the critic is the Gaussian part.
        steps: Steps taken.
    """

    critic: AnchoredCritic
    gain: float
    best_step: int
    steps: int


def train_anchored(
    coordinates: AnchoredCoordinates, fit: Tensor, select: Tensor, recipe: Recipe, *, generator: torch.Generator
) -> Trained:
    """Train a critic by symmetric InfoNCE over batches of 512 rows, and keep its best state on the rows ``select``.

    ``coordinates`` of all rows are fitted on the rows ``fit``. The perceptrons are left out of the result if they never
    helped. ``generator`` seeds initialization, batches and dropout.
    """
    with torch.enable_grad(), seeded(generator):
        critic = AnchoredCritic(coordinates, recipe).to(coordinates.x.device)
        groups = critic.param_groups(recipe.weight_decay)
        parameters = [p for group in groups for p in group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=recipe.steps + 1, pct_start=0.1, cycle_momentum=False
        )
        # The Gaussian part alone sets the value to beat: training is stopped early, and undone where it does not help.
        critic.residual = False
        start = best = _bound(critic, coordinates, select)
        critic.residual = True
        best_step, state, looks, step = 0, copy.deepcopy(critic.state_dict()), 0, 0
        batch = min(_BATCH, fit.shape[0])
        order, position = torch.randperm(fit.shape[0]), 0
        for step in range(1, recipe.steps + 1):
            if position + batch > fit.shape[0]:
                order, position = torch.randperm(fit.shape[0]), 0
            rows = fit[order[position : position + batch].to(fit.device)]
            position += batch
            loss = -infonce(*critic.embed(coordinates, rows), both_directions=True)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if step % recipe.every == 0:
                value = _bound(critic, coordinates, select)
                if value > best:
                    best, best_step, looks, state = value, step, 0, copy.deepcopy(critic.state_dict())
                else:
                    looks += 1
                    if looks >= recipe.patience:
                        break
    critic.load_state_dict(state)
    critic.residual = best_step > 0
    critic.eval()
    return Trained(critic, best - start, best_step, step)


def _bound(critic: AnchoredCritic, coordinates: AnchoredCoordinates, rows: Tensor) -> float:
    critic.eval()
    with torch.no_grad():
        value = float(infonce(*critic.embed(coordinates, rows), both_directions=True))
    critic.train()
    return value


def _perceptron(inputs: int, recipe: Recipe) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = inputs
    for _ in range(recipe.depth):
        layers += [nn.Linear(width, recipe.width), _ACTIVATIONS[recipe.activation]()]
        if recipe.dropout:
            layers.append(nn.Dropout(recipe.dropout))
        width = recipe.width
    last = nn.Linear(width, _EMBEDDING + 1)
    nn.init.normal_(last.weight, 0.0, 0.3 / math.sqrt(width))
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": lambda: nn.LeakyReLU(_LEAKY_SLOPE),
}
