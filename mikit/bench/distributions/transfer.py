"""Tasks on which a critic based on a Gaussian copula was found to be weak, and independent variables.

The warps are specific to mikit (:func:`mikit.bench.distributions.maps.warp`).
"""

from __future__ import annotations

import numpy as np

from mikit.bench.distributions.bases import additive_uniform, gaussian_pairs, independent
from mikit.bench.distributions.bmi2 import INFORMATION, x_shape
from mikit.bench.distributions.maps import warp
from mikit.bench.distributions.task import Array, Pair, Task

__all__ = ["EVEN_INFORMATION", "transfer_tasks"]

EVEN_INFORMATION = 0.449122
"""Nats of one feature of ``Y = 0.9 |X| + √0.19 e``, by quadrature."""


def transfer_tasks() -> list[Task]:
    """Return the eleven tasks."""
    found: dict[str, Pair] = {
        "null-5-cauchy": independent(5, 5, degrees=1),
        "null-20-warped": _warped(independent(20, 20)),
        "gaussian-25-weak": gaussian_pairs([0.15] * 25, 25),
        "gaussian-5-strong": gaussian_pairs([0.95] * 5, 5),
        "warped-4-of-2-pairs": _warped(gaussian_pairs([0.8] * 2, 4)),
        "warped-8-of-2-pairs": _warped(gaussian_pairs([0.8] * 2, 8)),
        "warped-4-of-4-pairs": _warped(gaussian_pairs([0.95] * 4, 4)),
        "x-shape": x_shape(0.9).pair(INFORMATION["X"]),
        "x-shape-3": x_shape(0.9).pair(INFORMATION["X"]).times(3),
        "additive-uniform-2": additive_uniform(0.15).times(2),
        "even-3": Pair(1, 1, EVEN_INFORMATION, _even).times(3),
    }
    return [Task(name, "transfer", pair) for name, pair in found.items()]


def _warped(pair: Pair) -> Pair:
    return pair.seen_through(warp(pair.d_x, seed=101), warp(pair.d_y, seed=102))


def _even(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    x = rng.standard_normal((n, 1))
    return x, 0.9 * np.abs(x) + np.sqrt(0.19) * rng.standard_normal((n, 1))
