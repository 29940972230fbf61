"""The checks that every measurement gets, by what kind of estimator it comes from."""

from __future__ import annotations

import torch
from torch import Tensor

from mikit.core.measurement import Check, Null
from mikit.estimators.base import Estimator
from mikit.estimators.gaussian.mutual_information import GaussianMI
from mikit.measuring.checks import rows, second_readings, values
from mikit.measuring.checks.controls import Control
from mikit.measuring.run import FirstTurn, Run
from mikit.measuring.subject import Subject, normal_scores

__all__ = ["checks_of_samples", "checks_of_value"]

_MOST_CLASSES = 32


def checks_of_value(
    prototype: Estimator,
    subject: Subject,
    run: Run,
    interval: tuple[float, float],
    null: Null | None,
    control: Control | None,
) -> tuple[Check, ...]:
    """Check the value and, where one was fitted, the estimator; ``null`` and ``control`` are None if not measured."""
    x, y, grouped = subject.x, subject.y, subject.codes is not None
    found = [
        values.independent_units(run.independent, x[0].numel() + y[0].numel(), grouped=grouped),
        values.constant_columns(x, y if prototype.explains == "vectors" else x[:, :0]),
    ]
    if prototype.needs_pairs and prototype.reads != "categories":
        found.append(values.duplicated_rows(x, y, grouped=grouped))
    if prototype.kind != "discrepancy":
        found.insert(0, values.sampling_error(run.value, run.standard_error))
        found += [
            values.saturation(run.value, prototype.ceiling(run.report_rows), prototype.unit),
            values.negativity(run.value, run.standard_error),
            values.against_null(run.value, interval, run.standard_error, null),
        ]
    if prototype.unit == "nats" and prototype.kind != "discrepancy":
        found.append(values.model_reliance(run.value, run.report_rows))
        if subject.vectors:
            found += [values.well_posedness(x, y), values.positive_control(control)]
    if prototype.explains == "labels":
        entropy = float(torch.special.entr(torch.bincount(y).double() / y.shape[0]).sum())
        found.append(values.label_bound(run.value, run.standard_error, entropy))
    if prototype.learned:
        found += [
            values.fit_report_gap(run.parts["fit"], run.value, run.standard_error),
            values.convergence(run.records),
        ]
    if run.first is not None:
        found += _checks_of_first_turn(run.first, x, y)
    if _finds_dependence(prototype, subject) and prototype.explains == "vectors":
        found += [
            second_readings.entropy_bound(run.value, run.standard_error, x, y),
            second_readings.negative_control(prototype, x, y),
        ]
    return (*found, *run.own_checks)


def checks_of_samples(prototype: Estimator, subject: Subject, run: Run) -> tuple[Check, ...]:
    """Check the samples themselves, and whether the value agrees with cheap second estimates on them."""
    x, y, codes = subject.x, subject.y, subject.codes
    if not prototype.needs_pairs or prototype.reads == "categories" or x.ndim != 2:
        return ()
    if prototype.explains == "labels":
        if int(y.max()) >= _MOST_CLASSES:
            return ()
        classes = torch.nn.functional.one_hot(y.cpu()).double()
        return (rows.misalignment(subject.scores_x, normal_scores(classes)),)
    if y.ndim != 2:
        return ()
    found = [
        rows.misalignment(subject.scores_x, subject.scores_y),
        rows.ties(x, y, needs_density=prototype.needs_density),
    ]
    if codes is None:
        found.append(rows.near_copies(subject.scores_x, subject.scores_y))
    if _finds_dependence(prototype, subject):
        found += [
            rows.functional_relation(subject),
            rows.hidden_directions(run.value, x, y),
            second_readings.neighbours_floor(run.value, run.standard_error, subject.nearest),
            second_readings.gaussian_floor(run.value, run.standard_error, subject),
        ]
        if isinstance(prototype, GaussianMI) and not prototype.copula and not prototype.held_out:
            found.append(second_readings.tails(run.value, subject.copula, subject.nearest))
    return tuple(found)


def _finds_dependence(prototype: Estimator, subject: Subject) -> bool:
    """Whether the value is a mutual information between vectors, which second estimates can be compared with."""
    return prototype.unit == "nats" and prototype.zero_when_independent and subject.vectors


def _checks_of_first_turn(turn: FirstTurn, x: Tensor, y: Tensor) -> list[Check]:
    fit, report = (x[turn.fit], y[turn.fit]), (x[turn.report], y[turn.report])
    candidates = second_readings.candidates(turn.estimator, *report, turn.value, None)
    return [values.leakage(fit, report), *(() if candidates is None else (candidates,))]
