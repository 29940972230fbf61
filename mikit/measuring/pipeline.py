"""From two samples to a number: join, split, fit a fresh copy, report on other rows, and check."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.inputs import as_group_codes, as_labels, as_rows
from mikit.core.measurement import Check, Measurement, Null
from mikit.core.provenance import data_hash, library_versions
from mikit.core.rows import checked_ids, joined_order, require_paired
from mikit.estimators import estimator_named
from mikit.estimators.base import Estimator
from mikit.estimators.fitting import Training
from mikit.measuring.checks import discrepancies as law_checks, values as checks
from mikit.measuring.checks.audit import Subject, audit_checks
from mikit.measuring.checks.controls import positive_control, without_pairing
from mikit.measuring.checks.defaults import checks_of_rows, checks_of_value
from mikit.measuring.run import Run, run_once

__all__ = ["measure"]

_FEWEST_IN_A_FOLD = 4


def measure(
    x: Any,
    y: Any = None,
    estimator: Estimator | type[Estimator] | str = "auto",
    *,
    labels: Any = None,
    groups: Any = None,
    x_ids: Any = None,
    y_ids: Any = None,
    folds: int = 5,
    rotations: int = 1,
    permutations: int | None = None,
    training: Training | None = None,
    noise: float | None = None,
    audit: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Measurement:
    """Measure what ``x`` says about ``y``, on rows that the instrument was not fitted to.

    An instrument with learned parts is copied, built anew and fitted on the fit part (three fifths of the rows by
    default), stopped by the select part (a fifth) and reported on the report part (a fifth); an instrument without
    learned parts reports on all rows. Then the checks are run, among them the same estimate on permuted data.

    Formula: that of the estimator; the interval is ``value ± t · SE`` at 95 %, rows of one group counting as one.

    Args:
        x: The student's activations, what conditions: NumPy array, tensor, memory map, or a stored array with ids;
            ``(n, d_x)``, or ``(n, c, h, w)`` and ``(n, t, d)`` where the estimator says so.
        y: The teacher's activations, what is explained, with one row for each row of ``x``; or the labels, for an
            estimator that explains labels.
        estimator: An instrument, its class, or its name in the registry. ``"auto"`` chooses by evidence.
        labels: The labels, in place of ``y``.
        groups: One entry per row; rows of one group (patches of an image, copies of an item) stay in one part and
            are permuted together.
        x_ids: Sample ids of ``x``, where it does not carry them itself.
        y_ids: Sample ids of ``y`` (or of the labels). Where both sides have ids, rows are joined by them.
        folds: Parts the rows are dealt into; one reports, one selects, the others fit.
        rotations: How many of the folds report in turn, up to ``folds``; more use more rows and cost as much again.
        permutations: Estimates on permuted data; 4 by default, 1 for an instrument that is trained.
        training: Training recipe in place of the instrument's own.
        noise: Declares a noise model: independent Gaussian noise is added to a copy of ``y``, of this share of each
            column's standard deviation, and the information between ``x`` and that copy is measured. It is finite even
            where ``y`` is a function of ``x``, and says how much of ``y`` is known to that resolution. See
            :func:`mikit.noise_sweep`.
        audit: Whether to run the checks that repeat the estimate, too (:mod:`mikit.measuring.checks.audit`). What they
            will cost is said through ``progress`` before they start.
        seed: Seed of every random draw. The global generators are left alone.
        progress: Called with a sentence at each step.

    Returns:
        A frozen :class:`~mikit.Measurement`.

    Raises:
        InputError: If an array cannot be used (NaN, infinity, shape, dtype), if rows or ids do not match, if there
            are too few rows, or if the arguments contradict each other.

    Cost:
        One fit and one report per rotation, and one of each per permutation. An instrument without learned parts
        reads four more samples of the same size, as its positive control; a discrepancy reads 32 pairs of halves. The
        checks of the rows take less than a second up to 10,000 rows of 50 columns. An audit repeats the estimate some
        10 to 13 times.

    Pitfalls:
        Between two layers of deterministic networks on continuous input the information is infinite or undefined
        unless noise is declared; what is measured then is the estimator's resolution. Rows that repeat one item
        count as independent evidence unless ``groups`` names them. Choosing the instrument that gives the highest
        number is not measuring.

    Source:
        The split into fit, select and report parts follows the practice of held-out evaluation; no single paper.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((2000, 2))
        >>> y = 0.6 * x + 0.8 * rng.standard_normal((2000, 2))
        >>> m = measure(x, y, "gaussian")
        >>> m.verdict, m.interval[0] < 0.446 < m.interval[1]  # the truth is 0.446 nats
        ('trustworthy', True)
    """
    start = time.perf_counter()
    tell = progress or (lambda sentence: None)
    _require_settings(folds, rotations, permutations, noise, seed)
    x_values, x_ids = _values_and_ids(x, x_ids, "x")
    y_values, y_ids, explains_labels = _target(y, labels, y_ids)
    features = as_rows(x_values, "x")
    target = as_labels(y_values) if explains_labels else as_rows(y_values, "y")
    other = "labels" if explains_labels else "y"
    if x_ids is not None:
        x_ids = checked_ids(x_ids, features.shape[0], "x")
    if y_ids is not None:
        y_ids = checked_ids(y_ids, target.shape[0], other)
    if x_ids is not None and y_ids is not None:
        target = target[torch.from_numpy(joined_order(x_ids, y_ids, "x", other))]
    if noise is not None:
        if explains_labels:
            raise InputError("noise is added to the columns of y, but labels were given; leave out the noise.")
        target = _noisy(target, noise, seed)
    generator = torch.Generator().manual_seed(seed)
    prototype = _prototype(estimator, features, target, explains_labels, generator)
    if prototype.explains == "labels" and not explains_labels:
        if noise is not None:
            raise InputError(f"noise is added to the columns of y, but {prototype.describe()} reads y as labels.")
        target = as_labels(y_values, "y")
    if prototype.explains == "labels" and int(target.max()) == 0:
        raise InputError("The labels hold a single class, so their entropy is 0 and there is nothing to explain.")
    _require_rows(prototype, features, target)
    codes = None if groups is None else as_group_codes(groups, features.shape[0])

    with torch.no_grad():
        prototype, chosen = prototype.choose(features, target, groups=codes, generator=generator)
    if prototype.learned and features.shape[0] // folds < _FEWEST_IN_A_FOLD:
        raise InputError(
            f"There are {features.shape[0]} rows. {prototype.describe()} is fitted on some and reported on others, and "
            f"{folds} folds need at least {_FEWEST_IN_A_FOLD * folds} rows. Record more samples."
        )
    if chosen:
        tell(f"auto chose {prototype.describe()}: {chosen}")
    tell("Measuring")
    begun = time.perf_counter()
    result = run_once(prototype, features, target, codes, folds, rotations, training, seed)
    seconds = time.perf_counter() - begun
    interval = _interval(result.value, result.standard_error, result.independent)

    wanted = permutations if permutations is not None else (1 if prototype.learned or prototype.costly else 4)
    null = None
    if wanted:
        values = []
        for index in range(wanted):
            tell(f"Measuring permuted data, {index + 1} of {wanted}")
            draw = torch.Generator().manual_seed(seed + 7919 * (index + 1))
            permuted_x, permuted_y = without_pairing(prototype, features, target, codes, draw)
            values.append(
                run_once(
                    prototype, permuted_x, permuted_y, codes, folds, rotations, training, seed, value_only=True
                ).value
            )
        null = Null(tuple(values), "rows" if codes is None else "groups")
    control = positive_control(prototype, features, target, result.value, seed)
    found = (
        checks.alignment(x_ids is not None, y_ids is not None),
        *checks_of_value(prototype, features, target, codes, result, interval, null, control),
        *checks_of_rows(prototype, features, target, codes, result),
    )
    parts = result.parts
    if prototype.kind == "discrepancy":
        tell("Measuring halves of both samples, and the information beside the discrepancy")
        own, parts = _both_axes(prototype, features, target, codes, result, seed)
        found += own
    if audit:
        found += _audited(prototype, features, target, codes, result, folds, rotations, training, seed, seconds, tell)

    return Measurement(
        value=result.value,
        unit=prototype.unit,
        kind=prototype.kind,
        interval=interval,
        standard_error=result.standard_error,
        ceiling=prototype.ceiling(result.report_rows),
        checks=found,
        null=null,
        estimator=prototype.describe(),
        chosen="; ".join(said for said in (chosen, result.note) if said),
        seed=seed,
        sizes={
            "fit": result.fit_rows,
            "select": result.select_rows,
            "report": result.report_rows,
            "d_x": features[0].numel(),
            "d_y": 1 if prototype.explains == "labels" else target[0].numel(),
        },
        parts=parts,
        versions=library_versions(),
        data_hash=data_hash(features, target),
        noise=noise,
        wall_time=time.perf_counter() - start,
    )


def _both_axes(
    prototype: Estimator, x: Tensor, y: Tensor, codes: Tensor | None, run: Run, seed: int
) -> tuple[tuple[Check, ...], dict[str, float]]:
    """Return what a discrepancy is asked beyond its value, and the figures that are shown beside it."""
    halves = law_checks.halves_apart(prototype, x, y, codes, seed)
    beside = law_checks.information_beside(x, y, codes, seed)
    biased = not getattr(prototype, "unbiased", False)
    parts = {
        **run.parts,
        **({} if halves is None else halves.parts(biased=biased)),
        **({} if beside is None else beside.parts()),
    }
    asked = (
        law_checks.sampling_error(run.value, run.standard_error, halves),
        law_checks.above_own(halves),
        law_checks.both_axes(halves, beside),
    )
    return asked, parts


def _audited(
    prototype: Estimator,
    x: Tensor,
    y: Tensor,
    codes: Tensor | None,
    run: Run,
    folds: int,
    rotations: int,
    training: Training | None,
    seed: int,
    seconds: float,
    tell: Callable[[str], None],
) -> tuple[Check, ...]:
    def again(x: Tensor, y: Tensor, codes: Tensor | None, seed: int) -> float:
        return run_once(prototype, x, y, codes, folds, rotations, training, seed, value_only=True).value

    return audit_checks(Subject(prototype, x, y, codes, run.value, run.standard_error, seed, seconds, again, tell))


def _noisy(y: Tensor, noise: float, seed: int) -> Tensor:
    """Return a copy of ``y`` with independent noise of a share of each column's standard deviation."""
    generator = torch.Generator().manual_seed(seed + 179424673)
    drawn = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
    return y + noise * y.std(dim=0) * drawn


