"""Matching of layers: planted pairs, honest ties, joins, what is suggested from it, and what is refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

import mikit
from mikit import ActivationStore, InputError, match_layers, suggest_pairs, trace
from mikit.flow import Flow, match_flow
from mikit.flow.matching.layers import label_cells
from mikit.flow.matching.result import LayerMatch, match_frame
from mikit.functional.flow.flow_vectors import monotone_matching, nearest_matching
from mikit.functional.flow.recovery import recovered_share

N = 800
IDS = np.arange(100, 100 + N)


def teacher_layers(seed=0, n=N):
    """Three layers, each computed from the one before, that hold less and less; and labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    low = rng.standard_normal((n, 8)) + 0.8 * np.random.default_rng(1).standard_normal((3, 8))[y]
    middle = np.tanh(low @ np.random.default_rng(2).standard_normal((8, 5)) / 2)
    high = np.maximum(middle @ np.random.default_rng(3).standard_normal((5, 3)), 0)
    return {"low": low, "middle": middle, "high": high}, y


def planted(noise, seed=0):
    """A student whose layers are the teacher's, scaled, turned and noisy."""
    layers, y = teacher_layers(seed)
    rng = np.random.default_rng([9, seed])
    student = {}
    for name, rows in layers.items():
        turn = np.linalg.qr(rng.standard_normal((rows.shape[1],) * 2))[0]
        student["own " + name] = 3 * (rows @ turn + noise * rows.std() * rng.standard_normal(rows.shape))
    return layers, student, y


def stores(tmp_path, seeds=(0,), phases=(3,), noise=0.5):
    layers, _, y = planted(0.0)
    teacher = ActivationStore(tmp_path / "teacher", network="teacher")
    teacher.append(layers, ids=IDS, phase=9)
    students = []
    for seed in seeds:
        store = ActivationStore(tmp_path / f"student{seed}", network="student", seed=seed)
        for phase in phases:
            order = np.random.default_rng([seed, phase]).permutation(N)
            own = planted(noise if phase else 50.0)[1] if seed == 0 else planted(noise * (1 + seed), 0)[1]
            store.append({name: rows[order] for name, rows in own.items()}, ids=IDS[order], phase=phase)
        students.append(store)
    return teacher, students, y


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
def test_planted_pairs_are_found_and_clear(noise):
    teacher, student, y = planted(noise)
    match = match_layers(teacher, student, labels=y)
    assert match.rules == ("directional", "cka", "nearest", "monotone")
    found = match.chosen[match.chosen["rule"] == "directional"]
    assert found["teacher_layer"].tolist() == list(teacher)
    assert set(found["decision"]) == {"clear"}
    assert (found["margin"] > 2 * found["standard_error"]).all()


def test_the_directional_value_is_what_the_student_layer_gives_from_the_teacher_layer():
    teacher, student, _ = planted(0.5)
    match = match_layers(teacher, student, rules=["directional", "held_out"])
    frame = match.frame.set_index(["rule", "layer", "teacher_layer"])
    for (own, rows), (name, told) in product(student.items(), teacher.items()):
        # The student's layer is the one to be recovered: it has the 0.3, and the ceiling is its own.
        whole = recovered_share(told, rows, noise=[0.3], student_noise=0.01)[0]
        cell = frame.loc[("held_out", own, name)]
        assert cell["value"] == pytest.approx(whole.held_out, abs=1e-9)
        assert cell["share"] == pytest.approx(whole.held_out / whole.ceiling, abs=1e-9)
        cell = frame.loc[("directional", own, name)]
        assert cell["value"] == pytest.approx(whole.corrected, abs=1e-9)
        assert cell["held_out"] == pytest.approx(whole.held_out, abs=1e-9)


def test_exchangeable_layers_tie_and_the_error_is_that_of_new_draws():
    clear, margins, errors = 0, [], []
    for seed in range(60):
        a, b, blur = np.random.default_rng(seed).standard_normal((3, 300, 3))
        found = match_layers({"a": a, "b": b}, {"s": a + b + 0.3 * blur}, rules=["directional"], folds=3)
        row = found.chosen.iloc[0]
        clear += row["decision"] == "clear"
        margins.append(row["margin"] * (1 if row["teacher_layer"] == "a" else -1))
        errors.append(row["standard_error"])
    # Four standard deviations of 60 draws at 4.6 %, and of a standard deviation from 60 draws.
    assert clear <= 60 * 0.046 + 4 * np.sqrt(60 * 0.046)
    assert np.mean(errors) == pytest.approx(np.std(margins), rel=4 / np.sqrt(120))


