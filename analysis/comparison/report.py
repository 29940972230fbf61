"""Table, figure and JSON of a comparison of methods, from the runs that are done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from scipy import stats

import mikit
from comparison.runs import ALONE, Comparison

_MARKERS = "os^Dv"


def colors(count: int) -> list[tuple[float, float, float]]:
    """Return that many colors that color-blind readers can distinguish; the first is gray, for the student alone."""
    return ["#666666", *seaborn.color_palette("colorblind", count - 1)]


def write_results(comparison: Comparison) -> list[str]:
    """Write ``trials.csv``, ``table.csv``, ``table.md``, ``results.json`` and a figure; return lines to print."""
    out = comparison.results
    out.mkdir(parents=True, exist_ok=True)
    trials = trial_table(comparison)
    if not len(trials):
        return ["No run is done yet."]
    table = method_table(comparison)
    heading = heading_of(comparison)
    trials.to_csv(out / "trials.csv", index=False)
    table.drop(columns=["gains"]).to_csv(out / "table.csv", index=False)
    (out / "table.md").write_text(
        "\n\n".join(filter(None, (heading, markdown(table), trials_markdown(comparison)))) + "\n"
    )
    content = {
        "schema_version": 1,
        "runs": {"finished": comparison.finished(), "planned": comparison.planned()},
        "teacher": teacher_accuracy(comparison),
        "seeds": comparison.seeds,
        "table": json.loads(table.to_json(orient="records")),
        "trials": json.loads(trials.to_json(orient="records")),
        "settings": comparison.trials(ALONE)[0]["settings"] if comparison.trials(ALONE) else None,
        "versions": {"mikit": mikit.__version__, "numpy": np.__version__, "pandas": pd.__version__},
    }
    (out / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if (table["method"] != ALONE).any():
        with matplotlib.rc_context({"font.size": 8}):
            mikit.plot.save_figure(drawn(table, heading), out, comparison.name)
    return [heading, "", markdown(table), "", f"Written to {out}."]


def write_table(out: Path, name: str, table: pd.DataFrame, text: str, figure: str, draw: Callable[[], Figure]) -> None:
    """Write a table as CSV, JSON and Markdown and its figure, and print the Markdown."""
    table.to_csv(out / f"{name}.csv", index=False)
    (out / f"{name}.json").write_text(json.dumps(json.loads(table.to_json(orient="records")), indent=1) + "\n")
    with matplotlib.rc_context({"font.size": 8}):
        mikit.plot.save_figure(draw(), out, figure)
    write_markdown(out, name, text)
    print(f"Written to {out}.")


def write_markdown(out: Path, name: str, text: str) -> None:
    """Write a text in Markdown, and print it."""
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n")


def trial_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row per run: the trials on the first seed and the runs on the others."""
    kept = ("method", "seed", "weight", "validation", "test", "failed", "seconds")
    rows = []
    for method in comparison.methods:
        runs = {(run["seed"], run["weight"]): run for run in comparison.trials(method) + comparison.reported(method)}
        chosen = {run["weight"] for run in comparison.reported(method)}
        rows += [{**{key: run[key] for key in kept}, "chosen": run["weight"] in chosen} for run in runs.values()]
    return pd.DataFrame(rows, columns=[*kept, "chosen"])


def method_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row per method whose weight is chosen: accuracy in percent, paired gain over the student alone."""
    alone = {run["seed"]: points(run) for run in comparison.reported(ALONE)}
    rows = []
    for method in comparison.methods:
        runs = comparison.reported(method)
        if not runs:
            continue
        accuracies = np.array([points(run) for run in runs])
        gains = np.array([points(run) - alone[run["seed"]] for run in runs if run["seed"] in alone])
        low, high = interval(gains)
        axes = pd.DataFrame([run["axes"] for run in runs if run.get("axes")])
        rows.append(
            {
                "method": method,
                "title": comparison.methods[method].title,
                "group": comparison.methods[method].group,
                "weight": runs[0]["weight"],
                "seeds": len(runs),
                "accuracy": accuracies.mean(),
                "sd": accuracies.std(ddof=1) if len(runs) > 1 else float("nan"),
                "gain": gains.mean() if len(gains) else float("nan"),
                "low": low,
                "high": high,
                "gains": [round(float(gain), 2) for gain in gains],
                "gap": axes["gap"].mean() if len(axes) else float("nan"),
                "nats": axes["nats"].mean() if len(axes) else float("nan"),
                "failed": sum(run["failed"] is not None for run in runs),
                "seconds": float(np.median([run["seconds"] or 0.0 for run in runs])),
                "verdict": "" if method == ALONE else verdict(gains, low, high),
            }
        )
    return pd.DataFrame(rows)


def points(run: dict[str, Any]) -> float:
    """Return the test accuracy in percent; NaN for a run that failed."""
    return float("nan") if run["test"] is None else 100 * float(run["test"])


def interval(gains: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean by Student's t over seeds; NaN for fewer than two."""
    if len(gains) < 2 or np.isnan(gains).any():
        return float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
    return float(gains.mean()) - half, float(gains.mean()) + half


def verdict(gains: np.ndarray, low: float, high: float) -> str:
    """Return whether the interval excludes 0, in words."""
    if np.isnan(gains).any():
        return "failed"
    if len(gains) < 2:
        return "too few seeds"
    return "helped" if low > 0 else "hurt" if high < 0 else "not settled"


