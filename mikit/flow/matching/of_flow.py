"""Which teacher layer goes with which student layer, from the numbers that a trace already holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mikit.core.errors import InputError
from mikit.flow.matching.layers import cells_by_value, label_cells
from mikit.flow.matching.result import RULES, LayerMatch, match_frame
from mikit.flow.result import Flow

__all__ = ["match_flow"]

Array = NDArray[Any]

_STUDENT_NOISE, _TEACHER_NOISE = 0.3, 0.01
_UNPAIRED = "folds, unpaired"


def match_flow(
    flow: Flow,
    *,
    rules: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    phases: Sequence[int] | None = None,
    noise: float | None = None,
) -> LayerMatch:
    """For every student layer, find the teacher layer that each rule picks from a measured flow.

    Formula: as :func:`mikit.match_layers`, and ``share``: the teacher layer of which the student layer recovers the
    largest share. ``directional`` needs a flow traced with ``student_noise=0.3`` and a teacher noise of 0.01; a flow
    holds the bracket of every value and not the correction, so the held-out end is compared, and the error of a
    difference is widened until the middle of the bracket has to agree. The others are read from any flow.

    Args:
        flow: What :func:`mikit.trace` returned.
        rules: Which rules to ask; by default all that the flow has the numbers for.
        networks: Student networks; all by default.
        phases: Phases; by default the last of each network.
        noise: Teacher noise of ``share``; by default 0.3 where measured, otherwise the middle level.

    Returns:
        A :class:`mikit.flow.LayerMatch`.

    Unit: nats (directional), shares, none (CKA), nats² (nearest and monotone).

    Kind: an index of likeness. Not a correspondence that was found.

    Raises:
        InputError: If the flow lacks the numbers of a rule that was asked for, or a network, phase or noise level.

    Cost:
        Milliseconds; no activations are read.

    Pitfalls:
        - Those of :func:`mikit.match_layers`.
        - A flow holds the error of every value and not that of differences on the same rows, so errors are taken as if
          values were independent. That is too much as a rule, and more choices are ties than rows would show.
        - ``share`` has another ceiling for every teacher layer, and picks those that are easy to recover from anything.

    Source:
        As :func:`mikit.match_layers`.

    Example:
        >>> import tempfile
        >>> from mikit.activations import ActivationStore
        >>> from mikit.flow import trace
        >>> rng = np.random.default_rng(0)
        >>> t = rng.standard_normal((600, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     teacher = ActivationStore(folder + "/t", network="teacher")
        ...     teacher.append({"low": t, "high": np.tanh(2 * t[:, :2])}, ids=np.arange(600), phase=3)
        ...     student = ActivationStore(folder + "/s", network="student", seed=0)
        ...     student.append({"only": t + 0.5 * rng.standard_normal((600, 4))}, ids=np.arange(600), phase=3)
        ...     flow = trace(teacher, student, noise=[0.01, 0.3], student_noise=0.3)
        >>> found = match_flow(flow, rules=["directional", "cka"]).chosen
        >>> found["teacher_layer"].tolist()
        ['low', 'low']
    """
    tables = _tables(flow, noise)
    asked = tuple(tables) if rules is None else tuple(rules)
    if not asked:
        raise InputError("This flow holds no comparison of a student with a teacher, so there is nothing to match.")
    for rule in asked:
        if rule not in RULES:
            raise InputError(f'There is no rule "{rule}"; the rules are {", ".join(RULES)}.')
        if rule == "held_out":
            raise InputError('The rule "held_out" needs activations; pass the stores to mikit.match_layers.')
        if rule not in tables:
            raise InputError(f'This flow does not have what the rule "{rule}" compares. {_LACKS[rule]}')
    students = flow.frame[flow.frame["role"].eq("student")]
    known = list(dict.fromkeys(students["network"]))
    for name in networks or ():
        if name not in known:
            raise InputError(f"The flow has no student network {name!r}; it has {', '.join(known)}.")
    rows: list[dict[str, Any]] = []
    for rule in asked:
        table = tables[rule]
        table = table[table["role"].eq("student")]
        for (network, seed), run in table.groupby(["network", "seed"], sort=False):
            if networks is not None and network not in networks:
                continue
            own = sorted(run["phase"].unique())
            for phase in own[-1:] if phases is None else phases:
                if phase not in own:
                    raise InputError(
                        f"{network!r} (seed {seed}) has no phase {phase}; it has {', '.join(map(str, own))}."
                    )
                cells = run[run["phase"].eq(phase)]
                where = {"network": network, "seed": seed, "phase": phase}
                found = (
                    _by_labels(rule, cells, tables[rule]) if rule in ("nearest", "monotone") else _by_value(rule, cells)
                )
                rows += ({**where, **cell} for cell in found)
    kept = ("n", "student_noise", "folds", "probe", "reduce", "seed", "teacher", "versions")
    settings = {"from": "flow", "noise": noise, **{name: flow.settings.get(name) for name in kept}}
    return LayerMatch(match_frame(rows), settings)


_LACKS = {
    "directional": (
        f"Trace with student_noise={_STUDENT_NOISE} and a noise of {_TEACHER_NOISE} among noise=, or match the stores "
        "with mikit.match_layers."
    ),
    "share": "Trace student stores against a teacher's.",
    "cka": "Trace student stores against a teacher's.",
    "nearest": "Trace with labels.",
    "monotone": "Trace with labels.",
}


def _tables(flow: Flow, noise: float | None) -> dict[str, pd.DataFrame]:
    """Return the rows that each rule reads, for the rules whose rows are there."""
    frame = flow.frame
    shares = frame[frame["quantity"].eq("recovered_share")]
    tables: dict[str, pd.DataFrame] = {}
    student_noise = flow.settings.get("student_noise")
    direct = shares[np.isclose(shares["noise"], _TEACHER_NOISE)]
    if len(direct) and student_noise is not None and math.isclose(student_noise, _STUDENT_NOISE):
        # The value of the rule is in nats; a share's own ceiling is that of the teacher's layer.
        tables["directional"] = direct.assign(
            value=direct["held_out"] * direct["ceiling"],
            standard_error=direct["standard_error"] * direct["ceiling"],
            bracket=(direct["in_sample"] - direct["held_out"]) * direct["ceiling"],
        )
    alike = frame[frame["quantity"].eq("cka")]
    if len(alike):
        tables["cka"] = alike
    if len(shares):
        levels = sorted(shares["noise"].unique())
        level = noise if noise is not None else 0.3 if 0.3 in levels else levels[len(levels) // 2]
        chosen = shares[np.isclose(shares["noise"], level)]
        if chosen.empty:
            raise InputError(
                f"The flow has no share at noise {noise:g}; it has {', '.join(map('{:g}'.format, levels))}."
            )
        tables["share"] = chosen
    known = frame[frame["quantity"].eq("label_information")]
    if known["role"].eq("student").any() and known["role"].eq("teacher").any():
        tables |= {"nearest": known, "monotone": known}
    return tables


def _by_value(rule: str, cells: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for index, own in cells.groupby("layer_index"):
        ordered = own.sort_values("teacher_layer_index")
        names = [str(name) for name in ordered["teacher_layer"]]
        values, errors = (ordered[name].to_numpy(dtype=float) for name in ("value", "standard_error"))
        bracket = ordered["bracket"].to_numpy(dtype=float) if rule == "directional" else np.zeros(len(names))
        _require_known(values, str(ordered["layer"].iloc[0]), rule)

        def error(first: int, second: int, errors: Array = errors, bracket: Array = bracket) -> float:
            # Half the difference of the brackets is how far the middles stand from the held-out ends; a quarter of it
            # on an error of which two are asked for makes the middle agree too.
            return float(np.hypot(errors[first], errors[second]) + max(bracket[second] - bracket[first], 0.0) / 4)

        where = {
            "rule": rule,
            "unit": "nats" if rule == "directional" else str(ordered["unit"].iloc[0]),
            "layer": str(ordered["layer"].iloc[0]),
            "layer_index": int(str(index)),
            "basis": _UNPAIRED,
            "ceiling": 1.0 if rule == "share" else math.nan,
        }
        yield from cells_by_value(names, values, error, where)


def _by_labels(rule: str, cells: pd.DataFrame, table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    teacher = table[table["role"].eq("teacher")]
    teacher = teacher[teacher["phase"].eq(teacher["phase"].max())].sort_values("layer_index")
    own = cells.sort_values("layer_index")
    sides = [side[["value", "standard_error"]].to_numpy(dtype=float).T for side in (own, teacher)]
    layers, names = ([str(name) for name in side["layer"]] for side in (own, teacher))
    _require_known(np.concatenate([sides[0][0], sides[1][0]]), "", rule)

    def error(own_slopes: Array, other_slopes: Array) -> float:
        return float(np.sqrt(((own_slopes * sides[0][1]) ** 2).sum() + ((other_slopes * sides[1][1]) ** 2).sum()))

    yield from label_cells(rule, layers, names, sides[0][0], sides[1][0], error, basis="rows, unpaired")


def _require_known(values: Array, layer: str, rule: str) -> None:
    if not np.isfinite(values).all():
        said = f"the layer {layer!r}" if layer else "a layer"
        raise InputError(
            f'The flow holds a value that is not a number for {said}, so the rule "{rule}" cannot compare it. A layer '
            "that never varies goes with no layer: leave it out when tracing."
        )
