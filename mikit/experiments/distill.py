"""A whole run of ``mikit distill``: teacher, students, summary, picture; every step goes on from where it was."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

from joblib import Parallel, cpu_count, delayed
from torch import Tensor

from mikit.activations import hash_of_array, hash_of_model
from mikit.core.errors import InputError
from mikit.core.files import TEMPORARY_PREFIX, Kind, require_free, sync_folder, write_atomically
from mikit.core.provenance import library_versions, one_thread
from mikit.datasets import ImageData
from mikit.distillation import accuracy_on
from mikit.experiments.settings import TEACHER, DistillSettings
from mikit.experiments.summary import StudentSummary, summarised
from mikit.experiments.training import Run, Trained, require_losses, train, train_teacher
from mikit.models import ResNet8

__all__ = ["DISTILL", "DistillResult", "Stages", "open_folder", "run_distill", "write_whole"]


DISTILL = Kind(
    "mikit distill",
    "distill.json",
    b'"mikit distill"',
    frozenset(
        {"distill.json", "summary.json", "curves.png", "curves.svg", "teacher", "students", "stores", "networks"}
    ),
)


def open_folder(out: Path, decides: Mapping[str, object], *, overwrite: bool, inputs: tuple[Path, ...]) -> None:
    """Make the folder, or go on with it if it is that of this very run.

    Args:
        out: The folder.
        decides: What all that stands in it shares, as plain values.
        overwrite: Begin anew in place of an earlier result.
        inputs: Files that are read and must not be replaced.

    Raises:
        InputError: If the folder holds another run, or something that is no run, or cannot be made.
    """
    held = out / DISTILL.holds
    if overwrite or not (out.is_dir() and any(_seen(out))):
        empty = out.is_dir() and not any(_seen(out))
        require_free(out, overwrite=overwrite or empty, kind=DISTILL, inputs=inputs)
        if out.is_dir() and not out.is_symlink():
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        write_whole(held, {"made_by": DISTILL.command, "schema_version": 1, **decides})
        return
    if not held.is_file():
        found = sorted(entry.name for entry in _seen(out))
        raise InputError(
            f"{out} holds {found[0]} and no {DISTILL.holds}, so it is no run of {DISTILL.command} to go on with. "
            "Choose another folder."
        )
    try:
        content = json.loads(held.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise InputError(f"{held} cannot be read ({type(cause).__name__}). Choose another folder.") from cause
    if not isinstance(content, dict) or content.get("made_by") != DISTILL.command:
        raise InputError(f"{held} was not written by {DISTILL.command}. Choose another folder.")
    new = json.loads(json.dumps(decides))
    different = [name for name in new if content.get(name) != new[name]]
    if different:
        name = different[0]
        others = f" ({', '.join(different[1:])} differ too)" if different[1:] else ""
        raise InputError(
            f"{out} holds another run: its {name} is {content.get(name)}, not {new[name]}{others}. Choose another "
            "folder, or pass --overwrite to replace it. More losses and seeds can be added to a run as it is."
        )


def write_whole(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    sync_folder(path.parent)


def _seen(out: Path) -> list[Path]:
    return [entry for entry in out.iterdir() if not entry.name.startswith(TEMPORARY_PREFIX)]


class Stages(Protocol):
    """Whoever wants to know how far the run is: told each stage, its length, and every step forward."""

    def begin(self, stage: str, total: float | None) -> None:
        """A stage begins; ``total`` is its length, if it is known."""

    def advance(self, by: float) -> None:
        """The stage has come ``by`` further."""


@final
@dataclass(frozen=True)
class DistillResult:
    """What a run left.

    Attributes:
        folder: Where it stands.
        teacher: Accuracy of the teacher on the test images.
        students: One summary for each kind of student, the student alone first.
        stores: Activation stores, the teacher's first; none unless they were asked for.
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
    """Train a teacher, a student alone, and students that learn from the teacher; go on where an earlier call stopped.

    The folder holds ``distill.json`` (what decides the run), ``teacher/`` and ``students/NAME-seedN/`` with
    ``checkpoint.pt`` and ``log.jsonl``, ``networks/`` with the trained weights, ``stores/`` if activations are
    recorded, ``summary.json``, ``curves.png`` and ``curves.svg``. A call that was killed, by ``kill -9`` too, is
    repeated with the same arguments and gives the numbers of one that was not. Losses and seeds may be added later.

    Args:
        out: The folder to make, or to go on with.
        data: The images.
        settings: Everything else that decides the result.
        teacher: A trained teacher, in evaluation mode; None to train one.
        overwrite: Begin anew in place of an earlier result.
        inputs: Files that are read, which ``out`` must not replace.
        jobs: Processes to train students in; one per processor by default, and one on a GPU. The result does not depend
            on it.
        stages: Told how far the run is.

    Raises:
        InputError: If the folder holds another run, a loss cannot stand between its layers, there are too few images,
            or the teacher's training diverges. A student that diverges is told in its summary.

    Cost:
        The trainings. With the settings for digits about 10 s for each student that learns from a teacher, on one core.

    Pitfalls:
        All students of a seed share images, initial weights, order and views, so gains are paired; the spread over
        seeds holds none of the teacher's own. With three seeds a comparison is a screen, not a test. Weights that you
        choose by this accuracy are chosen on the test images. Training on a GPU was not tried for this release.
    """
    start = time.perf_counter()
    stages = stages or _Silent()
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1.")
    jobs = jobs or (cpu_count() if settings.device == "cpu" else 1)
    stages.begin("Checking the losses", None)
    with one_thread():
        require_losses(data, settings, teacher)
    decides = {
        "data": {"name": data.name, "hash": hash_of_array(data.train.images), "test": hash_of_array(data.test.images)},
        "teacher": None if teacher is None else hash_of_model(teacher.state_dict()),
        **settings.decides(),
    }
    open_folder(out, decides, overwrite=overwrite, inputs=inputs)
    stages.begin("Training the teacher" if teacher is None else "Reading the teacher", None)
    with one_thread():
        master = train_teacher(data, settings, out, teacher)
        reached = accuracy_on(master, data.test.images, data.test.labels)
    state = {name: value.detach().cpu().clone() for name, value in master.state_dict().items()}
    _save_network(state, out / "networks" / f"{TEACHER}.safetensors")
    runs = [Run(losses, seed, out) for losses in ((), *settings.losses) for seed in settings.seeds]
    results = _trained(runs, data, settings, state, jobs, stages)
    for one in results:
        if one.curve.diverged is None:
            _save_network(one.state, out / "networks" / f"{one.run.name}.safetensors")
    students = summarised(results)
    stages.begin("Drawing", None)
    _draw(results, students, reached, data, out)
    stores = tuple(out / "stores" / name for name in (TEACHER, *(run.name for run in runs))) if settings.record else ()
    result = DistillResult(out, reached, students, stores, time.perf_counter() - start)
    write_whole(
        out / "summary.json",
        {"schema_version": 1, **result.to_dict(), "settings": settings.decides(), "versions": library_versions()},
    )
    return result


