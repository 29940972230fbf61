"""The top of a report: networks, phases, samples, settings, verdicts, and links to the main figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mikit.plot.drawing.tables import layers_of, present
from mikit.reporting.readings.wording import VERDICT_ORDER, listed

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["overview", "starting_points"]

_PLAIN = {
    "label_information": "the information of each layer about the labels (label information)",
    "label_gap": "its difference from the teacher's layer at the same relative depth (label gap)",
    "recovered_share": "the fraction of the information in each teacher layer that is recovered from each student "
    "layer, up to added noise (recovered share)",
    "cka": "the similarity of the layers' geometry (linear CKA)",
    "accuracy": "the accuracy stored with the activations",
}


def overview(flow: Flow) -> list[tuple[str, str]]:
    """Return terms with their descriptions, from the frame and the settings.

    Examples:
        >>> dict(overview(run))["Teacher"]
        'teacher (1 run, seed 0), at its last phase 60'
    """
    frame = flow.frame
    if frame.empty:
        return [("Rows", "This flow contains no rows: nothing was measured.")]
    students, teachers = frame[frame["role"].eq("student")], frame[frame["role"].eq("teacher")]
    entries = [("Teacher", _teacher(flow, teachers))]
    networks = [str(n) for n in students["network"].unique()]
    if networks:
        each = [f"{n} ({_runs(students[students['network'].eq(n)])})" for n in networks]
        entries.append(
            ("Students", f"{len(networks)} student network{'s' if len(networks) > 1 else ''}: {listed(each)}")
        )
        phases = sorted(int(p) for p in students["phase"].unique())
        entries.append(("Phases", f"{len(phases)}: {listed(phases, 20)}"))
        layers = layers_of(students[students["layer"].ne("")])
        if layers:
            entries.append(("Layers", f"{len(layers)} of the students: {listed(layers, 20)}"))
    entries.append(("Samples", _samples(frame)))
    entries.append(("Settings", _settings(flow)))
    entries.append(("Measured", "; ".join(_PLAIN.get(str(q), str(q)) for q in frame["quantity"].unique())))
    if not frame["quantity"].eq("label_information").any():
        entries.append(("Labels", "No labels were given, so this report has no label information."))
    counts = frame["verdict"].replace("", "not judged").fillna("not judged").value_counts()
    order = [*VERDICT_ORDER, *(name for name in counts.index if name not in VERDICT_ORDER)]
    judged = ", ".join(f"{counts[name]:,} {name}" for name in order if name in counts.index)
    entries.append(("Verdicts", f"{len(frame):,} rows: {judged}"))
    return entries


def _teacher(flow: Flow, teachers: pd.DataFrame) -> str:
    if teachers.empty:
        return f"{flow.settings.get('teacher') or 'unnamed'}; the flow contains no rows of the teacher itself"
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
    return f"{many}; pooling (readout): {listed(readouts) if readouts else 'not recorded'}"


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
    """Return links to the main figures: address, text, and what to look for; ``read`` names the drawn readings."""
    frame = flow.frame
    points: list[tuple[str, str, str]] = []
    bad = frame[frame["verdict"].isin(["unreliable", "skipped"])]
    if len(bad):
        kinds = listed([f"{n:,} {name}" for name, n in bad["verdict"].value_counts().items()])
        points.append(("#verdicts", "Verdicts", f"{kinds} rows should not be reported; see which and why."))
    if present(flow, "recovered_share"):
        points.append(
            (
                "#figure-phases",
                "Recovered share of the teacher",
                "does a student exceed its untrained baseline, and the student trained alone?",
            )
        )
    if present(flow, "label_information"):
        points.append(
            ("#figure-flow", "Label information", "in which layers do the labels become decodable? Move the phase.")
        )
    if "paths" in read:
        points.append(("#figure-paths", "Two students compared", "from which phase do two students differ?"))
    points.append(("#limits", "Claims that this page does not support", "read these before you report a value."))
    return points
