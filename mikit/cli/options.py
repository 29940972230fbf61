"""Options that several commands share, and their validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mikit.cli.terminal import say
from mikit.core.errors import InputError
from mikit.core.files import require_free, write_text

__all__ = ["Jobs", "Json", "Overwrite", "Seed", "require_free_json", "require_free_results", "write_json"]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result of this command.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for standard output.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random draw.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Number of workers; one per CPU core by default.")]


def require_free_json(json_file: str | None, overwrite: bool, *inputs: Path | None) -> None:
    """Refuse a JSON file that exists or is one of the inputs."""
    if json_file is not None and json_file != "-":
        require_free(Path(json_file), overwrite=overwrite, inputs=[path for path in inputs if path is not None])


def require_free_results(json_file: str | None, *others: Path | None, overwrite: bool) -> None:
    """Refuse result files that exist or are the same."""
    require_free_json(json_file, overwrite)
    for path in others:
        if path is not None:
            require_free(path, overwrite=overwrite)
    named = [Path(path).resolve() for path in (json_file, *others) if path not in (None, "-")]
    if len(set(named)) < len(named):
        raise InputError("--json, --markdown and --plot must name different files.")


def write_json(json_file: str | None, content: dict[str, Any], *, overwrite: bool) -> bool:
    """Write a result as JSON if requested; return True if it went to standard output, which then has nothing else."""
    if json_file is None:
        return False
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if json_file == "-":
        say(text)
        return True
    write_text(Path(json_file), text + "\n", overwrite=overwrite)
    return False
