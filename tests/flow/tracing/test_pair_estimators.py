"""Further instruments in a trace: chosen pairs, labels, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mikit import KSG, ActivationStore, GaussianMI, InputError, SlicedWasserstein, measure, trace
from mikit.flow import flow_divergences
from mikit.flow.tracing.joining import fold_samples

N = 200
IDS = np.arange(N)
LABELS = IDS % 2


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, ActivationStore]:
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    source = rng.standard_normal((N, 3)) + LABELS[:, None]
    teacher = ActivationStore(folder / "t", network="teacher")
    teacher.append({"a": source, "b": np.tanh(source[:, :2]) + 1.0}, ids=IDS, phase=5)
    student = ActivationStore(folder / "s", network="student", seed=0)
    for phase in (0, 1):
        noise = rng.standard_normal((N, 3)) / (1 + 4 * phase)
        batch = {"a": source + noise, "b": np.tanh(source[:, :2]) + noise[:, :2]}
        student.append(batch, ids=IDS, phase=phase)
    return teacher, student


def test_chosen_pairs_get_rows_of_the_instruments_own_unit(stores, tmp_path) -> None:
    flow = trace(*stores, noise=0.3, pairs_with=[GaussianMI(), SlicedWasserstein()], out=tmp_path / "run")
    own = flow.frame[flow.frame["quantity"].isin(["gaussian", "sliced_wasserstein"])]
    assert len(own) == 2 * 2 * 2
    assert (own["layer"] == own["teacher_layer"]).all()
    found = own[(own["quantity"] == "gaussian") & (own["phase"] == 1) & (own["layer"] == "a")].iloc[0]
    order = fold_samples(IDS, 5, 0).ids
    teacher, student = (store.read("a", phase)[order] for store, phase in zip(stores, (5, 1), strict=True))
    expected = measure(student - student.mean(axis=0), teacher - teacher.mean(axis=0), GaussianMI())
    assert found["value"] == pytest.approx(expected.value, rel=1e-9)
    assert (found["unit"], found["kind"]) == (expected.unit, expected.kind)
    assert found["probe"] == expected.estimator
    before = own[(own["quantity"] == "gaussian") & (own["phase"] == 0) & (own["layer"] == "a")].iloc[0]
    assert found["untrained"] == before["value"] < found["value"]
    # Laws are compared where they lie: the second layers differ by 1 in their means, which centring would hide.
    apart = own[(own["quantity"] == "sliced_wasserstein") & (own["layer"] == "b")]
    assert (apart["value"] > 0.5).all()
    assert "4 gaussian, 4 sliced_wasserstein  ·" in str(flow)
    assert (own["verdict"].eq("trustworthy") == own["reasons"].eq("")).all()
    again = trace(*stores, noise=0.3, pairs_with=[GaussianMI(), SlicedWasserstein()], out=tmp_path / "run")
    pd.testing.assert_frame_equal(again.frame, flow.frame, check_exact=True)


def test_pairs_by_name_and_labels_at_every_layer(stores) -> None:
    flow = trace(*stores, labels=LABELS, noise=0.3, probe="lda", pairs_with=["label_qmi"], phases=[1])
    own = flow.frame[flow.frame["quantity"] == "label_qmi"]
    assert own.groupby("role").size().to_dict() == {"student": 2, "teacher": 2}
    assert own["teacher_layer"].eq("").all()
    found = flow_divergences(flow, quantity="label_qmi").set_index("matching")
    values = own.set_index(["role", "layer"])["value"]
    gaps = [values["student", layer] - values["teacher", layer] for layer in ("a", "b")]
    assert found.loc["same depth", "total"] == pytest.approx(sum(gap**2 for gap in gaps))
    flow.frame.loc[own.index[0], "value"] = np.nan
    with pytest.raises(InputError, match=r"1 rows of label_qmi have no value; the first is layer 'a'"):
        flow_divergences(flow, quantity="label_qmi")
    crossed = trace(*stores, noise=0.3, phases=[1], pairs_with="gaussian", pairs=[("b", "a")])
    rows = crossed.frame[crossed.frame["quantity"] == "gaussian"]
    assert rows[["layer", "teacher_layer", "d_x", "d_y"]].to_numpy().tolist() == [["b", "a", 2, 3]]


def test_one_layer_under_two_readouts_is_two_layers(tmp_path) -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((N, 2, 2, 2))
    batch = {"conv": maps.mean(axis=(2, 3)), "conv, 2 x 2": maps.reshape(N, -1)}
    for name in ("t", "s"):
        store = ActivationStore(tmp_path / name, network=name, seed=0)
        store.append(batch, ids=IDS, phase=0, readouts={"conv": "pool", "conv, 2 x 2": "pool2"})
    frame = trace(ActivationStore.open(tmp_path / "t"), ActivationStore.open(tmp_path / "s"), noise=0.3).frame
    shares = frame[frame["quantity"] == "recovered_share"].set_index(["layer", "teacher_layer"])
    assert shares["readout"].groupby("layer").first().to_dict() == {"conv": "pool", "conv, 2 x 2": "pool2"}
    # Every pooled column is a mean of spatial ones; most of the spatial layer is lost by pooling.
    assert shares["value"]["conv, 2 x 2", "conv"] > 0.95
    assert shares["value"]["conv", "conv, 2 x 2"] < 0.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pairs_with": "mmd", "pairs": "all"}, r"layer 'a' of the student 'student' has 3 features and .* 'b' has 2"),
        ({"pairs_with": SlicedWasserstein(), "reduce": 2}, "its own principal components"),
        ({"pairs_with": "cka"}, "always part of a trace"),
        ({"pairs_with": [KSG(), KSG(k=5)]}, 'contains "ksg" twice'),
        ({"pairs_with": "ross"}, "needs labels"),
        ({"pairs_with": "telepathy"}, "no estimator"),
        ({"pairs_with": "ksg", "pairs": "some"}, 'pairs is "some"'),
        ({"pairs_with": "ksg", "pairs": [("c", "a")]}, r"pairs contains \('c', 'a'\)"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(stores, given, said, tmp_path) -> None:
    with pytest.raises(InputError, match=said):
        trace(*stores, noise=0.3, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
