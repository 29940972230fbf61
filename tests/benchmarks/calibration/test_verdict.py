"""The script that pools results of the benches into tables and pictures."""

from __future__ import annotations

import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mikit.bench.accuracy.results import AccuracyReport, Estimate
from mikit.core.errors import InputError

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "calibration" / "verdict.py"
ONE = Estimate(
    suite="bmi",
    law="one",
    half="develop",
    d_x=1,
    d_y=1,
    truth=1.0,
    truth_error=0.0,
    fault="",
    right_suffices=False,
    n=1000,
    seed=0,
    estimator="auto",
    state="measured",
    reason="",
    value=1.02,
    low=0.9,
    high=1.1,
    verdict="trustworthy",
    flags=(),
    chosen="KSG",
    seconds=1.0,
    versions={"mikit": "0", "torch": "0", "numpy": "0"},
)
FAR = replace(ONE, seed=1, value=1.5, low=1.4, high=1.6)
OTHERS = (
    replace(ONE, seed=2, value=1.5, verdict="caution"),
    replace(ONE, suite="traps", law="trap", fault="rows repeat", value=1.0),
    replace(ONE, suite="traps", law="endless", truth=math.inf, value=7.0),
    replace(ONE, estimator="peer KSG", value=1.1, low=None, high=None, verdict=""),
)


def write(path: Path, *estimates: Estimate) -> Path:
    path.write_text(AccuracyReport(estimates, "2026-01-01T00:00:00", {"processor": "none"}).to_json())
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_several_results_become_one_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path / "a.json", ONE, FAR), write(tmp_path / "b.json", FAR, *OTHERS)
    run(monkeypatch, *files, "--out", tmp_path / "out" / "verdict")
    text = (tmp_path / "out" / "verdict.md").read_text()
    assert "| **auto** (1 of 40 tasks) | **0.340** |  |  | measured here |" in text
    assert "| **peer KSG** (1 of 40 tasks) | **0.100** |" in text
    assert "| NWJ | > 10 | 1.261 | 0.130 | published |" in text
    assert "| all | auto | 1 of 3, 33% [6%, 79%] | 0 of 1, 0% [0%, 79%] | none | 0 of 1, 0% [0%, 79%] |" in text
    assert "| bmi | 1,000 | auto | 1 of 2, 50% [9%, 91%] | 2 of 3, 67% [21%, 94%] |" in text
    assert "Trustworthy and off: 3 estimates" in text
    assert "| bmi | one | 1,000 | auto | 1 of 3 | 1.000 | 1.500 | [1.400, 1.600] | KSG |" in text
    assert "| traps | trap | 1,000 | auto | 1 of 1 | 1.000 | 1.000 | [0.900, 1.100] | rows repeat |" in text
    content = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert content["verdicts"]["auto"]["off"] == 3
    assert [e["law"] for e in content["unflagged"]] == ["endless", "one", "trap"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "verdict_coverage.png",
        "verdict_errors_bmi.png",
        "verdict_errors_traps.png",
    ]


def test_results_that_contradict_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path / "a.json", ONE), write(tmp_path / "b.json", replace(ONE, value=2.0))
    with pytest.raises(InputError, match="another estimate of one"):
        run(monkeypatch, *files, "--out", tmp_path / "verdict")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(InputError, match=r"c\.json cannot be read"):
        run(monkeypatch, tmp_path / "c.json", "--out", tmp_path / "verdict")
    assert not list(tmp_path.glob("verdict*"))
