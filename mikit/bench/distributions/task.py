"""A law of two variables that knows its mutual information, and how laws are made of other laws."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from mikit.core.errors import InputError

__all__ = ["Array", "Half", "Kind", "Law", "Map", "Pair", "Sampler"]

Array = NDArray[np.float64]
Sampler = Callable[[int, np.random.Generator], tuple[Array, Array]]
Map = Callable[[Array], Array]
Kind = Literal["continuous", "discrete", "mixed"]
Half = Literal["develop", "report"]


@final
@dataclass(frozen=True)
class Pair:
    """Two variables with known mutual information: what laws are built from.

    Args:
        d_x: Columns of the first.
        d_y: Columns of the second.
        information: Their mutual information in nats; infinite where one determines a continuous part of the other.
        sampler: Draws rows of both from a generator.
        error: Standard error of ``information``; 0 where it is a closed form or an integral good to 1e-6.
    """

    d_x: int
    d_y: int
    information: float
    sampler: Sampler = field(repr=False)
    error: float = 0.0

    def seen_through(self, x: Map | None = None, y: Map | None = None) -> Pair:
        """The pair after an injective map of each side, which keeps the information.

        Args:
            x: Map of the first variable, rows to rows; None leaves it. Nothing tests that it is injective.
            y: Map of the second.

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
        """This pair and an independent one, side by side; their information adds.

        Args:
            other: The pair whose columns follow.
        """

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
class Law:
    """A named law of a suite.

    Args:
        name: What ``--task`` selects; unique in its suite.
        suite: The suite it belongs to.
        pair: Its variables and their information.
        kinds: Of the first and of the second variable; a discrete second variable is one column of class numbers.
        fault: What is wrong with the rows, so that every estimate must be flagged; empty where the verdict is to
            follow the error.
        right_suffices: Whether, for all that, a right estimate needs no flag.
        note: What the reader of a result must know of the law.
        half: Whether recipes may be developed on it, or are only reported on it.
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
        """Columns of the first variable."""
        return self.pair.d_x

    @property
    def d_y(self) -> int:
        """Columns of the second variable."""
        return self.pair.d_y

    @property
    def information(self) -> float:
        """The mutual information in nats."""
        return self.pair.information

    @property
    def error(self) -> float:
        """The standard error of :attr:`information`; 0 where it is exact or good to 1e-6."""
        return self.pair.error

    @property
    def is_trap(self) -> bool:
        """Whether every estimate on it must be flagged."""
        return bool(self.fault)

    def draw(self, n: int, seed: int) -> tuple[Array, Array]:
        """Draw ``n`` rows of both variables.

        Args:
            n: Rows.
            seed: The same seed gives the same rows on every machine with the same NumPy; laws of different names get
                different streams.

        Returns:
            ``x`` of shape ``(n, d_x)`` and ``y`` of shape ``(n, d_y)``, float64.

        Raises:
            InputError: If there is no row to draw, or the seed is negative.

        Cost:
            That of the sampler, at most a few seconds for 10,000 rows of 4,096 columns.

        Example:
            >>> from mikit.bench.distributions.suites import law_named
            >>> x, y = law_named("bmi", "multinormal-dense-2-2-0.5").draw(5, seed=0)
            >>> x.shape, y.shape
            ((5, 2), (5, 2))
        """
        if n < 1 or seed < 0:
            raise InputError(f"{n} rows from seed {seed} were asked for; rows begin at 1 and seeds at 0.")
        rng = np.random.default_rng([seed, zlib.crc32(f"{self.suite}/{self.name}".encode())])
        x, y = self.pair.sampler(n, rng)
        return _as_rows(x), _as_rows(y)


def _as_rows(values: Any) -> Array:
    rows: Array = np.ascontiguousarray(values, dtype=np.float64)
    return rows
