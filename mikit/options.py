"""Options that several commands share, and what holds for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mikit.errors import InputError
from mikit.outputs import require_free

__all__ = ["Jobs", "Json", "Overwrite", "Seed", "require_free_json", "require_free_results"]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result of this command.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for stdout.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random draw.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Workers; one per processor by default.")]


def require_free_json(json_file: str | None, overwrite: bool, *inputs: Path | None) -> None:
    """Refuse a file for JSON that exists, or that is one of the inputs."""
    if json_file is not None and json_file != "-":
        require_free(Path(json_file), overwrite=overwrite, inputs=[path for path in inputs if path is not None])


def require_free_results(json_file: str | None, *others: Path | None, overwrite: bool) -> None:
    """Refuse files for results that exist, or that are the same."""
    require_free_json(json_file, overwrite)
    for path in others:
        if path is not None:
            require_free(path, overwrite=overwrite)
    named = [Path(path).resolve() for path in (json_file, *others) if path not in (None, "-")]
    if len(set(named)) < len(named):
        raise InputError("--json, --markdown and --plot must name different files.")
