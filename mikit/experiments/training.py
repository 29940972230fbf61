"""Training one network of an experiment: from its checkpoint if there is one, with activations recorded at phases."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from joblib import Parallel, delayed
from torch import nn

from mikit.activations import ActivationStore, hash_of_array
from mikit.core.files import write_atomically
from mikit.core.progress import Stages
from mikit.core.provenance import one_thread
from mikit.datasets import ImageData
from mikit.distillation import (
    PhaseRecorder,
    TrainingCurve,
    TrainingPlan,
    random_stream,
    train_network,
    train_student,
)
from mikit.experiments.losses import BuildLosses
from mikit.models import ResNet8

__all__ = ["TEACHER", "Run", "Trained", "fresh", "record_given", "save_network", "train", "train_all"]

TEACHER = "teacher"


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """One network to train; ``name`` names its files, ``network`` is its name in tables and figures.

    Its activations are recorded into ``store`` at ``phases``; ``folder`` keeps checkpoint and log. Both can be None.
    """

    network: str
    name: str
    seed: int
    plan: TrainingPlan
    width: float = 1.0
    work: float = 1.0  # Expected training time relative to the other runs.
    losses: BuildLosses | None = None  # None: it is trained on labels alone.
    per_class: int | None = None  # Training images per class; None: all images.
    store: Path | None = None
    phases: tuple[int, ...] = ()
    folder: Path | None = None
    evaluate: bool = True  # Whether the curve contains accuracies on the test images.
    device: str = "cpu"


@final
@dataclass(frozen=True)
class Trained:
    """The result of a run.

    Attributes:
        run: The run.
        curve: One record per epoch.
        network: The trained network, on the CPU in evaluation mode.
        accuracy: Accuracy on the test images at the recorded phases.
        wall_time: Seconds.
    """

    run: Run
    curve: TrainingCurve
    network: nn.Module
    accuracy: dict[int, float]
    wall_time: float


def train(
    run: Run,
    data: ImageData,
    teacher: nn.Module | None = None,
    *,
    network: nn.Module | None = None,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    progress: bool = False,
) -> Trained:
    """Train one network, or resume its training; if training diverges, the curve records it.

    Args:
        run: What to train.
        data: The images.
        teacher: The trained teacher of a run with losses.
        network: The untrained network; by default a ResNet8 of the run's width.
        on_epoch: Called after recording, as by :func:`~mikit.distillation.train_network`.
        progress: Show a progress bar.
    """
    start = time.perf_counter()
    with one_thread():
        part = data.train if run.per_class is None else data.train.per_class(run.per_class, seed=run.seed)
        network = (fresh(data, run.width, run.seed) if network is None else network).to(run.device)
        store = None if run.store is None else _open_store(run.store, run.network, run.seed, data)
        if store is not None:
            store.set_training_ids(part.ids)
        record = None if store is None else _recorder(store, data, run.phases)

        def observe(epoch: int, current: nn.Module) -> None:
            for observer in (record, on_epoch):
                if observer is not None:
                    observer(epoch, current)

        options: dict[str, Any] = {
            "views": data.views,
            "held_out": (data.test.images, data.test.labels) if run.evaluate else None,
            "folder": run.folder,
            "on_epoch": observe,
            "progress": progress,
        }
        if run.losses is None:
            curve = train_network(network, part.images, part.labels, run.plan, **options)
        else:
            assert teacher is not None
            teacher = teacher.to(run.device)
            terms = run.losses(network, teacher, part, run.seed)
            curve = train_student(network, teacher, terms, part.images, part.labels, run.plan, **options)
    notes = {} if store is None else store.notes
    accuracy = {phase: scalars["accuracy"] for phase, scalars in notes.items()}
    return Trained(run, curve, network.cpu().eval(), accuracy, time.perf_counter() - start)


def train_all(
    runs: Sequence[Run],
    data: ImageData,
    teacher: nn.Module | None,
    jobs: int,
    stages: Stages,
    *,
    check: Callable[[Trained], None] | None = None,
) -> list[Trained]:
    """Train several networks in parallel, and return the results in the order of ``runs``.

    ``check`` is called with every result; if it raises, the other trainings end.
    """
    pool = Parallel(n_jobs=min(jobs, len(runs)), return_as="generator_unordered", max_nbytes=None)
    results = {}
    for result in pool(delayed(_train_and_check)(run, data, teacher, check) for run in runs):
        stages.advance(result.run.work)
        results[result.run.name] = result
    return [results[run.name] for run in runs]


def _train_and_check(
    run: Run, data: ImageData, teacher: nn.Module | None, check: Callable[[Trained], None] | None
) -> Trained:
    result = train(run, data, teacher)
    if check is not None:
        check(result)  # In the worker: joblib ends the others only when a worker raises.
    return result


def record_given(teacher: nn.Module, data: ImageData, path: Path) -> None:
    """Record a teacher that is already trained as phase 1, unless its store contains that phase."""
    store = _open_store(path, TEACHER, 0, data)
    if 1 not in store.phases:
        _recorder(store, data, [1])(1, teacher)


def fresh(data: ImageData, width: float, seed: int) -> ResNet8:
    """Return an untrained network; networks of one seed and width are equal."""
    generator = random_stream(seed, "weights")
    return ResNet8(channels=data.channels, classes=data.classes, width=width, generator=generator)


def save_network(network: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the weights of a network as ``.safetensors``."""
    from safetensors.torch import save

    path.parent.mkdir(exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    content = save(state, metadata)
    write_atomically(path, lambda file: file.write(content))


def _open_store(path: Path, network: str, seed: int, data: ImageData) -> ActivationStore:
    store = ActivationStore(path, network=network, seed=seed, data_hash=hash_of_array(data.test.images))
    store.set_labels(data.test.ids, data.test.labels.numpy())
    return store


def _recorder(store: ActivationStore, data: ImageData, phases: Sequence[int]) -> PhaseRecorder:
    test = data.test
    return PhaseRecorder(store, test.images, ids=test.ids, layers=ResNet8.layers, phases=phases, labels=test.labels)
