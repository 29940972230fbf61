"""Which checks are put to which measurement by default."""

from __future__ import annotations

import torch
from torch import Tensor

from mikit.core.measurement import Check, Null
from mikit.core.rows import first_of_each_group
from mikit.estimators.base import Estimator
from mikit.estimators.gaussian.mutual_information import GaussianMI
from mikit.measuring.checks import rows as sample_checks, second_readings as value_checks, values as checks
from mikit.measuring.checks.controls import Control
from mikit.measuring.run import FirstTurn, Run

__all__ = ["checks_of_rows", "checks_of_value"]

_MOST_CLASSES = 32


def checks_of_value(
    prototype: Estimator,
    x: Tensor,
    y: Tensor,
    codes: Tensor | None,
    run: Run,
    interval: tuple[float, float],
    null: Null | None,
    control: Control | None,
) -> tuple[Check, ...]:
    """Ask about the value that was read, and about what is left of the instrument.

    Args:
        prototype: The instrument.
        x: Rows of the student.
        y: Rows of the teacher, or labels.
        codes: Group codes, or None.
        run: The estimate.
        interval: Its interval.
        null: What permuted data gave, if they were measured.
        control: What data of known information gave, if they were measured.
    """
    vectors = x.ndim == 2 and y.ndim == 2
    found = [] if prototype.kind == "discrepancy" else [checks.sampling_error(run.value, run.standard_error)]
    found += [
        checks.independent_units(run.independent, x[0].numel() + y[0].numel(), grouped=codes is not None),
        checks.constant_columns(x, y if prototype.explains == "vectors" else x[:, :0]),
    ]
    if prototype.needs_pairs and prototype.reads != "categories":
        found.append(checks.duplicated_rows(x, y, grouped=codes is not None))
    if prototype.kind != "discrepancy":
        found += [
            checks.saturation(run.value, prototype.ceiling(run.report_rows), prototype.unit),
            checks.negativity(run.value, run.standard_error),
            checks.against_null(run.value, interval, run.standard_error, null),
        ]
        if prototype.unit == "nats":
            found.append(checks.model_reliance(run.value, run.report_rows))
        if vectors and prototype.unit == "nats":
            found += [
                checks.well_posedness(x, y),
                checks.positive_control(control),
            ]
    if prototype.explains == "labels":
        frequencies = torch.bincount(y).double() / y.shape[0]
        entropy = float(torch.special.entr(frequencies).sum())
        found.append(checks.label_bound(run.value, run.standard_error, entropy))
    if prototype.learned:
        found += [
            checks.fit_report_gap(run.parts["fit"], run.value, run.standard_error),
            checks.convergence(run.records),
        ]
        if run.first is not None:
            found += _checks_of_first_turn(run.first, x, y)
    if prototype.unit == "nats" and prototype.zero_when_independent and vectors and prototype.explains == "vectors":
        found += [
            value_checks.entropy_bound(run.value, run.standard_error, x, y),
            value_checks.negative_control(prototype, x, y),
        ]
    return (*found, *run.own_checks)


def _checks_of_first_turn(turn: FirstTurn, x: Tensor, y: Tensor) -> list[Check]:
    fit, report = (x[turn.fit], y[turn.fit]), (x[turn.report], y[turn.report])
    candidates = value_checks.candidates(turn.estimator, *report, turn.value, None)
    return [checks.leakage(fit, report), *(() if candidates is None else (candidates,))]


def checks_of_rows(prototype: Estimator, x: Tensor, y: Tensor, codes: Tensor | None, run: Run) -> tuple[Check, ...]:
    """Ask the rows themselves, and whether the value agrees with what nearest neighbours make of them."""
    if not prototype.needs_pairs or prototype.reads == "categories" or x.ndim != 2:
        return ()
    scores_x = sample_checks.normal_scores(x)
    if prototype.explains == "labels":
        if int(y.max()) >= _MOST_CLASSES:
            return ()
        classes = torch.nn.functional.one_hot(y.cpu()).double()
        return (sample_checks.misalignment(scores_x, sample_checks.normal_scores(classes)),)
    if y.ndim != 2:
        return ()
    scores_y = sample_checks.normal_scores(y)
    found = [
        sample_checks.misalignment(scores_x, scores_y),
        sample_checks.ties(x, y, needs_density=prototype.needs_density),
    ]
    if codes is None:
        found.append(sample_checks.near_copies(scores_x, scores_y))
    if prototype.unit == "nats" and prototype.zero_when_independent:
        one_each = slice(None) if codes is None else first_of_each_group(codes.cpu())
        scores_x, scores_y = scores_x[one_each], scores_y[one_each]
        nearest = sample_checks.nearest_readings(scores_x, scores_y)
        copula = value_checks.copula_reading(x, y, groups=codes)
        found += [
            sample_checks.functional_relation(scores_x, scores_y, nearest),
            sample_checks.hidden_directions(run.value, x, y),
            value_checks.neighbours_floor(run.value, run.standard_error, nearest),
            value_checks.gaussian_floor(run.value, run.standard_error, x, y, copula),
        ]
        if isinstance(prototype, GaussianMI) and not prototype.copula and not prototype.held_out:
            found.append(value_checks.tails(run.value, copula, nearest))
    return tuple(found)
