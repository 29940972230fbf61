"""Tasks: distributions of two variables with known mutual information, and operations on them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from mikit.core.errors import InputError

__all__ = ["Array", "Half", "Kind", "Map", "Pair", "Sampler", "Task"]

Array = NDArray[np.float64]
Sampler = Callable[[int, np.random.Generator], tuple[Array, Array]]
Map = Callable[[Array], Array]
Kind = Literal["continuous", "discrete", "mixed"]
Half = Literal["develop", "report"]


@final
@dataclass(frozen=True)
class Pair:
    """Two variables with known mutual information.

    ``information`` is in nats, and infinite if one variable determines a continuous part of the other. ``error`` is its
    standard error, 0 for closed forms and for integrals accurate to 1e-6.
    """

    d_x: int
    d_y: int
    information: float
    sampler: Sampler = field(repr=False)
    error: float = 0.0

    def seen_through(self, x: Map | None = None, y: Map | None = None) -> Pair:
        """Return the pair after an injective map of each variable, which preserves the information.

        Nothing checks that the maps are injective.

        Example:
            >>> from mikit.bench.distributions.bases import gaussian_pairs
            >>> doubled = gaussian_pairs([0.6], 1).seen_through(x=lambda rows: np.hstack([rows, rows**3]))
            >>> doubled.d_x, round(doubled.information, 3)
            (2, 0.223)
        """

        def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
            first, second = self.sampler(n, rng)
            return (first if x is None else x(first)), (second if y is None else y(second))

        d_x = self.d_x if x is None else x(np.zeros((1, self.d_x))).shape[1]
        d_y = self.d_y if y is None else y(np.zeros((1, self.d_y))).shape[1]
        return replace(self, d_x=d_x, d_y=d_y, sampler=sample)

    def beside(self, other: Pair) -> Pair:
        """Return this pair with the features of an independent pair appended; their information adds up."""

        def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
            (x, y), (more_x, more_y) = self.sampler(n, rng), other.sampler(n, rng)
            return np.hstack([x, more_x]), np.hstack([y, more_y])

        return Pair(
            self.d_x + other.d_x,
            self.d_y + other.d_y,
            self.information + other.information,
            sample,
            float(np.hypot(self.error, other.error)),
        )

    def times(self, count: int) -> Pair:
        """``count`` independent copies side by side.

        Args:
            count: How many; at least 1.
        """
        whole = self
        for _ in range(count - 1):
            whole = whole.beside(self)
        return replace(whole, error=count * self.error)


@final
@dataclass(frozen=True)
class Task:
    """A distribution with known mutual information, with a name that is unique in its suite.

    Args:
        kinds: Kind of each variable; a discrete second variable is one column of class numbers.
        fault: For traps, the fault of the samples for which every estimate has to be flagged.
        right_suffices: Whether a correct estimate on a trap needs no flag.
        half: Whether it is for development, or only for reports.
    """

    name: str
    suite: str
    pair: Pair
    kinds: tuple[Kind, Kind] = ("continuous", "continuous")
    fault: str = ""
    right_suffices: bool = False
    note: str = ""
    half: Half = "develop"

    @property
    def d_x(self) -> int:
        """Number of features of the first variable."""
        return self.pair.d_x

    @property
    def d_y(self) -> int:
        """Number of features of the second variable."""
        return self.pair.d_y

    @property
    def information(self) -> float:
        """The mutual information in nats."""
        return self.pair.information

    @property
    def error(self) -> float:
        """The standard error of :attr:`information`; 0 if it is exact or accurate to 1e-6."""
        return self.pair.error

    @property
    def is_trap(self) -> bool:
        """Whether every estimate on it has to be flagged."""
        return bool(self.fault)

    def draw(self, n: int, seed: int) -> tuple[Array, Array]:
        """Return ``n`` samples of both variables, of shapes ``(n, d_x)`` and ``(n, d_y)``.

        A seed gives the same samples on every machine with the same NumPy; tasks of different names get different
        random streams.

        Example:
            >>> from mikit.bench.distributions.suites import task_named
            >>> x, y = task_named("bmi", "multinormal-dense-2-2-0.5").draw(5, seed=0)
            >>> x.shape, y.shape
            ((5, 2), (5, 2))
        """
        if n < 1 or seed < 0:
            raise InputError(f"n is {n} and seed is {seed}; n must be at least 1 and seed at least 0.")
        rng = np.random.default_rng([seed, zlib.crc32(f"{self.suite}/{self.name}".encode())])
        x, y = self.pair.sampler(n, rng)
        return _as_rows(x), _as_rows(y)


def _as_rows(values: Any) -> Array:
    rows: Array = np.ascontiguousarray(values, dtype=np.float64)
    return rows
