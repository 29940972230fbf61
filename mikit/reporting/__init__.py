"""Reports of information flow: one self-contained HTML page."""

from __future__ import annotations

from mikit.reporting.page import report

__all__ = ["report"]
