"""Matching maps, curves with change points, and D_F: what is drawn is what was found."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mikit import InformationFlow, InputError, match_layers, plot
from mikit.flow import Flow, match_flow, read_phases


@pytest.fixture(scope="module")
def reading(run):
    return read_phases(run)


def test_matching_maps_outline_the_choice_and_hatch_the_ties():
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 300, 3))
    match = match_layers({"a": a, "b": b, "c": c}, {"s": a + b + c, "t": a + 0.3 * b}, labels=np.arange(300) % 2)
    figure = plot.matching(match)
    assert [ax.get_title(loc="left").split("\n")[0] for ax in figure.axes] == [
        "most recoverable from",
        "linear CKA",
        "nearest label information",
        "nearest, in order",
    ]
    for ax, rule in zip(figure.axes, match.rules, strict=True):
        pooled = match.pooled(rule)
        boxes = {(int(p.get_y()), int(p.get_x())) for p in ax.patches if p.get_gid() == "chosen"}
        assert boxes == set(enumerate(pooled.chosen.tolist()))
        hatched = {(int(p.get_y()), int(p.get_x())) for p in ax.patches if p.get_gid() == "tied"}
        assert hatched == {tuple(cell) for cell in np.argwhere(pooled.tied).tolist()}
        drawn = np.asarray(ax.collections[0].get_array()).reshape(2, 3)
        expected = {"directional": pooled.shares, "cka": pooled.measured}.get(rule, np.sqrt(pooled.measured))
        np.testing.assert_allclose(drawn, expected)
    assert any("Not a correspondence" in text.get_text() for text in figure.texts)
    with pytest.raises(InputError, match='no rule "share"'):
        plot.matching(match, rules=["share"])


def test_matching_maps_of_a_flow_average_the_seeds(run):
    match = match_flow(run, networks=["student + VID"])
    figure = plot.matching(match, rules=["cka"])
    assert "means of 3 seeds" in figure.texts[-1].get_text().replace("\n", " ")
    two = match_flow(run)
    with pytest.raises(InputError, match="name one with network="):
        plot.matching(two)


def test_change_points_are_drawn_where_they_were_found(reading):
    figure = plot.change_points(reading, networks=["student + VID"], seed=1)
    own = reading.changes[reading.changes["network"].eq("student + VID") & reading.changes["seed"].eq(1)]
    order = [0, 1, 2, 4, 8, 16, 30]
    for ax in figure.axes:
        marked = own[own["layer"].eq(ax.get_title(loc="left"))]
        drawn = sorted(line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--")
        assert drawn == sorted(order.index(phase) - 0.5 for phase in marked["phase"])
    assert f"{len(own)} change points in 6 curves" in figure.texts[-1].get_text().replace("\n", " ")
    for given, said in (
        ({"quantity": "cka"}, 'no curves of "cka"'),
        ({"networks": ["x"]}, "no student network"),
        ({"seed": 9}, "has no seed 9"),
        ({"networks": list("abcd")}, "no student network"),
    ):
        with pytest.raises(InputError, match=said):
            plot.change_points(reading, **given)


def test_divergence_has_its_last_term_dotted(run, reading):
    figure = plot.divergence(reading, matching="nearest")
    ax = figure.axes[0]
    assert ax.get_yscale() == "log"
    table = reading.divergences[reading.divergences["matching"].eq("nearest")].groupby(["network", "phase"])
    dotted = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert len(dotted) == 2
    for line, network in zip(dotted, ("student alone", "student + VID"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), table["last"].mean()[network].to_numpy())
    with pytest.raises(InputError, match='no matching "best"'):
        plot.divergence(reading, matching="best")
    unlabelled = Flow(run.frame[run.frame["quantity"].eq("cka")], run.settings)
    with pytest.raises(InputError, match="without labels"):
        plot.divergence(read_phases(unlabelled))


def test_a_schedule_stands_in_a_panel_beneath_at_the_phases_drawn(reading):
    order = [0, 1, 2, 4, 8, 16, 30]
    weights = {phase: 2.0 * 0.9**phase for phase in range(40)}
    figure = plot.divergence(reading, schedule=weights)
    above, beneath = figure.axes
    (line,) = [one for one in beneath.lines if one.get_label() == "weight"]
    np.testing.assert_allclose(line.get_ydata(), [weights[phase] for phase in order])
    assert above.get_ylabel() == "D_F (nats², log)"
    assert beneath.get_ylabel() == "weight of\nthe loss"
    assert (above.get_xlabel(), beneath.get_xlabel()) == ("", "phase (not to scale)")
    assert above.get_position().height > 2.5 * beneath.get_position().height
    assert "Below: the weight at the recorded phases" in " ".join(figure.texts[-1].get_text().split())
    assert len(plot.divergence(reading).axes) == 1


def test_the_schedule_of_a_loss_is_the_one_it_has_while_training(reading):
    loss = InformationFlow((0, 1, 2), alpha=20.0, gamma=0.8)
    expected = []
    for epoch in (0, 1, 2, 4, 8, 16, 30):
        loss.set_epoch(epoch)
        expected.append(sum(loss.weights()[:-1]))
    loss.set_epoch(3)
    beneath = plot.divergence(reading, schedule=loss).axes[1]
    np.testing.assert_allclose(beneath.lines[0].get_ydata(), expected, rtol=1e-9)
    assert beneath.get_ylabel() == "fraction of\nintermediate\nlayers"
    assert int(loss.epoch) == 3
    measured = InformationFlow((0, 1), schedule="measured")
    for schedule, said in (
        ({0: 1.0, 1: 1.0}, "no weight for phases 2, 4, 8, 16, 30"),
        (dict.fromkeys((0, 1, 2, 4, 8, 16, 30), math.nan), "weights must be finite and not negative"),
        (measured, "depend on its measurements and not on the epoch"),
        ([1.0], "schedule is a list"),
    ):
        with pytest.raises(InputError, match=said):
            plot.divergence(reading, schedule=schedule)


def test_readings_that_mix_what_does_not_compare_are_refused(run, reading):
    labels = run.frame["quantity"].eq("label_information")
    later = run.frame["phase"].eq(30)
    for column, value, said in (
        ("n", 1000, r"2 numbers of samples N: 5,000 \(student alone, seed 0, phase 0, layer stem\), 1,000"),
        ("kind", "lower bound", "2 kinds"),
        ("probe", "lda", "2 probes"),
        ("readout", "grid", 'at layer "stem" have 2 readouts'),
        ("unit", "bits", "in bits and nats"),
    ):
        mixed = run.frame.assign(**{column: run.frame[column].where(~(labels & later), value)})
        read = read_phases(dataclasses.replace(run, frame=mixed), quantity="label_information")
        for draw in (plot.change_points, plot.divergence):
            with pytest.raises(InputError, match=said):
                draw(read)


def test_readings_carry_the_verdicts_of_their_rows(run, reading):
    figure = plot.divergence(reading)
    drawn = [p.get_gid() for p in figure.artists if str(p.get_gid()).startswith("verdict ")]
    assert "verdict unreliable" in drawn
    share = read_phases(run, quantity="recovered_share")
    other = plot.divergence(share)
    assert not [p for p in other.artists if str(p.get_gid()).startswith("verdict ")]
    assert "No verdicts: this reading is of recovered_share" in " ".join(other.texts[-1].get_text().split())
    assert not plot.change_points(share, verdicts=False).artists
