"""Peers that are not here, and peers in an interpreter of their own."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mikit.bench import whole
from mikit.bench.cases import CASES, Candidate
from mikit.bench.interpreters import Interpreters, read_interpreters
from mikit.bench.peers import MissingError, formula
from mikit.bench.speed import Settings, measure_speed
from mikit.errors import InputError

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


@pytest.mark.parametrize("pair", ["NPEET", "nobody=/bin/sh", "NPEET=/nowhere/python", "NPEET="])
def test_peers_that_cannot_be_run_are_refused(pair: str) -> None:
    with pytest.raises(InputError, match="--peer"):
        read_interpreters([pair])
