"""Costly instruments in a trace: auto on reduced layers with planted information, and the screen of the layer grid."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from mikit import ActivationStore, GaussianMI, InputError, trace
from mikit.flow import flow_divergences
from mikit.functional.flow.flow_vectors import flow_vector

N = 400
IDS = np.arange(N)


def _layer(rng: np.random.Generator, source: np.ndarray, width: int) -> np.ndarray:
    """``source`` in two of ``width`` columns, turned; the other columns are faint, so that two components hold it."""
    faint = 1e-3 * rng.standard_normal((N, width - source.shape[1]))
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    return np.hstack([source, faint]) @ turn


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, ActivationStore]:
    """Layer "wide" of the student knows one of two columns of the teacher's "late" with correlation 0.8."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    early, late = rng.standard_normal((N, 1)), rng.standard_normal((N, 1))
    teacher = ActivationStore(folder / "t", network="teacher")
    batch = {"early": _layer(rng, 2 * early, 30), "middle": rng.standard_normal((N, 2)), "late": _layer(rng, late, 30)}
    teacher.append(batch, ids=IDS, phase=9)
    student = ActivationStore(folder / "s", network="student", seed=0)
    for phase, known in ((0, 0.0), (4, 0.8)):
        noise = rng.standard_normal((N, 1))
        blurred = known * late + math.sqrt(1 - known**2) * noise
        batch = {"wide": _layer(rng, blurred, 40), "other": rng.standard_normal((N, 2)), "out": late + noise / 9}
        student.append(batch, ids=IDS, phase=phase)
    return teacher, student


def test_auto_on_reduced_layers_reads_the_planted_information_and_names_its_instrument(stores) -> None:
    flow = trace(*stores, noise=0.3, reduce=1, pairs_with="auto", pairs=[("wide", "late")])
    rows = flow.frame[flow.frame["quantity"] == "auto"].set_index("phase")
    truth = -0.5 * math.log(1 - 0.8**2)
    own = rows.loc[4]
    assert own["value"] == pytest.approx(truth, abs=3 * own["standard_error"])
    assert abs(rows.loc[0, "value"]) < 3 * rows.loc[0, "standard_error"] + 0.01
    assert (own["unit"], own["d_x"], own["d_y"], own["untrained"]) == ("nats", 1, 1, rows.loc[0, "value"])
    # Two columns in all: the choice lies between the Gaussian copula and nearest neighbours, and the law is Gaussian.
    assert rows["probe"].str.startswith("GaussianMI(copula=True").all()


def test_auto_is_skipped_when_the_budget_is_spent(stores) -> None:
    flow = trace(*stores, noise=0.3, reduce=1, pairs_with="auto", budget=1e-9)
    rows = flow.frame[flow.frame["quantity"] == "auto"]
    assert len(rows) == 6
    assert rows["verdict"].eq("skipped").all()
    assert rows["reasons"].str.contains("the budget of 1e-09 minutes was used up").all()
    assert rows["value"].isna().all()
    assert rows["unit"].eq("nats").all()


