"""Phases read off flows whose phases are known: change points, D_F, partings, geometry, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mikit import ActivationStore, InputError
from mikit.flow import (
    Flow,
    compare_paths,
    critical_phases,
    data_processing_flags,
    flow_divergences,
    layer_geometry,
    read_phases,
)
from mikit.flow.readings.phases import change_points
from mikit.flow.result import COLUMNS, frame_of

ERROR = 0.015  # what 5,000 rows give
PHASES = (0, 1, 2, 4, 8, 16, 28, 40)


def row(**given):
    blank = dict.fromkeys(COLUMNS, np.nan) | {
        "role": "student", "seed": 0, "teacher_layer": "", "teacher_layer_index": -1, "teacher_phase": -1, "kind": "",
        "unit": "nats", "probe": "", "readout": "pool", "n": 5000, "d_x": 8, "d_y": 10, "verdict": "", "reasons": "",
        "quantity": "label_information", "standard_error": ERROR,
    }  # fmt: skip
    return blank | given


def flow_of(curves, teacher=(0.7, 0.9, 1.6), phases=PHASES, rng=None, **settings):
    """A flow of label information: ``curves[network][layer]`` holds values by phase, or ``(seeds, phases)``."""
    rows = [
        row(network="teacher", role="teacher", phase=60, layer=f"l{j}", layer_index=j, value=value)
        for j, value in enumerate(teacher)
    ]
    for network, layers in curves.items():
        for index, values in enumerate(layers):
            for seed, line in enumerate(np.atleast_2d(values)):
                for phase, value in zip(phases, line, strict=True):
                    noise = 0.0 if rng is None else ERROR * rng.standard_normal()
                    where = {"network": network, "seed": seed, "phase": phase, "layer": f"l{index}"}
                    rows.append(row(**where, layer_index=index, value=value + noise))
    return Flow(frame_of(rows), {"label_entropy": np.log(10), "n": 5000} | settings)


def step(at, low=0.5, high=0.6):
    return np.where(np.arange(len(PHASES)) >= at, high, low)


def curves_of(lines):
    """Curves as read_phases cuts them, with the noise of a flow."""
    return pd.DataFrame(
        [
            {"network": "s", "seed": seed, "quantity": "label_information", "layer": "l0", "layer_index": 0,
             "teacher_layer": "", "phase": phase, "value": value, "standard_error": ERROR, "unit": "nats"}
            for seed, line in enumerate(lines)
            for phase, value in zip(PHASES, line, strict=True)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("shape", ["constant", "straight"])
def test_planted_change_points_are_found_within_a_step_and_flat_curves_are_left_alone(shape):
    # The 200 curves of benchmarks/calibration/change_points.py in small; the share of both is at least 95 %, and three
    # standard deviations of 60 draws at 97 % are 6.6 %.
    rng = np.random.default_rng(0)
    planted = rng.integers(3, len(PHASES) - 2, 60)
    places = np.arange(len(PHASES))
    if shape == "constant":
        lines = [0.5 + 0.1 * (places >= at) for at in planted]
    else:
        lines = [0.5 + 0.15 * np.minimum(places, at) for at in planted]
    noisy = [line + ERROR * rng.standard_normal(len(PHASES)) for line in lines]
    changes = change_points(curves_of(noisy), shape=shape)[1]
    near = 0
    for seed, at in enumerate(planted):
        own = changes[changes["seed"] == seed]
        near += len(own) == 1 and abs(PHASES.index(own["phase"].iloc[0]) - at) <= 1
    assert near >= 60 * 0.904
    flat = [rng.uniform(0, 1) + ERROR * rng.standard_normal(len(PHASES)) for _ in range(60)]
    assert len(change_points(curves_of(flat), shape=shape)[1]) <= 60 * 0.01 + 3 * np.sqrt(0.6)


def test_a_reading_names_change_points_movements_and_what_they_are_not():
    rises = 0.5 + 0.1 * np.minimum(np.arange(8), 4)
    flow = flow_of({"student": [step(4), np.full(8, 0.9), rises]})
    reading = read_phases(flow)
    assert reading.settings["quantity"] == "label_information"
    bend = reading.changes[reading.changes["layer"] == "l2"].iloc[0]
    assert bend["phase"] in (8, 16)
    assert bend["low"] <= 8 <= bend["high"] or bend["low"] <= 16 <= bend["high"]
    assert bend["slope_before"] == pytest.approx(0.1, abs=0.01)
    assert bend["slope_after"] == pytest.approx(0.0, abs=0.01)
    assert bend["confidence"] > 0.9
    moves = reading.movements[reading.movements["layer"] == "l2"]
    assert moves["reading"].tolist() == ["fitting", "level"]
    assert set(reading.movements[reading.movements["layer"] == "l1"]["reading"]) == {"level"}
    assert "neither is a gain or loss of information" in str(reading)
    assert reading.to_dict()["changes"][0]["network"] == "student"
    fitted = reading.curves[reading.curves["layer"] == "l1"]
    assert fitted["fitted"].to_numpy() == pytest.approx(0.9)


def test_jitter_and_the_error_of_a_few_folds():
    rng = np.random.default_rng(0)
    line = 0.5 + 0.05 * rng.standard_normal(8)
    flow = flow_of({"student": [line]})
    assert len(read_phases(flow, shape="constant").changes)
    assert not len(read_phases(flow, shape="constant", jitter=0.05).changes)
    frame = flow.frame.assign(quantity="cka", teacher_layer="l0", teacher_layer_index=0)
    frame["standard_error"] = np.tile([0.001, 0.1], len(frame))[: len(frame)]
    shares = read_phases(Flow(frame[frame["role"] == "student"], {}), quantity="cka").curves
    assert shares["standard_error"].to_numpy() == pytest.approx(np.sqrt((0.001**2 + 0.1**2) / 2))


def test_divergence_shows_its_last_term_and_nearest_hides_the_rest():
    flow = flow_of({"student": [np.linspace(0.5, 0.7, 8), np.linspace(0.5, 0.8, 8), np.linspace(0.3, 1.5, 8)]})
    table = flow_divergences(flow)
    first = table[(table["phase"] == 0)].set_index("matching")
    assert first.loc["same depth", "total"] == pytest.approx(0.2**2 + 0.4**2 + 1.3**2)
    assert first.loc["nearest", "total"] == pytest.approx(0.2**2 + 0.2**2 + 1.3**2)
    assert first.loc["nearest", "last"] == pytest.approx(1.3**2)
    assert first.loc["nearest", "last_share"] > 0.95
    assert first.loc["same depth", "floor"] == pytest.approx(6 * ERROR**2)
    rng = np.random.default_rng(0)
    gaps = np.array([0.2, 0.4, 1.3]) + np.sqrt(2) * ERROR * rng.standard_normal((20_000, 3))
    # 20,000 draws know a deviation to 0.5 %.
    assert first.loc["same depth", "standard_error"] == pytest.approx((gaps**2).sum(axis=1).std(), rel=0.02)
    # By the nearest value two layers go with one of the teacher's, whose error they share.
    shared = 2 * ERROR * np.sqrt((0.2**2 + 0.2**2 + 1.3**2) + (0.4**2 + 1.3**2))
    assert first.loc["nearest", "standard_error"] == pytest.approx(shared, rel=0.01)


def test_the_critical_phase_is_where_it_falls_most():
    late = np.array([0.3, 0.32, 0.34, 0.36, 1.2, 1.3, 1.35, 1.4])
    even = np.linspace(1.5, 1.6, 8)
    flow = flow_of({"late": [np.full(8, 0.7), np.full(8, 0.9), late], "even": [np.full(8, 0.7), np.full(8, 0.9), even]})
    found = critical_phases(flow_divergences(flow)).set_index(["network", "matching"])
    assert found.loc[("late", "same depth"), ["from_phase", "to_phase"]].tolist() == [4, 8]
    assert found.loc[("late", "same depth"), "decision"] == "clear"
    assert found.loc[("even", "same depth"), "decision"] in ("none", "tie")
    assert "falls most between phases 4 and 8" in str(read_phases(flow))
    one = flow_of({"s": [[0.5], [0.6], [0.7]]}, phases=(3,))
    with pytest.raises(InputError, match="one phase only"):
        critical_phases(flow_divergences(one))
    with pytest.raises(InputError, match="one phase only"):
        read_phases(one)


def test_what_data_processing_forbids_is_flagged_and_told_apart():
    flow = flow_of({"s": [np.full(8, 0.5), np.full(8, 0.52), np.full(8, 2.5)]})
    shares = [
        row(network="s", phase=40, layer="l0", layer_index=0, teacher_layer="l0", teacher_layer_index=0, noise=0.3,
            quantity="recovered_share", unit="share", value=value, held_out=value - 0.01, in_sample=value + 0.01)
        for value in (1.2,)
    ]  # fmt: skip
    flags = data_processing_flags(Flow(pd.concat([flow.frame, frame_of(shares)]), flow.settings))
    kinds = flags.groupby(["quantity", "kind"]).size()
    assert kinds["recovered_share", "impossible"] == 1
    assert kinds["label_information", "impossible"] == 8  # 2.5 nats of log 10
    # The step from .50 to .52 is within two standard errors, that to 2.5 is not; the teacher's own rise is flagged too.
    rises = flags[flags["kind"] == "rises with depth"]
    assert set(rises[rises["network"] == "s"]["layer"]) == {"l2"}
    assert set(rises[rises["network"] == "teacher"]["layer"]) == {"l1", "l2"}
    assert "no information was added" in rises["sentence"].iloc[0]


def test_paths_part_where_they_were_made_to_and_not_by_chance():
    rng = np.random.default_rng(0)
    common = 0.5 + 0.01 * rng.standard_normal((3, 8))
    apart = common + np.where(np.arange(8) >= 5, 0.4, 0.0)
    flow = flow_of(
        {"a": [apart, common], "b": [common + 0.002 * rng.standard_normal((3, 8)), common]}, teacher=(0.7, 0.9)
    )
    found = compare_paths(flow, "a", "b")
    assert found.partings.set_index("layer")["phase"].to_dict() == {"l0": 16, "l1": -1}
    # The last phases differ by 200 standard deviations and by less than three of them.
    assert found.partings.set_index("layer")["screened"].to_dict() == {"l0": 16, "l1": -1}
    assert found.settings["seeds"] == [0, 1, 2]
    far = found.distances.set_index("phase")["distance"]
    assert far[40] == pytest.approx(0.4 / np.sqrt(2), abs=0.01)
    assert far[0] < 0.01
    assert "l1: no difference detected" in str(found)
    assert found.to_dict()["first"] == "a"
    alarms = 0
    for seed in range(20):
        same = flow_of({"a": [np.full(8, 0.5)], "b": [np.full(8, 0.5)]}, rng=np.random.default_rng(seed))
        alarms += bool(compare_paths(same, "a", "b").differences["apart"].any())
    assert alarms <= 1 + 3 * np.sqrt(1)  # 5 % of 20, and three deviations
    for given, said in ((("a", "c"), "no student network 'c'"), (("a", "a"), "Name two")):
        with pytest.raises(InputError, match=said):
            compare_paths(flow, *given)
    with pytest.raises(InputError, match="level is 2"):
        compare_paths(flow, "a", "b", level=2)


def test_compression_is_geometry_of_the_variance(tmp_path):
    rng = np.random.default_rng(0)
    store = ActivationStore(tmp_path / "s", network="student", seed=0)
    flow_rows = {"student": [np.linspace(0.4, 1.2, 8)]}
    for place, phase in enumerate(PHASES):
        scales = np.array([1.0, *([1.0 - 0.12 * place] * 5)])
        store.append({"l0": rng.standard_normal((300, 6)) * scales}, ids=np.arange(300), phase=phase)
    table = layer_geometry(store)
    assert table["value"].iloc[0] == pytest.approx(6 / 1.09, rel=0.02)
    variances = np.array([1.0, *([0.16**2] * 5)])
    variances /= variances.mean()
    assert table["value"].iloc[-1] == pytest.approx((variances / (variances + 0.09)).sum(), rel=0.15)
    reading = read_phases(flow_of(flow_rows, teacher=(0.7,)), geometry=table)
    moves = reading.movements[reading.movements["quantity"] == "effective_dimension"]
    assert "compression" in set(moves["reading"])
    store.append({"l0": np.zeros((300, 6))}, ids=np.arange(300), phase=99)
    with pytest.raises(InputError, match="is constant"):
        layer_geometry(store)
    with pytest.raises(InputError, match="noise is 0"):
        layer_geometry(store, noise=0)


def test_what_does_not_fit_is_refused():
    flow = flow_of({"s": [step(4)]})
    for given, said in (
        ({"quantity": "accuracy"}, "it must be one of"),
        ({"quantity": "cka"}, "no student rows of cka"),
        ({"shape": "round"}, 'shape is "round"'),
        ({"jitter": -1.0}, "jitter is -1"),
        ({"level": 0.0}, "level is 0"),
    ):
        with pytest.raises(InputError, match=said):
            read_phases(flow, **given)
    unknown = Flow(flow.frame.assign(standard_error=np.nan), flow.settings)
    with pytest.raises(InputError, match="unknown errors cannot be segmented"):
        read_phases(unknown)