def test_nearest_and_monotone_agree_with_the_formulas_and_cost_what_the_divergence_grows_by():
    rng = np.random.default_rng(0)
    for _ in range(20):
        own, other = rng.standard_normal((2, 4))
        for rule, formula in (("nearest", nearest_matching), ("monotone", monotone_matching)):
            cells = pd.DataFrame(label_cells(rule, list("abcd"), list("ABCD"), own, other, lambda s, t: 1.0, basis=""))
            table = cells.pivot_table(index="layer_index", columns="teacher_layer_index", values="behind", dropna=False)
            chosen = cells[cells["chosen"]]["teacher_layer_index"].tolist()
            assert tuple(chosen) == formula(torch.from_numpy(own), torch.from_numpy(other))
            least = sum((own[i] - other[j]) ** 2 for i, j in enumerate(chosen))
            for i, j in product(range(3), range(4)):
                ways = (w for w in product(range(4), repeat=4) if w[3] == 3 and w[i] == j)
                ways = (w for w in ways if rule == "nearest" or list(w) == sorted(w))
                best = min(sum((own[k] - other[m]) ** 2 for k, m in enumerate(w)) for w in ways)
                assert table.loc[i, j] == pytest.approx(best - least, abs=1e-12)
            assert cells[cells["layer_index"] == 3]["declared"].all()


def test_the_error_of_a_label_margin_is_that_of_the_difference_on_the_same_rows():
    slopes = []
    own, other = np.array([0.5, 1.0]), np.array([0.2, 0.9])

    def error(mine, theirs):
        slopes.append((mine, theirs))
        return 0.1

    list(label_cells("nearest", ["a", "b"], ["A", "B"], own, other, error, basis=""))
    # To move the first layer from A (gap 0.3) to B (gap -0.4): the derivative of 0.16 - 0.09 in all three values.
    step = 1e-6
    for side, index in ((0, 0), (1, 0), (1, 1)):
        moved = [own.copy(), other.copy()]
        moved[side][index] += step
        change = (moved[0][0] - moved[1][1]) ** 2 - (moved[0][0] - moved[1][0]) ** 2 - (0.16 - 0.09)
        assert slopes[0][side][index] == pytest.approx(change / step, abs=1e-5)


def test_stores_are_joined_by_id_and_seeds_pooled(tmp_path):
    teacher, students, y = stores(tmp_path, seeds=(0, 1, 2))
    match = match_layers(teacher, students, labels=y, rules=["directional", "monotone"])
    arrays = match_layers(planted(0.0)[0], planted(0.5)[1], rules=["directional"])
    mine = match.frame[(match.frame["seed"] == 0) & (match.frame["rule"] == "directional")]
    # The folds are dealt by id, so other rows stand in each; the values agree within what that moves them.
    assert np.allclose(mine["value"], arrays.frame["value"], atol=0.05)
    pooled = match.pooled("directional")
    assert pooled.seeds == 3
    assert pooled.chosen.tolist() == [0, 1, 2]
    assert "3 seeds" in pooled.basis
    spread = match.frame[match.frame["rule"] == "directional"].pivot_table(
        index=["layer", "teacher_layer"], columns="seed", values="behind"
    )
    least = spread.std(axis=1, ddof=1) / np.sqrt(3)
    for i, j in ((0, 1), (2, 0)):
        assert pooled.errors[i, j] >= least[pooled.layers[i], pooled.teacher_layers[j]] - 1e-12


