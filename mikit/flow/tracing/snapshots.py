"""Measurements of one layer at one phase and of one pair of layers, as tasks that any process can run."""

from __future__ import annotations

import math
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
from mikit.flow.tracing.joining import Run, Samples, read_rows
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
from mikit.functional.labels.linear_probes import label_entropy

__all__ = [
    "Method",
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

# Above this many bytes, the teacher's layers are kept in temporary files that are mapped into memory.
_MOST_IN_MEMORY = 1 << 30


@final
@dataclass(frozen=True)
class Method:
    """How every layer of a trace is measured: samples, folds, probe and noise are the same for all."""

    samples: Samples
    labels: tuple[Array, int] | None
    probe: str
    noise: tuple[float, ...]
    student_noise: float
    reduce: int | None
    plane: tuple[float, ...] = ()

    @cached_property
    def entropy(self) -> float:
        """Entropy of the labels in nats; NaN without labels."""
        return math.nan if self.labels is None else label_entropy(self.labels[0])

    def information(self, rows: Array) -> tuple[RotatedInformation, RotatedInformation] | None:
        """Return label information, and that of permuted labels from one turn of the folds; None without labels."""
        if self.labels is None:
            return None
        codes, classes = self.labels
        parts = [np.arange(fold.start, fold.stop) for fold in self.samples.folds]
        found = rotated_information(rows, codes, parts, classes=classes, probe=self.probe)
        moved = codes[self.samples.shifted()]
        null = rotated_information(rows, moved, parts, classes=classes, probe=self.probe, turns=1)
        return found, null

    def input_information(self, rows: Array, seed: int, device: torch.device | None) -> tuple[NoisyInformation, ...]:
        """Return the information between layer and input at every noise level of the information plane."""
        generator = torch.Generator().manual_seed(seed)
        return noisy_input_information(torch.from_numpy(rows).to(device), self.plane, generator=generator)

    def width(self, width: int) -> int:
        """Return how many features of a layer are used in the comparison with the teacher."""
        return width if self.reduce is None else min(width, self.reduce)

    def reduced(self, rows: Array) -> Array:
        """Return the principal components of a layer that is wider than ``reduce``; other layers unchanged."""
        if self.width(rows.shape[1]) == rows.shape[1]:
            return rows
        assert self.reduce is not None
        return np.asarray(rows @ principal_axes(rows, self.reduce))


@final
@dataclass(frozen=True)
class TeacherLayer:
    """A layer of the teacher's last phase: the activations for cross-products, the factor for everything else."""

    rows: Array | torch.Tensor
    factor: LayerFactor


@final
@dataclass(frozen=True)
class Snapshot:
    """One layer of one network at one phase.

    Attributes:
        width: Number of features of the layer.
        compared: Number of features in the comparison with the teacher.
        information: Label information, and that of labels permuted within the folds; None without labels.
        input_information: Information between layer and input, by noise level; empty if not requested.
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
    """Everything that a task needs besides its place, small enough to be sent to another machine.

    Attributes:
        token: A unique name of this trace, under which a process caches the teacher's layers.
        orders: By run and phase, the row of the store for each sample of the trace.
        records: Where measurements are stored; None for nowhere.
        rows_hash: Hash of the ordered ids and the folds.
        devices: Where products are computed in float64; empty for NumPy.
    """

    token: str
    runs: tuple[Run, ...]
    orders: Mapping[tuple[int, int], Array]
    method: Method
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
        """The seed of sampled noise and trained method: derived from the order of the samples and so from the seed."""
        return int(self.rows_hash[:8], 16) % 2**31

    def fetch(self, what: str, measure: Callable[[], Arrays], places: Sequence[Place], **decides: Any) -> Arrays:
        """Return a measurement of the layers at ``places``, from its record if there is one."""
        if self.records is None:
            return measure()
        contents = [self.runs[i].store.content(layer, phase) for i, phase, layer in places]
        if self.devices and what in ("factor", "pair", "input information"):
            # NumPy multiplies float32 activations in float32, a device in float64: the results get different records.
            decides["arithmetic"] = "device"
        return self.records.fetch(record_key(what, contents=contents, rows=self.rows_hash, **decides), measure)

    def width(self, place: Place) -> int:
        """Return the number of features of a layer."""
        return self.runs[place[0]].store.shape(place[2], place[1])[-1]


@final
class _Layer:
    """One layer at one phase, read and factored on first use: a task whose records all exist reads no activations."""

    def __init__(self, plan: Plan, place: Place, device: torch.device | None) -> None:
        self.plan, self.place, self.device = plan, place, device

    @cached_property
    def rows(self) -> Array:
        position, phase, layer = self.place
        return read_rows(self.plan.runs[position], layer, phase, self.plan.orders[position, phase])

    @cached_property
    def compared(self) -> Array:
        return self.plan.method.reduced(self.rows)

    @cached_property
    def factor(self) -> LayerFactor:
        return factor_layer(self.compared, self.plan.method.samples.folds, device=self.device)

    @cached_property
    def on_device(self) -> torch.Tensor:
        assert self.device is not None
        return device_rows(self.compared, self.device)

    def crossed(self, other: TeacherLayer, order: Array | None = None) -> Array:
        """Return the cross-products with a teacher layer, in another order of this layer's samples if one is given."""
        folds = self.plan.method.samples.folds
        if isinstance(other.rows, torch.Tensor):
            rows = self.on_device if order is None else self.on_device[torch.from_numpy(order).to(self.device)]
            return device_cross_products(rows, other.rows, folds)
        return cross_products(self.compared if order is None else self.compared[order], other.rows, folds)

    def information(self) -> Information | None:
        """Return label information, and that of permuted labels; None without labels."""
        method = self.plan.method
        if method.labels is None:
            return None

        def measure() -> Arrays:
            found = method.information(self.rows)
            assert found is not None
            return information_to(found)

        decides = {"probe": method.probe, "labels": self.plan.labels_hash}
        return information_from(self.plan.fetch("label information", measure, [self.place], **decides))

    def input_information(self) -> tuple[NoisyInformation, ...]:
        """Return the information between layer and input; empty if not requested."""
        plan = self.plan
        levels = plan.method.plane
        if not levels:
            return ()

        def measure() -> Arrays:
            return plane_to(plan.method.input_information(self.rows, plan.noise_seed, self.device))

        return plane_from(plan.fetch("input information", measure, [self.place], noise=list(levels)))


def depth_match(index: int, count: int, others: int) -> int:
    """Return the position among ``others`` layers at the same relative depth as layer ``index`` of ``count``."""
    if count == 1:
        return others - 1
    return round(index / (count - 1) * (others - 1))


def refuse_wide(runs: Sequence[Run], method: Method) -> None:
    """Raise :class:`~mikit.InputError` if a pair of layers is too wide for the number of samples."""
    teacher = runs[0]
    last = teacher.store.phases[-1]
    widest = max(teacher.layers, key=lambda layer: teacher.store.shape(layer, last)[-1])
    width = method.width(teacher.store.shape(widest, last)[-1])
    for run in runs[1:]:
        for layer in run.layers:
            d = method.width(run.store.shape(layer, run.measured[0])[-1])
            try:
                require_rows(len(method.samples.ids), d, width)
            except InputError as cause:
                raise InputError(
                    f"Layer {layer!r} of the student {run.network!r} cannot be compared with the teacher's layer "
                    f"{widest!r}: {cause}"
                ) from cause


_cache: dict[str, dict[tuple[str, torch.device | None], TeacherLayer]] = {}
_cache_lock = threading.Lock()


def forget(token: str) -> None:
    """Remove the teacher's layers of a trace from the cache of this process."""
    with _cache_lock:
        _cache.pop(token, None)


def teacher_layer(plan: Plan, place: Place) -> Snapshot:
    """Measure a layer of the teacher's last phase, and cache what students are compared with."""
    with lent_device(plan.devices) as device:
        own = _Layer(plan, place, device)
        information = own.information()
        width = _cached(plan, place[2], device, own).factor.width
        return Snapshot(plan.width(place), width, information, own.input_information())


def snapshot(plan: Plan, place: Place) -> Snapshot:
    """Measure one layer at one phase and, of a student, compare it with every layer of the teacher's last phase.

    The null, with permuted samples, is measured with the teacher layer at the same relative depth only.
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
    method = plan.method
    decides = {
        "noise": list(method.noise),
        "student_noise": method.student_noise,
        "reduce": method.reduce,
    }
    pairs = {}
    for index, name in enumerate(teacher.layers):
        # Defaults bind the values of this turn of the loop.
        def measure(name: str = name, moved: bool = index == matching) -> Arrays:
            return pair_to(_compared(own, _cached(plan, name, own.device), moved))

        both = [place, (0, plan.last, name)]
        pairs[name] = pair_from(plan.fetch("pair", measure, both, moved=index == matching, **decides))
    return Snapshot(width, method.width(width), information, plane, pairs)


def _cached(plan: Plan, layer: str, device: torch.device | None, own: _Layer | None = None) -> TeacherLayer:
    """Return a teacher layer from the cache of this process; its factor comes from the record if there is one."""
    with _cache_lock:
        # A worker process outlives the traces it took part in, and is not notified when one ends. It keeps the layers
        # of at most two traces and drops the oldest.
        while len(_cache) > 1 and plan.token not in _cache:
            del _cache[next(iter(_cache))]
        ours = _cache.setdefault(plan.token, {})
        if (layer, device) not in ours:
            place = (0, plan.last, layer)
            own = own or _Layer(plan, place, device)
            content = plan.fetch("factor", lambda: factor_to(own.factor), [place], reduce=plan.method.reduce)
            rows = _mapped(plan, own.compared) if device is None else own.on_device
            ours[layer, device] = TeacherLayer(rows, factor_from(content))
        return ours[layer, device]


def _mapped(plan: Plan, rows: Array) -> Array:
    """Return the activations, in a temporary file if all layers together exceed 1 GiB."""
    run = plan.runs[0]
    columns = sum(plan.method.width(run.store.shape(layer, plan.last)[-1]) for layer in run.layers)
    if 8 * rows.shape[0] * columns <= _MOST_IN_MEMORY:
        return rows
    # The mapping keeps the file alive after it is closed, and the system deletes it with the last reference.
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, dtype=rows.dtype, mode="w+", shape=rows.shape)
    mapped[:] = rows
    mapped.flush()
    return mapped


def _compared(own: _Layer, other: TeacherLayer, moved: bool) -> Pair:
    def both(cross: Array) -> tuple[tuple[Recovery, ...], Similarity]:
        noise, student_noise = own.plan.method.noise, own.plan.method.student_noise
        recoveries = recover(own.factor, other.factor, cross, noise=noise, student_noise=student_noise)
        return recoveries, factored_cka(own.factor, other.factor, cross)

    found = both(own.crossed(other))
    if not moved:
        return Pair(*found)
    return Pair(*found, *both(own.crossed(other, own.plan.method.samples.shifted())))
