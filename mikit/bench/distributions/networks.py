"""Gaussian pairs, each variable transformed by its own random, invertible leaky-ReLU network."""

from __future__ import annotations

import numpy as np

from mikit.bench.distributions.bases import gaussian_pairs
from mikit.bench.distributions.maps import rotation
from mikit.bench.distributions.task import Array, Map, Task

__all__ = ["SLOPE", "invert_network", "layers", "network", "networks_tasks"]

SLOPE = 0.2
"""Slope of the leaky ReLU below 0."""

_TASKS = (
    # (features, pairs, correlation, layers, general weights)
    (4, 2, 0.8, 3, False),
    (4, 4, 0.6325, 2, False),
    (8, 4, 0.9, 2, False),
    (8, 4, 0.9, 2, True),
    (16, 4, 0.8, 3, False),
    (16, 6, 0.9, 2, False),
    (16, 2, 0.8, 2, True),
    (32, 8, 0.7, 2, False),
    (32, 7, 0.9, 2, False),
    (32, 8, 0.7, 2, True),
    (64, 12, 0.75, 2, False),
    (64, 2, 0.8, 2, False),
)


def networks_tasks() -> list[Task]:
    """Return twelve tasks with 4 to 64 features and 0.9 to 6 nats."""
    found = []
    for place, (d, pairs, rho, depth, general) in enumerate(_TASKS):
        pair = gaussian_pairs([rho] * pairs, d)
        sides = [network(*layers(d, depth, 1000 + 2 * place + side, general)) for side in (0, 1)]
        seen = pair.seen_through(*sides)
        name = f"{d}d-{pairs}-pairs-{rho:g}-{depth}-layers" + ("-general" if general else "")
        found.append(Task(name, "networks", seen))
    return found


def layers(d: int, depth: int, seed: int, general: bool) -> tuple[list[Array], Array]:
    """Return the weights of a network with ``depth`` layers, and the mixing of its outputs.

    Each layer is a random orthogonal matrix with columns scaled by 0.5 to 2, so that the inputs of the ReLUs are
    uncorrelated for isotropic inputs, and the mixing is the identity. General weights are multiplied by another
    orthogonal matrix, which correlates them, and the outputs are mixed in the same way.
    """
    rng = np.random.default_rng(seed)

    def weights() -> Array:
        scaled: Array = rotation(d, rng) * np.exp(rng.uniform(np.log(0.5), np.log(2), d))
        return scaled @ rotation(d, rng) if general else scaled

    return [weights() for _ in range(depth)], weights() if general else np.eye(d)


def network(weights: list[Array], mixing: Array) -> Map:
    """Return the map of a network from :func:`layers`: leaky ReLUs after each layer, then the mixing; invertible."""

    def forward(rows: Array) -> Array:
        for weight in weights:
            rows = rows @ weight
            rows = np.where(rows > 0, rows, SLOPE * rows)
        return rows @ mixing

    return forward


def invert_network(rows: Array, weights: list[Array], mixing: Array) -> Array:
    """Return the inputs of a network from its outputs.

    Example:
        >>> made = layers(4, 3, seed=0, general=True)
        >>> rows = np.linspace(-2, 2, 12).reshape(3, 4)
        >>> bool(np.allclose(invert_network(network(*made)(rows), *made), rows))
        True
    """
    rows = rows @ np.linalg.inv(mixing)
    for weight in reversed(weights):
        rows = np.where(rows > 0, rows, rows / SLOPE) @ np.linalg.inv(weight)
    return rows
