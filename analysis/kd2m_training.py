"""The runs of the KD²M comparison: what decides one, how it trains, where its record stands; led by ``02_kd2m.py``."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer

import mikit
from mikit.datasets import ImageData, ImagePart
from mikit.distillation import (
    DistillationTerm,
    TrainingPlan,
    accuracy_on,
    example_features,
    logits_on,
    random_stream,
    train_network,
    train_student,
)
from mikit.models import ResNet8

ALONE = "alone"
LAYER = "pool"
METRICS: dict[str, Callable[[], Any]] = {
    "mmd": lambda: mikit.MMD(),
    "energy": lambda: mikit.EnergyDistance(),
    "exact": lambda: mikit.Wasserstein(),
    "sinkhorn": lambda: mikit.SinkhornDivergence(),
    "sliced": lambda: mikit.SlicedWasserstein(),
    "gaussian": lambda: mikit.GaussianWasserstein(),
    "diagonal": lambda: mikit.GaussianWasserstein(diagonal=True),
    "kl": lambda: mikit.GaussianKL(),
}
# What is expected to work first; marginal laws were seen to hurt elsewhere.
METHODS = (
    *(f"{metric}-{form}" for metric in METRICS for form in ("class", "joint")),
    *(f"{metric}-marginal" for metric in METRICS),
)
_SPLIT_SEED = 2025


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a run besides data, method, seed and weight; stored with every run."""

    per_class: int = 5
    validation: int = 190
    teacher_width: float = 2.0
    student_width: float = 0.5
    teacher_epochs: int = 16
    teacher_batch: int = 50
    teacher_rate: float = 0.1
    epochs: int = 150
    batch: int = 25
    rate: float = 0.1
    autocast: bool = False
    channels_last: bool = False

    def teacher_plan(self) -> TrainingPlan:
        """Return how the teacher trains."""
        return self._plan(self.teacher_epochs, self.teacher_batch, self.teacher_rate, 0)

    def student_plan(self, seed: int) -> TrainingPlan:
        """Return how every student of a seed trains."""
        return self._plan(self.epochs, self.batch, self.rate, seed)

    def _plan(self, epochs: int, batch: int, rate: float, seed: int) -> TrainingPlan:
        return TrainingPlan(
            epochs=epochs,
            batch=batch,
            rate=rate,
            autocast=self.autocast,
            channels_last=self.channels_last,
            evaluate_every=epochs,
            seed=seed,
        )


class Parts(NamedTuple):
    """The images: to train on, to choose weights by, to report on."""

    data: ImageData
    train: ImagePart
    validation: ImagePart
    test: ImagePart


@dataclass(frozen=True)
class Comparison:
    """What one call compares, and where it is kept."""

    out: Path
    file: Path | None
    data_key: str
    settings: Settings
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    weights: tuple[float, ...]

    def record(self, method: str, seed: int, weight: float) -> Path:
        """Return the file of one run, named by what decides it."""
        decides = {
            "settings": asdict(self.settings),
            "data": self.data_key,
            "method": method,
            "seed": seed,
            "weight": weight,
        }
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
        return self.out / "runs" / f"{method}-seed{seed}-weight{weight:g}-{key}.json"

    def known(self, method: str, seed: int, weight: float) -> dict[str, Any] | None:
        """Return what a finished run left."""
        file = self.record(method, seed, weight)
        return json.loads(file.read_text()) if file.exists() else None

    def trials(self, method: str) -> list[dict[str, Any]]:
        """Return the finished runs on the first seed, one for every weight tried."""
        found = (self.known(method, self.seeds[0], weight) for weight in self.grid(method))
        return [run for run in found if run is not None]

    def grid(self, method: str) -> tuple[float, ...]:
        """Return the weights to try."""
        return (0.0,) if method == ALONE else self.weights

    def chosen(self, method: str) -> float | None:
        """Return the weight with the best validation accuracy on the first seed; None while a trial is missing."""
        trials = self.trials(method)
        if len(trials) < len(self.grid(method)):
            return None
        # Of equals the smaller weight; a run that failed is the last resort.
        best = max(trials, key=lambda run: (run["failed"] is None, run["validation"] or 0.0, -run["weight"]))
        return float(best["weight"])

    def reported(self, method: str) -> list[dict[str, Any]]:
        """Return the finished runs with the chosen weight, in the order of the seeds."""
        weight = self.chosen(method)
        if weight is None:
            return []
        found = (self.known(method, seed, weight) for seed in self.seeds)
        return [run for run in found if run is not None]

    def planned(self) -> int:
        """Return the number of runs of the whole comparison."""
        return sum(len(self.grid(method)) + len(self.seeds) - 1 for method in self.methods)

    def finished(self) -> int:
        """Return the number of runs that are done."""
        return sum(len(self.trials(method)) + max(0, len(self.reported(method)) - 1) for method in self.methods)


def parts_of(comparison: Comparison) -> Parts:
    """Return the images, split alike on every machine."""
    data = mikit.datasets.digits() if comparison.file is None else mikit.datasets.from_npz(comparison.file)
    each = comparison.settings.validation // data.classes
    validation = data.train.per_class(each, seed=_SPLIT_SEED)
    left = torch.from_numpy(~np.isin(data.train.ids, validation.ids)).nonzero()[:, 0]
    return Parts(data, data.train.rows(left), validation, data.test)


