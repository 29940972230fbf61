"""Where does a teacher's information go while students learn: alone, by VID, MIMKD, information flow and KD²M?

Trains the students, records six layers at eight epochs on images that no network was trained on, traces them, and
writes the information flow, its figures, the report and two tables. Losses have their recommended weights. VID with the
teacher's features of other images is the control; epoch 0 of each student is untrained.

    python analysis/09_flow_over_training.py --out results/flow --quick
    python analysis/09_flow_over_training.py --out results/flow --data images.npz --seeds 3
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import pandas as pd
import typer
from comparison import comparing as shared
from comparison.flow import HELD_BACK, traced, watched
from comparison.methods import METHODS, mimkd, recommended, student_alone, vid
from comparison.report import write_markdown
from comparison.runs import ALONE, Method

import mikit

NOISE = 0.3
VARIANTS = {
    ALONE: student_alone,
    "vid": Method(title="VID", build=vid),
    "mimkd": Method(title="MIMKD", build=recommended(mimkd)),
    "flow": Method(title="information flow", build=recommended(METHODS["flow"].build)),
    "kd2m": METHODS["kd2m"],
    "vid-other-images": METHODS["vid-other-images"],
}

Noise = Annotated[float, typer.Option(help="Noise on the teacher's layers, in their RMS standard deviations.")]


def main(
    out: shared.Out,
    data: shared.Data = None,
    methods: shared.Methods = "all",
    seeds: shared.Seeds = 3,
    jobs: shared.Jobs = 2,
    noise: Noise = NOISE,
    quick: shared.Quick = False,
    bf16: shared.Bf16 = None,
    report_only: shared.ReportOnly = False,
) -> None:
    """Train and record what is missing, trace, draw, report."""
    settings = shared.settings_for(data, quick=quick, bf16=bf16, held_back=HELD_BACK)
    chosen = shared.chosen_methods(methods, VARIANTS, quick=quick)
    fixed = {name: replace(method, weights=method.weights or (1.0,)) for name, method in chosen.items()}
    comparison = shared.comparison_of("accuracy", out, data, settings, watched(fixed, out), seeds)
    shared.compare(comparison, jobs=jobs, report_only=report_only)
    flow = traced(comparison, jobs=jobs, noise=noise)
    for name, draw in {"phases": mikit.plot.phases, "flow": mikit.plot.flow, "gap": mikit.plot.gap}.items():
        mikit.plot.save_figure(draw(flow), out, name)
    for name, method in comparison.methods.items():
        if name != ALONE:
            picture = mikit.plot.maps(flow, networks=[student_alone.title, method.title])
            mikit.plot.save_figure(picture, out, f"maps_{name}")
    mikit.report(flow, out / "report", overwrite=True)
    write_markdown(out, "flow_layers", layer_tables(flow))
    write_markdown(out, "flow_checks", checks(flow))
    print(f"{flow}\nWritten to {out}: {out / 'report' / 'index.html'} is the page to open.")


def at_depth(flow: mikit.Flow, quantity: str) -> pd.DataFrame:
    """Return the rows of a quantity of the students; quantities of two layers at the same layer of both networks."""
    frame = flow.frame[(flow.frame["role"] == "student") & (flow.frame["quantity"] == quantity)]
    return frame if quantity == "label_information" else frame[frame["layer"] == frame["teacher_layer"]]


def ends(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of the first and of the last epoch."""
    return rows[rows["phase"] == rows["phase"].min()], rows[rows["phase"] == rows["phase"].max()]


def layer_tables(flow: mikit.Flow) -> str:
    """Return mean and sd over seeds of both quantities at the last epoch, by network and layer, in Markdown."""
    titles = {
        "label_information": f"Label information, nats of {flow.settings['label_entropy']:.2f}",
        "recovered_share": f"Fraction of the information of the same teacher layer recovered, noise {noise_of(flow):g}",
    }
    lines = []
    for quantity, title in titles.items():
        first, last = ends(at_depth(flow, quantity))
        layers = list(dict.fromkeys(last["layer"]))
        parts = {f"untrained (epoch {first['phase'].min()})": first[first["network"] == first["network"].iloc[0]]}
        parts |= {name: last[last["network"] == name] for name in flow.settings["networks"]}
        if quantity == "label_information":
            teacher = flow.frame[(flow.frame["role"] == "teacher") & (flow.frame["quantity"] == quantity)]
            parts["teacher (1 run)"] = teacher[teacher["phase"] == teacher["phase"].max()]
        lines += [f"{title}; mean and sd over {last['seed'].nunique()} seeds, {last['n'].max():,} images:", ""]
        lines += ["| network | " + " | ".join(layers) + " |", "|---|" + "---|" * len(layers)]
        for name, rows in parts.items():
            found = rows.groupby("layer")["value"].agg(["mean", "std"]).loc[layers]
            cells = (f"{mean:.3f}" + ("" if pd.isna(sd) else f" ± {sd:.3f}") for mean, sd in found.to_numpy())
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def checks(flow: mikit.Flow) -> str:
    """Return the difference of every network from the student alone, at the end and at epoch 0, in Markdown."""
    lines = []
    for quantity, title in (
        ("label_information", "label information, nats"),
        ("recovered_share", "fraction recovered"),
    ):
        first, last = ends(at_depth(flow, quantity))
        layers = list(dict.fromkeys(last["layer"]))
        lines += [f"Above the student alone of the same seed, {title} (mean, and every seed):", ""]
        lines += ["| network | " + " | ".join(layers) + " | largest at epoch 0 |", "|---|" + "---|" * (len(layers) + 1)]
        for name in flow.settings["networks"]:
            if name == student_alone.title:
                continue
            start, gains = (above_alone(rows, name) for rows in (first, last))
            cells = [
                f"{gains[layer].mean():+.3f} ({', '.join(f'{gain:+.2f}' for gain in gains[layer])})" for layer in layers
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {start.abs().to_numpy().max():.1e} |")
        lines.append("")
    return "\n".join(lines)


def above_alone(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a network's values minus those of the student alone, by seed and layer."""
    values = {
        network: rows[rows["network"] == network].pivot_table("value", "seed", "layer")
        for network in (name, student_alone.title)
    }
    return (values[name] - values[student_alone.title]).dropna()


def noise_of(flow: mikit.Flow) -> float:
    """Return the noise level of the trace."""
    return float(flow.settings["noise"][0])


if __name__ == "__main__":
    typer.run(main)
