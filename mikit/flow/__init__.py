"""Information flow: what every layer knows, at every phase of training, and how much of the teacher it recovers."""

from __future__ import annotations

from mikit.flow.result import Flow
from mikit.flow.tracing import trace

__all__ = ["Flow", "trace"]
