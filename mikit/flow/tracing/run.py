"""The function that traces information through layers and training phases, from stored activations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mikit.activations import ActivationStore
from mikit.core.measurement import Measurement
from mikit.flow.result import Flow, frame_of
from mikit.flow.tracing.folder import finish_run
from mikit.flow.tracing.joining import Run, fold_samples, labels_of, refuse_training_rows, row_orders, runs_of
from mikit.flow.tracing.pair_estimators import (
    ExtraEstimators,
    ExtraTask,
    extra_estimators,
    extra_rows,
    extra_tasks,
    measure_extra,
    screened_out,
)
from mikit.flow.tracing.settings import deciding, plan_of, plane_levels, records_of, require_settings, settings_of
from mikit.flow.tracing.snapshots import Method, Place, Plan, Snapshot, forget, refuse_wide, snapshot, teacher_layer
from mikit.flow.tracing.table import rows_of
from mikit.flow.tracing.workers import (
    Budget,
    Workers,
    coarse_to_fine,
    devices_of,
    done,
    progress_bar,
    shares_memory,
    sharing,
    working_with,
)

__all__ = ["trace"]


def trace(
    teacher: ActivationStore,
    students: ActivationStore | Sequence[ActivationStore],
    *,
    labels: Any = None,
    noise: float | Sequence[float] = (0.1, 0.3, 1.0),
    student_noise: float = 0.03,
    folds: int = 5,
    probe: str = "logistic",
    phases: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    reduce: int | None = None,
    pairs_with: Any = None,
    pairs: str | Sequence[Sequence[str]] = "same depth",
    information_plane: bool = False,
    plane_noise: Sequence[float] | None = None,
    seed: int = 0,
    jobs: int | None = None,
    backend: str | None = None,
    device: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    budget: float | None = None,
    progress: bool = False,
) -> Flow:
    """Measure label information and recovered share for every layer at every phase of training.

    A phase is a recorded training step or epoch. Samples are joined by id across stores and phases, in any order; all
    curves share the same samples and folds.

    Formula: for each layer, label information is ``I_V = H(Y) - held-out cross-entropy`` of a probe. For each student
    layer and each layer of the teacher's last phase, the recovered share is ``I(s + σ_s z; t + σ z) / C(σ)`` between
    Gaussian distributions with the layers' moments, ``C = ½ Σ log(1 + λ_i / σ²)``, each layer divided by its RMS SD at
    that phase. Linear CKA is reported as well. Both informations use all samples and are bias-corrected for small
    sample sizes (:func:`~mikit.functional.flow.recovery.recover`); the held-out and in-sample values are reported next
    to them.

    Args:
        teacher: The teacher's store. Students are compared with its last phase; label information is measured for all
            phases.
        students: One store per network and seed.
        labels: One label per sample, in the order of ``teacher.ids(teacher.phases[-1])``. By default the labels in the
            stores are used; without any labels, the table has no label rows.
        noise: Noise ``σ`` on the teacher's layer in RMS SDs: one number or several. The noise is the same for all
            dimensions; noise per dimension would define a different quantity.
        student_noise: Noise on the student's layer in RMS SDs; it acts as a ridge penalty.
        folds: Number of folds of the rotation, at least 3.
        probe: ``"logistic"``, ``"lda"`` (fast), ``"mlp"`` (one hidden layer) or ``"knn"``, as in
            :class:`~mikit.LabelInformation`.
        phases: Phases to report; all by default. Phase 0 is always measured if it was recorded, because it is the
            untrained baseline of every other phase.
        layers: Names of the layers to trace; all by default.
        reduce: Compare wider layers by their first ``reduce`` principal components. Label information uses all
            features.
        pairs_with: Additional estimators: an estimator such as ``mikit.KSG(k=5)``, its class or its name, or a list of
            these. Each is run by :func:`mikit.measure` and adds rows with its own unit, kind and verdict; its name is
            the ``quantity``, and ``probe`` describes the estimator. An estimator that explains labels
            (``"label_qmi"``, ``"ross"``) is run on every layer of every network. Threads run these estimators one
            after another, processes run them in parallel.
        pairs: The layer pairs for ``pairs_with``: ``"same depth"``, ``"all"``, a list of (student layer, teacher
            layer), or ``"screen"`` for expensive estimators: the teacher layer at the same depth, and the one of which
            the student's layer recovers the largest share at its last phase. All other pairs get the verdict
            ``"skipped"`` with the reason.
        information_plane: Whether to measure the information between the input and every layer with added noise: rows
            ``input_information``, see :func:`mikit.functional.noisy_input_information`. They use all features.
        plane_noise: Noise levels of those rows, in RMS SDs of the layer at that phase; 0.3, 1 and 3 by default.
        seed: Seed of the folds, the permutations and the noise.
        jobs: Number of workers, each with one thread of linear algebra; the results do not depend on it. One by
            default, or the number set by ``joblib.parallel_config``.
        backend: The joblib backend: ``"threading"`` (default), ``"loky"`` (processes), or ``"dask"`` or ``"ray"`` on a
            cluster, where every worker needs access to ``out`` and the stores. ``joblib.parallel_config(backend=...)``
            around the call has the same effect.
        device: Where factors, cross-products and the information plane are computed, in float64: ``"cuda"``,
            ``"cuda:1"``, or a list, one for each worker. Probes and additional estimators stay on the CPU. By default
            NumPy is used, which multiplies float32 activations in float32.
        out: Folder to write to during the run, in the format of :meth:`Flow.save`. Every measurement is a file of its
            own there, named by everything that determines it. A run that was interrupted continues from these files
            when it is called again; at most one measurement per worker is repeated, and the table is the same. Stores
            and phases that were added later cost only their own measurements.
        overwrite: Replace a different trace in ``out``. Its table is kept until the new one is complete.
        budget: Minutes after which no new measurement starts. Phases are then measured from coarse to fine: first and
            last, middle, quarters. Rows that did not fit have the verdict ``"skipped"`` and no value; the teacher's
            last phase is always measured.
        progress: Show a progress bar with the remaining time on standard error; if that is not a terminal, print a
            line every half minute.

    Returns:
        A :class:`Flow`. Label information and gaps are V-information in nats, shares are estimates (the true value is
        at most 1), CKA is an index. Intervals are 95 % sampling intervals: Student's t over samples for label
        information (for gaps, over differences per sample), delete-one-fold jackknife for shares and CKA; for shares
        they are widened to contain the held-out and in-sample values. ``null`` is the same quantity with samples
        permuted within folds: for all label information (one turn of the rotation), and for layer pairs at the same
        relative depth. Accuracy is what ``store.note(phase, accuracy=...)`` recorded; with ``accuracy_n``, it gets
        Wilson's interval.

    Raises:
        InputError: If ids do not match (the message counts the missing ones), if samples are among a network's
            training samples, if there are fewer than ``5 (d_t + d_s)`` samples, if a layer contains NaN, if ``out``
            contains another trace, or if an argument is invalid.

    Cost:
        Each layer is read and factored once: ``O(n d²)``. A pair costs one cross-product and, per noise level,
        ``O(folds d³)``. Memory: the teacher's layers of one phase (in a temporary file above 1 GiB) in every process,
        and one student layer per job. ``out`` takes a few kilobytes per pair and ``O(folds d²)`` per teacher layer.

    Pitfalls:
        A share measures linear recovery under the declared noise, not mutual information in general; conclusions
        should hold for several noise levels. Untrained networks share the input with the teacher: compare shares with
        ``untrained``. Pooling removes information from early layers. Label information grows with the number of
        samples, so compare it at the same number only. Intervals cover the sampling of the data; the spread over
        training seeds needs several stores.

    Source:
        V-information: Xu et al., ICLR 2020. The recovered share, its bracket and its defaults are specific to mikit.

    Example:
        >>> import tempfile
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(600) % 2
        >>> t = rng.standard_normal((600, 4)) + y[:, None]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     teacher = ActivationStore(folder + "/t", network="teacher")
        ...     teacher.append({"fc": t}, ids=np.arange(600), phase=3)
        ...     student = ActivationStore(folder + "/s", network="student", seed=0)
        ...     student.append({"fc": t[:, :2]}, ids=np.arange(600), phase=0)
        ...     flow = trace(teacher, student, labels=y, noise=0.3)
        >>> found = flow.frame[flow.frame.role == "student"].set_index("quantity").value
        >>> round(float(found["recovered_share"]), 1), bool(found["label_gap"] < 0)
        (0.5, True)
    """
    start = time.perf_counter()
    stores = [students] if isinstance(students, ActivationStore) else list(students)
    levels = tuple(float(level) for level in np.atleast_1d(np.asarray(noise, dtype=np.float64)))
    require_settings(levels, student_noise, probe, reduce, jobs, budget)
    plane = plane_levels(information_plane, plane_noise)
    devices = devices_of(device)
    workers = Workers(len(devices) if jobs is None and len(devices) > 1 else jobs, Budget(budget), progress)
    runs = runs_of(teacher, stores, layers, phases)
    samples = fold_samples(np.asarray(teacher.ids(teacher.phases[-1])), folds, seed)
    for run in runs:
        refuse_training_rows(run, samples)
    orders = row_orders(runs, samples)
    method = Method(samples, labels_of(runs, labels, samples), probe, levels, student_noise, reduce, plane)
    refuse_wide(runs, method)
    extra = extra_estimators(pairs_with, pairs, runs, method)
    settings = {**settings_of(runs, method, seed), "pairs_with": extra.described(), "device": list(devices)}
    decides = deciding(settings, method, extra, phases, layers)
    plan = plan_of(runs, orders, method, devices)
    with working_with(backend), sharing(devices), records_of(out, decides, runs, overwrite) as records:
        flow = Flow(frame_of(_rows(replace(plan, records=records), extra, workers)), settings)
        settings["wall_time"] = time.perf_counter() - start
        if out is not None:
            finish_run(Path(out), flow)
    return flow


def _rows(plan: Plan, extra: ExtraEstimators, workers: Workers) -> list[dict[str, Any]]:
    """Return the rows of the table, measured or skipped."""
    try:
        tasks = _tasks(plan)
        measured = _measured(plan, tasks, workers)
        places = extra_tasks(plan, extra, tasks)
        reasons = screened_out(plan, extra, places, measured)
        asked = [place for place in places if place not in reasons]
        found = _extra_measured(plan, extra, asked, workers)
    finally:
        forget(plan.token)
    sentence = workers.budget.sentence
    rows = rows_of(plan, measured, {place: sentence for place in tasks if place not in measured})
    reasons |= {place: sentence for place in asked if place not in found}
    return rows + sorted(extra_rows(plan, extra, places, found, reasons), key=_in_order(plan.runs, extra))


def _measured(plan: Plan, tasks: Sequence[Place], workers: Workers) -> dict[Place, Snapshot]:
    """Return what was measured of the teacher's last phase and of the tasks."""
    teacher = [(0, plan.last, layer) for layer in plan.runs[0].layers]
    measured: dict[Place, Snapshot] = {}
    with progress_bar(workers.progress, len(teacher) + len(tasks)) as advance:
        # Students are compared with the teacher's last phase, so that phase comes first and no budget cuts it off.
        for work, places, budget in ((teacher_layer, teacher, Budget(None)), (snapshot, tasks, workers.budget)):
            for place, found in done(partial(work, plan), places, jobs=workers.jobs, budget=budget):
                measured[place] = found
                advance(f"{plan.runs[place[0]].network}, phase {place[1]}")
    return measured


