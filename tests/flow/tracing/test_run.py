"""trace on small stores whose truth is known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mikit import ActivationStore, InputError, trace
from mikit.functional.flow.recovery import recovered_share
from mikit.functional.labels.linear_probes import label_entropy

N = 400
IDS = np.arange(1000, 1000 + N)


def _arrays(seed: int, phase: int = 3) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Labels, a teacher of three layers, and a student of two that reads more of the teacher in later phases."""
    rng = np.random.default_rng(0)
    y = np.arange(N) % 3
    t1 = rng.standard_normal((N, 6)) + 0.7 * rng.standard_normal((3, 6))[y]
    t2 = np.tanh(t1 @ rng.standard_normal((6, 5)))
    t3 = t2 @ rng.standard_normal((5, 3))
    own = np.random.default_rng([seed, phase])
    blur = 4.0 / (1 + phase)
    s1 = t1[:, :3] + blur * own.standard_normal((N, 3))
    s2 = t3[:, :2] + blur * own.standard_normal((N, 2))
    return y, {"a": t1, "b": t2, "c": t3}, {"first": s1, "second": s2}


def _teacher(path: Path, **given: object) -> ActivationStore:
    store = ActivationStore(path, network="teacher", **given)
    store.append(_arrays(0)[1], ids=IDS, phase=9, readouts="pool")
    return store


def _student(
    path: Path,
    *,
    seed: int = 0,
    network: str = "student",
    phases: tuple[int, ...] = (0, 3),
    order: np.ndarray | None = None,
) -> ActivationStore:
    store = ActivationStore(path, network=network, seed=seed)
    order = np.arange(N) if order is None else order
    for phase in phases:
        batch = {name: rows[order] for name, rows in _arrays(seed, phase)[2].items()}
        store.append(batch, ids=IDS[order], phase=phase, readouts="pool")
        store.note(phase, accuracy=0.1 * (phase + 1))
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, ActivationStore]:
    folder = tmp_path_factory.mktemp("stores")
    return _teacher(folder / "t"), _student(folder / "s")


@pytest.fixture(scope="module")
def flow(stores):
    return trace(*stores, labels=_arrays(0)[0])


def _one(frame: pd.DataFrame, **where: object) -> pd.Series:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def _same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_every_row_is_there_once(flow) -> None:
    frame = flow.frame
    counts = frame.groupby(["role", "quantity"]).size()
    assert counts["teacher", "label_information"] == 3
    assert counts["student", "label_information"] == 4
    assert counts["student", "label_gap"] == 4
    assert counts["student", "recovered_share"] == 2 * 2 * 3 * 3
    assert counts["student", "cka"] == 2 * 2 * 3
    assert counts["student", "accuracy"] == 2
    key = ["network", "seed", "phase", "layer", "teacher_layer", "quantity", "noise"]
    assert not frame.duplicated(key).any()
    assert frame["n"][frame["quantity"] != "accuracy"].eq(N).all()
    assert set(frame["verdict"]) <= {"trustworthy", "caution", "unreliable"}
    assert (frame["verdict"].eq("trustworthy") == frame["reasons"].eq("")).all()


def test_units_and_intervals(flow) -> None:
    frame = flow.frame
    units = frame.groupby("quantity")["unit"].unique().map(list).to_dict()
    assert units == {
        "label_information": ["nats"],
        "label_gap": ["nats"],
        "recovered_share": ["share"],
        "cka": ["dimensionless"],
        "accuracy": ["fraction"],
    }
    measured = frame[frame["quantity"] != "accuracy"]
    assert (measured["low"] < measured["value"]).all()
    assert (measured["value"] < measured["high"]).all()
    shares = frame[frame["quantity"] == "recovered_share"]
    assert (shares["held_out"] < shares["value"]).all()
    assert (shares["value"] < shares["in_sample"]).all()
    assert (frame["quantity"].eq("recovered_share") == frame["noise"].notna()).all()


