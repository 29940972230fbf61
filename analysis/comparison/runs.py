"""Runs of a comparison of methods: what decides one, how it trains, how its weight is chosen, where it is kept."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer
from torch import nn

import mikit
from mikit.datasets import ImageData, ImagePart
from mikit.distillation import (
    DistillationTerm,
    TrainingPlan,
    accuracy_on,
    logits_on,
    random_stream,
    train_network,
    train_student,
)
from mikit.models import MLP, ResNet8

ALONE = "alone"
PHASES = (0, 1, 2, 4, 8, 16, 32)  # epochs after which a run is watched, and its last
TRIALS = 4  # of every method whose weight is searched
_SPLIT_SEED = 2025


class Parts(NamedTuple):
    """The images: to train on, to choose weights by, to report on."""

    data: ImageData
    train: ImagePart
    validation: ImagePart
    test: ImagePart


class Pairing(NamedTuple):
    """What a method builds its losses from: both networks, a batch of the student's images, a seeded generator."""

    student: nn.Module
    teacher: nn.Module
    some: ImagePart
    generator: torch.Generator
    parts: Parts
    seed: int


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to learn from a teacher, and how its weight is found.

    Attributes:
        title: As tables and figures name it.
        group: What it is drawn beside; empty for methods of their own.
        build: Gives the losses at weight 1; None for the student alone.
        weights: The multiples of the losses' own weights to try on the first seed. One: nothing is tried. None: 1 and
            3, then three times beyond the better end, or between the two best, until there are :data:`TRIALS`.
        teacher: ``"trained"``, or ``"untrained"`` for a control.
        look: Told the networks, views of the training images and the losses at the end; what it returns is stored.
        watch: Told the networks and the epoch at :data:`PHASES` and the end; what it returns is stored.
    """

    title: str
    group: str = ""
    build: Callable[[Pairing], dict[str, DistillationTerm]] | None = None
    weights: tuple[float, ...] | None = None
    teacher: str = "trained"
    look: Callable[[Pairing, dict[str, DistillationTerm]], dict[str, Any]] | None = None
    watch: Callable[[Pairing, int], dict[str, Any]] | None = None


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
    student: str = "resnet8"

    def deciding(self) -> dict[str, Any]:
        """Return the settings that tell runs apart; options that came later only where they are used."""
        later = {"student": "resnet8"}
        return {key: value for key, value in asdict(self).items() if key not in later or later[key] != value}

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


@dataclass(frozen=True)
class Comparison:
    """What one call compares, and where it is kept.

    Attributes:
        name: Name of the figure.
        out: Folder of the runs and the teacher.
        file: The images; None for digits.
        data_key: What tells the images apart.
        settings: What all runs share.
        methods: What is compared, by short names.
        seeds: Weights are chosen on the first; all are reported.
        part: Folder in ``out`` of what is drawn from the runs, where several comparisons share them.
    """

    name: str
    out: Path
    file: Path | None
    data_key: str
    settings: Settings
    methods: Mapping[str, Method]
    seeds: tuple[int, ...]
    part: str = ""

    @property
    def results(self) -> Path:
        """Where tables and figures go."""
        return self.out / self.part

    def record(self, method: str, seed: int, weight: float) -> Path:
        """Return the file of one run, named by what decides it."""
        decides = {
            "settings": self.settings.deciding(),
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
        """Return the finished runs on the first seed, one for every weight tried, in the order of trying."""
        return self._tried(method)[0]

    def chosen(self, method: str) -> float | None:
        """Return the weight with the best validation accuracy on the first seed; None while a trial is missing."""
        trials, missing = self._tried(method)
        if missing is not None:
            return None
        return float(best_trial(trials)["weight"])

    def next_weight(self, method: str) -> float | None:
        """Return the weight to try next on the first seed; None when all trials are done."""
        return self._tried(method)[1]

    def _tried(self, method: str) -> tuple[list[dict[str, Any]], float | None]:
        weights = self.methods[method].weights
        found: list[dict[str, Any]] = []
        for trial in range(TRIALS if weights is None else len(weights)):
            weight = searched_weight(found) if weights is None else weights[trial]
            run = self.known(method, self.seeds[0], weight)
            if run is None:
                return found, weight
            found.append(run)
        return found, None

    def reported(self, method: str) -> list[dict[str, Any]]:
        """Return the finished runs with the chosen weight, in the order of the seeds."""
        weight = self.chosen(method)
        if weight is None:
            return []
        found = (self.known(method, seed, weight) for seed in self.seeds)
        return [run for run in found if run is not None]

    def planned(self) -> int:
        """Return the number of runs of the whole comparison."""
        tried = (TRIALS if method.weights is None else len(method.weights) for method in self.methods.values())
        return sum(trials + len(self.seeds) - 1 for trials in tried)

    def finished(self) -> int:
        """Return the number of runs that are done."""
        return sum(len(self.trials(method)) + max(0, len(self.reported(method)) - 1) for method in self.methods)


def best_trial(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the run with the best validation accuracy: of equals the smallest weight; one that failed is last."""
    return max(trials, key=lambda run: (run["failed"] is None, run["validation"] or 0.0, -run["weight"]))


