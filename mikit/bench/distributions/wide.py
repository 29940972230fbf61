"""A few Gaussian latents in a thousand features or more, like activations."""

from __future__ import annotations

import numpy as np

from mikit.bench.distributions.bases import gaussian_information, pairs_with_information
from mikit.bench.distributions.task import Array, Map, Pair, Task

__all__ = ["noisy_linear", "wide_tasks"]

_LATENTS, _HIDDEN = 10, 64


def wide_tasks() -> list[Task]:
    """Return the eight tasks; in embeddings without noise, half of the features are independent noise."""
    two, five = (pairs_with_information(nats, _LATENTS) for nats in (2.0, 5.0))
    found: dict[str, Pair] = {
        "linear-1000-columns-2": _with_noise(two.seen_through(_linear(500, 401), _linear(500, 402)), 500),
        "mlp-1000-columns-2": _with_noise(two.seen_through(_mlp(500, 403), _mlp(500, 404)), 500),
        "linear-1000-columns-5": _with_noise(five.seen_through(_linear(500, 405), _linear(500, 406)), 500),
        "mlp-1000-columns-5": _with_noise(five.seen_through(_mlp(500, 407), _mlp(500, 408)), 500),
        "linear-4096-columns-2": _with_noise(two.seen_through(_linear(2048, 409), _linear(2048, 410)), 2048),
        "mlp-4096-columns-2": _with_noise(two.seen_through(_mlp(2048, 411), _mlp(2048, 412)), 2048),
        "noisy-linear-1000-columns": noisy_linear(1000, 0.9, 3.0, 413),
        "noisy-linear-4096-columns": noisy_linear(4096, 0.9, 3.0, 415),
    }
    return [Task(name, "wide", pair) for name, pair in found.items()]


def _linear(d: int, seed: int) -> Map:
    weights = np.random.default_rng(seed).standard_normal((_LATENTS, d)) / np.sqrt(_LATENTS)
    return lambda rows: rows @ weights


def _mlp(d: int, seed: int) -> Map:
    """Return a network that is injective, because it gets wider with every layer and its weights have full row rank."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((_LATENTS, _HIDDEN)) / np.sqrt(_LATENTS)
    second = rng.standard_normal((_HIDDEN, d)) / np.sqrt(_HIDDEN)

    def embed(rows: Array) -> Array:
        inside = rows @ first
        found: Array = np.tanh(np.where(inside > 0, inside, 0.2 * inside) @ second)
        return found

    return embed


def _with_noise(pair: Pair, d: int) -> Pair:
    """Append independent features of standard deviation 1 to each variable."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = pair.sampler(n, rng)
        return np.hstack([x, rng.standard_normal((n, d))]), np.hstack([y, rng.standard_normal((n, d))])

    return Pair(pair.d_x + d, pair.d_y + d, pair.information, sample)


def noisy_linear(d: int, rho: float, noise: float, seed: int) -> Pair:
    """Return linear functions of latents with correlation ``rho``, with noise on each of the ``d`` features.

    ``x = z A + σ e`` has the same information as ``z`` with Gaussian noise of covariance ``σ² (A Aᵀ)⁻¹``, so the mutual
    information is that of twenty Gaussian features.
    """
    weights = [np.random.default_rng(seed + side).standard_normal((_LATENTS, d)) / np.sqrt(_LATENTS) for side in (0, 1)]
    own = [np.eye(_LATENTS) + noise**2 * np.linalg.inv(weight @ weight.T) for weight in weights]
    cross = rho * np.eye(_LATENTS)
    information = gaussian_information(np.block([[own[0], cross], [cross, own[1]]]), _LATENTS)

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        first = rng.standard_normal((n, _LATENTS))
        second = rho * first + np.sqrt(1 - rho**2) * rng.standard_normal((n, _LATENTS))
        x, y = first @ weights[0], second @ weights[1]
        return x + noise * rng.standard_normal((n, d)), y + noise * rng.standard_normal((n, d))

    return Pair(d, d, information, sample)
