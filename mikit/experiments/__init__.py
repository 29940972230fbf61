"""Experiments that train a teacher and its students for several seeds: ``mikit demo`` and ``mikit distill``."""

from __future__ import annotations

from mikit.core.progress import Stages
from mikit.experiments.demo import DemoResult, run_demo
from mikit.experiments.distill import DistillResult, run_distill
from mikit.experiments.losses import read_losses, read_pairs
from mikit.experiments.settings import DemoSettings, DistillSettings, distill_settings, settings_for
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
