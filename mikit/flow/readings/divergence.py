"""The divergence between a student's and the teacher's label information at every phase, and its largest fall."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mikit.core.errors import InputError
from mikit.flow.result import Flow
from mikit.functional.flow.flow_vectors import depth_matching, flow_divergence, monotone_matching, nearest_matching

__all__ = ["critical_phases", "flow_divergences"]

Array = NDArray[Any]

MATCHINGS = ("same depth", "nearest", "monotone")


def flow_divergences(flow: Flow, *, quantity: str = "label_information") -> pd.DataFrame:
    """Return ``D_F`` of every student at every phase, with the term of the last layer reported separately.

    Formula: ``D_F = Σ_i (ω_s[i] - ω_t[κ(i)])²`` with label information ``ω`` in nats and the teacher's last phase,
    under three matchings ``κ``: the same depth, the nearest value, and the nearest that never goes back. The standard
    error is that of a sum of squares of Gaussian gaps with the errors of all ``ω``, for a fixed ``κ``.

    Args:
        flow: A flow traced with labels.
        quantity: The quantity ``ω``: label information, or the name of an estimator for labels with which the flow was
            traced, such as ``"label_hsic"`` or ``"label_qmi"``.

    Returns:
        One row per network, seed, phase and matching: ``total``, ``intermediate``, ``last``, ``last_share`` (of the
        total), ``standard_error``, ``floor`` (the bias from sampling at the same depth: the sum of squared errors),
        and ``partners``: ``κ``, the name of a teacher layer for each of the student's layers in order.

    Unit: nats², or the square of the quantity's own unit.

    Kind: a discrepancy between amounts of information; it does not compare contents.

    Raises:
        InputError: If the flow does not contain the quantity for teacher and students, or rows of it were skipped.

    Cost:
        Milliseconds a phase.

    Pitfalls:
        - With the nearest value, almost all of ``D_F`` is the last term, whose partner is fixed by convention, because
          the other layers find some teacher layer of a similar value. Compare students under the same matching,
          preferably the same depth.
        - Errors of different layers are treated as independent; on the same samples they are not.

    Source:
        Passalis, Tzelepi and Tefas (2020), arXiv 2005.00727, written from the description of the method;
        mikit uses label information instead of their index.

    Example:
        >>> from mikit.flow.result import frame_of
        >>> flow_divergences(Flow(frame_of([]), {}))
        Traceback (most recent call last):
        mikit.core.errors.InputError: D_F compares label information of teacher and students, and ... Trace with labels.
    """
    known = flow.frame[flow.frame["quantity"].eq(quantity) & flow.frame["teacher_layer"].eq("")]
    teacher = known[known["role"].eq("teacher")]
    students = known[known["role"].eq("student")]
    if teacher.empty or students.empty:
        raise InputError(
            f"D_F compares {quantity.replace('_', ' ')} of teacher and students, and this flow does not contain both. "
            "Trace with labels."
        )
    if (left := known[known["value"].isna()]).shape[0]:
        raise InputError(
            f"D_F sums over all layers, and {left.shape[0]} rows of {quantity} have no value; the first is layer "
            f"{left.iloc[0]['layer']!r} at phase {left.iloc[0]['phase']}. Trace again into the same folder without a "
            "budget."
        )
    theirs = teacher[teacher["phase"].eq(teacher["phase"].max())].sort_values("layer_index")
    target, target_errors = (theirs[name].to_numpy(dtype=float) for name in ("value", "standard_error"))
    rows = []
    for (network, run, phase), layers in students.groupby(["network", "seed", "phase"], sort=False):
        ordered = layers.sort_values("layer_index")
        own, errors = (ordered[name].to_numpy(dtype=float) for name in ("value", "standard_error"))
        depth = depth_matching(own.shape[0], target.shape[0])
        for matching in MATCHINGS:
            partners = _partners(own, target, matching)
            found = flow_divergence(*_tensors(own, target), partners)
            rows.append(
                {
                    "network": network,
                    "seed": run,
                    "phase": phase,
                    "matching": matching,
                    "total": found.total,
                    "intermediate": found.intermediate,
                    "last": found.last,
                    "last_share": found.last / found.total if found.total > 0 else np.nan,
                    "standard_error": _error(own, target, errors, target_errors, partners),
                    "floor": float((errors**2 + target_errors[list(depth)] ** 2).sum()),
                    "partners": tuple(theirs["layer"].iloc[list(partners)]),
                }
            )
    return pd.DataFrame(rows)


def critical_phases(divergences: pd.DataFrame) -> pd.DataFrame:
    """Return the two recorded phases between which ``D_F`` falls most, for every student and matching.

    Formula: ``argmax_p D_F(p) - D_F(p + 1)`` over recorded phases.

    Args:
        divergences: The result of :func:`flow_divergences`.

    Returns:
        One row per network, seed and matching: ``from_phase``, ``to_phase``, ``fall``, its ``standard_error``,
        ``runner_up`` (the second largest fall), and ``decision``: ``"clear"``, ``"tie"`` if the falls differ by less
        than two standard errors, ``"none"`` if no fall reaches two standard errors.

    Unit: nats².

    Kind: a feature of a curve.

    Raises:
        InputError: If a student has only one phase.

    Cost:
        None.

    Pitfalls:
        The fall is between two recordings: with a longer interval there is more time to fall. The result depends on
        the recording schedule and is not a moment of training.

    Source:
        The critical period: Passalis, Tzelepi and Tefas (2020), arXiv 2005.00727; this way to locate it is specific to
        mikit.

    Example:
        >>> table = pd.DataFrame({"network": "s", "seed": 0, "phase": [0, 1, 2], "matching": "same depth",
        ...                       "total": [3.0, 1.0, 0.9], "standard_error": 0.1})
        >>> critical_phases(table)[["from_phase", "to_phase", "decision"]].values.tolist()
        [[0, 1, 'clear']]
    """
    rows = []
    for (network, seed, matching), run in divergences.groupby(["network", "seed", "matching"], sort=False):
        ordered = run.sort_values("phase")
        totals, errors = (ordered[name].to_numpy(dtype=float) for name in ("total", "standard_error"))
        phases = ordered["phase"].to_numpy()
        if len(phases) < 2:
            raise InputError(f"{network!r} (seed {seed}) was recorded at one phase only, so there is no fall.")
        falls = totals[:-1] - totals[1:]
        spread = np.hypot(errors[:-1], errors[1:])
        best = int(falls.argmax())
        others = np.delete(np.arange(falls.shape[0]), best)
        second = int(others[falls[others].argmax()]) if others.size else best
        apart = falls[best] - falls[second]
        decision = "clear" if not others.size or apart >= 2 * np.hypot(spread[best], spread[second]) else "tie"
        rows.append(
            {
                "network": network,
                "seed": seed,
                "matching": matching,
                "from_phase": int(phases[best]),
                "to_phase": int(phases[best + 1]),
                "fall": float(falls[best]),
                "standard_error": float(spread[best]),
                "runner_up": float(falls[second]) if others.size else np.nan,
                "decision": decision if falls[best] >= 2 * spread[best] else "none",
            }
        )
    return pd.DataFrame(rows)


def _partners(own: Array, target: Array, matching: str) -> tuple[int, ...]:
    if matching == "same depth":
        return depth_matching(own.shape[0], target.shape[0])
    return (nearest_matching if matching == "nearest" else monotone_matching)(*_tensors(own, target))


def _tensors(own: Array, target: Array) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(own), torch.tensor(target)


def _error(own: Array, target: Array, errors: Array, target_errors: Array, partners: tuple[int, ...]) -> float:
    """Return the error of the sum of squared gaps."""
    # First order: the slopes of a teacher layer that is the partner of several student layers add up, because its error
    # is the same in all of their gaps.
    at = list(partners)
    gaps = own - target[at]
    slopes = np.zeros_like(target)
    np.add.at(slopes, at, 2 * gaps)
    first = ((2 * gaps * errors) ** 2).sum() + ((slopes * target_errors) ** 2).sum()
    # Second order: without it, the error would vanish for gaps of zero.
    second = 2 * ((errors**2 + target_errors[at] ** 2) ** 2).sum()
    return float(np.sqrt(first + second))
