"""Settings of a training run: the plan, the terms of the loss, and the random streams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from mikit.activations import Readout
from mikit.core import require
from mikit.core.errors import InputError

__all__ = ["DistillationTerm", "TrainingPlan", "random_stream"]

_PURPOSES = ("weights", "views", "losses", "network")


@final
@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Stochastic gradient descent with Nesterov momentum and a one-cycle schedule, with all its settings.

    Attributes:
        epochs: Passes over the images.
        batch: Number of images in a step; a last, smaller batch of an epoch is left out. All images if there are fewer.
        rate: Peak learning rate of the network, and of the losses' parameters whose group has no ``lr``.
        momentum: Nesterov momentum; 0 for none.
        weight_decay: Weight decay of every group that has none.
        warm_up: Fraction of the steps in which the rate increases; it decreases in the others.
        clip: Largest norm of the network's gradient of the whole loss; None for no limit. The gradients of the losses'
            own parameters are not clipped.
        autocast: Run forward passes in bfloat16 by torch's autocast.
        channels_last: Store images and convolutions in channels-last memory format.
        evaluate_every: Number of epochs between evaluations on the held-out images; the last epoch is always evaluated.
        seed: Seed of order and views, and of the network's own randomness (dropout).

    Raises:
        InputError: If a number is outside its range.

    Pitfalls:
        To compare runs, use the same seed and equal initial weights, drawn with ``random_stream(seed, "weights")``;
        they then get the same images in the same order and the same views.

    Example:
        >>> TrainingPlan(epochs=40, batch=64, rate=0.1).clip
        5.0
        >>> TrainingPlan(epochs=0, batch=64, rate=0.1)
        Traceback (most recent call last):
        mikit.core.errors.InputError: TrainingPlan.epochs is 0; it must be at least 1.
    """

    epochs: int
    batch: int
    rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.2
    clip: float | None = 5.0
    autocast: bool = False
    channels_last: bool = False
    evaluate_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "evaluate_every"):
            require.at_least(getattr(self, name), f"TrainingPlan.{name}")
        require.positive(self.rate, "TrainingPlan.rate")
        if self.clip is not None:
            require.positive(self.clip, "TrainingPlan.clip")
        if not 0 <= self.momentum < 1:
            raise InputError(f"TrainingPlan.momentum is {self.momentum}; it must lie in [0, 1).")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"TrainingPlan.weight_decay is {self.weight_decay}; it cannot be negative or infinite.")
        if not 0 < self.warm_up < 1:
            raise InputError(f"TrainingPlan.warm_up is {self.warm_up}; it must lie between 0 and 1.")
        if self.seed < 0:
            raise InputError(f"TrainingPlan.seed is {self.seed}; it cannot be negative.")


@final
@dataclass(frozen=True, kw_only=True)
class DistillationTerm:
    """One loss between a layer of the student and a layer of the teacher, or between several of each.

    Attributes:
        loss: Called with the student's and the teacher's activations: an estimator of mikit, or any module that
            returns a 0-dim tensor to minimize. If it has ``param_groups()``, these are trained with the student, and if
            it has ``set_epoch``, that is called with the number of finished epochs.
        layer: Layer of the student, a dotted module name; or a tuple of them, for a loss on a mapping from names to
            activations, such as :class:`~mikit.MIMKD`.
        teacher_layer: Layer of the teacher, or equally many of them; the same names if None. The teacher's mapping has
            the names of the student's layers.
        weight: Factor of the loss; the task's loss has weight 1.
        readout: Pooling of the activations, as for :func:`mikit.capture`: ``"pool"`` for vectors, ``"whole"`` for maps.
        labels: Whether the loss takes ``labels=``, the class indices of the batch.

    Raises:
        InputError: If the weight is negative or not finite, or the numbers of layers differ.

    Example:
        >>> import mikit
        >>> DistillationTerm(loss=mikit.MMD(), layer="pool", weight=0.1).teacher_layer is None
        True
    """

    loss: nn.Module
    layer: str | tuple[str, ...]
    teacher_layer: str | tuple[str, ...] | None = None
    weight: float = 1.0
    readout: str | Readout = "pool"
    labels: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise InputError(
                f"The weight of the loss on the layer {self.layer!r} is {self.weight}; it must be finite and cannot be "
                "negative."
            )
        if not self.layers or len(self.layers) != len(self.sources) or self.several != isinstance(self.source, tuple):
            raise InputError(
                f"The layers of a loss are {self.layer!r} of the student and {self.source!r} of the teacher; pass one "
                "layer of each, or tuples of equally many."
            )

    @property
    def source(self) -> str | tuple[str, ...]:
        """Layer or layers of the teacher."""
        return self.layer if self.teacher_layer is None else self.teacher_layer

    @property
    def several(self) -> bool:
        """Whether the loss takes mappings."""
        return isinstance(self.layer, tuple)

    @property
    def layers(self) -> tuple[str, ...]:
        """The student's layers, one or several."""
        return _tuple(self.layer)

    @property
    def sources(self) -> tuple[str, ...]:
        """The teacher's layers, in the order of the student's."""
        return _tuple(self.source)

    def value(self, own: Mapping[str, Tensor], source: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Return the loss of a batch, from the activations of both networks by layer, without the weight."""
        students = {name: own[name] for name in self.layers}
        teachers = {name: source[other] for name, other in zip(self.layers, self.sources, strict=True)}
        features: tuple[Any, Any] = (students, teachers)
        if not self.several:
            features = (students[self.layers[0]], teachers[self.layers[0]])
        value: Tensor = self.loss(*features, labels=labels) if self.labels else self.loss(*features)
        return value


def _tuple(layers: str | tuple[str, ...]) -> tuple[str, ...]:
    return layers if isinstance(layers, tuple) else (layers,)


def random_stream(seed: int, purpose: Literal["weights", "views", "losses", "network"]) -> torch.Generator:
    """Return the generator for one purpose, so that the draws of one part do not change those of another.

    Args:
        seed: Seed of the run.
        purpose: ``"weights"`` for the student's initial weights, ``"views"`` for order and augmentation,
            ``"losses"`` for the losses' own parameters, ``"network"`` for randomness inside a forward pass.

    Raises:
        InputError: If the seed is negative or the purpose does not exist.

    Example:
        >>> first, second = (random_stream(0, "views") for _ in range(2))
        >>> bool(torch.rand(1, generator=first) == torch.rand(1, generator=second))
        True
    """
    if seed < 0:
        raise InputError(f"seed is {seed}; it cannot be negative.")
    if purpose not in _PURPOSES:
        raise InputError(f"purpose is {purpose!r}; it must be one of {', '.join(_PURPOSES)}.")
    return torch.Generator().manual_seed(seed * 101 + _PURPOSES.index(purpose))
