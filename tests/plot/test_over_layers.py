from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from mikit import plot
from mikit.core.errors import InputError


def lines(ax, label):
    return [line for line in ax.get_lines() if line.get_label() == label]


def caption(fig):
    return " ".join(fig.texts[-1].get_text().split())


def legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def chosen(frame, quantity, network, phase=None, layer=None, **more):
    rows = frame[frame["quantity"].eq(quantity) & frame["network"].eq(network)]
    for name, value in {"phase": phase, "layer": layer, **more}.items():
        rows = rows if value is None else rows[rows[name].eq(value)]
    return rows


def changed(run, **columns):
    return dataclasses.replace(run, frame=run.frame.assign(**columns))


def test_flow_draws_the_means_of_the_frame_and_the_band_of_its_seeds(run):
    fig = plot.flow(run)
    assert isinstance(fig, Figure)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["student alone", "student + VID"]
    for ax in fig.axes:
        network = ax.get_title(loc="left")
        for phase in (0, 2, 4, 8, 30):
            (line,) = lines(ax, f"phase {phase}")
            values = chosen(run.frame, "label_information", network, phase).groupby("layer_index")["value"]
            np.testing.assert_array_equal(line.get_xdata(), range(6))
            np.testing.assert_allclose(line.get_ydata(), values.mean(), rtol=1e-12)
            (band,) = [c for c in ax.collections if c.get_label() == f"_band phase {phase}"]
            edges = band.get_paths()[0].vertices
            for place, (low, high) in enumerate(zip(values.min(), values.max(), strict=True)):
                here = edges[np.isclose(edges[:, 0], place), 1]
                assert here.min() == pytest.approx(low, rel=1e-12)
                assert here.max() == pytest.approx(high, rel=1e-12)
        (teacher,) = lines(ax, "teacher")
        assert teacher.get_linestyle() == "--"
        final = chosen(run.frame, "label_information", "teacher").sort_values("layer_index")["value"]
        np.testing.assert_allclose(teacher.get_ydata(), final)
        (entropy,) = lines(ax, "H(Y)")
        assert entropy.get_linestyle() == ":"
        assert entropy.get_ydata()[0] == pytest.approx(math.log(10))
        assert ax.get_ylim()[0] == 0


def test_flow_says_unit_readout_n_probe_seeds_and_the_phases_left_out(run):
    fig = plot.flow(run)
    assert fig.axes[0].get_ylabel() == "label information (nats)"
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == [
        "stem", "stage1", "stage2", "stage3", "pooled", "logits",
    ]  # fmt: skip
    said = caption(fig)
    for fact in ("Pooling pool", "N = 5,000", "Logistic probe", "3 seeds (0, 1, 2)", "0, 2, 4, 8, 30 of 0, 1, 2, 4"):
        assert fact in said
    assert "teacher, final (1 run)" in legend(fig)
    assert [t.get_text() for t in fig.axes[0].texts] == [f"phase {p}" for p in (0, 2, 4, 8, 30)]
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim()


def test_line_end_labels_do_not_touch(run):
    fig = plot.flow(run)
    fig.draw_without_rendering()
    for ax in fig.axes:
        boxes = sorted((t.get_window_extent() for t in ax.texts), key=lambda b: b.y0)
        assert len(boxes) == 5
        for below, above in itertools.pairwise(boxes):
            assert above.y0 >= below.y1 - 0.25 * below.height


def test_unreliable_points_are_hollow_and_the_legend_says_so(run):
    fig = plot.flow(run)
    (hollow,) = lines(fig.axes[0], "_unreliable phase 2")
    assert hollow.get_markerfacecolor() == "white"
    np.testing.assert_array_equal(hollow.get_xdata(), [0, 1])
    assert not lines(fig.axes[0], "_unreliable phase 30")
    assert "hollow: judged unreliable" in legend(fig)
    trusted = changed(run, verdict="trustworthy")
    assert "hollow: judged unreliable" not in legend(plot.flow(trusted))


