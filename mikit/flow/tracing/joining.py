"""Which rows of which store belong together: every array of a trace has its rows in one order, fold after fold."""

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

__all__ = ["Deal", "Run", "deal_rows", "labels_of", "read_rows", "refuse_training_rows", "row_order", "runs_of"]

Array = NDArray[Any]


@final
@dataclass(frozen=True)
class Run:
    """One store in a trace: a network in one training run.

    Attributes:
        store: Where its activations are.
        network: Its name.
        role: ``"teacher"`` or ``"student"``.
        seed: Its seed; 0 where the store names none.
        layers: The layers to trace, in network order.
        phases: The phases to report.
        measured: The phases to measure: those, and phase 0 where it was captured.
    """

    store: ActivationStore
    network: str
    role: str
    seed: int
    layers: tuple[str, ...]
    phases: tuple[int, ...]
    measured: tuple[int, ...]

    def called(self, phase: int) -> str:
        """Return what to call the run at a phase in an error."""
        return f"{self.role} {self.network!r} (seed {self.seed}, phase {phase})"


@final
@dataclass(frozen=True)
class Deal:
    """The common order of the rows.

    Attributes:
        ids: Sample ids ``(n,)``, fold after fold, in random order within each fold.
        folds: The folds as slices of that order.
    """

    ids: Array
    folds: tuple[slice, ...]

    def shifted(self) -> Array:
        """Return a permutation that moves every row within its fold, so that each fold keeps its moments."""
        rows = np.arange(self.ids.shape[0])
        return np.concatenate([np.roll(rows[fold], 1) for fold in self.folds])


def runs_of(
    teacher: ActivationStore,
    students: Sequence[ActivationStore],
    layers: Sequence[str] | None,
    phases: Sequence[int] | None,
) -> tuple[Run, ...]:
    """Return the teacher's run and the students', with the layers and phases that were asked for.

    Raises:
        InputError: If a layer or phase is nowhere, a layer is not stored as rows ``(n, d)``, a store holds nothing to
            trace, or two stores are one network with one seed.
    """
    if isinstance(layers, str):
        raise InputError(f"layers is the single string {layers!r}. Pass a list of names: [{layers!r}].")
    if not students:
        raise InputError("There are no students. Pass the store of at least one student.")
    known = {name for store in (teacher, *students) for name in store.layers}
    if layers is not None and (missing := [name for name in layers if name not in known]):
        raise InputError(
            f"No store holds the layer{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}. The layers "
            f"are {', '.join(map(repr, sorted(known)))}."
        )
    runs = []
    for role, store, number in (("teacher", teacher, 0), *(("student", s, i) for i, s in enumerate(students, 1))):
        network = store.network if store.network is not None else (f"student {number}" if number else "teacher")
        kept = tuple(name for name in store.layers if layers is None or name in layers)
        if not kept or not store.phases:
            raise InputError(f"The store of the {role} {network!r} holds none of the layers to trace. Record it first.")
        wanted = store.phases if phases is None else tuple(p for p in store.phases if p in phases)
        if role == "teacher":
            wanted = tuple(sorted({*wanted, store.phases[-1]}))
        elif phases is not None and (absent := [p for p in phases if p not in store.phases]):
            raise InputError(
                f"The store of the {role} {network!r} lacks phase {absent[0]}; it holds the phases "
                f"{', '.join(map(str, store.phases))}."
            )
        for layer in kept:
            if len(shape := store.shape(layer, wanted[0])) != 2:
                raise InputError(
                    f"Layer {layer!r} of the {role} {network!r} has shape {shape}, but a trace reads rows (n, d). "
                    'Record it with a readout such as "pool" or "flatten".'
                )
        measured = tuple(sorted({*wanted, *(p for p in store.phases if p == 0)}))
        runs.append(Run(store, network, role, 0 if store.seed is None else store.seed, kept, wanted, measured))
    seen: set[tuple[str, int]] = set()
    for run in runs[1:]:
        if (run.network, run.seed) in seen:
            raise InputError(
                f"Two student stores are both network {run.network!r} with seed {run.seed}. Give every run its own "
                "network name or seed when its store is created."
            )
        seen.add((run.network, run.seed))
    return tuple(runs)