def _require_settings(folds: int, rotations: int, permutations: int | None, noise: float | None, seed: int) -> None:
    if not isinstance(seed, int) or not 0 <= seed < 2**62:
        raise InputError(f"seed is {seed!r}; it must be a whole number from 0 to 2**62.")
    if folds < 3:
        raise InputError(f"folds is {folds}; at least 3 are needed: one to fit, one to select and one to report.")
    if not 1 <= rotations <= folds:
        raise InputError(f"rotations is {rotations}; it must lie between 1 and the number of folds, {folds}.")
    if permutations is not None and permutations < 0:
        raise InputError(f"permutations is {permutations}; it cannot be negative.")
    if noise is not None and not 0 < noise < math.inf:
        raise InputError(f"noise is {noise}; it is a share of each column's standard deviation, above 0, such as 0.1.")


def _values_and_ids(value: Any, ids: Any, name: str) -> tuple[Any, Any]:
    """Take a stored array apart: it carries ``values`` and ``ids``."""
    if isinstance(value, (np.ndarray, Tensor)) or not (hasattr(value, "values") and hasattr(value, "ids")):
        return value, ids
    if value.ids is None:
        return value.values, ids
    if ids is not None:
        raise InputError(f"{name} carries its own sample ids; do not pass {name}_ids as well.")
    return value.values, value.ids


