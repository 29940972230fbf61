"""The commands of ``mikit bench``. torch is imported by the commands that need it, not by the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mikit.bench.distributions.suites import SUITES
from mikit.cli.options import Jobs, Json, Overwrite, Seed, require_free_results
from mikit.cli.terminal import Steps, answered, say
from mikit.core.files import write_text

__all__ = ["bench"]

Suites = Annotated[list[str], typer.Argument(metavar="SUITE", help=f"One or more of {', '.join(SUITES)}, beyond.")]
Sizes = Annotated[list[int] | None, typer.Option("--n", help="Rows, 10,000 by default; repeat it for several.")]
Seeds = Annotated[str, typer.Option(metavar="A-B", help="Seeds of samples and estimates: 0-4, or 0,1,2.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="TEXT", help="Only laws with this in their name; repeat it for several."),
]
Half = Annotated[
    str | None,
    typer.Option(metavar="HALF", help="develop: only the laws to develop recipes on; report: only the others."),
]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Keep every estimate here; a killed run goes on from it.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure anew what FOLDER already holds.")]
Peers = Annotated[
    list[str] | None,
    typer.Option("--peer", metavar="NAME=PYTHON", help="Interpreter that has this peer; repeat it for several."),
]
Markdown = Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables as Markdown.")]
ErrorPlot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw the error of every task: .png or .svg.")
]


class _Suites(TyperGroup):
    """Takes the name of a suite for ``accuracy`` on that suite."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put ``accuracy`` before the name of a suite."""
        return super().resolve_command(ctx, ["accuracy", *args] if args[0] in (*SUITES, "beyond") else args)


bench = typer.Typer(
    name="bench",
    help="Measure mikit itself, beside its peers.",
    epilog=f"mikit bench SUITE is short for mikit bench accuracy SUITE. Suites: {', '.join(SUITES)}, beyond.",
    cls=_Suites,
    no_args_is_help=True,
)


@bench.command()
@answered()
def speed(
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="Only this case; repeat it for several.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: shows that it works.")] = False,
    sizes: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Sizes to sweep, instead of each case's own.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which the candidates take turns.")] = 5,
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", help="No new round of a size after this, once three are done.")
    ] = 60.0,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, on one thread, or cuda.")] = "cpu",
    peer: Peers = None,
    seed: Seed = 0,
    json_file: Json = None,
    markdown_file: Markdown = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw time against size: .png or .svg.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure time, memory and errors of mikit's formulas and of their peers, on the same samples in turns."""
    require_free_results(json_file, markdown_file, plot_file, overwrite=overwrite)
    with Steps(lines=True) as steps:
        from mikit.bench.peers.interpreters import read_interpreters
        from mikit.bench.speed.plot import draw_speed, require_picture, save_picture
        from mikit.bench.speed.report import markdown, screen
        from mikit.bench.speed.run import Settings, choose_cases, measure_speed, read_sizes

        if plot_file is not None:
            require_picture(plot_file)
        settings = Settings(
            sizes=None if sizes is None else read_sizes(sizes),
            repeats=repeats,
            budget=budget,
            quick=quick,
            device=device,
            seed=seed,
            pythons=read_interpreters(peer or [], ("benchmark-mi", "NPEET")),
        )
        found = measure_speed(choose_cases(case or []), settings, steps)
        if plot_file is not None:
            steps.begin("Drawing")
            save_picture(draw_speed(found), plot_file)
    if markdown_file is not None:
        write_text(markdown_file, markdown(found), overwrite=overwrite)
    if json_file is not None and json_file != "-":
        write_text(Path(json_file), found.to_json() + "\n", overwrite=overwrite)
    say(found.to_json() if json_file == "-" else screen(found))


