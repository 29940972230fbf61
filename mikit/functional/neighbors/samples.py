"""The samples of a nearest-neighbor estimator: their requirements, their scaling and the default distance."""

from __future__ import annotations

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.engine.samples import constant_columns
from mikit.functional.neighbors.distances import METRICS, Metric
from mikit.functional.neighbors.trees import TREE_WIDTH

__all__ = [
    "chosen_metric",
    "columns_of",
    "require_finite",
    "require_neighbors",
    "require_same_rows",
    "scaled",
    "varying_columns",
]


def columns_of(value: Tensor, name: str) -> Tensor:
    """Return ``(n, d)`` or ``(n,)`` numbers as float64 columns without gradient."""
    if value.ndim not in (1, 2):
        raise InputError(
            f"{name} has shape {tuple(value.shape)}; nearest neighbors need shape (n, d) or (n,). Pool or flatten "
            "feature maps and tokens first."
        )
    if value.is_complex():
        raise InputError(f"{name} is complex ({value.dtype}). Pass real and imaginary parts as separate columns.")
    rows = value.detach().to(torch.float64)
    return rows[:, None] if rows.ndim == 1 else rows


def require_neighbors(x: Tensor, y: Tensor, k: int, metric: Metric | None, strip: int | None) -> None:
    """Raise an error unless ``x`` and ``y`` are paired, finite, and have k neighbors for each sample."""
    require_same_rows(x, y, "y")
    if metric is not None:
        require.one_of(metric, "metric", METRICS)
    require.at_least(k, "k")
    if x.shape[0] <= k:
        raise InputError(
            f"There are {x.shape[0]} samples, but {k} neighbors of each need at least {k + 1}. Use more samples or a "
            "smaller k."
        )
    if strip is not None:
        require.at_least(strip, "strip")
    require_finite(x, "x")
    require_finite(y, "y")


def require_same_rows(x: Tensor, other: Tensor, name: str) -> None:
    """Raise an error unless ``other`` has as many rows as ``x``, on the same device."""
    if x.shape[0] != other.shape[0]:
        raise InputError(
            f"x has {x.shape[0]} samples and {name} has {other.shape[0]}. Row i of both must be the same sample."
        )
    if x.device != other.device:
        raise InputError(f"x is on {x.device} and {name} is on {other.device}. Move both to one device.")


def require_finite(value: Tensor, name: str) -> None:
    """Raise an error if a row contains NaN or infinity."""
    finite = torch.isfinite(value).all(dim=1)
    if not bool(finite.all()):
        bad = (~finite).nonzero()
        raise InputError(
            f"{name} contains NaN or infinity in {bad.shape[0]} of {value.shape[0]} samples; the first is row "
            f"{int(bad[0, 0])}. Fix these samples or remove them from all arrays."
        )


def varying_columns(rows: Tensor) -> Tensor:
    """Return the columns that contain more than one value."""
    if rows.shape[1] == 0:
        return rows
    varies = ~constant_columns(rows)
    return rows if bool(varies.all()) else rows[:, varies]


def chosen_metric(metric: Metric | None, width: int) -> Metric:
    """Return ``metric``, or by default Chebyshev where k-d trees serve ``width`` columns and Euclidean above."""
    if metric is not None:
        return metric
    return "chebyshev" if width <= TREE_WIDTH else "euclidean"


def scaled(rows: Tensor, metric: Metric, scale: bool) -> tuple[Tensor, float]:
    """Return centered (and scaled) rows, and how far their columns were from the origin in the units of the result."""
    reach = rows.amax(dim=0) - rows.amin(dim=0)
    if not scale:
        mean = rows.mean(dim=0)
        return rows - mean, float(mean.abs().max())
    # Dividing by the range first keeps the squares of tiny and of huge columns inside float64.
    rows = rows / reach
    mean = rows.mean(dim=0)
    squares = rows.sub_(mean).square()
    deviation = squares.mean(dim=0).sqrt()
    torch.square(rows.div_(deviation), out=squares)
    norm = (squares.sum(dim=1) if metric == "euclidean" else squares.amax(dim=1)).mean().sqrt()
    return rows.div_(norm), float((mean / deviation).abs().max() / norm)
