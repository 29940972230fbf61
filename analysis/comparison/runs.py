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
from mikit.distillation import DistillationTerm, TrainingCurve, TrainingPlan, accuracy_on, logits_on, random_stream
from mikit.experiments import losses
from mikit.experiments.training import TEACHER, Run, fresh, train
from mikit.models import MLP

ALONE = losses.ALONE
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
    """Train one student and write its record, unless there is one."""
    if comparison.known(method, seed, weight) is not None:
        return
    student = Student(comparison, parts, teacher, method, seed, weight)
    failed: str | None
    try:
        curve = student.train()
        failed = curve.diverged
    except mikit.InputError as refusal:  # The metric does not accept this form; the record contains its message.
        curve, failed = None, str(refusal)
    content = student.record(curve, failed)
    write_whole(comparison.record(method, seed, weight), json.dumps(content, indent=1))
    shown = f"failed. {failed}" if content["test"] is None else f"{100 * content['test']:.2f} % on test"
    tell(comparison, f"{method}, seed {seed}, weight {weight:g}: {shown}, {content['seconds'] or 0:.0f} s")


class Student:
    """One student of a comparison: its networks, its images, its losses and what was observed of it."""

    def __init__(
        self, comparison: Comparison, parts: Parts, teacher: nn.Module, method: str, seed: int, weight: float
    ) -> None:
        self.settings, self.way = comparison.settings, comparison.methods[method]
        self.parts, self.teacher = parts, teacher
        self.method, self.seed, self.weight = method, seed, weight
        self.part = parts.train.per_class(self.settings.per_class, seed=seed)
        self.network = fresh_student(parts, self.settings, seed)
        self.source = teacher
        if self.way.teacher != "trained":
            self.source = fresh(parts.data, self.settings.teacher_width, 1000 + seed).eval()
        self.terms: dict[str, DistillationTerm] = {}
        self.phases: list[dict[str, Any]] = []

    def train(self) -> TrainingCurve:
        """Train the network in place."""
        run = Run(
            network=self.method,
            name=self.method,
            seed=self.seed,
            plan=self.settings.student_plan(self.seed),
            per_class=self.settings.per_class,
            losses=None if self.way.build is None else self.build,
            evaluate=False,
        )
        return train(run, training_data(self.parts), self.source, network=self.network, on_epoch=self.watch).curve

    def build(self, student: nn.Module, source: nn.Module, part: ImagePart, seed: int) -> dict[str, DistillationTerm]:
        """Build the weighted losses from one batch of the student's images."""
        assert self.way.build is not None
        generator = random_stream(seed, "losses")
        some = part.rows(torch.randperm(len(part), generator=generator)[: self.settings.batch])
        built = self.way.build(Pairing(student, source, some, generator, self.parts, seed))
        self.terms = {name: replace(term, weight=self.weight * term.weight) for name, term in built.items()}
        return self.terms

    def watch(self, epoch: int, network: nn.Module) -> None:
        """Observe the network at :data:`PHASES` and at the end."""
        if self.way.watch is not None and (epoch in PHASES or epoch == self.settings.epochs):
            generator = random_stream(self.seed, "losses")
            pairing = Pairing(network, self.teacher, self.part, generator, self.parts, self.seed)
            self.phases.append(self.way.watch(pairing, epoch))

    def look(self) -> dict[str, Any] | None:
        """Observe networks and losses on views of the training images."""
        if self.way.look is None:
            return None
        views = self.parts.data.views(self.part.images, generator=random_stream(self.seed, "views"))
        some = ImagePart(views, self.part.labels, self.part.ids)
        generator = random_stream(self.seed, "losses")
        return self.way.look(Pairing(self.network, self.source, some, generator, self.parts, self.seed), self.terms)

    def record(self, curve: TrainingCurve | None, failed: str | None) -> dict[str, Any]:
        """Return the record of the run."""
        seen: dict[str, float | None] = {"validation": None, "test": None}
        if failed is None:
            for name in seen:
                part = getattr(self.parts, name)
                seen[name] = accuracy_on(self.network, part.images, part.labels, autocast=self.settings.autocast)
        return {
            "method": self.method,
            "seed": self.seed,
            "weight": self.weight,
            **seen,
            "failed": failed,
            "axes": None if failed is not None else axes_of(self.network, self.teacher, self.parts.test, self.settings),
            "looks": None if failed is not None else self.look(),
            "phases": self.phases,
            "seconds": None if curve is None else curve.seconds,
            "settings": self.settings.deciding(),
            "torch": torch.__version__,
            "mikit": mikit.__version__,
            "curve": [] if curve is None else [line.to_dict() for line in curve.records],
        }


def training_data(parts: Parts) -> ImageData:
    """Return the data whose training images do not include those that choose weights."""
    return replace(parts.data, train=parts.train)


def axes_of(student: nn.Module, teacher: nn.Module, part: ImagePart, settings: Settings) -> dict[str, Any]:
    """Return the discrepancy between the logits of student and teacher, and the information between them."""
    own, other = (
        logits_on(network, part.images, autocast=settings.autocast).double() for network in (student, teacher)
    )
    scale = other.std()  # The gap is in standard deviations of the teacher's logits.
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
    run = Run(
        network=TEACHER,
        name=TEACHER,
        seed=0,
        plan=settings.teacher_plan(),
        width=settings.teacher_width,
        folder=comparison.out / "teacher",
    )
    trained = train(run, training_data(parts), progress=sys.stderr.isatty())
    _ = trained.curve.accuracy  # Raises if it diverged.
    return trained.network


def fresh_student(parts: Parts, settings: Settings, seed: int) -> nn.Module:
    """Return an untrained student; the same for all methods of a seed."""
    kind, _, width = settings.student.partition("-")
    if kind == "resnet8":
        return fresh(parts.data, settings.student_width, seed)
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
