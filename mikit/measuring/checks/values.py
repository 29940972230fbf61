"""The checks of a measured value: one function for each, returning a :class:`~mikit.Check`.

A check states what it found; it never changes the value. Thresholds without a source are mikit's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Check, Null
from mikit.estimators.fitting import FitRecord
from mikit.functional.gaussian.canonical import canonical_form
from mikit.measuring.checks.controls import Control

__all__ = [
    "against_null",
    "alignment",
    "constant_columns",
    "convergence",
    "data_processing",
    "duplicated_rows",
    "fit_report_gap",
    "independent_units",
    "label_bound",
    "leakage",
    "model_reliance",
    "negativity",
    "positive_control",
    "sampling_error",
    "saturation",
    "well_posedness",
]

_MOST_ROWS = 4096


def well_posedness(x: Tensor, y: Tensor) -> Check:
    """Check whether a linear combination of ``x`` equals one of ``y``: the information would be infinite.

    Uses up to 4,096 samples. A nonlinear deterministic relation is not detected this way.
    """
    name = "well-posed"
    rows = min(x.shape[0], _MOST_ROWS)
    width = x.shape[1] + y.shape[1]
    if width > rows // 2:
        return Check.not_applicable(
            name, f"{rows} samples are too few to look for exact relations between {width} features."
        )
    try:
        correlations = canonical_form(x[:rows], y[:rows]).correlations
    except InputError as cause:
        return Check.failed(name, str(cause), 1.0, 1.0)
    largest = float(correlations[0]) if correlations.shape[0] else 0.0
    sentence = f"The largest canonical correlation is {largest:.4f}; no exact linear relation was found."
    return Check.passed(name, sentence, largest, 1.0)


def alignment(x_has_ids: bool, y_has_ids: bool) -> Check:
    """State how samples were paired: by id, or by position, where a shuffled file would go unnoticed."""
    name = "alignment"
    if x_has_ids and y_has_ids:
        return Check.passed(name, "Samples were joined by id.")
    if x_has_ids or y_has_ids:
        return Check.warned(
            name, "Only one side has sample ids, so samples were paired by position; give ids for both."
        )
    return Check.not_applicable(name, "Neither side has sample ids; samples were paired by position.")


def constant_columns(x: Tensor, y: Tensor) -> Check:
    """Count features that never vary: they carry no information, and usually indicate a dead unit."""
    dead = [int((values == values[:1]).flatten(1).all(dim=0).sum()) for values in (x, y)]
    return Check.judged(
        "constant columns",
        float(sum(dead)),
        warn=0.0,
        passed="Every feature varies.",
        otherwise=f"Constant features: {dead[0]} in x, {dead[1]} in y; they carry no information.",
    )


def duplicated_rows(x: Tensor, y: Tensor, *, grouped: bool) -> Check:
    """Check whether pairs repeat: copies of one sample are not independent evidence. Warns above 1 %."""
    name, threshold = "duplicated rows", 0.01
    rows = min(x.shape[0], y.shape[0], 5 * _MOST_ROWS)
    joint = torch.cat([x[:rows].flatten(1).double(), y[:rows].reshape(rows, -1).double()], dim=1)
    share = 1 - _distinct_rows(joint) / rows
    found = f"{share:.1%} of the samples repeat another one"
    if grouped and share > threshold:
        return Check.passed(name, f"{found}; groups were given.", share, threshold)
    return Check.judged(
        name,
        share,
        warn=threshold,
        passed=f"{found}.",
        otherwise=f"{found}. Copies of one sample are not independent: keep one of each, or name them in groups.",
    )


def leakage(fit: tuple[Tensor, Tensor], report: tuple[Tensor, Tensor]) -> Check:
    """Check whether pairs of the report part also occur in the fit part. Fails above 1 % of the report part."""
    name, threshold = "leakage", 0.01
    fitted, reported = (
        _row_bytes(torch.cat([a.flatten(1).double(), b.reshape(b.shape[0], -1).double()], dim=1))
        for a, b in (fit, report)
    )
    share = float(np.isin(reported, fitted).mean())
    if share == 0:
        return Check.passed(name, "No pair of the report part occurs in the fit part.", share, threshold)
    sentence = (
        f"{share:.1%} of the report part's pairs also occur in the fit part, so it is not held out. Name copies of one "
        "sample in groups."
    )
    return (Check.failed if share > threshold else Check.warned)(name, sentence, share, threshold)


def saturation(value: float, ceiling: float | None, unit: str) -> Check:
    """Compare the value with the upper limit of the estimate: warns from 60 % of it, fails from 80 %."""
    name = "saturation"
    if ceiling is None:
        return Check.not_applicable(name, "This estimator has no upper limit.")
    share = value / ceiling
    found = f"The value is {max(share, 0):.0%} of the most that these samples can show ({ceiling:.2f} {unit})"
    if share >= 0.8:
        return Check.failed(name, f"{found}; the truth may be far higher. It is a lower bound only.", share, 0.8)
    if share >= 0.6:
        return Check.warned(name, f"{found}; it is probably too low by a tenth or more.", share, 0.6)
    return Check.passed(name, f"{found}.", share, 0.6)


def model_reliance(value: float, n: int) -> Check:
    """Check whether the value exceeds what ``n`` samples can show without a model of the distribution: ``log n`` nats.

    Above that no lower bound holds for every distribution with confidence (McAllester and Stratos, AISTATS 2020), so
    the value is an extrapolation by the estimator's model. Layers of deterministic networks, whose information may be
    infinite, show such values.
    """
    most = math.log(n)
    return Check.judged(
        "rests on the data",
        value,
        warn=most,
        passed=f"The value is not above log N = {most:.2f} nats.",
        otherwise=f"The value is above log N = {most:.2f} nats, the most that so many samples can show without a model "
        "of the distribution: it is as reliable as the estimator's model. Between layers of deterministic networks the "
        "truth may be infinite; declare noise.",
    )


def fit_report_gap(fit_value: float, value: float, standard_error: float | None) -> Check:
    """Compare the value on the fit part with the reported one.

    Warns when the fit part is higher by more than 10 % of it, 0.1 and two standard errors; fails when it is higher by
    more than 30 %, or when nothing is left of it on the report part.
    """
    name = "fit and report agree"
    gap, size = fit_value - value, abs(fit_value)
    found = f"The fit part gives {fit_value:.3f}, held-out samples give {value:.3f}"
    if gap <= max(0.1, 0.1 * size, 2 * (standard_error or 0.0)):
        return Check.passed(name, f"{found}.", gap, 0.1)
    if gap > 0.3 * size or value <= 0:
        return Check.failed(name, f"{found}: the estimator has memorized the samples.", gap, 0.3 * size)
    return Check.warned(name, f"{found}: the estimator overfits, and the value is too low.", gap, 0.1 * size)


def convergence(records: Sequence[FitRecord]) -> Check:
    """Check whether training improved the estimator at all, and whether it had converged."""
    name = "converged"
    trained = [record for record in records if record.steps]
    if not trained:
        return Check.not_applicable(name, "Nothing was trained by gradient steps.")
    last = max(record.best_step / record.steps for record in trained)
    if any(record.best_step == 0 for record in trained):
        sentence = "Training never improved on the untrained estimator: there is nothing to learn, or training failed."
        return Check.warned(name, sentence, 0.0, 0.0)
    if any(record.best_step == record.steps and not record.stopped_early for record in trained):
        return Check.warned(name, "The last training step was the best: train longer, the value is low.", last, 1.0)
    return Check.passed(name, "Training stopped improving before it ended.", last, 1.0)


def data_processing(
    values: Sequence[float], standard_errors: Sequence[float | None], *, kind: str = "estimate"
) -> Check:
    """Check the data processing inequality: information cannot grow along layers, each a function of the one before.

    Compares every earlier with every later layer, in the order of the network. Warns where the later value is higher by
    more than two combined standard errors and 0.05. Requires one noise model before all layers; does not apply to
    V-information, indices and discrepancies, which may grow. An unknown standard error counts as 0.
    """
    name, threshold = "data processing", 0.05
    if len(values) != len(standard_errors):
        raise InputError(
            f"There are {len(values)} values and {len(standard_errors)} standard errors; give one for each."
        )
    if kind in ("V-information", "index", "discrepancy"):
        return Check.not_applicable(name, f"A {kind} may grow from layer to layer.")
    if len(values) < 2:
        return Check.not_applicable(name, "A single layer cannot violate the inequality.")
    errors = [error or 0.0 for error in standard_errors]
    rises = [
        (values[late] - values[early], math.hypot(errors[early], errors[late]), early, late)
        for late in range(len(values))
        for early in range(late)
    ]
    gain, error, early, late = max(rises, key=lambda one: one[0] - max(threshold, 2 * one[1]))
    if gain > max(threshold, 2 * error):
        sentence = (
            f"Layer {late + 1} has {gain:.3f} more than layer {early + 1}, of which it is a function: processing "
            "cannot add information, so an estimate is wrong or the noise models differ."
        )
        return Check.warned(name, sentence, gain, max(threshold, 2 * error))
    return Check.passed(
        name, "No later layer has more than an earlier one beyond its error.", max(gain, 0.0), threshold
    )


def against_null(value: float, interval: tuple[float, float], standard_error: float | None, null: Null | None) -> Check:
    """Compare the value with permuted data.

    Fails when the interval lies above 0 although permuted data give as much, or when they give more than half of the
    value; warns when they give more than a tenth of it. Both beyond three standard errors.
    """
    name = "null"
    if null is None:
        return Check.not_applicable(name, "No permuted data were measured.")
    highest = max(null.values)
    found = (
        f"With permuted {null.permuted} the same estimator gives {null.mean:.3f} on average "
        f"(p = {null.p_value(value):.2g})"
    )
    if interval[0] > 0 and value <= highest:
        sentence = f"{found}, at most {highest:.3f}: as much as with the pairing, so no dependence is shown."
        return Check.failed(name, sentence, highest, value)
    threshold = max(3 * (standard_error or 0.0), 0.1 * abs(value))
    if null.mean > max(threshold, 0.5 * abs(value)):
        return Check.failed(name, f"{found}: most of the value does not depend on the pairing.", null.mean, threshold)
    if null.mean > threshold:
        return Check.warned(name, f"{found}: that much does not depend on the pairing.", null.mean, threshold)
    return Check.passed(name, f"{found}.", null.mean, threshold)


def positive_control(control: Control | None) -> Check:
    """Check whether so much information can be estimated, on Gaussian data of the same size and shape.

    Warns when the estimate is off by more than a twentieth and 0.05 nats, beyond two standard errors of the control;
    fails from a fifth.
    """
    name = "positive control"
    if control is None:
        return Check.not_applicable(
            name, "No control was measured: the information is too small, or the control would have to be fitted."
        )
    miss = abs(control.reading - control.truth) - 2 * control.standard_error
    found = (
        f"On Gaussian data of the same size with {control.truth:.3f} nats, the estimate is {control.reading:.3f} "
        "on average"
    )
    warn, fail = (max(0.05, share * control.truth) for share in (0.05, 0.2))
    if miss > fail:
        sentence = f"{found}: so much information cannot be estimated from so few samples."
        return Check.failed(name, sentence, control.reading, fail)
    if miss > warn:
        return Check.warned(name, f"{found}: expect an error of the same size.", control.reading, warn)
    return Check.passed(name, f"{found}.", control.reading, warn)


def independent_units(units: int, width: int, *, grouped: bool) -> Check:
    """Count the independent samples, or groups, behind the value: warns below 30, fails below 5.

    With groups it also warns below five for each feature: many samples of one group cause a bias that more samples of
    the same groups do not reduce.
    """
    name, what = "independent units", "groups" if grouped else "samples"
    found = f"The value is based on {units} independent {what}"
    if units < 5:
        return Check.failed(name, f"{found}, too few for an interval.", float(units), 5.0)
    least = max(30, 5 * width) if grouped else 30
    if units < least:
        return Check.warned(name, f"{found}, which are few; the interval is rough.", float(units), float(least))
    return Check.passed(name, f"{found}.", float(units), float(least))


def negativity(value: float, standard_error: float | None) -> Check:
    """Check whether a quantity that cannot be negative is below 0 by more than three standard errors."""
    name, threshold = "not negative", -3 * (standard_error or 0.0) - 1e-9
    if value >= threshold:
        return Check.passed(name, "The value is not below 0 beyond its error.", value, threshold)
    sentence = (
        f"The value {value:.3f} is below 0 by more than three standard errors, which the truth cannot be. The "
        "estimator is biased here, or overfits."
    )
    return Check.warned(name, sentence, value, threshold)


def label_bound(value: float, standard_error: float | None, label_entropy: float) -> Check:
    """Check that information about labels does not exceed their entropy."""
    sentence = f"The labels' entropy H(Y) is {label_entropy:.3f} nats."
    return Check.judged(
        "at most the labels' entropy",
        value,
        fail=label_entropy + 2 * (standard_error or 0.0),
        passed=sentence,
        otherwise=sentence,
    )


def sampling_error(value: float, standard_error: float | None) -> Check:
    """Check that the sampling error is known and small: warns above a quarter of the value and 0.1."""
    name = "sampling error"
    if standard_error is None or not np.isfinite(standard_error):
        return Check.warned(name, "The sampling error is unknown: too few samples, groups, or no formula.")
    return Check.judged(
        name,
        standard_error,
        warn=max(0.1, 0.25 * abs(value)),
        passed=f"The standard error is {standard_error:.2g}.",
        otherwise=f"The standard error {standard_error:.3f} is large; use more samples.",
    )


def _row_bytes(rows: Tensor) -> np.ndarray:
    array = np.ascontiguousarray(rows.detach().cpu().numpy() + 0.0)  # Adding 0 turns -0.0 into 0.0.
    return array.view(np.dtype((np.void, array.dtype.itemsize * array.shape[1])))[:, 0]


def _distinct_rows(rows: Tensor) -> int:
    return int(np.unique(_row_bytes(rows)).shape[0])
