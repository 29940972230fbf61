"""Records of a training run: one per epoch, on disk one line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from mikit.core.errors import InputError
from mikit.core.files import write_atomically
from mikit.distillation.training.plan import TrainingPlan

__all__ = ["EpochRecord", "TrainingCurve", "write_log"]


@final
@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """Results of one epoch.

    Attributes:
        epoch: Its number, from 1.
        loss: The whole loss, averaged over the steps.
        task: Cross-entropy with the labels, averaged over the steps.
        terms: Every distillation loss before its weight, averaged over the steps.
        train_accuracy: Fraction of the training views classified correctly during training.
        accuracy: Fraction of the held-out images classified correctly after the epoch; None if not evaluated.
        rate: Learning rate of the network after the epoch.
        seconds: Wall time of the epoch, including the evaluation.
    """

    epoch: int
    loss: float
    task: float
    terms: Mapping[str, float]
    train_accuracy: float
    accuracy: float | None
    rate: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return {**asdict(self), "terms": dict(self.terms)}


@final
@dataclass(frozen=True)
class TrainingCurve:
    """All epochs of a run.

    Attributes:
        plan: The plan.
        records: One record per epoch; if training diverged, the last one is of that epoch.
        diverged: A sentence on what was no longer finite, and when; None if training did not diverge.
    """

    plan: TrainingPlan
    records: tuple[EpochRecord, ...]
    diverged: str | None = None

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the held-out images after the last epoch; None without held-out images.

        Raises:
            InputError: If the run diverged.
        """
        if self.diverged is not None:
            raise InputError(self.diverged)
        return self.records[-1].accuracy

    @property
    def seconds(self) -> float:
        """Wall time of all epochs, before and after an interruption."""
        return sum(record.seconds for record in self.records)


def write_log(path: Path, records: Sequence[EpochRecord]) -> None:
    """Write one line of JSON per record, atomically; numbers that are not finite are written as text."""
    lines = [json.dumps(_plain(record.to_dict()), allow_nan=False) for record in records]
    content = "".join(f"{line}\n" for line in lines).encode()
    write_atomically(path, lambda file: file.write(content))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, float) and value - value != 0:
        return repr(value)
    return value
