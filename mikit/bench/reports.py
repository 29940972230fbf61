"""The writer that all benchmark reports share: JSON, tables on the screen and in Markdown, and pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, final

from mikit.core.errors import InputError
from mikit.core.files import sync_folder, write_atomically
from mikit.core.measurement import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Bullets",
    "Table",
    "Text",
    "content_of",
    "json_text",
    "markdown",
    "markdown_table",
    "require_picture",
    "save_picture",
    "screen",
]


def json_text(schema: str, content: Mapping[str, Any]) -> str:
    """Return the JSON of a report; ``schema`` is the command and the version of its format."""
    return json.dumps(plain({"schema": schema, **content}), indent=1, ensure_ascii=False, allow_nan=False)


def content_of(schema: str, text: str) -> dict[str, Any]:
    """Return the content of a report from :func:`json_text`; refuse other text and other schemas."""
    command = schema.rpartition(" ")[0]
    try:
        content = json.loads(text)
        found = content["schema"]
    except (ValueError, KeyError, TypeError) as cause:
        raise InputError(f"This is not a result of {command} ({cause!r}).") from cause
    if found != schema:
        raise InputError(f'This is not a result of {command}: its schema is "{found}", not "{schema}".')
    return dict(content)


@final
@dataclass(frozen=True)
class Table:
    """A table of texts. A row can be shorter than the header: its last cell then takes the remaining width."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@final
@dataclass(frozen=True)
class Text:
    """Sentences, one per line on the screen and one paragraph in Markdown."""

    lines: Sequence[str]


@final
@dataclass(frozen=True)
class Bullets:
    """Sentences, one per line on the screen and a list in Markdown."""

    lines: Sequence[str]


Block = Table | Text | Bullets


def screen(blocks: Sequence[Block]) -> str:
    """Return blocks as text with aligned columns; empty blocks are left out.

    Example:
        >>> print(screen([Table(("task", "error"), [("normal", "+0.01"), ("none", "left out: too wide")])]))
          task    error
          normal  +0.01
          none    left out: too wide
    """
    return "\n\n".join("\n".join(_lines(block)) for block in blocks if _lines(block))


def _lines(block: Block) -> list[str]:
    if not isinstance(block, Table):
        return list(block.lines)
    if not block.rows:
        return []
    # Short rows do not widen the columns: their last cell is a sentence that runs on to the right.
    full = [row for row in block.rows if len(row) == len(block.header)]
    widths = [max(len(row[i]) for row in (block.header, *full)) for i in range(len(block.header))]
    widths[0] = max(len(row[0]) for row in (block.header, *block.rows))
    aligned = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in (block.header, *block.rows)
    ]
    return [block.title, *aligned] if block.title else aligned


def markdown(blocks: Sequence[Block]) -> str:
    """Return blocks as Markdown; empty blocks are left out."""
    parts = []
    for block in blocks:
        if isinstance(block, Table) and block.rows:
            title = f"**{block.title}**\n\n" if block.title else ""
            parts.append(title + markdown_table(block.header, block.rows))
        elif isinstance(block, Bullets) and block.lines:
            parts.append("\n".join(f"- {line}" for line in block.lines))
        elif isinstance(block, Text) and block.lines:
            parts.append(" ".join(block.lines))
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Example:
        >>> print(markdown_table(("task", "error"), [("normal", "+0.01")]))
        | task | error |
        | --- | --- |
        | normal | +0.01 |
    """
    lines = [header, ["---"] * len(header), *([*row, *[""] * (len(header) - len(row))] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


def require_picture(path: Path) -> None:
    """Raise :class:`~mikit.InputError` unless the name ends in .png or .svg."""
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"{path} must end in .png or .svg, the supported picture formats.")


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure atomically to a ``.png`` or ``.svg`` file; an existing file is replaced."""
    from mikit.plot.drawing.saving import svg_of
    from mikit.plot.drawing.style import figure_style

    require_picture(path)
    if path.suffix == ".svg":
        content = svg_of(figure)
    else:
        buffer = io.BytesIO()
        with figure_style():
            figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
        content = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(_put, content))
    sync_folder(path.parent)


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)