def test_the_screen_reads_the_same_depth_and_the_largest_share_and_marks_the_others(stores, tmp_path) -> None:
    given = {"noise": (0.1, 0.3), "reduce": 1, "pairs_with": "gaussian"}
    flow = trace(*stores, **given, pairs="screen", out=tmp_path / "run")
    rows = flow.frame[flow.frame["quantity"] == "gaussian"]
    assert len(rows) == 2 * 3 * 3
    shares = flow.frame[(flow.frame["quantity"] == "recovered_share") & (flow.frame["noise"] == 0.3)]
    last = shares[shares["phase"] == 4]
    read = rows[rows["value"].notna()]
    for layer, own_depth in (("wide", "early"), ("other", "middle"), ("out", "late")):
        best = last[last["layer"] == layer].set_index("teacher_layer")["value"].idxmax()
        kept = {(phase, name) for phase in (0, 4) for name in {own_depth, best}}
        found = read[read["layer"] == layer]
        assert set(zip(found["phase"], found["teacher_layer"], strict=True)) == kept
    assert "late" in set(read[read["layer"] == "wide"]["teacher_layer"])
    skipped = rows[rows["value"].isna()]
    assert skipped["verdict"].eq("skipped").all()
    wide = skipped[(skipped["layer"] == "wide") & (skipped["teacher_layer"] == "middle")]
    assert wide["reasons"].str.contains("at noise 0.3, this layer is compared only with 'early' and 'late'").all()
    every = trace(*stores, **given, pairs="all", phases=[4]).frame
    whole = every[every["quantity"] == "gaussian"]
    assert whole["value"].notna().all()
    keys = ["phase", "layer", "teacher_layer"]
    read = read[read["phase"] == 4].set_index(keys)["value"].sort_index()
    assert whole.set_index(keys)["value"].sort_index().loc[read.index].equals(read)


def test_the_screen_keeps_to_the_same_depth_where_nothing_is_known(stores) -> None:
    flow = trace(*stores, noise=0.3, reduce=1, pairs_with="gaussian", pairs="screen", budget=1e-9)
    rows = flow.frame[flow.frame["quantity"] == "gaussian"]
    assert rows["verdict"].eq("skipped").all()
    late = rows["reasons"].str.contains("was used up")
    assert set(rows["layer"][late] + rows["teacher_layer"][late]) == {"wideearly", "othermiddle", "outlate"}
    assert rows["reasons"][~late].str.contains("this layer is compared only with").all()


def test_omega_by_label_hsic_is_the_flow_vector_and_gives_all_of_d_f(stores) -> None:
    import torch

    labels = (stores[0].read("late", 9)[:, 0] > 0).astype(int)
    flow = trace(*stores, labels=labels, noise=0.3, reduce=1, probe="lda", pairs_with=["label_hsic", "label_qmi"])
    own = flow.frame[flow.frame["quantity"] == "label_hsic"]
    assert own.groupby(["role", "phase"]).size().to_dict() == {("student", 0): 3, ("student", 4): 3, ("teacher", 9): 3}
    theirs = own[own["role"] == "teacher"].sort_values("layer_index")
    layers = [torch.tensor(stores[0].read(name, 9)) for name in theirs["layer"]]
    assert np.allclose(theirs["value"], flow_vector(layers, torch.from_numpy(labels)), atol=1e-9)
    for quantity in ("label_information", "label_hsic", "label_qmi"):
        found = flow_divergences(flow, quantity=quantity)
        assert set(found["matching"]) == {"same depth", "nearest", "monotone"}
        assert np.allclose(found["total"], found["intermediate"] + found["last"])
        assert set(found["phase"]) == {0, 4}
        same = found[found["matching"] == "same depth"]
        assert same["partners"].eq(pd.Series([("early", "middle", "late")] * len(same), index=same.index)).all()
        # The last layer goes with the last, whatever its value; the others with the nearest value.
        values = flow.frame[(flow.frame["quantity"] == quantity) & flow.frame["teacher_layer"].eq("")]
        values = values.set_index(["role", "phase", "layer"])["value"].sort_index()
        theirs = values.xs(("teacher", 9))
        for row in found[found["matching"] == "nearest"].to_dict("records"):
            mine = values.xs(("student", row["phase"]))
            expected = [(theirs - mine[layer]).abs().idxmin() for layer in ("wide", "other")]
            assert row["partners"] == (*expected, "late")


def test_pairs_that_no_instrument_reads_are_refused(stores) -> None:
    with pytest.raises(InputError, match=r"pairs is 'screen', but pairs_with names no estimator"):
        trace(*stores, noise=0.3, reduce=1, pairs="screen")
    with pytest.raises(InputError, match=r"pairs is \"some\""):
        trace(*stores, noise=0.3, reduce=1, pairs_with=GaussianMI, pairs="some")
