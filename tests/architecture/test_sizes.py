"""Docstrings, functions and parameter lists stay short, except where a reader of the documentation needs them long."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import mikit

ROOT = Path(mikit.__file__).parent
MOST_DOCSTRING_LINES, MOST_CODE_LINES, MOST_PARAMETERS = 12, 60, 8
LONGER = {("mikit.measuring.pipeline", "measure"): 75}
# Packages whose __all__ lists public names, and modules of the root that are public as a whole.
PACKAGES = (
    *("mikit", "mikit.activations", "mikit.distillation", "mikit.estimators", "mikit.experiments", "mikit.flow"),
    *("mikit.functional", "mikit.plot", "mikit.reporting", "mikit.adapters.lightning", "mikit.adapters.transformers"),
)
MODULES = ("mikit.critics", "mikit.datasets", "mikit.models", "mikit.testing")


class Definition(NamedTuple):
    """A module, class or function as it stands in the source."""

    module: str
    name: str
    docstring_lines: int
    code_lines: int
    body_lines: int
    parameters: int


@cache
def definitions() -> tuple[Definition, ...]:
    """Return every definition of the package, methods by their qualified names."""
    return tuple(
        found
        for path in sorted(ROOT.rglob("*.py"))
        for found in _within(
            ast.parse(path.read_text()),
            ".".join(("mikit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"),
            "",
        )
    )


def _within(node: ast.AST, module: str, name: str) -> Iterator[Definition]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        first = node.body[0] if node.body else None
        lines = 0
        if first is not None and ast.get_docstring(node) is not None:
            lines = (first.end_lineno or 0) - first.lineno + 1
        code = body = parameters = 0
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            code = (node.end_lineno or 0) - node.lineno + 1 - lines
            body = (node.end_lineno or 0) - node.body[0].lineno + 1 - lines
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            parameters = len([one for one in arguments if one.arg not in ("self", "cls")])
        yield Definition(module, name, lines, code, body, parameters)
    for child in ast.iter_child_nodes(node):
        own = getattr(child, "name", "") if isinstance(child, (ast.ClassDef, ast.FunctionDef)) else ""
        yield from _within(child, module, ".".join(part for part in (name, own) if part))


@cache
def public() -> frozenset[tuple[str, str]]:
    """Return module and qualified name of everything that the documentation describes in full."""
    found: set[tuple[str, str]] = set()
    for path in (*PACKAGES, *MODULES):
        module = import_module(path)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found.add((value.__module__, value.__qualname__))
    return frozenset(found)


def is_public(found: Definition) -> bool:
    """Whether it is a public name, a public method or the constructor of one, or a public package."""
    if found.module in MODULES and not found.name.startswith("_"):
        return True
    if found.module in PACKAGES and not found.name:
        return True  # The first words of a page of the documentation.
    owner, _, method = found.name.rpartition(".")
    if (found.module, found.name) in public():
        return True
    return (found.module, owner) in public() and (not method.startswith("_") or method == "__init__")


def commands() -> set[tuple[str, str]]:
    """Return the functions of the command line, whose parameters are options."""
    from mikit.cli import app

    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    callbacks = [command.callback for group in groups for command in group.registered_commands]
    return {(inspect.unwrap(one).__module__, one.__name__) for one in callbacks if one is not None}


def test_docstrings_of_internal_names_are_short() -> None:
    long = [
        f"{one.module}:{one.name or 'module'} {one.docstring_lines}"
        for one in definitions()
        if one.docstring_lines > MOST_DOCSTRING_LINES and not is_public(one)
    ]
    assert not long, "\n".join(long)


def test_functions_are_short() -> None:
    verbs = commands()  # Their signatures are the options with their help, so only their bodies count.
    long = []
    for one in definitions():
        place = one.module, one.name
        lines = one.body_lines if place in verbs else one.code_lines
        if lines > LONGER.get(place, MOST_CODE_LINES):
            long.append(f"{one.module}:{one.name} {lines}")
    assert not long, "\n".join(long)


def test_internal_functions_take_few_parameters() -> None:
    verbs = commands()
    wide = [
        f"{one.module}:{one.name} {one.parameters}"
        for one in definitions()
        if one.parameters > MOST_PARAMETERS and not is_public(one) and (one.module, one.name) not in verbs
    ]
    assert not wide, "\n".join(wide)


def test_the_measures_see_what_they_count() -> None:
    found = {(one.module, one.name): one for one in definitions()}
    measure = found["mikit.measuring.pipeline", "measure"]
    assert measure.parameters == len(inspect.signature(mikit.measure).parameters)
    assert measure.docstring_lines > MOST_DOCSTRING_LINES
    assert is_public(measure)
    assert not is_public(found["mikit.measuring.run", "run_once"])
    assert len(commands()) == 12
