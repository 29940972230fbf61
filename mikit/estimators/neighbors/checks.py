"""The check of the dimension, and the factor of the standard error, that all nearest-neighbor estimators share."""

from __future__ import annotations

from torch import Tensor

from mikit.core import require
from mikit.core.measurement import Check
from mikit.functional.neighbors.distances import METRICS, Metric

__all__ = ["SHARED_NEIGHBORS", "dimension_check", "require_settings"]

# Measured on Gaussian pairs of 1 + 1 to 16 + 16 columns with 0 to 2 nats, k of 3 and 10 and 300 to 2,000 samples: the
# SD of the estimate is 0.9 to 1.6 times the standard error its contributions would have if they were independent.
SHARED_NEIGHBORS = 1.4


def require_settings(k: int, metric: Metric | None) -> None:
    """Raise an error unless ``k`` and ``metric`` are settings of a nearest-neighbor estimator."""
    require.at_least(k, "k")
    if metric is not None:
        require.one_of(metric, "metric", METRICS)


def dimension_check(rows: Tensor, error: str, high: float = 10.0, highest: float = 25.0) -> Check:
    """Check the effective dimension, the participation ratio of the standardized columns; ``error`` is its effect."""
    columns = rows.double()
    columns = columns - columns.mean(0)
    spread = columns.square().mean(0).sqrt()
    columns = columns[:, spread > 0] / spread[spread > 0]
    gram = columns.T @ columns / max(columns.shape[0], 1)
    dimension = float(gram.diagonal().sum() ** 2 / gram.square().sum()) if columns.shape[1] else 0.0
    sentence = f"The effective dimension of the sample is about {dimension:.1f}"
    return Check.judged(
        "effective dimension",
        dimension,
        passed=f"{sentence}.",
        otherwise=f"{sentence}; nearest-neighbor estimates are "
        + (f"far too {error} here." if dimension > highest else f"too {error} above {high:.0f}."),
        warn=high,
        fail=highest,
    )
