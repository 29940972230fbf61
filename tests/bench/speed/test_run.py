from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mikit.bench.peers.peers import MissingError
from mikit.bench.reports import require_picture, save_picture
from mikit.bench.speed import problems
from mikit.bench.speed.cases import CASES, Candidate, Case
from mikit.bench.speed.plot import draw_speed
from mikit.bench.speed.report import speed_markdown, speed_screen
from mikit.bench.speed.results import Result, SpeedReport
from mikit.bench.speed.run import Settings, choose_cases, measure_speed, read_sizes
from mikit.bench.speed.targets import BARS, Bar
from mikit.core.errors import InputError

BURN = 0.02


def squares(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.square().sum() + y.sum()


def slowly(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    end = time.process_time() + BURN
    while time.process_time() < end:
        pass
    return squares(x, y)


def wrong(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 1.01 * x.square().sum() + y.sum()


def large(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    torch.ones(50 * 2**20 // 4)
    return squares(x, y)


def _raise(_: object, __: object) -> torch.Tensor:
    raise MemoryError("50 GiB are not to be had\nand a second line")


def _missing(_: object):
    raise MissingError("nobody is not installed here", "pip install nobody")


def _build(function):
    return lambda _: function


CASE = Case(
    "squares",
    "d=8",
    (64, 256),
    (32, 64),
    lambda n, seed: problems.gaussian_pair(n, 8, 8, seed, gradients=1),
    (
        Candidate("mikit", _build(squares)),
        Candidate("slow", _build(slowly)),
        Candidate("wrong", _build(wrong)),
        Candidate("large", _build(large)),
        Candidate("raises", _build(_raise)),
        Candidate("gone", _missing),
        Candidate("greedy", _build(squares), matrices=1e9),
        Candidate("rare", _build(squares), sizes=(64,)),
        Candidate("slow to start", _build(squares), quick=False),
    ),
    {"": _build(squares)},
    largest_reference=64,
)


@pytest.fixture(scope="module")
def report() -> SpeedReport:
    return measure_speed([CASE], Settings(repeats=3))


def row(report: SpeedReport, candidate: str, size: int) -> Result:
    (found,) = (r for r in report.results if (r.candidate, r.size) == (candidate, size))
    return found


def test_known_work_is_found_in_every_sample(report: SpeedReport) -> None:
    slow, own = row(report, "slow", 256), row(report, "mikit", 256)
    assert len(slow.samples) == len(own.samples) == 3
    assert slow.timing.median == pytest.approx(BURN, abs=0.3 * BURN)
    assert own.timing.median < BURN / 4


def test_errors_are_against_float64_where_the_reference_can_be_held(report: SpeedReport) -> None:
    assert row(report, "mikit", 64).value_error < 1e-6
    assert row(report, "mikit", 64).gradient_error < 1e-6
    for size in (64, 256):
        off = row(report, "wrong", size)
        assert off.error_size == 64
        assert off.gradient_error == pytest.approx(0.01, rel=1e-3)
        assert off.value_error == pytest.approx(abs(off.value - off.reference) / abs(off.reference))
        assert off.value_error > 1e-3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak memory of a call")
def test_known_memory_is_found(report: SpeedReport) -> None:
    assert row(report, "large", 256).peak_bytes / 2**20 == pytest.approx(50, abs=6)
    assert row(report, "mikit", 256).peak_bytes / 2**20 < 6


def test_rows_without_numbers_say_why(report: SpeedReport) -> None:
    states = {name: row(report, name, 256) for name in ("raises", "gone", "greedy", "rare")}
    assert {name: r.state for name, r in states.items()} == {
        "raises": "failed",
        "gone": "missing",
        "greedy": "left out",
        "rare": "left out",
    }
    assert states["raises"].reason == "MemoryError: 50 GiB are not to be had"
    assert states["gone"].install == "pip install nobody"
    assert "GiB are free" in states["greedy"].reason
    assert states["rare"].reason == "run at 64 only"
    assert all(r.timing is None and r.peak_bytes is None and r.value_error is None for r in states.values())
    assert row(report, "rare", 64).state == "measured"


def test_a_quick_run_takes_small_sizes_and_no_slow_starters() -> None:
    quick = measure_speed([CASE], Settings(repeats=1, quick=True))
    assert {r.size for r in quick.results} == {32, 64}
    assert row(quick, "slow to start", 32).state == "left out"


def test_a_candidate_that_raises_late_is_failed_and_a_reference_that_fails_is_noted() -> None:
    calls = []

    def late(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("late")
        return squares(x, y)

    case = replace(
        CASE,
        candidates=(Candidate("mikit", _build(squares)), Candidate("late", _build(late))),
        references={"": _missing},
    )
    found = measure_speed([case], Settings(sizes=(32,), repeats=3))
    assert row(found, "late", 32).state == "failed"
    assert row(found, "late", 32).samples == ()
    assert row(found, "mikit", 32).samples
    assert row(found, "mikit", 32).value_error is None
    assert len(found.notes) == 1
    assert "no reference" in found.notes[0]
    assert found.notes[0] in speed_screen(found)


def test_the_reference_is_float64_on_the_same_numbers() -> None:
    seen = []

    def reference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return squares(x, y)

    case = replace(CASE, candidates=CASE.candidates[:1], references={"": _build(reference)})
    measure_speed([case], Settings(sizes=(32, 64), repeats=1))
    assert [rows.dtype for rows in seen] == [torch.float64] * 2
    assert torch.equal(seen[0].float(), CASE.draw(32, 0).inputs[0])


def test_the_settings_hold_threads_only_for_the_run() -> None:
    seen = []
    case = replace(
        CASE,
        candidates=(Candidate("mikit", _build(lambda x, y: seen.append(torch.get_num_threads()) or squares(x, y))),),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure_speed([case], Settings(sizes=(32,), repeats=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda value: value * math.nan, "returned nan"),
        (lambda value: value + math.inf, "returned inf"),
        (lambda value: value - math.inf, "returned -inf"),
        (lambda value: torch.sqrt(value - value.detach()), "returned inf in the gradient"),
        (lambda value: torch.sqrt((value - value.detach()).square()), "returned nan in the gradient"),
    ],
)
def test_what_is_no_number_fails_its_row_and_not_the_run(spoil, reason: str) -> None:
    def broken(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return spoil(squares(x.abs() + 1, y))

    case = replace(CASE, candidates=(Candidate("mikit", _build(squares)), Candidate("broken", _build(broken))))
    found = measure_speed([case], Settings(sizes=(32,), repeats=1))
    failed = row(found, "broken", 32)
    assert (failed.state, failed.reason) == ("failed", reason)
    assert row(found, "mikit", 32).value_error < 1e-6
    for text in (speed_screen(found), speed_markdown(found)):
        assert f"failed: {reason}" in text
    entry = json.loads(found.to_json())["results"][1]
    assert entry["value"] is entry["seconds"] is entry["value_error"] is entry["gradient_error"] is None
    assert SpeedReport.from_json(found.to_json()) == found


def test_a_mikit_that_returns_nan_leaves_its_bars_untold() -> None:
    case = replace(CASE, candidates=(Candidate("mikit", _build(lambda x, y: (x + y).sum() * math.nan)),))
    found = measure_speed([case], Settings(sizes=(32,), repeats=1))
    (verdict,) = found.verdicts([Bar("squares", "d=8", 32, "memory", 1.0)])
    assert (verdict.met, verdict.why) == (None, "mikit: returned nan")


def test_a_nan_only_where_the_errors_are_measured_is_noted() -> None:
    def sometimes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return squares(x, y) * (math.nan if x.shape[0] == 64 else 1.0)

    case = replace(CASE, candidates=(Candidate("mikit", _build(sometimes)),))
    found = measure_speed([case], Settings(sizes=(128,), repeats=1))
    assert row(found, "mikit", 128).state == "measured"
    assert row(found, "mikit", 128).value_error is None
    (note,) = found.notes
    assert "no errors of mikit, which failed at N = 64 (returned nan)" in note


def test_references_that_are_nan_or_zero_leave_the_errors_untold() -> None:
    for reference in (lambda x, y: squares(x, y) * math.nan, lambda x, y: squares(x, y) * 0):
        case = replace(CASE, candidates=CASE.candidates[:1], references={"": _build(reference)})
        found = measure_speed([case], Settings(sizes=(32,), repeats=1))
        own = row(found, "mikit", 32)
        assert own.state == "measured"
        assert own.value_error is None
        assert own.gradient_error is None
        assert json.loads(found.to_json())["results"][0]["gradient_error"] is None


def test_no_number_becomes_null_in_json() -> None:
    text = _report(_timed("mikit", 100, 1.0, value=math.nan, reference=-math.inf)).to_json()
    (entry,) = json.loads(text)["results"]
    assert entry["value"] is entry["reference"] is None
    assert entry["samples"] == [1.0]


def test_json_round_trip(report: SpeedReport) -> None:
    text = report.to_json()
    assert SpeedReport.from_json(text) == report
    content = json.loads(text)
    entry = next(e for e in content["results"] if (e["candidate"], e["size"]) == ("slow", 256))
    assert entry["seconds"]["median"] == pytest.approx(BURN, abs=0.3 * BURN)
    assert content["versions"]["torch"] == torch.__version__
    assert {"processor", "cores", "system"} <= set(content["machine"])
    assert (content["seed"], content["repeats"], content["device"]) == (0, 3, "cpu")
    for broken in ("{}", "nothing", text.replace("mikit bench speed 1", "mikit bench speed 0")):
        with pytest.raises(InputError, match="not a result of mikit bench speed"):
            SpeedReport.from_json(broken)


def _timed(candidate: str, size: int, *samples: float, **changes: object) -> Result:
    empty = Result(
        case="squares",
        variant="d=8",
        sweeps="N",
        size=size,
        candidate=candidate,
        compared_on="",
        covers="value and gradient",
        state="measured",
        reason="",
        install="",
        input_bytes=2**20,
        samples=samples,
        peak_bytes=2**20,
        value=1.0,
        reference=1.0,
        value_error=1e-7,
        gradient_error=1e-4,
        error_size=size,
        roofline_seconds=None,
    )
    return replace(empty, **changes)


def _report(*results: Result, **changes: object) -> SpeedReport:
    empty = SpeedReport(results, "2026-01-02T03:04:05+00:00", {"processor": "one", "cores": 2}, {}, "cpu", False, 3, 0)
    return replace(empty, **changes)


def test_bars_are_judged_by_their_own_rule() -> None:
    found = _report(
        _timed("mikit", 100, 1.0, 2.0, 9.0, roofline_seconds=1.5, peak_bytes=33 * 2**20),
        _timed("peer", 100, 8.0, 4.0, 3.0),
    )

    def judge(kind: str, limit: float, **changes: object):
        (verdict,) = found.verdicts([replace(Bar("squares", "d=8", 100, kind, limit, "peer"), **changes)])
        return verdict.figure, verdict.met

    assert judge("time", 0.5) == (0.5, True)
    assert judge("time", 0.49) == (0.5, False)
    assert judge("memory", 0.5) == (0.5, True)
    assert judge("memory", 0.4) == (0.5, False)
    assert judge("whole memory", 34 / 1024) == (34 / 1024, True)  # 33 MiB extra and 1 MiB of inputs
    assert judge("whole memory", 33 / 1024) == (34 / 1024, False)
    assert judge("roofline", 0.75) == (0.75, True)
    assert judge("roofline", 0.8) == (0.75, False)
    assert judge("gradient error", 1e-4) == (1e-4, True)
    assert judge("gradient error", 1e-5) == (1e-4, False)
    assert judge("time", 0.5, size=101) == (None, None)
    assert found.verdicts([Bar("other", "d=8", 100, "time", 0.5, "peer")]) == []


def test_a_bar_that_cannot_be_told_says_why() -> None:
    bar = Bar("squares", "d=8", 100, "time", 0.5, "peer")
    gone = _timed("peer", 100, state="missing", reason="not here", install="get it")
    (verdict,) = _report(_timed("mikit", 100, 1.0), gone).verdicts([bar])
    assert (verdict.met, verdict.why) == (None, "peer: not here")
    elsewhere = _report(_timed("mikit", 100, 1.0, error_size=50))
    (verdict,) = elsewhere.verdicts([replace(bar, kind="gradient error")])
    assert (verdict.met, verdict.why) == (None, "there is no reference at this size, only at 50")
    assert replace(elsewhere, device="cuda").verdicts([bar]) == []


def test_the_screen_and_the_page_show_every_row() -> None:
    gone = _timed("peer", 100, state="missing", reason="not here", install="get it")
    slow = _timed("slow", 100, 15.0)
    found = _report(_timed("mikit", 100, 1.0, 2.0, 4.0), gone, slow, _timed("mikit", 200, 8.0, error_size=100))
    shown, page = speed_screen(found), speed_markdown(found)
    for text in (shown, page):
        assert "1.00 to 4.00" in text
        assert "missing: not here" in text
        assert "peer is missing: not here; get it." in text
        assert "1e-04 (at 100)" in text
        assert "7.50" in text  # the ratio of slow: 15 / 2
        assert "2026-01-02" in text
    widths = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(widths[:5]) == {10}


def test_times_below_the_clock_are_not_divided_by() -> None:
    found = _report(_timed("mikit", 100, 0.0, roofline_seconds=1.0), _timed("peer", 100, 0.0))
    bars = [Bar("squares", "d=8", 100, kind, 0.5, "peer") for kind in ("time", "roofline")]
    assert all(v.met is None and "less time than the clock resolves" in v.why for v in found.verdicts(bars))
    assert "peer" in speed_screen(found)


def test_the_scale_cases_are_judged_with_their_powers() -> None:
    cases = choose_cases(["scale"])
    judged = {(bar.case, bar.variant): bar for bar in BARS if bar.kind == "whole memory"}
    assert set(judged) == {(case.name, case.variant) for case in cases}
    for case in cases:
        assert judged[case.name, case.variant].size == max(case.sizes) >= 100_000
        results = [
            _timed("mikit", n, 1e-9 * n**2, case=case.name, variant=case.variant, peak_bytes=2**29) for n in case.sizes
        ]
        shown = speed_screen(_report(*results))
        assert "2.00" in shown.partition("time grows as size to the power")[2].partition("Seconds")[0]
        bar_line = next(line for line in shown.splitlines() if "inputs and extra memory in GiB" in line)
        assert bar_line.split()[-5:] == ["0.50", "at", "most", "1.00", "yes"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak memory of a call")
def test_gradients_are_part_of_the_extra_memory() -> None:
    rows, width = 8192, 256  # 8 MiB an input
    case = replace(
        CASE,
        draw=lambda n, seed: problems.gaussian_pair(rows, width, width, seed, gradients=2),
        candidates=(Candidate("mikit", _build(lambda x, y: x.sum() + y.sum())),),
    )
    own = row(measure_speed([case], Settings(sizes=(32,), repeats=1)), "mikit", 32)
    assert own.input_bytes == 2 * rows * width * 4
    assert own.peak_bytes >= 0.9 * own.input_bytes


def test_the_bars_name_what_is_measured() -> None:
    cases = {(case.name, case.variant): case for case in CASES}
    for bar in BARS:
        case = cases[bar.case, bar.variant]
        assert bar.size in case.sizes
        names = [candidate.name for candidate in case.candidates]
        assert names[0] == "mikit"
        assert (bar.peer in names) == (bar.kind == "time")
        assert bar.kind != "gradient error" or bar.size <= case.largest_reference
        assert bar.kind != "roofline" or case.width is not None


def test_every_case_has_the_references_its_candidates_ask_for() -> None:
    for case in CASES:
        assert {candidate.quantity for candidate in case.candidates} <= set(case.references)
        assert len({candidate.name for candidate in case.candidates}) == len(case.candidates)


def test_cases_are_chosen_by_name() -> None:
    assert {case.name for case in choose_cases([])}.isdisjoint({"scale"})
    assert [case.name for case in choose_cases(["scale"])] == ["scale", "scale"]
    with pytest.raises(InputError, match='no case "nothing"; the cases are infonce'):
        choose_cases(["ksg", "nothing"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
        ({"sizes": (4,)}, "4 is not a valid size"),
        ({"sizes": (10**7,)}, "is not a valid size"),
        ({"device": "tpu"}, "cpu or cuda"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Settings(**changes)


@pytest.mark.parametrize("text", ["", "a", "1024,", "-3", "1.5"])
def test_sizes_are_whole_numbers(text: str) -> None:
    with pytest.raises(InputError, match="whole numbers"):
        read_sizes(text)


def test_the_picture_has_a_panel_for_each_case_and_the_powers(tmp_path: Path) -> None:
    results = [
        _timed(name, size, factor * size**2, factor * size**2 * 1.1, case=case)
        for case in ("squares", "cubes")
        for name, factor in (("mikit", 1e-9), ("peer", 4e-9))
        for size in (1024, 2048, 4096)
    ]
    figure = draw_speed(_report(*results))
    assert len(figure.axes) == 2
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["mikit  N^2.0", "peer  N^2.0"]
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1,024", "2,048", "4,096"]
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        save_picture(figure, tmp_path / "deep" / f"speed{suffix}")
        assert (tmp_path / "deep" / f"speed{suffix}").read_bytes().startswith(start)
    with pytest.raises(InputError, match=r"png or \.svg"):
        require_picture(tmp_path / "speed.jpg")
    with pytest.raises(InputError, match="nothing to draw"):
        draw_speed(_report())
