"""One estimate: split the samples, fit a fresh copy of the estimator, report on samples it was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from mikit.core.measurement import Check
from mikit.core.rows import recoded, split_folds
from mikit.estimators.base import Estimator, clustered_standard_error
from mikit.estimators.fitting import FitRecord
from mikit.measuring.subject import Subject

__all__ = ["FirstTurn", "Run", "run_once"]


@final
@dataclass(frozen=True)
class FirstTurn:
    """The first of the rotations: the fitted estimator, the samples it was fitted on and those it reported on."""

    estimator: Estimator
    fit: Tensor
    report: Tensor
    value: float


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """One estimate: the value, its standard error, and how the fit went."""

    value: float
    standard_error: float | None
    report_rows: int
    independent: int
    fit_rows: int = 0
    select_rows: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    records: tuple[FitRecord, ...] = ()
    first: FirstTurn | None = None
    own_checks: tuple[Check, ...] = ()
    note: str = ""

    def sizes(self, d_x: int, d_y: int) -> dict[str, int]:
        """Return the number of samples of each part, and of features."""
        parts = {"fit": self.fit_rows, "select": self.select_rows, "report": self.report_rows}
        return {**parts, "d_x": d_x, "d_y": d_y}

    @property
    def error(self) -> float:
        """The standard error, 0 where it is unknown."""
        return self.standard_error or 0.0


@final
@dataclass(frozen=True)
class _Turn:
    """One rotation of the folds, and what the estimator fitted in it reported."""

    estimator: Estimator
    record: FitRecord
    fit: Tensor
    select: Tensor
    report: Tensor
    value: float
    fit_value: float
    select_value: float
    pointwise: Tensor | None


def run_once(prototype: Estimator, subject: Subject, *, value_only: bool = False) -> Run:
    """Estimate once, with a fresh copy of ``prototype``.

    Args:
        prototype: The estimator, which is not changed.
        subject: What is measured.
        value_only: Whether an estimator that is not trained leaves out its standard error and its own checks.
    """
    if prototype.learned:
        return _held_out(prototype, subject)
    x, y = subject.x, subject.y
    estimator = prototype.fresh(x, y, generator=torch.Generator().manual_seed(subject.seed + 1))
    n = x.shape[0]
    if value_only:
        with torch.no_grad():
            value = float(estimator.estimate(x, y))
        return Run(value=value, standard_error=None, report_rows=n, independent=subject.units)
    reading = estimator.read(x, y, groups=subject.codes)
    return Run(
        value=reading.value,
        standard_error=reading.standard_error,
        report_rows=n,
        independent=subject.units,
        parts=dict(reading.parts),
        own_checks=reading.checks,
        note=reading.note,
    )


def _held_out(prototype: Estimator, subject: Subject) -> Run:
    """Fit on some folds, select on one and report on one; with rotations, every reporting fold counts."""
    generator = torch.Generator().manual_seed(subject.seed + 1)
    parts = split_folds(subject.x.shape[0], subject.folds, groups=subject.codes, generator=generator)
    turns = [_turn(prototype, subject, parts, index, generator) for index in range(subject.rotations)]
    first = turns[0]
    report = subject.x[first.report], subject.y[first.report]
    reported = torch.cat([turn.report for turn in turns])
    codes = None if subject.codes is None else recoded(subject.codes[reported])
    contributions = [turn.pointwise for turn in turns if turn.pointwise is not None]
    if contributions:
        pooled = torch.cat(contributions)
        value = float(pooled.double().mean())
        error: float | None = clustered_standard_error(pooled, codes)
    else:
        value = sum(turn.value for turn in turns) / len(turns)
        # Values of several rotations share samples, so no standard error of their mean is known.
        with torch.no_grad():
            error = first.estimator.standard_error(*report, groups=codes) if len(turns) == 1 else None
    with torch.no_grad():
        own_checks = first.estimator.checks(*report)
    return Run(
        value=value,
        standard_error=error,
        fit_rows=max(turn.fit.shape[0] for turn in turns),
        select_rows=max(turn.select.shape[0] for turn in turns),
        report_rows=reported.shape[0],
        independent=reported.shape[0] if codes is None else int(codes.max()) + 1,
        parts={
            "fit": sum(turn.fit_value for turn in turns) / len(turns),
            "select": sum(turn.select_value for turn in turns) / len(turns),
        },
        records=tuple(turn.record for turn in turns),
        first=FirstTurn(first.estimator, first.fit, first.report, first.value),
        own_checks=own_checks,
    )


def _turn(prototype: Estimator, subject: Subject, parts: list[Tensor], index: int, generator: torch.Generator) -> _Turn:
    x, y = subject.x, subject.y
    following = (index + 1) % subject.folds
    report, select = parts[index], parts[following]
    fit = torch.cat([part for other, part in enumerate(parts) if other not in (index, following)]).sort().values
    estimator = prototype.fresh(x[fit], y[fit], generator=generator)
    record = estimator.fit(
        x[fit], y[fit], select=(x[select], y[select]), generator=generator, training=subject.training
    )
    estimator.eval()
    # The fit part is evaluated on as many samples as the report part: an upper limit such as log N depends on them.
    seen = fit[: report.shape[0]]
    with torch.no_grad():
        value, fit_value, select_value = (
            float(estimator.estimate(x[rows], y[rows])) for rows in (report, seen, select)
        )
        pointwise = estimator.pointwise(x[report], y[report])
    return _Turn(estimator, record, fit, select, report, value, fit_value, select_value, pointwise)