def _target(y: Any, labels: Any, y_ids: Any) -> tuple[Any, Any, bool]:
    if (y is None) == (labels is None):
        raise InputError("Pass either y, the activations to explain, or labels, but not both and not neither.")
    if labels is not None:
        return *_values_and_ids(labels, y_ids, "labels"), True
    return *_values_and_ids(y, y_ids, "y"), False


def _prototype(
    estimator: Estimator | type[Estimator] | str,
    x: Tensor,
    y: Tensor,
    explains_labels: bool,
    generator: torch.Generator,
) -> Estimator:
    if isinstance(estimator, str):
        if estimator == "auto" and explains_labels:
            estimator = "label_information"
        estimator = estimator_named(estimator)
    if not isinstance(estimator, Estimator) and not (isinstance(estimator, type) and issubclass(estimator, Estimator)):
        raise InputError(
            f"estimator is {estimator!r}; pass an instrument such as mikit.KSG(k=5), its class, or a name."
        )
    explains = estimator.explains
    if explains_labels and explains != "labels":
        name = estimator.name
        raise InputError(
            f'labels were given, but "{name}" explains vectors. Use "label_information", or pass the activations as y.'
        )
    if isinstance(estimator, Estimator):
        return estimator
    if explains == "labels" and not explains_labels:
        y = as_labels(y, "y")
    if estimator.needs_pairs:
        require_paired(x, y)
    return estimator.between(x, y, generator=generator)


def _require_rows(estimator: Estimator, x: Tensor, y: Tensor) -> None:
    if estimator.needs_pairs:
        require_paired(x, y)
    layouts = {2: "nd", 3: "ntd", 4: "nchw"}
    for name, value in (("x", x), ("y", y)):
        if name == "y" and estimator.explains == "labels":
            continue
        if layouts.get(value.ndim) not in estimator.shapes:
            read = " or ".join(
                {"nd": "(n, d)", "ntd": "(n, t, d)", "nchw": "(n, c, h, w)"}[s] for s in estimator.shapes
            )
            raise InputError(
                f"{name} has shape {tuple(value.shape)}, but {type(estimator).__name__} reads {read}. Pool or flatten "
                "it first, and say which in the report."
            )
    width_y = 1 if estimator.explains == "labels" else y[0].numel()
    least = estimator.minimum_rows(x[0].numel(), width_y)
    if min(x.shape[0], y.shape[0]) < least:
        raise InputError(
            f"There are {min(x.shape[0], y.shape[0])} rows, but {type(estimator).__name__} needs at least {least} for "
            f"{x[0].numel()} and {width_y} columns. Record more samples or reduce the columns first."
        )


def _interval(value: float, standard_error: float | None, independent: int) -> tuple[float, float]:
    if standard_error is None:
        return float("nan"), float("nan")
    reach = float(student_t.ppf(0.975, max(independent - 1, 1))) * standard_error
    return value - reach, value + reach
