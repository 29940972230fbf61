"""Students recorded during training: the probe images, a store for every run, and the flow traced from the stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import mikit
from comparison.runs import Comparison, Method, Pairing, Parts, parts_of, trained_teacher
from mikit.distillation import PhaseRecorder
from mikit.models import ResNet8

TEACHER = "teacher"
HELD_BACK = 3000  # training images of a file that are not trained on, so that they can be probe images


class Probe(NamedTuple):
    """The images that every network is recorded on: test and held-back images; no network was trained on them."""

    images: Tensor
    labels: Tensor
    ids: np.ndarray


def probe_of(parts: Parts) -> Probe:
    """Return the test images, then the validation images."""
    return Probe(
        torch.cat([parts.test.images, parts.validation.images]),
        torch.cat([parts.test.labels, parts.validation.labels]),
        np.concatenate([parts.test.ids, parts.validation.ids]),
    )


@dataclass(frozen=True)
class Watching:
    """Records a student's layers at chosen epochs; called by :attr:`Method.watch`."""

    folder: Path
    method: str
    title: str

    def __call__(self, pairing: Pairing, epoch: int) -> dict[str, Any]:
        """Record, and return the epoch."""
        store = mikit.ActivationStore(
            store_folder(self.folder, self.method, pairing.seed), network=self.title, seed=pairing.seed
        )
        store.set_training_ids(pairing.some.ids)
        record(store, pairing.student, pairing.parts, epoch)
        return {"epoch": epoch}


def store_folder(out: Path, method: str, seed: int) -> Path:
    """Return the folder of a run's store."""
    return out / "stores" / f"{method}-seed{seed}"


def record(store: mikit.ActivationStore, network: nn.Module, parts: Parts, epoch: int) -> None:
    """Record a network on the probe images at one epoch."""
    probe = probe_of(parts)
    PhaseRecorder(store, probe.images, ids=probe.ids, layers=ResNet8.layers, phases=[epoch], labels=probe.labels)(
        epoch, network
    )


def watched(methods: Mapping[str, Method], out: Path) -> dict[str, Method]:
    """Return the methods, with recording of their students."""
    return {name: replace(method, watch=Watching(out, name, method.title)) for name, method in methods.items()}


def recorded_teacher(comparison: Comparison) -> mikit.ActivationStore:
    """Return the store of the trained teacher; record it if necessary."""
    torch.set_num_threads(1)
    store = mikit.ActivationStore(comparison.out / "stores" / TEACHER, network=TEACHER, seed=0)
    epochs = comparison.settings.teacher_epochs
    if epochs not in store.phases:
        parts = parts_of(comparison)
        store.set_training_ids(parts.train.ids)
        record(store, trained_teacher(comparison, parts), parts, epochs)
    return store


def recorded_students(comparison: Comparison) -> list[mikit.ActivationStore]:
    """Return the stores of all finished runs with the reported weight, method by method."""
    return [
        mikit.ActivationStore.open(store_folder(comparison.out, method, run["seed"]))
        for method in comparison.methods
        for run in comparison.reported(method)
    ]


def traced(comparison: Comparison, *, jobs: int, **options: Any) -> mikit.Flow:
    """Return the flow of the finished runs, traced into the subfolder ``flow``; resumed if it exists."""
    probe = probe_of(parts_of(comparison))
    return mikit.trace(
        recorded_teacher(comparison),
        recorded_students(comparison),
        labels=probe.labels.numpy(),
        out=comparison.out / "flow",
        jobs=jobs,
        progress=True,
        **options,
    )
