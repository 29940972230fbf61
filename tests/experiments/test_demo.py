from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mikit.activations import ActivationStore
from mikit.core.errors import InputError
from mikit.core.files import _host
from mikit.datasets import digits
from mikit.experiments import DemoSettings, run_demo, settings_for
from mikit.experiments.demo import _require_convergence, _student_run
from mikit.experiments.findings import describe_run
from mikit.experiments.training import train
from mikit.flow import Flow
from mikit.models import ResNet8

TINY = DemoSettings(
    seeds=(0, 1),
    teacher_epochs=2,
    teacher_phases=(0, 2),
    student_epochs=4,
    student_phases=(0, 4),
    noise=(0.3,),
    probe="lda",
)
NETWORKS = ("alone", "VID", "VID, pairing broken")


@pytest.fixture(scope="module")
def data():
    return digits()


class Progress:
    total, done, stages = 0.0, 0.0, ()

    def begin(self, stage, total):
        self.stages += (stage,)
        self.total += total or 0.0

    def advance(self, by):
        self.done += by

    def aside(self, stage):
        self.stages += (stage,)
        return contextlib.nullcontext(False)


@pytest.fixture(scope="module")
def progress():
    return Progress()


@pytest.fixture(scope="module")
def result(data, progress, tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("demo") / "out", data, TINY, jobs=1, stages=progress)


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setattr("mikit.experiments.demo._draw", lambda flow, folder: None)
    monkeypatch.setattr("mikit.experiments.demo._write_report", lambda flow, folder: None)


def stores_of(result):
    stores = [ActivationStore.open(path) for path in sorted((result.folder / "stores").iterdir())]
    return {(store.network, store.seed): store for store in stores}


def test_the_folder_holds_everything(result):
    folder = result.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "demo.json",
        "figures",
        "findings.txt",
        "flow",
        "networks",
        "report",
        "stores",
    ]
    figures = {path.name for path in (folder / "figures").iterdir()}
    stems = ("flow", "phases", "maps", "gap", "accuracy", "label-phases", "cka")
    assert figures == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    table = pd.read_csv(folder / "flow" / "flow.csv", keep_default_na=False)
    assert len(table) == len(pd.read_parquet(folder / "flow" / "flow.parquet")) == len(Flow.load(folder / "flow").frame)
    assert (folder / "findings.txt").read_text().splitlines() == list(result.lines)
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_all_settings_are_stored(result, data):
    content = json.loads((result.folder / "demo.json").read_text())
    stored = {key: tuple(value) if isinstance(value, list) else value for key, value in content["settings"].items()}
    assert DemoSettings(**stored) == TINY
    assert content["data"] == {"name": "scikit-learn digits", "train": 797, "test": 1000, "classes": 10}
    assert content["findings"] == list(result.lines)
    assert {"mikit", "torch", "numpy"} <= set(content["versions"])
    assert [(run["network"], run["seed"]) for run in content["runs"]] == [
        ("teacher", 0),
        *((network, seed) for network in NETWORKS for seed in (0, 1)),
    ]
    assert all((result.folder / run["store"]).is_dir() for run in content["runs"])


def test_nothing_was_trained_on_what_is_measured(result, data):
    for (network, seed), store in stores_of(result).items():
        trained = data.train if network == "teacher" else data.train.per_class(TINY.per_class, seed=seed)
        assert np.array_equal(np.sort(store.training_ids), np.sort(trained.ids))
        for phase in store.phases:
            assert np.array_equal(store.ids(phase), data.test.ids)
        assert np.array_equal(store.labels_for(data.test.ids), data.test.labels.numpy())
        assert store.layers == ResNet8.layers


def test_students_of_one_seed_start_alike_and_part(result):
    stores = stores_of(result)
    for seed in (0, 1):
        for layer in ResNet8.layers:
            alone, taught, broken = (stores[network, seed].read(layer, 0) for network in NETWORKS)
            assert np.array_equal(alone, taught)
            assert np.array_equal(alone, broken)
            last = [stores[network, seed].read(layer, 4) for network in NETWORKS]
            assert not np.allclose(last[0], last[1])
            assert not np.allclose(last[1], last[2])
    assert not np.array_equal(stores["alone", 0].read("fc", 0), stores["alone", 1].read("fc", 0))


