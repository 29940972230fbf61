"""What every module keeps to: no pickle, no eval, classes abstract or final, and an import that changes nothing."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import is_typeddict

import pytest

import mikit
from mikit.estimators import REGISTRY

ROOT = Path(mikit.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# ot is optional: imported inside the one function that asks for it.
FORMULAS_MAY_USE = {"torch", "numpy", "scipy", "ot", "mikit"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "pickle.dump",
    "yaml.load",
    "joblib.load",
    "joblib.dump",
}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "mikit":
                yield from (f"mikit.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", sorted((ROOT / "functional").rglob("*.py")), ids=lambda p: p.stem)
def test_formulas_import_mathematics_only(path: Path) -> None:
    outside = {name.split(".")[0] for name in _imports(path)} - sys.stdlib_module_names
    assert outside <= FORMULAS_MAY_USE


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN_CALLS, f"line {node.lineno} calls {called}"
            if called == "torch.load":
                assert "weights_only=True" in ast.unparse(node)
            if called in ("np.load", "numpy.load"):
                assert "allow_pickle=False" in ast.unparse(node)


def _classes() -> Iterator[type]:
    for path in MODULES:
        name = ".".join(("mikit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        if name in ("mikit", "mikit.__main__"):
            continue
        module = __import__(name, fromlist=["_"])
        yield from (c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == name)


def test_classes_are_abstract_or_final() -> None:
    for cls in _classes():
        exempt = issubclass(cls, Exception) or getattr(cls, "_is_protocol", False) or cls.__name__.startswith("_")
        exempt = exempt or cls.__name__.endswith("Mixin")  # made to be combined, and of no use alone
        exempt = exempt or is_typeddict(cls)  # names the keys of a dictionary, and has no methods to override
        assert exempt or inspect.isabstract(cls) or getattr(cls, "__final__", False), cls


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_estimator_states_its_seven_facts(name: str) -> None:
    text = inspect.getdoc(REGISTRY[name]) or ""
    for fact in ("Formula", "Unit", "Kind", "Raises", "Cost", "Pitfalls", "Source", "Example"):
        assert re.search(rf"^{fact}:", text, re.MULTILINE), f"{name} does not state {fact}"


def test_every_public_name_resolves() -> None:
    for name in mikit.__all__:
        assert getattr(mikit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mikit.nothing  # noqa: B018


def test_importing_mikit_is_light_and_changes_nothing() -> None:
    script = """
        import sys
        import mikit
        assert not {"torch", "numpy", "pandas", "matplotlib", "sklearn"} & set(sys.modules), "import mikit is heavy"
        import torch, numpy as np
        before = torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state(), np.geterr()
        mikit.measure, mikit.VID, mikit.capture, mikit.ActivationStore, mikit.functional
        assert "matplotlib" not in sys.modules, "only mikit.plot may load matplotlib"
        import mikit.adapters.lightning, mikit.adapters.transformers
        libraries = {"lightning", "transformers", "accelerate"} & set(sys.modules)
        assert not libraries, f"importing the adapters loads {libraries}"
        import mikit.plot, mikit.reporting
        import matplotlib
        assert "matplotlib.pyplot" not in sys.modules or matplotlib.rcParams == matplotlib.rcParamsDefault
        after = torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state(), np.geterr()
        assert before[:2] == after[:2] and torch.equal(before[2], after[2]) and before[3] == after[3]
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
