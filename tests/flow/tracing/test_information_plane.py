"""The noisy information plane in a trace: every layer and phase, its cap, its verdicts, its budget, its records."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from mikit import ActivationStore, InputError, trace
from mikit.flow.tracing.joining import fold_samples
from mikit.functional import noisy_input_information

N = 600
IDS = np.arange(N)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, ActivationStore]:
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    teacher = ActivationStore(folder / "t", network="teacher")
    corners = 10.0 * np.eye(4)[IDS % 4]
    for phase in (0, 5):
        rows = rng.standard_normal((N, 3))
        teacher.append({"a": rows, "b": rows @ rng.standard_normal((3, 2))}, ids=IDS, phase=phase)
    student = ActivationStore(folder / "s", network="student", seed=0)
    for phase in (0, 1, 2):
        batch = {"a": rng.standard_normal((N, 20)), "corners": corners, "dead": np.ones((N, 2))}
        student.append(batch, ids=IDS, phase=phase)
    return teacher, student


@pytest.fixture(scope="module")
def flow(stores, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return trace(*stores, noise=0.3, information_plane=True, plane_noise=(0.05, 2.0), out=out)


def _plane(flow) -> pd.DataFrame:
    return flow.frame[flow.frame["quantity"] == "input_information"]


def test_every_layer_and_phase_of_both_networks_has_a_row_a_level(flow) -> None:
    rows = _plane(flow)
    counts = rows.groupby(["role", "phase"]).size().to_dict()
    assert counts == {("teacher", 0): 4, ("teacher", 5): 4, ("student", 0): 6, ("student", 1): 6, ("student", 2): 6}
    assert set(rows["noise"]) == {0.05, 2.0}
    assert rows["unit"].eq("nats").all()
    assert rows["kind"].eq("estimate").all()
    assert np.allclose(rows["ceiling"], math.log(N))
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["ceiling"]).all()
    assert rows["teacher_layer"].eq("").all()
    assert rows["untrained"].notna().all()
    assert flow.settings["plane_noise"] == [0.05, 2.0]


def test_values_are_the_formula_s_on_all_columns_and_clusters_are_counted(stores, flow) -> None:
    rows = _plane(flow).set_index(["role", "phase", "layer", "noise"])
    layer = stores[1].read("a", 2)[fold_samples(IDS, 5, 0).ids]
    found = noisy_input_information(torch.from_numpy(layer), [2.0], generator=torch.Generator().manual_seed(3))[0]
    own = rows.loc[("student", 2, "a", 2.0)]
    assert own["value"] == pytest.approx(found.value, abs=4 * math.hypot(found.standard_error, own["standard_error"]))
    assert own["d_x"] == 20
    corners = rows.loc[("student", 2, "corners", 0.05)]
    assert corners["value"] == pytest.approx(math.log(4), abs=1e-4)
    assert corners["untrained"] == corners["value"]
    assert rows.loc[("student", 2, "dead", 0.05), "value"] == pytest.approx(0, abs=1e-9)


def test_at_the_cap_the_verdict_says_that_rows_are_counted(flow) -> None:
    rows = _plane(flow)
    at_cap = rows["value"] / rows["ceiling"] >= 0.92
    assert at_cap.any()
    assert rows["verdict"][at_cap].eq("unreliable").all()
    assert rows["reasons"][at_cap].str.contains("log N, the upper limit of the estimate").all()
    assert not rows["reasons"][rows["layer"] == "corners"].str.contains("log N").any()


def test_it_is_off_by_default_and_a_trace_without_it_is_another_trace(stores, flow, tmp_path) -> None:
    out = tmp_path / "run"
    bare = trace(*stores, noise=0.3, out=out)
    assert "input_information" not in set(bare.frame["quantity"])
    others = flow.frame[(flow.frame["quantity"] != "input_information")].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, bare.frame, check_exact=True)
    with pytest.raises(InputError, match=r"its plane_noise is None, not \[0\.3\]"):
        trace(*stores, noise=0.3, information_plane=True, plane_noise=[0.3], out=out)
    again = trace(*stores, noise=0.3, information_plane=True, plane_noise=(0.05, 2.0), out=out, overwrite=True, jobs=2)
    pd.testing.assert_frame_equal(again.frame, flow.frame, check_exact=True)


def test_what_did_not_fit_the_budget_is_marked(stores) -> None:
    rows = _plane(trace(*stores, noise=0.3, information_plane=True, plane_noise=(0.05, 2.0), budget=1e-9))
    measured = rows["value"].notna()
    assert rows["phase"][measured].eq(5).all()
    assert rows["verdict"][~measured].eq("skipped").all()
    assert measured.sum() == 4
    assert len(rows) == 26


@pytest.mark.parametrize("levels", [(), (0.0,), (0.3, 0.3), (math.inf,)])
def test_levels_without_meaning_are_refused(stores, levels) -> None:
    with pytest.raises(InputError, match="plane_noise is"):
        trace(*stores, noise=0.3, information_plane=True, plane_noise=levels)
