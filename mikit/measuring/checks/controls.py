"""Control data with a known answer: the pairing permuted, or Gaussian with known information."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.rows import permuted_rows
from mikit.estimators.base import Estimator
from mikit.functional.gaussian.canonical import canonical_form, rank_gaussianise
from mikit.measuring.subject import Subject

__all__ = ["Control", "control_samples", "positive_control", "without_pairing"]

_DRAWS = 4


@final
@dataclass(frozen=True)
class Control:
    """What an estimator gives where the answer is known.

    Attributes:
        truth: The information of the control data, in nats.
        reading: The estimate, averaged over the draws.
        standard_error: Standard error of that average.
    """

    truth: float
    reading: float
    standard_error: float


def without_pairing(prototype: Estimator, subject: Subject, generator: torch.Generator) -> Subject:
    """Return the data under the null: with the pairing permuted, or for discrepancies with the two samples mixed."""
    x, y, n = subject.x, subject.y, subject.x.shape[0]
    if prototype.zero_when_independent:
        order = permuted_rows(n, groups=subject.codes, generator=generator)
        return subject.of(x, y[order.to(y.device)], subject.codes)
    if prototype.needs_pairs:
        swap = (torch.rand(n, generator=generator) < 0.5).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
        return subject.of(torch.where(swap, y, x), torch.where(swap, x, y), subject.codes)
    pooled = torch.cat([x, y])[torch.randperm(n + y.shape[0], generator=generator).to(x.device)]
    return subject.of(pooled[:n], pooled[n:], subject.codes)


def positive_control(prototype: Estimator, subject: Subject, value: float) -> Control | None:
    """Return the estimate on Gaussian data of this size whose information is known; None if costly.

    The control has the correlations of the data's normal scores. Where these explain less than half of ``value``, the
    control is a pair of white samples with ``value`` nats, spread evenly over their columns.
    """
    if prototype.learned or prototype.costly:
        return None
    drawn = control_samples(prototype, subject, value, draws=_DRAWS)
    if drawn is None:
        return None
    samples, truth = drawn
    with torch.no_grad():
        readings = [float(prototype.estimate(first, second)) for first, second in samples]
    return Control(truth, statistics.mean(readings), statistics.stdev(readings) / _DRAWS**0.5)


def control_samples(
    prototype: Estimator, subject: Subject, value: float, *, draws: int
) -> tuple[list[tuple[Tensor, Tensor]], float] | None:
    """Return Gaussian samples of the size and shape of the data, and their information.

    None where the information is too small to be detected, or the estimator does not measure nats between vectors.
    """
    x, y = subject.x, subject.y
    vectors = subject.vectors and prototype.explains == "vectors" and prototype.zero_when_independent
    if not vectors or prototype.unit != "nats" or not math.isfinite(value):
        return None
    n, d_x, d_y = x.shape[0], x.shape[1], y.shape[1]
    if n <= 2 * (d_x + d_y):
        return None
    root, truth = _like_the_data(x, y)
    if truth < 0.5 * value:
        root, truth = _evenly_spread(d_x, d_y, value), value
    if truth < 0.05:
        return None
    generator = torch.Generator().manual_seed(subject.seed + 104729)
    samples = []
    for _ in range(draws):
        z = torch.randn(n, d_x + d_y, generator=generator, dtype=torch.float64) @ root.T
        samples.append((z[:, :d_x].to(x.device), z[:, d_x:].to(x.device)))
    return samples, truth


def _like_the_data(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Return a root of the normal scores' correlation matrix and the information of that Gaussian distribution."""
    scores = torch.cat([rank_gaussianise(x), rank_gaussianise(y)], dim=1).cpu()
    correlation = scores.T @ scores / scores.shape[0]
    values, vectors = torch.linalg.eigh(correlation)
    root = vectors * values.clamp(min=0).sqrt()
    try:
        rho = canonical_form(scores[:, : x.shape[1]], scores[:, x.shape[1] :]).correlations
    except InputError:
        return root, 0.0
    return root, float(-0.5 * torch.log1p(-rho.square()).sum())


def _evenly_spread(d_x: int, d_y: int, value: float) -> Tensor:
    pairs = min(d_x, d_y)
    rho = (-math.expm1(-2 * max(value, 0.0) / pairs)) ** 0.5
    root = torch.eye(d_x + d_y, dtype=torch.float64)
    for i in range(pairs):
        root[d_x + i, i], root[d_x + i, d_x + i] = rho, (1 - rho**2) ** 0.5
    return root
