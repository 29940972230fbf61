"""Which discrepancy a distillation loss uses, and which settings go with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mikit.core.errors import InputError
from mikit.estimators import REGISTRY, estimator_named
from mikit.estimators.discrepancy import Discrepancy

__all__ = ["discrepancy_named", "require_settings", "require_weighted"]

_CONDITIONS = (None, "class", "joint")
_SCALES = ("standard", "spread", None)


def discrepancy_named(metric: Discrepancy | str) -> Discrepancy:
    """Return ``metric``, or the discrepancy of that name with its defaults."""
    if isinstance(metric, Discrepancy):
        return metric
    cls = estimator_named(metric) if isinstance(metric, str) else type(metric)
    if not issubclass(cls, Discrepancy):
        raise InputError(
            f"{metric!r} does not compare the laws of two samples. Pass a discrepancy or its name, one of "
            f"{', '.join(name for name, one in REGISTRY.items() if issubclass(one, Discrepancy))}."
        )
    return cls()


def require_settings(
    metric: Discrepancy,
    conditional: str | None,
    label_weight: float | None,
    scale: str | None,
    queue: int | None,
    classes: int | None,
    prior: Sequence[float] | None,
) -> None:
    """Refuse settings of KD²M that do not go together."""
    if conditional not in _CONDITIONS:
        raise InputError(f'conditional is {conditional!r}; it must be None, "class" or "joint".')
    if scale not in _SCALES:
        raise InputError(f'scale is {scale!r}; it must be "standard", "spread" or None.')
    for name, value, form in (
        ("label_weight", label_weight, "joint"),
        ("queue", queue, "class"),
        ("prior", prior, "class"),
    ):
        if value is not None and conditional != form:
            raise InputError(f'{name} belongs to conditional="{form}"; conditional is {conditional!r}.')
    if label_weight is not None and not 0 < label_weight < math.inf:
        raise InputError(f"label_weight is {label_weight}; it must be positive and finite.")
    if queue is not None and (not isinstance(queue, int) or queue < 0):
        raise InputError(f"queue is {queue}; it is a number of rows for each class, 0 for none.")
    if queue and metric.needs_pairs:
        raise InputError(
            f"{type(metric).__name__} reads pairs of rows here, but rows of the queue have no partners. Pass queue=0 "
            "or a metric that compares samples of any sizes."
        )
    if classes is not None and (not isinstance(classes, int) or classes < 1):
        raise InputError(f"classes is {classes}; it must be a whole number of at least 1.")
    if prior is not None:
        shares = [float(one) for one in prior]
        if not shares or not all(0 <= one < math.inf for one in shares) or not sum(shares) > 0:
            raise InputError("prior must be one number for each class, finite, not negative, and not all 0.")
        if classes is not None and classes != len(shares):
            raise InputError(f"prior names {len(shares)} classes, but classes is {classes}.")


def require_weighted(metric: Discrepancy, queue: int | None) -> None:
    """Refuse soft labels where rows cannot count by them."""
    if not metric.weighted:
        names = [cls.__name__ for cls in REGISTRY.values() if issubclass(cls, Discrepancy) and cls.weighted]
        raise InputError(
            f"{type(metric).__name__} takes no weights, so rows cannot belong to classes in part. Pass class indices, "
            f"or use a metric that takes them: {', '.join(names)}."
        )
    if queue:
        raise InputError(
            "The queue keeps rows of one class each, which soft labels do not name. Pass class indices, or queue=0."
        )
