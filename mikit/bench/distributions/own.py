"""Ten laws of mikit's own: circles, skewed and heavy tails, changing spread, parity, products, clusters, labels."""

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
from mikit.bench.distributions.maps import rotation
from mikit.bench.distributions.task import Array, Law, Pair

__all__ = ["PRODUCT_INFORMATION", "VOLATILITY_INFORMATION", "own_laws"]

VOLATILITY_INFORMATION = 0.432137
"""Nats of one column of ``Y = exp(X) e``, by quadrature."""
PRODUCT_INFORMATION = 1.127038
"""Nats of ``Y = X₁ X₂ + 0.3 e``, by quadrature."""
_FLIPPED, _APART = 0.1, 12.0


def own_laws() -> list[Law]:
    """Return the ten laws."""
    found: dict[str, Pair] = {
        "circles-3": _rings(4.0).times(3),
        "log-gamma-exponential-3-turned": _turned(log_gamma_exponential(2.0).times(3), 301),
        "volatility-2": Pair(1, 1, VOLATILITY_INFORMATION, _volatility).times(2),
        "parity": _parity().beside(independent(2, 2)),
        "product-2": Pair(2, 1, PRODUCT_INFORMATION, _product).times(2),
        "clusters-8": _clusters(8, 0.2),
        "additive-uniform-4-turned": _turned(additive_uniform(0.25).times(4), 307),
        "log-normal-4-turned": _turned(gaussian_pairs([0.8] * 3, 4).seen_through(np.exp, np.exp), 309),
        "softmax-7": gaussian_pairs([0.8] * 3, 6).seen_through(_softmax, _softmax),
    }
    laws = [Law(name, "own", pair) for name, pair in found.items()]
    return [*laws, Law("noisy-label", "own", _noisy_label(), ("continuous", "discrete"))]


def _turned(pair: Pair, seed: int) -> Pair:
    turn_x, turn_y = (rotation(d, np.random.default_rng(seed + i)) for i, d in enumerate((pair.d_x, pair.d_y)))
    return pair.seen_through(lambda rows: rows @ turn_x, lambda rows: rows @ turn_y)


def _rings(concentration: float) -> Pair:
    """Two dependent angles on circles whose radii are independent of everything."""
    base = angles(concentration)

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = base.sampler(n, rng)
        return x * rng.uniform(0.7, 1.3, (n, 1)), y * rng.uniform(0.7, 1.3, (n, 1))

    return Pair(2, 2, base.information, sample)


def _volatility(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    x = rng.standard_normal((n, 1))
    return x, np.exp(x) * rng.standard_normal((n, 1))


def _parity() -> Pair:
    """The sign of y is the product of the signs of two columns, flipped in a tenth of the rows."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.standard_normal((n, 2))
        flip = np.where(rng.uniform(size=(n, 1)) < _FLIPPED, -1.0, 1.0)
        return x, flip * np.sign(x[:, :1] * x[:, 1:]) * np.abs(rng.standard_normal((n, 1)))

    return Pair(2, 1, symbol_information(2, 2 * _FLIPPED), sample)


def _product(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    x = rng.standard_normal((n, 2))
    return x, x[:, :1] * x[:, 1:] + 0.3 * rng.standard_normal((n, 1))


def _clusters(symbols: int, reroll: float) -> Pair:
    """Noisy symbols, each shown as a Gaussian cluster at a corner so far out that clusters do not overlap."""
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
    """Logits, with a last one of 0, as shares that sum to 1."""
    whole = np.exp(np.hstack([rows, np.zeros((rows.shape[0], 1))]))
    found: Array = whole / whole.sum(1, keepdims=True)
    return found


def _noisy_label() -> Pair:
    """The quarter in which a direction of x falls, rolled anew in a tenth of the rows."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.standard_normal((n, 3))
        label = np.floor(4 * ndtr(x.sum(1, keepdims=True) / math.sqrt(3)))
        again = rng.uniform(size=(n, 1)) < 0.1
        return x, np.where(again, rng.integers(4, size=(n, 1)), label)

    return Pair(3, 1, symbol_information(4, 0.1), sample)