def test_phases_are_chosen_named_and_refused(run):
    fig = plot.flow(run, phases=[16, 1])
    assert [t.get_text() for t in fig.axes[0].texts] == ["phase 1", "phase 16"]
    with pytest.raises(InputError, match="up to 5"):
        plot.flow(run, phases=[0, 1, 2, 4, 8, 16])
    with pytest.raises(InputError, match=r"no phase \[3\]"):
        plot.flow(run, phases=[3])
    with pytest.raises(InputError, match="no student network"):
        plot.flow(run, networks=["nobody"])


def test_units_are_never_mixed_on_one_axis(run):
    units = run.frame["unit"].where(run.frame["phase"] != 30, "bits")
    with pytest.raises(InputError, match="bits and nats"):
        plot.flow(changed(run, unit=units.where(run.frame["quantity"] == "label_information", "nats")))
    wrong = run.frame["unit"].where(run.frame["quantity"] != "cka", "nats")
    with pytest.raises(InputError, match="mislabels"):
        plot.maps(changed(run, unit=wrong), quantity="cka")


def test_repeated_rows_are_refused(run):
    import pandas as pd

    again = run.frame[run.frame["quantity"].eq("label_information")].assign(probe="lda")
    twice = dataclasses.replace(run, frame=pd.concat([run.frame, again], ignore_index=True))
    with pytest.raises(InputError, match="differ in probe"):
        plot.flow(twice)


def test_a_run_without_labels_says_what_is_missing(make_flow):
    bare = make_flow(labels=False, accuracy=False, phases=(0, 30), noises=(0.3,))
    for draw in (plot.flow, plot.gap):
        with pytest.raises(InputError, match="traced without labels"):
            draw(bare)
    with pytest.raises(InputError, match="No accuracy was recorded"):
        plot.accuracy(bare)
    assert len(plot.phases(bare).axes) == 6
    empty = dataclasses.replace(bare, frame=bare.frame.iloc[:0])
    for draw in (plot.flow, plot.gap, plot.accuracy, plot.phases, plot.maps):
        with pytest.raises(InputError, match="no student rows"):
            draw(empty)
    with pytest.raises(InputError, match="lacks the columns"):
        plot.flow(dataclasses.replace(bare, frame=bare.frame.drop(columns="unit")))


def test_one_seed_one_phase_has_no_band_and_says_so(make_flow):
    one = make_flow(seeds=(4,), phases=(9,), noises=(0.3,))
    for draw in (plot.flow, plot.phases, plot.gap, plot.accuracy):
        fig = draw(one)
        assert not [c for ax in fig.axes for c in ax.collections]
        assert "1 run (seed 4), no band" in caption(fig)
    assert "one run has no seed SD" in caption(plot.maps(one))


def test_a_teacher_with_other_layers_is_drawn_at_relative_depth(make_flow):
    other = make_flow(layers=("a", "b", "c"), teacher_layers=("t0", "t1", "t2", "t3", "t4"), noises=(0.3,))
    fig = plot.flow(other)
    (teacher,) = lines(fig.axes[0], "teacher")
    np.testing.assert_allclose(teacher.get_xdata(), [0, 0.5, 1, 1.5, 2])
    assert "same relative depth" in caption(fig)


def test_saturation_is_printed(run):
    assert "aturated" not in caption(plot.flow(run))
    easy = dataclasses.replace(run, settings=run.settings | {"label_entropy": 0.6})
    fig = plot.flow(easy)
    assert "Saturated" in caption(fig)
    assert "saturated" in [t.get_text() for t in fig.axes[0].texts]


def test_gap_is_signed_around_a_zero_line_with_three_phases(run):
    fig = plot.gap(run)
    assert len(fig.axes) == 2
    for ax in fig.axes:
        assert [t.get_text() for t in ax.texts] == ["phase 0", "phase 4", "phase 30"]
        assert lines(ax, "zero")[0].get_ydata()[0] == 0
        (line,) = lines(ax, "phase 30")
        rows = chosen(run.frame, "label_gap", ax.get_title(loc="left"), 30)
        np.testing.assert_allclose(line.get_ydata(), rows.groupby("layer_index")["value"].mean())
    assert fig.axes[0].get_ylabel() == "student − teacher (nats)"