def test_stores_and_saved_networks_agree(result, data):
    for (network, seed), store in stores_of(result).items():
        name = "teacher" if network == "teacher" else store.path.name
        model = ResNet8(width=TINY.teacher_width if network == "teacher" else TINY.student_width)
        model.load_state_dict(load_file(result.folder / "networks" / f"{name}.safetensors"))
        with torch.no_grad():
            logits = model.eval()(data.test.images)
        phase = store.phases[-1]
        np.testing.assert_allclose(store.read("fc", phase), logits.numpy(), atol=1e-4)
        right = float((logits.argmax(1) == data.test.labels).double().mean())
        assert store.notes[phase]["accuracy"] == pytest.approx(right, abs=1e-12), (network, seed)


@pytest.mark.slow
def test_the_run_repeats_itself_in_other_processes(result, data, tmp_path, without_pictures):
    again = run_demo(tmp_path / "again", data, TINY, jobs=2)
    first, second = (Flow.load(folder / "flow").frame for folder in (result.folder, again.folder))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert again.lines == result.lines


def test_training_leaves_the_global_state_alone(data, tmp_path):
    random, threads = torch.random.get_rng_state(), torch.get_num_threads()
    train(_student_run("alone", 0, TINY, tmp_path), data)
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_progress_adds_up(result, progress):
    assert progress.done == pytest.approx(progress.total)
    assert progress.total > 0
    assert [stage.split()[0] for stage in progress.stages] == ["Training", "Tracing", "Drawing"]


def test_an_existing_folder_is_refused_before_anything_runs(data, tmp_path, monkeypatch):
    monkeypatch.setattr("mikit.experiments.demo._train_all", lambda *_: pytest.fail("it must not train"))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="already exists"):
        run_demo(tmp_path / "out", data, TINY)