@bench.command()
@answered()
def accuracy(
    suites: Suites,
    estimator: Annotated[
        list[str] | None,
        typer.Option("--estimator", help="Name of an instrument, auto by default; repeat it for several."),
    ] = None,
    n: Sizes = None,
    seeds: Seeds = "0-4",
    task: Tasks = None,
    half: Half = None,
    out: Out = None,
    fresh: Fresh = False,
    jobs: Jobs = None,
    json_file: Json = None,
    markdown_file: Markdown = None,
    plot_file: ErrorPlot = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure estimators on laws of known information: their errors, their intervals and their verdicts."""
    require_free_results(json_file, markdown_file, plot_file, overwrite=overwrite)
    with Steps(lines=True) as steps:
        steps.begin("Building the laws")
        from joblib import cpu_count

        from mikit.bench.accuracy.plot import draw_accuracy
        from mikit.bench.accuracy.report import accuracy_markdown, accuracy_screen
        from mikit.bench.accuracy.run import Plan, choose_laws, measure_accuracy, read_seeds
        from mikit.bench.speed.plot import require_picture, save_picture

        if plot_file is not None:
            require_picture(plot_file)
        plan = Plan(
            laws=choose_laws(suites, task or (), half),
            estimators=tuple(estimator or ["auto"]),
            sizes=tuple(n or [10_000]),
            seeds=read_seeds(seeds),
            folder=out,
            jobs=jobs or cpu_count(),
            fresh=fresh,
        )
        found = measure_accuracy(plan, steps)
        if markdown_file is not None:
            write_text(markdown_file, accuracy_markdown(found), overwrite=overwrite)
        if json_file is not None and json_file != "-":
            write_text(Path(json_file), found.to_json() + "\n", overwrite=overwrite)
        if plot_file is not None:
            steps.begin("Drawing")
            save_picture(draw_accuracy(found), plot_file)
    say(found.to_json() if json_file == "-" else accuracy_screen(found))


@bench.command()
@answered()
def peers(
    suites: Suites,
    estimator: Annotated[
        list[str] | None,
        typer.Option("--estimator", help="Instrument of mikit beside them, auto by default; repeat it for several."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="NAME", help='Only this peer, or estimator of a peer ("benchmark-mi KSG"); repeatable.'
        ),
    ] = None,
    peer: Peers = None,
    n: Sizes = None,
    seeds: Seeds = "0-4",
    task: Tasks = None,
    half: Half = None,
    out: Out = None,
    fresh: Fresh = False,
    jobs: Jobs = None,
    json_file: Json = None,
    markdown_file: Markdown = None,
    plot_file: ErrorPlot = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure other people's estimators beside mikit's on the same rows of laws of known information."""
    require_free_results(json_file, markdown_file, plot_file, overwrite=overwrite)
    with Steps(lines=True) as steps:
        steps.begin("Building the laws")
        from joblib import cpu_count

        from mikit.bench.accuracy.peers import PeerPlan, choose_peers, compare
        from mikit.bench.accuracy.plot import draw_accuracy
        from mikit.bench.accuracy.report import comparison_markdown, comparison_screen
        from mikit.bench.accuracy.run import Plan, choose_laws, read_seeds
        from mikit.bench.peers.interpreters import read_interpreters
        from mikit.bench.speed.plot import require_picture, save_picture

        if plot_file is not None:
            require_picture(plot_file)
        own = Plan(
            laws=choose_laws(suites, task or (), half),
            estimators=tuple(estimator or ["auto"]),
            sizes=tuple(n or [10_000]),
            seeds=read_seeds(seeds),
            folder=out,
            jobs=jobs or cpu_count(),
            fresh=fresh,
        )
        found = compare(PeerPlan(own, choose_peers(only or ()), read_interpreters(peer or [])), steps)
        if markdown_file is not None:
            write_text(markdown_file, comparison_markdown(found), overwrite=overwrite)
        if json_file is not None and json_file != "-":
            write_text(Path(json_file), found.to_json() + "\n", overwrite=overwrite)
        if plot_file is not None:
            steps.begin("Drawing")
            save_picture(draw_accuracy(found.report), plot_file)
    say(found.to_json() if json_file == "-" else comparison_screen(found))
