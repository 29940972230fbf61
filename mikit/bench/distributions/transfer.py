"""Laws of the kinds on which a critic anchored at a Gaussian copula was found weak, and nulls.

The warps are mikit's own (:func:`mikit.bench.distributions.maps.warp`).
"""

from __future__ import annotations

import numpy as np

from mikit.bench.distributions.bases import additive_uniform, gaussian_pairs, independent
from mikit.bench.distributions.bmi2 import INFORMATION, x_shape
from mikit.bench.distributions.maps import warp
from mikit.bench.distributions.task import Array, Law, Pair

__all__ = ["EVEN_INFORMATION", "transfer_laws"]

EVEN_INFORMATION = 0.449122
"""Nats of one column of ``Y = 0.9 |X| + √0.19 e``, by quadrature."""


def transfer_laws() -> list[Law]:
    """Return the eleven laws."""
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
    return [Law(name, "transfer", pair) for name, pair in found.items()]


def _warped(pair: Pair) -> Pair:
    return pair.seen_through(warp(pair.d_x, seed=101), warp(pair.d_y, seed=102))


def _even(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    x = rng.standard_normal((n, 1))
    return x, 0.9 * np.abs(x) + np.sqrt(0.19) * rng.standard_normal((n, 1))
