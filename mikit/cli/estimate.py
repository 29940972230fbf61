"""The command ``mikit estimate``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mikit.cli.options import Json, Overwrite, Seed, require_free_json
from mikit.cli.terminal import Steps, answered, refuse, say, show_measurement
from mikit.core.errors import InputError
from mikit.core.files import write_text

__all__ = ["estimate"]

_VERDICTS = ("trustworthy", "caution", "unreliable")


Teacher = Annotated[
    Path, typer.Argument(metavar="TEACHER", help="Teacher's activations: .npy, .npz, .pt, .safetensors or a store.")
]
Student = Annotated[Path | None, typer.Argument(metavar="STUDENT", help="Student's activations; omit with --labels.")]
Labels = Annotated[Path | None, typer.Option(metavar="FILE", help="Labels; estimate their information in TEACHER.")]
Groups = Annotated[
    Path | None, typer.Option(metavar="FILE", help="One entry per sample; samples of a group stay together.")
]
TeacherKey = Annotated[str | None, typer.Option(help="Array in TEACHER, if it contains several.")]
StudentKey = Annotated[str | None, typer.Option(help="Array in STUDENT, if it contains several.")]
Rotations = Annotated[int, typer.Option(help="Number of folds that are the report part in turn.")]
Noise = Annotated[
    float | None, typer.Option(help="Add noise to TEACHER, as a fraction of each feature's standard deviation.")
]
Audit = Annotated[bool, typer.Option(help="Also run the checks that repeat the estimate; their cost is reported.")]
Require = Annotated[
    str | None, typer.Option(metavar="VERDICT", help="Exit with code 3 unless the verdict is at least this good.")
]


@answered()
def estimate(
    teacher: Teacher,
    student: Student = None,
    estimator: Annotated[str, typer.Option(help="Name of the estimator.")] = "auto",
    labels: Labels = None,
    groups: Groups = None,
    teacher_key: TeacherKey = None,
    student_key: StudentKey = None,
    folds: Annotated[int, typer.Option(help="Number of folds of the samples.")] = 5,
    rotations: Rotations = 1,
    permutations: Annotated[int | None, typer.Option(help="Number of estimates on permuted data.")] = None,
    noise: Noise = None,
    audit: Audit = False,
    seed: Seed = 0,
    require: Require = None,
    json_file: Json = None,
    overwrite: Overwrite = False,
) -> None:
    """Estimate the mutual information between a student's and a teacher's activations, or with labels."""
    if require is not None and require not in _VERDICTS:
        raise InputError(f'--require is "{require}"; it must be one of {", ".join(_VERDICTS)}.')
    if (student is None) == (labels is None):
        raise InputError(
            "Pass two files, the teacher's and the student's activations; or one file of activations and --labels."
        )
    require_free_json(json_file, overwrite, teacher, student, labels, groups)
    with Steps() as steps:
        steps.begin("Reading")
        from mikit.activations import read_array
        from mikit.measuring.pipeline import measure

        first = read_array(teacher, key=teacher_key)
        second = None if student is None else read_array(student, key=student_key)
        with _files_named(teacher, student):
            measurement = measure(
                first if second is None else second,
                None if second is None else first,
                estimator,
                labels=None if labels is None else read_array(labels),
                groups=None if groups is None else read_array(groups).values,
                folds=folds,
                rotations=rotations,
                permutations=permutations,
                noise=noise,
                audit=audit,
                seed=seed,
                progress=steps.begin,
            )
    if json_file == "-":
        say(measurement.to_json())
    else:
        if json_file is not None:
            write_text(Path(json_file), measurement.to_json() + "\n", overwrite=overwrite)
        show_measurement(measurement)
    if require is not None and _VERDICTS.index(measurement.verdict) > _VERDICTS.index(require):
        raise refuse(f"The verdict is {measurement.verdict}; --require needs {require}.", 3)


@contextmanager
def _files_named(teacher: Path, student: Path | None) -> Iterator[None]:
    """Add to an error which file is x and which is y, if it mentions them."""
    try:
        yield
    except InputError as cause:
        names = f"x is {teacher}" if student is None else f"x is the student, {student}; y is the teacher, {teacher}"
        note = f" ({names}.)" if re.search(r"\b[xy]\b", str(cause)) else ""
        raise InputError(f"{cause}{note}") from cause
