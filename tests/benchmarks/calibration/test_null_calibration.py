"""The script on permutation p-values: what it keeps, and what it says of p-values that are known."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "calibration" / "null_calibration.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_uniform_steps_pass_and_others_do_not(script: dict[str, Any]) -> None:
    steps = np.random.default_rng(1).integers(1, 21, 400) / 20
    assert script["uniformity"](list(steps), 19) > 0.05
    assert script["uniformity"](list(np.round(20 * steps**2 + 0.5) / 20), 19) < 1e-6
    every = [step / 20 for step in range(1, 21)] * 20
    assert script["uniformity"](every, 19) > 0.5  # Against the continuous uniform they would lie half a step too high.


def test_a_run_goes_on_after_a_line_cut_short(script: dict[str, Any], tmp_path: Path) -> None:
    instrument = replace(script["SETTINGS"][0], rows=40, permutations=3)
    path = tmp_path / "kept" / "a.jsonl"
    whole = dict(script["measured"](path, instrument, "tied", 4))
    lines = path.read_text().splitlines(keepends=True)
    assert [json.loads(line)["seed"] for line in lines] == [0, 1, 2, 3]
    path.write_text("".join(lines[:2]) + lines[2][:9])
    assert dict(script["measured"](path, instrument, "tied", 4)) == whole
    assert script["known"](path) == whole
    path.write_text("".join(json.dumps({"seed": seed, "p_value": 0.5}) + "\n" for seed in range(4)))
    assert set(dict(script["measured"](path, instrument, "tied", 4)).values()) == {0.5}


def test_it_writes_a_table(script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laws = script["MARGINALS"]
    few = [replace(i, rows=60, permutations=3) for i in script["SETTINGS"][:1]]
    monkeypatch.setattr(
        sys, "argv", ["", "--runs", "20", "--kept", str(tmp_path / "kept"), "--out", str(tmp_path / "t")]
    )
    names = script["main"].__globals__
    monkeypatch.setitem(names, "SETTINGS", few)
    script["main"]()
    text = (tmp_path / "t.md").read_text()
    assert text.count("\n| Gaussian | ") == len(laws)
    assert "seeds 0 to 19" in text
    results = json.loads((tmp_path / "t.json").read_text())["results"]
    assert {len(r["p_values"]) for r in results} == {20}
    assert len(list((tmp_path / "kept").iterdir())) == len(laws)
