"""The loss between one layer of a student and one of a teacher: built from an example batch, and tried out on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.activations import Readout
from mikit.core.errors import InputError
from mikit.distillation.examples import example_features
from mikit.distillation.networks import unchanged

__all__ = ["Pair", "PairLosses", "Wanted", "require_known", "require_pairs", "takes_labels"]

Pair = tuple[str, str]
Wanted = type[nn.Module] | nn.Module | Callable[[Tensor, Tensor], nn.Module]


@final
@dataclass(frozen=True)
class PairLosses:
    """Builds losses between layers of two networks from one example batch."""

    student: nn.Module
    teacher: nn.Module
    example: Tensor | Mapping[str, Any]
    labels: Tensor | None
    generator: torch.Generator | None

    def built(self, pair: Pair, wanted: Wanted, readout: str | Readout | None) -> tuple[nn.Module, str | Readout]:
        """Return the loss of a pair, tried out on the example, and its readout."""
        layer, source = pair
        # Whole activations first: only their layout shows whether a loss on maps can be used.
        chosen: str | Readout = "whole" if readout is None else readout
        x, y = self._features(pair, chosen)
        if readout is None and not (min(x.ndim, y.ndim) == 4 and "nchw" in _shapes(wanted)):
            chosen = "pool"
            x, y = self._features(pair, chosen)
        where = f"between the layers {layer!r} {tuple(x.shape)} and {source!r} {tuple(y.shape)}"
        try:
            if isinstance(wanted, type):
                between = getattr(wanted, "between", None)
                loss = wanted() if between is None else between(x, y, generator=self.generator)
            elif isinstance(wanted, nn.Module):
                loss = wanted
            else:
                loss = wanted(x, y)
        except (InputError, TypeError) as cause:
            raise InputError(f"The loss {where} could not be built. {cause}") from cause
        if not isinstance(loss, nn.Module):
            kind = type(loss).__name__
            raise InputError(
                f"The loss {where} is of type {kind}; pass a loss, or a class or function that builds one."
            )
        loss = loss.to(x.device)
        self._try_out(loss, x, y, where)
        return loss, chosen

    def _features(self, pair: Pair, readout: str | Readout) -> tuple[Tensor, Tensor]:
        return example_features(self.student, self.teacher, self.example, *pair, readout=readout)

    def _try_out(self, loss: nn.Module, x: Tensor, y: Tensor, where: str) -> None:
        """Call the loss on the example, so that it refuses here and not at the first training step."""
        with_labels = takes_labels(loss)
        if with_labels and self.labels is None:
            return
        with unchanged(loss), torch.no_grad():
            loss.eval()
            try:
                value = loss(x, y, labels=self.labels) if with_labels else loss(x, y)
            except (InputError, RuntimeError) as cause:
                raise InputError(f"The loss {type(loss).__name__} {where} refused the example. {cause}") from cause
        if not isinstance(value, Tensor) or value.ndim != 0:
            raise InputError(f"The loss {type(loss).__name__} {where} returned no 0-dim tensor.")


def takes_labels(loss: nn.Module) -> bool:
    """Return whether a loss is called with ``labels=``."""
    return "labels" in inspect.signature(loss.forward).parameters


def require_pairs(pairs: Mapping[Pair, object]) -> None:
    """Raise :class:`~mikit.InputError` unless every key is a pair of layer names."""
    if not pairs:
        raise InputError("pairs is empty. Name at least one layer of the student and one of the teacher.")
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise InputError(
                f"pairs has the key {pair!r}; a key must be a layer of the student and a layer of the teacher, "
                '("stage2", "stage3").'
            )


def require_known(given: object, pairs: tuple[Pair, ...], what: str) -> None:
    """Raise :class:`~mikit.InputError` if a mapping has a key that is not among the pairs."""
    extra = [pair for pair in given if pair not in pairs] if isinstance(given, Mapping) else []
    if extra:
        raise InputError(f"{what} names {extra[0]!r}, which is not among the pairs {list(pairs)}.")


def _shapes(wanted: object) -> tuple[str, ...]:
    """Return the layouts that a loss accepts; for a function such as a partial, those of its class."""
    function = getattr(wanted, "func", wanted)
    owner = getattr(function, "__self__", function)
    shapes: tuple[str, ...] = getattr(owner, "shapes", ("nd",))
    return shapes
