from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mikit.flow import compare_paths, critical_phases, data_processing_flags, flow_divergences, match_flow, read_phases
from mikit.flow.matching.result import NOT_A_FINDING
from mikit.reporting.charts import charts
from mikit.reporting.overview import overview, starting_points
from mikit.reporting.readings.divergence import flag_table, marks_of
from mikit.reporting.readings.matches import picks
from mikit.reporting.readings.sections import READINGS, readings

PHASES = [0, 1, 2, 4, 8, 16, 30]
NAMES = ["student alone", "student + VID"]


@pytest.fixture(scope="module")
def read(run):
    return readings(run, NAMES, PHASES)


def test_change_points_are_those_of_read_phases(read, run):
    for quantity in read["changes"]["drawn"]["quantities"]:
        name = {"recovered share": "recovered_share", "label information": "label_information"}[quantity["name"]]
        found = read_phases(run, quantity=name)
        told = [
            (NAMES[one["network"]], one["seed"], curve["layer"], PHASES[change["before"]], PHASES[change["after"]],
             change["confidence"])
            for one in quantity["runs"] for curve in one["curves"] for change in curve["changes"]
        ]  # fmt: skip
        wanted = [
            (row["network"], row["seed"], row["layer"], row["before"], row["phase"],
             pytest.approx(row["confidence"], rel=1e-2))
            for row in found.changes.to_dict("records")
        ]  # fmt: skip
        assert told
        assert len(told) == len(wanted)
        for one in told:
            assert one in wanted
        curves = {(one["network"], one["seed"], c["layer"]): c for one in quantity["runs"] for c in one["curves"]}
        for (network, seed, layer), rows in found.curves.groupby(["network", "seed", "layer"]):
            curve = curves[NAMES.index(network), seed, layer]
            assert curve["fitted"] == pytest.approx(rows.sort_values("phase")["fitted"].tolist(), rel=1e-3, abs=1e-9)
            assert curve["error"] == pytest.approx(rows.sort_values("phase")["standard_error"].tolist(), rel=1e-3)


def test_an_interval_reaches_back_to_the_recording_before(read, run):
    """A change placed at a recording lies between it and the one before, and so do the ends of its interval."""
    found = read_phases(run, quantity="label_information")
    row = found.changes.iloc[0]
    (quantity,) = (q for q in read["changes"]["drawn"]["quantities"] if q["name"] == "label information")
    curve = next(
        c
        for one in quantity["runs"]
        if NAMES[one["network"]] == row["network"] and one["seed"] == row["seed"]
        for c in one["curves"]
        if c["layer"] == row["layer"]
    )
    assert curve["changes"][0]["low"] == max(PHASES.index(row["low"]) - 1, 0)
    assert curve["changes"][0]["high"] == PHASES.index(row["high"])


def test_divergences_are_those_of_flow_divergences(read, run):
    table = flow_divergences(run)
    critical = critical_phases(table)
    matchings = read["divergence"]["drawn"]["matchings"]
    assert [one["name"] for one in matchings] == ["same depth", "nearest"]
    for matching in matchings:
        for part in matching["parts"]:
            rows = table[table["matching"].eq(matching["name"]) & table["network"].eq(NAMES[part["network"]])]
            for place, phase in enumerate(PHASES):
                own = rows[rows["phase"].eq(phase)]
                assert part["mean"][place] == pytest.approx(own["total"].mean(), rel=1e-3)
                assert part["last"][place] == pytest.approx(own["last"].mean(), rel=1e-3)
                assert part["largest"][place] == pytest.approx(own["total"].max(), rel=1e-3)
            falls = critical[critical["matching"].eq(matching["name"]) & critical["network"].eq(NAMES[part["network"]])]
            assert sum(step["seeds"] for step in part["steps"]) == len(falls) == part["seeds"]
            for step in part["steps"]:
                same = falls["from_phase"].eq(PHASES[step["from"]]) & falls["decision"].eq(step["decision"])
                assert same.sum() == step["seeds"]


def test_paths_are_those_of_compare_paths(read, run):
    for quantity in read["paths"]["drawn"]["quantities"]:
        name = {"recovered share": "recovered_share", "label information": "label_information"}[quantity["name"]]
        (pair,) = quantity["pairs"]
        found = compare_paths(run, NAMES[pair["first"]], NAMES[pair["second"]], quantity=name)
        assert (pair["first"], pair["second"]) == (1, 0)
        for layer in pair["layers"]:
            rows = found.differences[found.differences["layer"].eq(layer["layer"])].sort_values("phase")
            assert layer["difference"] == pytest.approx(rows["difference"].tolist(), rel=1e-3, abs=1e-9)
            assert layer["apart"] == rows["apart"].astype(int).tolist()
            parting = found.partings.set_index("layer")["phase"][layer["layer"]]
            assert layer["parts"] == (-1 if parting < 0 else PHASES.index(parting))


def test_matches_are_those_of_match_flow_and_what_is_lacking_is_said(read, run):
    match = match_flow(run, rules=["cka", "share"])
    for student in read["match"]["drawn"]["students"]:
        assert [panel["rule"] for panel in student["panels"]] == ["cka", "share"]
        for panel in student["panels"]:
            pooled = match.pooled(panel["rule"], network=NAMES[student["network"]])
            assert student["phase"] == pooled.phase == 30
            assert panel["chosen"] == pooled.chosen.tolist()
            assert np.array(panel["values"]) == pytest.approx(pooled.measured, rel=1e-3, abs=1e-9)
            assert panel["tied"] == pooled.tied.astype(int).tolist()
            assert [pick["decision"] == "tie" for pick in panel["picks"]] == pooled.undecided.tolist()
    (sentence,) = read["match"]["absent"]
    assert "student_noise=0.3 and a noise of 0.01" in sentence


