"""The function :func:`mikit.measure`: two samples in, one checked number out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from scipy.stats import t as student_t

from mikit.core.inputs import as_group_codes
from mikit.core.measurement import Measurement, Null
from mikit.core.provenance import data_hash, library_versions
from mikit.estimators.base import Estimator
from mikit.estimators.fitting import Training
from mikit.measuring.checks import values
from mikit.measuring.checks.audit import Audit, audit_checks
from mikit.measuring.checks.controls import positive_control, without_pairing
from mikit.measuring.checks.defaults import checks_of_samples, checks_of_value
from mikit.measuring.checks.discrepancies import checks_of_discrepancy
from mikit.measuring.inputs import Samples, estimator_and_samples, require_fit, require_settings
from mikit.measuring.run import Run, run_once
from mikit.measuring.subject import Subject

__all__ = ["measure"]


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
    """Measure how much information ``x`` contains about ``y``, on samples that the estimator was not fitted to.

    An estimator with learned parameters is copied, built anew and fitted on the fit part (three fifths of the samples
    by default); training stops by the select part (a fifth), and the value comes from the report part (a fifth). An
    estimator without learned parameters uses all samples. The checks follow, among them the same estimate on permuted
    data.

    Formula: that of the estimator; the interval is ``value ± t · SE`` at 95 %, where samples of one group count as one.

    Args:
        x: The student's activations: NumPy array, tensor, memory map, or a stored array with ids, of shape
            ``(n, d_x)``, or ``(n, c, h, w)`` and ``(n, t, d)`` where the estimator supports it.
        y: The teacher's activations, which are explained: one sample for each sample of ``x``; or the labels, for an
            estimator that explains labels.
        estimator: An estimator, its class, or its name in the registry. ``"auto"`` chooses by evidence.
        labels: The labels, in place of ``y``.
        groups: One entry per sample; samples of one group (patches of an image, copies of an item) stay in one part
            and are permuted together.
        x_ids: Sample ids of ``x``, where it does not carry them itself.
        y_ids: Sample ids of ``y`` (or of the labels). Where both sides have ids, samples are joined by them.
        folds: Number of parts that the samples are split into; one reports, one selects, the others fit.
        rotations: How many of the folds report in turn, up to ``folds``; more use more samples and cost as much again.
        permutations: Number of estimates on permuted data; 4 by default, 1 for an estimator that is trained.
        training: Training recipe in place of the estimator's own.
        noise: Declares a noise model: independent Gaussian noise is added to a copy of ``y``, with this fraction of
            each feature's standard deviation, and the information between ``x`` and that copy is measured. It is finite
            even where ``y`` is a function of ``x``, and states how much of ``y`` is known at that resolution. See
            :func:`mikit.noise_sweep`.
        audit: Whether to run the checks that repeat the estimate, too (:mod:`mikit.measuring.checks.audit`). Their
            cost is reported through ``progress`` before they start.
        seed: Seed of every random draw. The global generators are not used.
        progress: Called with a sentence at each step.

    Returns:
        A frozen :class:`~mikit.Measurement`.

    Raises:
        InputError: If an array cannot be used (NaN, infinity, shape, dtype), if samples or ids do not match, if there
            are too few samples, or if the arguments contradict each other.

    Cost:
        One fit and one evaluation per rotation, and one of each per permutation. An estimator without learned
        parameters is evaluated on four more samples of the same size, as its positive control; a discrepancy on 32
        pairs of halves. The checks of the samples take less than a second up to 10,000 samples of 50 features. An audit
        repeats the estimate 10 to 13 times.

    Pitfalls:
        Between two layers of deterministic networks on continuous input, the information is infinite or undefined
        unless noise is declared; what is measured then is the resolution of the estimator. Samples that repeat one item
        count as independent evidence unless ``groups`` names them. Do not choose the estimator that gives the highest
        number.

    Source:
        The split into fit, select and report parts follows the practice of held-out evaluation; no single paper.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((2000, 2))
        >>> y = 0.6 * x + 0.8 * rng.standard_normal((2000, 2))
        >>> m = measure(x, y, "gaussian")
        >>> m.verdict, m.interval[0] < 0.446 < m.interval[1]  # the truth is 0.446 nats
        ('trustworthy', True)
    """
    start = time.perf_counter()
    announce = progress or (lambda sentence: None)
    require_settings(folds, rotations, permutations, noise, seed)
    samples = Samples.joined(x, y, labels, x_ids, y_ids)
    if noise is not None:
        samples = samples.with_noise(noise, seed)
    generator = torch.Generator().manual_seed(seed)
    prototype, samples = estimator_and_samples(estimator, samples, y, generator)
    n = samples.x.shape[0]
    codes = None if groups is None else as_group_codes(groups, n)
    subject = Subject(samples.x, samples.y, codes, folds, rotations, training, seed)
    with torch.no_grad():
        prototype, chosen = prototype.choose(subject.x, subject.y, groups=codes, generator=generator)
    require_fit(prototype, n, folds)
    if chosen:
        announce(f"auto chose {prototype.describe()}: {chosen}")
    announce("Measuring")
    begun = time.perf_counter()
    run = run_once(prototype, subject)
    seconds = time.perf_counter() - begun
    interval = _interval(run)
    null = _null(prototype, subject, permutations, announce)
    control = positive_control(prototype, subject, run.value)
    found = (
        values.alignment(*samples.ids),
        *checks_of_value(prototype, subject, run, interval, null, control),
        *checks_of_samples(prototype, subject, run),
    )
    parts = run.parts
    if prototype.kind == "discrepancy":
        announce("Measuring halves of both samples, and the information beside the discrepancy")
        own, more = checks_of_discrepancy(prototype, subject, run)
        found, parts = (*found, *own), {**parts, **more}
    if audit:
        found += audit_checks(Audit.of(prototype, subject, run, seconds, announce))
    return Measurement(
        value=run.value,
        unit=prototype.unit,
        kind=prototype.kind,
        interval=interval,
        standard_error=run.standard_error,
        ceiling=prototype.ceiling(run.report_rows),
        checks=found,
        null=null,
        estimator=prototype.describe(),
        chosen="; ".join(reason for reason in (chosen, run.note) if reason),
        seed=seed,
        sizes=run.sizes(subject.x[0].numel(), 1 if prototype.explains == "labels" else subject.y[0].numel()),
        parts=parts,
        versions=library_versions(),
        data_hash=data_hash(subject.x, subject.y),
        noise=noise,
        wall_time=time.perf_counter() - start,
    )


def _null(
    prototype: Estimator, subject: Subject, permutations: int | None, announce: Callable[[str], None]
) -> Null | None:
    """Repeat the whole estimate on permuted data: a null without the fit would call an overfitted value significant."""
    if permutations is None:
        permutations = 1 if prototype.learned or prototype.costly else 4
    if permutations == 0:
        return None
    estimates = []
    for index in range(permutations):
        announce(f"Measuring permuted data, {index + 1} of {permutations}")
        generator = torch.Generator().manual_seed(subject.seed + 7919 * (index + 1))
        permuted = without_pairing(prototype, subject, generator)
        estimates.append(run_once(prototype, permuted, value_only=True).value)
    return Null(tuple(estimates), "rows" if subject.codes is None else "groups")


def _interval(run: Run) -> tuple[float, float]:
    """Return the 95 % interval of Student's t; NaN where the standard error is unknown."""
    if run.standard_error is None:
        return float("nan"), float("nan")
    reach = float(student_t.ppf(0.975, max(run.independent - 1, 1))) * run.standard_error
    return run.value - reach, run.value + reach
