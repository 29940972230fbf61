"""Narrow rows below the panels of a figure: the verdicts of the plotted rows, and the progress of an animation."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import pandas as pd
from matplotlib.patches import Rectangle

from mikit.flow.result import SKIPPED
from mikit.plot.drawing.names import clip_text, short_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ["BAND_COLORS", "Band", "Progress", "VerdictBar", "verdict_bar"]

_INK, _SOFT = "#222222", "#5a5a5a"
_LOOKS: dict[str, tuple[str, str, str, str]] = {  # face, hatch, color of hatch and edge, text color
    "trustworthy": ("#cfe6f2", "", "#cfe6f2", _INK),
    "caution": ("#e8a93a", "//////", "#fbe3b0", _INK),
    "unreliable": ("#7a2602", "", "#7a2602", "#ffffff"),
    SKIPPED: ("#ffffff", "....", "#8a8a8a", _INK),
}
"""Four verdicts that differ in lightness and hatch, so that they can be distinguished without color."""

BAND_COLORS = ("#0173b2", "#e2e2e2", *(color for look in _LOOKS.values() for color in (look[0], look[2])))
"""All colors of the bands."""

_LETTERS = {"trustworthy": "T", "caution": "C", "unreliable": "U", SKIPPED: "S"}
_LINE, _CELL, _PAD = 0.135, 0.15, 0.02
_ABOVE = 0.05
_WIDEST_CELL = 1.25
_CHARACTER, _NAME = 0.0505, 0.054


class Band(abc.ABC):
    """A row drawn on the figure itself, so that ``figure.axes`` contains only the panels."""

    @abc.abstractmethod
    def height(self, width: float) -> float:
        """Height in inches in a figure of this width."""

    @abc.abstractmethod
    def draw(self, fig: Figure, left: float, bottom: float, width: float) -> None:
        """Draw it; all lengths in inches from the lower left corner of the figure."""


@final
@dataclass(frozen=True)
class VerdictBar(Band):
    """Numbers of rows with each verdict behind a figure, one cell per phase or layer.

    Attributes:
        by: What a cell stands for, such as ``"phase"`` or ``"layer"``.
        names: Names of the cells.
        counts: Number of rows with each verdict, for each cell.
    """

    by: str
    names: tuple[str, ...]
    counts: tuple[dict[str, int], ...]

    @property
    def totals(self) -> dict[str, int]:
        """Number of rows with each verdict that occurs, from the best to the worst."""
        summed = {word: sum(cell.get(word, 0) for cell in self.counts) for word in _LOOKS}
        return {word: count for word, count in summed.items() if count}

    def height(self, width: float) -> float:
        """Height in inches in a figure of this width."""
        return _ABOVE + len(self._lines(width)) * _LINE + _CELL + _LINE + _PAD

    def draw(self, fig: Figure, left: float, bottom: float, width: float) -> None:
        """Draw the heading with its key, the cells, and their names below."""
        top = bottom + self.height(width) - _ABOVE
        for number, line in enumerate(self._lines(width)):
            y = top - (number + 1) * _LINE
            for x, word, text in line:
                if word:
                    _box(fig, left + x, y + 0.015, 0.13, 0.085, word, gid="verdict key")
                _text(fig, left + x + (0.17 if word else 0), y + 0.06, text, size=6.6)
        y = bottom + _PAD + _LINE
        cell = min(width / max(len(self.names), 1), _WIDEST_CELL)
        self._draw_cells(fig, left, y, cell)
        every = _label_every(self.names, cell)
        for place, name in enumerate(_fitting(self.names, cell * every)):
            if place % every == 0:
                _text(fig, left + (place + 0.5) * cell, y - 0.075, name, size=6.2, ha="center")

    def _draw_cells(self, fig: Figure, left: float, y: float, cell: float) -> None:
        for place, counts in enumerate(self.counts):
            total, x = sum(counts.values()), left + place * cell
            room = cell - min(0.03, 0.12 * cell)
            if not total:
                _outline(fig, x, y, room, _CELL)
                continue
            for word in _LOOKS:
                count = counts.get(word, 0)
                if not count:
                    continue
                share = room * count / total
                _box(fig, x, y, share, _CELL, word, gid=f"verdict {word}")
                label = f"{_LETTERS[word]} {count}"
                if len(label) * _CHARACTER + 0.02 < share:
                    _text(fig, x + share / 2, y + _CELL / 2, label, size=6.0, ha="center", color=_LOOKS[word][3])
                x += share

    def _lines(self, width: float) -> list[list[tuple[float, str, str]]]:
        """Heading and key, wrapped: position in inches, verdict and text."""
        parts = [("", f"Verdicts of the plotted student rows, by {self.by}:")]
        parts += [(word, f"{_LETTERS[word]} {word} {count:,}") for word, count in self.totals.items()]
        lines: list[list[tuple[float, str, str]]] = [[]]
        x = 0.0
        for word, text in parts:
            wide = (0.17 if word else 0.0) + len(text) * _CHARACTER
            if lines[-1] and x + wide > width:
                lines.append([])
                x = 0.0
            lines[-1].append((x, word, text))
            x += wide + 0.14
        return lines


def verdict_bar(table: pd.DataFrame, by: str, order: Sequence[int] | Sequence[str]) -> VerdictBar:
    """Count the verdicts of the plotted rows by the values ``order`` of a column, in the order of the cells.

    A verdict unknown to mikit counts as unreliable.

    Examples:
        >>> table = pd.DataFrame({"phase": [0, 0, 8], "verdict": ["trustworthy", "caution", "unreliable"]})
        >>> verdict_bar(table, "phase", [0, 8]).totals
        {'trustworthy': 1, 'caution': 1, 'unreliable': 1}
    """
    known = table["verdict"].where(table["verdict"].isin(list(_LOOKS)), "unreliable")
    cells = []
    for value in order:
        counted = known[table[by].eq(value)].value_counts()
        cells.append({str(word): int(count) for word, count in counted.items()})
    return VerdictBar(by, tuple(map(str, order)), tuple(cells))


@final
class Progress(Band):
    """One cell per phase of an animation, dark up to the current phase."""

    def __init__(self, phases: Sequence[int]) -> None:
        self.phases = tuple(phases)
        self.boxes: list[Rectangle] = []
        self.title: Text | None = None

    def height(self, width: float) -> float:
        """Height in inches."""
        return 2 * _ABOVE + 2 * _LINE + 0.09 + _PAD

    def draw(self, fig: Figure, left: float, bottom: float, width: float) -> None:
        """Draw the name of the phase, the bar, and the numbers of the phases below it."""
        y = bottom + _PAD + _LINE
        self.title = _text(fig, left, y + 0.09 + 0.085, "", size=8.5, color=_INK)
        self.title.set_fontweight("bold")
        cell = min(width / len(self.phases), _WIDEST_CELL)
        names = tuple(map(str, self.phases))
        every = _label_every(names, cell)
        for place, name in enumerate(names):
            box = Rectangle(
                ((left + place * cell) / _wide(fig), y / _tall(fig)),
                (cell - min(0.03, 0.12 * cell)) / _wide(fig),
                0.08 / _tall(fig),
                linewidth=0,
                transform=fig.transFigure,
            )
            fig.add_artist(box)
            self.boxes.append(box)
            if place % every == 0:
                _text(fig, left + (place + 0.5) * cell, y - 0.075, name, size=6.2, ha="center")
        self.show(0)

    def show(self, at: int) -> None:
        """Show the phase at this position."""
        assert self.title is not None
        self.title.set_text(f"phase {self.phases[at]}  ({at + 1} of {len(self.phases)} recordings)")
        for place, box in enumerate(self.boxes):
            box.set_facecolor("#0173b2" if place <= at else "#e2e2e2")
            box.set_gid("progress done" if place <= at else "progress to come")


def _label_every(names: Sequence[str], cell: float) -> int:
    """Return the smallest step at which names fit; numbers are never shortened, other names are."""
    longest = max((len(name) if name.isdigit() else min(len(name), 6) for name in names), default=1)
    return max(1, -(-int(1000 * (longest * _CHARACTER + 0.06)) // max(int(1000 * cell), 1)))


def _fitting(names: Sequence[str], room: float) -> list[str]:
    if all(name.isdigit() for name in names):
        return list(names)
    limit = max(4, int((room - 0.04) / _NAME))
    return [clip_text(name, limit) for name in short_names(names, max(limit, 6))]


def _wide(fig: Figure) -> float:
    return float(fig.get_size_inches()[0])


def _tall(fig: Figure) -> float:
    return float(fig.get_size_inches()[1])


def _text(fig: Figure, x: float, y: float, text: str, *, size: float, ha: str = "left", color: str = _SOFT) -> Text:
    artist = fig.text(x / _wide(fig), y / _tall(fig), text, ha=ha, va="center", fontsize=size, color=color)
    artist.set_gid("band")
    return artist


def _box(fig: Figure, x: float, y: float, wide: float, tall: float, word: str, *, gid: str) -> None:
    face, hatch, edge, _ = _LOOKS[word]
    box = Rectangle(
        (x / _wide(fig), y / _tall(fig)),
        wide / _wide(fig),
        tall / _tall(fig),
        facecolor=face,
        edgecolor=edge,
        hatch=hatch,
        linewidth=0.0,
        transform=fig.transFigure,
    )
    box.set_gid(gid)
    fig.add_artist(box)
    if word == SKIPPED:
        _outline(fig, x, y, wide, tall)


def _outline(fig: Figure, x: float, y: float, wide: float, tall: float) -> None:
    edge = Rectangle(
        (x / _wide(fig), y / _tall(fig)),
        wide / _wide(fig),
        tall / _tall(fig),
        fill=False,
        edgecolor="#8a8a8a",
        linewidth=0.6,
        transform=fig.transFigure,
    )
    fig.add_artist(edge)