def train_method(comparison: Comparison, method: str) -> None:
    """Do the runs of one method that are missing."""
    torch.set_num_threads(1)
    parts = parts_of(comparison)
    teacher = trained_teacher(comparison, parts)
    first, *others = comparison.seeds
    for weight in comparison.grid(method):
        train_once(comparison, parts, teacher, method, first, weight)
    weight = comparison.chosen(method)
    assert weight is not None
    for seed in others:
        train_once(comparison, parts, teacher, method, seed, weight)


def train_once(comparison: Comparison, parts: Parts, teacher: ResNet8, method: str, seed: int, weight: float) -> None:
    """Train one student and write its record, unless it is there."""
    if comparison.known(method, seed, weight) is not None:
        return
    settings = comparison.settings
    part = parts.train.per_class(settings.per_class, seed=seed)
    student = fresh(parts, settings.student_width, seed)
    images, labels, plan = part.images, part.labels, settings.student_plan(seed)
    try:
        if method == ALONE:
            curve = train_network(student, images, labels, plan, views=parts.data.views)
        else:
            loss = built(method, student, teacher, part, settings.batch, seed)
            terms = {"kd2m": DistillationTerm(loss=loss, layer=LAYER, weight=weight, labels=True)}
            curve = train_student(student, teacher, terms, images, labels, plan, views=parts.data.views)
        failed = curve.diverged
    except mikit.InputError as refusal:  # A form that the metric cannot take, in its own words.
        curve, failed = None, str(refusal)
    seen: dict[str, float | None] = {"validation": None, "test": None}
    if failed is None:
        for name in seen:
            looked = getattr(parts, name)
            seen[name] = accuracy_on(student, looked.images, looked.labels, autocast=settings.autocast)
    content = {
        "method": method,
        "seed": seed,
        "weight": weight,
        **seen,
        "failed": failed,
        "axes": None if failed is not None else axes_of(student, teacher, parts.test, settings),
        "seconds": None if curve is None else curve.seconds,
        "settings": asdict(settings),
        "torch": torch.__version__,
        "mikit": mikit.__version__,
        "curve": [] if curve is None else [record.to_dict() for record in curve.records],
    }
    write_whole(comparison.record(method, seed, weight), json.dumps(content, indent=1))
    shown = f"failed. {failed}" if seen["test"] is None else f"{100 * seen['test']:.2f} % on test"
    tell(comparison, f"{method}, seed {seed}, weight {weight:g}: {shown}, {content['seconds'] or 0:.0f} s")


def axes_of(student: ResNet8, teacher: ResNet8, part: ImagePart, settings: Settings) -> dict[str, Any]:
    """Return how far the laws of student's and teacher's logits lie apart, and how much they know of each other."""
    own, other = (
        logits_on(network, part.images, autocast=settings.autocast).double() for network in (student, teacher)
    )
    scale = other.std()  # The gap is read in standard deviations of the teacher's logits.
    axes = mikit.both_axes(own / scale, other / scale, "energy", "gaussian", permutations=1)
    return {
        "gap": axes.gap.value,
        "nats": axes.information.value,
        "gap_trusted": axes.gap.verdict == "trustworthy",
        "nats_trusted": axes.information.verdict == "trustworthy",
    }


def built(method: str, student: ResNet8, teacher: ResNet8, part: ImagePart, batch: int, seed: int) -> torch.nn.Module:
    """Return the loss, on the scale on which a student unrelated to the teacher costs about 1."""
    metric, form = method.split("-")
    generator = random_stream(seed, "losses")
    some = part.rows(torch.randperm(len(part), generator=generator)[:batch])
    f_s, f_t = example_features(student, teacher, some.images, LAYER)
    loss: torch.nn.Module = mikit.KD2M.between(
        f_s,
        f_t,
        metric=METRICS[metric](),
        conditional=None if form == "marginal" else form,
        labels=some.labels,
        classes=student.fc.out_features,
        generator=generator,
    )
    return loss


def trained_teacher(comparison: Comparison, parts: Parts) -> ResNet8:
    """Return the teacher, trained once and kept in the folder; it never sees the images that choose or report."""
    settings = comparison.settings
    teacher = fresh(parts, settings.teacher_width, seed=0)
    curve = train_network(
        teacher,
        parts.train.images,
        parts.train.labels,
        settings.teacher_plan(),
        views=parts.data.views,
        held_out=(parts.test.images, parts.test.labels),
        folder=comparison.out / "teacher",
        progress=sys.stderr.isatty(),
    )
    _ = curve.accuracy  # Raises if it diverged.
    return teacher.eval()


def fresh(parts: Parts, width: float, seed: int) -> ResNet8:
    """Return an untrained network; the same for all methods of a seed."""
    generator = random_stream(seed, "weights")
    return ResNet8(channels=parts.data.channels, classes=parts.data.classes, width=width, generator=generator)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def tell(comparison: Comparison, what: str) -> None:
    """Say on standard error how far the comparison is."""
    typer.echo(f"[{comparison.finished()}/{comparison.planned()}] {what}", err=True)
