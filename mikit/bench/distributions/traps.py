"""Traps: tasks on which an estimate has to be flagged, each with the fault of its samples.

The truth is the mutual information that a user would expect. If the samples are faulty, an estimate has to be flagged
even if it is correct by chance; on the other traps a correct estimate needs no flag.
"""

from __future__ import annotations

import math

import numpy as np

from mikit.bench.distributions.bases import gaussian_pairs, independent, pairs_with_information
from mikit.bench.distributions.maps import rotation, warp
from mikit.bench.distributions.task import Array, Pair, Task

__all__ = ["RECTIFIED_INFORMATION", "traps_tasks"]

RECTIFIED_INFORMATION = 0.346418
"""Nats of ``max(X, 0)`` and ``max(Y, 0)`` at correlation 0.8, by quadrature."""
_COPIES, _VIEWS = 4, 20


def traps_tasks() -> list[Task]:
    """Return the eleven traps."""
    pair = gaussian_pairs([0.8, 0.8], 3)
    faulty = {
        "duplicates-independent": (_repeated(independent(3, 3)), "every sample occurs four times"),
        "duplicates-dependent": (_repeated(pair), "every sample occurs four times"),
        "views-of-items": (_views(), "twenty noisy views of each item are used as samples, without groups"),
        "deterministic": (_function_of_x(), "y is a function of x, so the information is infinite"),
        "copied-column": (_copied_column(), "y contains a feature of x, so the information is infinite"),
        "misaligned-half": (_misaligned(pair), "a sample of y is missing in the middle: half of the pairs are wrong"),
    }
    hard = {
        "saturation": (_saturated(), "40 nats after a nonlinear map: more than this number of samples can show"),
        "constant-column": (_constant(pair), "a feature of x is constant"),
        "relu-atoms": (_rectified(), "half of the entries are exactly 0"),
        "scaling": (_scaled(turned=False), "one feature of noise is a million times as large as the others"),
        "scaling-turned": (_scaled(turned=True), "noise a million times as large as the rest is in every feature"),
    }
    return [
        *(Task(name, "traps", own, fault=fault) for name, (own, fault) in faulty.items()),
        *(Task(name, "traps", own, fault=fault, right_suffices=True) for name, (own, fault) in hard.items()),
    ]


def _repeated(pair: Pair) -> Pair:
    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = pair.sampler(-(-n // _COPIES), rng)
        rows = rng.permutation(np.arange(n) // _COPIES)
        return x[rows], y[rows]

    return Pair(pair.d_x, pair.d_y, pair.information, sample)


def _views() -> Pair:
    """Return independent variables with few items, each in many noisy views."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        items = -(-n // _VIEWS)
        rows = rng.permutation(np.arange(n) // _VIEWS)
        x, y = rng.standard_normal((items, 3)), rng.standard_normal((items, 3))
        return x[rows] + 0.1 * rng.standard_normal((n, 3)), y[rows] + 0.1 * rng.standard_normal((n, 3))

    return Pair(3, 3, 0.0, sample)


def _function_of_x() -> Pair:
    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.standard_normal((n, 4))
        return x, np.tanh(x[:, :3] + 0.5 * x[:, 1:])

    return Pair(4, 3, math.inf, sample)


def _copied_column() -> Pair:
    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = rng.standard_normal((n, 3)), rng.standard_normal((n, 3))
        y[:, 1] = x[:, 2]
        return x, y

    return Pair(3, 3, math.inf, sample)


def _misaligned(pair: Pair) -> Pair:
    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = pair.sampler(n + 1, rng)
        return x[:n], np.delete(y, n // 2, axis=0)

    return Pair(pair.d_x, pair.d_y, pair.information, sample)


def _saturated() -> Pair:
    return pairs_with_information(40.0, 4).seen_through(warp(4, seed=501), warp(4, seed=502))


def _constant(pair: Pair) -> Pair:
    return pair.seen_through(x=lambda rows: np.insert(rows, 1, 3.0, axis=1))


def _rectified() -> Pair:
    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.standard_normal((n, 1))
        y = 0.8 * x + 0.6 * rng.standard_normal((n, 1))
        return np.maximum(x, 0), np.maximum(y, 0)

    return Pair(1, 1, RECTIFIED_INFORMATION, sample).times(3)


def _scaled(*, turned: bool) -> Pair:
    scales = np.array([1.0, 1.0, 1.0, 1e6])
    turn = rotation(4, np.random.default_rng(503)) if turned else np.eye(4)
    return gaussian_pairs([0.8, 0.8], 4).seen_through(x=lambda rows: rows * scales @ turn)
