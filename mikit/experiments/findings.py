"""The findings of a demo run in five sentences; every number and every comparison is computed from the run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from mikit.experiments.losses import ALONE

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BROKEN", "TAUGHT", "describe_run"]

TAUGHT = "VID"
BROKEN = "VID, pairing broken"

_STAGE = "stage3"
_POOL = "pool"
_NOISE = 0.3


def describe_run(frame: pd.DataFrame, *, label_entropy: float, per_class: int, images: int) -> tuple[str, ...]:
    """Return five sentences about the networks ``alone``, ``VID`` and ``VID, pairing broken`` of a demo run.

    Args:
        frame: The frame of the run's flow.
        label_entropy: Entropy of the labels in nats.
        per_class: Labeled images per class that the students were trained on.
        images: Number of images on which accuracies and activations were measured.
    """
    return (
        _accuracy(frame, per_class, images),
        _labels(frame, label_entropy),
        _share(frame),
        _control(frame),
        _trust(frame),
    )


@final
@dataclass(frozen=True)
class _Comparison:
    """One quantity of two kinds of student for each run."""

    first: np.ndarray
    second: np.ndarray

    @property
    def gain(self) -> float:
        return float((self.first - self.second).mean())

    @property
    def higher(self) -> int:
        return int((self.first > self.second).sum())

    @property
    def lower(self) -> int:
        return int((self.first < self.second).sum())

    @property
    def runs(self) -> int:
        return int(self.first.shape[0])

    def describe(self, digits: int, unit: str) -> str:
        """Return which is higher, by how much, and in how many of the runs."""
        size = f"{abs(self.gain):.{digits}f}"
        if float(size) == 0:
            return f"no difference on average (more in {self.higher} of {_runs(self.runs)}, less in {self.lower})"
        word, agreeing = ("more", self.higher) if self.gain > 0 else ("less", self.lower)
        return f"{size} {unit} {word} on average, and {word} in {agreeing} of {_runs(self.runs)}"


def _accuracy(frame: pd.DataFrame, per_class: int, images: int) -> str:
    teacher = 100 * _final_teacher(frame, quantity="accuracy").mean()
    alone, taught = (100 * _final(frame, network, quantity="accuracy") for network in (ALONE, TAUGHT))
    return (
        f"Accuracy on {images:,} images that no network was trained on: teacher {teacher:.1f} %; a small student with "
        f"{per_class} labeled images per class {_spread(alone, 1)} % alone and {_spread(taught, 1)} % with VID: "
        f"{_Comparison(taught, alone).describe(1, 'points')}."
    )


def _labels(frame: pd.DataFrame, entropy: float) -> str:
    chosen = {"quantity": "label_information", "layer": _POOL}
    alone, taught = (_final(frame, network, **chosen) for network in (ALONE, TAUGHT))
    teacher = _final_teacher(frame, **chosen).mean()
    first = _final_teacher(frame, quantity="label_information", layer_index=0).mean()
    saturated = "" if first <= 0.9 * entropy else " (saturated: the teacher's first layer already has 90 % of them)"
    return (
        f"Of the {entropy:.2f} nats in the labels{saturated}, a linear probe of the last hidden layer finds "
        f"{teacher:.2f} in the teacher, {_spread(alone, 2)} in the student alone and {_spread(taught, 2)} with VID: "
        f"{_Comparison(taught, alone).describe(2, 'nats')}."
    )


def _share(frame: pd.DataFrame) -> str:
    alone, taught = (_final(frame, network, **_stage(frame)) for network in (ALONE, TAUGHT))
    rows = _rows(frame, **_stage(frame))
    untrained = _percent(rows["untrained"].dropna().mean())
    permuted = _percent(rows["null"].dropna().mean())
    return (
        f"Information about the teacher's {_STAGE} that the student's {_STAGE} recovers: {_spread(100 * alone, 0)} % "
        f"alone and {_spread(100 * taught, 0)} % with VID (untrained {untrained}, samples permuted {permuted}; linear "
        f"Gaussian information at noise {_noise(frame):g}): {_lead(frame)}."
    )


def _control(frame: pd.DataFrame) -> str:
    taught, alone, broken = (_final(frame, network, **_stage(frame)) for network in (TAUGHT, ALONE, BROKEN))
    right, wrong = (100 * _final(frame, network, quantity="accuracy") for network in (TAUGHT, BROKEN))
    share, accuracy = _Comparison(taught, broken), _Comparison(right, wrong)
    plain = _final(frame, ALONE, quantity="accuracy")
    helped = bool((taught > alone).all() and (right > 100 * plain).all())
    if share.higher == share.runs and accuracy.higher == accuracy.runs:
        conclusion = (
            "so the gain of VID here depends on the right pairing"
            if helped
            else "so the wrong pairing is worse than the right one"
        )
    elif share.lower == share.runs and accuracy.lower == accuracy.runs:
        conclusion = "so here the wrong pairing does better than the right one"
    else:
        conclusion = "so this run does not show whether the pairing matters"
    below = (
        f"below VID in {accuracy.higher} of {_runs(share.runs)}"
        if accuracy.higher == share.higher
        else f"below VID in {accuracy.higher} and {share.higher} of {_runs(share.runs)}"
    )
    return (
        f"Control: trained with the teacher's features of another image, the student reaches {_spread(wrong, 1)} % "
        f"accuracy and recovers {_spread(100 * broken, 0)} % of {_STAGE}, {below}, {conclusion}."
    )


def _trust(frame: pd.DataFrame) -> str:
    counts = Counter(str(verdict) for verdict in frame["verdict"] if verdict)
    total = sum(counts.values())
    verdicts = ", ".join(f"{counts[name]:,} {name}" for name in ("trustworthy", "caution", "unreliable"))
    reasons = Counter(
        reason
        for joined, verdict in zip(frame["reasons"], frame["verdict"], strict=True)
        if verdict != "trustworthy"
        for reason in str(joined).split("; ")
        if reason
    )
    commonest = f' The most common reason for a flag: "{reasons.most_common(1)[0][0]}".' if reasons else ""
    return (
        f"Of {total:,} values in the table, {verdicts}; the runs share one teacher, so the spreads do not include that "
        f"of the teacher.{commonest}"
    )


def _lead(frame: pd.DataFrame) -> str:
    """Return which recovers more at the end, and from which phase on in every run."""
    alone, taught = (_final(frame, network, **_stage(frame)) for network in (ALONE, TAUGHT))
    difference = _Comparison(100 * taught, 100 * alone).describe(0, "points")
    phases = sorted(int(phase) for phase in _rows(frame, network=TAUGHT, **_stage(frame))["phase"].unique())
    since = None
    for phase in reversed(phases):
        here = [_at(frame, network, phase, **_stage(frame)) for network in (TAUGHT, ALONE)]
        if not bool((here[0] > here[1]).all()):
            break
        since = phase
    return difference if since is None else f"{difference}, and in every run from epoch {since} of {phases[-1]} on"


def _stage(frame: pd.DataFrame) -> dict[str, Any]:
    return {
        "quantity": "recovered_share",
        "layer": _STAGE,
        "teacher_layer": _STAGE,
        "noise": _noise(frame),
    }


def _noise(frame: pd.DataFrame) -> float:
    levels = sorted(float(level) for level in frame["noise"].dropna().unique())
    return min(levels, key=lambda level: abs(level - _NOISE))


def _rows(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    keep = frame["role"].eq("student") if "role" not in wanted else frame["role"].eq(wanted["role"])
    for column, value in wanted.items():
        keep &= frame[column].eq(value)
    return frame[keep]


def _final(frame: pd.DataFrame, network: str, **wanted: Any) -> np.ndarray:
    """Return the values at the last phase of a network, in the order of the seeds."""
    rows = _rows(frame, network=network, **wanted)
    return _at(frame, network, int(rows["phase"].max()), **wanted)


def _at(frame: pd.DataFrame, network: str, phase: int, **wanted: Any) -> np.ndarray:
    rows = _rows(frame, network=network, phase=phase, **wanted).sort_values("seed")
    return rows["value"].to_numpy(dtype=float)


def _final_teacher(frame: pd.DataFrame, **wanted: Any) -> np.ndarray:
    rows = _rows(frame, role="teacher", **wanted)
    return rows[rows["phase"].eq(rows["phase"].max())]["value"].to_numpy(dtype=float)


def _spread(values: np.ndarray, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    if values.shape[0] == 1:
        return mean
    return f"{mean} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def _percent(share: float) -> str:
    # Adding 0 turns a rounded -0 into 0.
    return "not recorded" if np.isnan(share) else f"{round(100 * share) + 0:d} %"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
