"""The folder of a trace: begun once, gone on with by the same trace, refused to any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mikit.core.errors import InputError
from mikit.core.files import TEMPORARY_PREFIX, TRACE, Kind, locked, require_free, sync_folder, write_atomically
from mikit.flow.result import Flow, write_flow
from mikit.flow.tracing.records import Records

__all__ = ["BEGUN", "finish_run", "require_replaceable", "run_records"]

BEGUN = Kind("mikit trace", "trace.json", b'"mikit trace"', TRACE.names)
"""A trace that was begun; it is finished once it holds a flow as well."""

_RECORDS, _LOCK, _SCHEMA_VERSION = "records", ".lock", 1


def require_replaceable(out: Path, inputs: Sequence[Path]) -> None:
    """Raise unless ``out`` can be made, or holds a trace, whole or begun, that may be replaced."""
    kind = BEGUN if (out / BEGUN.holds).exists() and not (out / TRACE.holds).exists() else TRACE
    require_free(out, overwrite=True, kind=kind, inputs=inputs)


@contextmanager
def run_records(
    out: Path, decides: Mapping[str, Any], runs: Sequence[Sequence[Any]], *, overwrite: bool, inputs: Sequence[Path]
) -> Iterator[Records]:
    """Give the records of a trace, and keep other traces out of the folder meanwhile.

    Args:
        out: The folder to make, or to go on with.
        decides: The settings that decide every number.
        runs: Role, network and seed of every store. More can be added to a trace; none can be left out.
        overwrite: Whether another trace that stands there may be replaced. Its table stays until the new one is whole.
        inputs: What is read and must not be replaced.

    Raises:
        InputError: If the folder holds another trace, or something that is no trace, cannot be made, or is being
            written by another process.
    """
    described = json.loads(json.dumps({"made_by": BEGUN.command, "schema_version": _SCHEMA_VERSION, **decides}))
    asked = [list(run) for run in runs]
    seen = _seen(out) if out.is_dir() else []
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is no folder; name a folder for the trace.")
    different = _difference(out, seen, described, asked) if seen else ""
    if different and not overwrite:
        raise InputError(different)
    if different:
        require_replaceable(out, inputs)
    elif not out.exists():
        require_free(out, overwrite=overwrite, kind=TRACE, inputs=inputs)
    folder = out / _RECORDS
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(out, folder / _LOCK):
        records = Records(folder)
        records.remove_unfinished()
        _write(out / BEGUN.holds, {**described, "runs": asked})
        if different:
            records.clear()
        try:
            yield records
        finally:
            records.sync()


def finish_run(out: Path, flow: Flow) -> None:
    """Put the table in place of an earlier one, and remove a report that was made of that.

    ``flow.json`` goes before its tables change, so that a run killed here is unfinished and not unreadable.
    """
    held = out / TRACE.holds
    if held.exists():
        try:
            same = Flow.load(out).frame.equals(flow.frame)
        except InputError:
            same = False
        if not same:
            held.unlink()
            sync_folder(out)
            if (out / "report").is_dir():
                shutil.rmtree(out / "report")
    write_flow(flow, out)
    sync_folder(out)


def _seen(out: Path) -> list[str]:
    """Return what stands in the folder; nothing where a run was killed before it wrote anything."""
    found = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(TEMPORARY_PREFIX))
    if found == [_RECORDS] and {entry.name for entry in (out / _RECORDS).iterdir()} <= {_LOCK}:
        return []
    return found


def _difference(out: Path, seen: Sequence[str], described: Mapping[str, Any], asked: list[list[Any]]) -> str:
    """Return why the folder is not that of this trace; empty where it is."""
    begun = out / BEGUN.holds
    if not begun.is_file():
        if TRACE.holds in seen:
            return (
                f"{out} exists already and holds a flow without the measurements to go on from. Choose another name, "
                "or pass --overwrite to replace it."
            )
        return f"{out} exists already and holds {seen[0]}, which is no trace to go on with. Choose another name."
    try:
        held = json.loads(begun.read_bytes())
        held_runs = held.pop("runs")
    except (OSError, ValueError, KeyError, AttributeError) as cause:
        return f"{out} exists already, but {begun} cannot be read ({type(cause).__name__}). Choose another name."
    names = [name for name in {**held, **described} if held.get(name) != described.get(name)]
    if names:
        others = f" ({', '.join(names[1:])} differ too)" if names[1:] else ""
        return (
            f"{out} exists already and holds another trace: its {names[0]} is {held.get(names[0])}, not "
            f"{described.get(names[0])}{others}. Choose another name, or pass --overwrite to replace it."
        )
    lost = [run for run in held_runs if run not in asked]
    if lost:
        role, network, seed = lost[0]
        return (
            f"{out} exists already and holds the {role} {network!r} (seed {seed}), which this trace leaves out. Name "
            "its store as well, choose another name, or pass --overwrite to replace it."
        )
    return ""


@contextmanager
def _alone(out: Path, file: Path) -> Iterator[None]:
    lock = locked(file, out, seconds=0.5)
    try:
        lock.__enter__()
    except InputError as cause:
        raise InputError(
            f"Another process is tracing into {out}. Wait for it to end, or choose another name."
        ) from cause
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    sync_folder(path.parent)
