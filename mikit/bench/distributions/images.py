"""Pictures drawn from a few numbers that can be read off them again, so that they share what the numbers share.

Source: the image tasks of Butakov and others (2024): Gaussian bumps and rectangles.
"""

from __future__ import annotations

import numpy as np

from mikit.bench.distributions.bases import pairs_with_information
from mikit.bench.distributions.maps import normal_cdf
from mikit.bench.distributions.task import Array, Law, Map

__all__ = ["bumps", "images_laws", "rectangles"]

_WIDTH, _SHORTEST = 0.2, 0.2


def images_laws() -> list[Law]:
    """Return fourteen laws: bumps and rectangles, 16 pixels across at six values of the information, 32 at one."""
    found = []
    for size, values in ((16, (0.1, 1, 2.5, 5, 7.5, 10)), (32, (2.5,))):
        for nats in values:
            for name, draw, numbers in (("bumps", bumps(size), 2), ("rectangles", rectangles(size), 4)):
                uniform = pairs_with_information(nats, numbers).seen_through(normal_cdf, normal_cdf)
                found.append(Law(f"{name}-{size}-pixels-{nats:g}", "images", uniform.seen_through(draw, draw)))
    return found


def bumps(size: int) -> Map:
    """Return the map of two numbers in [0, 1], a centre, to a picture of a round Gaussian bump there.

    Args:
        size: Pixels across; they are the columns, line by line.
    """
    grid = (np.arange(size) + 0.5) / size

    def draw(rows: Array) -> Array:
        across, down = (np.exp(-((grid - rows[:, [i]]) ** 2) / (2 * _WIDTH**2)) for i in (0, 1))
        return _picture(across, down)

    return draw


def rectangles(size: int) -> Map:
    """Return the map of four numbers in [0, 1] to a picture of a filled rectangle, its edges smoothed over a pixel.

    The first two are the share of the free length and of the free place across, the others the same down.

    Args:
        size: Pixels across; they are the columns, line by line.
    """
    edges = np.arange(size) / size

    def covered(rows: Array) -> Array:
        length = _SHORTEST + (1 - _SHORTEST) * rows[:, [0]]
        start = (1 - length) * rows[:, [1]]
        overlap = np.minimum(edges + 1 / size, start + length) - np.maximum(edges, start)
        found: Array = np.maximum(overlap, 0) * size
        return found

    return lambda rows: _picture(covered(rows[:, :2]), covered(rows[:, 2:]))


def _picture(across: Array, down: Array) -> Array:
    found: Array = (down[:, :, None] * across[:, None, :]).reshape(across.shape[0], -1)
    return found
