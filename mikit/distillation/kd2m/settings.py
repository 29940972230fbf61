"""The options of KD²M, checked against each other and against the metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from mikit.core import require
from mikit.core.errors import InputError
from mikit.estimators import REGISTRY, estimator_named
from mikit.estimators.discrepancy import Discrepancy

__all__ = ["KD2MOptions", "discrepancy_named", "require_weighted"]

DEFAULT_QUEUE = 32
_CONDITIONS = (None, "class", "joint")
_SCALES = ("standard", "spread", None)


def discrepancy_named(metric: Discrepancy | str) -> Discrepancy:
    """Return ``metric``, or the discrepancy of that name with its defaults."""
    if isinstance(metric, Discrepancy):
        return metric
    cls = estimator_named(metric) if isinstance(metric, str) else type(metric)
    if not issubclass(cls, Discrepancy):
        raise InputError(
            f"{metric!r} does not compare the distributions of two samples. Pass a discrepancy or its name, one of "
            f"{', '.join(name for name, one in REGISTRY.items() if issubclass(one, Discrepancy))}."
        )
    return cls()


@final
@dataclass(frozen=True, kw_only=True)
class KD2MOptions:
    """The arguments of :class:`mikit.KD2M` besides the projection, as they were passed."""

    metric: Discrepancy
    conditional: str | None
    label_weight: float | None
    scale: str | None
    queue: int | None
    classes: int | None
    prior: Sequence[float] | None

    def __post_init__(self) -> None:
        if self.conditional not in _CONDITIONS:
            raise InputError(f'conditional is {self.conditional!r}; it must be None, "class" or "joint".')
        if self.scale not in _SCALES:
            raise InputError(f'scale is {self.scale!r}; it must be "standard", "spread" or None.')
        for name, form in (("label_weight", "joint"), ("queue", "class"), ("prior", "class")):
            if getattr(self, name) is not None and self.conditional != form:
                raise InputError(f'{name} belongs to conditional="{form}"; conditional is {self.conditional!r}.')
        if self.label_weight is not None:
            require.positive(self.label_weight, "label_weight")
        self._require_queue()
        self._require_classes()

    @property
    def queue_size(self) -> int:
        """Teacher samples of earlier batches kept for each class."""
        if self.conditional != "class":
            return 0
        if self.queue is not None:
            return self.queue
        # A sample from an earlier batch has no partner in this one, so metrics on pairs cannot use it.
        return 0 if self.metric.needs_pairs else DEFAULT_QUEUE

    def _require_queue(self) -> None:
        if self.queue is not None and (not isinstance(self.queue, int) or self.queue < 0):
            raise InputError(f"queue is {self.queue}; it must be a number of samples for each class, 0 for none.")
        if self.queue and self.metric.needs_pairs:
            raise InputError(
                f"{type(self.metric).__name__} compares paired samples, but samples in the queue have no partners. "
                "Pass queue=0 or a metric that compares samples of any sizes."
            )

    def _require_classes(self) -> None:
        if self.classes is not None and (not isinstance(self.classes, int) or self.classes < 1):
            raise InputError(f"classes is {self.classes}; it must be a whole number of at least 1.")
        if self.prior is None:
            return
        shares = [float(one) for one in self.prior]
        if not shares or not all(0 <= one < math.inf for one in shares) or not sum(shares) > 0:
            raise InputError("prior must be one number for each class, finite, not negative, and not all 0.")
        if self.classes is not None and self.classes != len(shares):
            raise InputError(f"prior has {len(shares)} classes, but classes is {self.classes}.")


def require_weighted(metric: Discrepancy, queue: int | None) -> None:
    """Refuse soft labels if the metric takes no weights, or if a queue was asked for."""
    if not metric.weighted:
        names = [cls.__name__ for cls in REGISTRY.values() if issubclass(cls, Discrepancy) and cls.weighted]
        raise InputError(
            f"{type(metric).__name__} takes no weights, so it cannot use soft labels. Pass class indices, or use a "
            f"metric that takes weights: {', '.join(names)}."
        )
    if queue:
        raise InputError(
            "The queue stores samples of one class each, and soft labels do not give one class. Pass class indices, or "
            "queue=0."
        )
