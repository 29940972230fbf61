"""The noisy information plane: paths of the means, the cap, and what stands at it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mikit import plot
from mikit.core.errors import InputError

CAP = math.log(5000)
LAYERS = ("stem", "mid", "fc")


@pytest.fixture(scope="module")
def flow(make_flow):
    return make_flow(phases=(0, 4, 30), seeds=(0, 1), layers=LAYERS, noises=(0.3,), plane=(0.3, 1.0, 3.0))


def rows(flow, quantity, network, layer, noise=None):
    frame = flow.frame
    own = frame[frame["quantity"].eq(quantity) & frame["network"].eq(network) & frame["layer"].eq(layer)]
    return (own if noise is None else own[own["noise"].eq(noise)]).groupby("phase")["value"]


def named(artists, label):
    return [one for one in artists if one.get_label() == label]


def test_paths_are_the_means_of_both_informations(flow):
    fig = plot.information_plane(flow, noise=3.0)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["student alone", "student + VID"]
    for ax in fig.axes:
        network = ax.get_title(loc="left")
        for layer in LAYERS:
            (path,) = named(ax.get_lines(), layer)
            x = rows(flow, "input_information", network, layer, 3.0)
            y = rows(flow, "label_information", network, layer)
            np.testing.assert_allclose(path.get_xdata(), x.mean())
            np.testing.assert_allclose(path.get_ydata(), y.mean())
            (points,) = named(ax.collections, f"_points {layer}")
            assert list(points.get_sizes()) == [4.0, 10.0, 30.0]
            (across,) = named(ax.collections, f"_across {layer}")
            ends = [(segment[0][0], segment[1][0]) for segment in across.get_segments()]
            np.testing.assert_allclose(ends, np.column_stack([x.min(), x.max()]))
        (cap,) = named(ax.get_lines(), "log N")
        assert cap.get_xdata()[0] == pytest.approx(CAP)
        (entropy,) = named(ax.get_lines(), "H(Y)")
        assert entropy.get_ydata()[0] == pytest.approx(math.log(10))
        assert ax.patches[0].get_x() == pytest.approx(0.92 * CAP)
        (teacher,) = named(ax.get_lines(), "teacher")
        assert len(teacher.get_xdata()) == 3
    assert fig.axes[0].get_xlabel() == "I(X; T + noise), σ = 3 (nats)"
    assert fig.axes[0].get_ylabel() == "I(T; Y), found by the probe (nats)"
    assert fig.axes[0].get_xlim()[1] > CAP


def test_points_within_8_percent_of_the_cap_are_hollow(flow):
    fig = plot.information_plane(flow, noise=0.3, networks=["student + VID"])
    for layer in LAYERS:
        (points,) = named(fig.axes[0].collections, f"_points {layer}")
        largest = rows(flow, "input_information", "student + VID", layer, 0.3).max().to_numpy()
        hollow = [bool(np.allclose(face[:3], 1.0)) for face in points.get_facecolors()]
        assert hollow == list(largest >= 0.92 * CAP)
    told = [t.get_text() for t in fig.legends[0].get_texts()]
    assert "hollow: at the cap, or judged unreliable" in told
    assert f"cap: log N = {CAP:.2f} nats" in told
    said = " ".join(fig.texts[-1].get_text().split())
    assert "Geometry, not gain or loss of information" in said
    assert "Noise levels measured: 0.3, 1, 3" in said


def test_the_noise_is_the_smallest_that_leaves_the_cap(flow):
    assert "σ = 1" in plot.information_plane(flow).axes[0].get_xlabel()
    stuck = flow.frame["value"].where(flow.frame["quantity"] != "input_information", CAP)
    fig = plot.information_plane(dataclasses.replace(flow, frame=flow.frame.assign(value=stuck)))
    assert "σ = 3" in fig.axes[0].get_xlabel()
    assert "100 % of the points are at the cap" in " ".join(fig.texts[-1].get_text().split())


def test_rows_without_one_of_the_two_are_counted(flow):
    gone = flow.frame["quantity"].eq("label_information") & flow.frame["phase"].eq(4) & flow.frame["layer"].eq("mid")
    holed = flow.frame.assign(value=flow.frame["value"].where(~gone))
    fig = plot.information_plane(dataclasses.replace(flow, frame=holed))
    (path,) = named(fig.axes[0].get_lines(), "mid")
    assert len(path.get_xdata()) == 2
    assert "4 rows without one of the two values are not drawn" in " ".join(fig.texts[-1].get_text().split())


def test_what_has_no_plane_is_refused(flow, run):
    with pytest.raises(InputError, match="information_plane=True"):
        plot.information_plane(run)
    with pytest.raises(InputError, match=r"measured noise levels: 0\.3, 1, 3"):
        plot.information_plane(flow, noise=0.5)
    plane = flow.frame["quantity"].eq("input_information")
    for column, value, said in (("n", 700, r"N = 700 samples .* N = 5,000"), ("unit", "bits", "in bits .* in nats")):
        other = flow.frame[column].where(~plane, value)
        with pytest.raises(InputError, match=said):
            plot.information_plane(dataclasses.replace(flow, frame=flow.frame.assign(**{column: other})))
