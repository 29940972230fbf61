"""Additional estimators in a trace: for chosen pairs of layers, or for the labels at every layer."""

from __future__ import annotations

import re
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
from mikit.flow.tracing.snapshots import Method, Place, Plan, Snapshot, depth_match
from mikit.measuring.pipeline import measure

__all__ = [
    "ExtraEstimators",
    "ExtraTask",
    "extra_estimators",
    "extra_rows",
    "extra_tasks",
    "layout_removed",
    "measure_extra",
    "screened_out",
    "screened_partners",
    "screening_level",
]


_USUAL_NOISE = 0.3


def screening_level(noise: tuple[float, ...]) -> float:
    """Return the noise level whose share selects pairs: the one nearest to 0.3.

    Example:
        >>> screening_level((0.1, 0.3, 1.0)), screening_level((2.0, 1.0))
        (0.3, 1.0)
    """
    return min(noise, key=lambda level: abs(level - _USUAL_NOISE))


def screened_partners(plan: Plan, measured: Mapping[Place, Snapshot]) -> dict[tuple[int, str], tuple[str, ...]]:
    """Return by run and student layer the teacher layers that an expensive estimator is run on.

    They are the one at the same relative depth, and the one of which the student layer recovers the largest share at
    its last measured phase. All phases share this choice, so that a pair has a curve and an untrained baseline.
    """
    found: dict[tuple[int, str], tuple[str, ...]] = {}
    names = plan.runs[0].layers
    level = plan.method.noise.index(screening_level(plan.method.noise))
    for position, run in enumerate(plan.runs[1:], 1):
        for index, layer in enumerate(run.layers):
            chosen = [names[depth_match(index, len(run.layers), len(names))]]
            known = [phase for phase in run.measured if (position, phase, layer) in measured]
            if known:
                pairs = measured[position, known[-1], layer].pairs
                shares = {name: pair.recoveries[level].share for name, pair in pairs.items()}
                shares = {name: share for name, share in shares.items() if share == share}  # NaN: a constant layer
                if shares:
                    chosen.append(max(shares, key=lambda name: shares[name]))
            found[position, layer] = tuple(name for name in names if name in chosen)
    return found


AnyEstimator = Estimator | type[Estimator]
ExtraTask = tuple[Place, str, int]
"""A layer, the teacher layer (empty for labels), and the position of the estimator."""

SAME_DEPTH, ALL, SCREEN = "same depth", "all", "screen"


@final
@dataclass(frozen=True)
class ExtraEstimators:
    """Additional estimators, and the layer pairs they are run on.

    Attributes:
        estimators: Estimators or their classes.
        pairs: ``"same depth"``, ``"all"``, ``"screen"``, or pairs of a student layer and a teacher layer.
    """

    estimators: tuple[AnyEstimator, ...]
    pairs: str | tuple[tuple[str, str], ...]

    def described(self) -> list[str]:
        """Return a description of each estimator that determines its numbers."""
        return [_described(one) for one in self.estimators]


def extra_estimators(
    given: Any, pairs: str | Sequence[Sequence[str]], runs: Sequence[Run], method: Method
) -> ExtraEstimators:
    """Return the requested estimators and their pairs; refuse what cannot be measured.

    ``given`` is None, an estimator, its class or its name, or a list of these.
    """
    listed = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    found = tuple(estimator_named(one) if isinstance(one, str) else one for one in listed)
    names = [one.name for one in found]
    for one, name in zip(found, names, strict=True):
        if names.count(name) > 1 or name in QUANTITIES:
            raise InputError(
                f'pairs_with contains "{name}" twice, or it is always part of a trace. Name other estimators; run a '
                "separate trace for the same estimator with other settings."
            )
        if one.explains == "labels" and method.labels is None:
            raise InputError(f'"{name}" needs labels. Pass labels, or store them with the activations.')
    if not found and pairs != SAME_DEPTH:
        raise InputError(
            f"pairs is {pairs!r}, but pairs_with names no estimator for them; recovered share and CKA are always "
            "measured for every pair. Name an estimator with pairs_with, or leave out pairs."
        )
    extra = ExtraEstimators(found, _pairs_of(pairs, runs))
    for one in found:
        if issubclass(_class(one), Discrepancy):
            _require_one_space(one, extra, runs, method)
    return extra


