"""A teacher and its students, trained seed by seed: ``mikit distill`` and ``mikit demo``."""

from __future__ import annotations

from mikit.experiments.demo import DemoResult, run_demo
from mikit.experiments.demo_settings import DemoSettings, settings_for
from mikit.experiments.distill import DistillResult, Stages, run_distill
from mikit.experiments.settings import DistillSettings, distill_settings, read_losses, read_pairs
from mikit.experiments.summary import StudentSummary
from mikit.experiments.teacher_file import load_teacher

__all__ = [
    "DemoResult",
    "DemoSettings",
    "DistillResult",
    "DistillSettings",
    "Stages",
    "StudentSummary",
    "distill_settings",
    "load_teacher",
    "read_losses",
    "read_pairs",
    "run_demo",
    "run_distill",
    "settings_for",
]
