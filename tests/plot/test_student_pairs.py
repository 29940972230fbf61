"""Student against student: differences by seed, the band of errors, and the phase from which they part."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mikit import plot
from mikit.core.errors import InputError
from mikit.flow import compare_paths

PAIR = ("student + VID", "student alone")


def lines(ax, label):
    return [line for line in ax.get_lines() if line.get_label() == label]


def differences(frame, quantity, layer):
    rows = frame[frame["quantity"].eq(quantity) & frame["layer"].eq(layer)]
    if quantity == "recovered_share":
        rows = rows[rows["noise"].eq(0.3) & rows["teacher_layer"].eq(layer)]
    wide = rows[rows["network"].isin(PAIR)].pivot(index=["phase", "seed"], columns="network", values="value")
    return (wide[PAIR[0]] - wide[PAIR[1]]).groupby("phase").agg(["mean", "min", "max"])


@pytest.mark.parametrize("quantity", ["recovered_share", "label_information"])
def test_lines_bands_and_partings_are_those_of_the_frame(run, quantity):
    fig = plot.students(run, *PAIR, quantity=quantity)
    found = compare_paths(run, *PAIR, quantity=quantity)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["stem", "stage1", "stage2", "stage3", "pooled", "logits"]
    parted = 0
    for ax in fig.axes:
        layer = ax.get_title(loc="left")
        expected = differences(run.frame, quantity, layer)
        (line,) = lines(ax, "difference")
        np.testing.assert_allclose(line.get_ydata(), expected["mean"])
        (band,) = [c for c in ax.collections if c.get_label() == "_seeds"]
        assert band.get_datalim(ax.transData).y0 == pytest.approx(expected["min"].min())
        assert band.get_datalim(ax.transData).y1 == pytest.approx(expected["max"].max())
        (errors,) = [c for c in ax.collections if c.get_label() == "_within errors"]
        limits = found.differences[found.differences["layer"].eq(layer)]["threshold"]
        assert errors.get_datalim(ax.transData).y1 == pytest.approx(limits.max())
        at = int(found.partings.set_index("layer")["phase"][layer])
        marked = lines(ax, "apart from here")
        assert [line.get_xdata()[0] for line in marked] == ([] if at < 0 else [[0, 1, 2, 4, 8, 16, 30].index(at)])
        parted += at >= 0
    assert fig.axes[0].get_ylim()[1] < 0.9
    said = " ".join(fig.texts[-1].get_text().split())
    assert "Above 0, student + VID has more than student alone" in said
    assert "errors from 3 seeds" in said
    assert ("Different to the end: no layer" in said) == (parted == 0)


def test_the_unit_is_on_the_axis_and_an_index_has_none(run):
    assert plot.students(run, *PAIR, quantity="label_information").axes[0].get_ylabel().endswith("(nats)")
    cka = plot.students(run, *PAIR, quantity="cka")
    assert cka.axes[0].get_ylabel() == "difference of\nlinear CKA"


def test_one_seed_says_that_training_is_not_in_the_errors(make_flow):
    one = make_flow(seeds=(4,), phases=(0, 9, 30), layers=("a", "b"), noises=(0.3,))
    fig = plot.students(one, *PAIR)
    assert not [c for ax in fig.axes for c in ax.collections if c.get_label() == "_seeds"]
    assert "1 run of each (seed 4): errors include the sampling of samples, not the randomness of training" in " ".join(
        fig.texts[-1].get_text().split()
    )


def test_what_cannot_be_compared_is_refused(run):
    with pytest.raises(InputError, match=r"Both students are .* Pass two different ones"):
        plot.students(run, PAIR[0], PAIR[0])
    with pytest.raises(InputError, match="no student network"):
        plot.students(run, PAIR[0], "nobody")
    with pytest.raises(InputError, match="no path over phases"):
        plot.students(run, *PAIR, quantity="accuracy")
    other = run.frame["layer"].where(run.frame["network"] != PAIR[1], "x" + run.frame["layer"])
    with pytest.raises(InputError, match="different layers"):
        plot.students(dataclasses.replace(run, frame=run.frame.assign(layer=other)), *PAIR)
