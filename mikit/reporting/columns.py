"""The rows of a flow as columns for the table of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

__all__ = ["columns_of", "short_numbers", "with_error"]


_HIDDEN = ("layer_index", "teacher_layer_index")
_BLANK_IF_NEGATIVE = ("teacher_phase",)


def columns_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame by column, ready for JSON; empty columns are left out.

    Numbers have five significant digits. Words are positions in a list, -1 if there is none.
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


def short_numbers(values: Iterable[float]) -> list[float | None]:
    """Round to four significant digits; None if a number is not finite.

    Examples:
        >>> short_numbers([0.123456, float("nan")])
        [0.1235, None]
    """
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


def with_error(value: float, error: float) -> str:
    """Return a value and its error as text, both with the decimals of the error's second digit.

    Examples:
        >>> with_error(0.00302, 0.0047)
        '0.0030 ± 0.0047'
    """
    decimals = min(6, max(0, 1 - math.floor(math.log10(error)))) if error > 0 else 3
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
