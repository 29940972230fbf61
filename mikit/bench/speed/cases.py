"""The cases of the speed benchmark: samples, candidates and references."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import torch

from mikit.bench.peers import peers
from mikit.bench.peers.peers import Scalar, formula
from mikit.bench.speed import problems, reference as whole
from mikit.bench.speed.problems import Problem

__all__ = ["CASES", "NEIGHBORS", "Candidate", "Case"]

Build = Callable[[Problem], Scalar]
NEIGHBORS = 3
_TEMPERATURE = 0.07


@final
@dataclass(frozen=True)
class Candidate:
    """One way to compute the quantity of a case.

    Args:
        build: Returns the function for given samples, or raises ``MissingError``. None: the peer of this name runs in
            another interpreter.
        quantity: The reference of the case with which it is compared.
        matrices: Number of matrices of size by size in memory at once, to estimate whether it fits.
        sizes: The only sizes at which it is run; None for all.
    """

    name: str
    build: Build | None
    quantity: str = ""
    matrices: float = 0.0
    sizes: tuple[int, ...] | None = None
    quick: bool = True
    cpu_only: bool = False


@final
@dataclass(frozen=True)
class Case:
    """One quantity on one kind of samples, over several sizes.

    Args:
        candidates: The first is mikit.
        references: The formula in float64, by quantity.
        largest_reference: The largest size at which errors are measured; above it they are those of this size.
        sweeps: The letter of the size.
        width: Number of features if matrix products dominate the time: 6 · size² · width operations.
        measured: What is timed.
        on_request: Whether it is run only if requested by name.
    """

    name: str
    variant: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    draw: Callable[[int, int], Problem]
    candidates: tuple[Candidate, ...]
    references: Mapping[str, Build]
    largest_reference: int = 4096
    sweeps: str = "N"
    width: int | None = None
    measured: str = "value and gradient"
    on_request: bool = False


def _compiled(function: Scalar) -> Scalar:
    torch.compiler.reset()
    compiled: Scalar = torch.compile(function, dynamic=False)
    return compiled


def _infonce(both_directions: bool, name: str) -> Case:
    def whole_matrix(_: Problem) -> Scalar:
        return partial(whole.infonce, temperature=_TEMPERATURE, both_directions=both_directions)

    return Case(
        name,
        "d=128",
        (1024, 2048, 4096, 8192, 16384),
        (256, 512),
        lambda n, seed: problems.unit_rows(n, 128, seed),
        (
            Candidate("mikit", lambda _: _mikit_infonce(both_directions)),
            Candidate("whole matrix", whole_matrix, matrices=4),
            Candidate(
                "torch.compile", lambda p: _compiled(whole_matrix(p)), matrices=4, sizes=(4096, 16384), quick=False
            ),
        ),
        {"": whole_matrix},
        width=None if both_directions else 128,
    )


def _mikit_infonce(both_directions: bool) -> Scalar:
    return partial(formula("infonce"), temperature=_TEMPERATURE, both_directions=both_directions)


def _mikit_sliced() -> Scalar:
    found = formula("sliced_wasserstein2")
    return lambda x, y, directions: found(x, y, directions=directions)


def _ksg(wide: int, narrow: int, others: tuple[Candidate, ...], sizes: tuple[int, ...]) -> Case:
    chebyshev = wide + narrow <= 4

    def reference(chebyshev: bool, equal_spaces: bool) -> Build:
        return lambda _: partial(whole.ksg, k=NEIGHBORS, chebyshev=chebyshev, equal_spaces=equal_spaces)

    return Case(
        "ksg",
        f"d={wide}, {narrow}",
        sizes,
        (200, 400),
        lambda n, seed: problems.gaussian_pair(n, wide, narrow, seed),
        (
            Candidate("mikit", lambda _: partial(formula("ksg"), k=NEIGHBORS), cpu_only=wide + narrow <= 4),
            *others,
            Candidate("benchmark-mi", None, "Euclidean, spaces as they are", cpu_only=True),
            Candidate("NPEET", None, "Chebyshev, spaces as they are", cpu_only=True, sizes=(200, 400, 1000)),
        ),
        {
            "": reference(chebyshev, True),
            "Euclidean, spaces as they are": reference(False, False),
            "Chebyshev, spaces as they are": reference(True, False),
        },
        largest_reference=2000,
        measured="value",
    )


def _sinkhorn(epsilon: float, shown: str, sizes: tuple[int, ...], quick: tuple[int, ...]) -> Case:
    return Case(
        "sinkhorn_divergence",
        f"d=64, eps={shown}",
        sizes,
        quick,
        lambda n, seed: problems.clouds(n, 64, seed, epsilon),
        (
            Candidate("mikit", lambda _: partial(formula("sinkhorn_divergence"), epsilon=epsilon)),
            Candidate("geomloss .5", lambda _: peers.geomloss_sinkhorn(epsilon, 0.5), matrices=8),
            Candidate(
                "geomloss .9",
                lambda _: peers.geomloss_sinkhorn(epsilon, 0.9),
                matrices=8,
                sizes=(512, 1024, 2048),  # a call at larger sizes takes 20 s
                quick=False,
            ),
            Candidate("POT", lambda _: peers.pot_sinkhorn(epsilon), matrices=12),
        ),
        {"": lambda _: partial(whole.sinkhorn_divergence, epsilon=epsilon)},
    )


def _bures(sizes: tuple[int, ...], quick: tuple[int, ...], rows: int) -> Case:
    return Case(
        "bures2",
        f"n={rows}",
        sizes,
        quick,
        lambda d, seed: problems.gaussian_pair(rows, d, d, seed, gradients=1),
        (
            Candidate("mikit", lambda _: formula("bures2")),
            Candidate("eigh", lambda _: whole.bures2, matrices=12),
            Candidate("POT", lambda _: peers.pot_bures(), matrices=12),
        ),
        {"": lambda _: whole.bures2_by_gram},
        sweeps="d",
    )


_MMD2 = Case(
    "mmd2",
    "d=64",
    (1024, 2048, 4096, 8192),
    (256, 512),
    lambda n, seed: problems.paired_kernels(n, 64, seed),
    (
        Candidate("mikit", lambda p: partial(formula("mmd2"), bandwidth=p.numbers["bandwidth"])),
        Candidate("whole matrix", lambda p: partial(whole.mmd2, bandwidth=p.numbers["bandwidth"]), matrices=10),
        Candidate(
            "whole matrix, lean",
            lambda p: partial(whole.mmd2_lean, bandwidth=p.numbers["bandwidth"]),
            "with self-pairs",
            matrices=8,
        ),
        Candidate("torch.cdist", lambda p: partial(whole.mmd2_by_cdist, bandwidth=p.numbers["bandwidth"]), matrices=10),
        Candidate("geomloss", lambda p: peers.geomloss_gaussian(p.numbers["bandwidth"]), "with self-pairs", matrices=8),
    ),
    {
        "": lambda p: partial(whole.mmd2, bandwidth=p.numbers["bandwidth"]),
        "with self-pairs": lambda p: partial(whole.mmd2, bandwidth=p.numbers["bandwidth"], unbiased=False),
    },
)

_JSD = Case(
    "jsd",
    "d=128",
    (1024, 2048, 4096, 8192),
    (256, 512),
    lambda n, seed: problems.unit_rows(n, 128, seed),
    (
        Candidate("mikit", lambda _: partial(formula("jsd"), temperature=_TEMPERATURE)),
        Candidate("whole matrix", lambda _: partial(whole.jsd, temperature=_TEMPERATURE), matrices=4),
        Candidate("whole matrix, lean", lambda _: partial(whole.jsd_lean, temperature=_TEMPERATURE), matrices=4),
    ),
    {"": lambda _: partial(whole.jsd, temperature=_TEMPERATURE)},
)

_PKT = Case(
    "pkt",
    "d=128, 64",
    (1024, 2048, 4096, 8192),
    (256, 512),
    lambda n, seed: problems.gaussian_pair(n, 128, 64, seed, gradients=1),
    (
        Candidate("mikit", lambda _: formula("pkt")),
        Candidate("whole matrix", lambda _: partial(whole.pkt, diagonal=True), "with the diagonal", matrices=10),
        Candidate("whole matrix, lean", lambda _: whole.pkt_lean, "with the diagonal", matrices=8),
    ),
    {"": lambda _: whole.pkt, "with the diagonal": lambda _: partial(whole.pkt, diagonal=True)},
)

_HSIC = Case(
    "hsic",
    "d=64",
    (1024, 2048, 4096, 8192),
    (256, 512),
    lambda n, seed: problems.paired_kernels(n, 64, seed),
    (
        Candidate(
            "mikit",
            lambda p: partial(formula("hsic"), bandwidth_x=p.numbers["bandwidth"], bandwidth_y=p.numbers["bandwidth"]),
        ),
        Candidate(
            "whole matrix",
            lambda p: partial(whole.hsic, bandwidth_x=p.numbers["bandwidth"], bandwidth_y=p.numbers["bandwidth"]),
            matrices=8,
        ),
    ),
    {
        "": lambda p: partial(whole.hsic, bandwidth_x=p.numbers["bandwidth"], bandwidth_y=p.numbers["bandwidth"]),
    },
)

_SLICED = Case(
    "sliced_wasserstein2",
    "d=64, 128 projections",
    (1024, 4096, 16384),
    (256, 512),
    lambda n, seed: problems.with_directions(n, 64, seed, 128),
    (
        Candidate("mikit", lambda _: _mikit_sliced()),
        Candidate("whole matrix", lambda _: whole.sliced_wasserstein2),
        Candidate("POT", lambda _: peers.pot_sliced()),
    ),
    {"": lambda _: whole.sliced_wasserstein2},
    largest_reference=16384,
)

_SCALE = (
    Case(
        "scale",
        "infonce, d=64",
        (32768, 65536, 131072),
        (1024,),
        lambda n, seed: problems.unit_rows(n, 64, seed),
        (Candidate("mikit", lambda _: _mikit_infonce(False)),),
        {"": lambda _: partial(whole.infonce, temperature=_TEMPERATURE)},
        on_request=True,
    ),
    Case(
        "scale",
        "ksg, d=25, 25",
        (25_000, 50_000, 100_000),
        (1000,),
        lambda n, seed: problems.gaussian_pair(n, 25, 25, seed),
        (Candidate("mikit", lambda _: partial(formula("ksg"), k=NEIGHBORS)),),
        {"": lambda _: partial(whole.ksg, k=NEIGHBORS, chebyshev=False, equal_spaces=True)},
        largest_reference=2000,
        measured="value",
        on_request=True,
    ),
)

CASES: tuple[Case, ...] = (
    _infonce(False, "infonce"),
    _infonce(True, "infonce_symmetric"),
    _JSD,
    _MMD2,
    _PKT,
    _HSIC,
    _sinkhorn(0.05, ".05", (512, 1024, 2048), (128, 256)),
    _sinkhorn(0.02, ".02", (1024, 2048, 4096), (128,)),
    _SLICED,
    _bures((256, 512, 1024, 2048), (64, 128), 256),
    _ksg(
        1,
        1,
        (Candidate("scikit-learn", lambda _: peers.sklearn_ksg(NEIGHBORS), cpu_only=True),),
        (1000, 3000, 10_000),
    ),
    _ksg(25, 25, (), (1000, 3000, 10_000)),
    _ksg(512, 256, (), (1000, 3000, 10_000)),
    *_SCALE,
)
