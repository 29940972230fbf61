"""The page of metrics and properties is what the classes say today."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mikit import MMD

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_discrepancy_table", DOCS / "make_discrepancy_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_table_is_the_generated_one(maker: ModuleType) -> None:
    committed = maker.TABLE.read_text(encoding="utf-8")
    assert committed == maker.table(), "run python docs/make_discrepancy_table.py"
    assert "tables/discrepancies.md" in (DOCS / "discrepancies.md").read_text()
    for cls in maker.registered():
        assert f"[{cls.__name__}](estimators/{'/'.join([*cls.__module__.split('.')[2:-1], cls.name])}.md)" in committed


def test_what_is_tried_can_fail(maker: ModuleType) -> None:
    assert not maker._takes_two_sizes(MMD(paired=True))
    assert not maker._is_blind(MMD(paired=True))
    assert maker._is_blind(MMD())
