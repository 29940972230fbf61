"""Information flow through layers and training phases, from stored activations."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mikit.activations import ActivationStore
from mikit.core.measurement import Measurement
from mikit.flow.result import Flow, frame_of
from mikit.flow.tracing.folder import finish_run
from mikit.flow.tracing.joining import Run, deal_rows, labels_of, refuse_training_rows, row_order, runs_of
from mikit.flow.tracing.pair_estimators import (
    Chosen,
    ChosenPlace,
    chosen_instruments,
    chosen_places,
    chosen_rows,
    measure_chosen,
    screened_out,
)
from mikit.flow.tracing.settings import array_hash, plane_levels, records_of, require_settings, settings_of
from mikit.flow.tracing.snapshots import (
    Instruments,
    Place,
    Plan,
    Snapshot,
    forget,
    refuse_wide,
    snapshot,
    teacher_layer,
)
from mikit.flow.tracing.table import rows_of
from mikit.flow.tracing.workers import (
    Budget,
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
    """Trace what every layer knows of the labels and recovers of the teacher, at every phase of training.

    Formula: per layer ``I_V = H(Y) - held-out cross-entropy`` of a linear probe; per student layer and layer of the
    teacher's last phase the recovered share ``I(s + σ_s z; t + σ z) / C(σ)`` of Gaussian laws with the layers' moments,
    ``C = ½ Σ log(1 + λ_i / σ²)``, each layer divided by its RMS SD at that phase, and linear CKA. Both
    informations are of all rows, freed from the bias of few rows (:func:`~mikit.functional.flow.recovery.recover`); the
    held-out and in-sample values stand beside them.

    Rows are joined by sample id across stores and phases, whatever their order; all curves share rows and folds.

    Args:
        teacher: The teacher's store. Students are compared with its last phase; label information is given for all.
        students: One store per network and seed.
        labels: One label per row, in the order of ``teacher.ids(teacher.phases[-1])``. Without them the stores' own
            labels are used; where there are none, the table has no label rows.
        noise: Noise ``σ`` on the teacher's layer in RMS SDs: one number or several. One number for all dimensions;
            noise per dimension would be another quantity.
        student_noise: Noise on the student's layer in RMS SDs; it serves as a ridge.
        folds: Folds of the rotation, at least 3.
        probe: ``"logistic"``, ``"lda"`` for a quick look, ``"mlp"`` (one hidden layer) or ``"knn"``, as in
            :class:`~mikit.LabelInformation`.
        phases: Phases to report; all by default. Phase 0 is measured in any case where it was captured, since it is
            the floor that every other phase is compared with.
        layers: Names of the layers to trace; all by default.
        reduce: Compare wider layers by their first ``reduce`` principal components. Label information reads all
            columns.
        pairs_with: Further instruments: an estimator such as ``mikit.KSG(k=5)``, its class or its name, or a list. Each
            is measured by :func:`mikit.measure` and gets rows of its own unit, kind and verdict, called by its name;
            ``probe`` says what read it. One that explains labels (``"label_qmi"``, ``"ross"``) is measured at every
            layer of every network. Threads measure these one after another; processes side by side.
        pairs: For which pairs: ``"same depth"``, ``"all"``, a list of (student layer, teacher layer), or ``"screen"``
            for costly instruments: the same depth, and the teacher layer of which the student's layer recovers the
            largest share at its last phase. All other pairs have the verdict ``"skipped"`` and the reason.
        information_plane: Whether to measure what every layer, with noise added, tells of the input: rows
            ``input_information``, see :func:`mikit.functional.noisy_input_information`. They read all columns.
        plane_noise: Noise levels of those rows, in RMS SDs of the layer at that phase; 0.3, 1 and 3 by default.
        seed: Seed of the folds, the permutations and the noise.
        jobs: Workers, each with one thread of linear algebra; the numbers do not depend on how many. One by default, or
            as many as ``joblib.parallel_config`` says.
        backend: What the workers are: ``"threading"`` (the default) or ``"loky"`` (processes), or ``"dask"`` or
            ``"ray"`` on a cluster, where ``out`` and the stores must lie where every worker sees them. The same is said
            with ``joblib.parallel_config(backend=...)`` around the call.
        device: Where factors, cross-products and the information plane are computed, in float64: ``"cuda"``,
            ``"cuda:1"``, or a list, one for each worker. Probes and further instruments stay on the processor. Without
            it NumPy computes, and multiplies float32 rows in float32.
        out: Folder to write to while measuring, as :meth:`Flow.save` does in the end. Every measurement is a file of
            its own there, named by all that decides it. A run that was killed goes on from them when it is called
            again, at most one measurement for each worker is repeated, and the table is the same; stores and phases
            that were added since cost only themselves.
        overwrite: Replace another trace that stands in ``out``. Its table stays until the new one is whole.
        budget: Minutes after which nothing more is begun. Phases are then measured from coarse to fine: first and last,
            middle, quarters. Rows that did not fit are in the table, with verdict ``"skipped"`` and no value; the
            teacher's last phase is always measured.
        progress: Show a bar with the time left on standard error; where that is no terminal, a line now and then.

    Returns:
        A :class:`Flow`. Label information and gaps are V-information in nats, shares are estimates (at most 1 in
        truth), CKA is an index. Intervals are 95 % sampling intervals: Student's t over rows for labels (for gaps over
        row-wise differences), delete-one-fold jackknife for shares and CKA, for shares widened to hold the bracket
        from held-out to in-sample. ``null`` moves rows within folds: for every
        label information (one fold's turn), and for the pairs of layers at the same relative depth. Accuracy is what
        ``store.note(phase, accuracy=...)`` holds; with ``accuracy_n`` noted beside it, it gets Wilson's interval.

    Raises:
        InputError: If ids do not match (with how many are missing where), if rows are among a network's training
            samples, if there are fewer than ``5 (d_t + d_s)`` rows, if a layer holds NaN, if ``out`` holds another
            trace, or if an argument is wrong.

    Cost:
        Each layer is read and factored once: ``O(n d²)``. A pair costs one cross-product and, per noise level,
        ``O(folds d³)``. Memory: the teacher's layers of one phase (in a temporary file above 1 GiB) in every process,
        and one student layer per job. ``out`` takes some kilobytes a pair, ``O(folds d²)`` for a teacher layer.

    Pitfalls:
        A share shows linear recovery under the declared noise, never plain mutual information; conclusions should hold
        for several noise levels. Untrained networks share the input with the teacher: read shares against
        ``untrained``. Pooling hides what early layers hold. Label information grows with the number of rows, so compare
        it at one number only. Intervals hold the sampling of rows; the spread over training seeds needs several stores.

    Source:
        V-information: Xu et al., ICLR 2020. The recovered share, its bracket and its defaults are mikit's own.

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
    jobs = len(devices) if jobs is None and len(devices) > 1 else jobs
    time_left = Budget(budget)
    runs = runs_of(teacher, stores, layers, phases)
    deal = deal_rows(np.asarray(teacher.ids(teacher.phases[-1])), folds, seed)
    for run in runs:
        refuse_training_rows(run, deal)
    orders = {(i, phase): row_order(run, phase, runs[0], deal) for i, run in enumerate(runs) for phase in run.measured}
    instruments = Instruments(deal, labels_of(runs, labels, deal), probe, levels, student_noise, reduce, plane)
    refuse_wide(runs, instruments)
    chosen = chosen_instruments(pairs_with, pairs, runs, instruments)
    settings = {**settings_of(runs, instruments, seed), "pairs_with": chosen.described()}
    labels_hash = None if instruments.labels is None else array_hash(instruments.labels[0])
    decides = {
        **{name: settings[name] for name in ("noise", "student_noise", "folds", "probe", "reduce", "seed", "teacher")},
        "phases": None if phases is None else [int(phase) for phase in phases],
        "layers": None if layers is None else list(layers),
        "labels": labels_hash,
        "pairs_with": settings["pairs_with"],
        "pairs": chosen.pairs if isinstance(chosen.pairs, str) else [list(pair) for pair in chosen.pairs],
    }
    if plane:
        decides["plane_noise"] = list(plane)
    if devices:
        decides["arithmetic"] = "device"
    rows_hash = f"{array_hash(deal.ids)} {','.join(str(fold.stop) for fold in deal.folds)}"
    settings["device"] = list(devices)
    with working_with(backend), sharing(devices), records_of(out, decides, runs, overwrite) as records:
        plan = Plan(secrets.token_hex(8), runs, orders, instruments, records, rows_hash, labels_hash, devices)
        try:
            tasks = _tasks(plan)
            measured = _measured(plan, tasks, jobs, time_left, progress)
            others = chosen_places(plan, chosen, tasks)
            reasons = screened_out(plan, chosen, others, measured)
            asked = [place for place in others if place not in reasons]
            found = _chosen(plan, chosen, asked, jobs, time_left, progress)
        finally:
            forget(plan.token)
        skipped = {place: time_left.sentence for place in tasks if place not in measured}
        rows = rows_of(runs, measured, instruments, skipped)
        reasons |= {place: time_left.sentence for place in asked if place not in found}
        rows += sorted(chosen_rows(plan, chosen, others, found, reasons), key=_in_order(runs, chosen))
        settings["wall_time"] = time.perf_counter() - start
        flow = Flow(frame_of(rows), settings)
        if out is not None:
            finish_run(Path(out), flow)
    return flow


def _measured(
    plan: Plan, tasks: Sequence[Place], jobs: int | None, budget: Budget, progress: bool
) -> dict[Place, Snapshot]:
    """Return what was measured of the teacher's last phase and of the tasks."""
    teacher = [(0, plan.last, layer) for layer in plan.runs[0].layers]
    measured: dict[Place, Snapshot] = {}
    with progress_bar(progress, len(teacher) + len(tasks)) as told:
        for work, places, time_left in ((teacher_layer, teacher, Budget(None)), (snapshot, tasks, budget)):
            for place, found in done(partial(work, plan), places, jobs=jobs, budget=time_left):
                measured[place] = found
                told(f"{plan.runs[place[0]].network}, phase {place[1]}")
    return measured


def _chosen(
    plan: Plan, chosen: Chosen, tasks: Sequence[ChosenPlace], jobs: int | None, budget: Budget, progress: bool
) -> dict[ChosenPlace, Measurement]:
    """Return what the further instruments measured, and the time allowed."""
    if not tasks:
        return {}
    # Instruments that are trained draw from torch's global stream, which threads would share.
    jobs = 1 if shares_memory()[0] else jobs
    measured: dict[ChosenPlace, Measurement] = {}
    with progress_bar(progress, len(tasks)) as told:
        for task, found in done(partial(measure_chosen, plan, chosen), tasks, jobs=jobs, budget=budget):
            measured[task] = found
            told(f"{chosen.instruments[task[2]].name}, {plan.runs[task[0][0]].network}, phase {task[0][1]}")
    return measured


def _in_order(runs: Sequence[Run], chosen: Chosen) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """Return a key that sorts rows as the table is: by run, phase, layer, instrument and teacher layer."""
    position = {(run.role, run.network, run.seed): index for index, run in enumerate(runs)}
    names = [one.name for one in chosen.instruments]

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        run = position[row["role"], row["network"], row["seed"]]
        return run, row["phase"], row["layer_index"], names.index(row["quantity"]), row["teacher_layer_index"]

    return key


def _tasks(plan: Plan) -> list[Place]:
    """Return the layers to measure beside the teacher's last phase: the phases that show most of a curve first."""
    ranked: list[tuple[int, Place]] = []
    for position, run in enumerate(plan.runs):
        phases = run.measured
        if position == 0:
            if plan.instruments.labels is None and not plan.instruments.plane:
                continue
            phases = tuple(phase for phase in phases if phase != plan.last)
        for rank, index in enumerate(coarse_to_fine(len(phases))):
            ranked += [(rank, (position, phases[index], layer)) for layer in run.layers]
    return [place for _, place in sorted(ranked, key=lambda one: one[0])]
