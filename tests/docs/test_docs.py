"""The documentation keeps step with the code, and what is committed with it is small and free of machine paths."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from pathlib import Path
from types import ModuleType

import pytest

from mikit.cli import app
from mikit.estimators import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = sorted((DOCS / "gallery").glob("*.png"))


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mikit_pages", DOCS / "_ext" / "mikit_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_and_its_options_are_on_the_page(pages: ModuleType) -> None:
    written = pages.commands()
    for command in app.registered_commands:
        assert f"## `mikit {command.callback.__name__}`" in written
    for option in ("--json FILE", "--require VERDICT", "--out RUN", "--seed N", "--overwrite"):
        assert f"`{option}`" in written


def test_every_estimator_has_a_page_and_a_place_in_the_tables(pages: ModuleType) -> None:
    index = (DOCS / "index.md").read_text()
    for name, cls in REGISTRY.items():
        place = pages.page_of(cls)
        assert place.endswith(f"{name}.md")
        page = (DOCS / "estimators" / place).read_text()
        assert f".. autoclass:: mikit.{cls.__name__}\n" in page
        assert f"estimators/{place.removesuffix('.md')}\n" in index
        assert f"[{cls.__name__}]({place})" in pages.estimators()
        assert f"[{cls.__name__}]({place})" in pages.costs()


def test_every_mark_on_a_page_has_a_writer(pages: ModuleType) -> None:
    marks = [mark for page in DOCS.rglob("*.md") for mark in re.findall(r"<!-- mikit: (.*?) -->", page.read_text())]
    assert marks
    assert set(marks) <= set(pages._WRITERS)


def test_one_line_sections_become_sections(pages: ModuleType) -> None:
    lines = ["What it is.", "", "Kind: estimate, and", "no bound.", "", "Unit:", "    nats."]
    pages._spread_sections(None, "class", "x", None, None, lines)
    assert lines == ["What it is.", "", "Kind:", "    estimate, and", "    no bound.", "", "Unit:", "    nats."]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_executed_small_and_free_of_machine_paths(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 1_000_000
    cells = json.loads(text)["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    assert outputs
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)
    told = json.dumps([{k: v for k, v in (o.get("data") or o).items() if k != "image/png"} for o in outputs])
    assert re.search(r"/(tmp|home|root|Users|work)/", told + "".join("".join(c["source"]) for c in cells)) is None


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_pictures_are_small_and_shown(path: Path) -> None:
    content = path.read_bytes()
    width, _ = struct.unpack(">II", content[16:24])
    assert width <= 1400
    assert len(content) < 250_000
    assert f"(gallery/{path.name})" in (DOCS / "gallery.md").read_text()
