"""The settings of a trace: validation, the description in the result, and the folder of its records."""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.provenance import library_versions
from mikit.flow.tracing.folder import run_records
from mikit.flow.tracing.joining import Run
from mikit.flow.tracing.pair_estimators import ExtraEstimators
from mikit.flow.tracing.records import Records
from mikit.flow.tracing.snapshots import Method, Plan
from mikit.flow.tracing.workers import shares_memory

__all__ = ["deciding", "plan_of", "plane_levels", "records_of", "require_settings", "settings_of"]

_PLANE_NOISE = (0.3, 1.0, 3.0)


@contextmanager
def records_of(
    out: str | Path | None, decides: dict[str, Any], runs: Sequence[Run], overwrite: bool
) -> Iterator[Records | None]:
    """Yield the records: in ``out``, in a temporary folder for processes of this machine, or None for threads."""
    within, near = shares_memory()
    if out is not None:
        stores = [run.store for run in runs]
        # Hash every layer before anything is written: a damaged store is refused and leaves no trace behind.
        for run in runs:
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
            "The workers run on a cluster and share their measurements through a folder. Pass out=, a folder that "
            "every worker can access."
        )


def _array_hash(values: np.ndarray) -> str:
    """Return a hash of ids or labels."""
    # NumPy pads text to the longest entry, so the bytes of one id depend on the others: hash the text itself.
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
    """Raise :class:`~mikit.InputError` if an argument of a trace is invalid by itself."""
    if not noise or not all(np.isfinite(level) and level > 0 for level in (*noise, student_noise)):
        raise InputError(
            f"noise is {_listed(noise)} and student_noise is {student_noise}; both must be positive, in units of the "
            "layer's RMS SD. Without noise the information between two deterministic layers is infinite or undefined."
        )
    if len(set(noise)) < len(noise):
        raise InputError(f"noise is {_listed(noise)}, which repeats a level. Pass each level once.")
    require.one_of(probe, "probe", ("logistic", "lda", "mlp", "knn"))
    if reduce is not None:
        require.at_least(reduce, "reduce")
    if jobs is not None and (jobs == 0 or jobs < -1):
        raise InputError(f"jobs is {jobs}; pass a number of workers, or -1 for one per core.")
    if budget is not None:
        require.positive(budget, "budget", "in minutes")


def _listed(levels: Sequence[float]) -> str:
    return ", ".join(f"{level:g}" for level in levels) or "empty"


def plan_of(
    runs: tuple[Run, ...], orders: Mapping[tuple[int, int], np.ndarray], method: Method, devices: tuple[str, ...]
) -> Plan:
    """Return the plan of a trace, for now without records."""
    ends = ",".join(str(fold.stop) for fold in method.samples.folds)
    rows_hash = f"{_array_hash(method.samples.ids)} {ends}"
    return Plan(secrets.token_hex(8), runs, orders, method, None, rows_hash, _labels_hash(method), devices)


def _labels_hash(method: Method) -> str | None:
    return None if method.labels is None else _array_hash(method.labels[0])


def deciding(
    settings: Mapping[str, Any],
    method: Method,
    extra: ExtraEstimators,
    phases: Sequence[int] | None,
    layers: Sequence[str] | None,
) -> dict[str, Any]:
    """Return the settings that determine every number of a trace; a folder is continued only if all of them agree."""
    decides = {
        **{name: settings[name] for name in ("noise", "student_noise", "folds", "probe", "reduce", "seed", "teacher")},
        "phases": None if phases is None else [int(phase) for phase in phases],
        "layers": None if layers is None else list(layers),
        "labels": _labels_hash(method),
        "pairs_with": settings["pairs_with"],
        "pairs": extra.pairs if isinstance(extra.pairs, str) else [list(pair) for pair in extra.pairs],
    }
    if method.plane:
        decides["plane_noise"] = list(method.plane)
    if settings["device"]:
        decides["arithmetic"] = "device"
    return decides


def plane_levels(wanted: bool, noise: Sequence[float] | None) -> tuple[float, ...]:
    """Return the noise levels of the information plane; empty if it is not wanted."""
    if not wanted:
        if noise is not None:
            raise InputError(
                f"plane_noise is {_listed(noise)}, but the information plane is off. Pass information_plane=True, or "
                "leave out plane_noise."
            )
        return ()
    levels = _PLANE_NOISE if noise is None else tuple(float(level) for level in noise)
    if not levels or not all(np.isfinite(level) and level > 0 for level in levels) or len(set(levels)) < len(levels):
        raise InputError(
            f"plane_noise is {_listed(levels)}; pass positive numbers, each once, in units of the layer's RMS SD. "
            "Without noise the information between a layer and the input is infinite or undefined."
        )
    return levels


def settings_of(runs: Sequence[Run], method: Method, seed: int) -> dict[str, Any]:
    """Return the settings that a flow reports."""
    labels = method.labels
    return {
        "n": len(method.samples.ids),
        "classes": None if labels is None else labels[1],
        "label_entropy": None if labels is None else method.entropy,
        "noise": list(method.noise),
        "student_noise": method.student_noise,
        "folds": len(method.samples.folds),
        "probe": method.probe,
        "reduce": method.reduce,
        "plane_noise": list(method.plane),
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