def deal_rows(ids: Array, folds: int, seed: int) -> Deal:
    """Return the ids dealt into folds at random, whatever order they come in.

    Raises:
        InputError: If there are fewer than 3 folds, or fewer than 10 rows per fold.
    """
    if folds < 3:
        raise InputError(f"folds is {folds}; at least 3 are needed, to fit, to select and to report.")
    n = ids.shape[0]
    if n < 10 * folds:
        raise InputError(
            f"There are {n} rows for {folds} folds; at least {10 * folds} are needed. Record more samples."
        )
    shuffled = np.random.default_rng(seed).permutation(np.sort(ids))
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(n), folds)]).tolist()
    return Deal(shuffled, tuple(slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)))


def row_order(run: Run, phase: int, reference: Run, deal: Deal) -> Array:
    """Return for each row of the common order the row of the store that holds it.

    Raises:
        InputError: If the ids of the phase are not those of the common order, with how many are missing where.
    """
    here = np.asarray(run.store.ids(phase))
    if (here.dtype.kind in "US") != (deal.ids.dtype.kind in "US"):
        raise InputError(
            f"The sample ids of {run.called(phase)} are {'text' if here.dtype.kind in 'US' else 'numbers'}, those of "
            f"{reference.called(reference.store.phases[-1])} are not. Record both with the same ids."
        )
    return joined_order(deal.ids, here, reference.called(reference.store.phases[-1]), run.called(phase))


def refuse_training_rows(run: Run, deal: Deal) -> None:
    """Raise :class:`~mikit.InputError` if the network was trained on rows of the trace."""
    trained = run.store.training_ids
    if trained is None:
        return
    overlap = deal.ids[np.isin(deal.ids, np.asarray(trained))]
    if overlap.shape[0]:
        first = np.sort(overlap)[0]
        raise InputError(
            f"The {run.role} {run.network!r} (seed {run.seed}) was trained on {overlap.shape[0]} of the "
            f"{len(deal.ids)} samples to be measured; the first is {first.item()!r}. On training samples every layer "
            "looks better than it is: record activations on samples that no network was trained on."
        )


def labels_of(runs: Sequence[Run], labels: Any, deal: Deal) -> tuple[Array, int] | None:
    """Return class codes in the common order and the number of classes; None if there are no labels anywhere.

    ``labels`` are in the order of the teacher's last phase; without them the stores' own labels are used.

    Raises:
        InputError: If there are not as many labels as rows, or two stores label a sample differently.
    """
    teacher = runs[0]
    if labels is not None:
        here = np.asarray(teacher.store.ids(teacher.store.phases[-1]))
        codes = as_labels(labels).numpy()
        if codes.shape[0] != here.shape[0]:
            raise InputError(
                f"There are {codes.shape[0]} labels for {here.shape[0]} rows. Pass one label per row, in the order of "
                "teacher.ids(teacher.phases[-1])."
            )
        codes = codes[joined_order(deal.ids, here, "the trace", "the teacher")]
        return codes, int(codes.max()) + 1
    chosen: tuple[Run, Array] | None = None
    for run in runs:
        own = run.store.labels_for(deal.ids)
        if own is None:
            continue
        if chosen is None:
            chosen = (run, np.asarray(own))
            continue
        other = np.flatnonzero(chosen[1] != np.asarray(own))
        if other.shape[0]:
            raise InputError(
                f"The stores of {chosen[0].network!r} and {run.network!r} label {other.shape[0]} samples differently; "
                f"sample {deal.ids[other[0]].item()!r} is the first. Check that both were recorded on the same data, "
                "or pass labels."
            )
    if chosen is None:
        return None
    codes = as_labels(chosen[1]).numpy()
    return codes, int(codes.max()) + 1


def read_rows(run: Run, layer: str, phase: int, order: Array, *, centre: bool = True) -> Array:
    """Return a layer's activations in the common order; float32 if stored in 32 bits or fewer, else float64.

    ``centre`` takes the columns' means out.

    Raises:
        InputError: If they hold NaN or infinity.
    """
    shape = run.store.shape(layer, phase)
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
    if not np.isfinite(out.sum(dtype=np.float64)):
        bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
        if bad.shape[0]:
            raise InputError(
                f"Layer {layer!r} of {run.called(phase)} holds NaN or infinite values in {bad.shape[0]} of "
                f"{out.shape[0]} rows; the first is row {int(order[bad].min())} of the store. mikit never fills in or "
                "drops values: record the layer again."
            )
    if not centre:
        return out
    mean = out.mean(axis=0, dtype=np.float64)
    for first in range(0, out.shape[0], 1024):
        out[first : first + 1024] = out[first : first + 1024] - mean
    return out
