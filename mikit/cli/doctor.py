"""The command ``mikit doctor``."""

from __future__ import annotations

from pathlib import Path

from mikit.cli.terminal import answered, refuse, show_table

__all__ = ["doctor"]


@answered()
def doctor() -> None:
    """Check whether mikit works on this machine."""
    from mikit.cli.self_check import examine

    found = examine(Path.cwd())
    show_table(("", "", ""), [(item.name, "pass" if item.well else "fail", item.sentence) for item in found])
    if not all(item.well for item in found):
        raise refuse("mikit does not work correctly on this machine; see the lines marked fail.", 1)
