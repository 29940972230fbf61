from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make_flow():
    source = Path(__file__).parents[1] / "plot" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic_flow", source)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.make_flow


@pytest.fixture(scope="session")
def run(make_flow):
    return make_flow(noises=(0.3,), phases=(0, 4, 30))
