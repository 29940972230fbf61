"""Matching student layers to teacher layers by several rules, each with its margin and the error of the margin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mikit.activations import ActivationStore
from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.provenance import library_versions
from mikit.estimators.labels.label_information import rotated_information
from mikit.flow.matching.result import ERRORS_APART, RULES, LayerMatch, match_frame, tie_broken
from mikit.flow.matching.sides import Side, Sides, sides_of
from mikit.functional.flow.contributions import cka_influence, recovery_scores, whitened_rows
from mikit.functional.flow.moments import LayerFactor, cross_products, factor_layer, principal_axes
from mikit.functional.flow.monotone import monotone_alignment
from mikit.functional.flow.recovery import recover, require_rows

__all__ = ["cells_by_value", "label_cells", "match_layers"]

Array = NDArray[Any]
Cells = Iterator[dict[str, Any]]

_PAIRED = "rows, paired"
_EMPTY = np.empty(0)


@final
@dataclass(frozen=True)
class _Options:
    """The settings that apply to every layer."""

    noise: float
    teacher_noise: float
    probe: str
    reduce: int | None


@final
@dataclass(frozen=True)
class _Layer:
    """A layer with everything that the rules compare; ``white`` is whitened under the layer's noise."""

    name: str
    rows: Array
    factor: LayerFactor
    white: Array
    information: Array | None


