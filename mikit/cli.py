"""The command line: options in, a call, words out. torch is imported by the commands that need it, not by the help."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import mikit
from mikit.bench.laws.suites import SUITES
from mikit.errors import InputError
from mikit.outputs import DEMO, REPORT, TRACE, new_folder, require_free, write_text
from mikit.terminal import Steps, answered, refuse, say, show_measurement, show_table

__all__ = ["app", "main"]

app = typer.Typer(
    name="mikit",
    help="Measure how much one neural network's activations say about another's.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
app.add_typer(bench)

_VERDICTS = ("trustworthy", "caution", "unreliable")

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result of this command.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for stdout.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random draw.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Workers; one per processor by default.")]


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def _begin(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        say(mikit.__version__)
        raise typer.Exit


@app.command()
@answered()
def estimate(
    teacher: Annotated[
        Path, typer.Argument(metavar="TEACHER", help="What is explained: .npy, .npz, .pt, .safetensors or a store.")
    ],
    student: Annotated[
        Path | None, typer.Argument(metavar="STUDENT", help="What conditions. Left out with --labels.")
    ] = None,
    estimator: Annotated[str, typer.Option(help="Name of the instrument.")] = "auto",
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labels to explain from the one file of activations.")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One entry per row; rows of one group stay together.")
    ] = None,
    teacher_key: Annotated[str | None, typer.Option(help="Array in TEACHER, where it holds several.")] = None,
    student_key: Annotated[str | None, typer.Option(help="Array in STUDENT, where it holds several.")] = None,
    folds: Annotated[int, typer.Option(help="Parts the rows are dealt into.")] = 5,
    rotations: Annotated[int, typer.Option(help="How many of the parts report in turn.")] = 1,
    permutations: Annotated[int | None, typer.Option(help="Estimates on permuted data.")] = None,
    seed: Seed = 0,
    require: Annotated[
        str | None, typer.Option(metavar="VERDICT", help="Exit with 3 unless the verdict is this good.")
    ] = None,
    json_file: Json = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure what a student's activations say about a teacher's, or about labels."""
    if require is not None and require not in _VERDICTS:
        raise InputError(f'--require is "{require}"; it must be one of {", ".join(_VERDICTS)}.')
    if (student is None) == (labels is None):
        raise InputError(
            "Give two files, the teacher's activations and the student's; or one file of activations and --labels."
        )
    _require_free_json(json_file, overwrite, teacher, student, labels, groups)
    with Steps() as steps:
        steps.begin("Reading")
        from mikit.activations import read_array
        from mikit.measuring import measure

        first = read_array(teacher, key=teacher_key)
        second = None if student is None else read_array(student, key=student_key)
        with _files_named(teacher, student):
            measurement = measure(
                first if second is None else second,
                None if second is None else first,
                estimator,
                labels=None if labels is None else read_array(labels),
                groups=None if groups is None else read_array(groups).values,
                folds=folds,
                rotations=rotations,
                permutations=permutations,
                seed=seed,
                progress=steps.begin,
            )
    if json_file == "-":
        say(measurement.to_json())
    else:
        if json_file is not None:
            write_text(Path(json_file), measurement.to_json() + "\n", overwrite=overwrite)
        show_measurement(measurement)
    if require is not None and _VERDICTS.index(measurement.verdict) > _VERDICTS.index(require):
        raise refuse(f"The verdict is {measurement.verdict}; --require asks for {require}.", 3)


