"""A run of ``mikit distill``: teacher, students, summary and figure; an interrupted run can be resumed."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from joblib import cpu_count
from torch import nn

from mikit.activations import hash_of_array, hash_of_model
from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.files import Kind, require_free, write_json
from mikit.core.progress import SilentStages, Stages
from mikit.core.provenance import library_versions, one_thread
from mikit.core.run_folder import RunFolder
from mikit.datasets import ImageData
from mikit.distillation import Ingredient, accuracy_on
from mikit.experiments.losses import NamedLosses, label_of
from mikit.experiments.settings import DistillSettings
from mikit.experiments.summary import StudentSummary, summarize
from mikit.experiments.training import TEACHER, Run, Trained, fresh, record_given, save_network, train, train_all
from mikit.models import ResNet8

__all__ = ["DISTILL", "DistillResult", "run_distill"]


DISTILL = Kind(
    "mikit distill",
    "distill.json",
    b'"mikit distill"',
    frozenset(
        {"distill.json", "summary.json", "curves.png", "curves.svg", "teacher", "students", "stores", "networks"}
    ),
)


@final
@dataclass(frozen=True)
class DistillResult:
    """The result of a run.

    Attributes:
        folder: The folder of the run.
        teacher: Accuracy of the teacher on the test images.
        students: One summary for each kind of student, the student alone first.
        stores: Activation stores, the teacher's first; empty unless activations are recorded.
        wall_time: Seconds of this call.
    """

    folder: Path
    teacher: float
    students: tuple[StudentSummary, ...]
    stores: tuple[Path, ...]
    wall_time: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "folder": str(self.folder),
            "teacher_accuracy": self.teacher,
            "students": [one.to_dict() for one in self.students],
            "stores": [str(store) for store in self.stores],
        }


def run_distill(
    out: Path,
    data: ImageData,
    settings: DistillSettings,
    *,
    teacher: ResNet8 | None = None,
    overwrite: bool = False,
    inputs: tuple[Path, ...] = (),
    jobs: int | None = None,
    stages: Stages | None = None,
) -> DistillResult:
    """Train a teacher, a student alone, and students that learn from the teacher, or resume an earlier run.

    The folder contains ``distill.json`` (what determines the run), ``teacher/`` and ``students/NAME-seedN/`` with
    ``checkpoint.pt`` and ``log.jsonl``, ``networks/`` with the trained weights, ``stores/`` if activations are
    recorded, ``summary.json``, ``curves.png`` and ``curves.svg``. A call that was killed, even by ``kill -9``, can be
    repeated with the same arguments and gives the same numbers. Losses and seeds can be added later.

    Args:
        out: The folder to make or to resume.
        data: The images.
        settings: Everything else that determines the result.
        teacher: A trained teacher in evaluation mode; None to train one.
        overwrite: Replace an earlier result and start again.
        inputs: Input files, which ``out`` must not replace.
        jobs: Processes that train students; by default one per processor, and one on a GPU. The result does not depend
            on it.
        stages: Receives the progress.

    Returns:
        The accuracies, gains and stores.

    Raises:
        InputError: If the folder contains another run, a loss does not fit its layers, there are too few images, or the
            training of the teacher diverges. If the training of a student diverges, its summary says so.

    Cost:
        The trainings. With the settings for digits about 10 s for each student that learns from a teacher, on one core.

    Pitfalls:
        All students of a seed share images, initial weights, order and views, so gains are paired; the spread over
        seeds does not include the teacher's. With three seeds a comparison is exploratory, not a test. Loss weights
        selected by this accuracy are selected on the test images. Training on a GPU was not tried for this release.
    """
    start = time.perf_counter()
    stages = stages or SilentStages()
    if jobs is not None:
        require.at_least(jobs, "jobs")
    jobs = jobs or (cpu_count() if settings.device == "cpu" else 1)
    stages.begin("Checking the losses", None)
    with one_thread():
        _require_losses(data, settings, teacher)
    _open_folder(out, _deciding(data, settings, teacher), overwrite=overwrite, inputs=inputs)
    stages.begin("Training the teacher" if teacher is None else "Reading the teacher", None)
    with one_thread():
        source = _teacher(data, settings, out, teacher)
        reached = accuracy_on(source.to(settings.device), data.test.images, data.test.labels)
    source.cpu()
    save_network(source, out / "networks" / f"{TEACHER}.safetensors")
    runs = [_student_run(losses, seed, settings, out) for losses in ((), *settings.losses) for seed in settings.seeds]
    stages.begin(f"Training {len(runs)} students", sum(run.work for run in runs))
    results = train_all(runs, data, source, jobs, stages)
    for one in results:
        if one.curve.diverged is None:
            save_network(one.network, out / "networks" / f"{one.run.name}.safetensors")
    students = summarize(results)
    stages.begin("Drawing", None)
    _draw(results, students, reached, data, out)
    stores = tuple(out / "stores" / name for name in (TEACHER, *(run.name for run in runs))) if settings.record else ()
    result = DistillResult(out, reached, students, stores, time.perf_counter() - start)
    write_json(
        out / "summary.json",
        {"schema_version": 1, **result.to_dict(), "settings": settings.decides(), "versions": library_versions()},
    )
    return result


def _deciding(data: ImageData, settings: DistillSettings, teacher: ResNet8 | None) -> dict[str, object]:
    """Return what all students of a folder share, as plain values."""
    return {
        "data": {"name": data.name, "hash": hash_of_array(data.train.images), "test": hash_of_array(data.test.images)},
        "teacher": None if teacher is None else hash_of_model(teacher.state_dict()),
        **settings.decides(),
    }


def _open_folder(out: Path, decides: Mapping[str, object], *, overwrite: bool, inputs: tuple[Path, ...]) -> None:
    """Create the folder, or resume it if it belongs to this run.

    Raises:
        InputError: If the folder belongs to another run, contains something else, or cannot be made.
    """
    folder = RunFolder(out, DISTILL)
    found = folder.entries()
    if overwrite or not found:
        empty = out.is_dir() and not found
        require_free(out, overwrite=overwrite or empty, kind=DISTILL, inputs=inputs)
        if out.is_dir() and not out.is_symlink():
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        folder.describe(decides)
        return
    if not folder.description.is_file():
        raise InputError(
            f"{out} contains {found[0]} but no {DISTILL.marker}, so it is not a run of {DISTILL.command} to resume. "
            "Choose another folder."
        )
    if different := folder.difference(decides):
        raise InputError(f"{different} Losses and seeds can be added without replacing it.")


def _require_losses(data: ImageData, settings: DistillSettings, teacher: ResNet8 | None) -> None:
    """Refuse losses that do not fit their layers before anything is trained."""
    seed = settings.seeds[0]
    part = data.train.per_class(settings.per_class, seed=seed)
    teacher = (teacher or fresh(data, settings.teacher_width, 0).eval()).to(settings.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The same warnings come with the trained teacher.
        for losses in settings.losses:
            student = fresh(data, settings.student_width, 0).to(settings.device)
            NamedLosses(losses, settings.pairs, settings.batch)(student, teacher, part, seed)


def _teacher(data: ImageData, settings: DistillSettings, out: Path, given: ResNet8 | None) -> nn.Module:
    """Return the teacher, trained or given, and record it if that was requested."""
    store = out / "stores" / TEACHER if settings.record else None
    if given is not None:
        if store is not None:
            record_given(given, data, store)
        return given
    run = Run(
        network=TEACHER,
        name=TEACHER,
        seed=0,
        plan=settings.teacher_plan(),
        width=settings.teacher_width,
        store=store,
        phases=settings.phases(settings.teacher_epochs),
        folder=out / TEACHER,
        device=settings.device,
    )
    trained = train(run, data)
    if trained.curve.diverged is not None:
        raise InputError(f"There is no teacher to learn from. {trained.curve.diverged}")
    return trained.network


def _student_run(losses: tuple[Ingredient, ...], seed: int, settings: DistillSettings, out: Path) -> Run:
    label = label_of(losses)
    name = f"{label.replace(':', '-')}-seed{seed}"
    return Run(
        network=label,
        name=name,
        seed=seed,
        plan=settings.student_plan(seed),
        width=settings.student_width,
        work=2.0 if losses else 1.0,
        losses=NamedLosses(losses, settings.pairs, settings.batch) if losses else None,
        per_class=settings.per_class,
        store=out / "stores" / name if settings.record else None,
        phases=settings.phases(settings.epochs),
        folder=out / "students" / name,
        device=settings.device,
    )


def _draw(
    results: Sequence[Trained], students: tuple[StudentSummary, ...], teacher: float, data: ImageData, out: Path
) -> None:
    from mikit.experiments.picture import draw_run
    from mikit.plot import save_figure

    save_figure(draw_run(results, students, teacher, len(data.test), data.name), out, "curves")
