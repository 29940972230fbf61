"""High mutual information: 10 to 80 nats in 20 to 160 Gaussian or logistic features."""

from __future__ import annotations

import numpy as np
from scipy.special import log_ndtr

from mikit.bench.distributions.bases import gaussian_pairs, pairs_with_information
from mikit.bench.distributions.task import Array, Task

__all__ = ["high_tasks"]


def high_tasks() -> list[Task]:
    """Return the eight tasks; the logistic ones are transformed Gaussian features."""
    found = {f"gaussian-{d}-columns-{nats}": pairs_with_information(nats, d) for d, nats in _SIZES}
    found["gaussian-128-columns-18.41"] = gaussian_pairs([0.5] * 128, 128)
    for d, nats in ((40, 20), (160, 80)):
        found[f"logistic-{d}-columns-{nats}"] = pairs_with_information(nats, d).seen_through(_logistic, _logistic)
    return [Task(name, "high", pair) for name, pair in found.items()]


_SIZES = ((20, 10), (40, 20), (128, 20), (80, 40), (160, 80))


def _logistic(rows: Array) -> Array:
    """Return the logit of the normal distribution function, accurate in the tails."""
    found: Array = log_ndtr(rows) - log_ndtr(-rows)
    return np.ascontiguousarray(found)
