from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from mikit import plot
from mikit.core.errors import InputError

LAYERS = ["stem", "stage1", "stage2", "stage3", "pooled", "logits"]


def wide(frame, quantity, network, phase, how="mean"):
    rows = frame[frame["quantity"].eq(quantity) & frame["network"].eq(network) & frame["phase"].eq(phase)]
    if quantity == "recovered_share":
        rows = rows[rows["noise"].eq(0.3)]
    table = rows.groupby(["layer", "teacher_layer"])["value"].agg(how).unstack()
    return table.loc[LAYERS, LAYERS].to_numpy()


def drawn(ax):
    return np.asarray(ax.collections[0].get_array()).reshape(6, 6)


def boxes(ax):
    return {(int(p.get_x()), int(p.get_y())) for p in ax.patches if isinstance(p, Rectangle) and not p.get_fill()}


def maps_of(fig):
    return [ax for ax in fig.axes if ax.collections and ax.get_label() != "<colorbar>"]


@pytest.fixture(scope="module")
def fig(run):
    return plot.maps(run)


def test_maps_hold_the_means_teacher_across_student_upwards(run, fig):
    axes = maps_of(fig)
    assert len(axes) == 12
    for row, network in enumerate(("student alone", "student + VID")):
        for column, phase in enumerate((0, 2, 8, 30)):
            ax = axes[4 * row + column]
            values = wide(run.frame, "recovered_share", network, phase)
            np.testing.assert_allclose(drawn(ax), values, rtol=1e-12)
            assert ax.get_ylim() == (0, 6)
            assert boxes(ax) == {(j, int(values[:, j].argmax())) for j in range(6)}
            shown = {(t.get_position()[0] - 0.5, t.get_position()[1] - 0.5): t.get_text() for t in ax.texts}
            assert len(shown) == 36
            assert shown[(1, 2)] == f"{values[2, 1]:.2f}"[1:]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == LAYERS
    assert [t.get_text() for t in axes[-1].get_xticklabels()] == LAYERS
    assert axes[-1].get_xlabel() == "teacher layer"


def test_all_maps_share_one_scale_and_the_difference_is_diverging(run, fig):
    axes = maps_of(fig)
    assert {(ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) for ax in axes[:8]} == {(0, 0.8)}
    difference = axes[8].collections[0].norm
    assert difference.vmin == -difference.vmax
    high = maps_of(plot.maps(run, quantity="cka"))[0].collections[0].norm
    assert (high.vmin, high.vmax) == (0, 1.0)


def test_difference_prints_only_cells_above_three_seed_sd(run, fig):
    for phase, ax in zip((0, 2, 8, 30), maps_of(fig)[8:], strict=True):
        gap = wide(run.frame, "recovered_share", "student + VID", phase)
        gap = gap - wide(run.frame, "recovered_share", "student alone", phase)
        np.testing.assert_allclose(drawn(ax), gap, atol=1e-12)
        variances = [
            wide(run.frame, "recovered_share", name, phase, "std") ** 2 for name in ("student alone", "student + VID")
        ]
        clear = np.abs(gap) > 3 * np.sqrt(sum(variances) / 2)
        places = {(int(t.get_position()[1]), int(t.get_position()[0])) for t in ax.texts}
        assert places == {tuple(place) for place in np.argwhere(clear).tolist()}
    assert "3 seeds: an exploratory comparison, not a test" in " ".join(fig.texts[-1].get_text().split())


def test_one_network_has_no_difference_row(run):
    assert len(maps_of(plot.maps(run, networks=["student + VID"]))) == 4
    reversed_pair = maps_of(plot.maps(run, difference=("student alone", "student + VID"), phases=[30]))[-1]
    assert drawn(reversed_pair).min() < -0.2
    with pytest.raises(InputError, match="not drawn"):
        plot.maps(run, difference=("student alone", "nobody"))


def test_unreliable_cells_are_marked(run):
    fig = plot.maps(run, phases=[30])
    (marks,) = [line for line in maps_of(fig)[0].get_lines() if line.get_label() == "unreliable"]
    assert {(int(x), int(y)) for x, y in zip(*marks.get_data(), strict=True)} == {(4, 0), (5, 0)}
    assert "hollow: judged unreliable" in [t.get_text() for t in fig.legends[0].get_texts()]


def test_eight_phases_go_on_in_a_second_block_with_the_same_scales(make_flow):
    phases = (0, 1, 2, 4, 8, 16, 30)
    fig = plot.maps(make_flow(phases=phases, seeds=(0, 1), noises=(0.3,)), phases=phases)
    axes = maps_of(fig)
    assert len(axes) == 3 * 7
    titled = [ax.get_title(loc="left") for ax in axes if ax.get_title(loc="left")]
    assert titled == [f"phase {phase}" for phase in phases]
    assert [len(ax.texts) for ax in axes if ax.get_title(loc="left")] == [36] * 7
    differences = [ax for ax in axes if ax.get_xlabel() == "teacher layer"]
    assert len(differences) == 7
    assert len({ax.collections[0].norm.vmax for ax in differences}) == 1
    others = [ax for ax in axes if ax not in differences]
    assert len({ax.collections[0].norm.vmax for ax in others}) == 1
    tops = {ax.get_title(loc="left"): ax.get_position().y0 for ax in axes if ax.get_title(loc="left")}
    assert tops["phase 0"] == pytest.approx(tops["phase 4"])
    assert tops["phase 0"] > tops["phase 8"] + 0.3
    lefts = {ax.get_title(loc="left"): ax.get_position().x0 for ax in axes if ax.get_title(loc="left")}
    assert lefts["phase 2"] == pytest.approx(lefts["phase 30"])
    assert len(maps_of(plot.maps(make_flow(phases=phases, seeds=(0,), noises=(0.3,))))) == 12


def test_at_most_eight_phases_and_only_layer_by_layer_quantities(make_flow, run):
    many = make_flow(phases=range(9), seeds=(0,), noises=(0.3,), labels=False)
    with pytest.raises(InputError, match="up to 8"):
        plot.maps(many, phases=list(range(9)))
    with pytest.raises(InputError, match="no map of layers"):
        plot.maps(run, quantity="label_information")


def test_no_nats_on_cka(run):
    fig = plot.maps(run, quantity="cka", phases=[30])
    said = [ax.get_ylabel() for ax in fig.axes] + [t.get_text() for t in fig.texts]
    assert not any("nats" in text for text in said)
    assert any("CKA" in ax.get_ylabel() for ax in fig.axes)
