"""Writes the parts of pages that come from the code: the command line, and the tables of estimators.

A page holds a line such as ``<!-- mikit: commands -->``; it is replaced by Markdown when the page is read. Docstring
sections that stand on one line (``Unit: nats.``) become headings like the others.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

_ONE_LINE = ("Formula", "Unit", "Units", "Kind", "Cost", "Checks", "Shapes", "Source", "Pitfalls")


def commands() -> str:
    """Return the usage, arguments and options of every command, from the functions that run them."""
    from mikit.cli import app

    called_by = [("", command) for command in app.registered_commands]
    for group in app.registered_groups:
        called_by += [(f"{group.typer_instance.info.name} ", one) for one in group.typer_instance.registered_commands]
    parts = []
    for prefix, registered in called_by:
        function = registered.callback
        name = prefix + (registered.name or function.__name__)
        arguments, options = _parameters(function)
        called = " ".join([f"mikit {name} [OPTIONS]", *(shown for shown, _, _ in arguments)])
        parts += [f"## `mikit {name}`", "", str(function.__doc__).strip(), "", "```text", called, "```", ""]
        parts += [*_table("argument", [(f"`{shown.strip('[]')}`", text, d) for shown, text, d in arguments]), ""]
        parts += [*_table("option", options), ""]
    return "\n".join(parts)


def estimators() -> str:
    """Return kind, input and needs of each registered estimator, from the classes themselves."""
    lines = ["| estimator | result | input | gradient | fitted first | upper limit |", "|---|---|---|---|---|---|"]
    for cls, example in _examples():
        ceiling = example.ceiling(10_000)
        layouts = {"nd": "vectors", "nchw": "feature maps", "ntd": "tokens"}
        reads = ", ".join(layouts[shape] for shape in cls.shapes)
        lines.append(
            f"| {_link(cls)} `{cls.name}` | {cls.kind}, {cls.unit} "
            f"| {f'{reads}; y: labels' if cls.explains == 'labels' else reads} | {_yes(example.differentiable)} "
            f"| {_yes(example.learned)} | {'none' if ceiling is None else f'{ceiling:.2f}'} |"
        )
    return "\n".join(lines)


def costs() -> str:
    """Return the cost of each estimator, from its docstring."""
    lines = ["| estimator | cost |", "|---|---|"]
    for cls, _ in _examples():
        lines.append(f"| {_link(cls)} | {_section(cls.__doc__ or '', 'Cost')} |")
    return "\n".join(lines)


def registry_names() -> str:
    """Return the names of the estimators, as the command line and ``measure`` accept them."""
    from mikit.estimators import REGISTRY

    return ", ".join(f"`{name}`" for name in REGISTRY)


def recipes() -> str:
    """Return the losses of ``mikit distill``, with their layers and weights."""
    from mikit.distillation import RECIPES

    lines = ["| name | what it is | between the layers | weight |", "|---|---|---|---|"]
    for one in RECIPES.values():
        lines.append(f"| `{one.name}` | {one.about} | {', '.join(one.layers)} | {one.weight:g} |")
    return "\n".join(lines)


_WRITERS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "estimators": estimators,
    "costs": costs,
    "registry names": registry_names,
    "recipes": recipes,
}


def _examples() -> Iterator[tuple[Any, Any]]:
    import torch

    from mikit.estimators import REGISTRY

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, generator=generator)
    y = {"vectors": torch.randn(64, 2, generator=generator), "labels": torch.arange(64) % 2}
    for cls in REGISTRY.values():
        yield cls, cls.between(x, y[cls.explains], generator=generator)


def page_of(cls: Any) -> str:
    """Return the page of an estimator below docs/estimators, which has the folders of mikit.estimators."""
    folders = cls.__module__.split(".")[2:-1]
    return "/".join([*folders, f"{cls.name}.md"])


def _link(cls: Any) -> str:
    return f"[{cls.__name__}]({page_of(cls)})"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _section(text: str, name: str) -> str:
    """Return a docstring section as one line of Markdown."""
    found = re.search(rf"^ *{name}:(.*?)(?=\n *\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"A docstring lacks its section {name!r}: {text[:60]!r}")
    return " ".join(found.group(1).split()).replace("``", "`").replace("|", "\\|")


def _parameters(function: Any) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Return the arguments and the options of a command as (name, meaning, default)."""
    hints = get_type_hints(function, include_extras=True)
    arguments, options = [], []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *metadata = get_args(hints[name])
        info = next(entry for entry in metadata if isinstance(entry, (ArgumentInfo, OptionInfo)))
        required = parameter.default is inspect.Parameter.empty
        if isinstance(info, ArgumentInfo):
            shown = info.metavar or name.upper()
            arguments.append((shown if required else f"[{shown}]", info.help or "", ""))
            continue
        # In Annotated, typer takes the first name for a default.
        declared = [entry for entry in (info.default, *(info.param_decls or ())) if str(entry).startswith("-")]
        names = declared or ["--" + name.replace("_", "-")]
        if kind is not bool:
            number = {int, float} & {kind, *get_args(kind), *(x for a in get_args(kind) for x in get_args(a))}
            names[-1] += f" {info.metavar or ('N' if number else 'NAME')}"
        default = "required" if required else "" if parameter.default in (None, False) else f"`{parameter.default}`"
        if parameter.default == 0 and kind is not bool:
            default = "`0`"
        options.append((", ".join(f"`{entry}`" for entry in names), info.help or "", default))
    return arguments, options


def _table(first: str, rows: list[tuple[str, str, str]]) -> list[str]:
    if not rows:
        return []
    if not any(default for _, _, default in rows):
        return [f"| {first} | meaning |", "|---|---|", *(f"| {name} | {text} |" for name, text, _ in rows)]
    head = [f"| {first} | meaning | default |", "|---|---|---|"]
    return head + [f"| {name} | {text} | {default} |" for name, text, default in rows]


def _write_marked(app: Any, docname: str, source: list[str]) -> None:
    def written(match: re.Match[str]) -> str:
        return _WRITERS[match.group(1)]()

    source[0] = re.sub(r"<!-- mikit: ([a-z ]+) -->", written, source[0])


def _spread_sections(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn ``Unit: nats.`` into a section with an indented body, which napoleon then knows."""
    out: list[str] = []
    inside = False
    for line in lines:
        found = re.match(rf"({'|'.join(_ONE_LINE)}): +(\S.*)", line)
        if found:
            out += [*([""] if out and out[-1].strip() else []), f"{found.group(1)}:", f"    {found.group(2)}"]
            inside = True
        elif inside and line.strip() and not line.startswith(" "):
            out.append(f"    {line}")
        else:
            inside = inside and bool(line.strip())
            out.append(line)
    lines[:] = out


def _shorten_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Leave out ``(*args, **kwargs)``, which only says that a base class takes what its subclasses take."""
    return ("" if signature == "(*args, **kwargs)" else signature), returns


def setup(app: Any) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", _write_marked)
    app.connect("autodoc-process-docstring", _spread_sections, priority=100)
    app.connect("autodoc-process-signature", _shorten_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
