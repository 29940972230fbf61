"""Information flow through layers and training phases, from stored activations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from mikit.activations import ActivationStore
from mikit.errors import InputError
from mikit.flow.joining import Run, deal_rows, labels_of, refuse_training_rows, row_order, runs_of
from mikit.flow.result import Flow, frame_of
from mikit.flow.snapshots import Instruments, Snapshot, TeacherLayer, refuse_wide, snapshot, teacher_layer
from mikit.flow.table import rows_of
from mikit.functional.probes import label_entropy
from mikit.provenance import library_versions

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
    seed: int = 0,
    jobs: int = 1,
    progress: bool = False,
) -> Flow:
    """Trace what every layer knows of the labels and recovers of the teacher, at every phase of training.

    Formula: per layer ``I_V = H(Y) - held-out cross-entropy`` of a linear probe; per student layer and layer of the
    teacher's last phase the recovered share ``I(s + σ_s z; t + σ z) / C(σ)`` of Gaussian laws with the layers' moments,
    ``C = ½ Σ log(1 + λ_i / σ²)``, each layer divided by its RMS SD at that phase, and linear CKA. The value of a share
    is the middle of its held-out and in-sample values.

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
        probe: ``"logistic"``, or ``"lda"`` for a quick look.
        phases: Phases to report; all by default. Phase 0 is measured in any case where it was captured, since it is
            the floor that every other phase is compared with.
        layers: Names of the layers to trace; all by default.
        reduce: Compare wider layers by their first ``reduce`` principal components. Label information reads all
            columns.
        seed: Seed of the folds and permutations.
        jobs: Threads; the numbers do not depend on it. Each uses one BLAS thread.
        progress: Show a bar with the time left on standard error.

    Returns:
        A :class:`Flow`. Label information and gaps are V-information in nats, shares are estimates (at most 1 in
        truth), CKA is an index. Intervals are 95 % sampling intervals: Student's t over rows for labels (for gaps over
        row-wise differences), delete-one-fold jackknife for shares and CKA, for shares widened to hold the bracket
        from held-out to in-sample. ``null`` moves rows within folds: for every
        label information (one fold's turn), and for the pairs of layers at the same relative depth. Accuracy is what
        ``store.note(phase, accuracy=...)`` holds; with ``accuracy_n`` noted beside it, it gets Wilson's interval.

    Raises:
        InputError: If ids do not match (with how many are missing where), if rows are among a network's training
            samples, if there are fewer than ``5 (d_t + d_s)`` rows, if a layer holds NaN, or if an argument is wrong.

    Cost:
        Each layer is read and factored once: ``O(n d²)``. A pair costs one cross-product and, per noise level,
        ``O(folds d³)``. Memory: the teacher's layers of one phase (in a temporary file above 1 GiB) and one student
        layer per job.

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
    _require_settings(levels, student_noise, probe, reduce, jobs)
    runs = runs_of(teacher, stores, layers, phases)
    last = teacher.phases[-1]
    deal = deal_rows(np.asarray(teacher.ids(last)), folds, seed)
    for run in runs:
        refuse_training_rows(run, deal)
    orders = {(i, phase): row_order(run, phase, runs[0], deal) for i, run in enumerate(runs) for phase in run.measured}
    instruments = Instruments(deal, labels_of(runs, labels, deal), probe, levels, student_noise, reduce)
    refuse_wide(runs, instruments)

    held = 8 * len(deal.ids) * sum(instruments.width(teacher.shape(layer, last)[-1]) for layer in runs[0].layers)
    earlier = [
        (0, phase, layer)
        for phase in runs[0].measured
        if phase != last and instruments.labels is not None
        for layer in runs[0].layers
    ]
    later = [(i, phase, layer) for i, run in enumerate(runs) if i for phase in run.measured for layer in run.layers]
    measured: dict[tuple[int, int, str], Snapshot] = {}
    kept: list[TeacherLayer] = []
    tasks = (*earlier, *later)
    with threadpool_limits(1, user_api="blas"), _bar(progress, len(runs[0].layers) + len(tasks)) as told:
        for layer, (one, found) in zip(
            runs[0].layers,
            _in_threads(jobs)(
                joblib.delayed(teacher_layer)(runs[0], layer, orders[0, last], instruments, held)
                for layer in runs[0].layers
            ),
            strict=True,
        ):
            measured[0, last, layer] = found
            kept.append(one)
            told(f"{runs[0].network}, phase {last}")
        for key, found in zip(
            tasks,
            _in_threads(jobs)(
                joblib.delayed(snapshot)(runs[i], layer, phase, orders[i, phase], instruments, kept if i else ())
                for i, phase, layer in tasks
            ),
            strict=True,
        ):
            measured[key] = found
            told(f"{runs[key[0]].network}, phase {key[1]}")
    frame = frame_of(rows_of(runs, measured, instruments))
    return Flow(frame, _settings(runs, instruments, seed, time.perf_counter() - start))


def _require_settings(
    noise: tuple[float, ...], student_noise: float, probe: str, reduce: int | None, jobs: int
) -> None:
    if not noise or not all(np.isfinite(level) and level > 0 for level in (*noise, student_noise)):
        raise InputError(
            f"noise is {noise} and student_noise {student_noise}; both must be positive, in units of the layer's RMS "
            "SD. Without noise the information between two deterministic layers is infinite or undefined."
        )
    if len(set(noise)) < len(noise):
        raise InputError(f"noise names a level twice: {noise}.")
    if probe not in ("logistic", "lda"):
        raise InputError(f'probe is "{probe}"; use "logistic" or "lda".')
    if reduce is not None and reduce < 1:
        raise InputError(f"reduce is {reduce}; at least 1 principal component must be left.")
    if jobs == 0 or jobs < -1:
        raise InputError(f"jobs is {jobs}; pass a number of threads, or -1 for one per core.")


def _in_threads(jobs: int) -> joblib.Parallel:
    """Return a pool that yields results in the order of the tasks."""
    return joblib.Parallel(n_jobs=jobs, prefer="threads", return_as="generator")


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function to call after every layer; with ``shown`` it moves a bar on standard error."""
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("Tracing", total=total)
        yield lambda done: bar.update(task, advance=1, description=done)


def _settings(runs: Sequence[Run], instruments: Instruments, seed: int, wall_time: float) -> dict[str, Any]:
    labels = instruments.labels
    return {
        "n": len(instruments.deal.ids),
        "classes": None if labels is None else labels[1],
        "label_entropy": None if labels is None else label_entropy(labels[0]),
        "noise": list(instruments.noise),
        "student_noise": instruments.student_noise,
        "folds": len(instruments.deal.folds),
        "probe": instruments.probe,
        "reduce": instruments.reduce,
        "seed": seed,
        "teacher": runs[0].network,
        "networks": list(dict.fromkeys(run.network for run in runs[1:])),
        "seeds": sorted({run.seed for run in runs[1:]}),
        "readouts": {run.network: {layer: run.store.readout(layer) for layer in run.layers} for run in runs},
        "runs": [
            {
                "network": run.network,
                "role": run.role,
                "seed": run.seed,
                "layers": list(run.layers),
                "phases": list(run.phases),
                "model_hash": run.store.model_hash,
                "data_hash": run.store.data_hash,
            }
            for run in runs
        ],
        "versions": library_versions(),
        "wall_time": wall_time,
    }
