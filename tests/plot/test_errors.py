"""No figure mixes what does not compare: units, kinds, probes, readouts of one layer, numbers of samples."""

from __future__ import annotations

import dataclasses

import pytest

from mikit import plot
from mikit.core.errors import InputError

PAIR = ("student + VID", "student alone")
DRAW = {
    "flow": (plot.flow, "label_information"),
    "gap": (plot.gap, "label_gap"),
    "phases": (plot.phases, "recovered_share"),
    "phases of labels": (lambda flow: plot.phases(flow, quantity="label_information"), "label_information"),
    "maps": (plot.maps, "recovered_share"),
    "maps of CKA": (lambda flow: plot.maps(flow, quantity="cka"), "cka"),
    "animate_maps": (lambda flow: plot.animate_maps(flow, "nowhere/maps.gif"), "recovered_share"),
    "students": (lambda flow: plot.students(flow, *PAIR), "recovered_share"),
    "plane, across": (plot.information_plane, "input_information"),
    "plane, upwards": (plot.information_plane, "label_information"),
}
WHERE = r"\(student .+?, seed 0, phase 0, layer stem\)"
MIXED = {
    "unit": ("bits", "two units cannot share one axis|mislabels its unit"),
    "kind": ("lower bound", f"2 kinds: .*{WHERE}.*They are not comparable"),
    "probe": ("other", f"2 probes: .*{WHERE}.*Trace all of them with one probe"),
    "n": (1000, f"2 numbers of samples N: 5,000 {WHERE}, 1,000 .*Trace all of them on the same samples"),
    "readout": ("grid", 'at layer "stem" have 2 readouts: "pool" .*"grid" .*Record it under another name'),
}


@pytest.fixture(scope="module")
def small(make_flow):
    return make_flow(phases=(0, 30), seeds=(0,), layers=("stem", "fc"), noises=(0.3,), plane=(1.0,))


@pytest.mark.parametrize("column", MIXED)
@pytest.mark.parametrize("what", DRAW)
def test_rows_that_differ_are_refused_with_a_sentence(small, tmp_path, monkeypatch, what, column):
    monkeypatch.chdir(tmp_path)
    draw, quantity = DRAW[what]
    value, said = MIXED[column]
    later = small.frame["quantity"].eq(quantity) & small.frame["phase"].eq(30)
    mixed = small.frame.assign(**{column: small.frame[column].where(~later, value)})
    with pytest.raises(InputError, match=said) as refused:
        draw(dataclasses.replace(small, frame=mixed))
    assert str(refused.value).endswith(".")
    assert not list(tmp_path.iterdir())


def test_accuracy_refuses_two_units_and_takes_any_number_of_images(small):
    later = small.frame["quantity"].eq("accuracy") & small.frame["phase"].eq(30)
    percent = small.frame.assign(unit=small.frame["unit"].where(~later, "%"))
    with pytest.raises(InputError, match="two units cannot share one axis"):
        plot.accuracy(dataclasses.replace(small, frame=percent))
    counts = small.frame.assign(n=small.frame["n"].where(~later, 10_000))
    assert plot.accuracy(dataclasses.replace(small, frame=counts)).axes


def test_another_readout_under_another_name_is_drawn(small):
    other = small.frame["readout"].where(small.frame["layer"] != "fc", "flat")
    fig = plot.flow(dataclasses.replace(small, frame=small.frame.assign(readout=other)))
    assert "Pooling flat, pool" in fig.texts[-1].get_text()


def test_two_axes_refuse_other_kinds_and_other_numbers_of_rows():
    import numpy as np

    from mikit import both_axes
    from mikit.core.measurement import Measurement

    rows = np.random.default_rng(0).standard_normal((60, 2))
    pair = both_axes(rows[::-1].copy(), rows, "energy", "gaussian", name="a", permutations=0)
    known: Measurement = pair.information
    bound = dataclasses.replace(pair, name="b", information=dataclasses.replace(known, kind="lower bound"))
    with pytest.raises(InputError, match=r"kinds of information \(a: estimate, b: lower bound\)\. Measure all pairs"):
        plot.both_axes([pair, bound])
    fewer = dataclasses.replace(known, sizes={**known.sizes, "report": 50})
    with pytest.raises(InputError, match=r"numbers of samples N \(a: 60, b: 50\)"):
        plot.both_axes([pair, dataclasses.replace(pair, name="b", information=fewer)])