def teacher_accuracy(comparison: Comparison) -> float | None:
    """Return the teacher's test accuracy in percent, from its log."""
    log = comparison.out / "teacher" / "log.jsonl"
    if not log.exists():
        return None
    accuracy = json.loads(log.read_text().splitlines()[-1])["accuracy"]
    return None if accuracy is None else 100 * float(accuracy)


def heading_of(comparison: Comparison) -> str:
    """Return a line on the teacher, the student alone, and the number of finished runs."""
    teacher = teacher_accuracy(comparison)
    alone = [points(run) for run in comparison.reported(ALONE)]
    spread = f" ± {np.std(alone, ddof=1):.2f}" if len(alone) > 1 else ""
    return (
        f"Teacher {'not trained' if teacher is None else f'{teacher:.2f} %'}; student alone "
        f"{f'{np.mean(alone):.2f}{spread} %' if alone else 'not trained'} (mean and sd over {len(alone)} seeds); "
        f"{comparison.finished()} of {comparison.planned()} runs done."
    )


def markdown(table: pd.DataFrame) -> str:
    """Return the table in Markdown."""
    grouped, measured = bool(table["group"].any()), bool(table["gap"].notna().any())
    columns = ["method", *(["form"] if grouped else []), "weight", "test accuracy, %", "gain, points", "by seed"]
    columns += ["95 % interval", *(["gap of logits", "nats of logits"] if measured else []), "s per run", "verdict"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in table.itertuples():
        spread = "" if np.isnan(row.sd) else f" ± {row.sd:.2f}"
        alone = row.method == ALONE
        by_seed = ", ".join("failed" if np.isnan(gain) else f"{gain:+.2f}" for gain in row.gains)
        band = "" if np.isnan(row.low) else f"{row.low:+.2f} to {row.high:+.2f}"
        cells = [row.title, *([row.group] if grouped else []), "" if alone else f"{row.weight:.3g}"]
        cells += [f"{row.accuracy:.2f}{spread}", *(["", "", ""] if alone else [f"{row.gain:+.2f}", by_seed, band])]
        if measured:
            cells += ["", ""] if np.isnan(row.gap) else [f"{row.gap:.3f}", f"{row.nats:.2f}"]
        lines.append(f"| {' | '.join([*cells, f'{row.seconds:.0f}', row.verdict])} |")
    return "\n".join(lines)


def trials_markdown(comparison: Comparison) -> str:
    """Return the validation accuracies of all trials on the first seed, in Markdown; empty if there are none."""
    lines = [
        f"Validation accuracy on seed {comparison.seeds[0]}, %, of every weight tried:",
        "",
        "| method | weight: accuracy |",
        "|---|---|",
    ]
    for name, method in comparison.methods.items():
        found = sorted(comparison.trials(name), key=lambda run: run["weight"])
        if name != ALONE and len(found) > 1:
            title = f"{method.title}, {method.group}" if method.group else method.title
            cells = (f"{run['weight']:.3g}: {trial_text(run)}" for run in found)
            lines.append(f"| {title} | {', '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 4 else ""


def trial_text(run: dict[str, Any]) -> str:
    """Return the validation accuracy of a trial as text."""
    return "failed" if run["validation"] is None else f"{100 * run['validation']:.1f}"


def drawn(table: pd.DataFrame, heading: str) -> Figure:
    """Return the paired gains: one row per method, a color and a marker per form, a dot per seed."""
    rows = table[table["method"] != ALONE]
    titles = list(dict.fromkeys(rows["title"]))
    groups = list(dict.fromkeys(rows["group"]))
    figure = Figure(figsize=(6.5, 1.5 + (0.45 if len(groups) > 1 else 0.25) * len(titles)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#444444", linewidth=1)
    for group, color, marker in zip(groups, seaborn.color_palette("colorblind", len(groups)), _MARKERS, strict=False):
        chosen = rows[rows["group"] == group]
        shift = 0.24 * (groups.index(group) - (len(groups) - 1) / 2)
        heights = np.array([titles.index(title) + shift for title in chosen["title"]])
        for height, gains in zip(heights, chosen["gains"], strict=True):
            axes.scatter(gains, [height] * len(gains), s=9, color=color, edgecolor="white", linewidth=0.4, zorder=4)
        axes.errorbar(
            chosen["gain"],
            heights,
            xerr=error_bars(chosen),
            fmt=marker,
            color=color,
            markersize=6,
            markerfacecolor="white",
            linewidth=1.2,
            capsize=2,
            label=group,
        )
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.45, -0.55)
    axes.set_xlabel("gain over the student alone of the same seed, points of test accuracy")
    axes.grid(axis="x", color="#e7e7e7")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    lines = (*heading.split("; "), "Mean and 95 % interval by Student's t; each small dot is one seed.")
    figure.suptitle("\n".join(lines), fontsize=8, x=0.01, ha="left")
    if len(groups) > 1:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def error_bars(rows: pd.DataFrame) -> Sequence[np.ndarray]:
    """Return the lengths of the intervals to both sides; 0 if there is none."""
    below, above = rows["gain"] - rows["low"], rows["high"] - rows["gain"]
    return [below.fillna(0.0).to_numpy(), above.fillna(0.0).to_numpy()]
