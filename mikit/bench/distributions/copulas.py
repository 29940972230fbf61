"""Asymmetric copulas: dependence that is stronger in one tail, or differs between the two variables.

The mutual informations are integrals of ``c ln c`` with the copula density ``c``, accurate to 1e-6.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri

from mikit.bench.distributions.bases import independent
from mikit.bench.distributions.maps import turned
from mikit.bench.distributions.task import Array, Pair, Sampler, Task

__all__ = ["INFORMATION", "copulas_tasks"]

INFORMATION = {"clayton 3": 0.636294, "gumbel 2.5": 0.561983, "skewed 6 0.95 0.5": 0.233618}
"""Nats."""


def copulas_tasks() -> list[Task]:
    """Return six tasks with standard normal features, single or several with a random rotation."""
    clayton = Pair(1, 1, INFORMATION["clayton 3"], _clayton(3.0))
    gumbel = Pair(1, 1, INFORMATION["gumbel 2.5"], _gumbel(2.5))
    skewed = Pair(1, 1, INFORMATION["skewed 6 0.95 0.5"], _skewed(6.0, 0.95, 0.5))
    found = {
        "clayton": clayton,
        "clayton-5-turned": turned(clayton.times(5), 201),
        "gumbel-3-turned": turned(gumbel.times(3), 203),
        "gumbel-3-of-8-turned": turned(gumbel.times(3).beside(independent(5, 5)), 205),
        "skewed": skewed,
        "skewed-4-turned": turned(skewed.times(4), 207),
    }
    return [Task(name, "copulas", pair) for name, pair in found.items()]


def _clayton(strength: float) -> Sampler:
    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        levels = _clayton_levels(strength, n, rng)
        return _normal(levels[:, :1]), _normal(levels[:, 1:])

    return sample


def _clayton_levels(strength: float, n: int, rng: np.random.Generator) -> Array:
    """Return uniform features that share a gamma frailty: ``u = (1 + E / V)^(-1/θ)``."""
    frailty = rng.gamma(1 / strength, size=(n, 1))
    levels: Array = (1 + rng.standard_exponential((n, 2)) / frailty) ** (-1 / strength)
    return levels


def _gumbel(strength: float) -> Sampler:
    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        # A positive stable frailty of index 1/θ, by Kanter's formula; u = exp(-(E / V)^(1/θ)).
        index = 1 / strength
        angle, scale = rng.uniform(0, np.pi, (n, 1)), rng.standard_exponential((n, 1))
        frailty = np.sin(index * angle) / np.sin(angle) ** (1 / index)
        frailty = frailty * (np.sin((1 - index) * angle) / scale) ** ((1 - index) / index)
        levels = np.exp(-((rng.standard_exponential((n, 2)) / frailty) ** index))
        return _normal(levels[:, :1]), _normal(levels[:, 1:])

    return sample


def _skewed(strength: float, first: float, second: float) -> Sampler:
    """Return Khoudraji's copula ``u^(1-a) v^(1-b) C(u^a, v^b)`` with Clayton's ``C``, asymmetric in u and v."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        own, common = rng.uniform(size=(n, 2)), _clayton_levels(strength, n, rng)
        u = np.maximum(own[:, :1] ** (1 / (1 - first)), common[:, :1] ** (1 / first))
        v = np.maximum(own[:, 1:] ** (1 / (1 - second)), common[:, 1:] ** (1 / second))
        return _normal(u), _normal(v)

    return sample


def _normal(levels: Array) -> Array:
    least = math.ulp(0.5)
    found: Array = ndtri(np.clip(levels, least, 1 - least))  # no sample of 10,000 is so far out
    return found
