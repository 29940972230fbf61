"""The folder of a trace: created once, resumed by the same trace, refused to any other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mikit.core.errors import InputError
from mikit.core.files import TRACE, Kind, locked, require_free, sync_folder
from mikit.core.run_folder import RunFolder
from mikit.flow.result import Flow, write_flow
from mikit.flow.tracing.pair_estimators import layout_removed
from mikit.flow.tracing.records import Records

__all__ = ["UNFINISHED", "finish_run", "require_replaceable", "run_records"]

UNFINISHED = Kind("mikit trace", "trace.json", b'"mikit trace"', TRACE.names)
"""A trace that was started; it is finished once the folder contains a flow as well."""

_RECORDS, _LOCK = "records", ".lock"


def require_replaceable(out: Path, inputs: Sequence[Path]) -> None:
    """Raise unless ``out`` can be made, or contains a finished or unfinished trace that may be replaced."""
    unfinished = (out / UNFINISHED.marker).exists() and not (out / TRACE.marker).exists()
    require_free(out, overwrite=True, kind=UNFINISHED if unfinished else TRACE, inputs=inputs)


@contextmanager
def run_records(
    out: Path, decides: Mapping[str, Any], runs: Sequence[Sequence[Any]], *, overwrite: bool, inputs: Sequence[Path]
) -> Iterator[Records]:
    """Yield the records of a trace, and keep other traces out of the folder meanwhile.

    Args:
        out: The folder to make or to resume.
        decides: The settings that determine every number.
        runs: Role, network and seed of every store. A resumed trace can add runs but cannot leave any out.
        overwrite: Whether another trace may be replaced. Its table stays until the new one is complete.
        inputs: Paths that must not be replaced.
    """
    asked = [list(run) for run in runs]
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder; name a folder for the trace.")
    folder = RunFolder(out, UNFINISHED)
    different = _difference(folder, decides, asked)
    if different and not overwrite:
        raise InputError(different)
    if different:
        require_replaceable(out, inputs)
    elif not out.exists():
        require_free(out, overwrite=overwrite, kind=TRACE, inputs=inputs)
    (out / _RECORDS).mkdir(parents=True, exist_ok=True)
    with _locked(out):
        records = Records(out / _RECORDS)
        records.files.remove_unfinished()
        folder.describe({**decides, "runs": asked})
        if different:
            records.files.clear()
        try:
            yield records
        finally:
            records.files.sync()


def finish_run(out: Path, flow: Flow) -> None:
    """Write the table, and remove a report of an earlier table."""
    finished = out / TRACE.marker
    if finished.exists():
        try:
            same = Flow.load(out).frame.equals(flow.frame)
        except InputError:
            same = False
        if not same:
            # flow.json is removed before its tables change: a run killed here is unfinished, not unreadable.
            finished.unlink()
            sync_folder(out)
            if (out / "report").is_dir():
                shutil.rmtree(out / "report")
    write_flow(flow, out)
    sync_folder(out)


def _difference(folder: RunFolder, decides: Mapping[str, Any], asked: list[list[Any]]) -> str:
    """Return why the folder does not belong to this trace; empty if it does, or is empty."""
    out, found = folder.path, folder.entries()
    if not found or (found == [_RECORDS] and {entry.name for entry in (out / _RECORDS).iterdir()} <= {_LOCK}):
        return ""  # New, or of a run that was killed before it wrote anything.
    if not folder.description.is_file():
        if TRACE.marker in found:
            return (
                f"{out} already exists and contains a flow without the records to resume from. Choose another name, "
                "or pass --overwrite to replace it."
            )
        return f"{out} already exists and contains {found[0]}, which is not part of a trace. Choose another name."
    if different := folder.difference(decides, ignored=["runs"], updated=_updated):
        return different
    lost = [run for run in folder.stored().get("runs", []) if run not in asked]
    if lost:
        role, network, seed = lost[0]
        return (
            f'{out} already contains the {role} "{network}" (seed {seed}), which this trace leaves out. Pass its store '
            "as well, choose another name, or pass --overwrite to replace the trace."
        )
    return ""


def _updated(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a description as this version writes it: 0.1 named estimators by their modules, which have moved."""
    estimators = stored.get("pairs_with")
    return stored | {"pairs_with": [layout_removed(str(one)) for one in estimators]} if estimators else stored


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    lock = locked(out / _RECORDS / _LOCK, out, seconds=0.5)
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