def _extra_measured(
    plan: Plan, extra: ExtraEstimators, tasks: Sequence[ExtraTask], workers: Workers
) -> dict[ExtraTask, Measurement]:
    """Return the measurements of the additional estimators that the budget allowed."""
    if not tasks:
        return {}
    # Trained estimators draw from torch's global random stream, which threads would share.
    jobs = 1 if shares_memory()[0] else workers.jobs
    measured: dict[ExtraTask, Measurement] = {}
    with progress_bar(workers.progress, len(tasks)) as advance:
        for task, found in done(partial(measure_extra, plan, extra), tasks, jobs=jobs, budget=workers.budget):
            measured[task] = found
            place, _, index = task
            advance(f"{extra.estimators[index].name}, {plan.runs[place[0]].network}, phase {place[1]}")
    return measured


def _in_order(runs: Sequence[Run], extra: ExtraEstimators) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """Return a key that sorts rows in the order of the table: run, phase, layer, estimator and teacher layer."""
    position = {(run.role, run.network, run.seed): index for index, run in enumerate(runs)}
    names = [one.name for one in extra.estimators]

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        run = position[row["role"], row["network"], row["seed"]]
        return run, row["phase"], row["layer_index"], names.index(row["quantity"]), row["teacher_layer_index"]

    return key


def _tasks(plan: Plan) -> list[Place]:
    """Return the layers to measure besides the teacher's last phase, in an order that shows whole curves early."""
    ranked: list[tuple[int, Place]] = []
    for position, run in enumerate(plan.runs):
        phases = run.measured
        if position == 0:
            if plan.method.labels is None and not plan.method.plane:
                continue
            phases = tuple(phase for phase in phases if phase != plan.last)
        # All runs take their turns at each rank: a budget that ends early leaves every curve equally coarse.
        for rank, index in enumerate(coarse_to_fine(len(phases))):
            ranked += [(rank, (position, phases[index], layer)) for layer in run.layers]
    return [place for _, place in sorted(ranked, key=lambda one: one[0])]
