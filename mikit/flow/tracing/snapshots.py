"""What is measured of one layer at one phase, and of one pair of layers, by tasks that any process can do."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from mikit.core.errors import InputError
from mikit.estimators.labels.label_information import RotatedInformation, rotated_information
from mikit.flow.tracing.joining import Deal, Run, read_rows
from mikit.flow.tracing.records import (
    Arrays,
    Information,
    Pair,
    Records,
    factor_from,
    factor_to,
    information_from,
    information_to,
    pair_from,
    pair_to,
    plane_from,
    plane_to,
    record_key,
)
from mikit.flow.tracing.workers import lent_device
from mikit.functional.flow.information_plane import NoisyInformation, noisy_input_information
from mikit.functional.flow.moments import (
    LayerFactor,
    Similarity,
    cross_products,
    device_cross_products,
    device_rows,
    factor_layer,
    factored_cka,
    principal_axes,
)
from mikit.functional.flow.recovery import Recovery, recover, require_rows

__all__ = [
    "Instruments",
    "Pair",
    "Place",
    "Plan",
    "Snapshot",
    "TeacherLayer",
    "depth_match",
    "forget",
    "refuse_wide",
    "snapshot",
    "teacher_layer",
]

Array = NDArray[Any]
Place = tuple[int, int, str]
"""The run's position (0 for the teacher), the phase and the layer."""

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
    plane: tuple[float, ...] = ()

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

    def told_of_input(self, rows: Array, seed: int, device: torch.device | None) -> tuple[NoisyInformation, ...]:
        """Return what the rows tell of the input at every level of the plane's noise."""
        generator = torch.Generator().manual_seed(seed)
        return noisy_input_information(torch.from_numpy(rows).to(device), self.plane, generator=generator)

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

    rows: Array | torch.Tensor
    factor: LayerFactor


@final
@dataclass(frozen=True)
class Snapshot:
    """One layer of one network at one phase.

    Attributes:
        width: Columns of the layer.
        compared: Columns that entered the comparison with the teacher.
        information: Label information, and that of labels moved within their folds; None without labels.
        input_information: What the layer tells of the input, by noise level; empty where that was not asked for.
        pairs: By teacher layer; empty for the teacher.
    """

    width: int
    compared: int
    information: tuple[RotatedInformation, RotatedInformation] | None
    input_information: tuple[NoisyInformation, ...] = ()
    pairs: Mapping[str, Pair] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Plan:
    """All that a task needs beside its place, small enough to be sent to another machine.

    Attributes:
        token: A name of this trace alone, under which a process keeps the teacher's layers.
        runs: The runs, the teacher's first.
        orders: By run and phase, the row of the store for each row of the trace.
        instruments: How to measure.
        records: Where measurements are kept; None to keep none.
        rows_hash: Hash of the ids in their order and the folds.
        labels_hash: Hash of the labels; None without labels.
        devices: Where products are computed in float64; none for NumPy's.
    """

    token: str
    runs: tuple[Run, ...]
    orders: Mapping[tuple[int, int], Array]
    instruments: Instruments
    records: Records | None
    rows_hash: str
    labels_hash: str | None
    devices: tuple[str, ...] = ()

    @property
    def last(self) -> int:
        """The teacher's last phase, which students are compared with."""
        return self.runs[0].store.phases[-1]

    @property
    def noise_seed(self) -> int:
        """The seed of sampled noise and of trained instruments: decided by the rows' order, and so by the seed."""
        return int(self.rows_hash[:8], 16) % 2**31

    def fetch(self, what: str, measure: Callable[[], Arrays], places: Sequence[Place], **decides: Any) -> Arrays:
        """Return a measurement of the layers at ``places``, from its record where there is one."""
        if self.records is None:
            return measure()
        contents = [self.runs[i].store.content(layer, phase) for i, phase, layer in places]
        if self.devices and what in ("factor", "pair", "input information"):
            decides["arithmetic"] = "device"  # float32 rows are multiplied in float32 without one
        return self.records.fetch(record_key(what, contents=contents, rows=self.rows_hash, **decides), measure)

    def width(self, place: Place) -> int:
        """Return the number of columns of a layer."""
        return self.runs[place[0]].store.shape(place[2], place[1])[-1]


@final
class _Layer:
    """One layer at one phase, read and factored when it is first asked for."""

    def __init__(self, plan: Plan, place: Place, device: torch.device | None) -> None:
        self.plan, self.place, self.device = plan, place, device

    @cached_property
    def rows(self) -> Array:
        position, phase, layer = self.place
        return read_rows(self.plan.runs[position], layer, phase, self.plan.orders[position, phase])

    @cached_property
    def compared(self) -> Array:
        return self.plan.instruments.reduced(self.rows)

    @cached_property
    def factor(self) -> LayerFactor:
        return factor_layer(self.compared, self.plan.instruments.deal.folds, device=self.device)

    @cached_property
    def on_device(self) -> torch.Tensor:
        assert self.device is not None
        return device_rows(self.compared, self.device)

    def crossed(self, other: TeacherLayer, order: Array | None = None) -> Array:
        """Return the cross-products with a teacher layer, with own rows in another order if one is given."""
        folds = self.plan.instruments.deal.folds
        if isinstance(other.rows, torch.Tensor):
            rows = self.on_device if order is None else self.on_device[torch.from_numpy(order).to(self.device)]
            return device_cross_products(rows, other.rows, folds)
        return cross_products(self.compared if order is None else self.compared[order], other.rows, folds)

    def information(self) -> Information | None:
        """Return label information, and that of moved labels; None without labels."""
        instruments = self.plan.instruments
        if instruments.labels is None:
            return None

        def measure() -> Arrays:
            found = instruments.information(self.rows)
            assert found is not None
            return information_to(found)

        decides = {"probe": instruments.probe, "labels": self.plan.labels_hash}
        return information_from(self.plan.fetch("label information", measure, [self.place], **decides))

    def input_information(self) -> tuple[NoisyInformation, ...]:
        """Return what the layer tells of the input; empty where that was not asked for."""
        plan = self.plan
        levels = plan.instruments.plane
        if not levels:
            return ()

        def measure() -> Arrays:
            return plane_to(plan.instruments.told_of_input(self.rows, plan.noise_seed, self.device))

        return plane_from(plan.fetch("input information", measure, [self.place], noise=list(levels)))


