"""The command ``mikit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mikit.cli.options import Jobs, Overwrite
from mikit.cli.terminal import Steps, answered, say
from mikit.core.files import DEMO, require_free

__all__ = ["demo"]


@answered()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")] = Path("mikit-demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer epochs and phases; this only shows that everything works.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; 3 by default, 1 with --quick.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Your own images: train_images, train_labels, test_images, test_labels."),
    ] = None,
    jobs: Jobs = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a teacher and its students on digits, and show how information flows through them."""
    require_free(out, overwrite=overwrite, kind=DEMO, inputs=() if data is None else (data,))
    with Steps(lines=True) as steps:
        from mikit.datasets import digits, from_npz
        from mikit.experiments import run_demo, settings_for

        images = digits() if data is None else from_npz(data)
        settings = settings_for(images, seeds=(1 if quick else 3) if seeds is None else seeds, quick=quick)
        result = run_demo(out, images, settings, overwrite=overwrite, jobs=jobs, stages=steps)
    for number, line in enumerate(result.lines, start=1):
        say(f"{number}. {line}")
    if quick:
        say("A quick run only shows that everything works; leave out --quick for results.")
    say(f"Open {result.folder / 'report' / 'index.html'} ({result.wall_time:.0f} s)")
