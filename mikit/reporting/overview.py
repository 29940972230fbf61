"""What stands at the top of a report: who was compared, when, on what, how it was judged, and where to look first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mikit.plot.drawing.tables import layers_of, present
from mikit.reporting.readings.wording import VERDICT_ORDER, listed

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["overview", "starting_points"]

_PLAIN = {
    "label_information": "how much each layer tells about the labels (label information)",
    "label_gap": "how that differs from the teacher's layer at the same relative depth (label gap)",
    "recovered_share": "which share of each teacher layer can be recovered from each student layer, up to added noise "
    "(recovered share)",
    "cka": "how similar the layers are as geometries (linear CKA)",
    "accuracy": "the accuracy noted with the activations",
}


def overview(flow: Flow) -> list[tuple[str, str]]:
    """Terms and what is to be said of each, read off the frame and the settings.

    Examples:
        >>> dict(overview(run))["Teacher"]
        'teacher (1 run, seed 0), at its last phase 60'
    """
    frame = flow.frame
    if frame.empty:
        return [("Rows", "This flow holds no rows: nothing was measured.")]
    students, teachers = frame[frame["role"].eq("student")], frame[frame["role"].eq("teacher")]
    told = [("Teacher", _teacher(flow, teachers))]
    networks = [str(n) for n in students["network"].unique()]
    if networks:
        each = [f"{n} ({_runs(students[students['network'].eq(n)])})" for n in networks]
        told.append(("Students", f"{len(networks)} student network{'s' if len(networks) > 1 else ''}: {listed(each)}"))
        phases = sorted(int(p) for p in students["phase"].unique())
        told.append(("Phases", f"{len(phases)}: {listed(phases, 20)}"))
        layers = layers_of(students[students["layer"].ne("")])
        if layers:
            told.append(("Layers", f"{len(layers)} of the students: {listed(layers, 20)}"))
    told.append(("Samples", _samples(frame)))
    told.append(("Settings", _settings(flow)))
    told.append(("Measured", "; ".join(_PLAIN.get(str(q), str(q)) for q in frame["quantity"].unique())))
    if not frame["quantity"].eq("label_information").any():
        told.append(("Labels", "No labels were given, so nothing here says what the layers know about the task."))
    counts = frame["verdict"].replace("", "not judged").fillna("not judged").value_counts()
    order = [*VERDICT_ORDER, *(name for name in counts.index if name not in VERDICT_ORDER)]
    judged = ", ".join(f"{counts[name]:,} {name}" for name in order if name in counts.index)
    told.append(("Verdicts", f"{len(frame):,} rows: {judged}"))
    return told


def _teacher(flow: Flow, teachers: pd.DataFrame) -> str:
    if teachers.empty:
        return f"{flow.settings.get('teacher') or 'not named'}, of which the flow has no rows of its own"
    names = [str(n) for n in teachers["network"].unique()]
    return f"{listed(names)} ({_runs(teachers)}), at its last phase {int(teachers['phase'].max())}"


def _runs(rows: pd.DataFrame) -> str:
    seeds = sorted(rows["seed"].unique())
    return f"1 run, seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} runs, seeds {listed(seeds)}"


def _samples(frame: pd.DataFrame) -> str:
    counts = sorted({int(n) for n in frame["n"].dropna() if n > 0})
    readouts = sorted({str(r) for r in frame["readout"] if isinstance(r, str) and r})
    many = "N not recorded"
    if counts:
        many = f"N = {counts[0]:,}" if len(counts) == 1 else f"N between {counts[0]:,} and {counts[-1]:,}"
    return f"{many}; readout: {listed(readouts) if readouts else 'not recorded'}"


def _settings(flow: Flow) -> str:
    frame, settings = flow.frame, flow.settings
    parts = []
    levels = sorted(float(level) for level in frame["noise"].dropna().unique())
    if levels:
        own = settings.get("student_noise")
        beside = f", student noise {float(own):g}" if own is not None else ""
        parts.append(f"teacher noise σ = {listed([f'{level:g}' for level in levels])}{beside}, in RMS SDs of a layer")
    probes = sorted({str(p) for p in frame.loc[frame["quantity"].eq("label_information"), "probe"] if p})
    if probes:
        parts.append(f"{listed(probes)} probe")
    if settings.get("folds"):
        parts.append(f"{settings['folds']} folds")
    if settings.get("reduce"):
        parts.append(f"wider layers by their first {settings['reduce']} principal components")
    return "; ".join(parts) or "not recorded"


def starting_points(flow: Flow, read: set[str]) -> list[tuple[str, str, str]]:
    """Where to look first, in order: address, words of the link, what to look for there.

    Args:
        flow: The flow.
        read: Names of the readings that are drawn.
    """
    frame = flow.frame
    points: list[tuple[str, str, str]] = []
    bad = frame[frame["verdict"].isin(["unreliable", "skipped"])]
    if len(bad):
        kinds = listed([f"{n:,} {name}" for name, n in bad["verdict"].value_counts().items()])
        points.append(("#verdicts", "Verdicts", f"{kinds} rows should not be quoted; see which they are and why."))
    if present(flow, "recovered_share"):
        points.append(
            (
                "#figure-phases",
                "Share of the teacher recovered",
                "does a student leave its untrained floor, and the student trained alone?",
            )
        )
    if present(flow, "label_information"):
        points.append(("#figure-flow", "Label information", "where do the labels become readable? Move the phase."))
    if "paths" in read:
        points.append(("#figure-paths", "Two students side by side", "from which phase on do two students part?"))
    points.append(("#limits", "What this page may not be used to claim", "before you quote a number."))
    return points
