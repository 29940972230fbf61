"""How much does the weight of a loss matter?

Every method at several multiples of its loss (for VID of ten times its loss), with all seeds, compared with the student
alone. The curves show in which range of weights a method helps, not which method is best: no weight is chosen.

    python analysis/08_loss_weights.py --out results/weights --quick
    python analysis/08_loss_weights.py --out results/weights --data images.npz --seeds 3
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import pandas as pd
import typer
from comparison import comparing as shared
from comparison.methods import METHODS
from comparison.report import colors, points, write_table
from comparison.runs import ALONE
from matplotlib.figure import Figure

_DEFAULT = f"{ALONE},hinton,fitnet,attention,vid,mimkd,flow,pkt,kd2m"


def main(
    out: shared.Out,
    data: shared.Data = None,
    methods: shared.Methods = _DEFAULT,
    multiples: Annotated[str, typer.Option(help="Multiples to try, separated by commas.")] = "0.1,0.3,1,3,10",
    seeds: shared.Seeds = 3,
    jobs: shared.Jobs = 2,
    quick: shared.Quick = False,
    bf16: shared.Bf16 = None,
    report_only: shared.ReportOnly = False,
) -> None:
    """Train at every multiple; write table, figure and JSON."""
    chosen = shared.chosen_methods(methods, METHODS, quick=quick)
    rows = []
    for multiple in [float(multiple) for multiple in multiples.split(",")]:
        at = {
            name: method if name == ALONE else replace(method, weights=(multiple,)) for name, method in chosen.items()
        }
        comparison = replace(
            shared.comparison_of("weights", out, data, shared.settings_for(data, quick=quick, bf16=bf16), at, seeds),
            part=f"weight-{multiple:g}",
        )
        shared.compare(comparison, jobs=jobs, report_only=report_only)
        alone = {run["seed"]: points(run) for run in comparison.reported(ALONE)}
        for name, method in at.items():
            if name != ALONE:
                rows += [
                    {
                        "method": method.title,
                        "multiple": multiple,
                        "seed": run["seed"],
                        "gain": points(run) - alone[run["seed"]],
                    }
                    for run in comparison.reported(name)
                ]
    table = pd.DataFrame(rows)
    write_table(out, "loss_weights", table, "\n".join(markdown(table)), "loss_weights", lambda: drawn(table))


def markdown(table: pd.DataFrame) -> list[str]:
    """Return the mean gain and its sd by method and multiple, in Markdown."""
    multiples = sorted(set(table["multiple"]))
    lines = [
        f"Gain over the student alone, points: mean and sd over {table['seed'].nunique()} seeds, by multiples of the "
        "losses (for VID of ten times the loss).",
        "",
        "| method | " + " | ".join(f"{multiple:g}" for multiple in multiples) + " |",
        "|---|" + "---|" * len(multiples),
    ]
    for method, rows in table.groupby("method", sort=False):
        found = rows.groupby("multiple")["gain"].agg(["mean", "std"])
        cells = (f"{found.loc[multiple, 'mean']:+.2f} ± {found.loc[multiple, 'std']:.2f}" for multiple in multiples)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def drawn(table: pd.DataFrame) -> Figure:
    """Return one small panel per method: the gain by multiple, mean and range over seeds."""
    titles = list(dict.fromkeys(table["method"]))
    columns = min(4, len(titles))
    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(6.5, 0.6 + 1.5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()
    multiples = sorted(set(table["multiple"]))
    for axes, title in zip(panels, titles, strict=False):
        found = table[table["method"] == title].groupby("multiple")["gain"].agg(["mean", "min", "max"])
        color = colors(2)[1]
        axes.axhline(0, color="#444444", linewidth=0.8)
        axes.plot(found.index, found["mean"], marker="o", markersize=3, color=color, linewidth=1.2)
        axes.fill_between(found.index, found["min"], found["max"], color=color, alpha=0.2, linewidth=0)
        axes.set_title(title, fontsize=8)
        axes.set_xscale("log")
        axes.set_xticks(multiples, [f"{multiple:g}" for multiple in multiples])
        axes.minorticks_off()
        axes.grid(color="#e7e7e7")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    figure.supxlabel("multiple of the loss (for VID of ten times the loss)", fontsize=8)
    figure.supylabel("gain over the student alone, points", fontsize=8)
    return figure


if __name__ == "__main__":
    typer.run(main)
