"""Joining stores by sample id: every array of a trace has its samples in the same order, fold after fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from mikit.core.errors import InputError
from mikit.core.inputs import as_labels
from mikit.core.rows import joined_order

if TYPE_CHECKING:
    from mikit.activations import ActivationStore

__all__ = ["Run", "Samples", "fold_samples", "labels_of", "read_rows", "refuse_training_rows", "row_orders", "runs_of"]

Array = NDArray[Any]


@final
@dataclass(frozen=True)
class Run:
    """One store in a trace: a network in one training run.

    Attributes:
        seed: Its seed; 0 if the store has none.
        layers: The layers to trace, in network order.
        phases: The phases to report.
        measured: The phases to measure: ``phases``, and phase 0 if it was recorded.
    """

    store: ActivationStore
    network: str
    role: str
    seed: int
    layers: tuple[str, ...]
    phases: tuple[int, ...]
    measured: tuple[int, ...]

    def called(self, phase: int) -> str:
        """Return the name of the run at a phase, for error messages."""
        return f"{self.role} {self.network!r} (seed {self.seed}, phase {phase})"


@final
@dataclass(frozen=True)
class Samples:
    """The samples of a trace in their common order.

    Attributes:
        ids: Sample ids ``(n,)``, fold after fold, in random order within each fold.
        folds: The folds as slices of that order.
    """

    ids: Array
    folds: tuple[slice, ...]

    def shifted(self) -> Array:
        """Return a permutation that moves every sample within its fold."""
        # Folds keep their samples and so their moments: factors are reused, and only cross-products change.
        rows = np.arange(self.ids.shape[0])
        return np.concatenate([np.roll(rows[fold], 1) for fold in self.folds])


def runs_of(
    teacher: ActivationStore,
    students: Sequence[ActivationStore],
    layers: Sequence[str] | None,
    phases: Sequence[int] | None,
) -> tuple[Run, ...]:
    """Return the teacher's run and the students', with the requested layers and phases."""
    if isinstance(layers, str):
        raise InputError(f"layers is the single string {layers!r}. Pass a list of names: [{layers!r}].")
    if not students:
        raise InputError("There are no students. Pass the store of at least one student.")
    known = {name for store in (teacher, *students) for name in store.layers}
    if layers is not None and (missing := [name for name in layers if name not in known]):
        raise InputError(
            f"No store contains the layer{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}. The layers "
            f"are {', '.join(map(repr, sorted(known)))}."
        )
    runs = []
    for role, store, number in (("teacher", teacher, 0), *(("student", s, i) for i, s in enumerate(students, 1))):
        network = store.network if store.network is not None else (f"student {number}" if number else "teacher")
        kept = tuple(name for name in store.layers if layers is None or name in layers)
        if not kept or not store.phases:
            raise InputError(
                f"The store of the {role} {network!r} contains none of the layers to trace. Record them first."
            )
        wanted = store.phases if phases is None else tuple(p for p in store.phases if p in phases)
        if role == "teacher":
            wanted = tuple(sorted({*wanted, store.phases[-1]}))
        elif phases is not None and (absent := [p for p in phases if p not in store.phases]):
            raise InputError(
                f"The store of the {role} {network!r} lacks phase {absent[0]}; it contains the phases "
                f"{', '.join(map(str, store.phases))}."
            )
        for layer in kept:
            if len(shape := store.shape(layer, wanted[0])) != 2:
                raise InputError(
                    f"Layer {layer!r} of the {role} {network!r} has shape {shape}, but a trace needs (n, d). "
                    'Record it with pooling: readout="pool" or readout="flatten".'
                )
        measured = tuple(sorted({*wanted, *(p for p in store.phases if p == 0)}))
        runs.append(Run(store, network, role, 0 if store.seed is None else store.seed, kept, wanted, measured))
    seen: set[tuple[str, int]] = set()
    for run in runs[1:]:
        if (run.network, run.seed) in seen:
            raise InputError(
                f"Two student stores belong to network {run.network!r} with seed {run.seed}. Create the stores with "
                "different network names or seeds."
            )
        seen.add((run.network, run.seed))
    return tuple(runs)


def fold_samples(ids: Array, folds: int, seed: int) -> Samples:
    """Return the samples assigned to folds at random; the result does not depend on the order of ``ids``."""
    if folds < 3:
        raise InputError(f"folds is {folds}; at least 3 are needed, to fit, to select and to report.")
    n = ids.shape[0]
    if n < 10 * folds:
        raise InputError(
            f"There are {n} samples for {folds} folds; at least {10 * folds} are needed. Record more samples."
        )
    shuffled = np.random.default_rng(seed).permutation(np.sort(ids))
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(n), folds)]).tolist()
    return Samples(shuffled, tuple(slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)))


def row_orders(runs: Sequence[Run], samples: Samples) -> dict[tuple[int, int], Array]:
    """Return :func:`row_order` for every run, by position, and every measured phase."""
    return {(i, phase): row_order(run, phase, runs[0], samples) for i, run in enumerate(runs) for phase in run.measured}


def row_order(run: Run, phase: int, reference: Run, samples: Samples) -> Array:
    """Return for each sample of the common order its row in the store."""
    here = np.asarray(run.store.ids(phase))
    if (here.dtype.kind in "US") != (samples.ids.dtype.kind in "US"):
        raise InputError(
            f"The sample ids of {run.called(phase)} are {'text' if here.dtype.kind in 'US' else 'numbers'}, those of "
            f"{reference.called(reference.store.phases[-1])} are not. Record both with ids of the same type."
        )
    return joined_order(samples.ids, here, reference.called(reference.store.phases[-1]), run.called(phase))


def refuse_training_rows(run: Run, samples: Samples) -> None:
    """Raise :class:`~mikit.InputError` if the network was trained on samples of the trace."""
    trained = run.store.training_ids
    if trained is None:
        return
    overlap = samples.ids[np.isin(samples.ids, np.asarray(trained))]
    if overlap.shape[0]:
        first = np.sort(overlap)[0]
        raise InputError(
            f"The {run.role} {run.network!r} (seed {run.seed}) was trained on {overlap.shape[0]} of the "
            f"{len(samples.ids)} samples to be measured; the first is {first.item()!r}. Estimates on training samples "
            "are too high: record activations of samples that no network was trained on."
        )


def labels_of(runs: Sequence[Run], labels: Any, samples: Samples) -> tuple[Array, int] | None:
    """Return class codes in the common order and the number of classes; None if there are no labels.

    ``labels`` are in the order of the teacher's last phase; if None, the labels in the stores are used.
    """
    teacher = runs[0]
    if labels is not None:
        here = np.asarray(teacher.store.ids(teacher.store.phases[-1]))
        codes = as_labels(labels).numpy()
        if codes.shape[0] != here.shape[0]:
            raise InputError(
                f"There are {codes.shape[0]} labels for {here.shape[0]} samples. Pass one label per sample, in the "
                "order of teacher.ids(teacher.phases[-1])."
            )
        codes = codes[joined_order(samples.ids, here, "the trace", "the teacher")]
        return codes, int(codes.max()) + 1
    chosen: tuple[Run, Array] | None = None
    for run in runs:
        stored = run.store.labels_for(samples.ids)
        if stored is None:
            continue
        if chosen is None:
            chosen = (run, np.asarray(stored))
            continue
        other = np.flatnonzero(chosen[1] != np.asarray(stored))
        if other.shape[0]:
            raise InputError(
                f"The stores of {chosen[0].network!r} and {run.network!r} label {other.shape[0]} samples differently; "
                f"the first is sample {samples.ids[other[0]].item()!r}. Check that both were recorded on the same "
                "data, or pass labels."
            )
    if chosen is None:
        return None
    codes = as_labels(chosen[1]).numpy()
    return codes, int(codes.max()) + 1


def read_rows(run: Run, layer: str, phase: int, order: Array, *, center: bool = True) -> Array:
    """Return a layer's activations in the common order; float32 if stored in at most 32 bits, else float64.

    ``center`` subtracts the mean of every feature.
    """
    shape = run.store.shape(layer, phase)
    # Chunks arrive in the order of the store. With the inverse of ``order``, each is written straight to its place, so
    # that the layer is in memory once.
    position = np.empty_like(order)
    position[order] = np.arange(order.shape[0])
    out: Array | None = None
    start = 0
    for chunk in run.store.chunks(layer, phase):
        if out is None:
            out = np.empty(shape, dtype=np.float32 if chunk.dtype in (np.float16, np.float32) else np.float64)
        out[position[start : start + chunk.shape[0]]] = chunk
        start += chunk.shape[0]
    assert out is not None
    # A sum that is finite has only finite terms, and costs no mask of the array's size. Finite terms can overflow the
    # sum, so a failure is checked entry by entry.
    if not np.isfinite(out.sum(dtype=np.float64)):
        bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
        if bad.shape[0]:
            raise InputError(
                f"Layer {layer!r} of {run.called(phase)} contains NaN or infinite values in {bad.shape[0]} of "
                f"{out.shape[0]} samples; the first is row {int(order[bad].min())} of the store. mikit does not impute "
                "or drop values: record the layer again."
            )
    if not center:
        return out
    mean = out.mean(axis=0, dtype=np.float64)
    # The float64 difference of a block, rounded once: the whole difference would take another array in float64.
    for first in range(0, out.shape[0], 1024):
        out[first : first + 1024] = out[first : first + 1024] - mean
    return out
