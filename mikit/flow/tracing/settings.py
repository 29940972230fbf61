"""What a trace was asked for: refused where it is wrong, described for the result, and where its records go."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mikit.core.errors import InputError
from mikit.core.provenance import library_versions
from mikit.flow.tracing.folder import run_records
from mikit.flow.tracing.joining import Run
from mikit.flow.tracing.records import Records
from mikit.flow.tracing.snapshots import Instruments
from mikit.flow.tracing.workers import shares_memory
from mikit.functional.labels.linear_probes import label_entropy

__all__ = ["array_hash", "plane_levels", "records_of", "require_settings", "settings_of"]

_PLANE_NOISE = (0.3, 1.0, 3.0)


@contextmanager
def records_of(
    out: str | Path | None, decides: dict[str, Any], runs: Sequence[Run], overwrite: bool
) -> Iterator[Records | None]:
    """Give the folder of records: in ``out``, in a temporary one for processes of this machine, or none for threads."""
    within, near = shares_memory()
    if out is not None:
        stores = [run.store for run in runs]
        for run in runs:  # before anything is written, since a damaged store is bad input
            for phase in run.measured:
                for layer in run.layers:
                    run.store.content(layer, phase)
        named = [(run.role, run.network, run.seed) for run in runs]
        inputs = [store.path for store in stores]
        with run_records(Path(out), decides, named, overwrite=overwrite, inputs=inputs) as records:
            yield records
    elif within:
        yield None
    elif near:
        with tempfile.TemporaryDirectory(prefix="mikit-trace-") as folder:
            yield Records(Path(folder))
    else:
        raise InputError(
            "The workers are on a cluster and share what they measure through a folder, and none was named. Pass out=, "
            "a folder that every worker sees."
        )


def array_hash(values: np.ndarray) -> str:
    """Return a hash of ids or labels; of text without the padding that depends on the longest."""
    content = np.ascontiguousarray(values)
    if content.dtype.kind in "US":
        return hashlib.sha256("\0".join(content.tolist()).encode()).hexdigest()
    return hashlib.sha256(content.astype(np.int64).tobytes()).hexdigest()


def require_settings(
    noise: tuple[float, ...],
    student_noise: float,
    probe: str,
    reduce: int | None,
    jobs: int | None,
    budget: float | None,
) -> None:
    """Raise :class:`~mikit.InputError` where an argument of a trace is wrong by itself."""
    if not noise or not all(np.isfinite(level) and level > 0 for level in (*noise, student_noise)):
        raise InputError(
            f"noise is {noise} and student_noise {student_noise}; both must be positive, in units of the layer's RMS "
            "SD. Without noise the information between two deterministic layers is infinite or undefined."
        )
    if len(set(noise)) < len(noise):
        raise InputError(f"noise names a level twice: {noise}.")
    if probe not in ("logistic", "lda", "mlp", "knn"):
        raise InputError(f'probe is "{probe}"; use "logistic", "lda", "mlp" or "knn".')
    if reduce is not None and reduce < 1:
        raise InputError(f"reduce is {reduce}; at least 1 principal component must be left.")
    if jobs is not None and (jobs == 0 or jobs < -1):
        raise InputError(f"jobs is {jobs}; pass a number of workers, or -1 for one per core.")
    if budget is not None and not (np.isfinite(budget) and budget > 0):
        raise InputError(f"budget is {budget}; pass a positive number of minutes.")


def plane_levels(wanted: bool, noise: Sequence[float] | None) -> tuple[float, ...]:
    """Return the noise levels of the information plane; none where it is not wanted.

    Raises:
        InputError: Unless they are positive and different, or if there are levels for a plane that is not wanted.
    """
    if not wanted:
        if noise is not None:
            raise InputError(
                f"plane_noise is {tuple(noise)}, but no information plane was asked for. Ask for it with "
                "information_plane=True (--information-plane), or leave out plane_noise."
            )
        return ()
    levels = _PLANE_NOISE if noise is None else tuple(float(level) for level in noise)
    if not levels or not all(np.isfinite(level) and level > 0 for level in levels) or len(set(levels)) < len(levels):
        raise InputError(
            f"plane_noise is {levels}; pass positive numbers, each once, in units of the layer's RMS SD. Without noise "
            "the information between a layer and the input is infinite or undefined."
        )
    return levels


def settings_of(runs: Sequence[Run], instruments: Instruments, seed: int) -> dict[str, Any]:
    """Return what a flow says of how it was measured."""
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
        "plane_noise": list(instruments.plane),
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
    }
