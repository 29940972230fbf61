"""Digits paired by class: bits or classes pass a noisy channel, and each is replaced by an image of its class.

Source: the same-class pairing of Lee and Rhee (NeurIPS 2024), on scikit-learn's digits. An image determines its
class, so two images share the information of their classes; x and y use different images of a class.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from mikit.bench.distributions.bases import noisy_symbols
from mikit.bench.distributions.task import Array, Pair, Task

__all__ = ["channel_tasks", "flip_for"]


def channel_tasks() -> list[Task]:
    """Return seven tasks: 1 to 10 bits as images of zeros and ones, and images with a noisy label."""
    found = []
    for bits, kept in ((1, 0.5), (4, 0.5), (4, 0.9), (10, 0.5)):
        note = f"{kept:.0%} of {bits} bits"
        found.append(Task(f"bits-{bits}-kept-{kept}", "channel", _bits(bits, kept), note=note))
    for reroll in (0.01, 0.2, 0.5):
        task = Task(f"label-rerolled-{reroll}", "channel", _labels(reroll), ("continuous", "discrete"))
        found.append(task)
    return found


def flip_for(share: float) -> float:
    """Return the flip probability below one half at which a fair bit keeps this share of its information.

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
    """Return images by class: those at even positions for x, at odd positions for y."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    by_class = [pixels[labels == label].astype(np.float64) / 16 for label in range(10)]
    return [own[::2] for own in by_class], [own[1::2] for own in by_class]


def _shown(symbols: Array, pictures: list[Array], rng: np.random.Generator) -> Array:
    """Return each symbol as an image of its class, concatenated."""
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
