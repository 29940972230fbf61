"""Other instruments in a trace: for chosen pairs of layers, or for the labels at every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from mikit.core.errors import InputError
from mikit.core.measurement import Measurement
from mikit.estimators import estimator_named
from mikit.estimators.base import Estimator
from mikit.estimators.discrepancy import Discrepancy
from mikit.flow.result import QUANTITIES, SKIPPED
from mikit.flow.tracing.joining import Run, read_rows
from mikit.flow.tracing.records import Arrays, measurement_from, measurement_to
from mikit.flow.tracing.snapshots import Instruments, Place, Plan, Snapshot, depth_match
from mikit.measuring.pipeline import measure

__all__ = [
    "Chosen",
    "ChosenPlace",
    "chosen_instruments",
    "chosen_places",
    "chosen_rows",
    "measure_chosen",
    "screened_out",
    "screened_partners",
    "screening_level",
]


_USUAL_NOISE = 0.3


def screening_level(noise: tuple[float, ...]) -> float:
    """Return the noise level whose share decides: the one nearest to 0.3.

    Example:
        >>> screening_level((0.1, 0.3, 1.0)), screening_level((2.0, 1.0))
        (0.3, 1.0)
    """
    return min(noise, key=lambda level: abs(level - _USUAL_NOISE))


def screened_partners(plan: Plan, measured: Mapping[Place, Snapshot]) -> dict[tuple[int, str], tuple[str, ...]]:
    """Return by run and student layer the teacher layers that a costly instrument reads, at every phase.

    They are the one at the same relative depth, and the one of which the student layer recovers the largest share at
    its last phase that was measured. One choice for all phases, so that a pair has a curve and a floor.
    """
    found: dict[tuple[int, str], tuple[str, ...]] = {}
    names = plan.runs[0].layers
    level = plan.instruments.noise.index(screening_level(plan.instruments.noise))
    for position, run in enumerate(plan.runs[1:], 1):
        for index, layer in enumerate(run.layers):
            chosen = [names[depth_match(index, len(run.layers), len(names))]]
            known = [phase for phase in run.measured if (position, phase, layer) in measured]
            if known:
                pairs = measured[position, known[-1], layer].pairs
                shares = {name: pair.recoveries[level].share for name, pair in pairs.items()}
                shares = {name: share for name, share in shares.items() if share == share}  # a dead layer has none
                if shares:
                    chosen.append(max(shares, key=lambda name: shares[name]))
            found[position, layer] = tuple(name for name in names if name in chosen)
    return found


Instrument = Estimator | type[Estimator]
ChosenPlace = tuple[Place, str, int]
"""A layer, the teacher layer (empty for labels), and which of the instruments."""

SAME_DEPTH, ALL, SCREEN = "same depth", "all", "screen"


@final
@dataclass(frozen=True)
class Chosen:
    """Instruments beside the defaults, and the pairs of layers they read.

    Attributes:
        instruments: Instruments or their classes.
        pairs: ``"same depth"``, ``"all"``, ``"screen"``, or pairs of a student layer and a teacher layer.
    """

    instruments: tuple[Instrument, ...]
    pairs: str | tuple[tuple[str, str], ...]

    def described(self) -> list[str]:
        """Return what decides the numbers of each instrument."""
        return [_described(one) for one in self.instruments]


def chosen_instruments(
    given: Any, pairs: str | Sequence[Sequence[str]], runs: Sequence[Run], instruments: Instruments
) -> Chosen:
    """Return the instruments that were asked for and their pairs, refusing what cannot be measured.

    Args:
        given: None, or an instrument, its class or its name, or several of them.
        pairs: Which pairs of layers.
        runs: The runs, the teacher's first.
        instruments: The trace's own.

    Raises:
        InputError: If an instrument does not exist, stands twice, is among the defaults, reads labels where there are
            none, or compares laws of layers of different widths or reduced ones; or if a pair names no layer.
    """
    listed = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    found = tuple(estimator_named(one) if isinstance(one, str) else one for one in listed)
    names = [one.name for one in found]
    for one, name in zip(found, names, strict=True):
        if names.count(name) > 1 or name in QUANTITIES:
            raise InputError(
                f'pairs_with names "{name}", which is traced anyway or stands there twice. Name other instruments; the '
                "same one with other settings belongs in a trace of its own."
            )
        if one.explains == "labels" and instruments.labels is None:
            raise InputError(f'"{name}" explains labels, and there are none. Pass labels, or set those of the stores.')
    if not found and pairs != SAME_DEPTH:
        raise InputError(
            f"pairs is {pairs!r}, but no instrument reads them: the defaults compare every pair of layers. Name "
            "one with pairs_with (--pairs-with), or leave out pairs."
        )
    wanted: str | tuple[tuple[str, str], ...]
    if isinstance(pairs, str):
        if pairs not in (SAME_DEPTH, ALL, SCREEN):
            raise InputError(
                f'pairs is "{pairs}"; use "{SAME_DEPTH}", "{ALL}", "{SCREEN}", or a list of (student, teacher) layers.'
            )
        wanted = pairs
    else:
        wanted = tuple((str(own), str(other)) for own, other in pairs)
        own_layers = {layer for run in runs[1:] for layer in run.layers}
        for own, other in wanted:
            if own not in own_layers or other not in runs[0].layers:
                raise InputError(
                    f"pairs names ({own!r}, {other!r}), but the students' layers are {sorted(own_layers)} and the "
                    f"teacher's {list(runs[0].layers)}. The student's layer comes first."
                )
    chosen = Chosen(found, wanted)
    for one in found:
        if issubclass(_class(one), Discrepancy):
            _require_one_space(one, chosen, runs, instruments)
    return chosen


def chosen_places(plan: Plan, chosen: Chosen, order: Sequence[Place]) -> list[ChosenPlace]:
    """Return what to measure, in the order of the layers given; labels are asked about at the teacher's layers too."""
    found: list[ChosenPlace] = []
    teacher = [(0, plan.last, layer) for layer in plan.runs[0].layers]
    for index, one in enumerate(chosen.instruments):
        for place in [*teacher, *order]:
            if one.explains == "labels":
                found.append((place, "", index))
            elif place[0]:
                found += [(place, name, index) for name in _partners(plan.runs, place, chosen)]
    return found


