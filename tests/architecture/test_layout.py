"""The layout of the package: who may import whom, how large a module or a folder may be, and how modules are named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import mikit

ROOT = Path(mikit.__file__).parent
PATHS = {
    ".".join(("mikit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

# What each package may import, besides itself and mikit.core.
PACKAGES = {
    "core": set(),
    "functional": set(),
    "activations": set(),
    "datasets": set(),
    "models": set(),
    "critics": {"functional"},
    "estimators": {"functional", "critics"},
    "measuring": {"functional", "estimators"},
    "distillation": {"functional", "critics", "estimators", "measuring", "activations"},
    "testing": {"estimators", "measuring", "distillation"},
    "adapters": {"activations", "distillation"},
    "flow": {"functional", "estimators", "measuring", "activations"},
    "plot": {"measuring", "flow"},
    "reporting": {"flow", "plot"},
    "bench": {"functional", "estimators", "measuring", "plot"},
    "experiments": {"activations", "datasets", "distillation", "estimators", "flow", "models", "plot", "reporting"},
    "cli": {"activations", "bench", "datasets", "estimators", "experiments", "flow", "measuring", "plot", "reporting"},
}
# The same for the families of mikit.functional, besides the engine.
FIRST = {"gaussian", "bounds", "transport", "kernels", "reduction"}
FAMILIES = {
    "engine": set(),
    **{family: set() for family in FIRST},
    **dict.fromkeys(("neighbors", "labels", "vid", "flow", "distillation"), FIRST),
    "copula": FIRST | {"neighbors"},
}
MOST_LINES, MOST_IN_A_FOLDER, MOST_IN_THE_ROOT = 400, 20, 6


def imported(name: str) -> Iterator[str]:
    """Yield every module of mikit that a module imports: inside functions and for type checking, too."""
    for node in ast.walk(ast.parse(PATHS[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "mikit")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mikit":
            assert not node.level, f"{name}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in PATHS else str(node.module)


@cache
def imports() -> dict[str, set[str]]:
    """Return what each module imports. Not at import of this file, which every worker does to collect the tests."""
    return {name: set(imported(name)) - {name} for name in PATHS}


def test_every_package_has_a_row() -> None:
    found = {name.split(".")[1] for name in PATHS if name != "mikit"} - {"__main__"}
    assert found == set(PACKAGES)


def test_every_family_of_formulas_has_a_row() -> None:
    assert {path.name for path in (ROOT / "functional").iterdir() if path.is_dir()} - {"__pycache__"} == set(FAMILIES)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_follow_the_table(package: str) -> None:
    allowed = PACKAGES[package] | {package, "core"}
    for name in PATHS:
        if name.split(".")[1:2] == [package]:
            wrong = [other for other in imports()[name] if other == "mikit" or other.split(".")[1] not in allowed]
            assert not wrong, f"{name} imports {wrong}"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_formulas_import_in_order(family: str) -> None:
    allowed = FAMILIES[family] | {family, "engine"}
    for name in PATHS:
        if name.startswith(f"mikit.functional.{family}."):
            within = [other for other in imports()[name] if other.startswith("mikit.functional")]
            wrong = [other for other in within if other.count(".") < 2 or other.split(".")[2] not in allowed]
            assert not wrong, f"{name} imports {wrong}"


def test_the_tables_have_no_cycle() -> None:
    for table in (PACKAGES, FAMILIES):
        left = {name: set(others) for name, others in table.items()}
        while left:
            free = {name for name, others in left.items() if not others & set(left)}
            assert free, f"these import each other: {sorted(left)}"
            left = {name: others for name, others in left.items() if name not in free}


def test_modules_do_not_import_each_other() -> None:
    left = {name: others & set(PATHS) for name, others in imports().items()}
    while left:
        free = {name for name, others in left.items() if not others & set(left)}
        assert free, f"a cycle runs through some of {sorted(left)}"
        left = {name: others for name, others in left.items() if name not in free}


def _folders() -> Iterator[Path]:
    yield from (path for path in [ROOT, *ROOT.rglob("*")] if (path / "__init__.py").exists())


def test_folders_are_small() -> None:
    for folder in _folders():
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= (MOST_IN_THE_ROOT if folder == ROOT else MOST_IN_A_FOLDER), folder


def test_modules_are_short() -> None:
    long = {name: lines for name, path in PATHS.items() if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long


def test_nothing_hides_a_function_of_the_same_name() -> None:
    for folder in _folders():
        package = import_module(".".join(("mikit", *folder.relative_to(ROOT).parts)))
        public = {name for name in getattr(package, "__all__", ()) if type(getattr(package, name)) is not type(mikit)}
        inside = {path.stem if path.suffix == ".py" else path.name for path in folder.iterdir()}
        assert not public & inside, f"a module of {package.__name__} hides the name it exports"


def test_no_module_is_a_drawer() -> None:
    for name in PATHS:
        assert name.split(".")[-1] not in {"utils", "common", "helpers", "factories", "config"}


def test_tests_follow_the_folders_of_the_package() -> None:
    tests = Path(__file__).parents[1]
    # Of no package: what reads the repository or all packages, and files that tests read.
    outside = {"analysis", "architecture", "benchmarks", "compatibility", "contract", "data", "docs"}
    folders = {path.parent.relative_to(tests) for path in tests.rglob("*.py")}
    own = {folder for folder in folders if not folder.parts or folder.parts[0] not in outside}
    assert [str(folder) for folder in sorted(own) if not (ROOT / folder).is_dir()] == []
