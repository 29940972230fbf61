"""What is measured of one layer at one phase, and of one pair of layers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mikit.errors import InputError
from mikit.estimators.labels import RotatedInformation, rotated_information
from mikit.flow.joining import Deal, Run, read_rows
from mikit.functional.moments import LayerFactor, Similarity, cross_products, factor_layer, factored_cka, principal_axes
from mikit.functional.recovery import Recovery, recover, require_rows

__all__ = ["Instruments", "Pair", "Snapshot", "TeacherLayer", "depth_match", "refuse_wide", "snapshot", "teacher_layer"]

Array = NDArray[Any]

# Teacher rows beyond this many bytes are kept in a temporary file that is mapped into memory.
_HELD_IN_MEMORY = 1 << 30


@final
@dataclass(frozen=True)
class Instruments:
    """How every layer of a trace is measured: the same rows, folds, probe and noise for all."""

    deal: Deal
    labels: tuple[Array, int] | None
    probe: str
    noise: tuple[float, ...]
    student_noise: float
    reduce: int | None

    def information(self, rows: Array) -> tuple[RotatedInformation, RotatedInformation] | None:
        """Return label information, and that of moved labels from one fold's turn; None without labels."""
        if self.labels is None:
            return None
        codes, classes = self.labels
        parts = [np.arange(fold.start, fold.stop) for fold in self.deal.folds]
        found = rotated_information(rows, codes, parts, classes=classes, probe=self.probe)
        moved = codes[self.deal.shifted()]
        null = rotated_information(rows, moved, parts, classes=classes, probe=self.probe, turns=1)
        return found, null

    def width(self, width: int) -> int:
        """Return how many columns of a layer enter the comparison with the teacher."""
        return width if self.reduce is None else min(width, self.reduce)

    def reduced(self, rows: Array) -> Array:
        """Return the rows' principal components where the layer is wider than asked for."""
        if self.width(rows.shape[1]) == rows.shape[1]:
            return rows
        assert self.reduce is not None
        return np.asarray(rows @ principal_axes(rows, self.reduce))


@final
@dataclass(frozen=True)
class TeacherLayer:
    """A layer of the teacher's last phase: its rows for the cross-products, its factor for everything else."""

    name: str
    index: int
    rows: Array
    factor: LayerFactor


@final
@dataclass(frozen=True)
class Pair:
    """A student layer against a teacher layer; the nulls are None where they were not measured."""

    recoveries: tuple[Recovery, ...]
    similarity: Similarity
    null_recoveries: tuple[Recovery, ...] | None = None
    null_similarity: Similarity | None = None


@final
@dataclass(frozen=True)
class Snapshot:
    """One layer of one network at one phase.

    Attributes:
        width: Columns of the layer.
        compared: Columns that entered the comparison with the teacher.
        information: Label information, and that of labels moved within their folds; None without labels.
        pairs: By teacher layer; empty for the teacher.
    """

    width: int
    compared: int
    information: tuple[RotatedInformation, RotatedInformation] | None
    pairs: Mapping[str, Pair] = field(default_factory=dict)


def depth_match(index: int, count: int, others: int) -> int:
    """Return which of ``others`` layers lies at the same relative depth as layer ``index`` of ``count``."""
    if count == 1:
        return others - 1
    return round(index / (count - 1) * (others - 1))


def refuse_wide(runs: Sequence[Run], instruments: Instruments) -> None:
    """Raise :class:`~mikit.errors.InputError` if a pair of layers is too wide for the number of rows."""
    teacher = runs[0]
    last = teacher.store.phases[-1]
    widest = max(teacher.layers, key=lambda layer: teacher.store.shape(layer, last)[-1])
    width = instruments.width(teacher.store.shape(widest, last)[-1])
    for run in runs[1:]:
        for layer in run.layers:
            d = instruments.width(run.store.shape(layer, run.measured[0])[-1])
            try:
                require_rows(len(instruments.deal.ids), d, width)
            except InputError as cause:
                raise InputError(
                    f"Layer {layer!r} of the student {run.network!r} cannot be compared with the teacher's layer "
                    f"{widest!r}: {cause}"
                ) from cause


def teacher_layer(
    run: Run, layer: str, order: Array, instruments: Instruments, held: int
) -> tuple[TeacherLayer, Snapshot]:
    """Measure a layer of the teacher's last phase and keep what the students are compared with.

    Args:
        run: The teacher.
        layer: The layer.
        order: Row of the store for each row of the trace.
        instruments: How to measure.
        held: Bytes of all the teacher's layers together; above 1 GiB they are kept in a temporary file.
    """
    rows = read_rows(run, layer, run.store.phases[-1], order)
    information = instruments.information(rows)
    compared = instruments.reduced(rows)
    factor = factor_layer(compared, instruments.deal.folds)
    if held > _HELD_IN_MEMORY:
        with tempfile.TemporaryFile() as file:
            mapped = np.memmap(file, dtype=compared.dtype, mode="w+", shape=compared.shape)
        mapped[:] = compared
        mapped.flush()
        compared = mapped
    kept = TeacherLayer(layer, run.layers.index(layer), compared, factor)
    return kept, Snapshot(rows.shape[1], compared.shape[1], information)


def snapshot(
    run: Run, layer: str, phase: int, order: Array, instruments: Instruments, teacher: Sequence[TeacherLayer]
) -> Snapshot:
    """Measure one layer at one phase and compare it with every layer in ``teacher`` (none for the teacher itself).

    The comparison on moved rows is made with the teacher layer at the same relative depth only.
    """
    rows = read_rows(run, layer, phase, order)
    information = instruments.information(rows)
    if not teacher:
        return Snapshot(rows.shape[1], rows.shape[1], information)
    width = rows.shape[1]
    rows = instruments.reduced(rows)
    folds = instruments.deal.folds
    factor = factor_layer(rows, folds)
    matching = depth_match(run.layers.index(layer), len(run.layers), len(teacher))
    pairs = {}
    for other in teacher:
        recoveries, similarity = _compared(factor, other, cross_products(rows, other.rows, folds), instruments)
        if other.index != matching:
            pairs[other.name] = Pair(recoveries, similarity)
            continue
        moved = cross_products(rows[instruments.deal.shifted()], other.rows, folds)
        pairs[other.name] = Pair(recoveries, similarity, *_compared(factor, other, moved, instruments))
    return Snapshot(width, rows.shape[1], information, pairs)


def _compared(
    student: LayerFactor, teacher: TeacherLayer, cross: Array, instruments: Instruments
) -> tuple[tuple[Recovery, ...], Similarity]:
    recoveries = recover(
        student, teacher.factor, cross, noise=instruments.noise, student_noise=instruments.student_noise
    )
    return recoveries, factored_cka(student, teacher.factor, cross)
