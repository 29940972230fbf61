"""The rows of a flow as columns for the page's table."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

__all__ = ["columns_of"]

_HIDDEN = ("layer_index", "teacher_layer_index")
_BLANK_IF_NEGATIVE = ("teacher_phase",)


def columns_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Every row of a frame, column by column, ready for JSON; columns without any content are left out.

    Numbers have five significant digits. Words are places in a list, -1 where there is none.
    """
    names = [name for name in frame.columns if name not in _HIDDEN and not _is_blank(frame[name])]
    data = []
    for name in names:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        column: dict[str, Any] = {"name": str(name).replace("_", " "), "key": str(name), "number": numeric}
        if numeric:
            blank = -1 if name in _BLANK_IF_NEGATIVE else None
            column["values"] = [None if value == blank else _cell(value) for value in frame[name].tolist()]
        else:
            codes, words = pd.factorize(frame[name].map(str, na_action="ignore"))
            column |= {"values": codes.tolist(), "words": [str(word) for word in words]}
        data.append(column)
    return data


def _is_blank(column: pd.Series) -> bool:
    return bool((column.isna() | column.eq("")).all())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(value) if math.isinf(value) else float(f"{value:.5g}")
    return value if isinstance(value, (bool, int)) or value is None else str(value)
