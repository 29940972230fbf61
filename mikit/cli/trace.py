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
        from mikit.flow.tracing.folder import require_replaceable

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
    if not write_json(json_file, summary, overwrite=overwrite):
        say(f"{flow}\nWritten to {out}; next: mikit report {out}")


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
