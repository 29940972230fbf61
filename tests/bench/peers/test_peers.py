"""Peers that are not here, and peers in an interpreter of their own."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mikit.bench.peers import interpreters
from mikit.bench.peers.interpreters import Interpreters, read_interpreters
from mikit.bench.peers.peers import MissingError, formula
from mikit.bench.speed import reference as whole
from mikit.bench.speed.cases import CASES, Candidate
from mikit.bench.speed.run import Settings, measure_speed
from mikit.core.errors import InputError

CASE = next(case for case in CASES if (case.name, case.variant) == ("ksg", "d=1, 1"))


def test_a_formula_that_mikit_lacks_is_missing() -> None:
    with pytest.raises(MissingError, match="no formula of_tomorrow"):
        formula("of_tomorrow")


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """An interpreter whose site holds a stand-in for NPEET: its estimate burns time and prints."""
    package = tmp_path / "site" / "npeet"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "entropy_estimators.py").write_text(
        "import os, time\n"
        "def mi(x, y, k, base):\n"
        "    print('noise on standard output')\n"
        "    if k == 7: raise ValueError('no seven')\n"
        "    if k == 9: os._exit(5)\n"
        "    end = time.process_time() + 0.03\n"
        "    while time.process_time() < end: pass\n"
        "    return float(x.sum() + y.sum()) + int(os.environ['OMP_NUM_THREADS'])\n"
    )
    metadata = tmp_path / "site" / "npeet-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: npeet\nVersion: 1.2\n")
    python = tmp_path / "python"
    start = f"import sys, runpy; sys.path.insert(0, {str(tmp_path / 'site')!r}); sys.argv = sys.argv[1:]; "
    python.write_text(
        f'#!/bin/sh\nshift\nexec {sys.executable} -c "{start}runpy.run_path(sys.argv[0], run_name=\'__main__\')" "$@"\n'
    )
    python.chmod(0o755)
    return python


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_a_peer_in_an_interpreter_of_its_own(other_python: Path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    case = replace(
        CASE,
        sizes=(32,),
        candidates=(
            Candidate("mikit", lambda _: partial(whole.ksg, k=3, chebyshev=True, equal_spaces=True)),
            Candidate("NPEET", None),
        ),
    )
    found = measure_speed([case], Settings(sizes=(32,), repeats=2, pythons={"NPEET": other_python}))
    peer = next(r for r in found.results if r.candidate == "NPEET")
    assert peer.state == "measured", peer.reason
    assert found.versions["NPEET"] == "1.2"
    assert len(peer.samples) == 2
    assert peer.timing.median == pytest.approx(0.03, abs=0.015)
    x, y = case.draw(32, 0).inputs
    assert peer.value == pytest.approx(float(x.double().sum() + y.double().sum()) + 1, rel=1e-9)

    with Interpreters({"NPEET": other_python}) as peers:
        paths = dict(zip("xy", peers.files(x, y), strict=True))
        with pytest.raises(RuntimeError, match="ValueError: no seven"):
            peers.ask("NPEET", {**paths, "k": 7, "measure": "time"})
        assert peers.ask("NPEET", {**paths, "k": 3, "measure": "time"})["seconds"] > 0.02
        with pytest.raises(RuntimeError, match="ended with code 5"):
            peers.ask("NPEET", {**paths, "k": 9, "measure": "time"})
        with pytest.raises(RuntimeError, match=r"has ended|ended with code 5"):
            peers.ask("NPEET", {**paths, "k": 3, "measure": "time"})
    assert not Path(paths["x"]).exists()


def test_an_interpreter_without_the_peer_is_missing(tmp_path: Path) -> None:
    with Interpreters({"benchmark-mi": Path(sys.executable)}) as peers:
        for _ in range(2):
            with pytest.raises(MissingError, match="has no benchmark-mi") as caught:
                peers.worker("benchmark-mi")
        assert "--peer benchmark-mi=" in caught.value.install
        assert peers.versions == {}
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\nexit 3\n")
    silent.chmod(0o755)
    with Interpreters({"NPEET": silent}) as peers, pytest.raises(MissingError, match="ended with code 3"):
        peers.worker("NPEET")


def _script(folder: Path, text: str) -> Path:
    """An executable that is no worker; its standard input is fed as one's is."""
    path = folder / "python"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def _running(marker: str) -> list[str]:
    """The command lines of the processes that carry the marker."""
    found = subprocess.run(["ps", "-ww", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if marker in line and not line.startswith("Z")]


def _gone(*markers: str) -> bool:
    """Whether no process carries a marker; what was killed may take a moment to leave the list."""
    end = time.monotonic() + 3
    while any(_running(marker) for marker in markers):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
ANSWERS = 'echo \'{"version": "1"}\'\n'


@POSIX
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("echo rubbish\nsleep 30", "wrote 'rubbish', which is not an answer"),
        ("echo '[1, 2]'\nsleep 30", "which is not an answer"),
        ("echo '{}'\nsleep 30", "did not report its version"),
        ("printf '\\377\\376\\n'\nsleep 30", "which is not an answer"),
        ("sleep 30 &\nexit 4", "ended with code 4"),
        ("sleep 30", "took longer than 0.5 s"),
        ("exec 1>&-\nsleep 30", "closed its output"),
    ],
)
def test_what_is_no_worker_is_missing_and_ended(tmp_path: Path, monkeypatch, text: str, sentence: str) -> None:
    monkeypatch.setattr(interpreters, "_SECONDS_TO_START", 0.5)
    monkeypatch.setattr(interpreters, "_SECONDS_TO_END", 0.3)
    duration = f"30.{uuid.uuid4().int % 10**9:09d}"
    python = _script(tmp_path, text.replace("sleep 30", f"sleep {duration}"))
    start = time.monotonic()
    with Interpreters({"NPEET": python}) as peers:
        for _ in range(3):  # As one case after another asks for it; it is started once.
            with pytest.raises(MissingError, match="does not run the peer") as caught:
                peers.worker("NPEET")
            assert sentence in caught.value.reason
            assert _gone(duration, str(python))
    assert time.monotonic() - start < 20  # and not the 30 that it sleeps


