"""Numbers as the page's data hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["short_numbers", "with_error"]


def short_numbers(values: Iterable[float]) -> list[float | None]:
    """Four significant digits; None where there is no finite number.

    Examples:
        >>> short_numbers([0.123456, float("nan")])
        [0.1235, None]
    """
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


def with_error(value: float, error: float) -> str:
    """A value and its error, both with the decimals of the error's second digit.

    Examples:
        >>> with_error(0.00302, 0.0047)
        '0.0030 ± 0.0047'
    """
    decimals = min(6, max(0, 1 - math.floor(math.log10(error)))) if error > 0 else 3
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
