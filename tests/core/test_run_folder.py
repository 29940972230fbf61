"""A folder that one run owns, and its records."""

from __future__ import annotations

from pathlib import Path

import pytest

from mikit.core.errors import InputError
from mikit.core.files import Kind
from mikit.core.run_folder import RecordFiles, RunFolder

KIND = Kind("mikit test", "run.json", b'"mikit test"', frozenset({"run.json", "records"}))


def test_a_run_finds_its_folder_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", KIND)
    assert folder.entries() == []
    folder.path.mkdir()
    (folder.path / ".tmp-1-ab").write_text("unfinished")
    assert folder.entries() == []
    folder.describe({"noise": (0.1, 0.3), "runs": [1]})
    assert folder.entries() == ["run.json"]
    assert folder.stored() == {"made_by": "mikit test", "schema_version": 1, "noise": [0.1, 0.3], "runs": [1]}
    assert folder.difference({"noise": (0.1, 0.3), "runs": [1]}) == ""
    assert folder.difference({"noise": (0.1, 0.3)}, ignored=["runs"]) == ""


def test_another_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, KIND)
    folder.describe({"noise": 0.1, "folds": 5, "seed": 0})
    different = folder.difference({"noise": 0.3, "folds": 4, "seed": 0})
    assert "another run of mikit test: its noise is 0.1, not 0.3 (folds differ too)" in different
    assert "its reduce is None, not 2" in folder.difference({"noise": 0.1, "folds": 5, "seed": 0, "reduce": 2})


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "cannot be read"), ("[]", "not written by"), ("{}", "not written")]
)
def test_a_description_of_something_else_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    folder = RunFolder(tmp_path, KIND)
    folder.description.write_text(text)
    with pytest.raises(InputError, match=expected):
        folder.stored()
    assert expected in folder.difference({})


def test_records_are_read_back_and_cleared(tmp_path: Path) -> None:
    records = RecordFiles(tmp_path, ".npz")
    assert records.read("a") is None
    records.write("a", b"one")
    records.write("a", b"two")
    records.sync()
    (tmp_path / ".tmp-1-ab").write_text("unfinished")
    (tmp_path / "notes.txt").write_text("mine")
    assert records.read("a") == b"two"
    assert records.foreign() == ["notes.txt"]
    records.remove_unfinished()
    records.clear()
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]
