from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mikit.bench.accuracy import run as accuracy
from mikit.bench.accuracy.plot import draw_accuracy
from mikit.bench.accuracy.report import accuracy_markdown, accuracy_screen
from mikit.bench.accuracy.results import AccuracyReport, Estimate
from mikit.bench.accuracy.run import Plan, choose_tasks, measure_accuracy
from mikit.bench.distributions.suites import tasks_of
from mikit.cli import app
from mikit.core.errors import InputError

BASE = Estimate(
    suite="bmi",
    law="one",
    half="develop",
    d_x=1,
    d_y=1,
    truth=1.0,
    truth_error=0.0,
    fault="",
    right_suffices=False,
    n=100,
    seed=0,
    estimator="ksg",
    state="measured",
    reason="",
    value=1.0,
    low=0.9,
    high=1.1,
    verdict="trustworthy",
    flags=(),
    chosen="KSG",
    seconds=1.0,
    versions={"mikit": "0", "torch": "0", "numpy": "0"},
)
TWO = Plan(
    tasks=choose_tasks(["bmi"], ["dense-2-2", "dense-3-3"]), estimators=("gaussian",), sizes=(200,), seeds=(0, 1)
)


def report(*estimates: Estimate) -> AccuracyReport:
    return AccuracyReport(estimates, "2026-01-01T00:00:00", {"processor": "none"})


@pytest.mark.parametrize(
    ("truth", "value", "sound", "off"),
    [
        (1.0, 1.09, True, False),
        (1.0, 0.89, False, False),
        (1.0, 0.79, False, True),
        (0.1, 0.14, True, False),
        (0.1, 0.19, False, False),
        (0.1, 0.21, False, True),
        (0.0, -0.04, True, False),
        (10.0, 9.1, True, False),
        (10.0, 7.9, False, True),
        (math.inf, 12.0, False, True),
    ],
)
def test_sound_and_off(truth: float, value: float, sound: bool, off: bool) -> None:
    estimate = replace(BASE, truth=truth, value=value)
    assert (estimate.sound, estimate.off) == (sound, off)


def test_summary_by_hand() -> None:
    found = report(
        BASE,
        replace(BASE, seed=1, value=1.3, low=1.2, high=1.4, verdict="caution", flags=("null",), seconds=3.0),
        replace(BASE, law="two", truth=2.0, value=1.5, low=None, high=None),
        replace(BASE, law="three", state="failed", value=None, low=None, high=None, verdict=""),
        replace(BASE, law="endless", truth=math.inf, value=9.0),
        replace(BASE, law="trap", fault="rows repeat", value=1.0),
    )
    (summary,) = found.summaries()
    assert summary.laws == 2
    assert summary.estimates == 3
    assert summary.missing == 1
    assert summary.mean_absolute_error == pytest.approx((0.15 + 0.5) / 2)
    assert summary.mean_error == pytest.approx((0.15 - 0.5) / 2)
    assert (summary.largest, summary.largest_law) == (0.5, "two")
    assert summary.close == pytest.approx(1 / 3)
    assert summary.close_laws == 0
    assert summary.coverage == (0.5, 2)
    assert summary.trusted_coverage == (1.0, 1)
    assert (summary.median_seconds, summary.most_seconds) == (1.0, 3.0)
    verdict = summary.confusion
    assert (verdict.off, verdict.off_flagged) == (3, 1)
    assert (verdict.sound, verdict.sound_flagged) == (1, 0)
    assert (verdict.traps, verdict.traps_caught) == (1, 0)
    task = next(task for task in found.tasks() if task.law == "one")
    assert (task.seeds, task.flagged) == (2, 1)
    assert task.mean_error == pytest.approx(0.15)


def test_traps_are_caught_by_a_flag_a_refusal_or_where_enough_a_right_value() -> None:
    trap = replace(BASE, fault="rows repeat")
    kinds = {
        "unflagged": trap,
        "flagged": replace(trap, verdict="unreliable"),
        "refused": replace(trap, state="refused", value=None, low=None, high=None, verdict=""),
        "right": replace(trap, right_suffices=True),
        "wrong": replace(trap, right_suffices=True, value=3.0),
    }
    escaped = {name for name, estimate in kinds.items() if estimate.escaped}
    assert escaped == {"unflagged", "wrong"}
    verdict = report(*kinds.values()).confusions()["ksg"]
    assert (verdict.traps, verdict.traps_caught) == (5, 3)
    assert verdict.off == verdict.sound == 0


