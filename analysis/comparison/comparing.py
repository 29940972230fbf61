"""The command shared by the analyses: compare methods on images, and write table, figure and JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from joblib import Parallel, delayed

import mikit
from comparison.report import write_results
from comparison.runs import ALONE, Comparison, Method, Settings, parts_of, tell, train_method, trained_teacher

Out = Annotated[Path, typer.Option(help="Folder of the comparison; an unfinished one is resumed.")]
Data = Annotated[Path | None, typer.Option(help="Images for mikit.datasets.from_npz; default: digits.")]
Methods = Annotated[str, typer.Option(help="Comma-separated names or their parts between hyphens; 'all' for all.")]
Seeds = Annotated[int, typer.Option(min=1, help="Number of runs of every method.")]
Jobs = Annotated[int, typer.Option(min=1, help="Number of processes, each with one thread.")]
Quick = Annotated[bool, typer.Option(help="Fewer steps, to check that everything works.")]
Bf16 = Annotated[bool | None, typer.Option(help="Use bfloat16; by default only for a file of images.")]
ReportOnly = Annotated[bool, typer.Option(help="Train nothing; write table and figure of the finished runs.")]


def compare(comparison: Comparison, *, jobs: int, report_only: bool) -> None:
    """Do the missing runs, write and print the results; an InputError ends the process with its message."""
    try:
        (comparison.out / "runs").mkdir(parents=True, exist_ok=True)
        if not report_only:
            train_all(comparison, jobs)
    except mikit.InputError as cause:
        typer.echo(f"Error: {cause}", err=True)
        raise typer.Exit(2) from cause
    for line in write_results(comparison):
        print(line)


def comparison_of(
    name: str, out: Path, data: Path | None, settings: Settings, methods: Mapping[str, Method], seeds: int
) -> Comparison:
    """Return a comparison of methods on images, with the first ``seeds`` seeds."""
    return Comparison(
        name=name,
        out=out,
        file=data,
        data_key=_key_of(data),
        settings=settings,
        methods=methods,
        seeds=tuple(range(seeds)),
    )


def _key_of(file: Path | None) -> str:
    """Return what identifies the data: the name of the digits, or the hash of a file."""
    if file is None:
        return "digits"
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as cause:
        typer.echo(f"Error: {file} cannot be read: {cause.strerror}.", err=True)
        raise typer.Exit(2) from cause


def settings_for(file: Path | None, *, quick: bool, bf16: bool | None, held_back: int = 1000) -> Settings:
    """Return settings for the data; ``held_back`` training images of a file are not trained on."""
    large = file is not None
    reduced = large if bf16 is None else bf16
    if not large:
        settings = Settings()
    else:
        settings = Settings(
            per_class=20 if quick else 100,
            validation=held_back,
            student_width=1.0,
            teacher_epochs=1 if quick else 32,
            teacher_batch=128,
            teacher_rate=0.2,
            epochs=2 if quick else 40,
            batch=64,
        )
    return replace(settings, autocast=reduced, channels_last=reduced)


def chosen_methods(names_given: str, known: Mapping[str, Method], *, quick: bool) -> dict[str, Method]:
    """Return the student alone and the chosen methods: by name, or by a part of several names between hyphens.

    With ``quick`` no weight is searched: all are 1.
    """
    if quick:
        known = {name: replace(method, weights=method.weights or (1.0,)) for name, method in known.items()}
    names = [ALONE]
    for name in known if names_given == "all" else names_given.split(","):
        found = [name] if name in known else [method for method in known if name in method.split("-")]
        if not found:
            typer.echo(f'Error: There is no method "{name}". The methods are {", ".join(known)}.', err=True)
            raise typer.Exit(2)
        names += found
    return {name: known[name] for name in dict.fromkeys(names)}


def train_all(comparison: Comparison, jobs: int) -> None:
    """Train the teacher, then every method: its trials, then the other seeds with the best weight."""
    torch.set_num_threads(1)
    tell(comparison, "teacher")
    trained_teacher(comparison, parts_of(comparison))
    tell(comparison, f"{comparison.finished()} of {comparison.planned()} runs are done")
    for _ in Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(train_method)(comparison, method) for method in comparison.methods
    ):
        write_results(comparison)