def test_shares_and_gaps_are_those_of_the_layers(flow) -> None:
    y, teacher, student = _arrays(0)
    found = _one(flow.frame, quantity="recovered_share", phase=3, layer="second", teacher_layer="c", noise=0.3)
    # Another deal of the folds moves the held-out value a little, the in-sample value not at all.
    (expected,) = recovered_share(student["second"], teacher["c"], noise=[0.3])
    assert found["in_sample"] == pytest.approx(expected.in_sample / expected.ceiling, abs=1e-9)
    assert found["value"] == pytest.approx(expected.share, abs=0.01)
    assert found["ceiling"] == pytest.approx(expected.ceiling)
    own = _one(flow.frame, quantity="label_information", phase=3, layer="second")
    theirs = _one(flow.frame, quantity="label_information", phase=9, layer="c")
    gap = _one(flow.frame, quantity="label_gap", phase=3, layer="second")
    assert gap["value"] == pytest.approx(own["value"] - theirs["value"])
    assert gap["teacher_layer"] == "c"
    assert gap["standard_error"] < np.hypot(own["standard_error"], theirs["standard_error"])
    assert flow.settings["label_entropy"] == pytest.approx(label_entropy(y))
    assert (flow.frame["value"][flow.frame["quantity"] == "label_information"] < label_entropy(y)).all()


def test_training_shows_and_untrained_is_phase_0(flow) -> None:
    shares = flow.frame[(flow.frame["quantity"] == "recovered_share") & (flow.frame["noise"] == 0.3)]
    table = shares.pivot_table(index=["layer", "teacher_layer"], columns="phase", values="value")
    assert table.loc[("first", "a"), 3] > table.loc[("first", "a"), 0] + 0.1
    floor = shares[shares["phase"] == 3].set_index(["layer", "teacher_layer"])["untrained"]
    assert np.allclose(floor.sort_index(), table[0].sort_index())
    accuracy = flow.frame[flow.frame["quantity"] == "accuracy"]
    assert accuracy["value"].tolist() == pytest.approx([0.1, 0.4])
    assert accuracy["untrained"].tolist() == pytest.approx([0.1, 0.1])


def test_noted_accuracy_gets_wilsons_interval_when_its_rows_are_noted(stores, tmp_path) -> None:
    from scipy.stats import binomtest

    noted = _student(tmp_path / "s", phases=(3,))
    noted.note(3, accuracy=0.9, accuracy_n=200)
    row = _one(trace(stores[0], noted, noise=0.3).frame, quantity="accuracy", phase=3)
    expected = binomtest(180, 200).proportion_ci(method="wilson")
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert row["n"] == 200


def test_nulls_are_near_zero_at_matching_depth(flow) -> None:
    frame = flow.frame
    shares = frame[frame["quantity"] == "recovered_share"]
    matching = {("first", "a"), ("second", "c")}
    has_null = shares["null"].notna()
    assert has_null.tolist() == [
        pair in matching for pair in zip(shares["layer"], shares["teacher_layer"], strict=True)
    ]
    assert (shares["null"][has_null].abs() < 0.05).all()
    information = frame[frame["quantity"] == "label_information"]
    assert (information["null"].abs() < 0.1).all()


def test_row_order_of_the_stores_does_not_matter(stores, flow, tmp_path) -> None:
    shuffled = _student(tmp_path / "s", order=np.random.default_rng(5).permutation(N))
    _same(trace(stores[0], shuffled, labels=_arrays(0)[0]).frame, flow.frame)
    order = np.random.default_rng(6).permutation(N)
    teacher = ActivationStore(tmp_path / "t", network="teacher")
    batch = {name: rows[order] for name, rows in _arrays(0)[1].items()}
    teacher.append(batch, ids=IDS[order], phase=9, readouts="pool")
    _same(trace(teacher, shuffled, labels=_arrays(0)[0][order]).frame, flow.frame)


def test_jobs_do_not_change_a_digit(stores, flow) -> None:
    _same(trace(*stores, labels=_arrays(0)[0], jobs=2).frame, flow.frame)


