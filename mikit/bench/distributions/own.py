"""Ten tasks specific to mikit: circles, heavy tails, varying variance, parity, products, clusters, labels."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from mikit.bench.distributions.bases import (
    additive_uniform,
    angles,
    gaussian_pairs,
    independent,
    log_gamma_exponential,
    noisy_symbols,
    symbol_information,
)
from mikit.bench.distributions.maps import turned
from mikit.bench.distributions.task import Array, Pair, Task

__all__ = ["PRODUCT_INFORMATION", "VOLATILITY_INFORMATION", "own_tasks"]

VOLATILITY_INFORMATION = 0.432137
"""Nats of one feature of ``Y = exp(X) e``, by quadrature."""
PRODUCT_INFORMATION = 1.127038
"""Nats of ``Y = X₁ X₂ + 0.3 e``, by quadrature."""
_FLIPPED, _APART = 0.1, 12.0


def own_tasks() -> list[Task]:
    """Return the ten tasks."""
    found: dict[str, Pair] = {
        "circles-3": _rings(4.0).times(3),
        "log-gamma-exponential-3-turned": turned(log_gamma_exponential(2.0).times(3), 301),
        "volatility-2": Pair(1, 1, VOLATILITY_INFORMATION, _volatility).times(2),
        "parity": _parity().beside(independent(2, 2)),
        "product-2": Pair(2, 1, PRODUCT_INFORMATION, _product).times(2),
        "clusters-8": _clusters(8, 0.2),
        "additive-uniform-4-turned": turned(additive_uniform(0.25).times(4), 307),
        "log-normal-4-turned": turned(gaussian_pairs([0.8] * 3, 4).seen_through(np.exp, np.exp), 309),
        "softmax-7": gaussian_pairs([0.8] * 3, 6).seen_through(_softmax, _softmax),
    }
    tasks = [Task(name, "own", pair) for name, pair in found.items()]
    return [*tasks, Task("noisy-label", "own", _noisy_label(), ("continuous", "discrete"))]


def _rings(concentration: float) -> Pair:
    """Return two dependent angles on circles with independent radii."""
    base = angles(concentration)

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = base.sampler(n, rng)
        return x * rng.uniform(0.7, 1.3, (n, 1)), y * rng.uniform(0.7, 1.3, (n, 1))

    return Pair(2, 2, base.information, sample)


def _volatility(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    x = rng.standard_normal((n, 1))
    return x, np.exp(x) * rng.standard_normal((n, 1))


def _parity() -> Pair:
    """Return y with the sign of the product of two features, flipped in a tenth of the samples."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.standard_normal((n, 2))
        flip = np.where(rng.uniform(size=(n, 1)) < _FLIPPED, -1.0, 1.0)
        return x, flip * np.sign(x[:, :1] * x[:, 1:]) * np.abs(rng.standard_normal((n, 1)))

    return Pair(2, 1, symbol_information(2, 2 * _FLIPPED), sample)


def _product(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    x = rng.standard_normal((n, 2))
    return x, x[:, :1] * x[:, 1:] + 0.3 * rng.standard_normal((n, 1))


def _clusters(symbols: int, reroll: float) -> Pair:
    """Return noisy symbols as Gaussian clusters that are too far apart to overlap."""
    base = noisy_symbols(symbols, reroll)

    def shown(symbol: Array, rng: np.random.Generator) -> Array:
        noise = rng.standard_normal((symbol.shape[0], symbols))
        noise[np.arange(symbol.shape[0]), symbol[:, 0].astype(np.int64)] += _APART
        return noise

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = base.sampler(n, rng)
        return shown(x, rng), shown(y, rng)

    return Pair(symbols, symbols, base.information, sample)


def _softmax(rows: Array) -> Array:
    """Return the softmax of logits, with a last one of 0."""
    whole = np.exp(np.hstack([rows, np.zeros((rows.shape[0], 1))]))
    found: Array = whole / whole.sum(1, keepdims=True)
    return found


def _noisy_label() -> Pair:
    """Return the quartile of a direction of x, replaced at random in a tenth of the samples."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.standard_normal((n, 3))
        label = np.floor(4 * ndtr(x.sum(1, keepdims=True) / math.sqrt(3)))
        again = rng.uniform(size=(n, 1)) < 0.1
        return x, np.where(again, rng.integers(4, size=(n, 1)), label)

    return Pair(3, 1, symbol_information(4, 0.1), sample)
