"""What tests and doctests share: one thread for each worker, and a flow of plausible numbers to draw."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# The tests run one worker per core; more threads inside a worker would only get in each other's way. Set before
# torch is imported, so that the processes a test starts keep to it as well.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from mikit.flow import Flow


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector, and keep it from what was collected and imported.

    Some half a million objects are alive then and stay so to the end. To search them for cycles again and again would
    take a fourth of the time of collection and a twentieth of that of the tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, by name, what needs a GPU where there is none."""
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if for_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in for_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


@pytest.fixture(scope="session")
def make_flow() -> Callable[..., Flow]:
    """A function that makes a synthetic flow; see tests/plot/synthetic.py."""
    source = Path(__file__).parent / "tests" / "plot" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic_flow", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Callable[..., Flow] = module.make_flow
    return made


@pytest.fixture(scope="session")
def run(make_flow: Callable[..., Flow]) -> Iterator[Flow]:
    """A flow of three noise levels and seven phases. In the end, no test and no figure may have changed its frame."""
    flow = make_flow()
    before = flow.frame.copy(deep=True)
    yield flow
    assert flow.frame.equals(before)


@pytest.fixture
def short_critic_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the critics of CopulaCritic for 60 steps instead of up to 400, where accuracy is not what is tested."""
    from mikit.estimators.copula.critic import RECIPES

    monkeypatch.setitem(RECIPES, "small", dataclasses.replace(RECIPES["small"], steps=60))


@pytest.fixture(autouse=True)
def _a_run_for_doctests(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    """Give the examples of mikit.plot and mikit.reporting a flow named ``run``."""
    if request.node.nodeid.startswith(("mikit/plot/", "mikit/reporting/")):
        doctest_namespace["run"] = request.getfixturevalue("run")
