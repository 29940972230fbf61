"""The HTML report of a flow: interactive figures, findings, verdicts and a table of all rows."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mikit.core.errors import InputError
from mikit.core.files import sync_folder, write_atomically
from mikit.flow.readings.data_processing import data_processing_flags
from mikit.plot.drawing.tables import present
from mikit.reporting.charts import FIGURES, charts
from mikit.reporting.columns import columns_of
from mikit.reporting.overview import overview, starting_points
from mikit.reporting.readings.divergence import flag_table, marks_of
from mikit.reporting.readings.sections import READINGS, readings
from mikit.reporting.readings.wording import LIMITS, findings, listed, reasons_counted, verdicts_counted

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["report"]

_SCRIPTS = ("reading.js", "drawing.js", "maps.js", "paths.js", "matches.js", "figures.js", "scheme.js", "table.js")
_START = """
const data = await unpack();
setUpTable(data.table);
const restyle = data.phases.length ? setUpFigures(data).restyle : () => {};
setUpScheme(restyle);
// Set after the first paint: the time at which a reader sees the page.
requestAnimationFrame(() => setTimeout(() => {
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}));
"""
_MOST_REASONS = 20


def report(flow: Flow, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a self-contained HTML report of a flow: interactive figures, findings, verdicts and a table of all rows.

    A slider moves all figures through the phases: maps of student against teacher layers, and curves, with value,
    spread and verdict of every point under the pointer or the arrow keys. Further sections, each with a note on its
    limits, show change points, D_F, two students compared, matching layers, and data-processing checks; for what the
    flow does not contain, the page states the reason. The table can be filtered, sorted and downloaded as CSV.

    The page needs no network: data, style and the plotting library (Plotly) are inside it, and its content security
    policy forbids loading anything. Every name from the flow is escaped. The same flow gives the same bytes, with the
    same versions of plotly and zlib.

    Args:
        flow: A flow from :func:`mikit.trace` or :meth:`mikit.flow.Flow.load`.
        folder: Folder to write ``index.html`` to; created if missing.
        overwrite: Replace the ``index.html`` of a folder that already contains files; its other files are kept.

    Returns:
        Path of the page. It is written atomically: a reader finds the old page or the new one, never a part.

    Raises:
        InputError: If the folder contains files and ``overwrite`` is False, if it is a file, or if the frame cannot be
            drawn (mixed units, repeated rows).

    Cost:
        Seconds: 7 for 75,000 rows of two students, 5 for 12,000 rows of six students, compared pairwise. The page has
        4.9 MB of library and about 50 bytes per row of the frame; see ``docs/tables/report_size.md``.

    Pitfalls:
        Sentences under "Findings" describe this run; with few seeds they are exploratory, not a test. Table and CSV
        have five significant digits, the figures four; the saved flow has all. A band shows the range over the seeds;
        if a network has one run, an error bar shows the sampling interval instead. The page needs a browser from 2023
        or later (``DecompressionStream``).

    Examples:
        >>> import mikit, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mikit.report(run, folder).name
        'index.html'
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; pass a folder for the report.")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise InputError(
            f"{target} already contains files. Pass another folder, or overwrite=True to replace its index.html."
        )
    page = _page(flow).encode()
    target.mkdir(parents=True, exist_ok=True)
    path = target / "index.html"
    write_atomically(path, lambda file: file.write(page))
    sync_folder(target)
    return path


def _page(flow: Flow) -> str:
    files = resources.files("mikit.reporting").joinpath("page_files")
    # One strict function for all scripts: their names stay out of the global scope, where Plotly lives.
    parts = [files.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS]
    script = "\n".join(['"use strict";', "(async () => {", *parts, _START, "})();", ""])
    plotly = _plotly()
    frame = flow.frame
    flags = data_processing_flags(flow)
    content = charts(flow, marks_of(flags)) | {"table": columns_of(frame)}
    read = readings(flow, [one["name"] for one in content["networks"]], content["phases"])
    content["readings"] = {name: one["drawn"] for name, one in read.items() if one["drawn"] is not None}
    # autoescape escapes every name; only what mikit and plotly ship, and base64, is marked as markup.
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_printable, trim_blocks=True)
    return environment.from_string(files.joinpath("report.html").read_text(encoding="utf-8")).render(
        policy="default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {_hashed(plotly)} {_hashed(script)}; base-uri 'none'; form-action 'none'",
        title=_title(flow),
        style=_shipped(files.joinpath("report.css").read_text(encoding="utf-8")),
        overview=overview(flow),
        starts=starting_points(flow, {name for name, one in read.items() if one["drawn"] is not None}),
        findings=[*findings(flow), *(sentence for one in read.values() for sentence in one["findings"])],
        readings=[vars(one) | read[one.name] for one in READINGS],
        flags=flag_table(flow, flags),
        figures=[vars(one) | {"drawn": present(flow, one.quantity)} for one in FIGURES],
        counts=_counts(frame),
        reasons=_reasons(frame),
        limits=LIMITS,
        count=f"{len(frame):,}",
        settings=json.dumps(dict(flow.settings), indent=2, ensure_ascii=False, default=str),
        data=_shipped(_packed(content)),
        plotly=_shipped(plotly),
        script=_shipped(script),
    )


def _shipped(text: str) -> Markup:
    """Mark text as markup: only files of mikit and plotly, and base64, which contain no name from a flow."""
    return Markup(text)  # noqa: S704


def _plotly() -> str:
    """Return the JavaScript library from the plotly package."""
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def _hashed(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _packed(content: dict[str, Any]) -> str:
    """Return the content as base64 of gzip: a fifth of the size, and no character that could close its element."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _printable(value: object) -> object:
    """Replace control characters in text, except in markup."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in value)


def _title(flow: Flow) -> str:
    frame = flow.frame
    if frame.empty:
        return "Information flow: an empty run"
    students = [str(n) for n in frame.loc[frame["role"].eq("student"), "network"].unique()]
    teachers = [str(n) for n in frame.loc[frame["role"].eq("teacher"), "network"].unique()]
    teacher = teachers[0] if teachers else str(flow.settings.get("teacher") or "the teacher")
    if len(students) > 4:
        return f"Information flow from {teacher} to {len(students)} students"
    return f"Information flow from {teacher} to {listed(students)}"


def _counts(frame: pd.DataFrame) -> dict[str, Any] | None:
    if frame.empty:
        return None
    counts = verdicts_counted(frame)
    rows = [
        (str(quantity), [f"{int(n):,}" for n in row])
        for quantity, row in zip(counts.index, counts.to_numpy(), strict=True)
    ]
    return {"columns": [str(name) for name in counts.columns], "rows": rows}


def _reasons(frame: pd.DataFrame) -> list[str]:
    reasons = [f"{count:,} rows ({verdict}): {reason}" for reason, verdict, count in reasons_counted(frame)]
    rarer = len(reasons) - _MOST_REASONS
    return reasons[:_MOST_REASONS] + ([f"and {rarer} rarer reasons; see the table"] if rarer > 0 else [])
