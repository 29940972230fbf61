"""The peers beside mikit in words: who was asked and how, who is not there, and the figures of all."""

from __future__ import annotations

from mikit.bench.accuracy_peers import Comparison
from mikit.bench.accuracy_report import accuracy_markdown, accuracy_screen
from mikit.bench.tables import aligned, markdown_table

__all__ = ["comparison_markdown", "comparison_screen"]

_HEADER = ("estimator", "version", "called as")
_NOTE = (
    "Peers are called with the defaults that they document, on the same rows, one thread each; they give no interval "
    "and no verdict. Their seconds are those of the estimate alone, mikit's hold the checks and permuted data besides."
)


def comparison_screen(found: Comparison) -> str:
    """Return the comparison as text with aligned columns.

    Args:
        found: What was found.
    """
    asked = "\n".join(["The peers", *aligned(_HEADER, _rows(found))]) if _rows(found) else "No peer was asked."
    return "\n\n".join(
        [asked, *(["\n".join(_missing(found))] if found.missing else []), accuracy_screen(found.report), _NOTE]
    )


def comparison_markdown(found: Comparison) -> str:
    """Return the comparison as Markdown.

    Args:
        found: What was found.
    """
    asked = f"**The peers**\n\n{markdown_table(_HEADER, _rows(found))}" if _rows(found) else "No peer was asked."
    missing = "\n".join(f"- {line}" for line in _missing(found))
    return "\n\n".join([asked, *([missing] if missing else []), accuracy_markdown(found.report), _NOTE]) + "\n"


def _rows(found: Comparison) -> list[tuple[str, ...]]:
    return [
        (peer.title, found.versions[peer.peer], peer.settings) for peer in found.peers if peer.peer in found.versions
    ]


def _missing(found: Comparison) -> list[str]:
    return [
        f"{missing.name} was not asked: {missing.reason}. To add it: {missing.install}." for missing in found.missing
    ]
