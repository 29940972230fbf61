"""Accuracies of the students of a run, seed by seed and compared with the student alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from mikit.experiments.losses import ALONE
from mikit.experiments.training import Trained

__all__ = ["StudentSummary", "spread", "summarize", "table"]


@final
@dataclass(frozen=True)
class StudentSummary:
    """One kind of student over all seeds.

    Attributes:
        label: Its losses; ``"alone"`` for the student without a teacher.
        seeds: The seeds.
        accuracies: Accuracy on the test images after the last epoch for each seed; None if the training diverged.
        gains: Accuracy minus that of the student alone of the same seed; None if one of the two diverged.
        seconds: Mean training time.
        diverged: One sentence for each training that diverged.
    """

    label: str
    seeds: tuple[int, ...]
    accuracies: tuple[float | None, ...]
    gains: tuple[float | None, ...]
    seconds: float
    diverged: tuple[str, ...]

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy; None if a training diverged, because a mean of the others would be too optimistic."""
        return _mean(self.accuracies)

    @property
    def gain(self) -> float | None:
        """Mean gain over the student alone; None if a training diverged."""
        return _mean(self.gains)

    @property
    def ahead(self) -> int:
        """Number of seeds with a positive gain."""
        return sum(gain is not None and gain > 0 for gain in self.gains)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return {
            "student": self.label,
            "seeds": list(self.seeds),
            "accuracies": list(self.accuracies),
            "accuracy": self.accuracy,
            "accuracy_sd": spread(self.accuracies),
            "gains": list(self.gains),
            "gain": self.gain,
            "gain_sd": spread(self.gains),
            "ahead": self.ahead,
            "seconds": self.seconds,
            "diverged": list(self.diverged),
        }


def summarize(results: Sequence[Trained]) -> tuple[StudentSummary, ...]:
    """Return one summary for each kind of student, in the order of the results, which include the student alone."""
    alone = {result.run.seed: _accuracy(result) for result in results if result.run.network == ALONE}
    found = []
    for label in dict.fromkeys(result.run.network for result in results):
        some = [result for result in results if result.run.network == label]
        accuracies = tuple(_accuracy(result) for result in some)
        gains = tuple(
            None if value is None or (base := alone[result.run.seed]) is None else value - base
            for result, value in zip(some, accuracies, strict=True)
        )
        found.append(
            StudentSummary(
                label,
                tuple(result.run.seed for result in some),
                accuracies,
                gains,
                statistics.fmean(result.curve.seconds for result in some),
                tuple(result.curve.diverged for result in some if result.curve.diverged is not None),
            )
        )
    return tuple(found)


def spread(values: Sequence[float | None]) -> float | None:
    """Return the standard deviation; None if there are fewer than two values or one is missing."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) == len(values) > 1 else None


def table(
    teacher: tuple[str, float], summaries: Sequence[StudentSummary]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of the printed table: accuracies in percent, gains in percentage points."""
    header = ("network", "accuracy, %", "gain, points", "better in", "seconds")
    rows: list[tuple[str, ...]] = [(teacher[0], f"{100 * teacher[1]:.1f}", "", "", "")]
    for one in summaries:
        accuracy = _cell(one.accuracy, one.accuracies, "")
        gain = "" if one.label == ALONE else _cell(one.gain, one.gains, "+")
        ahead = "" if one.label == ALONE else f"{one.ahead} of {len(one.seeds)}"
        rows.append((one.label, accuracy, gain, ahead, f"{one.seconds:.0f}"))
    return header, rows


def _accuracy(result: Trained) -> float | None:
    return None if result.curve.diverged is not None else result.curve.accuracy


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _cell(mean: float | None, values: Sequence[float | None], sign: str) -> str:
    if mean is None:
        return f"{sum(value is None for value in values)} of {len(values)} diverged"
    deviation = spread(values)
    return f"{100 * mean:{sign}.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
