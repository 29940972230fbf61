"""Matching maps, curves with change points, and D_F: what is drawn is what was found."""

from __future__ import annotations

import numpy as np
import pytest

from mikit import InputError, match_layers, plot
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
