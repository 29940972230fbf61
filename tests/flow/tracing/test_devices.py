"""A trace with its products on a device gives the table of NumPy; which devices are refused, how they are shared."""

from __future__ import annotations

import threading

import numpy as np
import pandas as pd
import pytest
import torch

from mikit import ActivationStore, InputError, trace
from mikit.flow.tracing.workers import devices_of, lent_device
from mikit.functional.flow.moments import centered, cross_products, device_cross_products, device_rows, factor_layer

N = 400
IDS = np.arange(N)
NUMBERS = ["value", "low", "high", "standard_error", "held_out", "in_sample", "ceiling", "untrained", "null"]


def _stores(folder, dtype: type) -> tuple[ActivationStore, ActivationStore]:
    rng = np.random.default_rng(0)
    source = rng.standard_normal((N, 6))
    teacher = ActivationStore(folder / "t", network="teacher")
    teacher.append({"a": source.astype(dtype), "b": np.tanh(source[:, :4]).astype(dtype)}, ids=IDS, phase=5)
    student = ActivationStore(folder / "s", network="student", seed=0)
    for phase in (0, 2):
        noisy = source + rng.standard_normal((N, 6)) / (1 + phase)
        student.append({"c": noisy.astype(dtype), "d": noisy[:, :3].astype(dtype)}, ids=IDS, phase=phase)
    return teacher, student


@pytest.mark.parametrize(("dtype", "budget"), [(np.float64, 1e-8), (np.float32, 1e-5)])
def test_the_table_is_that_of_numpy(tmp_path, dtype, budget) -> None:
    """Within 1e-8 for float64 rows; float32 rows NumPy multiplies in float32, whose rounding is the larger one."""
    stores = _stores(tmp_path, dtype)
    given = {"labels": IDS % 2, "noise": (0.1, 0.3), "probe": "lda", "information_plane": True, "reduce": 5}
    numpy = trace(*stores, **given)
    device = trace(*stores, **given, device="cpu")
    assert device.settings["device"] == ["cpu"]
    assert numpy.settings["device"] == []
    others = [column for column in numpy.frame if column not in NUMBERS]
    pd.testing.assert_frame_equal(device.frame[others], numpy.frame[others], check_exact=True)
    assert np.allclose(device.frame[NUMBERS], numpy.frame[NUMBERS], rtol=0, atol=budget, equal_nan=True)


def test_a_folder_keeps_to_one_arithmetic_and_workers_change_nothing(tmp_path) -> None:
    stores = _stores(tmp_path, np.float32)
    first = trace(*stores, noise=0.3, device="cpu", out=tmp_path / "run")
    again = trace(*stores, noise=0.3, device=["cpu"], jobs=3)
    pd.testing.assert_frame_equal(first.frame, again.frame, check_exact=True)
    with pytest.raises(InputError, match="its arithmetic is device, not None"):
        trace(*stores, noise=0.3, out=tmp_path / "run")


def test_products_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    first, second = centered(rng.standard_normal((N, 7))), centered(rng.standard_normal((N, 3)))
    parts = [slice(0, 150), slice(150, N)]
    there = [device_rows(rows, torch.device("cpu")) for rows in (first, second)]
    assert np.allclose(device_cross_products(*there, parts), cross_products(first, second, parts), rtol=1e-12)
    own, other = factor_layer(first, parts), factor_layer(first, parts, device=torch.device("cpu"))
    assert np.allclose(own.spectrum, other.spectrum, rtol=1e-12)
    assert np.allclose(own.fit_spectra, other.fit_spectra, rtol=1e-12)
    assert own.scale == pytest.approx(other.scale, rel=1e-14)


def test_the_device_that_fewest_tasks_use_is_lent() -> None:
    devices = ("cuda:0", "cuda:1")
    inside = threading.Barrier(4)
    seen: list[str] = []

    def work() -> None:
        with lent_device(devices) as device:
            seen.append(str(device))
            inside.wait(timeout=10)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(seen) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    with lent_device(()) as none:
        assert none is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("telepathy", "unknown to torch"),
        ("mps", "needs float64"),
        (["cpu", "cpu"], "different device names"),
        ([], "different device names"),
        ("cuda:99", "torch sees"),
    ],
)
def test_devices_that_are_not_there_are_refused(given, said) -> None:
    with pytest.raises(InputError, match=said):
        devices_of(given)


def test_several_devices_need_threads(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mikit.flow.tracing.run.devices_of", lambda given: tuple(given))
    with pytest.raises(InputError, match=r"device names 2 devices.*the workers are processes"):
        trace(*_stores(tmp_path, np.float32), noise=0.3, device=["cuda:0", "cuda:1"], backend="loky")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_table_is_the_same_on_a_gpu(tmp_path) -> None:
    stores = _stores(tmp_path, np.float64)
    numpy, device = (trace(*stores, noise=0.3, information_plane=True, **on) for on in ({}, {"device": "cuda"}))
    assert np.allclose(device.frame[NUMBERS], numpy.frame[NUMBERS], rtol=0, atol=1e-8, equal_nan=True)
