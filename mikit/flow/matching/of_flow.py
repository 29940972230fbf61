"""Matching student layers to teacher layers from the values of a traced flow."""

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
    """Match every student layer to the teacher layer that each rule selects, from a traced flow.

    Formula: as in :func:`mikit.match_layers`, and ``share``: the teacher layer of which the student layer recovers the
    largest share. ``directional`` needs a flow traced with ``student_noise=0.3`` and a teacher noise of 0.01; a flow
    contains the held-out and in-sample values and not the correction, so held-out values are compared, and the error
    of a difference is widened until the midpoints have to agree as well. All other rules work with any flow.

    Args:
        flow: A flow from :func:`mikit.trace`.
        rules: The rules; by default all that the flow has the values for.
        networks: Student networks; all by default.
        phases: Phases; by default the last of each network.
        noise: Teacher noise of ``share``; by default 0.3 if measured, otherwise the middle level.

    Returns:
        A :class:`mikit.flow.LayerMatch`.

    Unit: nats (directional), shares, none (CKA), nats² (nearest and monotone).

    Kind: an index of similarity. It does not show that two layers correspond.

    Raises:
        InputError: If the flow lacks the values of a requested rule, or a network, phase or noise level.

    Cost:
        Milliseconds; no activations are read.

    Pitfalls:
        - Those of :func:`mikit.match_layers`.
        - A flow contains the error of every value, not of differences on the same samples, so values are treated as
          independent. This usually overestimates the errors, and more choices are ties than in ``match_layers``.
        - ``share`` has a different ceiling for every teacher layer, and prefers layers that are easy to recover.

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
        raise InputError("This flow contains no comparison of a student with a teacher, so there is nothing to match.")
    for rule in asked:
        if rule not in RULES:
            raise InputError(f'There is no rule "{rule}"; the rules are {", ".join(RULES)}.')
        if rule == "held_out":
            raise InputError('The rule "held_out" needs activations; pass the stores to mikit.match_layers.')
        if rule not in tables:
            raise InputError(f'This flow does not contain the values that the rule "{rule}" compares. {_LACKS[rule]}')
    students = flow.frame[flow.frame["role"].eq("student")]
    known = list(dict.fromkeys(students["network"]))
    for name in networks or ():
        if name not in known:
            raise InputError(f"The flow has no student network {name!r}; it contains {', '.join(known)}.")
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
                        f"{network!r} (seed {seed}) has no phase {phase}; it contains {', '.join(map(str, own))}."
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
    """Return the rows that each rule compares, for the rules whose rows the flow contains."""
    frame = flow.frame
    shares = frame[frame["quantity"].eq("recovered_share")]
    tables: dict[str, pd.DataFrame] = {}
    student_noise = flow.settings.get("student_noise")
    direct = shares[np.isclose(shares["noise"], _TEACHER_NOISE)]
    if len(direct) and student_noise is not None and math.isclose(student_noise, _STUDENT_NOISE):
        # Shares have a different ceiling for every teacher layer; the rule compares nats.
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
            # Midpoints of the brackets can be closer than the held-out ends by half the difference of the brackets. A
            # tie is decided at two errors, so a quarter of it in each error makes the midpoints agree as well.
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
        where = f"the layer {layer!r}" if layer else "a layer"
        raise InputError(
            f'The flow contains no value for {where}, so the rule "{rule}" cannot compare it. A constant layer matches '
            "no layer: leave it out of the trace."
        )
