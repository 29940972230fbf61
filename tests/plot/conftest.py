from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def _synthetic():
    spec = importlib.util.spec_from_file_location("synthetic_flow", Path(__file__).parent / "synthetic.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_flow():
    return _synthetic().make_flow


@pytest.fixture(scope="session")
def run(make_flow):
    return make_flow()