def test_every_estimate_is_sound_off_or_between() -> None:
    verdict = report(BASE, replace(BASE, value=0.88, verdict="caution"), replace(BASE, value=0.7)).confusions()["ksg"]
    assert (verdict.sound, verdict.sound_flagged) == (1, 0)
    assert (verdict.between, verdict.between_flagged) == (1, 1)
    assert (verdict.off, verdict.off_flagged) == (1, 0)


def test_json_there_and_back() -> None:
    found = report(BASE, replace(BASE, law="endless", truth=math.inf, low=None, high=None))
    assert AccuracyReport.from_json(found.to_json()) == found
    with pytest.raises(InputError, match="not a result of mikit bench accuracy"):
        AccuracyReport.from_json('{"schema": "mikit bench speed 1"}')


def test_words_and_picture() -> None:
    found = report(
        BASE,
        replace(BASE, n=500, value=1.02),
        replace(BASE, seed=1, verdict="caution", value=1.5),
        replace(BASE, law="no|number", state="refused", reason="too few", value=None, low=None, high=None, verdict=""),
        replace(BASE, law="trap", fault="rows repeat"),
    )
    said, marked = accuracy_screen(found), accuracy_markdown(found)
    assert "+0.250 !1/2" in said
    assert "ksg refused: too few" in said
    assert "trap, N = 100, seed 0, ksg: the trap was not flagged (rows repeat)" in said
    assert "no\\|number" in marked
    assert "| 100 | ksg |" in marked
    figure = draw_accuracy(found)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["N = 100", "N = 500"]
    drawn = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert sorted(x for line in drawn for x in line.get_xdata()) == [0.0, 0.0, 0.5]
    hollow = next(line for line in drawn if line.get_markerfacecolor() == "none")
    assert list(hollow.get_xdata()) == [0.5]
    with pytest.raises(InputError, match="nothing to draw"):
        draw_accuracy(report(replace(BASE, truth=math.inf)))


def test_a_run_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, calls, real = replace(TWO, folder=tmp_path / "out"), [], accuracy.measure

    def third_time_stopped(*given: object, **named: object) -> object:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(accuracy, "measure", third_time_stopped)
    with pytest.raises(KeyboardInterrupt):
        measure_accuracy(plan)
    assert len(list((tmp_path / "out").glob("*.json"))) == 2
    whole = measure_accuracy(plan)
    assert len(calls) == 5  # two before, the one that was stopped, two after
    assert [(e.law, e.seed) for e in whole.estimates] == [(task.name, s) for s in (0, 1) for task in plan.tasks]
    assert measure_accuracy(plan).estimates == whole.estimates
    assert len(calls) == 5
    measure_accuracy(replace(plan, fresh=True))
    assert len(calls) == 9
    apart = measure_accuracy(replace(plan, folder=None))
    assert [e.value for e in apart.estimates] == [e.value for e in whole.estimates]


def test_failures_are_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, real = replace(TWO, folder=tmp_path, seeds=(0,)), accuracy.measure

    def broken(*given: object, **named: object) -> object:
        raise ZeroDivisionError("no number\nsecond line")

    monkeypatch.setattr(accuracy, "measure", broken)
    assert {(e.state, e.reason) for e in measure_accuracy(plan).estimates} == {
        ("failed", "ZeroDivisionError: no number")
    }
    monkeypatch.setattr(accuracy, "measure", real)
    assert {e.state for e in measure_accuracy(plan).estimates} == {"measured"}


def test_what_the_folder_holds_is_not_trusted_blindly(tmp_path: Path) -> None:
    plan = replace(TWO, folder=tmp_path, seeds=(0,))
    measure_accuracy(plan)
    first = sorted(tmp_path.glob("*.json"))[0]
    content = json.loads(first.read_text())
    first.write_text(json.dumps(content | {"versions": {"mikit": "0.0.1"}}))
    with pytest.raises(InputError, match=r"measured by mikit 0\.0\.1"):
        measure_accuracy(plan)
    first.write_text(first.read_text()[:100])
    with pytest.raises(InputError, match="no estimate of mikit bench"):
        measure_accuracy(plan)
    measure_accuracy(replace(plan, fresh=True))
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"contains thesis\.tex"):
        measure_accuracy(plan)


def test_labels_go_to_those_who_explain_them() -> None:
    (task,) = choose_tasks(["own"], ["noisy-label"])
    plan = Plan(tasks=(task,), estimators=("label_information", "auto"), sizes=(600,), seeds=(0,))
    for estimate in measure_accuracy(plan).estimates:
        assert "label" in estimate.chosen.lower()
        assert 0.3 < (estimate.value or 0) < task.information
    (other,) = measure_accuracy(
        replace(TWO, tasks=TWO.tasks[:1], estimators=("label_information",), seeds=(0,))
    ).estimates
    assert other.state == "left out"


