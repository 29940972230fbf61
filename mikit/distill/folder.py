"""The folder of a run: begun once, gone on with by the same run, refused to any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mikit.atomic import TEMPORARY_PREFIX, sync_folder, write_atomically
from mikit.errors import InputError
from mikit.outputs import Kind, require_free

__all__ = ["DISTILL", "open_folder", "write_whole"]

DISTILL = Kind(
    "mikit distill",
    "distill.json",
    b'"mikit distill"',
    frozenset(
        {"distill.json", "summary.json", "curves.png", "curves.svg", "teacher", "students", "stores", "networks"}
    ),
)


def open_folder(out: Path, decides: Mapping[str, object], *, overwrite: bool, inputs: tuple[Path, ...]) -> None:
    """Make the folder, or go on with it if it is that of this very run.

    Args:
        out: The folder.
        decides: What all that stands in it shares, as plain values.
        overwrite: Begin anew in place of an earlier result.
        inputs: Files that are read and must not be replaced.

    Raises:
        InputError: If the folder holds another run, or something that is no run, or cannot be made.
    """
    held = out / DISTILL.holds
    if overwrite or not (out.is_dir() and any(_seen(out))):
        empty = out.is_dir() and not any(_seen(out))
        require_free(out, overwrite=overwrite or empty, kind=DISTILL, inputs=inputs)
        if out.is_dir() and not out.is_symlink():
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        write_whole(held, {"made_by": DISTILL.command, "schema_version": 1, **decides})
        return
    if not held.is_file():
        found = sorted(entry.name for entry in _seen(out))
        raise InputError(
            f"{out} holds {found[0]} and no {DISTILL.holds}, so it is no run of {DISTILL.command} to go on with. "
            "Choose another folder."
        )
    try:
        content = json.loads(held.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise InputError(f"{held} cannot be read ({type(cause).__name__}). Choose another folder.") from cause
    if not isinstance(content, dict) or content.get("made_by") != DISTILL.command:
        raise InputError(f"{held} was not written by {DISTILL.command}. Choose another folder.")
    new = json.loads(json.dumps(decides))
    different = [name for name in new if content.get(name) != new[name]]
    if different:
        name = different[0]
        others = f" ({', '.join(different[1:])} differ too)" if different[1:] else ""
        raise InputError(
            f"{out} holds another run: its {name} is {content.get(name)}, not {new[name]}{others}. Choose another "
            "folder, or pass --overwrite to replace it. More losses and seeds can be added to a run as it is."
        )


def write_whole(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    sync_folder(path.parent)


def _seen(out: Path) -> list[Path]:
    return [entry for entry in out.iterdir() if not entry.name.startswith(TEMPORARY_PREFIX)]
