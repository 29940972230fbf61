"""Flow: saved, loaded and judged."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from mikit.core.errors import InputError
from mikit.estimators.labels.label_information import RotatedInformation
from mikit.flow import Flow
from mikit.flow.result import COLUMNS, frame_of
from mikit.flow.tracing.snapshots import Pair, depth_match
from mikit.flow.tracing.verdicts import of_gap, of_information, of_share, of_similarity
from mikit.functional.flow.moments import Similarity
from mikit.functional.flow.recovery import Recovery


def _flow() -> Flow:
    row = {name: 0 if kind == "int64" else 0.1 if kind == "float64" else "x" for name, kind in COLUMNS.items()}
    rows = [row, {**row, "teacher_layer": "", "value": float("nan"), "reasons": 'quotes " and, commas; é\n'}]
    return Flow(frame_of(rows), {"n": 10, "noise": [0.1], "label_entropy": None, "wall_time": 1.5})


def test_round_trip(tmp_path) -> None:
    flow = _flow()
    folder = flow.save(tmp_path / "run")
    assert sorted(p.name for p in folder.iterdir()) == ["flow.csv", "flow.json", "flow.parquet"]
    loaded = Flow.load(folder)
    pd.testing.assert_frame_equal(loaded.frame, flow.frame, check_exact=True)
    assert loaded.settings == flow.settings
    table = pd.read_csv(folder / "flow.csv", keep_default_na=False)
    assert list(table.columns) == list(COLUMNS)
    assert table["reasons"][1] == 'quotes " and, commas; é\n'
    flow.save(folder)  # an earlier flow may be replaced


def test_folders_that_are_not_flows_are_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty and contains no flow"):
        _flow().save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        _flow().save(tmp_path / "thesis.tex")
    with pytest.raises(InputError, match="contains no flow"):
        Flow.load(tmp_path)


def test_damage_is_noticed(tmp_path) -> None:
    folder = _flow().save(tmp_path / "run")
    described = json.loads((folder / "flow.json").read_text())
    (folder / "flow.json").write_text(json.dumps({**described, "schema_version": 99}))
    with pytest.raises(InputError, match="version 99"):
        Flow.load(folder)
    (folder / "flow.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        Flow.load(folder)
    _flow().save(folder)
    (folder / "flow.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"does not match flow\.json"):
        Flow.load(folder)


def test_an_interrupted_save_leaves_no_half_flow(tmp_path, monkeypatch) -> None:
    folder = _flow().save(tmp_path / "run")

    def fails(*_args: object, **_kwargs: object) -> None:
        raise OSError("disk full")

    other = Flow(_flow().frame.assign(value=7.0), {"n": 1})
    monkeypatch.setattr(pd.DataFrame, "to_parquet", fails)
    with pytest.raises(OSError, match="disk full"):
        other.save(folder)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"does not match flow\.json"):
        Flow.load(folder)


def test_layers_match_by_relative_depth() -> None:
    assert [depth_match(i, 6, 6) for i in range(6)] == [0, 1, 2, 3, 4, 5]
    assert [depth_match(i, 3, 5) for i in range(3)] == [0, 2, 4]
    assert depth_match(0, 1, 4) == 3


def _information(value: float, fit_value: float, n: int = 4000) -> RotatedInformation:
    return RotatedInformation(value + 0.5 * np.tile([-1.0, 1.0], n // 2), fit_value, 5, 5)


@pytest.mark.parametrize(
    ("value", "fit_value", "null", "n", "width", "first", "verdict", "said"),
    [
        (1.0, 1.05, 0.0, 4000, 32, 0.5, "trustworthy", ""),
        (1.0, 1.15, 0.0, 4000, 32, 0.5, "caution", "clearly better"),
        (1.0, 1.6, 0.0, 4000, 32, 0.5, "unreliable", "far better"),
        (2.5, 2.5, 0.0, 4000, 32, 0.5, "unreliable", "above the labels' entropy"),
        (-0.01, 0.02, 0.0, 4000, 32, 0.5, "caution", "no information"),
        (1.0, 1.05, 0.2, 4000, 32, 0.5, "unreliable", "permuted labels"),
        (2.2, 2.25, 0.0, 4000, 32, 2.1, "caution", "saturated"),
        (1.0, 1.05, 0.0, 1000, 32, 0.5, "caution", "fewer than 2,000 samples"),
        (1.0, 1.05, 0.0, 300, 32, 0.5, "unreliable", "fewer than 500 samples"),
        (1.0, 1.05, 0.0, 4000, 1300, 0.5, "caution", "wide layer"),
    ],
)
def test_label_verdicts(value, fit_value, null, n, width, first, verdict, said) -> None:
    found = of_information(
        _information(value, fit_value, n),
        _information(null, null, n),
        n=n,
        width=width,
        folds=5,
        entropy=2.3,
        first=first,
    )
    assert found[0] == verdict
    assert said in found[1]
    assert bool(found[1]) == bool(said)


def _recovery(low: float, high: float, error: float = 0.001) -> Recovery:
    return Recovery(
        noise=0.3,
        student_noise=0.03,
        information=5 * (low + high),
        held_out=10 * low,
        in_sample=10 * high,
        corrected=10 * low,
        ceiling=10.0,
        standard_error=error,
        folds=5,
    )


@pytest.mark.parametrize(
    ("found", "null", "verdict", "said"),
    [
        (_recovery(0.49, 0.51), _recovery(-0.01, 0.01), "trustworthy", ""),
        (_recovery(0.45, 0.55), _recovery(-0.01, 0.01), "caution", "differ by more than 0.05"),
        (_recovery(0.2, 0.8), _recovery(-0.01, 0.01), "unreliable", "differ by more than 0.2"),
        (_recovery(1.04, 1.05), None, "unreliable", "outside 0 to 1"),
        (_recovery(-0.05, -0.04), None, "unreliable", "outside 0 to 1"),
        (_recovery(0.49, 0.51), _recovery(0.03, 0.05), "caution", "not near 0"),
        (_recovery(0.49, 0.51), _recovery(0.38, 0.4), "unreliable", "same size"),
        (Recovery(0.3, 0.03, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5), None, "unreliable", "is constant"),
    ],
)
def test_share_verdicts(found, null, verdict, said) -> None:
    pair = Pair((found,), Similarity(0.5, 0.01, 5), None if null is None else (null,))
    judged = of_share(found, pair, 0, n=4000, same_data=True)
    assert judged[0] == verdict
    assert said in judged[1]


def test_other_verdicts() -> None:
    assert of_gap(("trustworthy", ""), ("caution", "a; b")) == ("caution", "teacher: a; teacher: b")
    assert of_similarity(Similarity(0.5, 0.01, 5), n=4000, width=64, same_data=True)[0] == "trustworthy"
    assert of_similarity(Similarity(0.5, 0.01, 5), n=300, width=64, same_data=True)[0] == "caution"
    assert of_similarity(Similarity(float("nan"), 0.01, 5), n=4000, width=64, same_data=True)[0] == "unreliable"
