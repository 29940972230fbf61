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


@answered()
def estimate(
    teacher: Annotated[
        Path, typer.Argument(metavar="TEACHER", help="What is explained: .npy, .npz, .pt, .safetensors or a store.")
    ],
    student: Annotated[
        Path | None, typer.Argument(metavar="STUDENT", help="What conditions. Left out with --labels.")
    ] = None,
    estimator: Annotated[str, typer.Option(help="Name of the instrument.")] = "auto",
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labels to explain from the one file of activations.")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One entry per row; rows of one group stay together.")
    ] = None,
    teacher_key: Annotated[str | None, typer.Option(help="Array in TEACHER, where it holds several.")] = None,
    student_key: Annotated[str | None, typer.Option(help="Array in STUDENT, where it holds several.")] = None,
    folds: Annotated[int, typer.Option(help="Parts the rows are dealt into.")] = 5,
    rotations: Annotated[int, typer.Option(help="How many of the parts report in turn.")] = 1,
    permutations: Annotated[int | None, typer.Option(help="Estimates on permuted data.")] = None,
    noise: Annotated[
        float | None, typer.Option(help="Declare noise on TEACHER, as a share of each column's standard deviation.")
    ] = None,
    audit: Annotated[
        bool, typer.Option(help="Also run the checks that repeat the estimate; their cost is told.")
    ] = False,
    seed: Seed = 0,
    require: Annotated[
        str | None, typer.Option(metavar="VERDICT", help="Exit with 3 unless the verdict is this good.")
    ] = None,
    json_file: Json = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure what a student's activations say about a teacher's, or about labels."""
    if require is not None and require not in _VERDICTS:
        raise InputError(f'--require is "{require}"; it must be one of {", ".join(_VERDICTS)}.')
    if (student is None) == (labels is None):
        raise InputError(
            "Give two files, the teacher's activations and the student's; or one file of activations and --labels."
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
        raise refuse(f"The verdict is {measurement.verdict}; --require asks for {require}.", 3)


@contextmanager
def _files_named(teacher: Path, student: Path | None) -> Iterator[None]:
    """Say which file is x and which is y where a refusal speaks of them."""
    try:
        yield
    except InputError as cause:
        names = f"x is {teacher}" if student is None else f"x is the student, {student}; y is the teacher, {teacher}"
        said = f" ({names}.)" if re.search(r"\b[xy]\b", str(cause)) else ""
        raise InputError(f"{cause}{said}") from cause
