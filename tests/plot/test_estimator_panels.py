"""The estimator panel: kinds by marker, verdicts by fill, intervals, nulls and limits where they are."""

from __future__ import annotations

import dataclasses
import math

import pytest

from mikit import plot
from mikit.core.errors import InputError
from mikit.core.measurement import Check, Measurement, Null


def measured(**given):
    own = {
        "value": 1.0, "unit": "nats", "kind": "estimate", "interval": (0.9, 1.1), "standard_error": 0.05, "seed": 0,
        "ceiling": None, "checks": (), "null": Null((-0.02, 0.03), "rows"), "estimator": "KSG(k=5)", "chosen": "",
        "sizes": {"fit": 0, "select": 0, "report": 1000, "d_x": 3, "d_y": 2}, "parts": {}, "versions": {},
        "data_hash": "a" * 64, "wall_time": 1.0,
    }  # fmt: skip
    return Measurement(**(own | given))


LEARNED = {"fit": 600, "select": 200, "report": 200, "d_x": 3, "d_y": 2}
WARNED, FAILED = (Check("x", outcome, None, None, "Why.") for outcome in ("warn", "fail"))


@pytest.fixture
def four():
    return {
        "ksg": measured(ceiling=5.0),
        "nce": measured(kind="lower bound", value=0.8, sizes=LEARNED, ceiling=math.log(200), checks=(WARNED,)),
        "above": measured(kind="upper bound", value=1.6, interval=(1.5, 1.7), checks=(FAILED,), null=None),
        "reader": measured(kind="V-information", value=0.6, interval=(math.nan, math.nan)),
    }


def fill(point):
    return "none" if point.get_markerfacecolor() == "white" else point.get_fillstyle()


def lines(ax, label):
    return [line for line in ax.get_lines() if line.get_label() == label]


def test_markers_say_the_kind_fills_the_verdict_and_bars_the_interval(four):
    fig = plot.estimator_panel(four, truth=1.05)
    (ax,) = fig.axes
    points = [line for line in ax.get_lines() if line.get_label() in ("_trustworthy", "_caution", "_unreliable")]
    assert [(p.get_marker(), fill(p), p.get_xdata()[0], p.get_ydata()[0]) for p in points] == [
        ("o", "full", 1.0, 0),
        (">", "left", 0.8, 1),
        ("<", "none", 1.6, 2),
        ("D", "full", 0.6, 3),
    ]
    bars = [(list(line.get_xdata()), line.get_ydata()[0]) for line in lines(ax, "_interval")]
    assert bars == [([0.9, 1.1], 0), ([0.9, 1.1], 1), ([1.5, 1.7], 2)]
    assert [line.get_xdata()[0] for line in lines(ax, "_ceiling")] == [5.0, math.log(200)]
    nulls = [bar for bar in ax.patches if bar.get_width() == pytest.approx(0.05)]
    assert len(nulls) == 3
    assert lines(ax, "log N")[0].get_xdata()[0] == pytest.approx(math.log(1000))
    assert lines(ax, "true value")[0].get_xdata()[0] == 1.05
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ksg", "nce", "above", "reader"]
    assert [t.get_text() for t in ax.texts] == ["1  [0.9, 1.1]", "0.8  [0.9, 1.1]", "1.6  [1.5, 1.7]", "0.6"]
    assert ax.get_xlabel() == "mutual information (nats)"


def test_legend_and_caption_say_what_is_there_and_no_more(four):
    fig = plot.estimator_panel(four)
    told = [t.get_text() for t in fig.legends[0].get_texts()]
    assert "lower bound: the true value is to the right" in told
    assert "upper bound: the true value is to the left" in told
    assert {"trustworthy", "caution", "unreliable", "log N = 6.91 nats"} <= set(told)
    said = " ".join(fig.texts[-1].get_text().split())
    assert "nce on 200" in said
    assert "Sampling error unknown, no bar: reader" in said
    plain = plot.estimator_panel([measured(null=None), measured(null=None, estimator="KSG(k=3)")])
    told = [t.get_text() for t in plain.legends[0].get_texts()]
    assert told == ["estimate", "trustworthy", "log N = 6.91 nats"]
    assert [t.get_text() for t in plain.axes[0].get_yticklabels()] == ["KSG", "KSG (2)"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"unit": "bits"}, r"different units \(a: nats, b: bits\)\. Draw them separately"),
        ({"sizes": LEARNED | {"fit": 700}}, r"numbers of samples N \(a: 1,000, b: 1,100\).*same samples"),
        ({"noise": 0.1}, r"declared noise \(a: none, b: 0\.1\).*same noise"),
        ({"data_hash": "b" * 64}, r"differ in their data \(a: aaaaaaaaaaaa, b: bbbbbbbbbbbb\)"),
        ({"kind": "index"}, 'b is a measurement of kind "index" in nats, not information'),
    ],
)
def test_measurements_of_different_things_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        plot.estimator_panel({"a": measured(), "b": measured(**given)})


def test_what_is_no_measurement_or_no_information_is_refused():
    with pytest.raises(InputError, match="no measurement to draw"):
        plot.estimator_panel([])
    with pytest.raises(InputError, match="a is a float"):
        plot.estimator_panel({"a": 1.0})
    gap = dataclasses.replace(measured(), unit="feature²", kind="discrepancy")
    with pytest.raises(InputError, match="both_axes"):
        plot.estimator_panel([gap])
