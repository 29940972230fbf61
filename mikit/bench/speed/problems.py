"""The samples of the speed benchmark, correlated like the activations of two networks on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Problem", "clouds", "correlated", "gaussian_pair", "paired_kernels", "unit_rows", "with_directions"]


@final
@dataclass(frozen=True)
class Problem:
    """The inputs of every candidate of a case.

    Gradients are computed for the first ``gradients`` tensors; ``numbers`` are settings such as a bandwidth.
    """

    inputs: tuple[Tensor, ...]
    gradients: int
    numbers: Mapping[str, float]

    @property
    def input_bytes(self) -> int:
        """Size of the inputs."""
        return sum(rows.numel() * rows.element_size() for rows in self.inputs)

    def to(self, *, device: str | None = None, dtype: torch.dtype | None = None) -> Problem:
        """Return the samples on another device or in another precision, as new leaf tensors."""
        moved = [rows.detach().to(device=device, dtype=dtype, copy=True) for rows in self.inputs]
        for rows in moved[: self.gradients]:
            rows.requires_grad_()
        return replace(self, inputs=tuple(moved))


def correlated(n: int, wide: int, narrow: int, seed: int, shared: float = 0.8) -> tuple[Tensor, Tensor]:
    """Return two standard normal samples, with features correlated one to one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, wide, generator=generator)
    y = torch.randn(n, narrow, generator=generator) * (1 - shared**2) ** 0.5
    both = min(wide, narrow)
    y[:, :both] += shared * x[:, :both]
    return x, y


def unit_rows(n: int, width: int, seed: int) -> Problem:
    """Return embeddings of pairs on the unit sphere."""
    x, y = correlated(n, width, width, seed, shared=0.5)
    return Problem((normalize(x), normalize(y)), 2, {})


def gaussian_pair(n: int, wide: int, narrow: int, seed: int, *, gradients: int = 0) -> Problem:
    """Return a correlated Gaussian pair."""
    return Problem(correlated(n, wide, narrow, seed), gradients, {})


def paired_kernels(n: int, width: int, seed: int) -> Problem:
    """Return a correlated Gaussian pair, one slightly wider, and a bandwidth near the median distance."""
    x, y = correlated(n, width, width, seed)
    return Problem((x, 1.1 * y + 0.1), 1, {"bandwidth": (2.0 * width) ** 0.5})


def clouds(n: int, width: int, seed: int, epsilon: float) -> Problem:
    """Return two clouds of different shape and mean, scaled to a mean cost |x - y|²/2 of 1."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) / width**0.5
    x = torch.randn(n, width, generator=generator)
    y = torch.randn(n, width, generator=generator) @ (0.8 * torch.eye(width) + 0.3 * mix) + 0.1
    mean_cost = (x.var(0, correction=0) + y.var(0, correction=0) + (x.mean(0) - y.mean(0)).square()).sum() / 2
    scale = float(mean_cost) ** -0.5
    return Problem((x * scale, y * scale), 1, {"epsilon": epsilon})


def with_directions(n: int, width: int, seed: int, projections: int) -> Problem:
    """Return two clouds, and directions for their projections as rows of a third tensor."""
    x, y = clouds(n, width, seed, 1.0).inputs
    generator = torch.Generator().manual_seed(seed + 1)
    directions = normalize(torch.randn(projections, width, generator=generator))
    return Problem((x, y, directions), 1, {})
