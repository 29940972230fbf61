"""``mikit distill``: the comparison it prints, killed and resumed runs, what it leaves for trace, and its refusals."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mikit.activations import ActivationStore
from mikit.cli import app
from mikit.distillation import random_stream
from mikit.experiments.summary import StudentSummary, table
from mikit.models import ResNet8

SHORT = ("--epochs", "2", "--teacher-epochs", "1", "--jobs", "1")


def mikit_run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in ("distill", *arguments)])


def refused(result, *said):
    """Exit code 2 and one line of whole sentences on standard error."""
    assert result.exit_code == 2, result.output
    line = next(line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert line.endswith(".")
    assert "Traceback" not in result.output
    for words in said:
        assert words in line
    return line


def told(folder):
    """Return the summary without what differs from call to call."""
    content = json.loads((folder / "summary.json").read_text())
    for one in content["students"]:
        del one["seconds"]
    return {name: content[name] for name in ("teacher_accuracy", "students", "settings")}


def curves(folder):
    """Return every line of every log, without times."""
    logs = sorted(folder.rglob("log.jsonl"))
    return {
        str(log.relative_to(folder)): [
            {name: value for name, value in json.loads(line).items() if name != "seconds"}
            for line in log.read_text().splitlines()
        ]
        for log in logs
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two seeds with stores, and what the command said."""
    folder = tmp_path_factory.mktemp("distill") / "run"
    result = mikit_run("--loss", "vid:3,hinton", "--seeds", "2", "--record", "--out", folder, *SHORT)
    assert result.exit_code == 0, result.output
    return folder, result


def test_the_table_holds_paired_gains_and_their_spread(finished):
    folder, result = finished
    students = {one["student"]: one for one in told(folder)["students"]}
    assert list(students) == ["alone", "vid:3", "hinton"]
    alone = np.array(students["alone"]["accuracies"])
    for name in ("vid:3", "hinton"):
        one = students[name]
        gains = np.array(one["accuracies"]) - alone
        assert one["gains"] == pytest.approx(gains.tolist())
        assert one["gain"] == pytest.approx(gains.mean())
        assert one["gain_sd"] == pytest.approx(gains.std(ddof=1))
        assert one["ahead"] == (gains > 0).sum()
        line = next(line for line in result.stdout.splitlines() if line.startswith(name))
        assert f"{100 * gains.mean():+.1f} ± {100 * gains.std(ddof=1):.1f}" in line
        assert f"{one['ahead']} of 2" in line
    assert "standard deviation over 2 seeds" in result.stdout
    assert {"curves.png", "curves.svg"} <= {path.name for path in folder.iterdir()}


def test_the_log_is_that_of_the_accuracies(finished):
    folder, _ = finished
    for one in told(folder)["students"]:
        for seed, accuracy in zip(one["seeds"], one["accuracies"], strict=True):
            name = f"{one['student'].replace(':', '-')}-seed{seed}"
            lines = curves(folder)[f"students/{name}/log.jsonl"]
            assert [line["epoch"] for line in lines] == [1, 2]
            assert lines[-1]["accuracy"] == accuracy
            assert len(lines[0]["terms"]) == {"alone": 0, "vid:3": 3, "hinton": 1}[one["student"]]


def test_the_networks_are_those_that_were_scored(finished):
    folder, _ = finished
    student = ResNet8(width=0.5)
    student.load_state_dict(load_file(folder / "networks" / "hinton-seed1.safetensors"))
    from mikit.datasets import digits
    from mikit.distillation import accuracy_on

    test = digits().test
    one = next(one for one in told(folder)["students"] if one["student"] == "hinton")
    assert accuracy_on(student, test.images, test.labels) == one["accuracies"][1]


def test_stores_are_ready_for_trace(finished, tmp_path):
    folder, result = finished
    store = ActivationStore.open(folder / "stores" / "vid-3-seed1")
    assert (store.network, store.seed, store.phases) == ("vid:3", 1, (0, 1, 2))
    assert store.layers == ResNet8.layers
    assert store.notes[2]["accuracy"] == next(
        one["accuracies"][1] for one in told(folder)["students"] if one["student"] == "vid:3"
    )
    assert f"mikit trace {folder / 'stores' / 'teacher'} " in result.stdout.replace("\n", " ")
    traced = CliRunner().invoke(
        app,
        [
            *("trace", str(folder / "stores" / "teacher"), str(folder / "stores" / "vid-3-seed1")),
            *("--out", str(tmp_path / "flow"), "--noise", "0.3", "--probe", "lda", "--reduce", "8", "--jobs", "1"),
        ],
    )
    assert traced.exit_code == 0, traced.output