def match_layers(
    teacher: ActivationStore | Mapping[str, Any],
    students: ActivationStore | Mapping[str, Any] | Sequence[ActivationStore],
    *,
    labels: Any = None,
    rules: Sequence[str] | None = None,
    phases: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    noise: float = 0.3,
    teacher_noise: float = 0.01,
    folds: int = 5,
    probe: str = "lda",
    reduce: int | None = None,
    seed: int = 0,
) -> LayerMatch:
    """Match every student layer to the teacher layer that each of several rules selects, with the margin.

    Formula: ``directional``: ``argmax_j I(s_i'; t_j')``, Gaussian, with ``s' = s + 0.3 z`` and ``t' = t + 0.01 z`` in
    RMS SDs: the layer from which ``s_i`` is most linearly recoverable. The largest possible value,
    ``½ Σ log(1 + λ(s_i) / 0.3²)``, is the same for all ``j``. The information is estimated on all samples and corrected
    by ``- d_eff(s') d_eff(t') / 2n``; among tied layers, the one with the largest held-out score
    ``E[log q(s' | t') - log q(s')]`` is selected. ``held_out``: the largest held-out score, without correction.
    ``cka``: the largest linear CKA. ``nearest``: ``argmin_j (ω(s_i) - ω(t_j))²`` with the layers' label information
    ``ω``. ``monotone``: the smallest sum of these along a matching that never goes back. Both of the latter match the
    last layer to the last layer, by convention.

    A difference between two teacher layers is computed per sample, and its standard error from these differences.
    Below two standard errors the choice is a tie.

    Args:
        teacher: The teacher's store, of which the last phase is used; or a dictionary from layer names, in network
            order, to arrays ``(n, d)``.
        students: One store per network and seed; or one dictionary of arrays, whose samples are paired with the
            teacher's.
        labels: One label per sample, in the order of the teacher's last phase. By default the labels in the stores are
            used; without any labels, ``nearest`` and ``monotone`` are left out unless they are requested.
        rules: Any of ``"directional"``, ``"held_out"``, ``"cka"``, ``"nearest"`` and ``"monotone"``; by default all
            that the data allow, except ``"held_out"``.
        phases: Phases of the students; by default the last of each.
        layers: Names of the layers to match; all by default.
        noise: Noise on the student's layer, in RMS SDs.
        teacher_noise: Noise on the teacher's layer. The rule is valid for small noise; 0.03 and more mislead it.
        folds: Number of folds of the rotation, at least 3.
        probe: Probe of the label information: ``"lda"`` or ``"logistic"``.
        reduce: Use the first ``reduce`` principal components of wider layers.
        seed: Seed of the folds.

    Returns:
        A :class:`mikit.flow.LayerMatch` with every pair of layers, its distance from the selected one, and the error of
        this distance.

    Unit: nats (directional), none (CKA), nats² (nearest and monotone).

    Kind: an index of similarity. It does not show that two layers correspond.

    Raises:
        InputError: If the samples cannot be paired, a rule is unknown or needs labels that are missing, there are fewer
            than ``5 (d_s + d_t)`` samples, a layer is constant or contains NaN, samples are among a network's training
            samples, or an argument is invalid.

    Cost:
        ``O(n d² + k d³)`` per pair of layers, and one probe per layer and fold. Memory: the teacher's layers and one
        student layer, in float64.

    Pitfalls:
        - Tests with planted pairs overestimate the accuracy of the rules. If two networks were trained separately, the
          early layers of the teacher contain the information of its later layers, which biases the choice towards the
          input.
        - A layer and a linear map of it contain the same information: teacher layers such as a pooled layer and its
          logits differ little, and tie.
        - ``held_out`` has a penalty for every feature of the teacher's layer: with few samples it prefers narrow
          layers, and its margin does not show this.
        - ``nearest`` and ``monotone`` compare amounts of information, not contents.
        - Standard errors cover the sampling of the scored data, not of the fits or the training seed.

    Source:
        ``nearest``: Passalis, Tzelepi and Tefas (2020), arXiv 2005.00727, written from the description of the method.
        CKA: Kornblith et al., ICML 2019. The directional rule, its noise and its ties are specific to mikit.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> low = rng.standard_normal((600, 4))
        >>> teacher = {"low": low, "high": np.tanh(2 * low[:, :3])}
        >>> student = {"first": low + 0.5 * rng.standard_normal((600, 4)), "second": teacher["high"][:, :2]}
        >>> match = match_layers(teacher, student, rules=["directional"])
        >>> print(str(match).splitlines()[0])
        student, seed 0, phase 0, directional: first → low, second → high
    """
    require.positive(noise, "noise", "in units of the layer's RMS SD")
    require.positive(teacher_noise, "teacher_noise", "in units of the layer's RMS SD")
    require.one_of(probe, "probe", ("lda", "logistic"))
    sides = sides_of(teacher, students, labels=labels, phases=phases, layers=layers, folds=folds, seed=seed)
    asked = _asked(rules, sides.labels is not None)
    if not ({"nearest", "monotone"} & set(asked)):
        sides = Sides(sides.teacher, sides.students, sides.samples, None)
    options = _Options(noise, teacher_noise, probe, reduce)
    rows: list[dict[str, Any]] = []
    with threadpool_limits(1, user_api="blas"):
        teacher_layers = [_layer(sides.teacher, name, sides, options, teacher_noise) for name in sides.teacher.layers]
        for student in sides.students:
            where = {"network": student.network, "seed": student.seed, "phase": student.phase}
            rows += ({**where, **cell} for cell in _cells(student, teacher_layers, sides, asked, options))
    settings = {
        "from": "activations",
        "teacher": sides.teacher.network,
        "teacher_phase": sides.teacher.phase,
        "n": len(sides.samples.ids),
        "noise": noise,
        "teacher_noise": teacher_noise,
        "folds": folds,
        "probe": probe if sides.labels is not None else "",
        "reduce": reduce,
        "seed": seed,
        "versions": library_versions(),
    }
    return LayerMatch(match_frame(rows), settings)


def _asked(rules: Sequence[str] | None, labeled: bool) -> tuple[str, ...]:
    known = tuple(rule for rule in RULES if rule != "share")
    if rules is None:
        return ("directional", "cka", *(("nearest", "monotone") if labeled else ()))
    if isinstance(rules, str) or not rules:
        raise InputError(f"rules is {rules!r}. Pass a list of rules: {', '.join(known)}.")
    for rule in rules:
        if rule == "share":
            raise InputError('The rule "share" needs a flow: trace the networks and pass the flow to match_flow.')
        if rule not in known:
            raise InputError(f'There is no rule "{rule}"; the rules are {", ".join(known)}.')
        if rule in ("nearest", "monotone") and not labeled:
            raise InputError(f'The rule "{rule}" compares label information, and there are no labels. Pass labels=.')
    return tuple(dict.fromkeys(rules))


