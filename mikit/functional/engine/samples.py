"""Validation and preparation of samples, shared by all formulas over rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.core.errors import InputError

__all__ = [
    "centered",
    "constant_columns",
    "require_comparable",
    "require_one_device",
    "require_paired",
    "require_rows",
    "require_same_width",
    "sample_weights",
    "working_dtype",
]


def require_rows(value: Tensor, name: str, *, fewest: int = 1) -> None:
    """Require a real tensor ``(n, d)`` with at least one column and at least ``fewest`` rows."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} is a {type(value).__name__}; formulas take tensors. Pass torch.as_tensor({name}).")
    if value.ndim != 2:
        raise InputError(f"{name} has shape {tuple(value.shape)}; pass rows of shape (n, d).")
    if value.is_complex():
        raise InputError(f"{name} is complex ({value.dtype}). Pass real numbers: real and imaginary parts as columns.")
    if value.shape[1] == 0:
        raise InputError(f"{name} has no features, so there is nothing to compare. Pass rows of at least one number.")
    if value.shape[0] < fewest:
        raise InputError(f"{name} has {value.shape[0]} samples, but this statistic needs at least {fewest}.")


def require_same_width(x: Tensor, y: Tensor) -> None:
    """Require samples of the same width."""
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"x has {x.shape[1]} features and y has {y.shape[1]}, but both must be points of one space. Map one to the "
            "width of the other first."
        )


def require_paired(x: Tensor, y: Tensor) -> None:
    """Require samples with the same number of rows."""
    if x.shape[0] != y.shape[0]:
        raise InputError(f"x has {x.shape[0]} samples and y has {y.shape[0]}. Row i of both must be the same input.")


def require_one_device(x: Tensor, y: Tensor) -> None:
    """Require samples on one device."""
    if x.device != y.device:
        raise InputError(f"x is on {x.device} and y is on {y.device}. Move both to one device.")


def require_comparable(x: Tensor, y: Tensor, *, fewest: int = 1) -> None:
    """Require two samples of one width on one device, each with at least ``fewest`` rows."""
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name, fewest=fewest)
    require_same_width(x, y)
    require_one_device(x, y)


def working_dtype(*samples: Tensor) -> torch.dtype:
    """Return the common dtype of the samples, float32 at least."""
    dtype = torch.float32
    for sample in samples:
        dtype = torch.promote_types(dtype, sample.dtype)
    return dtype


def constant_columns(rows: Tensor) -> Tensor:
    """Return a mask ``(d,)`` of the columns with one value throughout; a column with a NaN is not constant."""
    return rows.amax(dim=0) == rows.amin(dim=0)


def centered(*samples: Tensor) -> tuple[Tensor, ...]:
    """Return the samples in their working dtype, minus the mean of all their rows.

    The mean is a constant for the gradient, so use the result only for what a common shift does not change.
    """
    dtype = working_dtype(*samples)
    samples = tuple(sample if sample.is_floating_point() else sample.to(dtype) for sample in samples)
    rows = sum(sample.shape[0] for sample in samples)
    center = sum(sample.detach().sum(dim=0, dtype=torch.float64) for sample in samples) / rows
    return tuple((sample - center).to(dtype) for sample in samples)


def sample_weights(sample: Tensor, weights: Tensor | None, name: str) -> Tensor | None:
    """Return the weights in float64 with sum 1, or None if they are equal; raise if they are not valid weights."""
    if weights is None:
        return None
    n = sample.shape[0]
    if weights.shape != (n,) or weights.device != sample.device:
        raise InputError(
            f"weights_{name} has shape {tuple(weights.shape)} on {weights.device}; pass one number for each of the {n} "
            f"samples of {name}, on {sample.device}."
        )
    weights = weights.detach().double()
    total = weights.sum()
    if not (bool((weights >= 0).all()) and 0 < float(total) < math.inf):
        raise InputError(f"weights_{name} must be finite, not negative, and not all 0.")
    return None if bool((weights == weights[0]).all()) else weights / total