def test_a_flow_with_the_noise_of_the_rule_gives_its_values(tmp_path):
    teacher, students, y = stores(tmp_path, phases=(0, 3))
    flow = trace(teacher, students, labels=y, noise=[0.01, 0.3], student_noise=0.3, probe="lda")
    match = match_flow(flow)
    assert match.rules == ("directional", "cka", "share", "nearest", "monotone")
    rows = match_layers(teacher, students, labels=y, rules=["held_out", "cka", "nearest", "monotone"])
    for rule in ("directional", "cka", "nearest", "monotone"):
        both = [match.pooled(rule), rows.pooled("held_out" if rule == "directional" else rule)]
        assert np.allclose(both[0].measured, both[1].measured, atol=1e-6)
        assert both[0].chosen.tolist() == both[1].chosen.tolist()
    assert match.phases == (3,)
    assert match_flow(flow, rules=["cka"], phases=[0]).phases == (0,)
    plain = trace(teacher, students, noise=[0.3])
    assert match_flow(plain).rules == ("cka", "share")
    with pytest.raises(InputError, match=r"the values that the rule \"directional\" compares.*student_noise=0.3"):
        match_flow(plain, rules=["directional"])
    with pytest.raises(InputError, match="no share at noise 7"):
        match_flow(plain, noise=7.0)
    with pytest.raises(InputError, match="has no phase 4"):
        match_flow(plain, phases=[4])
    with pytest.raises(InputError, match="needs activations"):
        match_flow(plain, rules=["held_out"])
    # Where the middle of the bracket does not agree, the held-out end decides nothing.
    direct = flow.frame["quantity"].eq("recovered_share") & flow.frame["noise"].eq(0.01)
    wide = flow.frame["teacher_layer"].eq("high") & flow.frame["layer"].eq("own low")
    frame = flow.frame.copy()
    frame.loc[direct & wide, "in_sample"] += 50.0
    found = match_flow(Flow(frame, flow.settings), rules=["directional"]).chosen
    assert found["decision"].tolist()[0] == "tie"


def test_with_few_rows_the_held_out_score_picks_a_narrow_layer_and_the_corrected_one_does_not():
    found = dict.fromkeys(("directional", "held_out"), 0)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        wide = rng.standard_normal((500, 40))
        narrow = wide[:, :8] @ rng.standard_normal((8, 8))
        student = {"s": wide + 3 * rng.standard_normal((500, 40))}
        chosen = match_layers({"wide": wide, "narrow": narrow}, student, rules=list(found)).chosen
        for rule, pick in zip(chosen["rule"], chosen["teacher_layer"], strict=True):
            found[rule] += pick == "wide"
    assert found["directional"] == 10
    assert found["held_out"] < 5


def made_match(behind, errors, rule="cka", networks=("student",), declared=()):
    behind, errors = np.asarray(behind, dtype=float), np.asarray(errors, dtype=float)
    rows = []
    for network in networks:
        for (i, j), gap in np.ndenumerate(behind):
            where = {"network": network, "seed": 0, "phase": 4, "rule": rule, "layer": f"s{i}", "layer_index": i}
            cell = {"teacher_layer": f"t{j}", "teacher_layer_index": j, "value": 1 - gap, "unit": "dimensionless"}
            cell |= {"held_out": np.nan}
            tied = {"chosen": gap == 0, "tied": 0 < gap < 2 * errors[i, j], "declared": i in declared}
            rows.append(
                where | cell | tied | {"share": np.nan, "behind": gap, "standard_error": errors[i, j], "basis": ""}
            )
    return LayerMatch(match_frame(rows), {})


def test_suggested_pairs_keep_the_order_and_say_where_they_left_the_pick():
    behind = [[0.0, 0.2, 0.4], [0.5, 0.3, 0.0], [0.4, 0.0, 0.1]]
    pairs = suggest_pairs(made_match(behind, np.full((3, 3), 0.01)), loss="a loss")
    assert list(pairs.items()) == [(("s0", "t0"), "a loss"), (("s1", "t2"), "a loss"), (("s2", "t2"), "a loss")]
    assert pairs.evidence["decision"].tolist() == ["clear", "clear", "moved by order"]
    assert pairs.evidence["margin"].tolist() == pytest.approx([0.2, 0.3, -0.1])
    assert pairs.evidence["best"].tolist() == ["t0", "t2", "t1"]
    assert not pairs.fallen_back
    assert "No rule shows that two layers correspond" in str(pairs)
    assert pairs.to_dict()["pairs"] == [["s0", "t0"], ["s1", "t2"], ["s2", "t2"]]