def _layer(side: Side, name: str, sides: Sides, options: _Options, noise: float) -> _Layer:
    rows = side.read(name)
    if not rows.any():
        raise InputError(
            f"Layer {name!r} of {side.network!r} (seed {side.seed}, phase {side.phase}) is constant, so it matches no "
            "layer. Leave it out with layers=."
        )
    parts = sides.samples.folds
    information = None
    if sides.labels is not None:
        folds = [np.arange(fold.start, fold.stop) for fold in parts]
        codes, classes = sides.labels
        information = rotated_information(rows, codes, folds, classes=classes, probe=options.probe).pointwise
    if options.reduce is not None and rows.shape[1] > options.reduce:
        rows = np.asarray(rows @ principal_axes(rows, options.reduce))
    factor = factor_layer(rows, parts)
    return _Layer(name, rows, factor, whitened_rows(rows, factor, parts, noise), information)


def _cells(
    student: Side, teacher_layers: Sequence[_Layer], sides: Sides, rules: Sequence[str], options: _Options
) -> Cells:
    """Yield the cells of one network at one phase, rule after rule."""
    cells: dict[str, list[dict[str, Any]]] = {rule: [] for rule in rules}
    layers = []
    for index, name in enumerate(student.layers):
        layer = _layer(student, name, sides, options, options.noise)
        for cell in _similarity_cells(layer, teacher_layers, sides.samples.folds, rules, options):
            cells[cell["rule"]].append({**cell, "layer": name, "layer_index": index})
        layers.append(replace(layer, rows=_EMPTY, white=_EMPTY))  # only the label information is needed later
    for rule in rules:
        if rule in ("nearest", "monotone"):
            cells[rule] += _amount_cells(rule, layers, teacher_layers)
        yield from cells[rule]


def _similarity_cells(
    layer: _Layer, teacher_layers: Sequence[_Layer], parts: Sequence[slice], rules: Sequence[str], options: _Options
) -> Cells:
    """Yield the cells of one student layer by the rules that compare it with each teacher layer."""
    names = [other.name for other in teacher_layers]
    for other in teacher_layers:
        require_rows(layer.factor.rows, layer.factor.width, other.factor.width)
    pairs = [(other, cross_products(other.rows, layer.rows, parts)) for other in teacher_layers]
    if {"directional", "held_out"} & set(rules):
        levels = {"source_noise": options.teacher_noise, "target_noise": options.noise}
        scores = [
            recovery_scores(other.factor, layer.factor, cross, other.white, layer.white, parts, **levels)
            for other, cross in pairs
        ]
        held_out = np.array([one.mean() for one in scores])
        common = {"unit": "nats", "basis": _PAIRED, "ceiling": layer.factor.ceiling(options.noise)}
        if "directional" in rules:
            # Held-out scores penalize every feature of the teacher's layer, which is why the values are those of all
            # samples, corrected; the scores only break ties and give the errors per sample.
            recovered = [
                recover(other.factor, layer.factor, cross, noise=[options.noise], student_noise=options.teacher_noise)[
                    0
                ]
                for other, cross in pairs
            ]
            corrected = np.array([one.corrected for one in recovered])
            common["rule"] = "directional"
            yield from cells_by_value(names, corrected, _paired(scores), common, held_out=held_out)
        if "held_out" in rules:
            common["rule"] = "held_out"
            yield from cells_by_value(names, held_out, _paired(scores), common)
    if "cka" in rules:
        similar = [cka_influence(other.factor, layer.factor, cross, other.rows, layer.rows) for other, cross in pairs]
        values = np.array([value for value, _ in similar])
        errors = _paired([influence for _, influence in similar])
        yield from cells_by_value(names, values, errors, {"rule": "cka", "unit": "dimensionless", "basis": _PAIRED})


def _amount_cells(rule: str, layers: Sequence[_Layer], teacher_layers: Sequence[_Layer]) -> Cells:
    """Yield the cells of all student layers by a rule that compares amounts of label information."""
    student, teacher = (
        np.stack([layer.information for layer in side if layer.information is not None])
        for side in (layers, teacher_layers)
    )

    def error(student_slopes: Array, teacher_slopes: Array) -> float:
        change = student_slopes @ student + teacher_slopes @ teacher
        return float(change.std(ddof=1) / math.sqrt(change.shape[0]))

    names = [layer.name for layer in layers], [layer.name for layer in teacher_layers]
    yield from label_cells(rule, *names, student.mean(axis=1), teacher.mean(axis=1), error, basis=_PAIRED)


