"""The verdict bar: what it counts is what is drawn, and it is legible in grey."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mikit import plot
from mikit.flow import read_phases
from mikit.plot.drawing.bands import _LOOKS, VerdictBar, verdict_bar

WORDS = ("trustworthy", "caution", "unreliable", "skipped")


@pytest.fixture(scope="module")
def small(make_flow):
    flow = make_flow(phases=(0, 2, 30), seeds=(0, 1), layers=("a", "b", "c"), noises=(0.3,), plane=(1.0,))
    skipped = flow.frame["phase"].eq(30) & flow.frame["layer"].eq("c") & flow.frame["seed"].eq(1)
    return dataclasses.replace(flow, frame=flow.frame.assign(verdict=flow.frame["verdict"].mask(skipped, "skipped")))


def drawn(fig):
    return [one for one in fig.artists if one.get_gid() in {f"verdict {word}" for word in WORDS}]


def counted(fig):
    words = {"T": "trustworthy", "C": "caution", "U": "unreliable", "S": "skipped"}
    found = {}
    for text in fig.texts:
        parts = text.get_text().split()
        if len(parts) == 3 and words.get(parts[0]) == parts[1]:
            found[parts[1]] = int(parts[2].replace(",", ""))
    return found


def test_cells_are_as_wide_as_their_counts():
    first = [*WORDS, "trustworthy", "trustworthy"]
    table = pd.DataFrame({"phase": [0] * 6 + [8] * 2, "verdict": [*first, "trustworthy", "trustworthy"]})
    strip = verdict_bar(table, "phase", [0, 8])
    assert strip.counts == ({"trustworthy": 3, "caution": 1, "unreliable": 1, "skipped": 1}, {"trustworthy": 2})
    assert strip.totals == {"trustworthy": 5, "caution": 1, "unreliable": 1, "skipped": 1}
    fig = Figure(figsize=(5, 2))
    strip.draw(fig, 0.1, 0.1, 4.0)
    boxes = drawn(fig)
    assert [box.get_gid() for box in boxes] == [*(f"verdict {word}" for word in WORDS), "verdict trustworthy"]
    widths = np.array([box.get_width() for box in boxes])
    np.testing.assert_allclose(widths / widths[4], [3 / 6, 1 / 6, 1 / 6, 1 / 6, 1.0])
    assert boxes[4].get_x() > boxes[3].get_x() + boxes[3].get_width()
    unknown = verdict_bar(table.assign(verdict="odd"), "phase", [0, 8])
    assert unknown.totals == {"unreliable": 8}


def test_verdicts_differ_in_grey_and_by_hatch():
    grey = {word: float(np.dot((0.299, 0.587, 0.114), to_rgb(look[0]))) for word, look in _LOOKS.items()}
    ordered = sorted(grey.values())
    assert grey["unreliable"] < 0.35 < 0.6 < grey["caution"] < 0.8 < grey["trustworthy"] < grey["skipped"]
    assert min(b - a for a, b in itertools.pairwise(ordered)) > 0.09
    assert len({(look[1], round(grey[word], 1)) for word, look in _LOOKS.items()}) == 4
    assert _LOOKS["caution"][1] != _LOOKS["skipped"][1] != ""


@pytest.mark.parametrize(
    ("draw", "quantity", "by"),
    [
        (plot.flow, "label_information", "layer"),
        (plot.gap, "label_gap", "layer"),
        (plot.phases, "recovered_share", "phase"),
        (plot.maps, "recovered_share", "phase"),
        (plot.accuracy, "accuracy", "phase"),
        (plot.information_plane, "input_information", "phase"),
        (
            lambda flow, **given: plot.students(flow, "student + VID", "student alone", **given),
            "recovered_share",
            "phase",
        ),
        (lambda flow, **given: plot.change_points(read_phases(flow), **given), "label_information", "phase"),
        (lambda flow, **given: plot.divergence(read_phases(flow), **given), "label_information", "phase"),
    ],
)
def test_the_bar_counts_the_rows_that_are_drawn(small, draw, quantity, by):
    fig = draw(small)
    frame = small.frame
    rows = frame[frame["quantity"].eq(quantity) & frame["role"].eq("student")]
    if draw is plot.phases or (quantity == "recovered_share" and draw is not plot.maps):
        rows = rows[rows["layer"].eq(rows["teacher_layer"])]
    if any("Change points of the curves" in t.get_text() for t in fig.texts):
        rows = rows[rows["seed"].eq(0)]
    expected = rows["verdict"].value_counts()
    assert counted(fig) == {word: int(expected[word]) for word in WORDS if word in expected}
    heading = [t.get_text() for t in fig.texts if t.get_text().startswith("Verdicts of")]
    assert heading == [f"Verdicts of the plotted student rows, by {by}:"]
    without = draw(small, verdicts=False)
    assert not drawn(without)
    assert without.get_size_inches()[1] < fig.get_size_inches()[1] - 0.3
    assert len(without.axes) == len(fig.axes)
    assert without.texts[-1].get_text() == fig.texts[-1].get_text()


def test_many_phases_keep_their_cells_and_lose_some_numbers_only():
    strip = VerdictBar("phase", tuple(map(str, range(0, 300, 5))), ({"trustworthy": 7},) * 60)
    fig = Figure(figsize=(4.2, 2))
    strip.draw(fig, 0.1, 0.1, 4.0)
    assert len(drawn(fig)) == 60
    fig.draw_without_rendering()
    names = [t for t in fig.texts if t.get_text().isdigit()]
    boxes = [t.get_window_extent() for t in names]
    assert len(names) > 5
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))