def test_where_everything_ties_the_same_depth_is_suggested_and_said():
    behind = [[0.0, 0.2, 0.4], [0.0, 0.3, 0.2], [0.0, 0.2, 0.1]]
    pairs = suggest_pairs(made_match(behind, np.full((3, 3), 1.0)))
    assert list(pairs) == [("s0", "t0"), ("s1", "t1"), ("s2", "t2")]
    assert pairs.fallen_back
    assert set(pairs.evidence["decision"]) == {"tie"}
    assert "Every choice is a tie" in pairs.sentence
    assert set(pairs.values()) == {mikit.VID}


def test_a_layer_keeps_its_depth_when_others_are_left_out():
    pairs = suggest_pairs(made_match(np.eye(3) == 0, np.full((3, 3), 9.0)), layers=["s1"])
    assert list(pairs) == [("s1", "t1")]
    with pytest.raises(InputError, match="no student layer 's9'"):
        suggest_pairs(made_match(np.eye(3) == 0, np.full((3, 3), 9.0)), layers=["s9"])
    with pytest.raises(InputError, match="name one with network="):
        suggest_pairs(made_match(np.eye(2) == 0, np.ones((2, 2)), networks=("a", "b")))
    with pytest.raises(InputError, match='no rule "share"'):
        suggest_pairs(made_match(np.eye(2) == 0, np.ones((2, 2))), rule="share")


def test_suggested_pairs_are_what_layer_pairs_takes():
    student, teacher = (mikit.models.ResNet8(width=width) for width in (0.25, 0.5))
    images = mikit.datasets.digits().train.images[:300]
    layers = ["stage1", "stage2"]
    acts = []
    for network in (teacher, student):
        with mikit.capture(network.eval(), layers, readout="pool") as found, torch.no_grad():
            network(images)
        acts.append({name: rows.numpy() for name, rows in found.items()})
    pairs = suggest_pairs(match_layers(*acts, rules=["cka"]), loss=mikit.PKT)
    trained = mikit.LayerPairs(student.train(), teacher, pairs, example=images)
    assert set(trained.pairs) == set(pairs)


def test_what_does_not_fit_is_refused(tmp_path):
    teacher, student, y = planted(0.5)
    refused = [
        ({"rules": ["best"]}, 'no rule "best"'),
        ({"rules": []}, "Pass a list of rules"),
        ({"rules": ["nearest"]}, "there are no labels"),
        ({"rules": ["share"]}, "needs a flow"),
        ({"noise": 0.0}, "noise is 0.0"),
        ({"teacher_noise": float("nan")}, "teacher_noise is nan"),
        ({"probe": "mlp"}, 'probe is "mlp"'),
        ({"phases": [1]}, "arrays have only one phase"),
        ({"labels": y[:-1]}, "799 labels for 800 samples"),
        ({"folds": 2}, "folds is 2"),
        ({"layers": ["nothing"]}, "has no layer to match"),
    ]
    for given, said in refused:
        with pytest.raises(InputError, match=said):
            match_layers(teacher, student, **given)
    for layer, said in (
        (np.zeros((N, 2)), "is constant"),
        (student["own low"][:-1], "same number"),
        (np.zeros((N, 2, 2)), "Pool or flatten"),
        (np.full((N, 2), np.nan), "NaN"),
        (np.random.default_rng(0).standard_normal((N, 160)), "too few for a student layer of 160"),
    ):
        with pytest.raises(InputError, match=said):
            match_layers(teacher, {"s": layer})
    store = ActivationStore(tmp_path / "s", network="s")
    with pytest.raises(InputError, match="for both"):
        match_layers(store, student)
    with pytest.raises(InputError, match="for both"):
        match_layers(teacher, store)


def test_what_is_returned_prints_and_travels():
    teacher, student, y = planted(0.5)
    match = match_layers(teacher, student, labels=y)
    said = match.to_dict()
    assert len(said["cells"]) == 9 * 4
    assert said["sentence"] in str(match)
    assert "own high → high (declared)" in str(match)
    with pytest.raises(InputError, match="no network 'x'"):
        match.pooled("cka", network="x")
    with pytest.raises(InputError, match="no phase 3"):
        match.pooled("cka", phase=3)
