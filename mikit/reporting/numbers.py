"""Numbers as the page's data hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["short_numbers"]


def short_numbers(values: Iterable[float]) -> list[float | None]:
    """Four significant digits; None where there is no finite number.

    Examples:
        >>> short_numbers([0.123456, float("nan")])
        [0.1235, None]
    """
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