def searched_weight(trials: Sequence[dict[str, Any]]) -> float:
    """Return the weight to try after these: 1, 3, then beyond the better end by 3, or between the two best."""
    tried = sorted(run["weight"] for run in trials)
    if len(tried) < 2:
        return (1.0, 3.0)[len(tried)]
    best = float(best_trial(trials)["weight"])
    if best == tried[-1]:
        return float(f"{3 * best:.3g}")
    if best == tried[0]:
        return float(f"{best / 3:.3g}")
    index = tried.index(best)
    beside = [run for run in trials if run["weight"] in (tried[index - 1], tried[index + 1])]
    return float(f"{math.sqrt(best * best_trial(beside)['weight']):.3g}")


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
    while (weight := comparison.next_weight(method)) is not None:
        train_once(comparison, parts, teacher, method, first, weight)
    weight = comparison.chosen(method)
    assert weight is not None
    for seed in others:
        train_once(comparison, parts, teacher, method, seed, weight)


def train_once(comparison: Comparison, parts: Parts, teacher: nn.Module, method: str, seed: int, weight: float) -> None:
    """Train one student and write its record, unless it is there."""
    if comparison.known(method, seed, weight) is not None:
        return
    settings, way = comparison.settings, comparison.methods[method]
    part = parts.train.per_class(settings.per_class, seed=seed)
    student = fresh_student(parts, settings, seed)
    images, labels, plan = part.images, part.labels, settings.student_plan(seed)
    source = teacher if way.teacher == "trained" else fresh(parts, settings.teacher_width, seed=1000 + seed).eval()
    terms: dict[str, DistillationTerm] = {}
    phases: list[dict[str, Any]] = []

    def watched(epoch: int, network: nn.Module) -> None:
        if way.watch is not None and (epoch in PHASES or epoch == plan.epochs):
            phases.append(way.watch(Pairing(network, teacher, part, random_stream(seed, "losses"), parts, seed), epoch))

    try:
        if way.build is None:
            curve = train_network(student, images, labels, plan, views=parts.data.views, on_epoch=watched)
        else:
            generator = random_stream(seed, "losses")
            some = part.rows(torch.randperm(len(part), generator=generator)[: settings.batch])
            built = way.build(Pairing(student, source, some, generator, parts, seed))
            terms = {name: replace(term, weight=weight * term.weight) for name, term in built.items()}
            curve = train_student(
                student, source, terms, images, labels, plan, views=parts.data.views, on_epoch=watched
            )
        failed = curve.diverged
    except mikit.InputError as refusal:  # A form that the metric cannot take, in its own words.
        curve, failed = None, str(refusal)
    seen: dict[str, float | None] = {"validation": None, "test": None}
    if failed is None:
        for name in seen:
            looked = getattr(parts, name)
            seen[name] = accuracy_on(student, looked.images, looked.labels, autocast=settings.autocast)
    looks = None
    if failed is None and way.look is not None:
        views = parts.data.views(part.images, generator=random_stream(seed, "views"))
        looked_at = ImagePart(views, part.labels, part.ids)
        looks = way.look(Pairing(student, source, looked_at, random_stream(seed, "losses"), parts, seed), terms)
    content = {
        "method": method,
        "seed": seed,
        "weight": weight,
        **seen,
        "failed": failed,
        "axes": None if failed is not None else axes_of(student, teacher, parts.test, settings),
        "looks": looks,
        "phases": phases,
        "seconds": None if curve is None else curve.seconds,
        "settings": settings.deciding(),
        "torch": torch.__version__,
        "mikit": mikit.__version__,
        "curve": [] if curve is None else [record.to_dict() for record in curve.records],
    }
    write_whole(comparison.record(method, seed, weight), json.dumps(content, indent=1))
    shown = f"failed. {failed}" if seen["test"] is None else f"{100 * seen['test']:.2f} % on test"
    tell(comparison, f"{method}, seed {seed}, weight {weight:g}: {shown}, {content['seconds'] or 0:.0f} s")


def axes_of(student: nn.Module, teacher: nn.Module, part: ImagePart, settings: Settings) -> dict[str, Any]:
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


def trained_teacher(comparison: Comparison, parts: Parts) -> nn.Module:
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


def fresh_student(parts: Parts, settings: Settings, seed: int) -> nn.Module:
    """Return an untrained student; the same for all methods of a seed."""
    kind, _, width = settings.student.partition("-")
    if kind == "resnet8":
        return fresh(parts, settings.student_width, seed)
    inputs = parts.train.images[0].numel()
    generator = random_stream(seed, "weights")
    return MLP(inputs, width=int(width), classes=parts.data.classes, generator=generator)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def tell(comparison: Comparison, what: str) -> None:
    """Say on standard error how far the comparison is."""
    typer.echo(f"[{comparison.finished()}/{comparison.planned()}] {what}", err=True)
