"""How many labeled images does a teacher save: accuracy of students by the number of training images per class.

The table of the VID paper, for VID and baseline distillation losses. All students are trained for equally many steps
and share optimizer, schedule, initial weights, order and views for each seed. The weight of every method is searched
again for every number of images, with equally many trials; with ``--quick`` all weights are 1.

    python analysis/04_data_efficiency.py --out results/data --quick
    python analysis/04_data_efficiency.py --out results/data --data images.npz --per-class 20,100,500
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import pandas as pd
import typer
from comparison import comparing as shared
from comparison.methods import METHODS
from comparison.report import colors, interval, points, teacher_accuracy, write_table
from comparison.runs import ALONE, Comparison, parts_of
from matplotlib.figure import Figure

_DEFAULT = f"{ALONE},hinton,fitnet,attention,vid"


def main(
    out: shared.Out,
    data: shared.Data = None,
    methods: shared.Methods = _DEFAULT,
    per_class: Annotated[str, typer.Option(help="Images per class, by commas; empty: a default for the data.")] = "",
    seeds: shared.Seeds = 5,
    jobs: shared.Jobs = 2,
    quick: shared.Quick = False,
    bf16: shared.Bf16 = None,
    report_only: shared.ReportOnly = False,
) -> None:
    """Train students on several numbers of images; write table, figure and JSON."""
    base = shared.settings_for(data, quick=quick and data is not None, bf16=bf16)
    counts = [int(count) for count in per_class.split(",")] if per_class else counts_for(data is not None, quick)
    chosen = shared.chosen_methods(methods, METHODS, quick=quick)
    comparisons = {}
    for count in counts:
        comparison = replace(
            shared.comparison_of("methods", out, data, base, chosen, seeds),
            part=f"{count}-per-class",
        )
        classes = parts_of(comparison).data.classes
        steps = base.epochs * (base.per_class * classes // base.batch)
        epochs = max(1, round(steps / max(1, count * classes // base.batch)))
        comparisons[count] = replace(comparison, settings=replace(base, per_class=count, epochs=epochs))
        shared.compare(comparisons[count], jobs=jobs, report_only=report_only)
    table = joined(comparisons)
    write_table(
        out,
        "data_efficiency",
        table,
        "\n".join(markdown(table, comparisons)),
        "data_efficiency",
        lambda: drawn(table, seeds),
    )


def counts_for(large: bool, quick: bool) -> list[int]:
    """Return default numbers of images per class for the data."""
    if large:
        return [20, 100] if quick else [20, 100, 500]
    return [5, 20] if quick else [5, 10, 20]


def joined(comparisons: dict[int, Comparison]) -> pd.DataFrame:
    """Return one row for every reported run, with its gain over the student alone of the same seed."""
    rows = []
    for count, comparison in comparisons.items():
        alone = {run["seed"]: points(run) for run in comparison.reported(ALONE)}
        for name, method in comparison.methods.items():
            for run in comparison.reported(name):
                gain = points(run) - alone.get(run["seed"], float("nan"))
                kept = {"method": method.title, "per_class": count, "seed": run["seed"], "weight": run["weight"]}
                rows.append({**kept, "accuracy": points(run), "gain": gain})
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame, comparisons: dict[int, Comparison]) -> list[str]:
    """Return the table in Markdown: accuracy and paired gain by method and number of images."""
    counts = list(comparisons)
    teacher = teacher_accuracy(next(iter(comparisons.values())))
    lines = [
        f"Teacher {teacher:.2f} %. Accuracy on test images, %: mean and sd over {table['seed'].nunique()} seeds. In "
        "brackets the mean gain over the student alone, points, and its 95 % interval.",
        "",
        "| images per class | " + " | ".join(map(str, counts)) + " |",
        "|---|" + "---|" * len(counts),
    ]
    for method in dict.fromkeys(table["method"]):
        cells = []
        for count in counts:
            rows = table[(table["method"] == method) & (table["per_class"] == count)]
            cell = f"{rows['accuracy'].mean():.2f} ± {rows['accuracy'].std():.2f}"
            if method != METHODS[ALONE].title:
                low, high = interval(rows["gain"].to_numpy())
                cell += f" ({rows['gain'].mean():+.2f}, {low:+.2f} to {high:+.2f})"
            cells.append(cell)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def drawn(table: pd.DataFrame, seeds: int) -> Figure:
    """Return accuracy and gain by the number of images, one line per method, with the range over seeds."""
    figure = Figure(figsize=(6.5, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    titles = list(dict.fromkeys(table["method"]))
    for title, color in zip(titles, colors(len(titles)), strict=True):
        for axes, column in ((left, "accuracy"), (right, "gain")):
            found = table[table["method"] == title].groupby("per_class")[column].agg(["mean", "min", "max"])
            axes.plot(found.index, found["mean"], marker="o", markersize=3, color=color, linewidth=1.2, label=title)
            axes.fill_between(found.index, found["min"], found["max"], color=color, alpha=0.15, linewidth=0)
    for axes, label in ((left, "test accuracy, %"), (right, "gain over the student alone, points")):
        axes.set_xscale("log")
        counts = sorted(set(table["per_class"]))
        axes.set_xticks(counts, map(str, counts))
        axes.minorticks_off()
        axes.set_xlabel("images per class")
        axes.set_ylabel(label)
        axes.grid(color="#e7e7e7")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Mean and range over {seeds} seeds.", fontsize=8, x=0.01, ha="left")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(titles), frameon=False)
    return figure


if __name__ == "__main__":
    typer.run(main)
