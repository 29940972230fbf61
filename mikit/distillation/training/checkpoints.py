"""The state of a training run on disk: everything that determines the next step, and which run it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mikit.activations import hash_of_model
from mikit.core.errors import InputError
from mikit.core.files import sync_folder, write_atomically
from mikit.core.provenance import data_hash
from mikit.distillation.training.curve import EpochRecord
from mikit.distillation.training.plan import DistillationTerm, TrainingPlan

__all__ = ["Checkpoint", "described_run"]

_VERSION = 1


@final
class Checkpoint:
    """The file that a run is resumed from, replaced after every epoch.

    It contains the states of network, losses, optimizer, schedule and all generators, and the records so far. ``run``
    is the description by :func:`described_run`; a file of another run is refused.
    """

    def __init__(
        self,
        path: Path,
        run: Mapping[str, Any],
        *,
        network: nn.Module,
        losses: Mapping[str, nn.Module],
        optimizer: Optimizer,
        schedule: LRScheduler,
        views: torch.Generator,
    ) -> None:
        self._path, self._run = path, json.loads(json.dumps(run))  # as it will be read: tuples are lists
        self._network, self._losses = network, losses
        self._optimizer, self._schedule, self._views = optimizer, schedule, views

    def save(self, records: list[EpochRecord]) -> None:
        """Write the state after the last of ``records``."""
        state = {
            "version": _VERSION,
            "run": self._run,
            "records": [record.to_dict() for record in records],
            "network": self._network.state_dict(),
            "losses": {name: loss.state_dict() for name, loss in self._losses.items()},
            "optimiser": self._optimizer.state_dict(),  # spelled as in 0.1, whose files can be resumed
            "schedule": self._schedule.state_dict(),
            "generators": {name: generator.get_state() for name, generator in self._generators()},
            "global": _global_state(),
        }
        write_atomically(self._path, lambda file: torch.save(state, file))
        sync_folder(self._path.parent)

    def load(self) -> list[EpochRecord]:
        """Restore the stored state, and return the records so far; none if there is no file.

        Raises:
            InputError: If the file cannot be read, or belongs to another run; the message names what differs.
        """
        if not self._path.exists():
            return []
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as cause:
            raise InputError(
                f"The checkpoint {str(self._path)!r} cannot be read ({type(cause).__name__}). Delete it to start again."
            ) from cause
        if not isinstance(state, dict) or state.get("version") != _VERSION:
            raise InputError(
                f"{str(self._path)!r} is not a checkpoint of this version of mikit. Delete it to start again."
            )
        self._require_same(state["run"])
        self._network.load_state_dict(state["network"])
        for name, loss in self._losses.items():
            loss.load_state_dict(state["losses"][name])
        self._optimizer.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        for name, generator in self._generators():
            generator.set_state(state["generators"][name])
        _set_global_state(state["global"])
        return [EpochRecord(**record) for record in state["records"]]

    def _require_same(self, stored: Mapping[str, Any]) -> None:
        different = [key for key in {**self._run, **stored} if self._run.get(key) != stored.get(key)]
        if different:
            key = different[0]
            others = f" ({', '.join(different[1:])} differ too)" if different[1:] else ""
            raise InputError(
                f"The checkpoint {str(self._path)!r} belongs to another run: its {key} is {stored.get(key)!r}, not "
                f"{self._run.get(key)!r}{others}. Use another folder for this run, or delete the file."
            )

    def _generators(self) -> Iterator[tuple[str, torch.Generator]]:
        """Yield the generators by name: that of order and views, and those that are attributes of losses."""
        yield "views", self._views
        for name, loss in self._losses.items():
            for path, module in loss.named_modules():
                for attribute, value in vars(module).items():
                    if isinstance(value, torch.Generator):
                        yield f"{name}:{path}:{attribute}", value


def described_run(
    plan: TrainingPlan,
    network: nn.Module,
    teacher: nn.Module | None,
    terms: Mapping[str, DistillationTerm],
    images: Tensor,
    labels: Tensor,
) -> dict[str, Any]:
    """Return what distinguishes runs: plan, data, teacher, network and losses."""
    shapes = json.dumps({name: list(value.shape) for name, value in network.state_dict().items()}, sort_keys=True)
    return {
        **{f"plan.{name}": value for name, value in asdict(plan).items()},
        "data": data_hash(images, labels),
        "network": f"{type(network).__name__} {hashlib.sha256(shapes.encode()).hexdigest()[:16]}",
        "teacher": None if teacher is None else hash_of_model(teacher.state_dict()),
        **{
            f"loss {name}": [str(term.loss), term.layer, term.source, str(term.readout), term.weight, term.labels]
            for name, term in terms.items()
        },
    }


def _global_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_global_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if torch.cuda.is_available() and len(state) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state[1:])
