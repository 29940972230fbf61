"""What does every layer know, and how much of the teacher does each student recover?

Traces stored activations, whatever the networks: writes the table (CSV, Parquet) with its settings, the figures and the
report, and prints what was found in a few lines.

    python analysis/01_layer_flow.py runs/teacher runs/alone-0 runs/vid-0 --out results/flow
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import mikit

NOISE = 0.3


def main(
    teacher: Annotated[Path, typer.Argument(help="Activation store of the teacher.")],
    students: Annotated[
        list[Path], typer.Argument(help="Activation stores of the students, one per network and seed.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the table, the figures and the report.")],
    probe: Annotated[str, typer.Option(help="Probe of the label information: logistic or lda.")] = "logistic",
    reduce: Annotated[int | None, typer.Option(help="Compare wider layers by this many principal components.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the folds.")] = 0,
    jobs: Annotated[int, typer.Option(help="Threads.")] = 2,
    figures: Annotated[bool, typer.Option(help="Draw the figures and write the report.")] = True,
) -> None:
    """Trace the students against the teacher and say what was found."""
    try:
        flow = mikit.trace(
            mikit.ActivationStore.open(teacher),
            [mikit.ActivationStore.open(path) for path in students],
            probe=probe,
            reduce=reduce,
            seed=seed,
            jobs=jobs,
            progress=True,
        )
        flow.save(out)
    except mikit.InputError as refusal:
        typer.echo(f"Error: {refusal}", err=True)
        raise typer.Exit(2) from refusal
    if figures:
        for name, figure in drawn(flow).items():
            figure.savefig(out / f"{name}.png", dpi=150)
        mikit.report(flow, out / "report")
    for line in findings(flow):
        print(line)
    print(f"{flow}\nWritten to {out}.")


def drawn(flow: mikit.Flow) -> dict[str, object]:
    """Return the figures that the rows of the flow allow, by name."""
    present = set(flow.frame["quantity"][flow.frame["role"] == "student"])
    wanted = {
        "flow": ("label_information", mikit.plot.flow),
        "gap": ("label_gap", mikit.plot.gap),
        "phases": ("recovered_share", mikit.plot.phases),
        "maps": ("recovered_share", mikit.plot.maps),
        "accuracy": ("accuracy", mikit.plot.accuracy),
    }
    return {name: draw(flow) for name, (quantity, draw) in wanted.items() if quantity in present}


def findings(flow: mikit.Flow) -> list[str]:
    """Return a line per network: label information and recovered share at its last phase, averaged over seeds."""
    frame = flow.frame[flow.frame["role"] == "student"]
    final = frame[frame["phase"] == frame.groupby(["network", "seed"])["phase"].transform("max")]
    lines = []
    for network in flow.settings["networks"]:
        rows = final[final["network"] == network]
        seeds = rows["seed"].nunique()
        lines.append(f"{network} ({seeds} {'run' if seeds == 1 else 'runs'}):")
        information = rows[rows["quantity"] == "label_information"]
        if len(information):
            entropy = flow.settings["label_entropy"]
            lines.append(f"  label information, nats of {entropy:.2f}: {along(information)}")
        shares = rows[(rows["quantity"] == "recovered_share") & (rows["noise"] == nearest_noise(flow))]
        best = (
            shares.groupby(["teacher_layer", "teacher_layer_index", "layer"], sort=False)["value"].mean().reset_index()
        )
        if len(best):
            best = best.loc[best.groupby("teacher_layer_index")["value"].idxmax()]
            told = ", ".join(
                f"{share:.0%} of {theirs} from {own}"
                for theirs, own, share in zip(best["teacher_layer"], best["layer"], best["value"], strict=True)
            )
            lines.append(f"  most recovered at noise {nearest_noise(flow):g}: {told}")
    return lines


def along(rows: pd.DataFrame) -> str:
    """Return the mean per layer in network order, with the untrained value where it is known."""
    means = rows.groupby(["layer_index", "layer"])[["value", "untrained"]].mean().reset_index()
    return ", ".join(
        f"{layer} {value:.2f}" + (f" (untrained {floor:.2f})" if pd.notna(floor) else "")
        for layer, value, floor in zip(means["layer"], means["value"], means["untrained"], strict=True)
    )


def nearest_noise(flow: mikit.Flow) -> float:
    """Return the noise level nearest to 0.3."""
    return min(flow.settings["noise"], key=lambda level: abs(level - NOISE))


if __name__ == "__main__":
    typer.run(main)