def test_further_noise_reads_no_activations(stores, monkeypatch) -> None:
    reads: list[tuple[str, int]] = []
    original = ActivationStore.chunks

    def counted(self, layer, phase, rows=2048):
        reads.append((layer, phase))
        return original(self, layer, phase, rows)

    monkeypatch.setattr(ActivationStore, "chunks", counted)
    one = trace(*stores, noise=0.3)
    first = len(reads)
    three = trace(*stores, noise=[0.1, 0.3, 1.0])
    assert first == len(reads) - first == 3 + 2 * 2
    rows = three.frame[three.frame["noise"].isna() | (three.frame["noise"] == 0.3)].reset_index(drop=True)
    _same(rows, one.frame)


def test_labels_come_from_the_store_or_not_at_all(stores, flow, tmp_path) -> None:
    labelled = _teacher(tmp_path / "t")
    order = np.random.default_rng(1).permutation(N)
    labelled.set_labels(IDS[order], _arrays(0)[0][order])
    _same(trace(labelled, stores[1]).frame, flow.frame)
    bare = trace(*stores)
    assert set(bare.frame["quantity"]) == {"recovered_share", "cka", "accuracy"}
    assert bare.settings["label_entropy"] is None


def test_several_networks_and_seeds_are_rows(stores, tmp_path) -> None:
    others = [_student(tmp_path / str(seed), seed=seed, phases=(3,)) for seed in (1, 2)]
    others.append(_student(tmp_path / "vid", network="vid", phases=(3,)))
    flow = trace(stores[0], others, probe="lda", labels=_arrays(0)[0])
    assert flow.settings["networks"] == ["student", "vid"]
    assert flow.settings["seeds"] == [0, 1, 2]
    students = flow.frame[flow.frame["role"] == "student"]
    assert students[["network", "seed"]].drop_duplicates().shape[0] == 3
    assert students["untrained"].isna().all()
    assert set(flow.frame["probe"]) == {"lda", ""}


def test_phases_and_layers_can_be_chosen(stores, flow) -> None:
    part = trace(*stores, labels=_arrays(0)[0], phases=[3], layers=["a", "c", "first"])
    keys = ["quantity", "phase", "layer", "teacher_layer", "noise"]
    own = part.frame[part.frame["quantity"] != "label_gap"].set_index(keys)
    same = flow.frame.set_index(keys).loc[own.index]
    assert set(part.frame["phase"]) == {3, 9}
    values = ["value", "untrained", "standard_error"]
    pd.testing.assert_frame_equal(own[values], same[values], check_exact=True)


def test_wide_layers_are_refused_or_reduced(stores, tmp_path) -> None:
    rng = np.random.default_rng(0)
    wide = ActivationStore(tmp_path / "wide", network="wide", seed=0)
    wide.append({"huge": rng.standard_normal((N, 90))}, ids=IDS, phase=1)
    with pytest.raises(InputError, match=r"'huge' of the student 'wide'.*400 samples are too few.*reduce="):
        trace(stores[0], wide)
    reduced = trace(stores[0], wide, reduce=4)
    assert reduced.frame["d_x"].max() == 4


def test_dead_layers_are_judged_not_hidden(stores, tmp_path) -> None:
    dead = ActivationStore(tmp_path / "dead", network="dead", seed=0)
    dead.append({"out": np.zeros((N, 2))}, ids=IDS, phase=1)
    frame = trace(stores[0], dead).frame
    cka = frame[frame["quantity"] == "cka"]
    assert cka["value"].isna().all()
    assert cka["verdict"].eq("unreliable").all()
    assert frame["value"][frame["quantity"] == "recovered_share"].abs().max() < 1e-9


def test_ids_must_match(stores, tmp_path) -> None:
    fewer = ActivationStore(tmp_path / "fewer", network="student", seed=0)
    fewer.append({"first": np.random.default_rng(0).standard_normal((N - 3, 2))}, ids=IDS[3:], phase=2)
    with pytest.raises(InputError, match=r"3 of the 400 sample ids of teacher 'teacher'.*student 'student' .*phase 2"):
        trace(stores[0], fewer)
    named = ActivationStore(tmp_path / "named", network="student", seed=0)
    named.append({"first": np.ones((N, 2))}, ids=[f"image{i}" for i in IDS], phase=2)
    with pytest.raises(InputError, match="are text"):
        trace(stores[0], named)


