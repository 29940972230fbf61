from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from mikit.cli import app
from mikit.flow import Flow, match_flow, read_phases, suggest_pairs


@pytest.fixture(scope="module")
def saved(run, make_flow, tmp_path_factory):
    """A flow of two students, one of one student that the directional rule can read, one of one phase."""
    folder = tmp_path_factory.mktemp("runs")
    run.save(folder / "run")
    one = make_flow(networks=("student alone",), seeds=(0, 1), phases=(0, 8), noises=(0.01, 0.3))
    Flow(one.frame, one.settings | {"student_noise": 0.3}).save(folder / "one")
    make_flow(seeds=(0,), phases=(4,), noises=(0.3,)).save(folder / "short")
    (folder / "folder").mkdir()
    return folder


@pytest.fixture
def runs(saved, tmp_path, monkeypatch):
    """A folder of its own for every test, with the runs in it."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def mikit_run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *said):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for words in said:
        assert words in line


def test_phases_shows_changes_the_critical_phase_and_flags(runs, run):
    result = mikit_run("phases", "run")
    assert result.exit_code == 0, result.output
    reading = read_phases(run)
    words = " ".join(result.stdout.split())
    assert f"{len(reading.changes)} change points in 36 curves of label_information" in words
    row = reading.critical[reading.critical["matching"].eq("same depth")].iloc[0]
    assert f"{row['from_phase']}→{row['to_phase']}" in words
    assert f"{row['fall']:.3f} ± {row['standard_error']:.3f} {row['decision']}" in words
    kinds = reading.flags[reading.flags["network"].eq("teacher")]
    assert f"teacher rises with depth label_information {len(kinds)}" in words
    assert "neither is a gain or loss of information" in words
    assert result.stderr == ""


def test_phases_writes_what_read_phases_returns(runs, run):
    arguments = ("--quantity", "recovered_share", "--noise", "0.3", "--shape", "constant", "--level", "0.05")
    result = mikit_run("phases", "run", *arguments, "--jitter", "0.01", "--json", "-")
    assert result.exit_code == 0, result.output
    wanted = read_phases(run, quantity="recovered_share", noise=0.3, shape="constant", level=0.05, jitter=0.01)
    assert json.loads(result.stdout) == {"run": "run", **json.loads(json.dumps(wanted.to_dict()))}
    assert mikit_run("phases", "run", "--json", "phases.json").exit_code == 0
    assert len(json.loads((runs / "phases.json").read_text())["changes"]) == len(read_phases(run).changes)
    refused(mikit_run("phases", "run", "--json", "phases.json"), "phases.json already exists", "--overwrite")


def test_match_shows_picks_margins_and_ties(runs, run):
    result = mikit_run("match", "run")
    assert result.exit_code == 0, result.output
    pooled = match_flow(run, rules=["cka"]).pooled("cka", network="student + VID")
    words = " ".join(result.stdout.split())
    assert "cka: the teacher layer with the largest linear CKA." in words
    assert f"student + VID stem {pooled.teacher_layers[pooled.chosen[0]]} {pooled.measured[0].max():.3g}" in words
    assert result.stdout.count(" tie") == sum(
        match_flow(run, rules=[rule]).pooled(rule, network=name).undecided.sum()
        for rule in ("cka", "share")
        for name in ("student alone", "student + VID")
    )
    assert 'This flow does not contain the values that the rule "directional" compares.' in words
    assert "No rule shows that two layers correspond" in words


def test_match_follows_the_directional_rule_and_writes_pairs_for_training(runs):
    result = mikit_run("match", "one", "--pairs", "pairs.json", "--json", "match.json")
    assert result.exit_code == 0, result.output
    flow = Flow.load(runs / "one")
    wanted = suggest_pairs(match_flow(flow, rules=["directional", "cka"]), rule="directional")
    written = json.loads((runs / "pairs.json").read_text())
    assert [tuple(pair) for pair in written["pairs"]] == list(wanted)
    assert written["rule"] == "directional"
    assert written["sentence"] == wanted.sentence
    assert "directional: the teacher layer from which the student layer is most linearly recoverable." in result.stdout
    assert result.stdout.strip().endswith("Written to pairs.json.")
    told = json.loads((runs / "match.json").read_text())
    assert {cell["rule"] for cell in told["cells"]} == {"directional", "cka"}
    assert told["lacking"] is None


def test_match_takes_rules_networks_and_a_phase(runs, run):
    arguments = ("--rule", "nearest", "--network", "student + VID", "--phase", "4", "--json", "-")
    result = mikit_run("match", "run", *arguments)
    assert result.exit_code == 0, result.output
    wanted = match_flow(run, rules=["nearest"], networks=["student + VID"], phases=[4])
    assert json.loads(result.stdout)["chosen"] == json.loads(json.dumps(wanted.to_dict()["chosen"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("phases", "folder"), "flow.json"),
        (("phases", "short"), "one phase only"),
        (("phases", "run", "--quantity", "accuracy"), "accuracy"),
        (("phases", "run", "--shape", "round"), '"round"'),
        (("match", "folder"), "flow.json"),
        (("match", "run", "--rule", "directional"), "student_noise=0.3"),
        (("match", "run", "--rule", "likeness"), '"likeness"'),
        (("match", "run", "--network", "nobody"), "'nobody'"),
        (("match", "run", "--phase", "3"), "no phase 3"),
        (("match", "run", "--pairs", "pairs.json"), "--network"),
        (("match", "one", "--pairs", "x.json", "--json", "x.json"), "must name different files"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(runs, arguments, said):
    before = sorted(path.name for path in runs.iterdir())
    refused(mikit_run(*arguments), said)
    assert sorted(path.name for path in runs.iterdir()) == before