def test_a_finished_run_is_only_told_again_and_takes_more_losses_and_seeds(finished):
    folder, _ = finished
    before = told(folder), curves(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("checkpoint.pt")}
    same = ("--seeds", "2", "--record", "--out", folder, *SHORT)
    assert mikit_run("--loss", "vid:3,hinton", *same).exit_code == 0
    assert (told(folder), curves(folder)) == before
    result = mikit_run("--loss", "vid:3,hinton,pkt", *same, "--json", "-")
    assert result.exit_code == 0, result.output
    assert [one["student"] for one in json.loads(result.stdout)["students"]] == ["alone", "vid:3", "hinton", "pkt"]
    assert told(folder)["students"][:3] == before[0]["students"]
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_identical_curves(tmp_path):
    arguments = ["--loss", "mimkd", "--seeds", "1", "--epochs", "4", "--teacher-epochs", "1", "--jobs", "1"]
    folder = tmp_path / "killed"
    log = folder / "students" / "mimkd-seed0" / "log.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", "from mikit.cli import main; main()", "distill", *arguments, "--out", str(folder)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not log.exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert len(log.read_text().splitlines()) < 4
    assert mikit_run(*arguments, "--out", folder).exit_code == 0
    assert mikit_run(*arguments, "--out", tmp_path / "whole").exit_code == 0
    assert curves(folder) == curves(tmp_path / "whole")
    assert told(folder) == told(tmp_path / "whole")


def test_a_teacher_from_a_file_teaches_at_once(finished, tmp_path):
    folder, _ = finished
    file = folder / "networks" / "teacher.safetensors"
    result = mikit_run("--loss", "hinton", "--seeds", "2", "--teacher", file, "--out", tmp_path / "run", *SHORT)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "run" / "teacher").exists()
    expected = told(folder)["students"]
    assert told(tmp_path / "run")["students"] == [one for one in expected if one["student"] in ("alone", "hinton")]
    from_checkpoint = ("--teacher", folder / "teacher" / "checkpoint.pt", "--out", tmp_path / "other", "--seeds", "1")
    assert mikit_run("--loss", "hinton", *from_checkpoint, *SHORT).exit_code == 0
    assert told(tmp_path / "other")["teacher_accuracy"] == told(folder)["teacher_accuracy"]


