"""The 13 tasks that the second BMI benchmark adds to the first: Gaussian mixtures, some transformed by a map.

Source: the second version of the benchmark by Czyż and others (2025). Its other 13 tasks are in the suite ``bmi``.
The mutual informations are integrals, accurate to 1e-6; ``tests/bench/distributions/test_distributions.py`` computes
them again.
"""

from __future__ import annotations

import numpy as np

from mikit.bench.distributions import maps
from mikit.bench.distributions.bases import gaussian_pairs
from mikit.bench.distributions.mixtures import Mixture
from mikit.bench.distributions.task import Array, Pair, Task

__all__ = ["ai", "bmi2_tasks", "concentric", "galaxy", "inliers", "waves", "x_shape"]

INFORMATION = {
    "X": 0.408443,
    "AI": 0.775953,
    "waves": 1.307017,
    "galaxy": 0.494298,
    "concentric 3 5": 0.455423,
    "concentric 5 5": 0.627391,
    "concentric 3 10": 0.559916,
    "concentric 5 10": 0.751451,
    "concentric 25 5": 1.190768,
    "inliers 0.2": 0.635759,
    "inliers 0.5": 0.269626,
}
"""Nats, by quadrature of the mixtures' densities, without their uninformative features."""


def bmi2_tasks() -> list[Task]:
    """Return the 13 tasks, named as the benchmark names its tasks."""
    found: dict[str, Pair] = {
        "1v1-X-0.9": x_shape(0.9).pair(INFORMATION["X"]),
        "1v1-AI": ai().pair(INFORMATION["AI"]),
        "2v1-waves-12-5.0-3.0": waves().pair(INFORMATION["waves"]).seen_through(_fold),
        "2v1-galaxy-0.5-3.0": galaxy().pair(INFORMATION["galaxy"]).seen_through(maps.spiral(0, 1, 0.5)),
    }
    for d, rings in ((3, 5), (5, 5), (3, 10), (5, 10), (25, 5)):
        pair = concentric(d, rings).pair(INFORMATION[f"concentric {d} {rings}"])
        found[f"{d}v1-concentric_gaussians-{rings}"] = pair
    for d, share in ((5, 0.2), (25, 0.2), (5, 0.5), (25, 0.5)):
        found[f"mult-sparse-w-inliers-{d}-{d}-2-2.0-{share}"] = inliers(d, share)
    return [Task(name, "bmi2", pair) for name, pair in found.items()]


def x_shape(rho: float) -> Mixture:
    """Return two crossing Gaussian distributions with correlation ``rho`` and ``-rho``: uncorrelated, dependent."""
    crossed = [np.array([[1.0, r], [r, 1.0]]) for r in (-rho, rho)]
    return Mixture((0.5, 0.5), (np.zeros(2), np.zeros(2)), crossed, 1)


def ai() -> Mixture:
    """Return six Gaussian distributions that write AI in the plane."""
    slope = 0.95 * np.sqrt(0.04 * 0.2)
    means = [[1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [-0.8, -0.2], [-1.2, 0.0], [-0.4, 0.0]]
    covariances = [
        *(np.diag(spread) for spread in ([0.01, 0.2], [0.05, 0.001], [0.05, 0.001], [0.03, 0.001])),
        *(np.array([[0.04, tilt], [tilt, 0.2]]) for tilt in (slope, -slope)),
    ]
    return Mixture((1 / 6,) * 6, [np.array(mean) for mean in means], covariances, 1)


def waves() -> Mixture:
    """Return twelve vertical Gaussian distributions in a row with four levels of height, before they are folded."""
    means = [1.5 * np.array([k, 0.0, k % 4]) for k in range(12)]
    return Mixture((1 / 12,) * 12, means, [np.diag([0.1, 1.0, 0.1])] * 12, 2)


def _fold(rows: Array) -> Array:
    across = rows[:, 0] + 5 * np.sin(3 * rows[:, 1])
    return np.stack([0.1 * across - 0.8, 0.5 * rows[:, 1]], 1)


def galaxy() -> Mixture:
    """Return two isotropic Gaussian distributions, before the first variable is mapped to a spiral."""
    return Mixture((0.5, 0.5), (np.full(3, -1.5), np.full(3, 1.5)), [np.eye(3)] * 2, 2)


def concentric(d: int, rings: int) -> Mixture:
    """Return Gaussian distributions with a common mean; y is their number, which is their SD, with a little noise."""
    means = [np.append(np.zeros(d), float(k)) for k in range(1, rings + 1)]
    covariances = [np.diag([*[float(k**2)] * d, 1e-4]) for k in range(1, rings + 1)]
    return Mixture((1 / rings,) * rings, means, covariances, d)


def inliers(d: int, share: float) -> Pair:
    """Return two pairs of correlation 0.8 among ``d`` features; in a ``share`` of the samples y is independent."""
    clean = gaussian_pairs([0.8, 0.8], d)

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = clean.sampler(n, rng)
        broken = rng.uniform(size=(n, 1)) < share
        return x, np.where(broken, rng.standard_normal((n, d)), y)

    return Pair(d, d, INFORMATION[f"inliers {share}"], sample)
