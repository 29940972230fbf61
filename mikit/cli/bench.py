"""The commands of ``mikit bench``. They import torch when they are run, so that the help is fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar, final

import typer
from typer.core import TyperGroup

from mikit.bench.distributions.suites import SUITES
from mikit.cli.options import Jobs, Json, Overwrite, Seed, require_free_results
from mikit.cli.terminal import Steps, answered, say
from mikit.core.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bench"]

Suites = Annotated[list[str], typer.Argument(metavar="SUITE", help=f"One or more of {', '.join(SUITES)}, beyond.")]
Sizes = Annotated[list[int] | None, typer.Option("--n", help="Number of samples, 10,000 by default; repeatable.")]
Seeds = Annotated[str, typer.Option(metavar="A-B", help="Seeds of samples and estimates: 0-4, or 0,1,2.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="TEXT", help="Only tasks with this text in their name; repeatable."),
]
Half = Annotated[
    str | None,
    typer.Option(metavar="HALF", help="develop: only the tasks for development; report: only the others."),
]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder for the estimates; an interrupted run continues.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure the estimates in FOLDER again.")]
Peers = Annotated[
    list[str] | None,
    typer.Option("--peer", metavar="NAME=PYTHON", help="Python interpreter of this peer; repeatable."),
]
Markdown = Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables as Markdown.")]
ErrorPlot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Plot the error of every task: .png or .svg.")
]


class _Report(Protocol):
    def to_json(self) -> str: ...


Report = TypeVar("Report", bound=_Report)


@final
@dataclass(frozen=True)
class _Files:
    """The files for a report."""

    json: str | None
    markdown: Path | None
    plot: Path | None
    overwrite: bool

    def require_free(self) -> None:
        """Refuse files that exist, that are the same, or that are no pictures."""
        require_free_results(self.json, self.markdown, self.plot, overwrite=self.overwrite)
        if self.plot is not None:
            from mikit.bench.reports import require_picture

            require_picture(self.plot)

    def write(
        self, report: Report, markdown: Callable[[Report], str], draw: Callable[[], Figure], steps: Steps
    ) -> None:
        """Write the report to the requested files."""
        if self.markdown is not None:
            write_text(self.markdown, markdown(report), overwrite=self.overwrite)
        if self.json is not None and self.json != "-":
            write_text(Path(self.json), report.to_json() + "\n", overwrite=self.overwrite)
        # The plot comes last: data that cannot be drawn must not cost the results.
        if self.plot is not None:
            from mikit.bench.reports import save_picture

            steps.begin("Drawing")
            save_picture(draw(), self.plot)


class _Suites(TyperGroup):
    """Accepts the name of a suite as a command: ``accuracy`` on that suite."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put ``accuracy`` before the name of a suite."""
        return super().resolve_command(ctx, ["accuracy", *args] if args[0] in (*SUITES, "beyond") else args)


bench = typer.Typer(
    name="bench",
    help="Benchmark mikit and other libraries.",
    epilog=f"mikit bench SUITE is short for mikit bench accuracy SUITE. Suites: {', '.join(SUITES)}, beyond.",
    cls=_Suites,
    no_args_is_help=True,
)


@bench.command()
@answered()
def speed(
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="Only this case; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, to check that everything works.")] = False,
    sizes: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Sizes for all cases, instead of the sizes of each case.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Number of rounds in which the candidates take turns.")] = 5,
    budget: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Start no new round of a size after this time, once three are done."),
    ] = 60.0,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu (one thread) or cuda.")] = "cpu",
    peer: Peers = None,
    seed: Seed = 0,
    json_file: Json = None,
    markdown_file: Markdown = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Plot time against size: .png or .svg.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure time, memory and errors of mikit's formulas and other libraries on the same samples."""
    files = _Files(json_file, markdown_file, plot_file, overwrite)
    files.require_free()
    with Steps(lines=True) as steps:
        from mikit.bench.peers.interpreters import read_interpreters
        from mikit.bench.speed.plot import draw_speed
        from mikit.bench.speed.report import speed_markdown, speed_screen
        from mikit.bench.speed.run import Settings, choose_cases, measure_speed, read_sizes

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
        files.write(found, speed_markdown, lambda: draw_speed(found), steps)
    say(found.to_json() if json_file == "-" else speed_screen(found))


@bench.command()
@answered()
def accuracy(
    suites: Suites,
    estimator: Annotated[
        list[str] | None,
        typer.Option("--estimator", help="Name of an estimator, auto by default; repeatable."),
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
    """Measure errors, intervals and verdicts of estimators on tasks with known mutual information."""
    files = _Files(json_file, markdown_file, plot_file, overwrite)
    files.require_free()
    with Steps(lines=True) as steps:
        steps.begin("Building the tasks")
        from joblib import cpu_count

        from mikit.bench.accuracy.plot import draw_accuracy
        from mikit.bench.accuracy.report import accuracy_markdown, accuracy_screen
        from mikit.bench.accuracy.run import Plan, choose_tasks, measure_accuracy, read_seeds

        plan = Plan(
            tasks=choose_tasks(suites, task or (), half),
            estimators=tuple(estimator or ["auto"]),
            sizes=tuple(n or [10_000]),
            seeds=read_seeds(seeds),
            folder=out,
            jobs=jobs or cpu_count(),
            fresh=fresh,
        )
        found = measure_accuracy(plan, steps)
        files.write(found, accuracy_markdown, lambda: draw_accuracy(found), steps)
    say(found.to_json() if json_file == "-" else accuracy_screen(found))


@bench.command()
@answered()
def peers(
    suites: Suites,
    estimator: Annotated[
        list[str] | None,
        typer.Option("--estimator", help="Estimator of mikit, auto by default; repeatable."),
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
    """Compare estimators of mikit and other libraries on tasks with known mutual information."""
    files = _Files(json_file, markdown_file, plot_file, overwrite)
    files.require_free()
    with Steps(lines=True) as steps:
        steps.begin("Building the tasks")
        from joblib import cpu_count

        from mikit.bench.accuracy.peers import PeerPlan, choose_peers, compare
        from mikit.bench.accuracy.plot import draw_accuracy
        from mikit.bench.accuracy.report import comparison_markdown, comparison_screen
        from mikit.bench.accuracy.run import Plan, choose_tasks, read_seeds
        from mikit.bench.peers.interpreters import read_interpreters

        own = Plan(
            tasks=choose_tasks(suites, task or (), half),
            estimators=tuple(estimator or ["auto"]),
            sizes=tuple(n or [10_000]),
            seeds=read_seeds(seeds),
            folder=out,
            jobs=jobs or cpu_count(),
            fresh=fresh,
        )
        found = compare(PeerPlan(own, choose_peers(only or ()), read_interpreters(peer or [])), steps)
        files.write(found, comparison_markdown, lambda: draw_accuracy(found.report), steps)
    say(found.to_json() if json_file == "-" else comparison_screen(found))
