"""What ``mikit distill`` does: a teacher, a student alone, and students that learn from it by chosen losses."""

from __future__ import annotations

from mikit.distill.running import DistillResult, Stages, run_distill
from mikit.distill.settings import DistillSettings, distill_settings, read_losses, read_pairs
from mikit.distill.summary import StudentSummary
from mikit.distill.teacher_file import load_teacher

__all__ = [
    "DistillResult",
    "DistillSettings",
    "Stages",
    "StudentSummary",
    "distill_settings",
    "load_teacher",
    "read_losses",
    "read_pairs",
    "run_distill",
]