def _paired(contributions: Sequence[Array]) -> Callable[[int, int], float]:
    def error(first: int, second: int) -> float:
        difference = contributions[first] - contributions[second]
        return float(difference.std(ddof=1) / math.sqrt(difference.shape[0]))

    return error


def cells_by_value(
    names: Sequence[str],
    values: Array,
    error: Callable[[int, int], float],
    where: Mapping[str, Any],
    *,
    held_out: Array | None = None,
) -> Cells:
    """Yield the cells of one student layer by a rule that selects the largest value, the first of equals.

    ``error`` returns the standard error of the difference of two values. ``where`` contains the columns that the cells
    share; its ``ceiling``, if any, is the largest possible value. Ties are broken by the ``held_out`` scores.
    """
    shared = dict(where)
    ceiling = shared.pop("ceiling", math.nan)
    second = np.full(len(names), math.nan) if held_out is None else held_out
    best = int(values.argmax())
    if held_out is not None:
        errors = np.array([error(best, index) if index != best else 0.0 for index in range(len(names))])
        best = tie_broken(values[best] - values, errors, best, held_out)
    for index, name in enumerate(names):
        behind, apart = float(values[best] - values[index]), error(best, index) if index != best else 0.0
        yield {
            **shared,
            "teacher_layer": name,
            "teacher_layer_index": index,
            "value": float(values[index]),
            "share": float(values[index]) / ceiling,
            "held_out": float(second[index]),
            "behind": behind,
            "standard_error": apart,
            "chosen": index == best,
            "tied": index != best and behind < ERRORS_APART * apart,
            "declared": False,
        }


def label_cells(
    rule: str,
    layers: Sequence[str],
    teacher_layers: Sequence[str],
    student: Array,
    teacher: Array,
    error: Callable[[Array, Array], float],
    *,
    basis: str,
) -> Cells:
    """Yield the cells of all student layers by the nearest or the monotone matching of label information.

    ``student`` and ``teacher`` are the label information of the layers in nats. ``error`` returns the standard error of
    a sum of both with the given slopes, and ``basis`` says from what it is estimated.
    """
    gaps = student[:, None] - teacher
    costs = gaps**2
    costs[-1, :-1] = math.inf  # the last layer is matched to the last by convention
    best = _matching(rule, costs)
    for index, layer in enumerate(layers):
        last = index == len(layers) - 1
        for column, name in enumerate(teacher_layers):
            behind, apart = (math.nan, math.nan) if last else (0.0, 0.0)
            if not last and column != best[index]:
                behind, apart = _forced(rule, costs, gaps, best, (index, column), error)
            yield {
                "rule": rule,
                "unit": "nats²",
                "layer": layer,
                "layer_index": index,
                "teacher_layer": name,
                "teacher_layer_index": column,
                "value": float(gaps[index, column] ** 2),
                "share": math.nan,
                "held_out": math.nan,
                "behind": behind,
                "standard_error": apart,
                "basis": basis,
                "chosen": column == best[index],
                "tied": column != best[index] and behind < ERRORS_APART * apart,
                "declared": last,
            }


def _matching(rule: str, costs: Array) -> Array:
    return np.array(monotone_alignment(costs)) if rule == "monotone" else np.asarray(costs.argmin(axis=1))


def _forced(
    rule: str, costs: Array, gaps: Array, best: Array, cell: tuple[int, int], error: Callable[[Array, Array], float]
) -> tuple[float, float]:
    """Return how much the sum of squared gaps grows if ``cell`` has to be part of the matching, with its error."""
    # Forcing one pair can move the partners of other layers, so the two whole matchings are compared, not two cells.
    index, column = cell
    allowed = costs.copy()
    allowed[index] = math.inf
    allowed[index, column] = costs[index, column]
    path, rows = _matching(rule, allowed), np.arange(len(costs))
    behind = float(costs[rows, path].sum() - costs[rows, best].sum())
    # The error is linearized: the gradient of the growth, with both matchings fixed. A teacher layer can be the partner
    # of several student layers, and its slopes add up.
    slopes = np.zeros(gaps.shape[1])
    np.add.at(slopes, path, -2 * gaps[rows, path])
    np.add.at(slopes, best, 2 * gaps[rows, best])
    return behind, error(2 * (gaps[rows, path] - gaps[rows, best]), slopes)
