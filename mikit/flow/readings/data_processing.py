"""Checks of a flow against the data-processing inequality."""

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
    """Flag values above their theoretical limit, and layers with a larger value than the layer they are computed from.

    Formula: ``I(Y; S_{l+1}) <= I(Y; S_l)`` where layer ``l + 1`` is a function of layer ``l``, ``I(Y; S) <= H(Y)``, and
    a share is at most 1. A row is flagged if the value exceeds its limit by more than two standard errors (and, for a
    share, also by half the distance between its held-out and in-sample values).

    Args:
        flow: The flow.

    Returns:
        One row per flag: ``excess`` over the limit in the unit of the quantity, its ``standard_error``, ``kind`` and
        ``sentence``. ``"impossible"`` is an estimation error. ``"rises with depth"`` is not: the quantity is linearly
        decodable information, and later layers make the same information easier to decode. Such a curve must not be
        interpreted as mutual information.

    Unit: that of the quantity.

    Kind: a check.

    Raises:
        Nothing.

    Cost:
        Milliseconds.

    Pitfalls:
        - Layers are assumed to form a chain in network order. With skip connections around a recorded layer, a later
          layer can contain more information.
        - Pooling breaks the chain: a pooled early layer lacks information from which the later layer is computed.
        - Errors are treated as independent. On the same samples they are not, and differences usually have smaller
          errors.

    Source:
        The data-processing inequality.

    Example:
        >>> from mikit.flow.result import frame_of
        >>> len(data_processing_flags(Flow(frame_of([]), {})))
        0
    """
    rows = [*_above(flow.frame, flow.settings.get("label_entropy")), *_rising(flow.frame)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _above(frame: pd.DataFrame, entropy: float | None) -> Iterator[dict[str, Any]]:
    shares = frame[frame["quantity"].eq("recovered_share")]
    slack = (shares["in_sample"] - shares["held_out"]).abs() / 2
    for row in shares[shares["value"] - 1 > _ERRORS * shares["standard_error"] + slack].to_dict("records"):
        yield _flag(row, "", row["value"] - 1, row["standard_error"], IMPOSSIBLE,
                    "The share is above 1, which is impossible: an estimation error.")  # fmt: skip
    if entropy is None:
        return
    known = frame[frame["quantity"].eq("label_information")]
    for row in known[known["value"] - entropy > _ERRORS * known["standard_error"]].to_dict("records"):
        yield _flag(row, "", row["value"] - entropy, row["standard_error"], IMPOSSIBLE,
                    "The value is above the labels' entropy, which is impossible: an estimation error.")  # fmt: skip


def _rising(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    keys = ["network", "seed", "phase", "quantity", "noise", "teacher_layer"]
    chosen = frame.loc[
        frame["quantity"].isin(["label_information", "recovered_share"]),
        [*keys, "layer", "layer_index", "value", "standard_error"],
    ].sort_values([*keys, "layer_index"], kind="stable")
    # Rows are sorted by layer within each group, so a shift pairs every layer with the one before it.
    before = chosen.groupby(keys, sort=False, dropna=False)[["layer", "value", "standard_error"]].shift()
    excess = chosen["value"] - before["value"]
    errors = np.hypot(chosen["standard_error"], before["standard_error"])
    flagged = excess > _ERRORS * errors
    for row, earlier, above, error in zip(
        chosen[flagged].to_dict("records"), before["layer"][flagged], excess[flagged], errors[flagged], strict=True
    ):
        yield _flag(row, str(earlier), float(above), float(error), READABLE,
                    f"{row['layer']} has a larger value than {earlier}, from which it is computed: information is "
                    "easier to decode linearly there, and no information was added.")  # fmt: skip


def _flag(row: dict[Any, Any], earlier: str, excess: float, error: float, kind: str, sentence: str) -> dict[str, Any]:
    kept = ("network", "seed", "phase", "quantity", "noise", "layer", "teacher_layer")
    where = {name: row[name] for name in kept}
    return {
        **where,
        "earlier_layer": earlier,
        "excess": excess,
        "standard_error": error,
        "kind": kind,
        "sentence": sentence,
    }
