"""The commands that analyze a traced run: ``mikit phases`` and ``mikit match``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mikit.cli.options import Json, Overwrite, require_free_json, write_json
from mikit.cli.terminal import Steps, answered, say, show_table
from mikit.core.errors import InputError
from mikit.core.files import require_free, write_text

if TYPE_CHECKING:
    import pandas as pd

    from mikit.flow import Flow, LayerMatch, PhaseReading

__all__ = ["match", "phases"]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder from mikit trace.")]
_RULE = "directional"
_MATCHED = {"same depth": "depth", "nearest": "value"}


@answered()
def phases(
    run: Run,
    quantity: Annotated[
        str | None,
        typer.Option(help="label_information, recovered_share or cka; by default the first that RUN contains."),
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="Teacher noise of the share; 0.3 by default, if measured.")
    ] = None,
    shape: Annotated[str, typer.Option(help="Shape of the pieces between changes: straight or constant.")] = "straight",
    level: Annotated[
        float, typer.Option(help="Largest probability of a change point in a curve that has none.")
    ] = 0.01,
    jitter: Annotated[
        float, typer.Option(help="Additional error of every point from training, in the unit of the quantity.")
    ] = 0.0,
    json_file: Json = None,
    overwrite: Overwrite = False,
) -> None:
    """Estimate phases of training from a run: change points, D_F and its critical phase, data-processing checks."""
    require_free_json(json_file, overwrite, run)
    with Steps() as steps:
        steps.begin("Reading")
        from mikit.flow import Flow, read_phases
        from mikit.flow.readings.phases import GEOMETRY

        flow = Flow.load(run)
        reading = read_phases(flow, quantity=quantity, noise=noise, shape=shape, level=level, jitter=jitter)
    if write_json(json_file, {"run": str(run), **reading.to_dict()}, overwrite=overwrite):
        return
    _show_changes(reading)
    _show_divergences(reading)
    _show_flags(reading)
    say(GEOMETRY)


def _show_changes(reading: PhaseReading) -> None:
    curves, changes = reading.curves, reading.changes
    seeds = sorted(int(seed) for seed in curves["seed"].unique())
    places = curves[["network", "layer", "layer_index"]].drop_duplicates()
    say(
        f"{len(changes)} change points in {len(curves.groupby(['network', 'seed', 'layer']))} curves of "
        f"{reading.settings['quantity']}: phases before and after, [95 % interval], confidence."
    )
    rows = []
    for place in places.to_dict("records"):
        own = changes[changes["network"].eq(place["network"]) & changes["layer"].eq(place["layer"])]
        cells = []
        for seed in seeds:
            run = curves[curves["network"].eq(place["network"]) & curves["layer"].eq(place["layer"])]
            recorded = sorted(run[run["seed"].eq(seed)]["phase"].tolist())
            found = [_change(row, recorded) for row in own[own["seed"].eq(seed)].to_dict("records")]
            cells.append("\n".join(found) or ("none" if recorded else "not recorded"))
        rows.append((place["network"], place["layer"], *cells))
    show_table(("student", "layer", *(f"seed {seed}" for seed in seeds)), rows)
    say("")


def _change(row: dict[Any, Any], recorded: list[int]) -> str:
    """Return a change point as text."""
    # The change and the lower end of its interval lie between a recording and the one before it.
    low = recorded[max(recorded.index(row["low"]) - 1, 0)]
    return f"{row['before']}→{row['phase']} [{low},{row['high']}] {row['confidence']:.2f}"


def _show_divergences(reading: PhaseReading) -> None:
    from mikit.reporting.columns import with_error

    if reading.divergences.empty:
        say("No D_F: this run does not contain label information of both teacher and students.\n")
        return
    say(
        "D_F in nats² between student and final teacher, and the fraction from the last layer, at the first and last "
        "phase; --json also contains the monotone matching."
    )
    rows = []
    for row in reading.critical[reading.critical["matching"].ne("monotone")].to_dict("records"):
        table = reading.divergences
        own = table[table["network"].eq(row["network"]) & table["seed"].eq(row["seed"])]
        own = own[own["matching"].eq(row["matching"])].sort_values("phase")
        first, last = own.iloc[0], own.iloc[-1]
        step = "nowhere" if row["decision"] == "none" else f"{row['from_phase']}→{row['to_phase']}"
        rows.append(
            (
                str(row["network"]),
                _MATCHED.get(str(row["matching"]), str(row["matching"])),
                str(row["seed"]),
                f"{first['total']:.2g}→{last['total']:.2g}",
                f"{100 * first['last_share']:.0f}→{100 * last['last_share']:.0f} %",
                step,
                with_error(row["fall"], row["standard_error"]),
                str(row["decision"]),
            )
        )
    show_table(("student", "same", "seed", "D_F", "last layer", "falls", "by", "decision"), rows)
    say("")


def _show_flags(reading: PhaseReading) -> None:
    flags = reading.flags
    if flags.empty:
        say("Data processing: no row is flagged.\n")
        return
    say("Data-processing checks; a rise with depth is not an error, and no information was added.")
    rows = [
        (str(network), str(kind), str(quantity), f"{len(own):,}", _largest(own))
        for (network, kind, quantity), own in flags.groupby(["network", "kind", "quantity"], sort=False)
    ]
    show_table(("network", "flag", "quantity", "rows", "largest"), rows)
    say("")


def _largest(own: pd.DataFrame) -> str:
    row = own.iloc[int(own["excess"].to_numpy().argmax())]
    before = f" over {row['earlier_layer']}" if row["earlier_layer"] else ""
    return f"{row['layer']}{before}, phase {row['phase']}, seed {row['seed']}: {row['excess']:+.3g}"


@answered()
def match(
    run: Run,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="directional, cka, share, nearest or monotone; repeatable. By default directional and cka.",
        ),
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Student network; repeatable. All by default.")
    ] = None,
    phase: Annotated[int | None, typer.Option(help="Phase; the last by default.")] = None,
    noise: Annotated[
        float | None, typer.Option(help="Teacher noise of the rule share; 0.3 by default, if measured.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the suggested layer pairs of one student for mikit.LayerPairs."),
    ] = None,
    json_file: Json = None,
    overwrite: Overwrite = False,
) -> None:
    """Match every student layer to a teacher layer, by linear recovery and by CKA, with margins."""
    require_free_json(json_file, overwrite, run)
    if pairs is not None:
        require_free(pairs, overwrite=overwrite, inputs=(run,))
        if json_file not in (None, "-") and Path(str(json_file)).resolve() == pairs.resolve():
            raise InputError("--json and --pairs must name different files.")
    with Steps() as steps:
        steps.begin("Reading")
        from mikit.flow import Flow, match_flow, suggest_pairs
        from mikit.flow.matching.result import NOT_A_FINDING

        flow = Flow.load(run)
        rules, lacking = (tuple(rule), None) if rule else _default_rules(flow)
        chosen = None if phase is None else [phase]
        found = match_flow(flow, rules=rules, networks=network, phases=chosen, noise=noise)
        if pairs is not None and len(found.networks) > 1:
            raise InputError(
                f"--pairs writes the pairs of one student, but there are {', '.join(found.networks)}. Name one with "
                "--network."
            )
        suggested = None if pairs is None else suggest_pairs(found, rule=rules[0], phase=phase)
    if pairs is not None and suggested is not None:
        write_text(pairs, json.dumps(suggested.to_dict(), indent=2, ensure_ascii=False) + "\n", overwrite=overwrite)
    if write_json(json_file, {"run": str(run), "lacking": lacking, **found.to_dict()}, overwrite=overwrite):
        return
    for name in found.rules:
        _show_picks(found, name)
    if lacking:
        say(f"{lacking}\n")
    if suggested is None:
        say(NOT_A_FINDING)
    else:
        say(f"{suggested}\nWritten to {pairs}.")


def _default_rules(flow: Flow) -> tuple[tuple[str, ...], str | None]:
    """Return the directional rule and CKA; if the run lacks the first, other rules and the reason."""
    from mikit.flow import match_flow

    try:
        match_flow(flow, rules=[_RULE])
    except InputError as cause:
        others = tuple(match_flow(flow).rules)
        return tuple(name for name in ("cka", "share") if name in others) or others, str(cause)
    return (_RULE, "cka"), None


def _show_picks(found: LayerMatch, rule: str) -> None:
    from mikit.flow.matching.result import RULES
    from mikit.reporting.columns import with_error
    from mikit.reporting.readings.matches import picks

    say(f"{rule}: {RULES[rule]}.")
    rows = []
    for network in found.networks:
        pooled = found.pooled(rule, network=network, phase=_last(found, rule, network))
        for pick in picks(pooled):
            unit = "" if pick["unit"] in ("share", "dimensionless") else f" {pick['unit']}"
            value = f"{pick['value']:.3g}{unit}"
            if math.isfinite(pick["share"]) and pick["unit"] != "share":
                value += f" (share {pick['share']:.2f})"
            margin = f"{with_error(pick['margin'], pick['standard_error'])}{unit}" if pick["runner_up"] else ""
            rows.append(
                (network, pick["layer"], pick["teacher_layer"], value, margin, pick["runner_up"], pick["decision"])
            )
    show_table(("student", "layer", "teacher layer", "value", "margin", "over", "decision"), rows)
    say("")


def _last(found: LayerMatch, rule: str, network: str) -> int:
    own = found.frame[found.frame["network"].eq(network) & found.frame["rule"].eq(rule)]
    return int(own["phase"].max())