def _pairs_of(pairs: str | Sequence[Sequence[str]], runs: Sequence[Run]) -> str | tuple[tuple[str, str], ...]:
    """Return the validated choice of pairs."""
    if isinstance(pairs, str):
        if pairs not in (SAME_DEPTH, ALL, SCREEN):
            raise InputError(
                f'pairs is "{pairs}"; use "{SAME_DEPTH}", "{ALL}", "{SCREEN}", or a list of (student layer, teacher '
                "layer)."
            )
        return pairs
    wanted = tuple((str(own), str(other)) for own, other in pairs)
    own_layers = {layer for run in runs[1:] for layer in run.layers}
    for own, other in wanted:
        if own not in own_layers or other not in runs[0].layers:
            raise InputError(
                f"pairs contains ({own!r}, {other!r}), but the students' layers are {', '.join(sorted(own_layers))} "
                f"and the teacher's {', '.join(runs[0].layers)}. The student's layer comes first."
            )
    return wanted


def extra_tasks(plan: Plan, extra: ExtraEstimators, order: Sequence[Place]) -> list[ExtraTask]:
    """Return what to measure, in the order of the given layers; label estimators include the teacher's layers."""
    found: list[ExtraTask] = []
    teacher = [(0, plan.last, layer) for layer in plan.runs[0].layers]
    for index, one in enumerate(extra.estimators):
        for place in [*teacher, *order]:
            if one.explains == "labels":
                found.append((place, "", index))
            elif place[0]:
                found += [(place, name, index) for name in _partners(plan.runs, place, extra)]
    return found


def screened_out(
    plan: Plan, extra: ExtraEstimators, places: Sequence[ExtraTask], measured: Mapping[Place, Snapshot]
) -> dict[ExtraTask, str]:
    """Return the tasks that ``pairs="screen"`` leaves out, with the reason."""
    if extra.pairs != SCREEN:
        return {}
    partners = screened_partners(plan, measured)
    level = screening_level(plan.method.noise)
    found = {}
    for task in places:
        place, other, _ = task
        kept = partners.get((place[0], place[2]), ())
        if other and other not in kept:
            found[task] = (
                f"not measured: by the recovered share at noise {level:g}, this layer is compared only with "
                f'{" and ".join(map(repr, kept))}; trace with pairs="all" to measure every pair'
            )
    return found


def measure_extra(plan: Plan, extra: ExtraEstimators, task: ExtraTask) -> Measurement:
    """Run one estimator on one layer or pair; take the result from its record if there is one."""
    place, other, index = task
    estimator = extra.estimators[index]
    method = plan.method
    places = [place, (0, plan.last, other)] if other else [place]

    def made() -> Arrays:
        seed, folds = plan.noise_seed, len(method.samples.folds)
        x = _rows(plan, place, estimator)
        if not other:
            assert method.labels is not None
            labels = torch.from_numpy(method.labels[0])
            return measurement_to(measure(x, None, estimator, labels=labels, folds=folds, seed=seed))
        return measurement_to(measure(x, _rows(plan, places[1], estimator), estimator, folds=folds, seed=seed))

    decides: dict[str, Any] = {"instrument": _described(estimator), "reduce": method.reduce}
    if not other:
        decides["labels"] = plan.labels_hash
    return measurement_from(plan.fetch("instrument", made, places, **decides))


