"""Peers on the laws of known information, with stand-ins for what is not installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.feature_selection import mutual_info_regression
from typer.testing import CliRunner

from mikit.bench.accuracy import peers as accuracy_peers
from mikit.bench.accuracy.peers import PEER_ESTIMATORS, Comparison, PeerPlan, choose_peers, compare
from mikit.bench.accuracy.plot import draw_accuracy
from mikit.bench.accuracy.report import comparison_markdown, comparison_screen
from mikit.bench.accuracy.results import AccuracyReport
from mikit.bench.accuracy.run import Plan, choose_tasks, measure_accuracy
from mikit.bench.peers import interpreters
from mikit.bench.peers.interpreters import PEERS
from mikit.cli import app
from mikit.core.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
TASKS = choose_tasks(["bmi"], ["1v1-normal-0.75", "dense-2-2"])[:1] + choose_tasks(["bmi"], ["dense-2-2"])
OWN = Plan(tasks=TASKS, estimators=("gaussian",), sizes=(100,), seeds=(0, 1))


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """An interpreter whose site holds a stand-in for infomeasure; its faults are chosen by a file."""
    site = tmp_path / "site"
    package = site / "infomeasure"
    package.mkdir(parents=True)
    (site / "fault").write_text("")
    (package / "__init__.py").write_text(
        "import os, pathlib\n"
        "def mutual_information(x, y, approach):\n"
        "    print('noise on standard output')\n"
        "    file = pathlib.Path(__file__).parents[1].joinpath('fault')\n"
        "    fault = file.read_text()\n"
        "    if fault == 'end once': file.write_text(''); os._exit(5)\n"
        "    if fault == 'raise': raise ValueError('no number today')\n"
        "    if fault == 'end': os._exit(5)\n"
        "    if fault == 'nan': return float('nan')\n"
        "    return float(x.sum() + y.sum()) + (approach == 'ksg')\n"
    )
    metadata = site / "infomeasure-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: infomeasure\nVersion: 1.2\n")
    python = tmp_path / "python"
    start = f"import sys, runpy; sys.path.insert(0, {str(site)!r}); sys.argv = sys.argv[1:]; "
    python.write_text(
        f'#!/bin/sh\nshift\nexec {sys.executable} -c "{start}runpy.run_path(sys.argv[0], run_name=\'__main__\')" "$@"\n'
    )
    python.chmod(0o755)
    return python


def plan(python: Path, *names: str, folder: Path | None = None, jobs: int = 1) -> PeerPlan:
    own = replace(OWN, folder=folder, jobs=jobs)
    return PeerPlan(own, choose_peers(names or ["infomeasure"]), {"infomeasure": python})


def values(found: Comparison, title: str) -> list[float | None]:
    return [e.value for e in found.report.estimates if e.estimator == title]


def test_peers_get_the_same_rows_as_mikit(other_python: Path) -> None:
    found = compare(plan(other_python, "infomeasure", "scikit-learn"))
    samples = [task.draw(100, seed) for seed in (0, 1) for task in TASKS]
    assert values(found, "infomeasure KSG") == pytest.approx([x.sum() + y.sum() + 1 for x, y in samples])
    own = [mutual_info_regression(x, y[:, 0], random_state=s)[0] for s, (x, y) in enumerate(samples[::2])]
    assert values(found, "scikit-learn KSG") == [pytest.approx(own[0]), None, pytest.approx(own[1]), None]
    left_out = [e for e in found.report.estimates if e.state == "left out"]
    assert {e.reason for e in left_out} == {"it accepts one feature per side, and this task has 2 and 2"}
    assert found.versions["infomeasure"] == "1.2"
    assert not found.missing
    peer = next(e for e in found.report.estimates if e.estimator == "infomeasure KSG")
    assert (peer.verdict, peer.low, peer.flagged, peer.covered) == ("", None, False, None)
    assert peer.versions["peer version"] == "1.2"


def test_a_run_goes_on_and_faults_are_told(other_python: Path, tmp_path: Path) -> None:
    fault, folder = tmp_path / "site" / "fault", tmp_path / "kept"
    for text, reason in (
        ("raise", "ValueError: no number today"),
        ("nan", "infomeasure KSG returned nan"),
        ("end", "the process of infomeasure ended with code 5"),
    ):
        fault.write_text(text)
        found = compare(plan(other_python, folder=folder))
        peers = [e for e in found.report.estimates if e.estimator == "infomeasure KSG"]
        assert {(e.state, e.reason) for e in peers} == {("failed", reason)}
    fault.write_text("")
    whole = compare(plan(other_python, folder=folder, jobs=2))
    assert {e.state for e in whole.report.estimates} == {"measured"}
    fault.write_text("raise")
    again = compare(plan(other_python, folder=folder))
    assert again.report.estimates == whole.report.estimates
    gone = compare(replace(plan(other_python, folder=folder), pythons={}))
    assert gone.report.estimates == whole.report.estimates
    assert gone.versions == whole.versions
    assert [missing.name for missing in gone.missing] == ["infomeasure"]


def test_a_peer_that_ended_is_started_again(other_python: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "fault").write_text("end once")
    found = compare(plan(other_python))
    assert [e.state for e in found.report.estimates if e.estimator == "infomeasure KSG"] == [
        "failed",
        *["measured"] * 3,
    ]


def test_estimates_of_another_version_of_the_peer_are_refused(other_python: Path, tmp_path: Path) -> None:
    compare(plan(other_python, folder=tmp_path / "kept"))
    metadata = tmp_path / "site" / "infomeasure-1.2.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.2", "1.3"))
    with pytest.raises(InputError, match=r"estimated by infomeasure 1\.2, and this is 1\.3"):
        compare(plan(other_python, folder=tmp_path / "kept"))


def test_an_interrupt_ends_the_peers(other_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_accuracy(replace(OWN, folder=tmp_path / "kept"))  # So that no more processes are started for these.

    class Interrupted:
        def begin(self, stage: str, total: float | None = None) -> None:
            self.stage = stage

        def advance(self, by: float = 1.0) -> None:
            if self.stage.startswith("Running"):
                raise KeyboardInterrupt

    rooms, real = [], accuracy_peers.Interpreters
    monkeypatch.setattr(accuracy_peers, "Interpreters", lambda pythons: rooms.append(real(pythons)) or rooms[-1])
    with pytest.raises(KeyboardInterrupt):
        compare(plan(other_python, folder=tmp_path / "kept", jobs=2), Interrupted())
    assert len(list((tmp_path / "kept").glob("*infomeasure*"))) == 1
    assert len(rooms) == 2
    with pytest.raises(RuntimeError, match=r"ended|closed"):
        rooms[0].ask("infomeasure", {"measure": "information"})
    left = subprocess.run(["ps", "-ww", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in left.splitlines() if str(tmp_path) in line and not line.startswith("Z")]


def test_words_json_and_picture(other_python: Path) -> None:
    found = compare(plan(other_python, "infomeasure", "latentmi"))
    said, marked = comparison_screen(found), comparison_markdown(found)
    assert "infomeasure KSG  1.2" in said
    assert "latentmi was not run: this interpreter has no latentmi" in said
    assert "pip install latentmi 'numpy<2'" in said
    assert "--peer latentmi=ENV/bin/python" in marked
    verdicts = said.split("The verdict")[1].split("Suite")[0]
    assert "gaussian" in verdicts
    assert "infomeasure" not in verdicts
    content = json.loads(found.to_json())
    assert content["peers"]["estimators"][0]["version"] == "1.2"
    assert content["peers"]["missing"][0]["name"] == "latentmi"
    assert AccuracyReport.from_json(found.to_json()) == found.report
    assert len(draw_accuracy(found.report).axes) == 1


def test_choosing_peers() -> None:
    assert choose_peers() == PEER_ESTIMATORS
    assert {peer.peer for peer in PEER_ESTIMATORS} == set(PEERS)
    with pytest.raises(InputError, match="not a peer"):
        choose_peers(["nobody"])
    (task,) = choose_tasks(["own"], ["noisy-label"])
    assert "discrete" in choose_peers(["frites"])[0].not_for(task)


def test_the_command_writes_all_it_is_asked_for(
    other_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["bench", "peers", "bmi", "--task", "dense-2-2", "--estimator", "gaussian", "--n", "100", "--seeds", "0"]
    given += ["--only", "infomeasure", "--only", "NPEET", "--peer", f"infomeasure={other_python}", "--jobs", "1"]
    given += ["--out", "kept", "--json", "a.json", "--markdown", "a.md", "--plot", "a.png"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "NPEET was not run" in done.stdout
    assert "Running the peers, 0 of 1 known" in done.stderr
    found = AccuracyReport.from_json((tmp_path / "a.json").read_text())
    assert [e.estimator for e in found.estimates] == ["gaussian", "infomeasure KSG"]
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert (tmp_path / "a.md").read_text().startswith("**The peers**")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(app, [*given, "--overwrite"])
    assert "Running the peers, 1 of 1 known" in again.stderr


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--only", "nobody"], "is not a peer"),
        (["--peer", "nobody=/bin/sh"], "--peer"),
        (["--task", "x9"], "in its name"),
    ],
)
def test_misuse_is_a_sentence(wrong: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["bench", "peers", "bmi", *wrong])
    assert done.exit_code == 2
    assert sentence in done.stderr


def test_the_help_is_free_of_torch() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from mikit.cli import app\n"
        "assert '--only' in CliRunner().invoke(app, ['bench', 'peers', '--help']).output\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def _worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("worker", interpreters._WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_worker_knows_the_same_peers() -> None:
    assert {name: distribution for name, (distribution, _) in _worker().PEERS.items()} == PEERS


def test_without_the_worker_the_command_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "_WORKER", tmp_path / "worker.py")
    done = CliRunner().invoke(app, ["bench", "peers", "bmi", "--task", "dense-2-2", "--n", "100", "--seeds", "0"])
    assert done.exit_code == 2
    assert "folder benchmarks/peers of mikit's source distribution" in done.stderr
    given = ["bench", "speed", "--case", "ksg", "--quick", "--peer", f"NPEET={sys.executable}"]
    assert "folder benchmarks/peers" in CliRunner().invoke(app, given).stderr


def test_the_worker_calls_what_is_installed_here() -> None:
    estimate = _worker().PEERS["scikit-learn"][1]()["KSG"]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 1))
    assert estimate(x, x + rng.standard_normal((500, 1)), 0) == pytest.approx(0.3466, abs=0.12)
