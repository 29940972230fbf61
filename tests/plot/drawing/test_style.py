from __future__ import annotations

import dataclasses
import itertools
import sys

import matplotlib
import pytest
from hypothesis import given, strategies as st

from mikit import plot
from mikit.core.errors import InputError
from mikit.plot.drawing.names import short_names, spread
from mikit.plot.drawing.saving import svg_of
from mikit.plot.drawing.style import network_colors, phase_ramp

HOSTILE = "<script>alert(1)</script>"


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), min_size=1, max_size=12, unique=True))
def test_short_names_stay_short_and_different(names):
    if len({"".join(c if c.isprintable() else " " for c in n) for n in names}) < len(names):
        return
    short = short_names(names)
    assert len(set(short)) == len(names)
    assert all(len(name) <= 14 for name in short)


def test_short_names_keep_what_tells_layers_apart():
    assert short_names(["stem", "fc"]) == ["stem", "fc"]
    assert short_names(["a.stage1.0.conv2", "a.stage1.1.conv2", "a.fc"]) == ["s1.0.conv2", "s1.1.conv2", "fc"]
    assert short_names(["module.encoder.layer"]) == ["m.e.layer"]


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.floats(0.01, 0.12),
)
def test_spread_keeps_order_and_distance(places, gap):
    moved = spread(places, gap, 0.0, 1.0)
    ranked = [moved[i] for i in sorted(range(len(places)), key=lambda i: (places[i], i))]
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(ranked))
    assert min(moved) >= -1e-9
    assert max(moved) <= 1 + 1e-9
    if all(abs(a - b) >= gap + 1e-9 for i, a in enumerate(places) for b in places[:i]):
        assert moved == pytest.approx(places, abs=1e-9)


def test_colors_differ_and_the_ramp_gets_darker():
    names = ["VID", "VID twice", "alone", "broken", *(f"net {i}" for i in range(12))]
    colors = network_colors(names)
    assert len(set(colors.values())) == len(names)
    assert (colors["VID"], colors["alone"], colors["broken"]) == ("#0173b2", "#6e6e6e", "#d55e00")
    light = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in phase_ramp(5)]
    assert light == sorted(light, reverse=True)


def test_figures_leave_matplotlib_as_it_was(run):
    before = dict(matplotlib.rcParams)
    matplotlib.rcParams["font.size"] = 31
    try:
        fig = plot.phases(run)
        assert matplotlib.rcParams["font.size"] == 31
        assert fig.axes[0].get_xticklabels()[0].get_fontsize() == 7.5
    finally:
        matplotlib.rcParams["font.size"] = before["font.size"]
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def apart(flow):
    return plot.students(flow, "student + VID", "student alone")


@pytest.mark.parametrize("count", [3, 12])
@pytest.mark.parametrize("draw", [plot.flow, plot.gap, plot.phases, plot.maps, plot.information_plane, apart])
def test_no_text_overlaps_or_leaves_the_figure(make_flow, draw, count):
    layers = [f"backbone.stage{1 + i // 4}.{i % 4}.conv{1 + i % 2}" for i in range(count)]
    fig = draw(make_flow(layers=layers, seeds=(0, 1), phases=(0, 120), noises=(0.3,), plane=(1.0,)))
    fig.draw_without_rendering()
    width, height = fig.bbox.width, fig.bbox.height
    apart = [t for ax in fig.axes for t in (ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label) if t.get_text()]
    apart += [*fig.texts, *fig.legends[0].get_texts()]
    boxes = [t.get_window_extent() for t in apart]
    for box, text in zip(boxes, apart, strict=True):
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
    for i, one in enumerate(boxes):
        for j in range(i):
            assert not one.overlaps(boxes[j]), (apart[i].get_text(), apart[j].get_text())
    for ax in fig.axes:
        ticks = [t for t in ax.get_xticklabels() if t.get_text() and t.get_visible()]
        if ticks and ticks[0].get_rotation() == 0:
            extents = [t.get_window_extent() for t in ticks]
            assert all(a.x1 < b.x0 + 0.5 for a, b in itertools.pairwise(extents))


def test_hostile_names_are_text_in_the_svg(make_flow):
    fig = plot.flow(make_flow(layers=(HOSTILE, "$x^2$", "a & b"), noises=(0.3,)))
    labels = [t.get_text() for t in fig.axes[0].get_xticklabels()]
    assert labels[1:] == ["$x^2$", "a & b"]
    assert "<script" not in svg_of(fig).decode()


def test_svg_and_png_are_the_same_bytes_every_time(run, tmp_path):
    first = plot.save_figure(plot.gap(run), tmp_path / "a", "phases")
    again = plot.save_figure(plot.gap(run), tmp_path / "b", "phases")
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert b"<dc:date>" not in first[1].read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["phases.png", "phases.svg"]


@pytest.mark.parametrize("stem", ["", "../up", "a/b", ".hidden", "x" * 101, "nul\0"])
def test_stems_that_are_no_file_names_are_refused(run, tmp_path, stem):
    with pytest.raises(InputError, match="is not a valid name for a figure file"):
        plot.save_figure(plot.accuracy(run), tmp_path, stem)


def test_missing_values_leave_a_gap_in_the_line(run):
    gone = run.frame["value"].where(~(run.frame["layer"].eq("stage2") & run.frame["phase"].eq(30)))
    holed = dataclasses.replace(run, frame=run.frame.assign(value=gone))
    (line,) = [one for one in plot.flow(holed).axes[0].get_lines() if one.get_label() == "phase 30"]
    assert [str(v) == "nan" for v in line.get_ydata()] == [False, False, True, False, False, False]
    assert len(plot.maps(holed, phases=[30]).axes) == 5