@app.command()
@answered()
def trace(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER_STORE", help="Activations of the teacher.")],
    students: Annotated[list[Path], typer.Argument(metavar="STUDENT_STORE", help="Activations of the students.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder to make.")],
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labels, in the order of the teacher's ids.")
    ] = None,
    noise: Annotated[
        list[float] | None, typer.Option(help="Teacher noise; repeat it for several. 0.1, 0.3 and 1 by default.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of held-out information.")] = 5,
    probe: Annotated[str, typer.Option(help="Probe of the label information: logistic or lda.")] = "logistic",
    reduce: Annotated[int | None, typer.Option(help="Compare wider layers by this many principal components.")] = None,
    seed: Seed = 0,
    jobs: Jobs = None,
    json_file: Json = None,
    overwrite: Overwrite = False,
) -> None:
    """Trace the information between a teacher's and its students' stored activations, layer by layer."""
    inputs = (teacher, *students, *(() if labels is None else (labels,)))
    _require_free_json(json_file, overwrite, *inputs)
    with (
        new_folder(out, overwrite=overwrite, kind=TRACE, inputs=inputs) as folder,
        Steps(lines=True) as steps,
        steps.aside("Tracing the information between the layers") as shown,
    ):
        from joblib import cpu_count

        from mikit.activations import ActivationStore, read_array
        from mikit.flow import trace as trace_stores

        flow = trace_stores(
            ActivationStore.open(teacher),
            [ActivationStore.open(student) for student in students],
            labels=None if labels is None else read_array(labels).values,
            noise=tuple(noise) if noise else (0.1, 0.3, 1.0),
            folds=folds,
            probe=probe,
            reduce=reduce,
            seed=seed,
            jobs=jobs or cpu_count(),
            progress=shown,
        )
        flow.save(folder)
    counts = flow.frame["verdict"].value_counts().to_dict()
    summary = {"run": str(out), "rows": len(flow.frame), "verdicts": counts, "settings": flow.settings}
    _tell(json_file, summary, overwrite, f"{flow}\nWritten to {out}; next: mikit report {out}")


@app.command()
@answered()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that mikit trace made.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to make; RUN/report by default.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write one HTML page with the figures, verdicts and table of a traced run."""
    target = run / "report" if out is None else out
    require_free(target, overwrite=overwrite, kind=REPORT, inputs=(run,))
    with Steps() as steps:
        steps.begin("Reading")
        from mikit.flow import Flow
        from mikit.reporting import report as write_report

        flow = Flow.load(run)
        with new_folder(target, overwrite=overwrite, kind=REPORT, inputs=(run,)) as folder:
            steps.begin("Drawing")
            page = write_report(flow, folder)
    say(str(target / page.name))


@app.command()
@answered()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")] = Path("mikit-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer epochs and phases: shows that it works.")] = False,
    seeds: Annotated[int | None, typer.Option(help="Runs of every student; 3 by default, 1 with --quick.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz", help="Images of your own: train_images, train_labels, test_images, test_labels."
        ),
    ] = None,
    jobs: Jobs = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a teacher and its students on digits, and look at how information flows through them."""
    require_free(out, overwrite=overwrite, kind=DEMO, inputs=() if data is None else (data,))
    with Steps(lines=True) as steps:
        from mikit.datasets import digits, from_npz
        from mikit.demo import run_demo, settings_for

        images = digits() if data is None else from_npz(data)
        settings = settings_for(images, seeds=(1 if quick else 3) if seeds is None else seeds, quick=quick)
        result = run_demo(out, images, settings, overwrite=overwrite, jobs=jobs, stages=steps)
    for number, line in enumerate(result.lines, start=1):
        say(f"{number}. {line}")
    if quick:
        say("These are the numbers of a quick run, which shows that everything works; leave out --quick for results.")
    say(f"Open {result.folder / 'report' / 'index.html'} ({result.wall_time:.0f} s)")