def _trained(
    runs: list[Run],
    data: ImageData,
    settings: DistillSettings,
    teacher: dict[str, Tensor],
    jobs: int,
    stages: Stages,
) -> list[Trained]:
    stages.begin(f"Training {len(runs)} students", sum(run.work() for run in runs))
    pool = Parallel(n_jobs=min(jobs, len(runs)), return_as="generator_unordered", max_nbytes=None)
    results = []
    for result in pool(delayed(train)(run, data, settings, teacher) for run in runs):
        stages.advance(result.run.work())
        results.append(result)
    order = [run.name for run in runs]
    return sorted(results, key=lambda result: order.index(result.run.name))


def _draw(
    results: list[Trained], students: tuple[StudentSummary, ...], teacher: float, data: ImageData, out: Path
) -> None:
    from mikit.experiments.picture import draw_run
    from mikit.plot import save_figure

    save_figure(draw_run(results, students, teacher, len(data.test), data.name), out, "curves")


def _save_network(state: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save

    path.parent.mkdir(exist_ok=True)
    content = save({name: value.contiguous() for name, value in state.items()})
    write_atomically(path, lambda file: file.write(content))


@final
class _Silent:
    """Nobody wants to know."""

    def begin(self, stage: str, total: float | None) -> None:
        """Do nothing."""

    def advance(self, by: float) -> None:
        """Do nothing."""
