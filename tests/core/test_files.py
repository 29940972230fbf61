from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mikit.core import files as outputs
from mikit.core.errors import InputError
from mikit.core.files import DEMO, REPORT, TRACE, Kind, new_folder, require_free, write_text

KIND = Kind("mikit test", "mark.json", b"made by a test", frozenset({"mark.json", "deep", "file", "old", "new"}))


@pytest.fixture
def earlier(tmp_path):
    """A result of an earlier run."""
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "mark.json").write_text("made by a test")
    (folder / "old").write_text("old")
    return folder


def leftover(path, pid, middle=""):
    return path.with_name(f".{path.name}.{outputs._host()}.{pid}{middle}.partial")


def kept(path, said, kind=KIND, inputs=()):
    """Nothing is replaced, and the refusal comes before the block."""
    before = sorted(path.rglob("*"))
    with (
        pytest.raises(InputError, match=said) as refusal,
        new_folder(path, overwrite=True, kind=kind, inputs=inputs),
    ):
        pytest.fail("the block must not run")
    assert "\n" not in str(refusal.value)
    assert sorted(path.rglob("*")) == before


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
    with pytest.raises(InputError, match=r"a\.json already exists.*--overwrite"):
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
    with pytest.raises(OSError, match="No space") as failure:
        write_text(target, "two", overwrite=True)
    assert failure.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert target.read_text() == "one"


def test_a_folder_gets_its_name_at_the_end(tmp_path):
    target = tmp_path / "runs" / "one"
    with new_folder(target, overwrite=False, kind=KIND) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("content")
        assert not target.exists()
    assert (target / "deep" / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["one"]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    def fill_and_fail():
        with new_folder(tmp_path / "one", overwrite=False, kind=KIND) as folder:
            (folder / "file").write_text("content")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_kept_unless_told(tmp_path, earlier):
    target = earlier
    with pytest.raises(InputError, match="already exists"), new_folder(target, overwrite=False, kind=KIND):
        pytest.fail("the block must not run")
    with pytest.raises(ZeroDivisionError), new_folder(target, overwrite=True, kind=KIND):
        raise ZeroDivisionError
    assert (target / "old").read_text() == "old"
    with new_folder(target, overwrite=True, kind=KIND) as folder:
        (folder / "new").write_text("new")
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "one"

    def be_overtaken():
        with new_folder(target, overwrite=False, kind=KIND):
            target.mkdir()
            (target / "theirs").write_text("theirs")

    with pytest.raises(InputError, match="already exists"):
        be_overtaken()
    assert (target / "theirs").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_leftovers_of_killed_runs_are_removed_and_those_of_living_ones_kept(tmp_path):
    dead = leftover(tmp_path / "one", dead_pid())
    living = leftover(tmp_path / "one", os.getppid())
    other = leftover(tmp_path / "two", dead_pid())
    elsewhere = tmp_path / f".one.{outputs._host()}x.{dead_pid()}.partial"
    for folder in (dead, living, other, elsewhere):
        folder.mkdir()
    with new_folder(tmp_path / "one", overwrite=False, kind=KIND):
        pass
    assert not dead.exists()
    assert living.exists()
    assert other.exists()
    assert elsewhere.exists()


def test_a_link_that_leads_nowhere_counts_as_existing(tmp_path):
    (tmp_path / "one").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="already exists"):
        require_free(tmp_path / "one", overwrite=False)
    with new_folder(tmp_path / "one", overwrite=True, kind=KIND):
        pass
    assert (tmp_path / "one").is_dir()
    assert not (tmp_path / "one").is_symlink()


def test_a_file_on_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is not a folder"):
        require_free(tmp_path / "file" / "one", overwrite=False)


@pytest.mark.parametrize("kind", [KIND, TRACE, REPORT, DEMO])
def test_only_an_earlier_result_of_the_same_kind_is_replaced(tmp_path, kind):
    target = tmp_path / "one"
    target.mkdir()
    (target / "thesis.tex").write_text("precious")
    kept(target, "thesis.tex, which is not part", kind)
    (target / kind.marker).write_bytes(kind.signature)
    kept(target, "thesis.tex, which is not part", kind)
    (target / "thesis.tex").unlink()
    (target / kind.marker).write_text("of someone else")
    kept(target, f"contains no {kind.marker}", kind)
    (target / kind.marker).write_bytes(kind.signature)
    with new_folder(target, overwrite=True, kind=kind):
        pass
    assert list(target.iterdir()) == []
    with new_folder(target, overwrite=True, kind=kind) as folder:  # an empty folder holds nothing to lose
        (folder / kind.marker).write_bytes(kind.signature)
    assert [path.name for path in target.iterdir()] == [kind.marker]


