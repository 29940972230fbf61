from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mikit.errors import InputError
from mikit.outputs import new_folder, require_free, write_text


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_text_is_written_whole_and_nothing_else(tmp_path):
    write_text(tmp_path / "deep" / "a.json", "one", overwrite=False)
    assert (tmp_path / "deep" / "a.json").read_text() == "one"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_text_that_exists_is_kept_unless_told(tmp_path):
    target = tmp_path / "a.json"
    write_text(target, "one", overwrite=False)
    with pytest.raises(InputError, match=r"a\.json exists already.*--overwrite"):
        write_text(target, "two", overwrite=False)
    assert target.read_text() == "one"
    write_text(target, "two", overwrite=True)
    assert target.read_text() == "two"
    with pytest.raises(InputError, match="is a folder"):
        write_text(tmp_path, "three", overwrite=True)


def test_a_write_that_fails_leaves_the_old_text(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    write_text(target, "one", overwrite=False)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(target, "two", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert target.read_text() == "one"


def test_a_folder_gets_its_name_at_the_end(tmp_path):
    target = tmp_path / "runs" / "one"
    with new_folder(target, overwrite=False) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("content")
        assert not target.exists()
    assert (target / "deep" / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["one"]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    def fill_and_fail():
        with new_folder(tmp_path / "one", overwrite=False) as folder:
            (folder / "file").write_text("content")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_kept_unless_told(tmp_path):
    target = tmp_path / "one"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(InputError, match="exists already"), new_folder(target, overwrite=False):
        pytest.fail("the block must not run")
    with pytest.raises(ZeroDivisionError), new_folder(target, overwrite=True):
        raise ZeroDivisionError
    assert (target / "old").read_text() == "old"
    with new_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "one"

    def be_overtaken():
        with new_folder(target, overwrite=False):
            target.mkdir()
            (target / "theirs").write_text("theirs")

    with pytest.raises(InputError, match="exists already"):
        be_overtaken()
    assert (target / "theirs").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_leftovers_of_killed_runs_are_removed_and_those_of_living_ones_kept(tmp_path):
    dead = tmp_path / f".one.{dead_pid()}.partial"
    living = tmp_path / f".one.{os.getppid()}.partial"
    other = tmp_path / f".two.{dead_pid()}.partial"
    for folder in (dead, living, other):
        folder.mkdir()
    with new_folder(tmp_path / "one", overwrite=False):
        pass
    assert not dead.exists()
    assert living.exists()
    assert other.exists()


def test_a_link_that_leads_nowhere_counts_as_existing(tmp_path):
    (tmp_path / "one").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists already"):
        require_free(tmp_path / "one", overwrite=False)
    with new_folder(tmp_path / "one", overwrite=True):
        pass
    assert (tmp_path / "one").is_dir()
    assert not (tmp_path / "one").is_symlink()


def test_a_file_on_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is not a folder"):
        require_free(tmp_path / "file" / "one", overwrite=False)