def test_a_refusal_is_not_a_failure() -> None:
    (task,) = choose_tasks(["traps"], ["copied-column"])
    (estimate,) = measure_accuracy(Plan(tasks=(task,), estimators=("gaussian",), sizes=(200,), seeds=(0,))).estimates
    assert estimate.state == "refused"
    assert not estimate.escaped


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tasks": ()}, "nothing to run"),
        ({"estimators": ("nothing",)}, "no estimator"),
        ({"estimators": ("mmd",)}, "does not estimate mutual information in nats"),
        ({"sizes": (3,)}, "too few"),
        ({"seeds": (-1,)}, "seeds start at 0"),
        ({"jobs": 0}, "at least 1"),
    ],
)
def test_plans_that_make_no_sense(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        replace(TWO, **wrong)


def test_choosing_tasks() -> None:
    assert choose_tasks(["beyond"]) == tasks_of("beyond")
    assert choose_tasks(["bmi", "bmi"]) == tasks_of("bmi")
    halves = [set(choose_tasks(["own"], half=half)) for half in ("develop", "report")]
    assert len(halves[0] | halves[1]) == 10
    assert not halves[0] & halves[1]
    with pytest.raises(InputError, match="in its name"):
        choose_tasks(["bmi"], ["nothing"])
    with pytest.raises(InputError, match="half is"):
        choose_tasks(["bmi"], half="left")


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_command_writes_all_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["--json", "a.json", "--markdown", "a.md", "--plot", "a.png"]
    given = ["--task", "dense-2-2", "--estimator", "gaussian", "--estimator", "ksg", "--n", "100", "--n", "200"]
    given += ["--seeds", "0-1", "--out", "kept", "--jobs", "1", *files]
    done = run("bmi", *given)
    assert done.exit_code == 0, done.output
    found = AccuracyReport.from_json((tmp_path / "a.json").read_text())
    assert len(found.estimates) == len(list((tmp_path / "kept").iterdir())) == 8
    assert (tmp_path / "a.md").read_text().startswith("**Values by suite**")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "multinormal-dense-2-2-0.5" in done.stdout
    assert run("bmi", *given).exit_code == 2
    again = run("accuracy", "bmi", *given, "--overwrite")
    assert again.exit_code == 0
    assert "8 of 8 known" in again.stderr
    assert AccuracyReport.from_json((tmp_path / "a.json").read_text()).estimates == found.estimates


def test_several_workers_find_the_same(tmp_path: Path) -> None:
    given = ["bmi", "--task", "dense-2-2", "--estimator", "gaussian", "--n", "100", "--seeds", "0,1", "--json", "-"]
    one, two = (run(*given, "--jobs", jobs) for jobs in ("1", "2"))
    assert two.exit_code == 0, two.output
    values = [[e["value"] for e in json.loads(done.stdout)["estimates"]] for done in (one, two)]
    assert values[0] == values[1]


def test_a_killed_run_leaves_whole_estimates(tmp_path: Path) -> None:
    given = ["bmi", "--task", "dense", "--estimator", "gaussian", "--n", "500", "--jobs", "1", "--out", str(tmp_path)]
    script = f"from mikit.cli import app; app({['bench', *given, '--seeds', '0-200']!r})"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if len(list(tmp_path.glob("*.json"))) >= 6 or process.poll() is not None:
                break
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    kept = [Estimate.from_dict(json.loads(path.read_text())) for path in tmp_path.glob("*.json")]
    assert len(kept) >= 6
    assert process.returncode != 0
    done = run(*given, "--seeds", "0")
    assert done.exit_code == 0, done.output
    assert "5 of 5 known" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "No such command"),
        (["accuracy", "nothing"], "no suite"),
        (["bmi", "--task", "nothing"], "in its name"),
        (["bmi", "--seeds", "4-0"], "--seeds"),
        (["bmi", "--seeds", "many"], "--seeds"),
        (["bmi", "--estimator", "mmd"], "does not estimate mutual information in nats"),
        (["bmi", "--plot", "a.jpg"], ".png or .svg"),
        (["bmi", "--markdown", "one", "--json", "one"], "different files"),
    ],
)
def test_misuse_is_exit_code_2_and_a_sentence(arguments: list[str], sentence: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.output


def test_the_help_names_the_suites_without_torch() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from mikit.cli import app\n"
        "said = CliRunner().invoke(app, ['bench', '--help']).output\n"
        "assert all(name in said for name in ('accuracy', 'bmi', 'staircase', 'traps', 'beyond'))\n"
        "assert '--seeds' in CliRunner().invoke(app, ['bench', 'bmi', '--help']).output\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
