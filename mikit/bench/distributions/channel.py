"""Digits paired by class: bits or classes go through a noisy channel, and each is shown as some picture of its class.

Source: the same-class pairing of Lee and Rhee (NeurIPS 2024), on scikit-learn's digits. A digit shows its class, so
two pictures share what their classes share; x and y are drawn from different pictures of a class.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from mikit.bench.distributions.bases import noisy_symbols
from mikit.bench.distributions.task import Array, Law, Pair

__all__ = ["channel_laws", "flip_for"]


def channel_laws() -> list[Law]:
    """Return seven laws: 1 to 10 bits in pictures of zeros and ones, and pictures with a noisy label."""
    found = []
    for bits, kept in ((1, 0.5), (4, 0.5), (4, 0.9), (10, 0.5)):
        note = f"{kept:.0%} of {bits} bits"
        found.append(Law(f"bits-{bits}-kept-{kept}", "channel", _bits(bits, kept), note=note))
    for reroll in (0.01, 0.2, 0.5):
        law = Law(f"label-rerolled-{reroll}", "channel", _labels(reroll), ("continuous", "discrete"))
        found.append(law)
    return found


def flip_for(share: float) -> float:
    """Return the probability below one half at which a flipped fair bit keeps this share of its information.

    Args:
        share: Between 0 and 1.

    Example:
        >>> round(flip_for(0.5), 4)
        0.11
    """
    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        kept = 1 + middle * math.log2(middle) + (1 - middle) * math.log2(1 - middle)
        low, high = (middle, high) if kept > share else (low, middle)
    return (low + high) / 2


@cache
def _digits() -> tuple[list[Array], list[Array]]:
    """Pictures by class, the even ones of each class for x and the odd ones for y."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    by_class = [pixels[labels == label].astype(np.float64) / 16 for label in range(10)]
    return [own[::2] for own in by_class], [own[1::2] for own in by_class]


def _shown(symbols: Array, pictures: list[Array], rng: np.random.Generator) -> Array:
    """Each symbol as a picture of its class, side by side."""
    found = np.empty((*symbols.shape, 64))
    for symbol in range(10):
        own = symbols == symbol
        found[own] = pictures[symbol][rng.integers(len(pictures[symbol]), size=int(own.sum()))]
    return found.reshape(symbols.shape[0], -1)


def _bits(count: int, kept: float) -> Pair:
    flip = flip_for(kept)

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        bits = rng.integers(2, size=(n, count)).astype(np.float64)
        other = np.where(rng.uniform(size=bits.shape) < flip, 1 - bits, bits)
        for_x, for_y = _digits()
        return _shown(bits, for_x, rng), _shown(other, for_y, rng)

    return Pair(64 * count, 64 * count, kept * count * math.log(2), sample)


def _labels(reroll: float) -> Pair:
    base = noisy_symbols(10, reroll)

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        digit, label = base.sampler(n, rng)
        return _shown(digit, _digits()[0], rng), label

    return Pair(64, 1, base.information, sample)