def test_images_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    parts = {"train": 24, "test": 12}
    arrays = {f"{part}_images": rng.integers(256, size=(n, 8, 8, 3), dtype=np.uint8) for part, n in parts.items()}
    np.savez(tmp_path / "own.npz", **arrays, **{f"{part}_labels": np.arange(n) % 3 for part, n in parts.items()})
    run = ("--data", tmp_path / "own.npz", "--out", tmp_path / "run", "--seeds", "1", *SHORT)
    result = mikit_run("--loss", "crd", *run, "--json", tmp_path / "own.json")
    assert result.exit_code == 0, result.output
    assert "One seed: no standard deviation." in result.stdout
    assert json.loads((tmp_path / "own.json").read_text())["students"][1]["gain_sd"] is None


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    run = ("--loss", "vid,mimkd,kd2m,flow,pkt,crd", "--seeds", "1", "--record", "--out", tmp_path / "run", *SHORT)
    result = mikit_run(*run, "--device", "cuda")
    assert result.exit_code == 0, result.output
    assert all(one["accuracy"] is not None for one in told(tmp_path / "run")["students"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_told(tmp_path):
    refused(mikit_run("--device", "cuda", "--out", tmp_path / "run"), "torch sees no CUDA device here")


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "distill_command.md").read_text()
    space = {}
    for part in page.split("```python\n")[1:]:
        exec(compile(part.split("```", 1)[0], "docs/distill_command.md", "exec"), space)
    assert [one.label for one in space["result"].students] == ["alone", "vid", "hinton"]
    assert (tmp_path / "run" / "summary.json").is_file()
    assert list(space["curve"].records[-1].terms)[-1] == "hinton"


def test_training_that_diverges_is_told_and_never_averaged(tmp_path):
    run = ("--out", tmp_path / "run", "--seeds", "1", *SHORT)
    result = mikit_run("--loss", "fitnet:1e38", *run)
    assert result.exit_code == 0, result.output
    assert "1 of 1 diverged" in result.stdout
    assert "diverged in epoch" in result.stdout
    assert not (tmp_path / "run" / "networks" / "fitnet-1e+38-seed0.safetensors").exists()
    lost = StudentSummary("vid", (0, 1), (0.5, None), (0.1, None), 1.0, ("It diverged.",))
    assert lost.accuracy is None
    assert table(("teacher", 0.9), [lost])[1][1][1] == "1 of 2 diverged"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--loss", "vdi"), ('no loss "vdi"', "Did you mean vid?")),
        (("--loss", "vid,"), ("an empty name",)),
        (("--loss", "vid,hinton,vid"), ("names vid twice",)),
        (("--loss", "vid:zero"), ('The weight "zero"',)),
        (("--pairs", "stge2:stage3"), ('no layer "stge2"', "Did you mean stage2")),
        (("--pairs", "stage2:"), ('no layer ""',)),
        (("--pairs", "pool,pool:pool"), ("names pool:pool twice",)),
        (("--loss", "attention", "--pairs", "stage2:pool"), ("between the layers stage2:pool", "feature maps")),
        (("--seeds", "0"), ("--seeds is 0",)),
        (("--epochs", "0"), ("--epochs is 0",)),
        (("--teacher-epochs", "0"), ("--teacher-epochs is 0",)),
        (("--per-class", "5000"), ("images, fewer than the 5000",)),
        (("--device", "tpu"), ('--device is "tpu"',)),
        (("--data", "missing.npz"), ("no file missing.npz",)),
        (("--teacher", "missing.pt"), ("no file missing.pt",)),
        (("--teacher", "torn.pt"), ("torn.pt cannot be read as weights", "pickled objects are not loaded")),
        (("--teacher", "evil.pt"), ("evil.pt cannot be read as weights",)),
        (("--teacher", "torn.safetensors"), ("torn.safetensors cannot be read",)),
        (("--teacher", "other.safetensors"), ('no "stem.0.weight"', "'weight'")),
        (("--teacher", "rgb.safetensors"), ("trained for 3 channels, but scikit-learn digits has 1",)),
        (("--teacher", "lost.safetensors"), ('"fc.bias" in lost.safetensors is not finite',)),
        (("--teacher", "part.safetensors"), ("do not fit a ResNet8 of width 0.25", "Missing key")),
    ],
)
def test_refusals(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.pt").write_bytes(b"torn")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    torch.save(ResNet8(width=0.25), tmp_path / "evil.pt")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file(ResNet8(channels=3, width=0.25).state_dict(), tmp_path / "rgb.safetensors")
    state = ResNet8(width=0.25, generator=random_stream(0, "weights")).state_dict()
    save_file({**state, "fc.bias": torch.full((10,), torch.nan)}, tmp_path / "lost.safetensors")
    save_file({name: state[name] for name in ("stem.0.weight", "fc.weight")}, tmp_path / "part.safetensors")
    before = sorted(path.name for path in tmp_path.iterdir())
    refused(mikit_run(*arguments, "--out", "run"), *said)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_of_another_run_is_refused(finished, tmp_path):
    folder, _ = finished
    before = told(folder), curves(folder)
    same = ("--loss", "vid:3", "--seeds", "2", "--record", "--out", folder, "--jobs", "1")
    line = refused(
        mikit_run(*same, "--epochs", "3", "--teacher-epochs", "2"),
        "another run of mikit distill: its --teacher-epochs is 1",
    )
    assert "epochs differ too" in line
    refused(mikit_run("--loss", "vid:3", "--out", folder, *SHORT), "its record is True, not False")
    assert (told(folder), curves(folder)) == before
    (tmp_path / "notes.txt").write_text("mine")
    refused(mikit_run("--out", tmp_path, *SHORT), "contains notes.txt but no distill.json")
    refused(mikit_run("--out", tmp_path, *SHORT, "--overwrite"), "contains notes.txt")
    (tmp_path / "file").write_text("mine")
    refused(mikit_run("--out", tmp_path / "file", *SHORT), "already exists")
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "file").unlink()
    (tmp_path / "distill.json").write_text("{")
    refused(mikit_run("--out", tmp_path, *SHORT), "cannot be read")
    (tmp_path / "distill.json").write_text("{}")
    refused(mikit_run("--out", tmp_path, *SHORT), "was not written by mikit distill")


def test_overwrite_begins_anew(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "students" / "hinton-seed0" / "checkpoint.pt").write_bytes(b"torn")
    run = ("--loss", "hinton", "--seeds", "1", "--out", tmp_path / "run", *SHORT)
    assert mikit_run(*run, "--overwrite").exit_code == 0
    assert not (tmp_path / "run" / "stores").exists()
    assert [one["student"] for one in told(tmp_path / "run")["students"]] == ["alone", "hinton"]


def test_a_torn_checkpoint_is_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "students" / "hinton-seed0" / "checkpoint.pt").write_bytes(b"torn")
    run = ("--loss", "hinton", "--seeds", "2", "--record", "--out", tmp_path / "run", *SHORT)
    refused(mikit_run(*run), "checkpoint.pt' cannot be read")