def test_the_directional_rule_is_shown_where_the_flow_was_traced_for_it(make_flow):
    flow = make_flow(seeds=(0, 1), phases=(0, 8), noises=(0.01, 0.3))
    flow = dataclasses.replace(flow, settings=flow.settings | {"student_noise": 0.3})
    found = readings(flow, NAMES, [0, 8])["match"]
    assert found["absent"] == []
    (first, _) = found["drawn"]["students"]
    assert [panel["rule"] for panel in first["panels"]] == ["directional", "cka", "share"]
    assert first["panels"][0]["picks"][0]["unit"] == "nats"
    assert found["findings"][0].startswith("Layers of student alone by the directional rule: ")


def test_picks_name_the_second_best_and_its_distance(run):
    pooled = match_flow(run, rules=["cka"]).pooled("cka", network="student + VID")
    for row, pick in enumerate(picks(pooled)):
        values = pooled.measured[row]
        order = np.argsort(-values)
        assert pick["teacher_layer"] == pooled.teacher_layers[order[0]]
        assert pick["runner_up"] == pooled.teacher_layers[order[1]]
        assert pick["margin"] == pytest.approx(values[order[0]] - values[order[1]], rel=1e-6)
        assert (pick["decision"] == "tie") == (pick["margin"] < 2 * pick["standard_error"]) or pooled.undecided[row]


def test_every_reading_has_a_caveat():
    assert all(one.caveat for one in READINGS)
    assert NOT_A_FINDING in [one.caveat for one in READINGS]


def test_what_a_flow_cannot_carry_becomes_a_sentence(make_flow):
    bare = make_flow(labels=False, accuracy=False, seeds=(0,), phases=(5,), noises=(0.3,), networks=("student alone",))
    found = readings(bare, ["student alone"], [5])
    assert found["changes"]["drawn"] is None
    assert "was recorded at one phase only" in found["changes"]["absent"][0]
    assert found["divergence"] == {
        "drawn": None,
        "absent": [
            "No D_F: D_F compares label information of teacher and students, and this flow does not contain both. "
            "Trace with labels."
        ],
        "findings": [],
    }
    assert found["paths"]["absent"] == ["No comparison: the flow has fewer than two students."]
    assert found["match"]["drawn"] is not None


def test_skipped_rows_are_no_reason_to_fail(make_flow):
    flow = make_flow(seeds=(0,), phases=(0, 3, 9), noises=(0.3,))
    gone = flow.frame["layer"].eq("stage1") & flow.frame["phase"].eq(3)
    frame = flow.frame.assign(verdict=flow.frame["verdict"].where(~gone, "skipped"))
    frame["value"], frame["standard_error"] = frame["value"].where(~gone), frame["standard_error"].where(~gone)
    cut = dataclasses.replace(flow, frame=frame)
    found = readings(cut, NAMES, [0, 3, 9])
    assert "have no value" in found["divergence"]["absent"][0]
    assert found["changes"]["absent"]
    points = starting_points(cut, set())
    assert points[0][:2] == ("#verdicts", "Verdicts")
    assert f"{int(gone.sum())} skipped" in points[0][2]


def test_flags_reach_the_curves_and_the_table(run):
    flags = data_processing_flags(run)
    marks = marks_of(flags)
    (level,) = charts(run, marks)["quantities"]["label_information"]["levels"]
    own = flags[flags["quantity"].eq("label_information") & flags["network"].isin(NAMES)]
    assert sum(sum(part["rises"]) for part in level["parts"]) == len(own) > 0
    told = flag_table(run, flags)
    counted = {(row["network"], row["quantity"]): row["count"] for row in told["rows"]}
    share = flags[flags["network"].eq(NAMES[0]) & flags["quantity"].eq("recovered_share")]
    rows = run.frame[run.frame["network"].eq(NAMES[0]) & run.frame["quantity"].eq("recovered_share")]
    assert counted[NAMES[0], "recovered share"] == f"{len(share):,} of {len(rows):,}"


def test_what_is_impossible_is_listed(run):
    high = run.frame["quantity"].eq("label_information") & run.frame["layer"].eq("logits") & run.frame["phase"].eq(30)
    high &= run.frame["network"].eq(NAMES[1])
    wrong = dataclasses.replace(run, frame=run.frame.assign(value=run.frame["value"].where(~high, 2.6)))
    flags = data_processing_flags(wrong)
    told = flag_table(wrong, flags)
    assert told["count"] == 3
    assert f"{2.6 - math.log(10):+.3g} over the limit" in told["impossible"][0]
    assert marks_of(flags)[NAMES[1], 30, "logits"][1] == 3


def test_the_overview_tells_what_the_settings_hold(run):
    told = dict(overview(run))
    assert told["Samples"] == "N = 5,000; pooling (readout): pool"
    assert told["Settings"] == (
        "teacher noise σ = 0.1, 0.3 and 1, student noise 0.03, in RMS SDs of a layer; logistic probe; 5 folds"
    )
    assert told["Phases"] == "7: 0, 1, 2, 4, 8, 16 and 30"
    counts = run.frame["verdict"].value_counts()
    assert told["Verdicts"] == f"{len(run.frame):,} rows: " + ", ".join(
        f"{counts[name]:,} {name}" for name in ("trustworthy", "caution", "unreliable")
    )
