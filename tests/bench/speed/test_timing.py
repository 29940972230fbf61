from __future__ import annotations

import sys
import time

import pytest
import torch
from threadpoolctl import threadpool_info

from mikit.bench.peers.memory import peak_extra_bytes
from mikit.bench.speed.timing import Timing, cpu_clock, fit_exponent, interleave
from mikit.core.provenance import one_thread

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak memory of a call")


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_clock_counts_processor_time_and_no_sleep() -> None:
    assert cpu_clock(lambda: burn(0.05))() == pytest.approx(0.05, abs=0.02)
    assert cpu_clock(lambda: time.sleep(0.1))() < 0.05


def test_a_ratio_of_known_work_is_found() -> None:
    timers = {"slow": cpu_clock(lambda: burn(0.04)), "fast": cpu_clock(lambda: burn(0.01))}
    timings, failures = interleave(timers, 3)
    assert failures == {}
    assert timings["slow"].median / timings["fast"].median == pytest.approx(4, rel=0.2)


def test_candidates_take_turns_and_each_begins_a_round() -> None:
    order: list[str] = []

    def timer(name: str):
        return lambda: float(order.append(name) or 1.0)

    interleave({name: timer(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"


def test_a_candidate_that_raises_is_not_run_again_and_stops_nobody() -> None:
    calls = []

    def fails() -> float:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no room")
        return 1.0

    timings, failures = interleave({"good": lambda: 2.0, "bad": fails}, 4)
    assert len(calls) == 2
    assert list(timings) == ["good"]
    assert timings["good"].samples == (2.0,) * 4
    assert isinstance(failures["bad"], MemoryError)


def test_the_budget_ends_the_rounds_after_three() -> None:
    ticks = []
    timings, _ = interleave({"a": lambda: 1.0}, 10, budget=0.0, tick=lambda: ticks.append(1))
    assert len(timings["a"].samples) == len(ticks) == 3


def test_the_spread_is_that_of_the_samples() -> None:
    timing = Timing((5.0, 1.0, 2.0, 4.0))
    assert (timing.median, timing.low, timing.high) == (3.0, 1.0, 5.0)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 2.7])
def test_the_exponent_of_a_power_is_found(exponent: float) -> None:
    sizes = [1024, 2048, 4096, 8192]
    assert fit_exponent(sizes, [3e-9 * size**exponent for size in sizes]) == pytest.approx(exponent, abs=1e-9)


def test_an_exponent_needs_two_sizes() -> None:
    assert fit_exponent([], []) is None
    assert fit_exponent([8, 8], [1.0, 2.0]) is None
    assert fit_exponent([8, 16], [1.0, 0.0]) is None


def _threads() -> list[int]:
    return [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]


def _fail_inside() -> None:
    with one_thread():
        assert set(_threads()) == {1}
        raise RuntimeError("inside")


def test_one_thread_is_set_and_restored() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outside = _threads()
        assert outside[0] == 2
        with pytest.raises(RuntimeError, match="inside"):
            _fail_inside()
        assert _threads() == outside
    finally:
        torch.set_num_threads(before)


@linux
@pytest.mark.parametrize("mebibytes", [32, 200])
def test_the_peak_of_a_known_allocation_is_found(mebibytes: int) -> None:
    def call() -> None:
        torch.ones(mebibytes * 2**20 // 4)

    call()
    assert peak_extra_bytes(call) / 2**20 == pytest.approx(mebibytes, abs=6)
    assert peak_extra_bytes(lambda: None) / 2**20 < 6


@linux
def test_memory_that_the_allocator_kept_is_counted_again() -> None:
    pins = []

    def call() -> None:
        pieces = [b"x" * 100_000 for _ in range(1000)]  # Too small to be mapped on their own.
        pins.append(b"x" * 100_000)  # Lies above them, so that the heap cannot shrink by itself.
        del pieces

    assert [peak_extra_bytes(call) / 2**20 > 80 for _ in range(3)] == [True] * 3


def test_no_memory_where_the_kernel_does_not_tell(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("mikit.bench.peers.memory._PROCESS", tmp_path)
    assert peak_extra_bytes(lambda: None) is None
