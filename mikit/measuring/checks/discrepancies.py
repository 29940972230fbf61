"""Questions put to a discrepancy: what does the teacher give against itself, and what does the student know of it?

A distance of two finite samples is not 0 for equal laws, and a distance of laws is blind to pairing. So the same
instrument is put to random halves of each sample, and the information between paired rows is read beside it.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import ABOVE_OWN, Check
from mikit.core.rows import split_folds
from mikit.estimators.base import Estimator
from mikit.estimators.discrepancy import Discrepancy
from mikit.estimators.gaussian.mutual_information import GaussianMI
from mikit.measuring.checks import values as checks
from mikit.measuring.checks.second_readings import copula_reading
from mikit.measuring.run import run_once

__all__ = [
    "BOTH_AXES",
    "Beside",
    "Halves",
    "above_own",
    "both_axes",
    "halves_apart",
    "information_beside",
    "sampling_error",
]

BOTH_AXES = "both axes"
_SPLITS = 8
_CLEAR = 2.5
_FOLDS = 5
_FEWEST_IN_A_FOLD = 4


@final
@dataclass(frozen=True)
class Halves:
    """What an instrument gives between random halves of two samples, all of one size.

    Attributes:
        across: A half of the student against a half of the teacher of other inputs, the mean of both ways; one a split.
        teacher: The halves of the teacher against each other; one a split.
        student: The halves of the student against each other; one a split.
        rows: Rows of a half.
    """

    across: tuple[float, ...]
    teacher: tuple[float, ...]
    student: tuple[float, ...]
    rows: int

    @property
    def excess(self) -> tuple[float, ...]:
        """What lies between the samples beyond what lies within: ``½[D(x₁,y₂) + D(x₂,y₁) - D(x₁,x₂) - D(y₁,y₂)]``."""
        sides = zip(self.across, self.teacher, self.student, strict=True)
        return tuple(across - (teacher + student) / 2 for across, teacher, student in sides)

    @property
    def debiased(self) -> float:
        """Mean excess over the splits."""
        return statistics.mean(self.excess)

    @property
    def spread(self) -> float:
        """Standard deviation of the excess over the splits."""
        return statistics.stdev(self.excess)

    @property
    def clear(self) -> bool:
        """Whether the mean excess lies above 2.5 standard deviations of it, which equal laws rarely do."""
        return self.debiased > _CLEAR * self.spread

    def parts(self, *, biased: bool) -> dict[str, float]:
        """Return the figures by name, as :attr:`mikit.Measurement.parts` holds them."""
        found = {
            "teacher against itself": statistics.mean(self.teacher),
            "student against itself": statistics.mean(self.student),
            "student against teacher, at that size": statistics.mean(self.across),
            "rows of a half": float(self.rows),
        }
        if biased:
            found["debiased"] = self.debiased
            found["debiased, standard error over splits"] = self.spread / math.sqrt(len(self.across))
        return found


@final
@dataclass(frozen=True)
class Beside:
    """The mutual information that is read beside a discrepancy.

    Attributes:
        value: In nats.
        standard_error: Its sampling error.
        held_out: Whether it was read on rows that its correlations were not fitted to, because columns are many.
    """

    value: float
    standard_error: float
    held_out: bool

    @property
    def detected(self) -> bool:
        """Whether it lies above 0 by two standard errors and 0.02 nats."""
        return self.value > max(2 * self.standard_error, 0.02)

    def parts(self) -> dict[str, float]:
        """Return the figures by name, as :attr:`mikit.Measurement.parts` holds them."""
        return {
            "information beside it": self.value,
            "information beside it, standard error": self.standard_error,
        }


def halves_apart(prototype: Estimator, x: Tensor, y: Tensor, codes: Tensor | None, seed: int) -> Halves | None:
    """Measure random halves of both samples across and within, eight times; None if costly or rows are too few.

    None as well for what compares each row with its partner: rows of different halves are no partners.

    All halves have the rows of half the smaller sample, so that what a finite sample adds is the same for all. Of an
    odd number one row stands aside, another one each time. Samples of one size are cut alike, so that no half meets the
    other network's half of the same inputs.

    Args:
        prototype: The instrument. Its formula is read as it is, not debiased, with the bandwidth of the whole samples.
        x: Rows of the student.
        y: Rows of the teacher.
        codes: Group codes of paired rows, or None; a group stays in one half.
        seed: Seed of the splits.
    """
    n, m = x.shape[0], y.shape[0]
    compares_pairs = prototype.needs_pairs and not isinstance(prototype, Discrepancy)
    if prototype.costly or prototype.learned or compares_pairs or x.ndim != 2 or y.ndim != 2:
        return None
    if min(n, m) // 2 < max(prototype.minimum_rows(x.shape[1], y.shape[1]), 4):
        return None
    if codes is not None and int(codes.max()) < 1:
        return None
    if isinstance(prototype, Discrepancy):
        prototype = prototype.settled(x, y)
    generator = torch.Generator().manual_seed(seed + 32452843)
    across, teacher, student = [], [], []
    size = 0
    for _ in range(_SPLITS):
        halves_y = _two_halves(m, codes if n == m else None, generator)
        halves_x = halves_y if n == m else _two_halves(n, None, generator)
        size = min(len(part) for part in (*halves_x, *halves_y))
        x1, x2 = (x[part[:size].to(x.device)] for part in halves_x)
        y1, y2 = (y[part[:size].to(y.device)] for part in halves_y)
        try:
            across.append((_apart(prototype, x1, y2) + _apart(prototype, x2, y1)) / 2)
            teacher.append(_apart(prototype, y1, y2))
            student.append(_apart(prototype, x1, x2))
        except InputError:  # halves may be too few for what the whole allows
            return None
    return Halves(tuple(across), tuple(teacher), tuple(student), size)


def sampling_error(value: float, standard_error: float | None, halves: Halves | None) -> Check:
    """Ask what is asked of every number; where no formula is known, halves of the samples stand in for it."""
    if standard_error is None and halves is not None:
        said = "No formula is known for the standard error; what halves of the samples give stands in for it."
        return Check("sampling error", "not applicable", None, None, said)
    return checks.sampling_error(value, standard_error)


def above_own(halves: Halves | None) -> Check:
    """Ask whether student and teacher stand further apart than halves of each stand from themselves.

    All at one size. Warns unless the excess over the mean of both lies above 2.5 of its standard deviations over the
    splits. Two samples of one law do so in about one case of twenty-three.
    """
    if halves is None:
        return Check(
            ABOVE_OWN,
            "not applicable",
            None,
            None,
            "Halves were not measured: it is costly, compares partners, or rows are few.",
        )
    parts = halves.parts(biased=True)
    own, other, apart = (
        parts[name]
        for name in ("teacher against itself", "student against itself", "student against teacher, at that size")
    )
    said = (
        f"With {halves.rows} rows a side student against teacher gives {apart:.4g}, the teacher against itself "
        f"{own:.4g} and the student against itself {other:.4g}"
    )
    threshold = _CLEAR * halves.spread
    if halves.clear:
        return Check(ABOVE_OWN, "pass", halves.debiased, threshold, f"{said}.")
    told = "the value does not stand clear of what two samples of one law give"
    if halves.debiased < -threshold:
        told = "less than two samples of one law give, as where both hold the same rows in another order"
    return Check(ABOVE_OWN, "warn", halves.debiased, threshold, f"{said}: {told}.")


def information_beside(x: Tensor, y: Tensor, codes: Tensor | None, seed: int) -> Beside | None:
    """Read the Gaussian copula's information between paired rows; None if rows are not paired or too few.

    On all rows where they are many for the columns; else shrunk and held out, every row reporting once.
    """
    n = x.shape[0]
    if n != y.shape[0] or x.ndim != 2 or y.ndim != 2:
        return None
    reading = copula_reading(x, y, groups=codes)
    if reading is not None:
        units = n if codes is None else int(codes.max()) + 1
        error = math.hypot(reading[1], math.sqrt(x.shape[1] * y.shape[1] / 2) / units)
        return Beside(reading[0], error, False)
    units = n if codes is None else int(codes.max()) + 1
    if units < _FOLDS * _FEWEST_IN_A_FOLD:
        return None
    instrument = GaussianMI(copula=True, shrinkage="ledoit-wolf", held_out=True)
    try:
        run = run_once(instrument, x, y, codes, _FOLDS, _FOLDS, None, seed)
    except InputError:
        return None
    return Beside(run.value, run.standard_error or math.inf, True)


def both_axes(halves: Halves | None, beside: Beside | None) -> Check:
    """Ask whether laws that look alike belong to rows that know of each other.

    Warns where the discrepancy does not stand clear of the teacher's own and no information was detected either: a
    teacher whose rows are shuffled looks like that.
    """
    if beside is None:
        return Check(
            BOTH_AXES,
            "not applicable",
            None,
            None,
            "A discrepancy is blind to pairing, and no information could be read beside it: rows are not paired, or "
            "too few.",
        )
    how = "the shrunk, held-out Gaussian copula" if beside.held_out else "the Gaussian copula"
    said = f"Between the paired rows {how} reads {beside.value:.3f} ± {beside.standard_error:.2g} nats"
    threshold = max(2 * beside.standard_error, 0.02)
    if beside.detected:
        return Check(BOTH_AXES, "pass", beside.value, threshold, f"{said}.")
    if halves is not None and not halves.clear:
        return Check(
            BOTH_AXES,
            "warn",
            beside.value,
            threshold,
            f"{said}: the laws look alike, but no row was found to know of its partner, as if rows were shuffled.",
        )
    return Check(BOTH_AXES, "pass", beside.value, threshold, f"{said}: no row was found to know of its partner.")


def _apart(prototype: Estimator, a: Tensor, b: Tensor) -> float:
    with torch.no_grad():
        if isinstance(prototype, Discrepancy):
            return float(prototype.between_laws(a, b))
        return float(prototype.estimate(a, b))


def _two_halves(n: int, codes: Tensor | None, generator: torch.Generator) -> list[Tensor]:
    """Return two random halves in random order."""
    if codes is None:
        return list(torch.randperm(n, generator=generator).tensor_split(2))
    parts = split_folds(n, 2, groups=codes, generator=generator)
    return [part[torch.randperm(part.shape[0], generator=generator)] for part in parts]
