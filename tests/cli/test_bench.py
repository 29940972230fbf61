from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from mikit.bench.speed.results import SpeedReport
from mikit.cli import app


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", "speed", *arguments])


def test_a_quick_run_writes_all_it_is_asked_for(tmp_path) -> None:
    files = ["--json", "s.json", "--markdown", "s.md", "--plot", "s.png"]
    given = ["--quick", "--case", "mmd2", "--repeats", "1", *files]
    done = run(*given)
    assert done.exit_code == 0, done.output
    report = SpeedReport.from_json((tmp_path / "s.json").read_text())
    assert {r.candidate for r in report.results} == {
        "mikit",
        "whole matrix",
        "whole matrix, lean",
        "torch.cdist",
        "geomloss",
    }
    assert all(r.gradient_error < 1e-4 for r in report.results if r.state == "measured")
    assert (tmp_path / "s.md").read_text().startswith("| case |")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert "mmd2, d=64, N = 256" in done.stdout
    assert "at most 0.40" in done.stdout
    again = run(*given)
    assert again.exit_code == 2
    assert "already exists" in again.stderr
    assert run(*given, "--overwrite").exit_code == 0


def test_json_on_standard_output_is_all_there_is() -> None:
    done = run("--case", "ksg", "--sizes", "64", "--repeats", "1", "--json", "-")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert {entry["size"] for entry in content["results"]} == {64}
    missing = {entry["candidate"]: entry for entry in content["results"] if entry["state"] == "missing"}
    assert "--peer benchmark-mi=" in missing["benchmark-mi"]["install"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--case", "nothing"], "no case"),
        (["--sizes", "many"], "whole numbers"),
        (["--sizes", "2"], "not a valid size"),
        (["--device", "tpu"], "cpu or cuda"),
        (["--peer", "NPEET=/nowhere/python"], "not a Python interpreter"),
        (["--plot", "speed.jpg"], ".png or .svg"),
        (["--repeats", "0"], "--repeats"),
        (["--markdown", "one", "--json", "one"], "different files"),
    ],
)
def test_misuse_is_exit_code_2_and_a_sentence(arguments: list[str], sentence: str) -> None:
    done = run("--quick", *arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused() -> None:
    done = run("--quick", "--device", "cuda")
    assert done.exit_code == 2
    assert "no CUDA device" in done.stderr


def test_the_help_comes_without_torch() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from mikit.cli import app\n"
        "assert 'speed' in CliRunner().invoke(app, ['bench', '--help']).output\n"
        "assert '--peer' in CliRunner().invoke(app, ['bench', 'speed', '--help']).output\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
