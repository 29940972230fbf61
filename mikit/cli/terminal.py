"""What the command line shows: results on standard output, progress and refusals on standard error."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from mikit.core.errors import InputError

if TYPE_CHECKING:
    from mikit.core.measurement import Measurement

__all__ = ["Steps", "answered", "refuse", "say", "show_measurement", "show_table"]

_OUTCOME_STYLE = {
    "trustworthy": "green",
    "pass": "green",
    "caution": "yellow",
    "warn": "yellow",
    "unreliable": "red",
    "fail": "red",
}


def refuse(sentence: str, code: int) -> typer.Exit:
    """Say on standard error why there is no result, and return the exit to raise."""
    Console(stderr=True, highlight=False).print(sentence, soft_wrap=True, markup=False)
    return typer.Exit(code)


def say(text: str) -> None:
    """Print ``text`` on standard output as it is."""
    Console(highlight=False).print(text, soft_wrap=True, markup=False)


@contextmanager
def answered() -> Iterator[None]:
    """Turn what a command raises into an exit code: 2 and one sentence for bad input, 1 and a trace for a defect."""
    try:
        yield
    except InputError as cause:
        raise refuse(f"Error: {cause}", 2) from None
    except OSError as cause:
        where = f"{cause.filename}: " if cause.filename else ""
        raise refuse(f"Error: {where}{cause.strerror or cause}.", 2) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as cause:
        traceback.print_exc()
        raise refuse(
            f"This is a defect of mikit ({type(cause).__name__}), not of your input. Please report it with the lines "
            "above and the output of `mikit doctor`.",
            1,
        ) from None


@final
class Steps:
    """Progress on standard error: a bar with the time left where the length is known, a clock where it is not.

    Used as a context manager.

    Args:
        lines: Where standard error is no terminal, tell of each stage in a line instead of saying nothing.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._lines = lines
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._stage: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_stage()
        self._progress.stop()

    def begin(self, stage: str, total: float | None = None) -> None:
        """A stage begins; ``total`` is its length, if it is known."""
        self._end_stage()
        if self._console.is_terminal:
            self._stage = self._progress.add_task(stage, total=total)
        elif self._lines:
            self._console.print(stage, soft_wrap=True, markup=False)

    def advance(self, by: float = 1.0) -> None:
        """The stage has come ``by`` further."""
        if self._stage is not None:
            self._progress.advance(self._stage, by)

    @contextmanager
    def aside(self, stage: str) -> Iterator[bool]:
        """Leave the terminal to a stage that draws a bar of its own; gives whether it should."""
        self._end_stage()
        self._progress.stop()
        for task in self._progress.task_ids:  # What is on the screen stays there and is not drawn again.
            self._progress.remove_task(task)
        if not self._console.is_terminal and self._lines:
            self._console.print(stage, soft_wrap=True, markup=False)
        try:
            yield self._console.is_terminal
        finally:
            self._progress.start()

    def _end_stage(self) -> None:
        if self._stage is None:
            return
        if self._progress.tasks[-1].total is None:
            self._progress.update(self._stage, total=1.0, completed=1.0)
        self._progress.stop_task(self._stage)
        self._stage = None


def show_measurement(measurement: Measurement) -> None:
    """Print a measurement with its checks."""
    console = Console(highlight=False)
    console.print(str(measurement), soft_wrap=True, markup=False)
    rows = [(check.name, check.outcome, check.sentence) for check in measurement.checks]
    show_table(("check", "outcome", "meaning"), rows)


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under ``header``, if there is one; the second column is coloured by what it says."""
    table = Table(box=None, pad_edge=False, show_header=any(header))
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, _OUTCOME_STYLE.get(cell, "") if i == 1 else "") for i, cell in enumerate(row)))
    Console(highlight=False).print(table)
