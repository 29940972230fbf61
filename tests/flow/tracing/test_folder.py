"""A trace into a folder: killed and gone on with, refused to others, the same by threads, processes and a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

import mikit.flow.tracing.snapshots as snapshots
from mikit import ActivationStore, Flow, InputError, trace
from mikit.flow.tracing.records import Records, record_key
from mikit.flow.tracing.workers import coarse_to_fine

N = 300
IDS = np.arange(N)
LABELS = IDS % 3
CHOSEN = {"labels": LABELS, "probe": "lda", "noise": [0.1, 0.3]}
KILLING = Path(__file__).parents[3] / "benchmarks" / "costs" / "trace_resume.py"


def _layers(seed: int, phase: int, widths: tuple[int, ...]) -> dict[str, np.ndarray]:
    source = np.random.default_rng(0).standard_normal((N, 6)) + LABELS[:, None]
    own = np.random.default_rng([seed, phase])
    return {
        f"layer{i}": np.tanh(source[:, :width]) + own.standard_normal((N, width)) / (1 + phase)
        for i, width in enumerate(widths)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stores")
    ActivationStore(root / "t", network="teacher").append(_layers(9, 5, (6, 4, 3)), ids=IDS, phase=5)
    for seed in (0, 1):
        store = ActivationStore(root / f"s{seed}", network="student", seed=seed)
        for phase in range(5):
            store.append(_layers(seed, phase, (4, 3, 2)), ids=IDS, phase=phase)
    return root


def _stores(folder: Path) -> tuple[ActivationStore, list[ActivationStore]]:
    return ActivationStore.open(folder / "t"), [ActivationStore.open(folder / f"s{seed}") for seed in (0, 1)]


@pytest.fixture(scope="module")
def flow(folder: Path) -> Flow:
    return trace(*_stores(folder), **CHOSEN)


def _same(found: Flow, expected: Flow) -> None:
    pd.testing.assert_frame_equal(found.frame, expected.frame, check_exact=True)


def _killed(folder: Path, *given: str) -> list[dict[str, object]]:
    """Return what the script that kills tracing processes saw, in a process of its own."""
    command = [sys.executable, KILLING, *given, "--folder", folder, "--out", folder / "table"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return json.loads((folder / "table.json").read_text())["runs"]


def test_a_killed_trace_goes_on_and_gives_the_same_table(tmp_path) -> None:
    runs = _killed(tmp_path, "--runs", "3", "--small")
    assert len(runs) == 3
    assert [run["identical"] for run in runs] == [True] * 3
    assert [run["unreadable"] for run in runs] == [0] * 3
    assert all(run["repeated"] <= run["kills"] for run in runs)
    assert any(0 < run["recorded"] < run["measurements"] for run in runs), "no kill came in the middle"


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path) -> None:
    runs = _killed(tmp_path, "--runs", "6")
    assert [(run["identical"], run["unreadable"]) for run in runs] == [(True, 0)] * 6  # the script does twenty
    assert all(run["repeated"] <= run["kills"] for run in runs)


def test_going_on_measures_nothing_twice_and_further_phases_only_themselves(folder, flow, tmp_path, monkeypatch):
    made: list[str] = []
    fetch = Records.fetch
    monkeypatch.setattr(
        Records, "fetch", lambda self, key, measure: fetch(self, key, lambda: made.append(key) or measure())
    )
    out = tmp_path / "run"
    teacher, students = _stores(folder)
    trace(teacher, students[:1], **CHOSEN, out=out)
    # Three layers of the teacher (information and factor), fifteen of the student (information and three pairs each).
    assert len(made) == 3 * 2 + 15 * (1 + 3)
    _same(trace(teacher, students[:1], **CHOSEN, out=out), Flow.load(out))
    assert len(made) == 66
    _same(trace(teacher, students, **CHOSEN, out=out), flow)
    assert len(made) == 66 + 60
    with pytest.raises(InputError, match=r'contains the student "student" \(seed 1\), which this trace leaves out'):
        trace(teacher, students[:1], **CHOSEN, out=out)


def test_other_settings_are_refused_until_they_may_replace_it(folder, tmp_path) -> None:
    out = tmp_path / "run"
    teacher, students = _stores(folder)
    first = trace(teacher, students[0], noise=0.3, phases=[4], out=out)
    (out / "report").mkdir()
    with pytest.raises(InputError, match=r"its noise is \[0.3\], not \[0.1\]\. Choose another folder"):
        trace(teacher, students[0], noise=0.1, phases=[4], out=out)
    _same(Flow.load(out), first)
    second = trace(teacher, students[0], noise=0.1, phases=[4], out=out, overwrite=True)
    _same(Flow.load(out), second)
    assert not (out / "report").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "paper.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"paper\.tex, which is not part"):
            trace(teacher, students[0], noise=0.1, out=tmp_path / "other", overwrite=overwrite)
    with pytest.raises(InputError, match=r"it is .*, which is an input"):
        trace(teacher, students[0], noise=0.1, out=folder / "t", overwrite=True)


def test_a_record_that_was_changed_is_refused(folder, tmp_path) -> None:
    out = tmp_path / "run"
    teacher, students = _stores(folder)
    trace(teacher, students[0], noise=0.3, phases=[4], out=out)
    record = min((out / "records").glob("*.npz"))
    record.write_bytes(record.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"is damaged .* Remove this file"):
        trace(teacher, students[0], noise=0.3, phases=[4], out=out)


def test_a_key_holds_all_that_decides() -> None:
    one = record_key("pair", contents=["a", "b"], rows="r", noise=[0.3])
    assert one == record_key("pair", rows="r", noise=[0.3], contents=["a", "b"])
    others = [{"contents": ["b", "a"]}, {"rows": "q"}, {"noise": [0.3, 1.0]}]
    keys = {record_key("pair", **{"contents": ["a", "b"], "rows": "r", "noise": [0.3], **other}) for other in others}
    assert len(keys | {one, record_key("factor", contents=["a", "b"], rows="r", noise=[0.3])}) == 5


def test_two_traces_into_one_folder_are_refused(folder, tmp_path) -> None:
    from mikit.core.files import locked

    out = tmp_path / "run"
    teacher, students = _stores(folder)
    (out / "records").mkdir(parents=True)
    with locked(out / "records" / ".lock", out), pytest.raises(InputError, match="Another process is tracing into"):
        trace(teacher, students[0], noise=0.3, phases=[4], out=out)


def test_workers_do_not_change_a_digit(folder, flow, tmp_path) -> None:
    for jobs in (2, 4):
        _same(trace(*_stores(folder), **CHOSEN, jobs=jobs), flow)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        _same(trace(*_stores(folder), **CHOSEN, out=tmp_path / "run"), flow)


@pytest.mark.slow
def test_processes_do_not_change_a_digit(folder, flow, tmp_path) -> None:
    for jobs in (1, 2, 4):
        _same(trace(*_stores(folder), **CHOSEN, jobs=jobs, backend="loky", out=tmp_path / str(jobs)), flow)
    _same(trace(*_stores(folder), **CHOSEN, jobs=2, backend="loky"), flow)


@pytest.mark.slow
def test_a_cluster_of_two_processes(folder, flow, tmp_path) -> None:
    distributed = pytest.importorskip("dask.distributed", reason="dask is missing; install the extra cluster")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cluster's own
        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as two,
            distributed.Client(two),
        ):
            with pytest.raises(InputError, match="share what they measure through a folder"):
                trace(*_stores(folder), **CHOSEN, backend="dask")
            _same(trace(*_stores(folder), **CHOSEN, backend="dask", out=tmp_path / "run"), flow)


@pytest.mark.slow
def test_two_workers_of_ray(folder, flow, tmp_path) -> None:
    ray = pytest.importorskip("ray", reason="ray is missing; pip install ray")
    from ray.util.joblib import register_ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cluster's own
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            register_ray()
            with pytest.raises(InputError, match="share what they measure through a folder"):
                trace(*_stores(folder), **CHOSEN, backend="ray", jobs=2)
            _same(trace(*_stores(folder), **CHOSEN, backend="ray", jobs=2, out=tmp_path / "run"), flow)
        finally:
            ray.shutdown()


def test_the_teacher_is_factored_once(folder, monkeypatch) -> None:
    widths: list[int] = []
    factor = snapshots.factor_layer
    monkeypatch.setattr(
        snapshots, "factor_layer", lambda rows, parts, device: widths.append(rows.shape[1]) or factor(rows, parts)
    )
    trace(*_stores(folder), noise=0.3)
    assert sorted(widths) == sorted([6, 4, 3] + [4, 3, 2] * 5 * 2)
    assert not snapshots._cache


def test_what_the_budget_leaves_out_is_in_the_table(folder, flow, tmp_path, monkeypatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("mikit.flow.tracing.workers.time.monotonic", lambda: float(next(clock)))
    part = trace(*_stores(folder), **CHOSEN, out=tmp_path / "run", budget=0.2)
    keys = ["network", "seed", "phase", "layer", "teacher_layer", "quantity", "noise"]
    pd.testing.assert_frame_equal(part.frame[keys], flow.frame[keys])
    left = part.frame["verdict"].eq("skipped")
    assert 0 < left.sum() < len(left)
    assert part.frame.loc[left, "value"].isna().all()
    assert part.frame.loc[left, "reasons"].str.contains("budget of 0.2 minutes").all()
    same = ["unit", "kind", "probe", "n", "d_x", "d_y", "teacher_layer_index", "readout"]
    pd.testing.assert_frame_equal(part.frame.loc[left, same], flow.frame.loc[left, same])
    done = part.frame.loc[~left & part.frame["role"].eq("student"), "phase"]
    assert set(done.unique()) == {0, 4}
    assert "skipped" in str(part)
    monkeypatch.undo()
    _same(trace(*_stores(folder), **CHOSEN, out=tmp_path / "run"), flow)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 31])
def test_coarse_to_fine_names_all_once(count) -> None:
    assert sorted(coarse_to_fine(count)) == list(range(count))
