"""The commands ``mikit trace`` and ``mikit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mikit.cli.options import Jobs, Json, Overwrite, Seed, require_free_json, write_json
from mikit.cli.terminal import Steps, answered, say
from mikit.core.errors import InputError
from mikit.core.files import REPORT, new_folder, require_free

__all__ = ["report", "trace"]


Stores = Annotated[list[Path], typer.Argument(metavar="STUDENT_STORE", help="Activations of the students.")]
Labels = Annotated[Path | None, typer.Option(metavar="FILE", help="Labels, in the order of the teacher's ids.")]
Noise = Annotated[list[float] | None, typer.Option(help="Teacher noise; repeatable. 0.1, 0.3 and 1 by default.")]
Probe = Annotated[str, typer.Option(help="Probe of the label information: logistic, lda, mlp or knn.")]
Reduce = Annotated[int | None, typer.Option(help="Compare wider layers by this number of principal components.")]
PairsWith = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Additional estimator, such as auto or label_hsic; repeatable.")
]
Pairs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PAIRS",
        help="Layer pairs for --pairs-with: same-depth (default), all, screen (same depth and largest share), or "
        "STUDENT_LAYER=TEACHER_LAYER; repeatable.",
    ),
]
Plane = Annotated[
    bool, typer.Option("--information-plane", help="Also measure the information between the input and noisy layers.")
]
PlaneNoise = Annotated[
    list[float] | None, typer.Option(help="Noise of --information-plane; repeatable. 0.3, 1 and 3 by default.")
]
Minutes = Annotated[
    float | None,
    typer.Option(metavar="MINUTES", help="Start no new measurement after this time; mark the others as skipped."),
]
Processes = Annotated[bool, typer.Option("--processes", help="Use processes instead of threads as workers.")]
Devices = Annotated[
    list[str] | None,
    typer.Option(metavar="DEVICE", help="Device for matrix products, such as cuda:0; repeatable, one per worker."),
]


@answered()
def trace(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER_STORE", help="Activations of the teacher.")],
    students: Stores,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder for the run; an interrupted run continues.")],
    labels: Labels = None,
    noise: Noise = None,
    folds: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    probe: Probe = "logistic",
    reduce: Reduce = None,
    pairs_with: PairsWith = None,
    pairs: Pairs = None,
    information_plane: Plane = False,
    plane_noise: PlaneNoise = None,
    budget: Minutes = None,
    seed: Seed = 0,
    jobs: Jobs = None,
    processes: Processes = False,
    device: Devices = None,
    json_file: Json = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure label information and recovered share for stored activations, layer by layer and phase by phase."""
    inputs = (teacher, *students, *(() if labels is None else (labels,)))
    require_free_json(json_file, overwrite, *inputs)
    if overwrite:
        from mikit.flow.tracing.folder import require_replaceable

        require_replaceable(out, inputs)
    with Steps(lines=True) as steps, steps.aside("Tracing the information flow"):
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
    if not write_json(json_file, summary, overwrite=overwrite):
        say(f"{flow}\nWritten to {out}; next: mikit report {out}")


@answered()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder from mikit trace.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the report; RUN/report by default.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write an HTML page with the figures, findings, verdicts and table of a traced run."""
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


def _pairs(given: list[str] | None) -> str | list[tuple[str, str]]:
    """Return the named layer pairs, or the rule for them."""
    rules = {"same-depth": "same depth", "all": "all", "screen": "screen"}
    if not given:
        return rules["same-depth"]
    if len(given) == 1 and given[0] in rules:
        return rules[given[0]]
    pairs = [one.partition("=") for one in given]
    if wrong := [
        one for one, (student, sign, teacher) in zip(given, pairs, strict=True) if not (student and sign and teacher)
    ]:
        raise InputError(
            f'--pairs is "{wrong[0]}"; pass {", ".join(rules)}, or STUDENT_LAYER=TEACHER_LAYER (repeatable).'
        )
    return [(student, teacher) for student, _, teacher in pairs]
