"""Which teacher layer goes with which student layer, by several rules, each with its margin and its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mikit.activations import ActivationStore
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


@final
@dataclass(frozen=True)
class _How:
    """How layers are read."""

    noise: float
    teacher_noise: float
    probe: str
    reduce: int | None


@final
@dataclass(frozen=True)
class _Layer:
    """A layer as the rules read it: rows, factor, and rows whitened under its own noise."""

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
    """For every student layer, find the teacher layer that each of several rules picks, and by how much.

    Formula: ``directional``: ``argmax_j I(s_i'; t_j')``, Gaussian, with ``s' = s + 0.3 z`` and ``t' = t + 0.01 z`` in
    RMS SDs, so the layer from which ``s_i`` is most linearly recoverable; the most there could be,
    ``½ Σ log(1 + λ(s_i) / 0.3²)``, is the same for all ``j``. The information is that of all rows less
    ``d_eff(s') d_eff(t') / 2n``, and of layers that tie the one with the largest held-out score
    ``E[log q(s' | t') - log q(s')]`` is taken. ``held_out``: the largest held-out score, with no correction.
    ``cka``: the largest linear CKA. ``nearest``: ``argmin_j (ω(s_i) - ω(t_j))²`` with the layers' label information
    ``ω``; ``monotone``: the least sum of those along a matching that never goes back. By both the last layer goes with
    the last, by convention.

    A difference between two teacher layers is taken row by row, and its standard error from those differences. Below
    two standard errors the choice is called a tie.

    Args:
        teacher: The teacher's store, of which the last phase is read; or a dictionary from layer names, in network
            order, to arrays ``(n, d)``.
        students: One store for each network and seed; or one dictionary of arrays, rows paired with the teacher's.
        labels: One label per row, in the order of the teacher's last phase. Without them the stores' own are used;
            where there are none, ``nearest`` and ``monotone`` are left out, unless they are asked for.
        rules: Which of ``"directional"``, ``"held_out"``, ``"cka"``, ``"nearest"`` and ``"monotone"`` to ask; by
            default all but ``"held_out"`` that the data allow.
        phases: Phases of the students; by default the last of each.
        layers: Names of the layers to match; all by default.
        noise: Noise on the student's layer, in RMS SDs.
        teacher_noise: Noise on the teacher's layer. The rule holds for little noise here; 0.03 and more mislead it.
        folds: Folds of the rotation, at least 3.
        probe: Probe of the label information: ``"lda"`` or ``"logistic"``.
        reduce: Read wider layers by their first ``reduce`` principal components.
        seed: Seed of the folds.

    Returns:
        A :class:`mikit.flow.LayerMatch` with every cell, its distance behind the chosen one, and the error of that.

    Unit: nats (directional), none (CKA), nats² (nearest and monotone).

    Kind: an index of likeness. Not a correspondence that was found.

    Raises:
        InputError: If rows do not pair, a rule is unknown or needs labels that are not there, there are fewer than
            ``5 (d_s + d_t)`` rows, a layer never varies or holds NaN, rows are among a network's training samples, or
            an argument is wrong.

    Cost:
        ``O(n d² + k d³)`` a pair of layers, and one probe a layer and fold. Memory: the teacher's layers and one
        student layer, in float64.

    Pitfalls:
        - Planted pairs flatter the rule. Between two networks trained apart, the early layers of the teacher contain
          what its later layers hold, and draw the choice towards the input.
        - A layer and a linear map of it hold the same: teacher layers such as a pooled layer and its logits differ by
          little, and tie.
        - ``held_out`` pays for every column of the teacher's layer: with few rows it picks narrow layers, and its
          margin does not show it.
        - ``nearest`` and ``monotone`` compare amounts and not contents.
        - Standard errors hold the sampling of the rows that are scored, not that of the fits, nor the training seed.

    Source:
        ``nearest``: Passalis, Tzelepi and Tefas (2020), arXiv 2005.00727, written from the description of the method.
        CKA: Kornblith et al., ICML 2019 [known]. The directional rule, its noise and its ties are mikit's own.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> low = rng.standard_normal((600, 4))
        >>> teacher = {"low": low, "high": np.tanh(2 * low[:, :3])}
        >>> student = {"first": low + 0.5 * rng.standard_normal((600, 4)), "second": teacher["high"][:, :2]}
        >>> match = match_layers(teacher, student, rules=["directional"])
        >>> print(str(match).splitlines()[0])
        student, seed 0, phase 0, directional: first → low, second → high
    """
    for name, level in (("noise", noise), ("teacher_noise", teacher_noise)):
        if not (math.isfinite(level) and level > 0):
            raise InputError(f"{name} is {level}; it must be positive, in units of the layer's RMS SD.")
    if probe not in ("lda", "logistic"):
        raise InputError(f'probe is "{probe}"; use "lda" or "logistic".')
    sides = sides_of(teacher, students, labels=labels, phases=phases, layers=layers, folds=folds, seed=seed)
    asked = _asked(rules, sides.labels is not None)
    if not ({"nearest", "monotone"} & set(asked)):
        sides = Sides(sides.teacher, sides.students, sides.deal, None)
    how = _How(noise, teacher_noise, probe, reduce)
    rows: list[dict[str, Any]] = []
    with threadpool_limits(1, user_api="blas"):
        theirs = [_layer(sides.teacher, name, sides, how, teacher_noise) for name in sides.teacher.layers]
        for student in sides.students:
            where = {"network": student.network, "seed": student.seed, "phase": student.phase}
            rows += ({**where, **cell} for cell in _cells(student, theirs, sides, asked, how))
    settings = {
        "from": "activations",
        "teacher": sides.teacher.network,
        "teacher_phase": sides.teacher.phase,
        "n": len(sides.deal.ids),
        "noise": noise,
        "teacher_noise": teacher_noise,
        "folds": folds,
        "probe": probe if sides.labels is not None else "",
        "reduce": reduce,
        "seed": seed,
        "versions": library_versions(),
    }
    return LayerMatch(match_frame(rows), settings)


def _asked(rules: Sequence[str] | None, labelled: bool) -> tuple[str, ...]:
    known = tuple(rule for rule in RULES if rule != "share")
    if rules is None:
        return ("directional", "cka", *(("nearest", "monotone") if labelled else ()))
    if isinstance(rules, str) or not rules:
        raise InputError(f"rules is {rules!r}. Pass a list of rules: {', '.join(known)}.")
    for rule in rules:
        if rule == "share":
            raise InputError(
                'The rule "share" is read from a flow: trace the networks and pass the flow to match_flow.'
            )
        if rule not in known:
            raise InputError(f'There is no rule "{rule}"; the rules are {", ".join(known)}.')
        if rule in ("nearest", "monotone") and not labelled:
            raise InputError(f'The rule "{rule}" compares label information, and there are no labels. Pass labels=.')
    return tuple(dict.fromkeys(rules))


def _layer(side: Side, name: str, sides: Sides, how: _How, noise: float) -> _Layer:
    rows = side.read(name)
    if not rows.any():
        raise InputError(
            f"Layer {name!r} of {side.network!r} (seed {side.seed}, phase {side.phase}) never varies, so it goes with "
            "no layer. Leave it out with layers=."
        )
    parts = sides.deal.folds
    information = None
    if sides.labels is not None:
        folds = [np.arange(fold.start, fold.stop) for fold in parts]
        codes, classes = sides.labels
        information = rotated_information(rows, codes, folds, classes=classes, probe=how.probe).pointwise
    if how.reduce is not None and rows.shape[1] > how.reduce:
        rows = np.asarray(rows @ principal_axes(rows, how.reduce))
    factor = factor_layer(rows, parts)
    return _Layer(name, rows, factor, whitened_rows(rows, factor, parts, noise), information)


def _cells(
    student: Side,
    theirs: Sequence[_Layer],
    sides: Sides,
    rules: Sequence[str],
    how: _How,
) -> Cells:
    """Yield the cells of one network at one phase, rule after rule."""
    parts, names = sides.deal.folds, [layer.name for layer in theirs]
    cells: dict[str, list[dict[str, Any]]] = {rule: [] for rule in rules}
    informations = []
    for index, name in enumerate(student.layers):
        own = _layer(student, name, sides, how, how.noise)
        for other in theirs:
            require_rows(own.factor.rows, own.factor.width, other.factor.width)
        informations.append(own.information)
        crosses = [cross_products(other.rows, own.rows, parts) for other in theirs]
        where = {"layer": name, "layer_index": index}
        if {"directional", "held_out"} & set(cells):
            levels = {"source_noise": how.teacher_noise, "target_noise": how.noise}
            scores = [
                recovery_scores(other.factor, own.factor, cross, other.white, own.white, parts, **levels)
                for other, cross in zip(theirs, crosses, strict=True)
            ]
            held_out = np.array([one.mean() for one in scores])
            found = {"unit": "nats", "basis": _PAIRED, "ceiling": own.factor.ceiling(how.noise), **where}
            if "directional" in cells:
                recovered = [
                    recover(other.factor, own.factor, cross, noise=[how.noise], student_noise=how.teacher_noise)[0]
                    for other, cross in zip(theirs, crosses, strict=True)
                ]
                corrected = np.array([one.corrected for one in recovered])
                found["rule"] = "directional"
                cells["directional"] += cells_by_value(names, corrected, _paired(scores), found, held_out=held_out)
            if "held_out" in cells:
                found["rule"] = "held_out"
                cells["held_out"] += cells_by_value(names, held_out, _paired(scores), found)
        if "cka" in cells:
            alike = [
                cka_influence(other.factor, own.factor, cross, other.rows, own.rows)
                for other, cross in zip(theirs, crosses, strict=True)
            ]
            values = np.array([value for value, _ in alike])
            errors = _paired([influence for _, influence in alike])
            found = {"rule": "cka", "unit": "dimensionless", "basis": _PAIRED, **where}
            cells["cka"] += cells_by_value(names, values, errors, found)
    wanted = [rule for rule in ("nearest", "monotone") if rule in cells]
    if wanted:
        known = [layer.information for layer in theirs]
        ours, others = (np.stack([one for one in side if one is not None]) for side in (informations, known))

        def error(own_slopes: Array, other_slopes: Array) -> float:
            change = own_slopes @ ours + other_slopes @ others
            return float(change.std(ddof=1) / math.sqrt(change.shape[0]))

        for rule in wanted:
            cells[rule] += label_cells(
                rule, student.layers, names, ours.mean(axis=1), others.mean(axis=1), error, basis=_PAIRED
            )
    for asked in rules:
        yield from cells[asked]


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
    """Yield the cells of one student layer by a rule that takes the largest value, the first of equals.

    Args:
        names: Teacher layers.
        values: One value for each.
        error: Standard error of the difference of two of them.
        where: What all cells of the layer share; its ``ceiling``, if any, is the most a value could be.
        held_out: Scores by which a tie with the largest value is broken.
    """
    shared = dict(where)
    ceiling = shared.pop("ceiling", math.nan)
    cells = range(len(names))
    second = np.full(len(names), math.nan) if held_out is None else held_out
    best = int(values.argmax())
    if held_out is not None:
        errors = np.array([error(best, index) if index != best else 0.0 for index in cells])
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
    names: Sequence[str],
    own: Array,
    other: Array,
    error: Callable[[Array, Array], float],
    *,
    basis: str,
) -> Cells:
    """Yield the cells of all student layers by the nearest or the monotone matching of label information.

    How far a cell is behind is what the sum of squared gaps would grow by if the layer had to go with it.

    Args:
        rule: ``"nearest"`` or ``"monotone"``.
        layers: Student layers.
        names: Teacher layers.
        own: Label information of the student's layers, in nats.
        other: That of the teacher's.
        error: Standard error of a sum of both with the given slopes.
        basis: What the errors are made from.
    """
    gaps = own[:, None] - other
    costs = gaps**2
    costs[-1, :-1] = math.inf  # By convention the last layer goes with the last.
    rows = np.arange(len(layers))

    def path(allowed: Array) -> Array:
        if rule == "monotone":
            return np.array(monotone_alignment(allowed))
        return np.array(allowed.argmin(axis=1))

    best = path(costs)
    for index, layer in enumerate(layers):
        last = index == len(layers) - 1
        for column, name in enumerate(names):
            behind, apart = (math.nan, math.nan) if last else (0.0, 0.0)
            if not last and column != best[index]:
                allowed = costs.copy()
                allowed[index] = math.inf
                allowed[index, column] = costs[index, column]
                way = path(allowed)
                behind = float(costs[rows, way].sum() - costs[rows, best].sum())
                slopes = np.zeros(len(names))
                np.add.at(slopes, way, -2 * gaps[rows, way])
                np.add.at(slopes, best, 2 * gaps[rows, best])
                apart = error(2 * (gaps[rows, way] - gaps[rows, best]), slopes)
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
