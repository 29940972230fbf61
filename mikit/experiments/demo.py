"""The demo from end to end: train, record, trace, draw, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np
from joblib import Parallel, cpu_count, delayed

from mikit.core.errors import InputError
from mikit.core.files import DEMO, new_folder
from mikit.core.provenance import library_versions
from mikit.datasets import ImageData
from mikit.experiments.demo_settings import ALONE, BROKEN, TAUGHT, DemoSettings
from mikit.experiments.demo_training import TEACHER, Run, Trained, train
from mikit.experiments.findings import describe_run

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["DemoResult", "Stages", "run_demo"]


class Stages(Protocol):
    """Whoever wants to know how far the demo is: told each stage, its length, and every step forward."""

    def begin(self, stage: str, total: float | None) -> None:
        """A stage begins; ``total`` is its length, if it is known."""

    def advance(self, by: float) -> None:
        """The stage has come ``by`` further."""

    def aside(self, stage: str) -> AbstractContextManager[bool]:
        """A stage that can draw a bar of its own runs inside the block; gives whether it should."""


@final
@dataclass(frozen=True)
class DemoResult:
    """What a demo run left.

    Attributes:
        folder: Where it stands.
        lines: What it showed, in five sentences.
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
    """Train a teacher and its students, trace the information between them, and write a folder that shows it.

    The folder holds ``report/index.html``, the figures as PNG and SVG, the table as CSV and Parquet with all settings
    (``flow/``), the activations (``stores/``), the trained networks (``networks/``), ``demo.json`` and
    ``findings.txt``. It takes its name only when all of that is written.

    Args:
        out: The folder to make.
        data: The images.
        settings: Everything else that decides the result.
        overwrite: Replace the folder of an earlier demo.
        jobs: Processes to train and trace in; by default one per processor. The result does not depend on it.
        stages: Told how far the run is.

    Raises:
        InputError: If the folder exists or cannot be made, or if a network diverges.

    Cost:
        With the settings for digits about a minute on two cores and under 2 GiB.

    Pitfalls:
        All students learn from one teacher, so no spread over seeds holds the teacher's own. With three seeds the
        comparisons are a screen, not a test.
    """
    start = time.perf_counter()
    stages = stages or _Silent()
    jobs = cpu_count() if jobs is None else jobs
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1.")
    with new_folder(out, overwrite=overwrite, kind=DEMO) as folder:
        trained = _train_all(folder / "stores", data, settings, jobs, stages)
        flow = _traced(trained, settings, jobs, stages)
        stages.begin("Drawing the figures and the report", None)
        flow.save(folder / "flow")
        pictures = (delayed(_draw)(flow, folder / "figures"), delayed(_write_report)(flow, folder / "report"))
        Parallel(n_jobs=min(jobs, 2))(pictures)
        _save_networks(trained, folder / "networks")
        lines = describe_run(
            flow.frame,
            label_entropy=_entropy(data.test.labels.numpy()),
            per_class=settings.per_class,
            images=len(data.test),
        )
        wall_time = time.perf_counter() - start
        (folder / "findings.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        content = {
            "schema_version": 1,
            "data": {"name": data.name, "train": len(data.train), "test": len(data.test), "classes": data.classes},
            "settings": asdict(settings),
            "findings": lines,
            "runs": [
                {
                    "network": result.run.network,
                    "seed": result.run.seed,
                    "store": f"stores/{result.run.store.name}",
                    "accuracy": result.accuracy,
                    "wall_time": result.wall_time,
                }
                for result in trained
            ],
            "versions": library_versions(),
            "wall_time": wall_time,
        }
        (folder / "demo.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return DemoResult(out, lines, wall_time)


def _train_all(stores: Path, data: ImageData, settings: DemoSettings, jobs: int, stages: Stages) -> tuple[Trained, ...]:
    """Train the teacher beside the students that do without it, then the students that learn from it."""
    stores.mkdir()
    teacher = Run(TEACHER, settings.seeds[0], stores / TEACHER)
    alone = [Run(ALONE, seed, stores / _store_name(ALONE, seed)) for seed in settings.seeds]
    taught = [
        Run(network, seed, stores / _store_name(network, seed))
        for network in (TAUGHT, BROKEN)
        for seed in settings.seeds
    ]
    every = [teacher, *alone, *taught]
    stages.begin(f"Training {len(every)} networks", sum(run.work(settings) for run in every))
    first = list(_finished([teacher, *alone], data, settings, jobs, stages))
    state = next(result.state for result in first if result.run.network == TEACHER)
    told = [Run(run.network, run.seed, run.store, state) for run in taught]
    second = list(_finished(told, data, settings, jobs, stages))
    order = [run.store for run in every]
    return tuple(sorted(first + second, key=lambda result: order.index(result.run.store)))


def _finished(
    runs: Sequence[Run], data: ImageData, settings: DemoSettings, jobs: int, stages: Stages
) -> Iterator[Trained]:
    pool = Parallel(n_jobs=min(jobs, len(runs)), return_as="generator_unordered", max_nbytes=None)
    results: Iterable[Trained] = pool(delayed(train)(run, data, settings) for run in runs)
    for result in results:
        stages.advance(result.run.work(settings))
        yield result


def _traced(trained: Sequence[Trained], settings: DemoSettings, jobs: int, stages: Stages) -> Flow:
    from mikit.activations import ActivationStore
    from mikit.flow import trace

    teacher, *students = [ActivationStore.open(result.run.store) for result in trained]
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


def _save_networks(trained: Sequence[Trained], folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    for result in trained:
        save_file(
            result.state,
            folder / f"{result.run.store.name}.safetensors",
            metadata={"network": result.run.network, "seed": str(result.run.seed)},
        )


def _store_name(network: str, seed: int) -> str:
    return f"{network.replace(', ', '-').replace(' ', '-').lower()}-seed{seed}"


def _entropy(labels: np.ndarray) -> float:
    shares = np.bincount(labels)[np.bincount(labels) > 0] / labels.shape[0]
    return float(-(shares * np.log(shares)).sum())


@final
class _Silent:
    """Nobody wants to know."""

    def begin(self, stage: str, total: float | None) -> None:
        """Do nothing."""

    def advance(self, by: float) -> None:
        """Do nothing."""

    @contextmanager
    def aside(self, stage: str) -> Iterator[bool]:
        """Show nothing."""
        yield False
