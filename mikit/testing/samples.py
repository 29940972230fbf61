"""Samples and fitted estimators for the checks of :mod:`mikit.testing`."""

from __future__ import annotations

import copy
import math
from functools import lru_cache

import torch
from torch import Tensor

from mikit.estimators.base import Estimator
from mikit.estimators.fitting import Training

__all__ = [
    "QUICK",
    "Subject",
    "another_sample",
    "dependent_samples",
    "fit",
    "fitted",
    "fitted_once",
    "instance_of",
    "shared",
    "untrained",
    "value_and_error",
    "value_of",
]

Subject = Estimator | type[Estimator]
"""An estimator, or a class that ``between`` can build."""

QUICK = Training(steps=150, batch=128, every=15, patience=4)
_ROWS, _WIDTH = 500, 3


def dependent_samples(
    subject: Subject, *, seed: int, independent: bool = False, noise: float = 0.6
) -> tuple[Tensor, Tensor]:
    """Return samples of two dependent variables in the form that the estimator accepts."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(_ROWS, _WIDTH, generator=g)
    source = torch.randn(_ROWS, _WIDTH, generator=g) if independent else x
    y = (source + noise * torch.randn(_ROWS, _WIDTH, generator=g)) / math.sqrt(1 + noise**2)
    if subject.reads == "categories":
        return (x > 0).float(), (y[:, 0] > 0).long()
    return x, (y[:, 0] > 0).long() if subject.explains == "labels" else y


def another_sample(like: Tensor, seed: int = 0) -> Tensor:
    """Return an independent sample of a standard normal distribution."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1000 + seed))


def instance_of(subject: Subject, x: Tensor, y: Tensor) -> Estimator:
    """Return the estimator, or an instance of the class."""
    if isinstance(subject, Estimator):
        return subject
    return subject.between(x, y, generator=torch.Generator().manual_seed(0))


def untrained(subject: Subject, x: Tensor, y: Tensor) -> Estimator:
    """Return a new copy of the estimator that fits the data, in training mode."""
    return instance_of(subject, x, y).fresh(x, y, generator=torch.Generator().manual_seed(0)).train()


def fit(prototype: Estimator, x: Tensor, y: Tensor, *, seed: int) -> Estimator:
    """Return a copy that was fitted to one half of the samples and selected on the other."""
    generator = torch.Generator().manual_seed(seed)
    estimator = prototype.fresh(x, y, generator=generator)
    half = x.shape[0] // 2
    estimator.fit(x[:half], y[:half], select=(x[half:], y[half:]), generator=generator, training=QUICK)
    estimator.eval()
    return estimator


def fitted(
    subject: Subject, *, seed: int, independent: bool = False, noise: float = 0.6
) -> tuple[Estimator, Tensor, Tensor]:
    """Return a fitted estimator, and held-out samples of the same distribution."""
    x, y = dependent_samples(subject, seed=seed, independent=independent, noise=noise)
    estimator = fit(instance_of(subject, x, y), x, y, seed=seed)
    return estimator, *dependent_samples(subject, seed=seed + 500, independent=independent, noise=noise)


def fitted_once(subject: Subject) -> tuple[Estimator, Tensor, Tensor]:
    """Return a copy of one fit that several checks share, because fitting takes most of their time."""
    estimator, x, y = shared(subject)
    return copy.deepcopy(estimator), x.clone(), y.clone()


@lru_cache(maxsize=1)
def shared(subject: Subject) -> tuple[Estimator, Tensor, Tensor]:
    """Return the fit that ``fitted_once`` copies. It is kept for the last estimator only."""
    return fitted(subject, seed=3)


def value_of(estimator: Estimator, x: Tensor, y: Tensor) -> float:
    """Return the estimate."""
    with torch.no_grad():
        return float(estimator.estimate(x, y))


def value_and_error(estimator: Estimator, x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """Return both, in one pass if the estimator implements ``read``."""
    if type(estimator).read is Estimator.read:
        return value_of(estimator, x, y), estimator.standard_error(x, y)
    with torch.no_grad():
        both = estimator.read(x, y)
    return float(both.value), both.standard_error
