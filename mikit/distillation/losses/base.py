"""Base of the baseline distillation losses: a gap between activations of student and teacher on the same inputs."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.core.rows import require_paired
from mikit.estimators.base import Estimator, require_pair
from mikit.functional.engine.samples import working_dtype

__all__ = ["PairedGap", "recommended_weight", "require_maps", "split_decay"]


class PairedGap(Estimator):
    """Base of the losses that compare each of the student's activations with the teacher's of the same input.

    A subclass implements :meth:`gap`. The loss is the gap times ``strength``, which brings it to the scale at which the
    method is usually weighted; the estimate is the gap itself.
    """

    unit: str = "dimensionless"
    kind = "discrepancy"
    zero_when_independent = False
    strength: float = 1.0

    @abc.abstractmethod
    def gap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the gap, 0-dim; both sides have one dtype, float32 or wider, and autocast is off."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the gap times the strength, 0-dim; the teacher gets no gradient."""
        return self.strength * self._gap(x, y.detach())

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the gap, 0-dim, in ``unit``, without gradient."""
        return self._gap(x, y).detach()

    def require(self, x: Tensor, y: Tensor) -> None:
        """Raise :class:`~mikit.InputError` unless these are paired samples."""
        require_pair(x, y)

    def _gap(self, x: Tensor, y: Tensor) -> Tensor:
        self.require(x, y)
        dtype = working_dtype(x, y)
        with torch.autocast(x.device.type, enabled=False):
            return self.gap(x.to(dtype), y.to(dtype))


def require_maps(x: Tensor, y: Tensor, loss: str) -> None:
    """Raise :class:`~mikit.InputError` unless ``x`` and ``y`` are feature maps of the same inputs."""
    for name, value in (("x", x), ("y", y)):
        if value.ndim != 4 or value.is_complex() or 0 in value.shape[1:]:
            raise InputError(
                f"{name} has shape {tuple(value.shape)}, but {loss} needs feature maps (n, c, h, w). Take them before "
                'pooling: readout="whole" in mikit.capture and in DistillationTerm.'
            )
    require_paired(x, y, minimum=1)


def recommended_weight(loss: nn.Module) -> float:
    """Return the weight of a loss beside a cross-entropy of weight 1: its ``recommended_weight``, or 1."""
    return float(getattr(loss, "recommended_weight", 1.0))


def split_decay(module: nn.Module) -> list[dict[str, Any]]:
    """Return the trainable matrices of a module in one group, and its vectors in another without weight decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}] if matrices else []
    return groups + ([{"params": vectors, "weight_decay": 0.0}] if vectors else [])