def test_unfinished_files_of_mikit_are_no_strangers(earlier):
    (earlier / ".tmp-1-ab").write_text("")
    (earlier / ".deep.host.1.partial").mkdir()
    with new_folder(earlier, overwrite=True, kind=KIND):
        pass
    assert list(earlier.iterdir()) == []


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "one").write_text("precious")
    kept(tmp_path / "one", "it is a file")
    assert (tmp_path / "one").read_text() == "precious"


def test_inputs_and_the_folders_above_them_are_kept(tmp_path, earlier):
    kept(earlier, "it is .*one, which is an input", inputs=[earlier])
    kept(earlier, "it contains .*old, which is an input", inputs=[earlier / "old"])
    (tmp_path / "link").symlink_to(earlier)
    kept(earlier, "it is .*link, which is an input", inputs=[tmp_path / "link"])
    kept(tmp_path / "link", "it is .*one, which is an input", inputs=[earlier])
    (earlier / "deep").symlink_to(tmp_path)
    kept(earlier, "it contains .*deep, which is an input", inputs=[earlier / "deep"])
    assert (earlier / "old").read_text() == "old"
    with pytest.raises(InputError, match="which is an input"):
        require_free(earlier / "old", overwrite=True, inputs=[tmp_path / "link" / "old"])


@pytest.mark.parametrize("inside", ["", "deep"])
def test_the_current_folder_and_home_are_kept(tmp_path, earlier, monkeypatch, inside):
    (earlier / "deep").mkdir()
    relation = "contains" if inside else "is"
    with monkeypatch.context() as here:
        here.chdir(earlier / inside)
        kept(earlier, f"it {relation} the current folder")
        kept(Path(".." if inside else "."), f"it {relation} the current folder")
    monkeypatch.setenv("HOME", str(earlier / inside))
    kept(earlier, f"it {relation} the home folder")


def test_the_earlier_result_returns_when_the_exchange_fails(tmp_path, earlier, monkeypatch):
    replace = Path.replace

    def fail_once(self, target):
        if Path(target) == earlier and "replaced" not in self.name:
            raise OSError(5, "Input/output error", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_once)
    with pytest.raises(OSError, match="Input/output") as failure, new_folder(earlier, overwrite=True, kind=KIND):
        pass
    assert failure.value.filename == str(earlier)
    assert (earlier / "old").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_earlier_result_returns_after_a_kill_within_the_exchange(tmp_path):
    script = """
        import os, pathlib, sys
        from mikit.core.files import TRACE, new_folder
        replace = pathlib.Path.replace
        def killed(self, target):
            if "replaced" in str(target):
                replace(self, target)
            os.kill(os.getpid(), 9)
        pathlib.Path.replace = killed
        with new_folder(pathlib.Path(sys.argv[1]), overwrite=True, kind=TRACE) as folder:
            (folder / "flow.json").write_text("new")
    """
    target = tmp_path / "one"
    target.mkdir()
    (target / "flow.json").write_text('"mikit flow" old')
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(target)])
    assert not target.exists()
    with pytest.raises(InputError, match="already exists"), new_folder(target, overwrite=False, kind=TRACE):
        pytest.fail("the block must not run")
    assert (target / "flow.json").read_text() == '"mikit flow" old'
    with new_folder(target, overwrite=True, kind=TRACE) as folder:
        (folder / "flow.json").write_text("new")
    assert (target / "flow.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_what_a_living_run_replaces_is_left_to_it_and_what_was_replaced_goes(tmp_path, earlier):
    living = leftover(tmp_path / "two", os.getppid(), ".replaced")
    done = leftover(earlier, dead_pid(), ".replaced")
    for folder in (living, done):
        folder.mkdir()
    with new_folder(tmp_path / "two", overwrite=False, kind=KIND), new_folder(earlier, overwrite=True, kind=KIND):
        pass
    assert living.exists()
    assert not done.exists()


def test_a_place_that_takes_no_files_is_told_before_the_work(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(30, "Read-only file system", "temporary")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(InputError, match=r"a\.json cannot be made.*Read-only file system") as refusal:
        require_free(tmp_path / "a.json", overwrite=False)
    assert "temporary" not in str(refusal.value)