def depth_match(index: int, count: int, others: int) -> int:
    """Return which of ``others`` layers lies at the same relative depth as layer ``index`` of ``count``."""
    if count == 1:
        return others - 1
    return round(index / (count - 1) * (others - 1))


def refuse_wide(runs: Sequence[Run], instruments: Instruments) -> None:
    """Raise :class:`~mikit.InputError` if a pair of layers is too wide for the number of rows."""
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


_kept: dict[str, dict[tuple[str, torch.device | None], TeacherLayer]] = {}
_keeping = threading.Lock()


def forget(token: str) -> None:
    """Let go of the teacher's layers that this process keeps for a trace."""
    with _keeping:
        _kept.pop(token, None)


def teacher_layer(plan: Plan, place: Place) -> Snapshot:
    """Measure a layer of the teacher's last phase; this process keeps what students are compared with."""
    with lent_device(plan.devices) as device:
        own = _Layer(plan, place, device)
        information = own.information()
        width = _held(plan, place[2], device, own).factor.width
        return Snapshot(plan.width(place), width, information, own.input_information())


def snapshot(plan: Plan, place: Place) -> Snapshot:
    """Measure one layer at one phase and, of a student, compare it with every layer of the teacher's last phase.

    The comparison on moved rows is made with the teacher layer at the same relative depth only.
    """
    with lent_device(plan.devices) as device:
        return _measured(plan, _Layer(plan, place, device))


def _measured(plan: Plan, own: _Layer) -> Snapshot:
    place = own.place
    information = own.information()
    width = plan.width(place)
    plane = own.input_information()
    if place[0] == 0:
        return Snapshot(width, width, information, plane)
    run, teacher = plan.runs[place[0]], plan.runs[0]
    matching = depth_match(run.layers.index(place[2]), len(run.layers), len(teacher.layers))
    instruments = plan.instruments
    decides = {
        "noise": list(instruments.noise),
        "student_noise": instruments.student_noise,
        "reduce": instruments.reduce,
    }
    pairs = {}
    for index, name in enumerate(teacher.layers):

        def measure(name: str = name, moved: bool = index == matching) -> Arrays:
            return pair_to(_compared(own, _held(plan, name, own.device), moved))

        both = [place, (0, plan.last, name)]
        pairs[name] = pair_from(plan.fetch("pair", measure, both, moved=index == matching, **decides))
    return Snapshot(width, instruments.width(width), information, plane, pairs)


def _held(plan: Plan, layer: str, device: torch.device | None, own: _Layer | None = None) -> TeacherLayer:
    """Return what this process keeps of a teacher layer; its factor comes from the record where there is one."""
    with _keeping:
        while len(_kept) > 1 and plan.token not in _kept:  # a worker outlives the traces it was part of
            del _kept[next(iter(_kept))]
        ours = _kept.setdefault(plan.token, {})
        if (layer, device) not in ours:
            place = (0, plan.last, layer)
            own = own or _Layer(plan, place, device)
            content = plan.fetch("factor", lambda: factor_to(own.factor), [place], reduce=plan.instruments.reduce)
            rows = _in_reach(plan, own.compared) if device is None else own.on_device
            ours[layer, device] = TeacherLayer(rows, factor_from(content))
        return ours[layer, device]


def _in_reach(plan: Plan, rows: Array) -> Array:
    """Return the rows, in a temporary file where those of all layers together are more than 1 GiB."""
    run = plan.runs[0]
    columns = sum(plan.instruments.width(run.store.shape(layer, plan.last)[-1]) for layer in run.layers)
    if 8 * rows.shape[0] * columns <= _HELD_IN_MEMORY:
        return rows
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, dtype=rows.dtype, mode="w+", shape=rows.shape)
    mapped[:] = rows
    mapped.flush()
    return mapped


def _compared(own: _Layer, other: TeacherLayer, moved: bool) -> Pair:
    def both(cross: Array) -> tuple[tuple[Recovery, ...], Similarity]:
        noise, student_noise = own.plan.instruments.noise, own.plan.instruments.student_noise
        recoveries = recover(own.factor, other.factor, cross, noise=noise, student_noise=student_noise)
        return recoveries, factored_cka(own.factor, other.factor, cross)

    found = both(own.crossed(other))
    if not moved:
        return Pair(*found)
    return Pair(*found, *both(own.crossed(other, own.plan.instruments.deal.shifted())))