def screened_out(
    plan: Plan, chosen: Chosen, places: Sequence[ChosenPlace], measured: Mapping[Place, Snapshot]
) -> dict[ChosenPlace, str]:
    """Return which places the cheap share says nothing for, with the reason; none unless that was asked for."""
    if chosen.pairs != SCREEN:
        return {}
    partners = screened_partners(plan, measured)
    level = screening_level(plan.instruments.noise)
    found = {}
    for task in places:
        place, other, _ = task
        kept = partners.get((place[0], place[2]), ())
        if other and other not in kept:
            found[task] = (
                f"not measured: by the recovered share at noise {level:g} this layer goes with "
                f'{" or ".join(map(repr, kept))}, and only that is read; trace with pairs="all" to read every pair'
            )
    return found


def measure_chosen(plan: Plan, chosen: Chosen, task: ChosenPlace) -> Measurement:
    """Measure one layer with one instrument, from its record where there is one."""
    place, other, index = task
    instrument = chosen.instruments[index]
    instruments = plan.instruments
    places = [place, (0, plan.last, other)] if other else [place]

    def made() -> Arrays:
        seed, folds = plan.noise_seed, len(instruments.deal.folds)
        x = _rows(plan, place, instrument)
        if not other:
            assert instruments.labels is not None
            labels = torch.from_numpy(instruments.labels[0])
            return measurement_to(measure(x, None, instrument, labels=labels, folds=folds, seed=seed))
        return measurement_to(measure(x, _rows(plan, places[1], instrument), instrument, folds=folds, seed=seed))

    decides: dict[str, Any] = {"instrument": _described(instrument), "reduce": instruments.reduce}
    if not other:
        decides["labels"] = plan.labels_hash
    return measurement_from(plan.fetch("instrument", made, places, **decides))


