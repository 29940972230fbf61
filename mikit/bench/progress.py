"""The progress that a benchmark reports while it runs."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress"]


class Progress(Protocol):
    """What tells the user how far the run has come, such as :class:`mikit.cli.terminal.Steps`."""

    def begin(self, stage: str, total: float | None = None) -> None:
        """A stage begins."""

    def advance(self, by: float = 1.0) -> None:
        """The stage has come further."""
