"""What every formula over rows asks of the samples it is given, and the form it computes in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.core.errors import InputError

__all__ = [
    "centred",
    "constant_columns",
    "require_one_device",
    "require_paired",
    "require_rows",
    "require_same_width",
    "sample_weights",
    "working_dtype",
]


def require_rows(value: Tensor, name: str, *, fewest: int = 1) -> None:
    """Refuse what is not a real tensor ``(n, d)`` with a column and at least ``fewest`` rows."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} is a {type(value).__name__}; formulas take tensors. Pass torch.as_tensor({name}).")
    if value.ndim != 2:
        raise InputError(f"{name} has shape {tuple(value.shape)}; pass rows of shape (n, d).")
    if value.is_complex():
        raise InputError(f"{name} is complex ({value.dtype}). Pass real numbers: real and imaginary parts as columns.")
    if value.shape[1] == 0:
        raise InputError(f"{name} has no columns, so there is nothing to compare. Pass rows of at least one number.")
    if value.shape[0] < fewest:
        raise InputError(f"{name} has {value.shape[0]} rows, but this statistic needs at least {fewest}.")


def require_same_width(x: Tensor, y: Tensor) -> None:
    """Refuse samples that are not points of one space."""
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"x has {x.shape[1]} columns and y has {y.shape[1]}, but both must be points of one space. Map one to the "
            "width of the other first."
        )


def require_paired(x: Tensor, y: Tensor) -> None:
    """Refuse samples whose rows cannot belong to each other."""
    if x.shape[0] != y.shape[0]:
        raise InputError(f"x has {x.shape[0]} rows and y has {y.shape[0]}. Row i of both must be the same input.")


def require_one_device(x: Tensor, y: Tensor) -> None:
    """Refuse samples on two devices."""
    if x.device != y.device:
        raise InputError(f"x is on {x.device} and y is on {y.device}. Move both to one device.")


def working_dtype(*samples: Tensor) -> torch.dtype:
    """Return the common dtype of the samples, float32 at least."""
    dtype = torch.float32
    for sample in samples:
        dtype = torch.promote_types(dtype, sample.dtype)
    return dtype


def constant_columns(rows: Tensor) -> Tensor:
    """Return which columns hold one value throughout, ``(d,)``; one with a NaN is not constant."""
    return rows.amax(dim=0) == rows.amin(dim=0)


def centred(*samples: Tensor) -> tuple[Tensor, ...]:
    """Return the samples in their working dtype, around the mean of all their rows.

    The mean is a constant for the gradient: only what does not change under a common shift may be computed from these.
    """
    dtype = working_dtype(*samples)
    samples = tuple(sample if sample.is_floating_point() else sample.to(dtype) for sample in samples)
    rows = sum(sample.shape[0] for sample in samples)
    centre = sum(sample.detach().sum(dim=0, dtype=torch.float64) for sample in samples) / rows
    return tuple((sample - centre).to(dtype) for sample in samples)


def sample_weights(sample: Tensor, weights: Tensor | None, name: str) -> Tensor | None:
    """Return the weights in float64, of sum 1, or None if they are equal; refuse what are no weights."""
    if weights is None:
        return None
    n = sample.shape[0]
    if weights.shape != (n,) or weights.device != sample.device:
        raise InputError(
            f"weights_{name} has shape {tuple(weights.shape)} on {weights.device}; pass one number for each of the {n} "
            f"rows of {name}, on {sample.device}."
        )
    weights = weights.detach().double()
    total = weights.sum()
    if not (bool((weights >= 0).all()) and 0 < float(total) < math.inf):
        raise InputError(f"weights_{name} must be finite, not negative, and not all 0.")
    return None if bool((weights == weights[0]).all()) else weights / total
