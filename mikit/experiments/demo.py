"""The demo from end to end: train, record, trace, draw, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from joblib import Parallel, cpu_count, delayed

from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.files import DEMO, new_folder
from mikit.core.progress import SilentStages, Stages
from mikit.core.provenance import library_versions
from mikit.datasets import ImageData
from mikit.distillation import TrainingPlan
from mikit.experiments.findings import BROKEN, TAUGHT, describe_run
from mikit.experiments.losses import ALONE, StageVID
from mikit.experiments.settings import DemoSettings
from mikit.experiments.training import TEACHER, Run, Trained, save_network, train_all

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["DemoResult", "run_demo"]


@final
@dataclass(frozen=True)
class DemoResult:
    """The result of a demo run.

    Attributes:
        folder: The folder that it wrote.
        lines: Its findings, in five sentences.
        wall_time: Seconds.
    """

    folder: Path
    lines: tuple[str, ...]
    wall_time: float


def run_demo(
    out: Path,
    data: ImageData,
    settings: DemoSettings,
    *,
    overwrite: bool = False,
    jobs: int | None = None,
    stages: Stages | None = None,
) -> DemoResult:
    """Train a teacher and its students, trace the information between them, and write a folder with the results.

    The folder contains ``report/index.html``, the figures as PNG and SVG, the table as CSV and Parquet with all
    settings (``flow/``), the activations (``stores/``), the trained networks (``networks/``), ``demo.json`` and
    ``findings.txt``. It appears under its name only when all of this is written.

    Args:
        out: The folder to make.
        data: The images.
        settings: Everything else that determines the result.
        overwrite: Replace the folder of an earlier demo.
        jobs: Processes for training and tracing; by default one per processor. The result does not depend on it.
        stages: Receives the progress.

    Returns:
        The folder, the findings and the wall time.

    Raises:
        InputError: If the folder exists or cannot be made, or if the training of a network diverges.

    Cost:
        With the settings for digits about a minute on two cores and under 2 GiB.

    Pitfalls:
        All students learn from one teacher, so the spread over seeds does not include the teacher's. With three seeds
        the comparisons are exploratory, not a test.
    """
    start = time.perf_counter()
    stages = stages or SilentStages()
    jobs = cpu_count() if jobs is None else jobs
    require.at_least(jobs, "jobs")
    with new_folder(out, overwrite=overwrite, kind=DEMO) as folder:
        trained = _train_all(folder / "stores", data, settings, jobs, stages)
        flow = _traced(trained, settings, jobs, stages)
        stages.begin("Drawing the figures and the report", None)
        flow.save(folder / "flow")
        pictures = (delayed(_draw)(flow, folder / "figures"), delayed(_write_report)(flow, folder / "report"))
        Parallel(n_jobs=min(jobs, 2))(pictures)
        for result in trained:
            metadata = {"network": result.run.network, "seed": str(result.run.seed)}
            save_network(result.network, folder / "networks" / f"{result.run.name}.safetensors", metadata)
        lines = describe_run(
            flow.frame,
            label_entropy=_entropy(data.test.labels.numpy()),
            per_class=settings.per_class,
            images=len(data.test),
        )
        wall_time = time.perf_counter() - start
        (folder / "findings.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        content = {
            **_description(data, settings, trained, lines),
            "versions": library_versions(),
            "wall_time": wall_time,
        }
        (folder / "demo.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return DemoResult(out, lines, wall_time)


def _description(
    data: ImageData, settings: DemoSettings, trained: Sequence[Trained], lines: Sequence[str]
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "data": {"name": data.name, "train": len(data.train), "test": len(data.test), "classes": data.classes},
        "settings": asdict(settings),
        "findings": lines,
        "runs": [
            {
                "network": result.run.network,
                "seed": result.run.seed,
                "store": f"stores/{result.run.name}",
                "accuracy": result.accuracy,
                "wall_time": result.wall_time,
            }
            for result in trained
        ],
    }


def _train_all(stores: Path, data: ImageData, settings: DemoSettings, jobs: int, stages: Stages) -> list[Trained]:
    """Train the teacher together with the students that need none, then the students that learn from it."""
    stores.mkdir()
    teacher = _teacher_run(settings, stores)
    alone = [_student_run(ALONE, seed, settings, stores) for seed in settings.seeds]
    taught = [_student_run(network, seed, settings, stores) for network in (TAUGHT, BROKEN) for seed in settings.seeds]
    every = [teacher, *alone, *taught]
    stages.begin(f"Training {len(every)} networks", sum(run.work for run in every))
    first = train_all([teacher, *alone], data, None, jobs, stages, check=_require_convergence)
    second = train_all(taught, data, first[0].network, jobs, stages, check=_require_convergence)
    return first + second


def _teacher_run(settings: DemoSettings, stores: Path) -> Run:
    return Run(
        network=TEACHER,
        name=TEACHER,
        seed=settings.seeds[0],
        plan=TrainingPlan(
            epochs=settings.teacher_epochs,
            batch=settings.teacher_batch,
            rate=settings.teacher_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            warm_up=settings.warm_up,
            clip=None,
            seed=settings.seeds[0],
        ),
        width=settings.teacher_width,
        work=16.0 * settings.teacher_epochs,
        store=stores / TEACHER,
        phases=settings.teacher_phases,
        evaluate=False,
    )


def _student_run(network: str, seed: int, settings: DemoSettings, stores: Path) -> Run:
    name = f"{network.replace(', ', '-').replace(' ', '-').lower()}-seed{seed}"
    losses = None
    if network != ALONE:
        losses = StageVID(settings.vid_layers, settings.vid_weight, broken=network == BROKEN)
    steps = settings.student_epochs * settings.per_class / settings.student_batch
    return Run(
        network=network,
        name=name,
        seed=seed,
        plan=TrainingPlan(
            epochs=settings.student_epochs,
            batch=settings.student_batch,
            rate=settings.student_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            warm_up=settings.warm_up,
            clip=settings.clip,
            seed=seed,
        ),
        width=settings.student_width,
        work=steps if losses is None else 2.0 * steps,
        losses=losses,
        per_class=settings.per_class,
        store=stores / name,
        phases=settings.student_phases,
        evaluate=False,
    )


def _require_convergence(result: Trained) -> None:
    if result.curve.diverged is not None:
        last = result.curve.records[-1]
        raise InputError(
            f'The training of the network "{result.run.network}" with seed {result.run.seed} diverged in epoch '
            f"{last.epoch}: its loss is {last.loss:g}. Other images may need a lower learning rate than "
            f"{result.run.plan.rate:g}."
        )


def _traced(trained: Sequence[Trained], settings: DemoSettings, jobs: int, stages: Stages) -> Flow:
    from mikit.activations import ActivationStore
    from mikit.flow import trace

    teacher, *students = [ActivationStore.open(result.run.store) for result in trained if result.run.store is not None]
    with stages.aside("Tracing the information between the layers") as shown:
        return trace(
            teacher,
            students,
            noise=settings.noise,
            folds=settings.folds,
            probe=settings.probe,
            seed=settings.seeds[0],
            jobs=jobs,
            progress=shown,
        )


def _draw(flow: Flow, folder: Path) -> None:
    from mikit import plot

    figures: dict[str, Callable[[Flow], Any]] = {
        "flow": plot.flow,
        "phases": plot.phases,
        "maps": plot.maps,
        "gap": plot.gap,
        "accuracy": plot.accuracy,
        "label-phases": partial(plot.phases, quantity="label_information"),
        "cka": partial(plot.maps, quantity="cka"),
    }
    for name, draw in figures.items():
        plot.save_figure(draw(flow), folder, name)


def _write_report(flow: Flow, folder: Path) -> None:
    from mikit.reporting import report

    report(flow, folder)


def _entropy(labels: np.ndarray) -> float:
    counts = np.bincount(labels)
    fractions = counts[counts > 0] / labels.shape[0]
    return float(-(fractions * np.log(fractions)).sum())
