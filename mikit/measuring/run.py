"""One estimate: split, fit a fresh copy, report on other rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from mikit.core.measurement import Check
from mikit.core.rows import recoded, split_folds
from mikit.estimators.base import Estimator, clustered_standard_error
from mikit.estimators.fitting import FitRecord, Training

__all__ = ["FirstTurn", "Run", "run_once"]


@final
@dataclass(frozen=True)
class FirstTurn:
    """The first of the rotations: the fitted estimator, the rows it was fitted on and those it reported on."""

    estimator: Estimator
    fit: Tensor
    report: Tensor
    value: float


@final
@dataclass
class Run:
    """One estimate: the number, its error, and what the fit looked like."""

    value: float = float("nan")
    standard_error: float | None = None
    fit_rows: int = 0
    select_rows: int = 0
    report_rows: int = 0
    independent: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    records: list[FitRecord] = field(default_factory=list)
    first: FirstTurn | None = None
    own_checks: tuple[Check, ...] = ()
    note: str = ""


def run_once(
    prototype: Estimator,
    x: Tensor,
    y: Tensor,
    codes: Tensor | None,
    folds: int,
    rotations: int,
    training: Training | None,
    seed: int,
    *,
    value_only: bool = False,
) -> Run:
    """Estimate once: fit a fresh copy on some folds and report on others; without training, report on all rows.

    Args:
        prototype: The instrument, which is not changed.
        x: Rows of the student.
        y: Rows of the teacher, or labels.
        codes: Group codes, or None.
        folds: Parts the rows are dealt into.
        rotations: How many of the parts report in turn.
        training: Recipe in place of the instrument's own.
        seed: Seed of the split and of the training.
        value_only: Whether an instrument that is not trained leaves out its error and its own checks.
    """
    run = Run()
    generator = torch.Generator().manual_seed(seed + 1)
    if not prototype.learned:
        instrument = prototype.fresh(x, y, generator=generator)
        if value_only:
            with torch.no_grad():
                run.value = float(instrument.estimate(x, y))
        else:
            reading = instrument.read(x, y, groups=codes)
            run.value, run.standard_error, run.own_checks = reading.value, reading.standard_error, reading.checks
            run.parts, run.note = dict(reading.parts), reading.note
        run.report_rows = x.shape[0]
        run.independent = x.shape[0] if codes is None else int(codes.max()) + 1
        return run
    parts = split_folds(x.shape[0], folds, groups=codes, generator=generator)
    contributions: list[Tensor] = []
    values: list[float] = []
    errors: list[float | None] = []
    fit_values: list[float] = []
    select_values: list[float] = []
    for turn in range(rotations):
        report, select = parts[turn], parts[(turn + 1) % folds]
        others = [part for index, part in enumerate(parts) if index not in (turn, (turn + 1) % folds)]
        fit = torch.cat(others).sort().values
        instrument = prototype.fresh(x[fit], y[fit], generator=generator)
        run.records.append(
            instrument.fit(x[fit], y[fit], select=(x[select], y[select]), generator=generator, training=training)
        )
        instrument.eval()
        with torch.no_grad():
            values.append(float(instrument.estimate(x[report], y[report])))
            # Evaluated on as many rows as the report part, so that instruments with a ceiling are comparable.
            seen = fit[: report.shape[0]]
            fit_values.append(float(instrument.estimate(x[seen], y[seen])))
            select_values.append(float(instrument.estimate(x[select], y[select])))
            per_row = instrument.pointwise(x[report], y[report])
            if per_row is not None:
                contributions.append(per_row)
            elif rotations == 1:
                errors.append(
                    instrument.standard_error(
                        x[report], y[report], groups=None if codes is None else recoded(codes[report])
                    )
                )
            if turn == 0:
                run.first = FirstTurn(instrument, fit, report, values[0])
                run.own_checks = instrument.checks(x[report], y[report])
        run.fit_rows, run.select_rows = max(run.fit_rows, fit.shape[0]), max(run.select_rows, select.shape[0])
        run.report_rows += report.shape[0]
    reported = torch.cat([parts[turn] for turn in range(rotations)])
    run.independent = reported.shape[0] if codes is None else int(recoded(codes[reported]).max()) + 1
    if contributions:
        pooled = torch.cat(contributions)
        run.value = float(pooled.double().mean())
        run.standard_error = clustered_standard_error(pooled, None if codes is None else recoded(codes[reported]))
    else:
        run.value = sum(values) / len(values)
        run.standard_error = errors[0] if errors else None
    run.parts = {"fit": sum(fit_values) / rotations, "select": sum(select_values) / rotations}
    return run
