"""Images that are injective functions of a few numbers, so that they share the information of the numbers.

Source: the image tasks of Butakov and others (2024): Gaussian bumps and rectangles.
"""

from __future__ import annotations

import numpy as np

from mikit.bench.distributions.bases import pairs_with_information
from mikit.bench.distributions.maps import normal_cdf
from mikit.bench.distributions.task import Array, Map, Task

__all__ = ["bumps", "images_tasks", "rectangles"]

_WIDTH, _SHORTEST = 0.2, 0.2


def images_tasks() -> list[Task]:
    """Return fourteen tasks: bumps and rectangles, 16 pixels wide at six values of the information, 32 at one."""
    found = []
    for size, values in ((16, (0.1, 1, 2.5, 5, 7.5, 10)), (32, (2.5,))):
        for nats in values:
            for name, draw, numbers in (("bumps", bumps(size), 2), ("rectangles", rectangles(size), 4)):
                uniform = pairs_with_information(nats, numbers).seen_through(normal_cdf, normal_cdf)
                found.append(Task(f"{name}-{size}-pixels-{nats:g}", "images", uniform.seen_through(draw, draw)))
    return found


def bumps(size: int) -> Map:
    """Return the map from a center, two numbers in [0, 1], to an image of a Gaussian bump, ``size`` pixels wide."""
    grid = (np.arange(size) + 0.5) / size

    def draw(rows: Array) -> Array:
        across, down = (np.exp(-((grid - rows[:, [i]]) ** 2) / (2 * _WIDTH**2)) for i in (0, 1))
        return _picture(across, down)

    return draw


def rectangles(size: int) -> Map:
    """Return the map from four numbers in [0, 1] to an image of a filled rectangle with edges smoothed over a pixel.

    The first two numbers are the horizontal length and position, as fractions of their ranges; the others are vertical.
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
