"""The command line: options in, a call, words out. torch is imported by the commands that need it, not by the help."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import mikit
from mikit.bench_commands import bench
from mikit.capture_command import capture
from mikit.distill_command import distill
from mikit.errors import InputError
from mikit.flow_commands import match, phases
from mikit.options import Jobs, Json, Overwrite, Seed, require_free_json
from mikit.outputs import DEMO, REPORT, new_folder, require_free, write_text
from mikit.terminal import Steps, answered, refuse, say, show_measurement, show_table

__all__ = ["app", "main"]

app = typer.Typer(
    name="mikit",
    help="Measure how much one neural network's activations say about another's.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(bench)

_VERDICTS = ("trustworthy", "caution", "unreliable")


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
    noise: Annotated[
        float | None, typer.Option(help="Declare noise on TEACHER, as a share of each column's standard deviation.")
    ] = None,
    audit: Annotated[
        bool, typer.Option(help="Also run the checks that repeat the estimate; their cost is told.")
    ] = False,
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
    require_free_json(json_file, overwrite, teacher, student, labels, groups)
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
                noise=noise,
                audit=audit,
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
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder to make, or to go on with.")],
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labels, in the order of the teacher's ids.")
    ] = None,
    noise: Annotated[
        list[float] | None, typer.Option(help="Teacher noise; repeat it for several. 0.1, 0.3 and 1 by default.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of held-out information.")] = 5,
    probe: Annotated[str, typer.Option(help="Probe of the label information: logistic, lda, mlp or knn.")] = "logistic",
    reduce: Annotated[int | None, typer.Option(help="Compare wider layers by this many principal components.")] = None,
    pairs_with: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another instrument, such as auto or label_hsic; repeat it for several."),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PAIRS",
            help="What --pairs-with reads: same-depth (the default), all, screen (same depth and largest share), or "
            "STUDENT_LAYER=TEACHER_LAYER, repeated for several.",
        ),
    ] = None,
    information_plane: Annotated[
        bool, typer.Option("--information-plane", help="Also read what every layer with noise tells of the input.")
    ] = False,
    plane_noise: Annotated[
        list[float] | None,
        typer.Option(help="Noise of --information-plane; repeat it for several. 0.3, 1 and 3 by default."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Begin nothing after this time; what did not fit is marked as skipped."),
    ] = None,
    seed: Seed = 0,
    jobs: Jobs = None,
    processes: Annotated[bool, typer.Option("--processes", help="Let the workers be processes, not threads.")] = False,
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="DEVICE", help="Where products are computed, such as cuda:0; repeat it, one a worker."),
    ] = None,
    json_file: Json = None,
    overwrite: Overwrite = False,
) -> None:
    """Trace the information between a teacher's and its students' stored activations, layer by layer."""
    inputs = (teacher, *students, *(() if labels is None else (labels,)))
    require_free_json(json_file, overwrite, *inputs)
    if overwrite:
        from mikit.flow.run_folder import require_replaceable

        require_replaceable(out, inputs)
    with Steps(lines=True) as steps, steps.aside("Tracing the information between the layers"):
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
            pairs_with=pairs_with,
            pairs=_pairs(pairs),
            information_plane=information_plane,
            plane_noise=plane_noise or None,
            seed=seed,
            jobs=jobs or (len(device) if device else cpu_count()),
            backend="loky" if processes else "threading",
            device=device or None,
            out=out,
            overwrite=overwrite,
            budget=budget,
            progress=True,
        )
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


app.command()(distill)
app.command()(capture)
app.command()(phases)
app.command()(match)


@app.command()
@answered()
def doctor() -> None:
    """Say whether mikit works on this machine."""
    from mikit.doctor import examine

    found = examine(Path.cwd())
    show_table(("", "", ""), [(item.name, "pass" if item.well else "fail", item.sentence) for item in found])
    if not all(item.well for item in found):
        raise refuse("mikit does not work here as it should; see the lines marked fail.", 1)


def _pairs(given: list[str] | None) -> str | list[tuple[str, str]]:
    """Return the pairs of layers that were named, or the rule for them."""
    rules = {"same-depth": "same depth", "all": "all", "screen": "screen"}
    if not given:
        return rules["same-depth"]
    if len(given) == 1 and given[0] in rules:
        return rules[given[0]]
    pairs = [one.partition("=") for one in given]
    if wrong := [one for one, (own, sign, other) in zip(given, pairs, strict=True) if not (own and sign and other)]:
        raise InputError(
            f'--pairs is "{wrong[0]}"; pass {", ".join(rules)}, or STUDENT_LAYER=TEACHER_LAYER, repeated for several.'
        )
    return [(own, other) for own, _, other in pairs]


@contextmanager
def _files_named(teacher: Path, student: Path | None) -> Iterator[None]:
    """Say which file is x and which is y where a refusal speaks of them."""
    try:
        yield
    except InputError as cause:
        names = f"x is {teacher}" if student is None else f"x is the student, {student}; y is the teacher, {teacher}"
        said = f" ({names}.)" if re.search(r"\b[xy]\b", str(cause)) else ""
        raise InputError(f"{cause}{said}") from cause


def _tell(json_file: str | None, content: dict[str, Any], overwrite: bool, sentence: str) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if json_file == "-":
        say(text)
        return
    if json_file is not None:
        write_text(Path(json_file), text + "\n", overwrite=overwrite)
    say(sentence)
