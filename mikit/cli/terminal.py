"""Output of the command line: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, Self, final, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text
from typer.models import OptionInfo

from mikit.core.errors import InputError

if TYPE_CHECKING:
    from mikit.core.measurement import Measurement

P = ParamSpec("P")

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
    """Print the reason on standard error, and return the exit to raise."""
    Console(stderr=True, highlight=False).print(sentence, soft_wrap=True, markup=False)
    return typer.Exit(code)


def say(text: str) -> None:
    """Print text on standard output, without markup."""
    Console(highlight=False).print(text, soft_wrap=True, markup=False)


def answered() -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Return the decorator of commands, which turns exceptions into exit codes.

    The code is 2 with one sentence for invalid input, and 1 with a traceback for a bug.
    """

    def decorated(command: Callable[P, None]) -> Callable[P, None]:
        @wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                command(*args, **kwargs)
            except InputError as cause:
                raise refuse(f"Error: {_as_typed(str(cause), _options_of(command))}", 2) from None
            except OSError as cause:
                where = f"{cause.filename}: " if cause.filename else ""
                raise refuse(f"Error: {where}{cause.strerror or cause}.", 2) from None
            except (typer.Exit, typer.Abort):
                raise
            except Exception as cause:
                traceback.print_exc()
                raise refuse(
                    f"This is a bug in mikit ({type(cause).__name__}), not an error in your input. Please report it "
                    "with the traceback above and the output of `mikit doctor`.",
                    1,
                ) from None

        return run

    return decorated


def _options_of(command: Callable[..., None]) -> dict[str, str]:
    """Return the options of a command, by the name of the parameter."""
    options = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        for described in getattr(hint, "__metadata__", ()):
            if isinstance(described, OptionInfo):
                given = [text for text in described.param_decls or () if text.startswith("--")]
                options[name] = given[0] if given else f"--{name.replace('_', '-')}"
    return options


def _as_typed(message: str, options: Mapping[str, str]) -> str:
    """Return a message of the Python API with options in place of arguments.

    Example:
        >>> _as_typed("jobs is 0. Pass jobs=1, or out=.", {"jobs": "--jobs", "out": "--out"})
        '--jobs is 0. Pass --jobs 1, or --out.'
    """
    for name, option in options.items():
        message = re.sub(rf"(?<![\w-]){name}=(?:True\b)?(?=[\s.,;)]|$)", option, message)
        message = re.sub(rf"(?<![\w-]){name}=(?=\S)", f"{option} ", message)
        # Names with an underscore are no English words, so they are replaced wherever they occur; others only where
        # they must be an argument.
        subject = rf"^{name}(?= (?:is|names|contains)\b)|(?<=[Ll]eave out ){name}\b"
        pattern = rf"(?<![\w-]){name}(?![\w-])" if "_" in name else subject
        message = re.sub(pattern, option, message)
    return message


@final
class Steps:
    """Progress on standard error: a bar with the remaining time, or a clock if the length is unknown.

    Use it as a context manager. With ``lines``, each stage prints a line if standard error is not a terminal.
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
        """Start a stage; ``total`` is its length if it is known."""
        self._end_stage()
        if self._console.is_terminal:
            self._stage = self._progress.add_task(stage, total=total)
        elif self._lines:
            self._console.print(stage, soft_wrap=True, markup=False)

    def advance(self, by: float = 1.0) -> None:
        """Move the current stage forward."""
        if self._stage is not None:
            self._progress.advance(self._stage, by)

    @contextmanager
    def aside(self, stage: str) -> Iterator[bool]:
        """Pause this progress bar during a stage that draws its own; yields whether it should draw one."""
        self._end_stage()
        self._progress.stop()
        for task in self._progress.task_ids:  # finished bars stay on the screen and must not be drawn again
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
    """Print rows of text under ``header``, if there is one; the second column is colored by outcome."""
    table = Table(box=None, pad_edge=False, show_header=any(header))
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, _OUTCOME_STYLE.get(cell, "") if i == 1 else "") for i, cell in enumerate(row)))
    Console(highlight=False).print(table)