def chosen_rows(
    plan: Plan,
    chosen: Chosen,
    tasks: Sequence[ChosenPlace],
    found: Mapping[ChosenPlace, Measurement],
    reasons: Mapping[ChosenPlace, str],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each task, measured or skipped; ``reasons`` say why one was skipped."""
    for task in tasks:
        place, other, index = task
        position, phase, layer = place
        run, teacher = plan.runs[position], plan.runs[0]
        if phase not in run.phases:
            continue  # phase 0 is measured in any case, as the floor of the others
        instrument, one = chosen.instruments[index], found.get(task)
        before = found.get(((position, 0, layer), other, index))
        width = plan.width(place)
        row: dict[str, Any] = {
            "network": run.network,
            "role": run.role,
            "seed": run.seed,
            "phase": phase,
            "layer": layer,
            "layer_index": run.layers.index(layer),
            "teacher_layer": other,
            "teacher_layer_index": teacher.layers.index(other) if other else -1,
            "teacher_phase": plan.last if other else -1,
            "quantity": instrument.name,
            "readout": run.store.readout(layer),
            "n": len(plan.instruments.deal.ids),
            "d_x": plan.instruments.width(width) if other else width,
            "d_y": plan.instruments.width(plan.width((0, plan.last, other))) if other else _classes(plan),
            "unit": getattr(instrument, "unit", ""),
            "kind": instrument.kind,
            "probe": "",
        }
        if one is None:
            yield {**row, "value": float("nan"), "verdict": SKIPPED, "reasons": reasons[task]}
            continue
        low, high = one.interval
        yield {
            **row,
            "value": one.value,
            "unit": one.unit,
            "kind": one.kind,
            "low": low,
            "high": high,
            "standard_error": float("nan") if one.standard_error is None else one.standard_error,
            "ceiling": float("nan") if one.ceiling is None else one.ceiling,
            "untrained": float("nan") if before is None else before.value,
            "null": float("nan") if one.null is None else one.null.mean,
            "probe": one.estimator,
            "verdict": one.verdict,
            "reasons": "; ".join(one.reasons),
        }


def _rows(plan: Plan, place: Place, instrument: Instrument) -> torch.Tensor:
    position, phase, layer = place
    # A discrepancy compares laws, and where they lie is part of them.
    centre = not issubclass(_class(instrument), Discrepancy)
    rows = read_rows(plan.runs[position], layer, phase, plan.orders[position, phase], centre=centre)
    if instrument.explains != "labels":
        rows = plan.instruments.reduced(rows)
    return torch.from_numpy(rows)


def _partners(runs: Sequence[Run], place: Place, chosen: Chosen) -> list[str]:
    run, teacher = runs[place[0]], runs[0]
    if chosen.pairs in (ALL, SCREEN):
        return list(teacher.layers)
    if isinstance(chosen.pairs, str):
        return [teacher.layers[depth_match(run.layers.index(place[2]), len(run.layers), len(teacher.layers))]]
    return [other for own, other in chosen.pairs if own == place[2]]


def _require_one_space(one: Instrument, chosen: Chosen, runs: Sequence[Run], instruments: Instruments) -> None:
    """Refuse to compare laws that do not live in one space."""
    if not getattr(one, "same_width", True):
        return
    if instruments.reduce is not None:
        raise InputError(
            f'"{one.name}" compares the laws of two layers in one space, but reduce={instruments.reduce} turns each '
            "layer into its own principal axes. Leave out reduce, or trace the discrepancy by itself."
        )
    last = runs[0].store.phases[-1]
    for position, run in enumerate(runs[1:], 1):
        for layer in run.layers:
            for other in _partners(runs, (position, run.measured[0], layer), chosen):
                own = run.store.shape(layer, run.measured[0])[-1]
                theirs = runs[0].store.shape(other, last)[-1]
                if own != theirs:
                    raise InputError(
                        f'"{one.name}" compares laws in one space, but layer {layer!r} of the student {run.network!r} '
                        f"has {own} columns and the teacher's layer {other!r} has {theirs}. Choose pairs of one width "
                        "with pairs=[(student layer, teacher layer), ...]."
                    )


def _class(one: Instrument) -> type[Estimator]:
    return one if isinstance(one, type) else type(one)


def _described(one: Instrument) -> str:
    where = f"{_class(one).__module__}.{_class(one).__qualname__}"
    return f"{where} by default" if isinstance(one, type) else f"{where}: {one.describe()}"


def _classes(plan: Plan) -> int:
    return 0 if plan.instruments.labels is None else plan.instruments.labels[1]
