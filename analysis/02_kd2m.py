"""Which discrepancy between the laws of features helps a student, and in which form?

KD²M with every metric, marginal, per class and joint with the labels, beside the student alone. All share optimiser,
schedule, initial weights, images, order and views, seed by seed. The weight of every method is chosen among equally
many on seed 0, by images that neither train nor report. Every run is a file of its own: start the same command again
and it goes on.

    python analysis/02_kd2m.py --out results/kd2m --quick
    python analysis/02_kd2m.py --out results/kd2m --data images.npz --seeds 3
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from joblib import Parallel, delayed
from kd2m_report import write_results
from kd2m_training import ALONE, METHODS, Comparison, Settings, parts_of, tell, train_method, trained_teacher

import mikit


def main(
    out: Annotated[Path, typer.Option(help="Folder of the comparison; an unfinished one goes on.")],
    data: Annotated[
        Path | None, typer.Option(help="Images as mikit.datasets.from_npz reads them; else digits.")
    ] = None,
    methods: Annotated[str, typer.Option(help="Comma-separated, such as mmd-class,exact; 'all' for all.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every method.")] = 3,
    weights: Annotated[str, typer.Option(help="Weights to try, by commas; 1: an unrelated student costs 1.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 2,
    quick: Annotated[bool, typer.Option(help="Fewer steps: shows that everything works, and little else.")] = False,
    bf16: Annotated[bool | None, typer.Option(help="bfloat16; by default for images of 16 pixels and more.")] = None,
    report_only: Annotated[bool, typer.Option(help="Train nothing; table and figure of the finished runs.")] = False,
) -> None:
    """Compare, and write table, figure and JSON."""
    try:
        comparison = Comparison(
            out=out,
            file=data,
            data_key=key_of(data),
            settings=settings_for(data, quick=quick, bf16=bf16),
            methods=(ALONE, *chosen_methods(methods)),
            seeds=tuple(range(seeds)),
            weights=tuple(float(weight) for weight in weights.split(",")) if weights else (0.2, 1.0, 5.0),
        )
        (out / "runs").mkdir(parents=True, exist_ok=True)
        if not report_only:
            train_all(comparison, jobs)
    except mikit.InputError as refusal:
        typer.echo(f"Error: {refusal}", err=True)
        raise typer.Exit(2) from refusal
    for line in write_results(comparison):
        print(line)


def key_of(file: Path | None) -> str:
    """Return what tells the data apart: the name of the digits, or the hash of a file."""
    if file is None:
        return "digits"
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as cause:
        raise mikit.InputError(f"{file} cannot be read: {cause.strerror}.") from cause


def settings_for(file: Path | None, *, quick: bool, bf16: bool | None) -> Settings:
    """Return settings that suit the data."""
    large = file is not None
    reduced = large if bf16 is None else bf16
    if not large:
        settings = Settings(epochs=30, teacher_epochs=8) if quick else Settings()
    else:
        settings = Settings(
            per_class=20 if quick else 100,
            validation=1000,
            student_width=1.0,
            teacher_epochs=1 if quick else 32,
            teacher_batch=128,
            teacher_rate=0.2,
            epochs=2 if quick else 40,
            batch=64,
        )
    return replace(settings, autocast=reduced, channels_last=reduced)


def chosen_methods(told: str) -> tuple[str, ...]:
    """Return the methods that were asked for: a metric, a form, or both joined by a hyphen."""
    if told == "all":
        return METHODS
    chosen = []
    for name in told.split(","):
        found = [method for method in METHODS if name in (method, *method.split("-"))]
        if not found:
            raise mikit.InputError(f'There is no method "{name}". The methods are {", ".join(METHODS)}.')
        chosen += found
    return tuple(dict.fromkeys(chosen))


def train_all(comparison: Comparison, jobs: int) -> None:
    """Train the teacher, then every method: its trials, then the other seeds with the weight that won."""
    torch.set_num_threads(1)
    tell(comparison, "teacher")
    trained_teacher(comparison, parts_of(comparison))
    tell(comparison, f"{comparison.finished()} of {comparison.planned()} runs are done")
    for _ in Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(train_method)(comparison, method) for method in comparison.methods
    ):
        write_results(comparison)


if __name__ == "__main__":
    typer.run(main)