@pytest.mark.parametrize(("percent", "scale"), [(False, 1.0), (True, 100.0)])
def test_accuracy_curves_carry_their_bands_and_the_teacher(run, percent, scale):
    fig = plot.accuracy(run, percent=percent)
    (ax,) = fig.axes
    assert ax.get_ylabel() == ("accuracy (%)" if percent else "accuracy (fraction)")
    for network in ("student alone", "student + VID"):
        (line,) = lines(ax, network)
        means = chosen(run.frame, "accuracy", network).groupby("phase")["value"].mean()
        np.testing.assert_allclose(line.get_ydata(), scale * means)
    assert lines(ax, "teacher")[0].get_ydata()[0] == pytest.approx(scale * 0.74)
    assert len(ax.collections) == 2
    assert "not to scale" in ax.get_xlabel()


def test_phases_draw_the_share_of_the_matching_layer_with_floor_and_null(run):
    fig = plot.phases(run)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["stem", "stage1", "stage2", "stage3", "pooled", "logits"]
    assert fig.axes[0].get_ylim() == (0, 1)
    for ax in fig.axes:
        layer = ax.get_title(loc="left")
        for network in ("student alone", "student + VID"):
            (line,) = lines(ax, network)
            rows = chosen(run.frame, "recovered_share", network, layer=layer, teacher_layer=layer, noise=0.3)
            np.testing.assert_allclose(line.get_ydata(), rows.groupby("phase")["value"].mean())
            np.testing.assert_array_equal(line.get_xdata(), range(7))
        (floor,) = lines(ax, "untrained")
        assert floor.get_linestyle() == ":"
        assert floor.get_ydata()[0] == pytest.approx(rows["untrained"].mean(), abs=1e-9)
        np.testing.assert_allclose(lines(ax, "null")[0].get_ydata(), 0.004)
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["0", "1", "2", "4", "8", "16", "30"]
    said = caption(fig)
    assert "Teacher noise σ = 0.3 and student noise σ = 0.03, in RMS SDs of the layer" in said
    assert "not to scale" in said
    assert {"student alone", "student + VID"} <= set(legend(fig))
    assert "untrained network" in legend(fig)


def test_colors_are_fixed_by_network(run):
    fig = plot.phases(run, networks=["student + VID", "student alone"])
    assert lines(fig.axes[0], "student alone")[0].get_color() == "#6e6e6e"
    assert lines(fig.axes[0], "student + VID")[0].get_color() == "#0173b2"


def test_phases_take_another_noise_or_quantity(run):
    values = {}
    for noise in (0.1, 1.0):
        values[noise] = lines(plot.phases(run, noise=noise).axes[0], "student alone")[0].get_ydata()[-1]
    assert values[0.1] > values[1.0]
    with pytest.raises(InputError, match=r"measured noise levels: 0\.1, 0\.3, 1"):
        plot.phases(run, noise=0.2)
    with pytest.raises(InputError, match="cannot be drawn"):
        plot.phases(run, quantity="label_gap")
    labels = plot.phases(run, quantity="label_information")
    assert labels.axes[0].get_ylabel() == "label information (nats)"
    assert lines(labels.axes[3], "teacher")[0].get_ydata()[0] == pytest.approx(1.54)
    assert "nats" not in plot.phases(run, quantity="cka").axes[0].get_ylabel()


def test_phases_follow_the_pairing_the_flow_used(make_flow):
    other = make_flow(layers=("a", "b", "c"), teacher_layers=("t0", "t1", "t2", "t3", "t4"), noises=(0.3,))
    assert [ax.get_title(loc="left") for ax in plot.phases(other).axes] == ["a → t0", "b → t2", "c → t4"]
    bare = make_flow(layers=("a", "b", "c"), teacher_layers=("t0", "t1", "t2", "t3", "t4"), noises=(0.3,), labels=False)
    assert [ax.get_title(loc="left") for ax in plot.phases(bare).axes] == ["a → t0", "b → t2", "c → t4"]


def test_values_outside_0_and_1_are_shown_not_cut(run):
    low = run.frame["value"].where(~(run.frame["quantity"].eq("recovered_share") & run.frame["phase"].eq(1)), -0.2)
    fig = plot.phases(changed(run, value=low))
    assert fig.axes[0].get_ylim()[0] < -0.2
