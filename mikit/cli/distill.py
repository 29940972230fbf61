"""The command ``mikit distill``; it imports torch when it runs, not for the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mikit.cli.options import Jobs, Json, Overwrite, require_free_json, write_json
from mikit.cli.terminal import Steps, answered, say, show_table

__all__ = ["distill"]


@answered()
def distill(
    loss: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Distillation losses: names separated by commas, one student each; vid:2 sets a weight, vid+hinton "
            "trains one student with both losses.",
        ),
    ] = "vid,hinton",
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="PAIRS",
            help="Layers of student and teacher for losses on features: stage2:stage3,pool; by default those of each "
            "loss.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Your own images: train_images, train_labels, test_images, test_labels. By default scikit-learn's "
            "digits.",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Weights of a trained teacher, .safetensors or .pt. By default a teacher is trained."
        ),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(help="Labeled images per class for the students; by default 5, or 100 for larger images."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds; the student alone is trained with the same seeds.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the students; by default 128, or 40 for larger images.")
    ] = None,
    teacher_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the teacher; by default 16, or 32 for larger images.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Record activations at phases, for mikit trace and mikit report.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make or to resume.")] = Path("mikit-distill"),
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu or cuda.")] = "cpu",
    jobs: Jobs = None,
    json_file: Json = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a student alone and with distillation losses from a teacher, and compare them for each seed."""
    require_free_json(json_file, overwrite, data, teacher)
    with Steps(lines=True) as steps:
        from mikit.cli.inputs import require_device
        from mikit.datasets import digits, from_npz
        from mikit.experiments import distill_settings, load_teacher, run_distill
        from mikit.experiments.summary import table

        require_device(device)
        images = digits() if data is None else from_npz(data)
        settings = distill_settings(
            images,
            losses=loss,
            pairs=pairs,
            seeds=seeds,
            per_class=per_class,
            epochs=epochs,
            teacher_epochs=teacher_epochs,
            record=record,
            device=device,
        )
        given = None if teacher is None else load_teacher(teacher, images)
        result = run_distill(
            out,
            images,
            settings,
            teacher=given,
            overwrite=overwrite,
            inputs=tuple(path for path in (data, teacher) if path is not None),
            jobs=jobs,
            stages=steps,
        )
    if write_json(json_file, result.to_dict(), overwrite=overwrite):
        return
    show_table(*table(("teacher", result.teacher), result.students))
    for sentence in (sentence for one in result.students for sentence in one.diverged):
        say(sentence)
    deviation = "One seed: no standard deviation." if seeds == 1 else f"± is the standard deviation over {seeds} seeds."
    say(f"{deviation} Gains are paired: the same images, initial weights, order and views as the student alone.")
    say(f"{out / 'curves.png'}, {out / 'summary.json'} ({result.wall_time:.0f} s)")
    if result.stores:
        say(f"Next: mikit trace {' '.join(str(store) for store in result.stores)} --out {out.name}-flow")
