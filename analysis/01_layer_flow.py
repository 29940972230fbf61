"""How much does every layer know about the label, and how much of the teacher does each student recover?

Traces stored activations of any networks and writes the table, its settings and the report: what ``mikit trace`` and
``mikit report`` do, as a script to start from.

    python analysis/01_layer_flow.py runs/teacher runs/alone-0 runs/vid-0 --out results/flow
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import mikit


def main(
    teacher: Annotated[Path, typer.Argument(help="Activation store of the teacher.")],
    students: Annotated[
        list[Path], typer.Argument(help="Activation stores of the students, one per network and seed.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the table and the report; an unfinished trace is resumed.")],
    probe: Annotated[str, typer.Option(help="Probe of the label information: logistic or lda.")] = "logistic",
    reduce: Annotated[int | None, typer.Option(help="Compare wider layers by this many principal components.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the folds.")] = 0,
    jobs: Annotated[int, typer.Option(help="Number of threads.")] = 2,
) -> None:
    """Trace the students against the teacher and write the report."""
    try:
        flow = mikit.trace(
            mikit.ActivationStore.open(teacher),
            [mikit.ActivationStore.open(path) for path in students],
            probe=probe,
            reduce=reduce,
            seed=seed,
            jobs=jobs,
            out=out,
            progress=True,
        )
        mikit.report(flow, out / "report", overwrite=True)
    except mikit.InputError as cause:
        typer.echo(f"Error: {cause}", err=True)
        raise typer.Exit(2) from cause
    print(f"{flow}\nWritten to {out}: open {out / 'report' / 'index.html'}.")


if __name__ == "__main__":
    typer.run(main)