def extra_rows(
    plan: Plan,
    extra: ExtraEstimators,
    tasks: Sequence[ExtraTask],
    found: Mapping[ExtraTask, Measurement],
    reasons: Mapping[ExtraTask, str],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each task, measured or skipped; ``reasons`` contains the reason of the skipped ones."""
    for task in tasks:
        place, other, index = task
        position, phase, layer = place
        run, teacher = plan.runs[position], plan.runs[0]
        if phase not in run.phases:
            continue  # phase 0 is measured even if it is not reported, as the untrained baseline
        estimator, one = extra.estimators[index], found.get(task)
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
            "quantity": estimator.name,
            "readout": run.store.readout(layer),
            "n": len(plan.method.samples.ids),
            "d_x": plan.method.width(width) if other else width,
            "d_y": plan.method.width(plan.width((0, plan.last, other))) if other else _classes(plan),
            "unit": getattr(estimator, "unit", ""),
            "kind": estimator.kind,
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


def _rows(plan: Plan, place: Place, estimator: AnyEstimator) -> torch.Tensor:
    position, phase, layer = place
    # A discrepancy compares distributions, and their means are part of them.
    center = not issubclass(_class(estimator), Discrepancy)
    rows = read_rows(plan.runs[position], layer, phase, plan.orders[position, phase], center=center)
    if estimator.explains != "labels":
        rows = plan.method.reduced(rows)
    return torch.from_numpy(rows)


def _partners(runs: Sequence[Run], place: Place, extra: ExtraEstimators) -> list[str]:
    run, teacher = runs[place[0]], runs[0]
    if extra.pairs in (ALL, SCREEN):
        return list(teacher.layers)
    if isinstance(extra.pairs, str):
        return [teacher.layers[depth_match(run.layers.index(place[2]), len(run.layers), len(teacher.layers))]]
    return [other for own, other in extra.pairs if own == place[2]]


def _require_one_space(one: AnyEstimator, extra: ExtraEstimators, runs: Sequence[Run], method: Method) -> None:
    """Refuse to compare the distributions of layers with different features."""
    if not getattr(one, "same_width", True):
        return
    if method.reduce is not None:
        raise InputError(
            f'"{one.name}" compares the distributions of two layers in the same space, but reduce={method.reduce} '
            "replaces each layer by its own principal components. Leave out reduce, or run a separate trace for the "
            "discrepancy."
        )
    last = runs[0].store.phases[-1]
    for position, run in enumerate(runs[1:], 1):
        for layer in run.layers:
            for other in _partners(runs, (position, run.measured[0], layer), extra):
                own = run.store.shape(layer, run.measured[0])[-1]
                theirs = runs[0].store.shape(other, last)[-1]
                if own != theirs:
                    raise InputError(
                        f'"{one.name}" compares distributions in the same space, but layer {layer!r} of the student '
                        f"{run.network!r} has {own} features and the teacher's layer {other!r} has {theirs}. Name "
                        "layers of equal width with pairs=."
                    )


def _class(one: AnyEstimator) -> type[Estimator]:
    return one if isinstance(one, type) else type(one)


def layout_removed(description: str) -> str:
    """Name a class of mikit by its package alone: a run must not change if a module inside of a package moves.

    Example:
        >>> layout_removed("mikit.estimators.gaussian.mutual_information.GaussianMI by default")
        'mikit.estimators.GaussianMI by default'
        >>> layout_removed("laboratory.estimators.gaussian.GaussianMI by default")
        'laboratory.estimators.gaussian.GaussianMI by default'
    """
    return re.sub(r"^(mikit\.[a-z_]+\.)(?:[a-z_0-9]+\.)*", r"\1", description)


def _described(one: AnyEstimator) -> str:
    where = layout_removed(f"{_class(one).__module__}.{_class(one).__qualname__}")
    return f"{where} by default" if isinstance(one, type) else f"{where}: {one.describe()}"


def _classes(plan: Plan) -> int:
    return 0 if plan.method.labels is None else plan.method.labels[1]
