"""Tables as text: aligned for the screen, with bars for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "markdown_table"]


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with aligned columns.

    Args:
        header: Names of the columns.
        rows: Cells, as many in each row.

    Example:
        >>> aligned(("law", "error"), [("normal", "+0.01")])
        ['  law     error', '  normal  +0.01']
    """
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Args:
        header: Names of the columns.
        rows: Cells, as many in each row.

    Example:
        >>> print(markdown_table(("law", "error"), [("normal", "+0.01")]))
        | law | error |
        | --- | --- |
        | normal | +0.01 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)
