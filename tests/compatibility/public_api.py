"""Describe the public API as plain data, so that two versions of mikit can be compared."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer.main

MODULES = (
    "mikit",
    "mikit.activations",
    "mikit.adapters.lightning",
    "mikit.adapters.transformers",
    "mikit.critics",
    "mikit.datasets",
    "mikit.distillation",
    "mikit.estimators",
    "mikit.flow",
    "mikit.functional",
    "mikit.models",
    "mikit.plot",
    "mikit.reporting",
    "mikit.testing",
)
STARS = {
    inspect.Parameter.KEYWORD_ONLY: "*",
    inspect.Parameter.VAR_POSITIONAL: "any *",
    inspect.Parameter.VAR_KEYWORD: "any **",
}


def parameters(function: Callable[..., Any]) -> list[str]:
    """Return every parameter with its default; a star marks those that are passed by keyword."""
    found = []
    for p in inspect.signature(function).parameters.values():
        default = "" if p.default is p.empty else f"={repr(p.default).split(' at 0x')[0]}"
        found.append(f"{STARS.get(p.kind, '')}{p.name}{default}")
    return found


def described(value: Any) -> dict[str, Any]:
    """Return what a caller can rely on of a public name."""
    if inspect.ismodule(value):
        return {"kind": "module"}
    if inspect.isclass(value):
        members: dict[str, Any] = {}
        for name in dir(value):
            if name.startswith("_"):
                continue
            owner = next((c for c in value.__mro__ if name in vars(c)), None)
            if owner is None or not owner.__module__.startswith("mikit"):
                continue
            member = inspect.getattr_static(value, name)
            member = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
            members[name] = parameters(member) if inspect.isfunction(member) else "attribute"
        try:
            built = parameters(value)
        except ValueError:
            built = []
        return {"kind": "class", "parameters": built, "members": members}
    if callable(value):
        return {"kind": "function", "parameters": parameters(value)}
    return {"kind": "value"}


def public_names() -> dict[str, dict[str, Any]]:
    """Return every public name, in the first module of the list that has it."""
    found: dict[str, dict[str, Any]] = {}
    seen: dict[int, str] = {}
    for path in MODULES:
        module = import_module(path)
        found[path] = {}
        for name in sorted(module.__all__):
            value = getattr(module, name)
            first = seen.setdefault(id(value), f"{path}.{name}")
            found[path][name] = described(value) if first == f"{path}.{name}" else first
    return found


def commands() -> dict[str, dict[str, Any]]:
    """Return the options and arguments of every command."""
    from mikit.cli import app

    found: dict[str, dict[str, Any]] = {}

    def walk(command: Any, name: str) -> None:
        for parameter in command.params:
            if parameter.name in ("install_completion", "show_completion"):
                continue
            found.setdefault(name, {})[parameter.name] = {
                "names": sorted([*parameter.opts, *parameter.secondary_opts]),
                "default": repr(parameter.default),
                "required": parameter.required,
                "multiple": getattr(parameter, "multiple", False) or parameter.nargs != 1,
            }
        for verb, child in getattr(command, "commands", {}).items():
            found.setdefault(f"{name} {verb}", {})
            walk(child, f"{name} {verb}")

    walk(typer.main.get_command(app), "mikit")
    return found


if __name__ == "__main__":
    import mikit

    content = {"version": mikit.__version__, "names": public_names(), "commands": commands()}
    json.dump(content, sys.stdout, sort_keys=True, separators=(",", ":"))