def test_a_run_that_fails_leaves_nothing(data, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no")

    monkeypatch.setattr("mikit.experiments.demo._traced", fail)
    brief = {"teacher_epochs": 1, "teacher_phases": (0, 1), "student_epochs": 1, "student_phases": (0, 1)}
    with pytest.raises(RuntimeError, match="no"):
        run_demo(tmp_path / "out", data, dataclasses.replace(TINY, seeds=(0,), **brief), jobs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_report(tmp_path):
    script = """
        import pathlib, sys
        from mikit.datasets import digits
        from mikit.experiments import run_demo, settings_for
        run_demo(pathlib.Path(sys.argv[1]), digits(), settings_for(digits()), jobs=1)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "out")])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial/stores/teacher")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = [path.name for path in tmp_path.iterdir()]
    assert left == [f".out.{_host()}.{process.pid}.partial"]


def test_divergence_is_told_in_a_sentence(data, tmp_path):
    wild = dataclasses.replace(TINY, student_rate=1e30, clip=1e30)
    result = train(_student_run("alone", 0, wild, tmp_path), data)
    with pytest.raises(InputError, match=r'"alone" with seed 0 diverged in epoch \d'):
        _require_convergence(result)
    with pytest.raises(InputError, match=r"diverged in epoch \d"):
        run_demo(tmp_path / "run", data, wild, jobs=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (1, 1)}, "no duplicates"),
        ({"student_phases": (0, 4, 2)}, "must ascend"),
        ({"student_phases": (0, 2)}, "last epoch, 4"),
        ({"teacher_phases": ()}, "teacher_phases"),
    ],
)
def test_impossible_settings_are_refused(changed, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(TINY, **changed)


def test_data_too_small_to_measure_are_refused_before_training():
    with pytest.raises(InputError, match="797 test images"):
        settings_for(digits(train=1000))
    with pytest.raises(InputError, match="at least 1"):
        settings_for(digits(), seeds=0)


def flow_frame(*, alone, vid, broken, accuracy=(0.8, 0.9, 0.7), first=1.0):
    """A frame with one value per seed for each network, in all quantities the findings read."""
    rows = []

    def add(network, role, seed, phase, quantity, value, layer="", index=-1, noise=np.nan, **more):
        rows.append(
            {
                "network": network,
                "role": role,
                "seed": seed,
                "phase": phase,
                "quantity": quantity,
                "value": value,
                "layer": layer,
                "layer_index": index,
                "teacher_layer": layer if quantity == "recovered_share" else "",
                "noise": noise,
                "untrained": 0.1,
                "null": -0.0001,
                "verdict": "trustworthy",
                "reasons": "",
            }
            | more
        )

    add("teacher", "teacher", 0, 9, "accuracy", 0.99)
    add("teacher", "teacher", 0, 9, "label_information", 2.2, "pool", 4)
    add("teacher", "teacher", 0, 9, "label_information", first, "stem", 0)
    for network, values, score in zip(NETWORKS, (alone, vid, broken), accuracy, strict=True):
        for seed, value in enumerate(values):
            add(network, "student", seed, 0, "recovered_share", 0.1, "stage3", 3, 0.3)
            add(network, "student", seed, 8, "recovered_share", value, "stage3", 3, 0.3)
            add(network, "student", seed, 8, "label_information", 2 * value, "pool", 4)
            add(network, "student", seed, 8, "accuracy", score, verdict="caution", reasons="few rows; odd")
    return pd.DataFrame(rows)


def lines(**values):
    return describe_run(flow_frame(**values), label_entropy=2.3, per_class=5, images=1000)


def test_findings_say_what_happened_when_vid_helps():
    accuracy, labels, share, control, trust = lines(alone=(0.3, 0.4), vid=(0.6, 0.7), broken=(0.2, 0.1))
    assert "teacher 99.0 %" in accuracy
    assert "10.0 points more on average, and more in 2 of 2 runs" in accuracy
    assert "2.20 in the teacher, 0.70 (0.60 to 0.80) in the student alone and 1.30 (1.20 to 1.40) with VID" in labels
    assert "saturated" not in labels
    assert "35 (30 to 40) % alone and 65 (60 to 70) % with VID (untrained 10 %, samples permuted 0 %" in share
    assert "30 points more on average, and more in 2 of 2 runs, and in every run from epoch 8 of 8 on" in share
    assert "below VID in 2 of 2 runs, so the gain of VID here depends on the right pairing" in control
    assert "Of 27 values in the table, 21 trustworthy, 6 caution, 0 unreliable" in trust
    assert 'The most common reason for a flag: "few rows"' in trust


def test_findings_say_the_opposite_when_the_opposite_happened():
    accuracy, labels, share, control, _ = lines(
        alone=(0.6, 0.7), vid=(0.3, 0.4), broken=(0.5, 0.5), accuracy=(0.9, 0.8, 0.85), first=2.2
    )
    assert "10.0 points less on average, and less in 2 of 2 runs" in accuracy
    assert "nats less on average, and less in 2 of 2 runs" in labels
    assert "saturated" in labels
    assert "30 points less on average, and less in 2 of 2 runs" in share
    assert "in every run from" not in share
    assert "below VID in 0 of 2 runs, so here the wrong pairing does better than the right one" in control


def test_findings_do_not_decide_what_the_run_does_not():
    accuracy, _, share, control, _ = lines(
        alone=(0.3, 0.5), vid=(0.4, 0.4), broken=(0.39, 0.41), accuracy=(0.9, 0.9, 0.9)
    )
    assert "no difference on average (more in 0 of 2 runs, less in 0)" in accuracy
    assert "no difference on average (more in 1 of 2 runs, less in 1)" in share
    assert "below VID in 0 and 1 of 2 runs, so this run does not show whether the pairing matters" in control


@pytest.mark.parametrize(
    ("alone", "accuracy"),
    [((0.9, 0.9), (0.8, 0.9, 0.7)), ((0.1, 0.1), (0.95, 0.9, 0.7)), ((0.1, 0.6), (0.8, 0.9, 0.7))],
)
def test_findings_credit_the_pairing_only_with_a_gain_that_is_there(alone, accuracy):
    control = lines(alone=alone, vid=(0.5, 0.5), broken=(0.3, 0.3), accuracy=accuracy)[3]
    assert "so the wrong pairing is worse than the right one" in control
    assert "gains" not in control


def test_findings_of_a_single_seed_show_no_spread():
    accuracy, _, share, _, _ = lines(alone=(0.3,), vid=(0.6,), broken=(0.2,))
    assert " to " not in accuracy
    assert "more in 1 of 1 run" in accuracy
    assert "30 % alone and 60 % with VID" in share


def test_the_real_run_has_five_findings(result):
    assert len(result.lines) == 5
    assert all(line.endswith(".") and "nan" not in line for line in result.lines)
