"""What mikit trace refuses, in whole sentences, and the options that choose instruments and pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mikit import ActivationStore, Flow, InputError, trace
from mikit.cli import app
from mikit.cli.terminal import _as_typed, _options_of
from mikit.cli.trace import trace as trace_command
from mikit.estimators import REGISTRY
from mikit.estimators.discrepancy import Discrepancy

N = 120
IDS = np.arange(N)
SAME_SPACE = sorted(
    name for name, cls in REGISTRY.items() if issubclass(cls, Discrepancy) and getattr(cls, "same_width", True)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    source = rng.standard_normal((N, 3))
    for name, network in (("T", "teacher"), ("S", "student")):
        store = ActivationStore(place / name, network=network, seed=0)
        rows = source + 0.3 * rng.standard_normal((N, 3))
        store.append({"stage1": rows, "stage2": rows[:, :2]}, ids=IDS, phase=1)
        store.set_labels(IDS, IDS % 2)
    seen = ActivationStore(place / "seen", network="seen", seed=0)
    seen.append({"stage1": source}, ids=IDS, phase=1)
    seen.set_training_ids(np.array([7, 3, 5000]))
    wide = ActivationStore(place / "wide", network="wide", seed=0)
    wide.append({"stage1": rng.standard_normal((N, 40))}, ids=IDS, phase=1)
    return place


def _run(folder: Path, *arguments: str) -> Result:
    stores = [str(folder / name) for name in arguments if name in ("T", "S", "seen", "wide")]
    return CliRunner().invoke(app, ["trace", *stores, *(one for one in arguments if not (folder / one).is_dir())])


def _both_refuse(folder: Path, run: Path, stores: tuple[str, ...], options: tuple[str, ...], given: dict) -> str:
    """Return the sentence of the command, which is that of the call with options in place of arguments."""
    opened = [ActivationStore.open(folder / name) for name in stores]
    with pytest.raises(InputError) as refusal:
        trace(opened[0], opened[1:], out=run, **given)
    result = _run(folder, *stores, *options, "--out", str(run))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert before in ([], ["Tracing the information flow"])
    assert last == f"Error: {_as_typed(str(refusal.value), _options_of(trace_command))}"
    assert last.endswith(".")
    assert not run.exists()
    return last


def test_training_samples_are_refused(folder, tmp_path) -> None:
    said = _both_refuse(folder, tmp_path / "run", ("T", "seen"), (), {})
    assert "'seen' (seed 0) was trained on 2 of the 120 samples to be measured; the first is 3" in said
    assert "record activations of samples that no network was trained on" in said
    assert "'seen'" in _both_refuse(folder, tmp_path / "run", ("seen", "S"), (), {})


def test_fewer_than_five_rows_a_column_are_refused_unless_reduced(folder, tmp_path) -> None:
    said = _both_refuse(folder, tmp_path / "run", ("T", "wide"), (), {})
    assert "120 samples are too few for a student layer of 40 features and a teacher layer of 3: at least 215" in said
    assert "Record more samples, or reduce the layers to principal components with --reduce 12 or fewer" in said
    again = _both_refuse(folder, tmp_path / "run", ("T", "wide"), ("--reduce", "30"), {"reduce": 30})
    assert "30 features" in again
    result = _run(folder, "T", "wide", "--reduce", "12", "--noise", "0.3", "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", SAME_SPACE)
def test_discrepancies_of_one_space_are_refused_across_widths(folder, tmp_path, name) -> None:
    options = ("--pairs-with", name, "--pairs", "stage1=stage2")
    given = {"pairs_with": name, "pairs": [("stage1", "stage2")]}
    said = _both_refuse(folder, tmp_path / "run", ("T", "S"), options, given)
    assert f'"{name}" compares distributions in the same space' in said
    assert "'stage1' of the student 'student' has 3 features and the teacher's layer 'stage2' has 2" in said
    assert "Name layers of equal width with --pairs." in said
    reduced = _both_refuse(
        folder, tmp_path / "run", ("T", "S"), ("--pairs-with", name, "--reduce", "2"), {"pairs_with": name, "reduce": 2}
    )
    assert "its own principal components" in reduced


def test_pairs_are_chosen_on_the_command_line(folder, tmp_path) -> None:
    common = ("T", "S", "--noise", "0.3", "--probe", "lda", "--pairs-with", "gaussian")
    found = {}
    for number, options in enumerate(
        [(), ("--pairs", "all"), ("--pairs", "screen"), ("--pairs", "stage1=stage2", "--pairs", "stage2=stage2")]
    ):
        out = tmp_path / str(number)
        result = _run(folder, *common, *options, "--out", str(out))
        assert result.exit_code == 0, result.output
        rows = Flow.load(out).frame.query("quantity == 'gaussian' and verdict != 'skipped'")
        found[number] = sorted(zip(rows["layer"], rows["teacher_layer"], strict=True))
    assert found[0] == [("stage1", "stage1"), ("stage2", "stage2")]
    assert len(found[1]) == 4
    assert set(found[0]) <= set(found[2]) <= set(found[1])
    assert found[3] == [("stage1", "stage2"), ("stage2", "stage2")]


@pytest.mark.parametrize("pairs", ["stage1", "=stage2", "stage1=", "everything"])
def test_pairs_that_are_none_are_refused(folder, tmp_path, pairs) -> None:
    result = _run(folder, "T", "S", "--pairs-with", "gaussian", "--pairs", pairs, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert f'--pairs is "{pairs}"; pass same-depth, all, screen, or STUDENT_LAYER=TEACHER_LAYER' in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_information_plane_by_its_option(folder, tmp_path) -> None:
    out = tmp_path / "run"
    options = ("--noise", "0.3", "--probe", "lda", "--information-plane", "--out", str(out))
    assert _run(folder, "T", "S", *options).exit_code == 0
    rows = Flow.load(out).frame.query("quantity == 'input_information'")
    assert sorted(set(rows["noise"])) == [0.3, 1.0, 3.0]
    assert rows.groupby("network").size().to_dict() == {"teacher": 6, "student": 6}
    said = _both_refuse(folder, tmp_path / "b", ("T", "S"), ("--plane-noise", "1"), {"plane_noise": [1.0]})
    assert "--plane-noise is 1, but the information plane is off. Pass --information-plane" in said