def test_training_samples_are_refused(stores, tmp_path) -> None:
    cheat = _student(tmp_path / "cheat")
    cheat.set_training_ids(np.array([1005, 1002, 5]))
    with pytest.raises(InputError, match=r"'student' \(seed 0\) was trained on 2 of the 400 .*the first is 1002\."):
        trace(stores[0], cheat)


def test_stores_that_label_differently_are_refused(tmp_path) -> None:
    teacher, student = _teacher(tmp_path / "t"), _student(tmp_path / "s")
    y = _arrays(0)[0]
    teacher.set_labels(IDS, y)
    y[7] = (y[7] + 1) % 3
    student.set_labels(IDS, y)
    with pytest.raises(InputError, match=r"label 1 samples differently; the first is sample 1007"):
        trace(teacher, student)


def test_nan_names_network_layer_and_row(stores, tmp_path) -> None:
    class Spoilt:
        def __init__(self, store: ActivationStore) -> None:
            self.store = store

        def __getattr__(self, name: str) -> object:
            return getattr(self.store, name)

        def chunks(self, layer: str, phase: int) -> object:
            for chunk in self.store.chunks(layer, phase):
                spoilt = np.array(chunk)
                spoilt[11] = np.nan
                yield spoilt

    with pytest.raises(InputError, match=r"'first' of student 'student' \(seed 0, phase 0\).*1 of 400 samples.*row 11"):
        trace(stores[0], [Spoilt(stores[1])])


def test_data_hashes_that_differ_are_a_reason_for_caution(stores, tmp_path) -> None:
    teacher = _teacher(tmp_path / "t", data_hash="one")
    other = ActivationStore(tmp_path / "s", network="student", seed=0, data_hash="two")
    other.append(_arrays(0)[2], ids=IDS, phase=1)
    frame = trace(teacher, other, noise=0.3).frame
    assert frame["reasons"].str.contains("different hashes").all()
    assert frame["verdict"].isin(["caution", "unreliable"]).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"noise": [0.1, 0.0]}, "must be positive"),
        ({"noise": []}, "must be positive"),
        ({"noise": [0.3, 0.3]}, "repeats a level"),
        ({"student_noise": -1.0}, "must be positive"),
        ({"probe": "forest"}, 'probe is "forest"'),
        ({"folds": 2}, "at least 3"),
        ({"jobs": 0}, "number of workers"),
        ({"budget": 0.0}, "positive and finite, in minutes"),
        ({"backend": "telepathy"}, 'backend "telepathy" cannot be used'),
        ({"reduce": 0}, "reduce is 0; it must be at least 1"),
        ({"layers": ["conv9"]}, "No store contains the layer 'conv9'"),
        ({"layers": "a"}, "single string"),
        ({"phases": [7]}, "lacks phase 7"),
        ({"labels": [0, 1]}, "2 labels for 400 samples"),
    ],
)
def test_refusals(stores, given, said) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        trace(*stores, **given)


def test_no_students_and_twins_are_refused(stores) -> None:
    with pytest.raises(InputError, match="no students"):
        trace(stores[0], [])
    with pytest.raises(InputError, match="Two student stores"):
        trace(stores[0], [stores[1], stores[1]])


def test_feature_maps_are_refused(stores, tmp_path) -> None:
    maps = ActivationStore(tmp_path / "maps", network="student", seed=0)
    maps.append({"conv": np.random.default_rng(0).standard_normal((N, 2, 3, 3))}, ids=IDS, phase=1)
    with pytest.raises(InputError, match=r"needs \(n, d\)"):
        trace(stores[0], maps)


def test_global_random_state_and_thread_settings_are_left_alone(stores) -> None:
    import torch
    from threadpoolctl import threadpool_info

    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # noqa: NPY002
    pools = [pool["num_threads"] for pool in threadpool_info()]
    trace(*stores, labels=_arrays(0)[0], probe="lda", noise=0.3)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == torch.get_num_threads()
    assert pools == [pool["num_threads"] for pool in threadpool_info()]
