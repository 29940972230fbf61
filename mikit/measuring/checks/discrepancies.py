"""The checks of a discrepancy: the teacher compared with itself, and the information between paired samples.

The distance of two finite samples is not 0 for equal distributions, and a distance of distributions does not depend on
the pairing. So the same metric is also computed between random halves of each sample, and the mutual information of
paired samples is reported beside it.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import ABOVE_OWN, Check
from mikit.core.rows import FEWEST_IN_A_FOLD, split_folds
from mikit.estimators.base import Estimator
from mikit.estimators.discrepancy import Discrepancy
from mikit.estimators.gaussian.mutual_information import GaussianMI
from mikit.measuring.checks import values
from mikit.measuring.run import Run, run_once
from mikit.measuring.subject import Subject

__all__ = [
    "BOTH_AXES",
    "Beside",
    "Halves",
    "above_own",
    "both_axes",
    "checks_of_discrepancy",
    "halves_apart",
    "information_beside",
    "sampling_error",
]

BOTH_AXES = "both axes"
_SPLITS = 8
_CLEAR = 2.5
_FOLDS = 5


@final
@dataclass(frozen=True)
class Halves:
    """A discrepancy between random halves of two samples, all of one size; one value for each split.

    Attributes:
        across: A half of the student against the half of the teacher with other inputs, averaged over both ways.
        teacher: The halves of the teacher against each other.
        student: The halves of the student against each other.
        rows: Number of samples in a half.
    """

    across: tuple[float, ...]
    teacher: tuple[float, ...]
    student: tuple[float, ...]
    rows: int

    @property
    def excess(self) -> tuple[float, ...]:
        """The distance between the samples beyond that within: ``½[D(x₁,y₂) + D(x₂,y₁) - D(x₁,x₂) - D(y₁,y₂)]``."""
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
        """Whether the mean excess exceeds 2.5 of its standard deviations, which is rare for equal distributions."""
        return self.debiased > _CLEAR * self.spread

    def parts(self, *, biased: bool) -> dict[str, float]:
        """Return the figures by name, for :attr:`mikit.Measurement.parts`."""
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
    """The mutual information that is reported beside a discrepancy.

    Attributes:
        value: In nats.
        standard_error: Its sampling error.
        held_out: Whether it was evaluated on samples that it was not fitted to, because there are many features.
    """

    value: float
    standard_error: float
    held_out: bool

    @property
    def detected(self) -> bool:
        """Whether it exceeds 0 by two standard errors and 0.02 nats."""
        return self.value > max(2 * self.standard_error, 0.02)

    def parts(self) -> dict[str, float]:
        """Return the figures by name, for :attr:`mikit.Measurement.parts`."""
        return {
            "information beside it": self.value,
            "information beside it, standard error": self.standard_error,
        }


def checks_of_discrepancy(
    prototype: Estimator, subject: Subject, run: Run
) -> tuple[tuple[Check, ...], dict[str, float]]:
    """Return the checks of a discrepancy beyond its value, and the figures that are reported beside it."""
    halves = halves_apart(prototype, subject)
    beside = information_beside(subject)
    biased = not getattr(prototype, "unbiased", False)
    parts = {
        **({} if halves is None else halves.parts(biased=biased)),
        **({} if beside is None else beside.parts()),
    }
    found = (
        sampling_error(run.value, run.standard_error, halves),
        above_own(halves),
        both_axes(halves, beside),
    )
    return found, parts


def halves_apart(prototype: Estimator, subject: Subject) -> Halves | None:
    """Compare random halves of both samples across and within, eight times.

    None if that is costly, if there are too few samples, or if the metric compares each sample with its partner, which
    samples of different halves are not.
    """
    x, y, codes = subject.x, subject.y, subject.codes
    n, m = x.shape[0], y.shape[0]
    compares_pairs = prototype.needs_pairs and not isinstance(prototype, Discrepancy)
    if prototype.costly or prototype.learned or compares_pairs or not subject.vectors:
        return None
    if min(n, m) // 2 < max(prototype.minimum_rows(x.shape[1], y.shape[1]), 4):
        return None
    if codes is not None and subject.units < 2:
        return None
    if isinstance(prototype, Discrepancy):
        # The bandwidth of the whole samples: one of its own for each half would be another metric.
        prototype = prototype.settled(x, y)
    generator = torch.Generator().manual_seed(subject.seed + 32452843)
    across, teacher, student = [], [], []
    size = 0
    for _ in range(_SPLITS):
        # Samples of one size are split alike, so that no half meets the other network's half of the same inputs; all
        # halves have one size, so that the bias of a finite sample is the same in all comparisons.
        halves_y = _two_halves(m, codes if n == m else None, generator)
        halves_x = halves_y if n == m else _two_halves(n, None, generator)
        size = min(len(part) for part in (*halves_x, *halves_y))
        x1, x2 = (x[part[:size].to(x.device)] for part in halves_x)
        y1, y2 = (y[part[:size].to(y.device)] for part in halves_y)
        try:
            across.append((_apart(prototype, x1, y2) + _apart(prototype, x2, y1)) / 2)
            teacher.append(_apart(prototype, y1, y2))
            student.append(_apart(prototype, x1, x2))
        except InputError:  # A half can have too few samples for a metric that the whole sample allows.
            return None
    return Halves(tuple(across), tuple(teacher), tuple(student), size)


def sampling_error(value: float, standard_error: float | None, halves: Halves | None) -> Check:
    """Check the sampling error; where no formula is known, halves of the samples take its place."""
    if standard_error is None and halves is not None:
        return Check.not_applicable(
            "sampling error", "No formula for the standard error is known; halves of the samples are compared instead."
        )
    return values.sampling_error(value, standard_error)


def above_own(halves: Halves | None) -> Check:
    """Check that student and teacher are further apart than halves of each are from each other, all of one size.

    Warns unless the excess over the mean of both exceeds 2.5 of its standard deviations over the splits. Two samples of
    one distribution exceed it in about one case of twenty-three.
    """
    if halves is None:
        return Check.not_applicable(
            ABOVE_OWN, "Halves were not compared: it is costly, the metric compares partners, or samples are few."
        )
    parts = halves.parts(biased=True)
    found = (
        f"With {halves.rows} samples a side, student against teacher gives "
        f"{parts['student against teacher, at that size']:.4g}, the teacher against itself "
        f"{parts['teacher against itself']:.4g} and the student against itself {parts['student against itself']:.4g}"
    )
    threshold = _CLEAR * halves.spread
    if halves.clear:
        return Check.passed(ABOVE_OWN, f"{found}.", halves.debiased, threshold)
    meaning = "the value does not clearly exceed that of two samples of one distribution"
    if halves.debiased < -threshold:
        meaning = "less than for two samples of one distribution, as if both contain the same samples in another order"
    return Check.warned(ABOVE_OWN, f"{found}: {meaning}.", halves.debiased, threshold)


def information_beside(subject: Subject) -> Beside | None:
    """Return the Gaussian copula's information between paired samples; None if not paired, or too few.

    Computed on all samples where they are many for the features; else shrunk and held out in five rotations.
    """
    x, y = subject.x, subject.y
    if x.shape[0] != y.shape[0] or not subject.vectors:
        return None
    if subject.copula is not None:
        value, error = subject.copula
        error = math.hypot(error, math.sqrt(x.shape[1] * y.shape[1] / 2) / subject.units)
        return Beside(value, error, False)
    if subject.units < _FOLDS * FEWEST_IN_A_FOLD:
        return None
    estimator = GaussianMI(copula=True, shrinkage="ledoit-wolf", held_out=True)
    try:
        run = run_once(estimator, replace(subject, folds=_FOLDS, rotations=_FOLDS, training=None))
    except InputError:
        return None
    return Beside(run.value, run.standard_error or math.inf, True)


def both_axes(halves: Halves | None, beside: Beside | None) -> Check:
    """Check that similar distributions belong to samples that are informative about each other.

    Warns where the discrepancy does not clearly exceed the teacher's own and no information was detected either, as
    happens when the samples of one side are shuffled.
    """
    if beside is None:
        return Check.not_applicable(
            BOTH_AXES,
            "A discrepancy does not depend on the pairing, and no information could be estimated beside it: samples "
            "are not paired, or too few.",
        )
    how = "the shrunk, held-out Gaussian copula" if beside.held_out else "the Gaussian copula"
    found = f"Between the paired samples {how} gives {beside.value:.3f} ± {beside.standard_error:.2g} nats"
    threshold = max(2 * beside.standard_error, 0.02)
    if beside.detected:
        return Check.passed(BOTH_AXES, f"{found}.", beside.value, threshold)
    if halves is not None and not halves.clear:
        sentence = (
            f"{found}: the distributions are similar, but no information between partners was detected, as if the "
            "samples were shuffled."
        )
        return Check.warned(BOTH_AXES, sentence, beside.value, threshold)
    return Check.passed(BOTH_AXES, f"{found}: no information between partners was detected.", beside.value, threshold)


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