@app.command()
@answered()
def doctor() -> None:
    """Say whether mikit works on this machine."""
    from mikit.doctor import examine

    found = examine(Path.cwd())
    show_table(("", "", ""), [(item.name, "pass" if item.well else "fail", item.sentence) for item in found])
    if not all(item.well for item in found):
        raise refuse("mikit does not work here as it should; see the lines marked fail.", 1)


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
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="NAME=PYTHON", help="Interpreter that has this peer; repeat it for several."),
    ] = None,
    seed: Seed = 0,
    json_file: Json = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables as Markdown.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw time against size: .png or .svg.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure time, memory and errors of mikit's formulas and of their peers, on the same samples in turns."""
    _require_free_results(json_file, markdown_file, plot_file, overwrite=overwrite)
    with Steps(lines=True) as steps:
        from mikit.bench.interpreters import read_interpreters
        from mikit.bench.speed import Settings, choose_cases, measure_speed, read_sizes
        from mikit.bench.speed_plot import draw_speed, require_picture, save_picture
        from mikit.bench.speed_report import markdown, screen

        if plot_file is not None:
            require_picture(plot_file)
        settings = Settings(
            sizes=None if sizes is None else read_sizes(sizes),
            repeats=repeats,
            budget=budget,
            quick=quick,
            device=device,
            seed=seed,
            pythons=read_interpreters(peer or []),
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
    suites: Annotated[list[str], typer.Argument(metavar="SUITE", help=f"One or more of {', '.join(SUITES)}, beyond.")],
    estimator: Annotated[
        list[str] | None,
        typer.Option("--estimator", help="Name of an instrument, auto by default; repeat it for several."),
    ] = None,
    n: Annotated[list[int] | None, typer.Option("--n", help="Rows, 10,000 by default; repeat it for several.")] = None,
    seeds: Annotated[str, typer.Option(metavar="A-B", help="Seeds of samples and estimates: 0-4, or 0,1,2.")] = "0-4",
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="TEXT", help="Only laws with this in their name; repeat it for several."),
    ] = None,
    half: Annotated[
        str | None,
        typer.Option(metavar="HALF", help="develop: only the laws to develop recipes on; report: only the others."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep every estimate here; a killed run goes on from it.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure anew what FOLDER already holds.")] = False,
    jobs: Jobs = None,
    json_file: Json = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables as Markdown.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the error of every task: .png or .svg.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure estimators on laws of known information: their errors, their intervals and their verdicts."""
    _require_free_results(json_file, markdown_file, plot_file, overwrite=overwrite)
    with Steps(lines=True) as steps:
        steps.begin("Building the laws")
        from joblib import cpu_count

        from mikit.bench.accuracy import Plan, choose_laws, measure_accuracy, read_seeds
        from mikit.bench.accuracy_plot import draw_accuracy
        from mikit.bench.accuracy_report import accuracy_markdown, accuracy_screen
        from mikit.bench.speed_plot import require_picture, save_picture

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


@contextmanager
def _files_named(teacher: Path, student: Path | None) -> Iterator[None]:
    """Say which file is x and which is y where a refusal speaks of them."""
    try:
        yield
    except InputError as cause:
        names = f"x is {teacher}" if student is None else f"x is the student, {student}; y is the teacher, {teacher}"
        said = f" ({names}.)" if re.search(r"\b[xy]\b", str(cause)) else ""
        raise InputError(f"{cause}{said}") from cause


def _require_free_json(json_file: str | None, overwrite: bool, *inputs: Path | None) -> None:
    if json_file is not None and json_file != "-":
        require_free(Path(json_file), overwrite=overwrite, inputs=[path for path in inputs if path is not None])


def _require_free_results(json_file: str | None, *others: Path | None, overwrite: bool) -> None:
    _require_free_json(json_file, overwrite)
    for path in others:
        if path is not None:
            require_free(path, overwrite=overwrite)
    named = [Path(path).resolve() for path in (json_file, *others) if path not in (None, "-")]
    if len(set(named)) < len(named):
        raise InputError("--json, --markdown and --plot must name different files.")


def _tell(json_file: str | None, content: dict[str, Any], overwrite: bool, sentence: str) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if json_file == "-":
        say(text)
        return
    if json_file is not None:
        write_text(Path(json_file), text + "\n", overwrite=overwrite)
    say(sentence)
