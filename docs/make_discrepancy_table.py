"""Write ``docs/tables/discrepancies.md``: what each registered discrepancy is and takes, from the classes themselves.

    python docs/make_discrepancy_table.py

Unit, gradient, weights, widths and freedom from bias are attributes of the class; "squared" is what its docstring's
first line says; the cost is its docstring's. Sizes and blindness to pairing are tried: on samples of 24 and 17 rows,
and with the rows of one sample shuffled.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from mikit.core.errors import InputError
from mikit.estimators import REGISTRY
from mikit.estimators.discrepancy import Discrepancy

TABLE = Path(__file__).parent / "tables" / "discrepancies.md"
HEADER = (
    "instrument",
    "unit",
    "squared",
    "unbiased on a batch",
    "weights",
    "different widths",
    "different sizes",
    "blind to pairing",
    "gradient",
    "cost",
)


def registered() -> Iterator[type[Discrepancy]]:
    """Yield every registered class that compares two laws."""
    yield from (cls for cls in REGISTRY.values() if issubclass(cls, Discrepancy))


def table() -> str:
    """Return the table as Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    return "\n".join([*lines, *(f"| {' | '.join(_row(cls))} |" for cls in registered()), ""])


def _row(cls: type[Discrepancy]) -> tuple[str, ...]:
    example = cls()
    text = inspect.getdoc(cls) or ""
    squared = "squared" in text.splitlines()[0].lower()
    rooted = ", or rooted" if hasattr(example, "squared") else ""
    return (
        f"[{cls.__name__}](estimators/{'/'.join([*cls.__module__.split('.')[2:-1], cls.name])}.md)",
        example.unit,
        f"yes{rooted}" if squared else "no",
        "yes" if example.unbiased else "no; `debias=True`",
        _yes(cls.weighted),
        _yes(not cls.same_width),
        _yes(_takes_two_sizes(example)),
        _yes(_is_blind(example)),
        _yes(example.differentiable),
        _cost(text),
    )


def _takes_two_sizes(example: Discrepancy) -> bool:
    x, y = _samples()
    try:
        return bool(torch.isfinite(example.between_laws(x, y[:17])))
    except InputError:
        return False


def _is_blind(example: Discrepancy) -> bool:
    x, y = _samples()
    first, shuffled = (float(example.between_laws(x, rows)) for rows in (y, y.flip(0)))
    return abs(first - shuffled) <= 1e-6 * max(1.0, abs(first))


def _samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 2, generator=generator, dtype=torch.float64)
    return x, 0.8 * x + 0.6 * torch.randn(24, 2, generator=generator, dtype=torch.float64)


def _cost(text: str) -> str:
    found = re.search(r"^Cost:(.*?)(?=\n *\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"A docstring does not state its cost: {text[:60]!r}")
    return " ".join(found.group(1).split()).replace("``", "`").replace("|", "\\|")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
