"""The questions put to every measurement: one function each, returning a :class:`~mikit.core.measurement.Check`.

Thresholds without a source are mikit's own. A check looks at what was measured and says what it saw; it never changes
the number.
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

_ROWS_LOOKED_AT = 4096


def well_posedness(x: Tensor, y: Tensor) -> Check:
    """Ask whether some linear combination of ``x`` equals one of ``y``: the information is infinite then.

    Looks at up to 4,096 rows. A non-linear deterministic relation cannot be seen this way.
    """
    name = "well-posed"
    rows = min(x.shape[0], _ROWS_LOOKED_AT)
    width = x.shape[1] + y.shape[1]
    if width > rows // 2:
        return Check(
            name,
            "not applicable",
            None,
            None,
            f"{width} columns are too many for {rows} rows to look for exact relations.",
        )
    try:
        correlations = canonical_form(x[:rows], y[:rows]).correlations
    except InputError as cause:
        return Check(name, "fail", 1.0, 1.0, str(cause))
    largest = float(correlations[0]) if correlations.shape[0] else 0.0
    return Check(
        name,
        "pass",
        largest,
        1.0,
        f"The largest canonical correlation is {largest:.4f}; no exact linear relation was found.",
    )


def alignment(x_has_ids: bool, y_has_ids: bool) -> Check:
    """Say how rows were paired: by sample id, or by position, which a shuffled file would break unseen."""
    name = "alignment"
    if x_has_ids and y_has_ids:
        return Check(name, "pass", None, None, "Rows were joined by sample id.")
    if x_has_ids or y_has_ids:
        return Check(
            name,
            "warn",
            None,
            None,
            "Only one side has sample ids, so rows were paired by position; give ids for both.",
        )
    return Check(name, "not applicable", None, None, "Neither side has sample ids; rows were paired by position.")


def constant_columns(x: Tensor, y: Tensor) -> Check:
    """Count columns that never vary: they carry no information and usually mean a dead unit."""
    dead = [int((values == values[:1]).flatten(1).all(dim=0).sum()) for values in (x, y)]
    figure = float(sum(dead))
    if not sum(dead):
        return Check("constant columns", "pass", figure, 0.0, "Every column varies.")
    return Check(
        "constant columns",
        "warn",
        figure,
        0.0,
        f"Constant columns: {dead[0]} in x, {dead[1]} in y; they carry no information and add none.",
    )


def duplicated_rows(x: Tensor, y: Tensor, *, grouped: bool) -> Check:
    """Ask whether rows of the pair repeat: copies of one sample are not independent evidence. Warns above 1 %."""
    name, threshold = "duplicated rows", 0.01
    rows = min(x.shape[0], y.shape[0], 5 * _ROWS_LOOKED_AT)
    joint = torch.cat([x[:rows].flatten(1).double(), y[:rows].reshape(rows, -1).double()], dim=1)
    share = 1 - _distinct_rows(joint) / rows
    if share <= threshold:
        return Check(name, "pass", share, threshold, f"{share:.1%} of the rows repeat another row.")
    if grouped:
        return Check(name, "pass", share, threshold, f"{share:.1%} of the rows repeat another row; groups were named.")
    return Check(
        name,
        "warn",
        share,
        threshold,
        f"{share:.1%} of the rows repeat another row. Copies of one sample are not independent: keep one of each, or "
        "name them in groups.",
    )


def leakage(fit: tuple[Tensor, Tensor], report: tuple[Tensor, Tensor]) -> Check:
    """Ask whether pairs of the report part also stand in the fit part. Fails above 1 % of the report part."""
    name, threshold = "leakage", 0.01
    fitted, reported = (
        _row_bytes(torch.cat([a.flatten(1).double(), b.reshape(b.shape[0], -1).double()], dim=1))
        for a, b in (fit, report)
    )
    share = float(np.isin(reported, fitted).mean())
    if share == 0:
        return Check(name, "pass", share, threshold, "No pair of the report part stands in the fit part.")
    return Check(
        name,
        "fail" if share > threshold else "warn",
        share,
        threshold,
        f"{share:.1%} of the report part's pairs also stand in the fit part, so it is not held out. Name copies of one "
        "sample in groups.",
    )


def saturation(value: float, ceiling: float | None, unit: str) -> Check:
    """Compare the value with what the sample can show at most: warns from 60 % of the ceiling, fails from 80 %."""
    if ceiling is None:
        return Check("saturation", "not applicable", None, None, "This instrument has no ceiling.")
    share = value / ceiling
    said = f"The value is {max(share, 0):.0%} of the most these rows can show ({ceiling:.2f} {unit})"
    if share >= 0.8:
        return Check(
            "saturation", "fail", share, 0.8, f"{said}; the truth may be far higher. Read it as a lower bound only."
        )
    if share >= 0.6:
        return Check("saturation", "warn", share, 0.6, f"{said}; it is probably low by a tenth or more.")
    return Check("saturation", "pass", share, 0.6, f"{said}.")


def model_reliance(value: float, n: int) -> Check:
    """Ask whether the value exceeds what ``n`` rows can show without a model of the law: about ``log n`` nats.

    Above that no lower bound holds for every law with confidence (McAllester and Stratos, AISTATS 2020), so the value
    is an extrapolation by the instrument's model. Layers of deterministic networks, whose information may be infinite,
    look like this.
    """
    name, most = "rests on the data", math.log(n)
    if value <= most:
        return Check(name, "pass", value, most, f"The value is not above log N = {most:.2f} nats.")
    return Check(
        name,
        "warn",
        value,
        most,
        f"The value is above log N = {most:.2f} nats, the most that so many rows show without assuming a law: it holds "
        "as far as the instrument's model does. Between layers of deterministic networks the truth may be infinite; "
        "declare noise.",
    )


def fit_report_gap(fit_value: float, value: float, standard_error: float | None) -> Check:
    """Compare the value on the fit part with the reported one.

    Warns when the fit part is higher by more than 10 % of it, 0.1 and two standard errors; fails when it is higher by
    more than 30 %, or when nothing is left of it on the report part.
    """
    name = "fit and report agree"
    gap = fit_value - value
    noise = 2 * (standard_error or 0.0)
    said = f"The fit part gives {fit_value:.3f}, rows that were not fitted give {value:.3f}"
    if gap <= max(0.1, 0.1 * abs(fit_value), noise):
        return Check(name, "pass", gap, 0.1, f"{said}.")
    if gap > 0.3 * abs(fit_value) or value <= 0:
        return Check(
            name, "fail", gap, 0.3 * abs(fit_value), f"{said}: the instrument has learned the sample by heart."
        )
    return Check(name, "warn", gap, 0.1 * abs(fit_value), f"{said}: the instrument overfits, and the value is low.")


def convergence(records: Sequence[FitRecord]) -> Check:
    """Ask whether training helped at all, and whether it had ended."""
    name = "converged"
    trained = [record for record in records if record.steps]
    if not trained:
        return Check(name, "not applicable", None, None, "Nothing was trained by gradient steps.")
    last = max(record.best_step / record.steps for record in trained)
    if any(record.best_step == 0 for record in trained):
        return Check(
            name,
            "warn",
            0.0,
            0.0,
            "Training never improved on the untrained instrument: either there is nothing to learn, or it failed.",
        )
    if any(record.best_step == record.steps and not record.stopped_early for record in trained):
        return Check(
            name, "warn", last, 1.0, "The last training step was the best one: train longer, the value is low."
        )
    return Check(name, "pass", last, 1.0, "Training stopped improving before it ended.")


def data_processing(
    values: Sequence[float], standard_errors: Sequence[float | None], *, kind: str = "estimate"
) -> Check:
    """Ask whether information grows along a chain of layers, each a function of the one before: it cannot.

    Looks at every pair of an earlier and a later layer. Warns where the later value is higher by more than two combined
    standard errors and 0.05. Holds under one and the same noise model upstream of all layers, and not for
    V-information or indices, which may grow.

    Args:
        values: The information that each layer holds of one and the same variable, in the order of the graph.
        standard_errors: Their standard errors; None where unknown counts as 0.
        kind: As in :class:`~mikit.Measurement`.
    """
    name, threshold = "data processing", 0.05
    if len(values) != len(standard_errors):
        raise InputError(
            f"There are {len(values)} values and {len(standard_errors)} standard errors; give one for each."
        )
    if kind in ("V-information", "index", "discrepancy"):
        return Check(name, "not applicable", None, None, f"A {kind} may grow from layer to layer.")
    if len(values) < 2:
        return Check(name, "not applicable", None, None, "One layer alone cannot violate the order.")
    rises = [
        (
            values[late] - values[early],
            math.hypot(standard_errors[early] or 0.0, standard_errors[late] or 0.0),
            early,
            late,
        )
        for late in range(len(values))
        for early in range(late)
    ]
    rise = max(rises, key=lambda one: one[0] - max(threshold, 2 * one[1]))
    gain, error, early, late = rise
    if gain > max(threshold, 2 * error):
        return Check(
            name,
            "warn",
            gain,
            max(threshold, 2 * error),
            f"Layer {late + 1} shows {gain:.3f} more than layer {early + 1}, of which it is a function: processing "
            "cannot add information, so an estimate is off or the noise models differ.",
        )
    return Check(name, "pass", max(gain, 0.0), threshold, "No later layer shows more than an earlier one beyond error.")


def against_null(value: float, interval: tuple[float, float], standard_error: float | None, null: Null | None) -> Check:
    """Compare the value with permuted data.

    Fails when the interval lies above 0 and yet permuted data give as much, or when they give more than half of the
    value; warns when they give more than a tenth of it. Both beyond three standard errors.
    """
    name = "null"
    if null is None:
        return Check(name, "not applicable", None, None, "No permuted data were measured.")
    highest = max(null.values)
    p_value = null.p_value(value)
    said = f"With the {null.permuted} permuted the same instrument gives {null.mean:.3f} on average (p = {p_value:.2g})"
    if interval[0] > 0 and value <= highest:
        return Check(
            name,
            "fail",
            highest,
            value,
            f"{said}, up to {highest:.3f}: as much as with the pairing, so it shows nothing.",
        )
    threshold = max(3 * (standard_error or 0.0), 0.1 * abs(value))
    if null.mean > max(threshold, 0.5 * abs(value)):
        return Check(name, "fail", null.mean, threshold, f"{said}: most of the value needs no pairing.")
    if null.mean > threshold:
        return Check(name, "warn", null.mean, threshold, f"{said}: that much of the value needs no pairing.")
    return Check(name, "pass", null.mean, threshold, f"{said}.")


def positive_control(control: Control | None) -> Check:
    """Ask whether the instrument can see this much at all, on Gaussian data of the same size and shape.

    Warns when it is off by more than a twentieth and 0.05 nats, beyond two standard errors of the control; fails from
    a fifth.
    """
    name = "positive control"
    if control is None:
        return Check(
            name,
            "not applicable",
            None,
            None,
            "No control was measured: there is too little to see, or it would cost a fit.",
        )
    miss = abs(control.reading - control.truth) - 2 * control.standard_error
    said = (
        f"On Gaussian data of the same size that hold {control.truth:.3f} nats, the instrument reads "
        f"{control.reading:.3f} on average"
    )
    warn, fail = (max(0.05, share * control.truth) for share in (0.05, 0.2))
    if miss > fail:
        return Check(name, "fail", control.reading, fail, f"{said}: it cannot see this much with so few rows.")
    if miss > warn:
        return Check(name, "warn", control.reading, warn, f"{said}: expect the value to be off by as much.")
    return Check(name, "pass", control.reading, warn, f"{said}.")


def independent_units(units: int, width: int, *, grouped: bool) -> Check:
    """Count the independent rows, or groups, that the number rests on: warns below 30, fails below 5.

    With groups it also warns below five a column: many rows of one group make biases that no row count corrects.
    """
    name, what = "independent units", "groups" if grouped else "rows"
    said = f"The number rests on {units} independent {what}"
    if units < 5:
        return Check(name, "fail", float(units), 5.0, f"{said}; that is no basis for an interval.")
    least = max(30, 5 * width) if grouped else 30
    if units < least:
        return Check(name, "warn", float(units), float(least), f"{said}, which are few; the interval is rough.")
    return Check(name, "pass", float(units), float(least), f"{said}.")


def negativity(value: float, standard_error: float | None) -> Check:
    """Ask whether a quantity that cannot be negative came out below 0 by more than three standard errors."""
    name, threshold = "not negative", -3 * (standard_error or 0.0) - 1e-9
    if value >= threshold:
        return Check(name, "pass", value, threshold, "The value is not below 0 beyond its error.")
    return Check(
        name,
        "warn",
        value,
        threshold,
        f"The value {value:.3f} is below 0 by more than three standard errors; the truth is not. The instrument is "
        "biased here, or overfits.",
    )


def label_bound(value: float, standard_error: float | None, label_entropy: float) -> Check:
    """Ask whether information on labels exceeds their entropy, which is impossible."""
    name, threshold = "at most the labels' entropy", label_entropy + 2 * (standard_error or 0.0)
    outcome = "pass" if value <= threshold else "fail"
    return Check(name, outcome, value, threshold, f"The labels' entropy H(Y) is {label_entropy:.3f} nats.")


def sampling_error(value: float, standard_error: float | None) -> Check:
    """Ask whether the sampling error is known and small beside the value: warns above a quarter of it and 0.1."""
    name = "sampling error"
    if standard_error is None or not np.isfinite(standard_error):
        return Check(name, "warn", None, None, "The sampling error is unknown: too few rows, groups, or no formula.")
    threshold = max(0.1, 0.25 * abs(value))
    if standard_error > threshold:
        return Check(
            name, "warn", standard_error, threshold, f"The standard error {standard_error:.3f} is large; use more rows."
        )
    return Check(name, "pass", standard_error, threshold, f"The standard error is {standard_error:.2g}.")


def _row_bytes(rows: Tensor) -> np.ndarray:
    array = np.ascontiguousarray(rows.detach().cpu().numpy() + 0.0)  # -0.0 and 0.0 are one value
    return array.view(np.dtype((np.void, array.dtype.itemsize * array.shape[1])))[:, 0]


def _distinct_rows(rows: Tensor) -> int:
    return int(np.unique(_row_bytes(rows)).shape[0])
