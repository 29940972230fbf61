"""One HTML page about a flow: figures, what they say in words, verdicts, and every row in a table."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mikit import plot
from mikit.atomic import sync_folder, write_atomically
from mikit.errors import InputError
from mikit.plot.saving import svg_of
from mikit.plot.tables import present
from mikit.reporting.wording import findings, listed, measured, reasons_counted, verdicts_counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mikit.flow import Flow

__all__ = ["report"]

_HIDDEN = ("layer_index", "teacher_layer_index")
_BLANK_IF_NEGATIVE = ("teacher_phase",)
_FIGURES: tuple[tuple[str, str, str, str, Callable[[Flow], Figure]], ...] = (
    (
        "phases",
        "Share of the teacher recovered, phase by phase",
        "recovered_share",
        "One panel per layer: a line that climbs away from the dotted untrained floor shows what training added, and "
        "only a gap wider than the bands sets two networks apart.",
        lambda flow: plot.phases(flow),
    ),
    (
        "flow",
        "Label information, layer by layer",
        "label_information",
        "Follow one line from the input to the output: it shows where in the network the labels become readable; the "
        "darker the line, the later the phase, and the dashed line is where the teacher ends.",
        lambda flow: plot.flow(flow),
    ),
    (
        "maps",
        "Which layer knows which",
        "recovered_share",
        "Read down a column: it shows from which student layer (outlined) one teacher layer is recovered best; "
        "comparing along a row favours the teacher's early layers, which are easy.",
        lambda flow: plot.maps(flow),
    ),
    (
        "gap",
        "Signed gap to the teacher",
        "label_gap",
        "Lines below zero tell less about the labels than the teacher at the same relative depth; lines that rise "
        "towards zero with the phases are catching up.",
        lambda flow: plot.gap(flow),
    ),
    (
        "label-phases",
        "Label information, phase by phase",
        "label_information",
        "The same numbers as the flow curves with training along the axis: one panel per layer, the teacher's final "
        "value dashed.",
        lambda flow: plot.phases(flow, quantity="label_information"),
    ),
    (
        "cka",
        "Similarity of the layers",
        "cka",
        "Linear CKA compares geometries and is the second opinion: it needs no noise, and a high value does not say "
        "how much is known.",
        lambda flow: plot.maps(flow, quantity="cka"),
    ),
    (
        "accuracy",
        "Accuracy",
        "accuracy",
        "The outcome the other figures should be read against: one line per network, the teacher's final accuracy "
        "dashed.",
        lambda flow: plot.accuracy(flow, percent=True),
    ),
)


def report(flow: Flow, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write one self-contained page about a flow: figures, findings in words, verdicts and a table of all rows.

    The page needs no network: figures, style and script are inside it, and its content policy forbids loading
    anything. Every name from the flow is escaped. The same flow gives the same bytes.

    Args:
        flow: What :func:`mikit.trace` returned or :meth:`mikit.flow.Flow.load` read.
        folder: Folder to write ``index.html`` to; made if missing.
        overwrite: Replace the ``index.html`` of a folder that already holds files; its other files stay.

    Returns:
        Path of the page, written in one step: a reader finds the old page or the new one, never a part.

    Raises:
        InputError: If the folder holds files and ``overwrite`` is False, if it is a file, or if the frame cannot be
            drawn (mixed units, repeated rows).

    Cost:
        A few seconds; two megabytes of figures (more with many layers) plus about 80 bytes per row of the frame.

    Pitfalls:
        Sentences under "What came out" describe this run; with few seeds they are a screen and not a test. The table
        shows values to five significant digits; the saved flow holds them in full.

    Examples:
        >>> import mikit, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mikit.report(run, folder).name
        'index.html'
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; name a folder for the report.")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise InputError(
            f"{target} already holds files. Name another folder, or pass overwrite=True to replace its index.html."
        )
    page = _page(flow).encode()
    target.mkdir(parents=True, exist_ok=True)
    path = target / "index.html"
    write_atomically(path, lambda file: file.write(page))
    sync_folder(target)
    return path


def _page(flow: Flow) -> str:
    template = resources.files("mikit.reporting").joinpath("report.html").read_text(encoding="utf-8")
    match = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert match is not None
    digest = base64.b64encode(hashlib.sha256(match.group(1).encode()).digest()).decode()
    frame = flow.frame
    parts = {
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        "title": _text(_title(flow)),
        "measured": "".join(f"<p>{_text(s)}</p>" for s in measured(flow)),
        "findings": _list(findings(flow)) or "<p>Nothing that could be put into a sentence.</p>",
        "figures": "".join(_figure(flow, *one) for one in _FIGURES),
        "verdicts": _verdicts(frame),
        "rows": _rows_json(frame),
        "count": f"{len(frame):,}",
        "settings": _text(json.dumps(dict(flow.settings), indent=2, ensure_ascii=False, default=str)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found.group(1)], template)


def _text(value: object) -> str:
    """Any value as inert text: escaped, with control characters replaced."""
    clean = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(value))
    return html.escape(clean, quote=True)


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in items)}</ul>" if items else ""


def _title(flow: Flow) -> str:
    frame = flow.frame
    if frame.empty:
        return "Information flow: an empty run"
    students = [str(n) for n in frame.loc[frame["role"].eq("student"), "network"].unique()]
    teachers = [str(n) for n in frame.loc[frame["role"].eq("teacher"), "network"].unique()]
    teacher = teachers[0] if teachers else str(flow.settings.get("teacher") or "the teacher")
    return f"Information flow from {teacher} to {listed(students, 4)}"


def _figure(flow: Flow, name: str, heading: str, quantity: str, reading: str, draw: Callable[[Flow], Figure]) -> str:
    head = f'<section class="figure" id="figure-{name}"><h3>{_text(heading)}</h3>'
    if not present(flow, quantity):
        return f'{head}<p class="absent">Not drawn: the flow has no student rows of {_text(quantity)}.</p></section>'
    figure = draw(flow)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    data = base64.b64encode(svg_of(figure)).decode()
    least = min(width, max(620, round(0.7 * width)))
    return (
        f"{head}<p>{_text(reading)}</p>"
        f'<div class="scroll" tabindex="0" role="group" aria-label="{_text(heading)}">'
        f'<img src="data:image/svg+xml;base64,{data}" width="{width}" height="{height}" '
        f'style="min-width:{least}px" alt="{_text(heading)}: {_text(reading)}"></div></section>'
    )


def _verdicts(frame: pd.DataFrame) -> str:
    if frame.empty:
        return "<p>No rows, no verdicts.</p>"
    counts = verdicts_counted(frame)
    head = "".join(f'<th scope="col" class="number">{_text(name)}</th>' for name in counts.columns)
    body = "".join(
        f'<tr><th scope="row">{_text(quantity)}</th>{"".join(f"<td class=number>{int(n):,}</td>" for n in row)}</tr>'
        for quantity, row in zip(counts.index, counts.to_numpy(), strict=True)
    )
    table = (
        f'<div class="scroll"><table class="counts"><thead><tr><th scope="col">rows of</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    reasons = [f"{count:,} rows ({verdict}): {reason}" for reason, verdict, count in reasons_counted(frame)]
    if not reasons:
        return f"{table}<p>No row gives a reason for doubt.</p>"
    shown = reasons[:20] + ([f"and {len(reasons) - 20} rarer reasons, in the table"] if len(reasons) > 20 else [])
    return f"{table}<p>Reasons given:</p>{_list(shown)}"


def _rows_json(frame: pd.DataFrame) -> str:
    """The rows as JSON that cannot leave its script element."""
    names = [name for name in frame.columns if name not in _HIDDEN and not _is_blank(frame[name])]
    data = []
    for name in names:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        column: dict[str, Any] = {"name": str(name).replace("_", " "), "key": str(name), "number": numeric}
        if numeric:
            blank = -1 if name in _BLANK_IF_NEGATIVE else None
            column["values"] = [None if value == blank else _cell(value) for value in frame[name].tolist()]
        else:
            codes, words = pd.factorize(frame[name].map(str, na_action="ignore"))
            column |= {"values": codes.tolist(), "words": [str(word) for word in words]}
        data.append(column)
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _is_blank(column: pd.Series) -> bool:
    return bool((column.isna() | column.eq("")).all())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(value) if math.isinf(value) else float(f"{value:.5g}")
    return value if isinstance(value, (bool, int)) or value is None else str(value)
