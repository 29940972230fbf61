"""Inputs of layer matching: the layers of two networks on the same samples, from stores or from arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mikit.activations import ActivationStore
from mikit.core.errors import InputError
from mikit.core.inputs import as_labels, as_rows
from mikit.flow.tracing.joining import (
    Run,
    Samples,
    fold_samples,
    labels_of,
    read_rows,
    refuse_training_rows,
    row_order,
    runs_of,
)
from mikit.functional.flow.moments import centered

__all__ = ["Side", "Sides", "sides_of"]

Array = NDArray[Any]
Layers = ActivationStore | Mapping[str, Any]


@final
@dataclass(frozen=True)
class Side:
    """One network at one phase.

    Attributes:
        network: Its name.
        seed: Its seed; 0 if unknown.
        phase: The phase; 0 for arrays.
        layers: Its layers, in network order.
        read: Returns a layer's activations ``(n, d)``, centered and in the common order.
    """

    network: str
    seed: int
    phase: int
    layers: tuple[str, ...]
    read: Callable[[str], Array]


@final
@dataclass(frozen=True)
class Sides:
    """The teacher's last phase, the students, and the samples and labels that they share.

    Attributes:
        teacher: The teacher.
        students: One entry for each student and phase.
        samples: Order and folds of the samples.
        labels: Class codes in that order and the number of classes; None without labels.
    """

    teacher: Side
    students: tuple[Side, ...]
    samples: Samples
    labels: tuple[Array, int] | None


def sides_of(
    teacher: Layers,
    students: Layers | Sequence[ActivationStore],
    *,
    labels: Any,
    phases: Sequence[int] | None,
    layers: Sequence[str] | None,
    folds: int,
    seed: int,
) -> Sides:
    """Return both sides, joined by sample id (stores) or by position (arrays)."""
    if isinstance(teacher, ActivationStore):
        stores = [students] if isinstance(students, ActivationStore) else list(students)
        if not all(isinstance(store, ActivationStore) for store in stores):
            raise InputError(
                "The teacher is an ActivationStore and the student is not. Pass stores for both, or for both a "
                "dictionary from layer names to arrays."
            )
        return _of_stores(teacher, stores, labels, phases, layers, folds, seed)
    if not isinstance(teacher, Mapping) or not isinstance(students, Mapping):
        raise InputError(
            f"The teacher is a {type(teacher).__name__} and the student a {type(students).__name__}. Pass "
            "ActivationStores for both, or for both a dictionary from layer names, in network order, to arrays (n, d) "
            "of the same samples."
        )
    if phases is not None:
        raise InputError("phases was given, but arrays have only one phase. Pass ActivationStores to choose phases.")
    return _of_arrays(teacher, students, labels, layers, folds, seed)


def _of_stores(
    teacher: ActivationStore,
    students: list[Any],
    labels: Any,
    phases: Sequence[int] | None,
    layers: Sequence[str] | None,
    folds: int,
    seed: int,
) -> Sides:
    runs = runs_of(teacher, students, layers, phases)
    last = teacher.phases[-1]
    samples = fold_samples(np.asarray(teacher.ids(last)), folds, seed)
    for run in runs:
        refuse_training_rows(run, samples)
    wanted = [(run, run.phases if phases is not None else run.phases[-1:]) for run in runs[1:]]
    return Sides(
        _side(runs[0], last, runs[0], samples),
        tuple(_side(run, phase, runs[0], samples) for run, own in wanted for phase in own),
        samples,
        labels_of(runs, labels, samples),
    )


def _side(run: Run, phase: int, teacher: Run, samples: Samples) -> Side:
    order = row_order(run, phase, teacher, samples)
    return Side(run.network, run.seed, phase, run.layers, lambda layer: read_rows(run, layer, phase, order))


def _of_arrays(
    teacher: Mapping[str, Any],
    student: Mapping[str, Any],
    labels: Any,
    layers: Sequence[str] | None,
    folds: int,
    seed: int,
) -> Sides:
    sides: list[dict[str, Array]] = []
    for name, given in (("teacher", teacher), ("student", student)):
        kept = {
            layer: as_rows(rows, f"layer {layer!r} of the {name}").numpy(force=True)
            for layer, rows in given.items()
            if layers is None or layer in layers
        }
        if not kept:
            raise InputError(f"The {name} has no layer to match. Pass a dictionary from layer names to arrays (n, d).")
        for layer, rows in kept.items():
            if rows.ndim != 2:
                raise InputError(
                    f"Layer {layer!r} of the {name} has shape {rows.shape}, but matching needs (n, d). Pool or "
                    "flatten feature maps first."
                )
        sides.append(kept)
    counts = {rows.shape[0] for own in sides for rows in own.values()}
    if len(counts) > 1:
        raise InputError(
            f"The layers have {', '.join(map(str, sorted(counts)))} samples. Row i of every layer must come from the "
            "same sample, so all need the same number."
        )
    n = counts.pop()
    samples = fold_samples(np.arange(n), folds, seed)
    codes = None
    if labels is not None:
        given_codes = as_labels(labels).numpy()
        if given_codes.shape[0] != n:
            raise InputError(f"There are {given_codes.shape[0]} labels for {n} samples. Pass one label per sample.")
        codes = (given_codes[samples.ids], int(given_codes.max()) + 1)

    def side(name: str, arrays: Mapping[str, Array]) -> Side:
        return Side(name, 0, 0, tuple(arrays), lambda layer: centered(arrays[layer][samples.ids]))

    return Sides(side("teacher", sides[0]), (side("student", sides[1]),), samples, codes)
