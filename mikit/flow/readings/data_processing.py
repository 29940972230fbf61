"""What a flow shows that data processing forbids, and what that means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from mikit.flow.result import Flow

__all__ = ["IMPOSSIBLE", "READABLE", "data_processing_flags"]

IMPOSSIBLE = "impossible"
READABLE = "rises with depth"
_COLUMNS = ("network", "seed", "phase", "quantity", "noise", "layer", "earlier_layer", "teacher_layer", "excess",
            "standard_error", "kind", "sentence")  # fmt: skip
_ERRORS = 2.0


def data_processing_flags(flow: Flow) -> pd.DataFrame:
    """Flag values that no information can take, and layers that read more than the layer they are computed from.

    Formula: ``I(Y; S_{l+1}) <= I(Y; S_l)`` where layer ``l + 1`` is a function of layer ``l``, ``I(Y; S) <= H(Y)``, and
    a share of at most 1. A row is flagged where the value exceeds its limit by more than two standard errors (and, for
    a share, by more than half its bracket).

    Args:
        flow: The flow.

    Returns:
        One row a flag: ``excess`` over the limit in the unit of the quantity, its ``standard_error``, ``kind`` and
        ``sentence``. ``"impossible"`` is an error of estimation. ``"rises with depth"`` is none: the quantity is read
        linearly, and later layers make the same information easier to read. It forbids to call the curve information.

    Unit: that of the quantity.

    Kind: a check.

    Raises:
        Nothing.

    Cost:
        Milliseconds.

    Pitfalls:
        - Layers are taken to be a chain in network order. In a network with shortcuts around a recorded layer a later
          layer may know more.
        - A readout breaks the chain: a pooled early layer has lost what the later layer was computed from.
        - Errors are taken as independent. On the same rows they are not, and differences have smaller ones as a rule.

    Source:
        The data-processing inequality.

    Example:
        >>> from mikit.flow.result import frame_of
        >>> len(data_processing_flags(Flow(frame_of([]), {})))
        0
    """
    students = flow.frame
    rows = [*_above(students, flow.settings.get("label_entropy")), *_rising(students)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _above(frame: pd.DataFrame, entropy: float | None) -> Iterator[dict[str, Any]]:
    shares = frame[frame["quantity"].eq("recovered_share")]
    slack = (shares["in_sample"] - shares["held_out"]).abs() / 2
    for row in shares[shares["value"] - 1 > _ERRORS * shares["standard_error"] + slack].to_dict("records"):
        yield _flag(row, "", row["value"] - 1, row["standard_error"], IMPOSSIBLE,
                    "More than all of the teacher's layer is recovered, which no estimate can mean.")  # fmt: skip
    if entropy is None:
        return
    known = frame[frame["quantity"].eq("label_information")]
    for row in known[known["value"] - entropy > _ERRORS * known["standard_error"]].to_dict("records"):
        yield _flag(row, "", row["value"] - entropy, row["standard_error"], IMPOSSIBLE,
                    "More than the labels' entropy is told, which no estimate can mean.")  # fmt: skip


def _rising(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    keys = ["network", "seed", "phase", "quantity", "noise", "teacher_layer"]
    chosen = frame.loc[
        frame["quantity"].isin(["label_information", "recovered_share"]),
        [*keys, "layer", "layer_index", "value", "standard_error"],
    ].sort_values([*keys, "layer_index"], kind="stable")
    before = chosen.groupby(keys, sort=False, dropna=False)[["layer", "value", "standard_error"]].shift()
    excess = chosen["value"] - before["value"]
    errors = np.hypot(chosen["standard_error"], before["standard_error"])
    flagged = excess > _ERRORS * errors
    for row, earlier, above, error in zip(
        chosen[flagged].to_dict("records"), before["layer"][flagged], excess[flagged], errors[flagged], strict=True
    ):
        yield _flag(row, str(earlier), float(above), float(error), READABLE,
                    f"{row['layer']} reads more than {earlier}, of which it is a function: it is easier to read "
                    "there by linear means, and no information was added.")  # fmt: skip


def _flag(row: dict[Any, Any], earlier: str, excess: float, error: float, kind: str, said: str) -> dict[str, Any]:
    kept = ("network", "seed", "phase", "quantity", "noise", "layer", "teacher_layer")
    own = {name: row[name] for name in kept}
    return {**own, "earlier_layer": earlier, "excess": excess, "standard_error": error, "kind": kind, "sentence": said}
