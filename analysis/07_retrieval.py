"""Does information-flow distillation improve retrieval, and how does the information flow change in training?

Retrieval with the pooled layer: queries are test images, the database contains the training images without those for
validation. The table has mean average precision over all ranks and precision among the first hundred, by Euclidean
distance and by cosine. ``released evaluator`` is the computation in the code of the method's authors: precision
interpolated at eleven recalls, over one rank fewer than a batch has queries. A figure shows, by epoch, the divergence
of the student's flow of label information from the teacher's, and the weight of the intermediate layers.

    python analysis/07_retrieval.py --out results/retrieval --quick
    python analysis/07_retrieval.py --out results/retrieval --data images.npz --seeds 3
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import typer
from comparison import comparing as shared
from comparison.methods import FLOW_LAYERS, METHODS
from comparison.report import colors, write_table
from comparison.retrieval import flow_at, retrieval_of
from comparison.runs import ALONE, Comparison
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

import mikit

_plain = FuncFormatter(lambda value, _: f"{value:g}")
_NAMES = (ALONE, "hinton", "pkt", "flow", "flow-kept", "vid")
_COLUMNS = {
    "map_euclidean": "mAP, Euclidean",
    "map_cosine": "mAP, cosine",
    "top100_euclidean": "top 100, Euclidean",
    "top100_cosine": "top 100, cosine",
    "released_map_cosine": "released evaluator: mAP, cosine",
    "released_top100_cosine": "released evaluator: top 100, cosine",
}


def main(
    out: shared.Out,
    data: shared.Data = None,
    methods: shared.Methods = "all",
    seeds: shared.Seeds = 3,
    jobs: shared.Jobs = 2,
    quick: shared.Quick = False,
    bf16: shared.Bf16 = None,
    report_only: shared.ReportOnly = False,
) -> None:
    """Compare, and write tables, figures and JSON."""
    known = {name: replace(METHODS[name], look=retrieval_of, watch=flow_at) for name in _NAMES}
    comparison = shared.comparison_of(
        "accuracy",
        out,
        data,
        shared.settings_for(data, quick=quick, bf16=bf16),
        shared.chosen_methods(methods, known, quick=quick),
        seeds,
    )
    shared.compare(comparison, jobs=jobs, report_only=report_only)
    runs = {name: comparison.reported(name) for name in comparison.methods}
    table = pd.DataFrame(
        {"method": comparison.methods[name].title, "seed": run["seed"], **run["looks"]}
        for name, found in runs.items()
        for run in found
        if run["looks"]
    )
    if table.empty:
        print("No run with the chosen weight is done yet.")
        return
    write_table(out, "retrieval", table, "\n".join(markdown(table)), "phases", lambda: drawn(comparison))


def markdown(table: pd.DataFrame) -> list[str]:
    """Return the table in Markdown: percent, mean and sd over seeds."""
    lines = [
        f"Retrieval, %: mean and sd over {table['seed'].nunique()} seeds.",
        "",
        "| method | " + " | ".join(_COLUMNS.values()) + " |",
        "|---|" + "---|" * len(_COLUMNS),
    ]
    for method, rows in table.groupby("method", sort=False):
        cells = (f"{100 * rows[column].mean():.2f} ± {100 * rows[column].std():.2f}" for column in _COLUMNS)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def drawn(comparison: Comparison) -> Figure:
    """Return the divergence of flows by epoch, the last layer separately, and the intermediate weights."""
    figure = Figure(figsize=(6.5, 3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    titles = [method.title for method in comparison.methods.values()]
    for (name, method), color in zip(comparison.methods.items(), colors(len(titles)), strict=True):
        found = [run["phases"] for run in comparison.reported(name) if run["phases"]]
        if not found:
            continue
        epochs = [phase["epoch"] for phase in found[0]]
        for axes, part in ((left, "intermediate"), (right, "last")):
            values = np.array([[phase[part] for phase in phases] for phases in found])
            axes.plot(range(len(epochs)), values.mean(0), color=color, linewidth=1.2, label=method.title)
            axes.fill_between(range(len(epochs)), values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
            axes.set_xticks(range(len(epochs)), [str(epoch) for epoch in epochs])
    last = comparison.settings.epochs
    flow = mikit.InformationFlow((0,) * len(FLOW_LAYERS))
    weights = []
    ticks = left.get_xticks()
    for label in left.get_xticklabels():
        flow.set_epoch(min(last, int(label.get_text())))
        weights.append(1 - flow.weights()[-1])
    schedule = left.twinx()
    schedule.plot(ticks, weights, color="#444444", linestyle=":", linewidth=1)
    schedule.set_ylim(0, 1.02)
    schedule.set_ylabel("intermediate weight (dotted)")
    schedule.spines["top"].set_visible(False)
    for axes, what in ((left, "intermediate layers"), (right, "last layer")):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(what, fontsize=8)
        axes.set_xlabel("epoch (not to scale)")
        axes.grid(color="#e7e7e7")
        axes.spines["top"].set_visible(False)
    left.set_ylabel("flow divergence, squared CKA")
    figure.suptitle("Mean and range over seeds; validation images, pooled layers.", fontsize=8, x=0.01, ha="left")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    typer.run(main)
