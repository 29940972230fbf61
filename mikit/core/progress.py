"""The protocol by which long runs report their progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, final

__all__ = ["SilentStages", "Stages"]


class Stages(Protocol):
    """Receives the progress of a run: each stage, its length, and every step of it."""

    def begin(self, stage: str, total: float | None = None) -> None:
        """Start a stage; ``total`` is its length if it is known."""

    def advance(self, by: float = 1.0) -> None:
        """Move the current stage forward."""

    def aside(self, stage: str) -> AbstractContextManager[bool]:
        """Give the terminal to a stage that can draw its own progress bar; yields whether it should draw one."""


@final
class SilentStages:
    """Reports nothing."""

    def begin(self, stage: str, total: float | None = None) -> None:
        """Do nothing."""

    def advance(self, by: float = 1.0) -> None:
        """Do nothing."""

    @contextmanager
    def aside(self, stage: str) -> Iterator[bool]:
        """Show nothing."""
        yield False
