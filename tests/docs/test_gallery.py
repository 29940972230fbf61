"""Every public function of mikit.plot stands in the gallery, with a sentence, a picture, and the code that drew it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mikit import plot

DOCS = Path(__file__).resolve().parents[2] / "docs"
DRAWING = [name for name in plot.__all__ if name != "save_figure"]


def section(name):
    sections = re.split(r"^## ", (DOCS / "gallery.md").read_text(), flags=re.MULTILINE)[1:]
    found = [text for text in sections if re.search(rf"^`mikit\.plot\.{name}\(", text, flags=re.MULTILINE)]
    assert found, f"docs/gallery.md has no section that begins with `mikit.plot.{name}(...)`."
    return found[0]


@pytest.mark.parametrize("name", DRAWING)
def test_every_function_has_a_picture_and_says_how_to_read_it(name):
    text = section(name)
    (picture,) = re.findall(r"^!\[[^\]]{20,}\]\((gallery/[\w.]+)\)$", text, flags=re.MULTILINE)
    file = DOCS / picture
    assert file.is_file(), f"docs/make_gallery.py has not written {picture}."
    assert file.stat().st_size < 250_000
    prose = re.sub(r"`[^`]*`|!\[.*", "", text)
    assert len([sentence for sentence in re.split(r"[.;:]\s", prose) if len(sentence.split()) > 4]) >= 2


@pytest.mark.parametrize("name", DRAWING)
def test_every_picture_is_drawn_by_the_script(name):
    script = (DOCS / "make_gallery.py").read_text()
    assert f"mikit.plot.{name}(" in script
    stem = re.search(r"\(gallery/(\w+)\.", section(name)).group(1)
    assert re.search(rf'"{stem}[".]', script)


def test_saving_is_told():
    assert "PNG" in section("save_figure")
