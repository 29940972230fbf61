"""The demo: a teacher, its students, and the information between them, on small real images."""

from __future__ import annotations

from mikit.demo.running import DemoResult, Stages, run_demo
from mikit.demo.settings import DemoSettings, settings_for

__all__ = ["DemoResult", "DemoSettings", "Stages", "run_demo", "settings_for"]
