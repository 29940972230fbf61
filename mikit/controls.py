"""Data on which the answer is known: with the pairing broken, and Gaussian with a stated information."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mikit.estimators.base import Estimator
from mikit.rows import permuted_rows

__all__ = ["positive_control", "without_pairing"]


def without_pairing(
    prototype: Estimator, x: Tensor, y: Tensor, codes: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the data under the null: pairing broken, or for discrepancies the two samples mixed."""
    n = x.shape[0]
    if prototype.zero_when_independent:
        return x, y[permuted_rows(n, groups=codes, generator=generator).to(y.device)]
    if prototype.needs_pairs:
        swap = (torch.rand(n, generator=generator) < 0.5).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(swap, y, x), torch.where(swap, x, y)
    pooled = torch.cat([x, y])[torch.randperm(n + y.shape[0], generator=generator).to(x.device)]
    return pooled[:n], pooled[n:]


def positive_control(prototype: Estimator, x: Tensor, y: Tensor, value: float, seed: int) -> float | None:
    """Return what the instrument reads on a Gaussian pair of this size that holds ``value`` nats; None if costly."""
    vectors = x.ndim == 2 and prototype.explains == "vectors" and y.ndim == 2
    if prototype.learned or not vectors or prototype.unit != "nats" or not 0.05 <= value < float("inf"):
        return None
    generator = torch.Generator().manual_seed(seed + 104729)
    n, d_x, d_y = x.shape[0], x.shape[1], y.shape[1]
    pairs = min(d_x, d_y)
    rho = (-math.expm1(-2 * value / pairs)) ** 0.5
    first = torch.randn(n, d_x, generator=generator, dtype=torch.float64)
    second = torch.randn(n, d_y, generator=generator, dtype=torch.float64)
    second[:, :pairs] = rho * first[:, :pairs] + (1 - rho**2) ** 0.5 * second[:, :pairs]
    with torch.no_grad():
        return float(prototype.estimate(first.to(x.device), second.to(x.device)))
