"""Injective maps of samples, which preserve mutual information."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from mikit.bench.distributions.task import Array, Map, Pair

__all__ = [
    "asinh",
    "bimodal_x",
    "bimodal_y",
    "half_cube",
    "normal_cdf",
    "rotation",
    "spiral",
    "swiss_roll",
    "turned",
    "warp",
    "wiggly_x",
    "wiggly_y",
]


def normal_cdf(rows: Array) -> Array:
    """Return the standard normal distribution function of every feature."""
    found: Array = ndtr(rows)
    return found


def half_cube(rows: Array) -> Array:
    """Return ``x √|x|``."""
    found: Array = rows * np.sqrt(np.abs(rows))
    return found


def asinh(rows: Array) -> Array:
    """Return the inverse hyperbolic sine."""
    found: Array = np.arcsinh(rows)
    return found


def wiggly_x(rows: Array) -> Array:
    """Return ``x + 0.4 sin x + 0.2 sin(1.7x + 1) + 0.03 sin(3.3x - 2.5)``, which is increasing."""
    found: Array = rows + 0.4 * np.sin(rows) + 0.2 * np.sin(1.7 * rows + 1) + 0.03 * np.sin(3.3 * rows - 2.5)
    return found


def wiggly_y(rows: Array) -> Array:
    """Return ``y - 0.4 sin 0.4y + 0.17 sin(1.3y + 3.5) + 0.02 sin(4.3y - 2.5)``, which is increasing."""
    found: Array = rows - 0.4 * np.sin(0.4 * rows) + 0.17 * np.sin(1.3 * rows + 3.5) + 0.02 * np.sin(4.3 * rows - 2.5)
    return found


def bimodal_x(rows: Array) -> Array:
    """Transform standard normal features to the mixture ``0.3 N(0, 1) + 0.7 N(5, 1)``."""
    return _inverse_mixture(ndtr(rows), 0.3, 0.0, 5.0)


def bimodal_y(rows: Array) -> Array:
    """Transform standard normal features to the mixture ``0.5 N(-1, 1) + 0.5 N(3, 1)``."""
    return _inverse_mixture(ndtr(rows), 0.5, -1.0, 3.0)


def _inverse_mixture(levels: Array, share: float, first: float, second: float) -> Array:
    """Solve ``share F(x - first) + (1 - share) F(x - second) = level`` by 60 bisections."""
    low, high = np.full_like(levels, first - 12), np.full_like(levels, second + 12)
    for _ in range(60):
        middle = (low + high) / 2
        below = share * ndtr(middle - first) + (1 - share) * ndtr(middle - second) < levels
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    found: Array = (low + high) / 2
    return found


def swiss_roll(rows: Array) -> Array:
    """Roll up one feature in [0, 1]: ``t = 1.5π (1 + 2u)``, ``(t cos t, t sin t) / 21``."""
    t = 1.5 * np.pi * (1 + 2 * rows)
    found: Array = np.hstack([t * np.cos(t), t * np.sin(t)]) / 21
    return found


def spiral(first: int, second: int, speed: float | None = None) -> Map:
    """Return the map that rotates each sample in the plane of two features by an angle that grows with its length.

    ``speed`` is the angle in radians per unit of squared length, by default 1 divided by the number of features.
    """

    def turn(rows: Array) -> Array:
        angle = (rows**2).sum(1) * (1 / rows.shape[1] if speed is None else speed)
        turned = rows.copy()
        turned[:, first] = np.cos(angle) * rows[:, first] - np.sin(angle) * rows[:, second]
        turned[:, second] = np.sin(angle) * rows[:, first] + np.cos(angle) * rows[:, second]
        return turned

    return turn


def rotation(d: int, rng: np.random.Generator) -> Array:
    """Return a random orthogonal matrix, uniform on the orthogonal group."""
    # The signs of the QR decomposition are not random; fixing them on the diagonal makes the matrix uniform.
    q, r = np.linalg.qr(rng.standard_normal((d, d)))
    found: Array = q * np.sign(np.diag(r))
    return found


def turned(pair: Pair, seed: int) -> Pair:
    """Return the pair with a random rotation of each variable."""
    turn_x, turn_y = (rotation(d, np.random.default_rng(seed + i)) for i, d in enumerate((pair.d_x, pair.d_y)))
    return pair.seen_through(lambda rows: rows @ turn_x, lambda rows: rows @ turn_y)


def warp(d: int, seed: int, rounds: int = 2) -> Map:
    """Return a smooth, invertible warp that mixes all features; ``d`` is at least 2.

    Each round rotates at random, shifts the second half of the features by smooth functions of the first half, then
    bends each feature with ``z + 0.5 sin(1.5 z + phase)``.
    """
    rng = np.random.default_rng(seed)
    half = d // 2
    fixed = [
        (rotation(d, rng), rng.standard_normal((half, d - half)) / np.sqrt(half), rng.uniform(0, 2 * np.pi, d))
        for _ in range(rounds)
    ]

    def bend(rows: Array) -> Array:
        for turn, weights, phases in fixed:
            rows = rows @ turn
            rows = np.hstack([rows[:, :half], rows[:, half:] + np.sin(2 * rows[:, :half] @ weights)])
            rows = rows + 0.5 * np.sin(1.5 * rows + phases)
        return rows

    return bend