@POSIX
def test_a_file_that_is_no_program_is_missing(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_bytes(b"\x00\x01\x02\x03")
    python.chmod(0o755)
    with Interpreters({"NPEET": python}) as peers, pytest.raises(MissingError, match="does not run"):
        peers.worker("NPEET")


@POSIX
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("read line; sleep 30", "took longer than 0.5 s"),
        ("read line; echo rubbish; sleep 30", "wrote 'rubbish', which is not an answer"),
        ("read line; sleep 30 & exit 6", "ended with code 6"),
        ("sleep 30 & exit 7", "ended with code 7"),
    ],
)
def test_a_worker_that_fails_later_is_ended(tmp_path: Path, monkeypatch, text: str, sentence: str) -> None:
    monkeypatch.setattr(interpreters, "_SECONDS_TO_ANSWER", 0.5)
    monkeypatch.setattr(interpreters, "_SECONDS_TO_END", 0.3)
    duration = f"30.{uuid.uuid4().int % 10**9:09d}"
    python = _script(tmp_path, ANSWERS + text.replace("sleep 30", f"sleep {duration}"))
    start = time.monotonic()
    with Interpreters({"NPEET": python}) as peers:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=re.escape(sentence)):
                peers.ask("NPEET", {"measure": "time"})
            assert _gone(duration)
    assert _gone(duration, str(python))
    assert time.monotonic() - start < 20  # and not the 30 that it sleeps


@POSIX
@pytest.mark.parametrize("answer", ["{}", '{"value": "one"}', '{"value": 1.0, "seconds": NaN}', '{"value": NaN}'])
def test_an_answer_without_numbers_fails_the_row(tmp_path: Path, answer: str) -> None:
    python = _script(tmp_path, ANSWERS + f"while read line; do echo '{answer}'; done\n")
    case = replace(
        CASE,
        candidates=(
            Candidate("mikit", lambda _: partial(whole.ksg, k=3, chebyshev=True, equal_spaces=True)),
            Candidate("NPEET", None),
        ),
    )
    found = measure_speed([case], Settings(sizes=(32,), repeats=1, pythons={"NPEET": python}))
    own, peer = found.results
    assert own.state == "measured"
    assert peer.state == "failed"
    assert "returned nan" in peer.reason or "instead of" in peer.reason
    found.to_json()
    assert _gone(str(python))


@POSIX
def test_a_relative_interpreter_is_found_and_a_link_stays_one(tmp_path: Path, monkeypatch) -> None:
    target = _script(tmp_path, ANSWERS + "read line\n")
    (tmp_path / "py").symlink_to(target)
    monkeypatch.chdir(tmp_path)
    for given in ("./py", "py", str(tmp_path / "py")):
        pythons = read_interpreters([f"NPEET={given}"])
        assert pythons == {"NPEET": tmp_path / "py"}
        with Interpreters(pythons) as peers:
            peers.worker("NPEET")
            assert peers.versions == {"NPEET": "1"}
            assert len(_running(str(tmp_path))) == 1
        assert _gone(str(tmp_path))


def test_a_peer_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="given twice"):
        read_interpreters([f"NPEET={sys.executable}"] * 2)


@pytest.mark.parametrize("pair", ["NPEET", "nobody=/bin/sh", "NPEET=/nowhere/python", "NPEET="])
def test_peers_that_cannot_be_run_are_refused(pair: str) -> None:
    with pytest.raises(InputError, match="--peer"):
        read_interpreters([pair])
