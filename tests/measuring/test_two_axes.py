"""A gap and an information side by side, as a result and as a picture."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

import mikit
from mikit import BothAxes, EnergyDistance, GaussianMI, InputError, both_axes
from mikit.core.measurement import Measurement

Array = np.ndarray[Any, Any]


def _teacher(n: int = 300) -> Array:
    return np.random.default_rng(0).standard_normal((n, 3))


def _pair(student: Array, name: str, discrepancy: Any = "energy") -> BothAxes:
    return both_axes(student, _teacher(), discrepancy, "gaussian", name=name, permutations=2)


@pytest.fixture(scope="module")
def pairs() -> list[BothAxes]:
    rng = np.random.default_rng(1)
    teacher = _teacher()
    noise = rng.standard_normal(teacher.shape)
    return [
        _pair(0.5 * teacher + 0.2 * noise, "student"),
        _pair((teacher + noise) / 2**0.5, "same law"),
        _pair(rng.permutation(teacher), "shuffled"),
        _pair(2 * noise, "independent"),
    ]


def test_the_four_corners(pairs: list[BothAxes]) -> None:
    assert [(pair.apart, pair.informed) for pair in pairs] == [
        (True, True),
        (False, True),
        (False, False),
        (True, False),
    ]
    assert pairs[2].finding == (
        "The two distributions are similar, but no information between partners was detected, as if the samples "
        "were shuffled."
    )
    for pair in pairs:
        assert pair.gap.kind == "discrepancy"
        assert pair.information.unit == "nats"
        assert pair.gap.data_hash == pair.information.data_hash
    truth = 3 * 0.5 * np.log(2)
    assert abs(pairs[1].information.value - truth) < 4 * pairs[1].information.standard_error


def test_what_is_printed_and_written(pairs: list[BothAxes]) -> None:
    printed = str(pairs[0])
    assert printed.startswith("student\nThe two distributions differ; samples are informative about their partners.")
    assert "feature  [" in printed
    assert " nats  [" in printed
    content = json.loads(json.dumps(pairs[0].to_dict(), allow_nan=False))
    assert content["finding"] == pairs[0].finding
    assert Measurement.from_dict(content["gap"]).value == pairs[0].gap.value


def test_the_gap_beyond_chance(pairs: list[BothAxes]) -> None:
    value, low, high = pairs[0].gap_beyond_chance
    assert (value, (low, high)) == (pairs[0].gap.value, pairs[0].gap.interval)
    biased = _pair(_teacher()[::-1] + 0.0, "reversed", EnergyDistance(form="biased"))
    value, low, high = biased.gap_beyond_chance
    assert value == biased.gap.parts["debiased"]
    assert low < value < high


def test_too_few_rows_to_ask() -> None:
    few = both_axes(_teacher(9)[:, :1], _teacher(9)[:, 1:2], EnergyDistance(), GaussianMI(), permutations=0)
    assert few.apart in (True, False)
    tiny = both_axes(_teacher(7)[:, :1], _teacher(7)[:, 1:2], EnergyDistance(), GaussianMI(), permutations=0)
    assert tiny.apart is None
    assert tiny.finding.startswith("Whether the distributions differ is not known")


def test_what_cannot_be_used_is_refused() -> None:
    x = _teacher(50)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"discrepancy": "ksg"}, "which is no discrepancy"),
        ({"information": "mmd"}, "does not estimate nats"),
        ({"information": "gaussian_kl"}, "does not estimate nats"),
        ({"information": "label_information"}, "does not estimate nats"),
        ({"discrepancy": "nothing"}, "no estimator"),
        ({"discrepancy": int}, "pass an estimator"),
    ]
    for given, said in cases:
        with pytest.raises(InputError, match=said):
            both_axes(x, x, **{"discrepancy": "energy", "information": "gaussian", **given})
    with pytest.raises(InputError, match="50 samples and y has 49"):
        both_axes(x, x[1:], "energy", "gaussian")


def test_the_picture(pairs: list[BothAxes]) -> None:
    figure = mikit.plot.both_axes(pairs)
    (ax,) = figure.axes
    assert ax.get_xlabel() == "discrepancy of the distributions (feature)"
    assert ax.get_ylabel() == "mutual information (nats)"
    drawn = [line for line in ax.lines if line.get_marker() not in ("None", "", None)]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in drawn] == [
        (pair.gap.value, pair.information.value) for pair in pairs
    ]
    assert len({(to_hex(line.get_color()), line.get_marker()) for line in drawn}) == len(pairs)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [pair.name for pair in pairs]
    shaded = [patch for patch in ax.patches if patch.get_linewidth() == 0]
    assert len(shaded) == 2
    assert "N\u00a0=\u00a0300" in figure.texts[-1].get_text()
    single = mikit.plot.both_axes(_pair(_teacher()[::-1] + 0.0, "", EnergyDistance(form="biased")))
    assert single.axes[0].get_xlabel() == "debiased discrepancy of the distributions (feature)"
    assert [text.get_text() for text in single.legends[0].get_texts()] == ["pair 1"]


def test_what_does_not_share_an_axis_is_refused(pairs: list[BothAxes]) -> None:
    with pytest.raises(InputError, match="cannot share an axis"):
        mikit.plot.both_axes([pairs[0], _pair(_teacher()[::-1] + 0.0, "other", "mmd")])
    with pytest.raises(InputError, match="no result"):
        mikit.plot.both_axes([])
