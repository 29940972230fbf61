from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

import mikit
from mikit import ActivationStore, InputError, read_array

ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)


def test_npy_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    read = read_array(tmp_path / "a.npy")
    assert isinstance(read.values, np.memmap)
    assert np.array_equal(read.values, ROWS)
    assert not read.values.flags.writeable
    assert read.ids is None
    assert read.source == str(tmp_path / "a.npy")
    with pytest.raises(InputError, match="Leave out key="):
        read_array(tmp_path / "a.npy", key="a")


def test_fortran_order_and_big_endian(tmp_path: Path) -> None:
    for array in (np.asfortranarray(ROWS), ROWS.astype(">f8"), np.ones((0, 3)), np.float64(3.0)):
        np.save(tmp_path / "a.npy", array)
        assert np.array_equal(read_array(tmp_path / "a.npy").values, array)
        np.savez(tmp_path / "a.npz", a=array)
        assert np.array_equal(read_array(tmp_path / "a.npz").values, array)


def test_a_file_larger_than_memory_is_only_mapped(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 24, 1 << 9)})
        file.truncate(file.tell() + (1 << 35))
    tracemalloc.start()
    assert read_array(path).values[-1, -1] == 0
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", student=ROWS)
    assert np.array_equal(read_array(tmp_path / "a.npz").values, ROWS)
    save(tmp_path / "a.npz", student=ROWS, teacher=ROWS + 1)
    assert np.array_equal(read_array(tmp_path / "a.npz", key="teacher").values, ROWS + 1)
    assert read_array(tmp_path / "a.npz", key="teacher").source.endswith("a.npz#teacher")
    with pytest.raises(InputError, match=r"contains 2 arrays: 'student', 'teacher'. Select one with key="):
        read_array(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"no array 'techer'.*Did you mean 'teacher'"):
        read_array(tmp_path / "a.npz", key="techer")


def test_torch_files(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(ROWS), tmp_path / "a.pt")
    assert np.array_equal(read_array(tmp_path / "a.pt").values, ROWS)
    assert not read_array(tmp_path / "a.pt").values.flags.writeable
    torch.save({"s": torch.from_numpy(ROWS), "epoch": 3}, tmp_path / "a.pth")
    assert np.array_equal(read_array(tmp_path / "a.pth").values, ROWS)
    torch.save({"s": torch.from_numpy(ROWS), "t": torch.zeros(2)}, tmp_path / "a.pth")
    assert np.array_equal(read_array(tmp_path / "a.pth", key="s").values, ROWS)
    with pytest.raises(InputError, match="contains 2 arrays: 's', 't'"):
        read_array(tmp_path / "a.pth")
    torch.save(torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16)), tmp_path / "a.pt")
    assert read_array(tmp_path / "a.pt").values.dtype == np.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "without tensors"),
        ([torch.ones(2)], "without tensors"),
        (torch.ones(3, 3).to_sparse(), "not dense"),
        (torch.ones(1).expand(1 << 40), "repeats the same values"),
        (torch.ones(3, dtype=torch.float8_e4m3fn), "is not supported"),
    ],
)
def test_torch_files_that_hold_something_else(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        read_array(tmp_path / "a.pt")


def test_safetensors_are_mapped(tmp_path: Path) -> None:
    save_file({"s": ROWS, "t": ROWS.astype(np.float16)}, tmp_path / "a.safetensors", metadata={"a": "b"})
    assert np.array_equal(read_array(tmp_path / "a.safetensors", key="s").values, ROWS)
    half = read_array(tmp_path / "a.safetensors", key="t").values
    assert half.dtype == np.float16
    assert isinstance(half, np.memmap)
    with pytest.raises(InputError, match="contains 2 arrays"):
        read_array(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int16, torch.uint8, torch.bool])
def test_safetensors_of_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([[0.0, 1.0], [3.0, -2.5]]).abs().to(dtype)
    save_torch_file({"s": values}, tmp_path / "a.safetensors")
    read = read_array(tmp_path / "a.safetensors").values
    assert read.astype(np.float64).tolist() == values.double().tolist()


def test_safetensors_without_a_numpy_dtype(tmp_path: Path) -> None:
    save_torch_file({"s": torch.ones(4).to(torch.float8_e5m2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="F8_E5M2"):
        read_array(tmp_path / "a.safetensors")


def test_a_store_gives_ids(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "s")
    with pytest.raises(InputError, match="contains no activations"):
        read_array(tmp_path / "s")
    for phase in (0, 3):
        store.append({"fc": ROWS + phase, "odd@1": ROWS}, ids=list("abcdef"), phase=phase)
    last = read_array(tmp_path / "s", key="fc")
    assert last.ids is not None
    assert last.ids.tolist() == list("abcdef")
    assert last.source == f"{tmp_path / 's'}#fc@3"
    assert np.array_equal(last.values, ROWS + 3)
    assert np.array_equal(read_array(tmp_path / "s", key="fc@0").values, ROWS)
    assert np.array_equal(read_array(tmp_path / "s", key="odd@1").values, ROWS)
    assert np.array_equal(read_array(tmp_path / "s", key="odd@1@0").values, ROWS)
    for key, message in (
        (None, "contains 2 arrays: 'fc', 'odd@1'"),
        ("fcc", "Did you mean 'fc'"),
        ("fc@7", "no phase 7"),
        ("fc@last", "'last', which is not a phase"),
    ):
        with pytest.raises(InputError, match=message):
            read_array(tmp_path / "s", key=key)
    with pytest.raises(InputError, match="folder without a manifest"):
        read_array(tmp_path)


def test_measure_takes_what_is_read(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 2))
    store = ActivationStore(tmp_path / "s")
    order = generator.permutation(400)
    store.append({"fc": x[order] + 0.3 * generator.normal(size=(400, 2))}, ids=order, phase=0)
    other = ActivationStore(tmp_path / "t")
    other.append({"fc": x}, ids=range(400), phase=0)
    paired = mikit.measure(read_array(tmp_path / "s"), read_array(tmp_path / "t"), "gaussian", seed=0)
    assert paired.value > 1.5


# --------------------------------------------------------------------- files that cannot be trusted


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.victim),))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.pth", "a.safetensors", "a.pkl", "a"])
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_refused_under_any_name(tmp_path: Path, name: str, protocol: int) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=protocol))
    with pytest.raises(InputError, match="pickle" if protocol >= 2 else "not in a supported format"):
        read_array(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_with_a_payload_does_not_run_it(tmp_path: Path, legacy: bool) -> None:
    content = {"s": torch.ones(2, 2), "evil": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="is a pickle" if legacy else "more than tensors"):
        read_array(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_a_renamed_torch_file_does_not_reach_the_unpickler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(torch.ones(2, 2), tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    for name in ("b.npz", "b.npy", "b"):
        (tmp_path / name).write_bytes((tmp_path / "a.pt").read_bytes())
        with pytest.raises(InputError, match=r"contains a pickle, as written by torch.save"):
            read_array(tmp_path / name)


def test_torch_is_asked_for_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(torch.ones(2, 2), tmp_path / "a.pt")
    asked: dict[str, Any] = {}
    load = torch.load

    def watched(path: Any, **arguments: Any) -> Any:
        asked.update(arguments)
        return load(path, **arguments)

    monkeypatch.setattr(torch, "load", watched)
    read_array(tmp_path / "a.pt")
    assert asked == {"map_location": "cpu", "weights_only": True, "mmap": True}


def test_objects_in_npy_and_npz_are_refused(tmp_path: Path) -> None:
    array = np.array([Payload(tmp_path / "ran")], object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match="Python objects"):
            read_array(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    np.save(tmp_path / "a.npy", np.zeros(3, [("x", "f4")]))
    with pytest.raises(InputError, match="not numbers"):
        read_array(tmp_path / "a.npy")


def bomb(path: Path, size: int) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (size // 4,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("../../evil.npy", "w") as member:
        member.write(header.getvalue())
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    bomb(tmp_path / "a.npz", 128 << 20)
    assert (tmp_path / "a.npz").stat().st_size < 1 << 18
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(InputError, match=r"would unpack.*times as much"):
        read_array(tmp_path / "a.npz")
    assert time.perf_counter() - started < 0.5
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_an_archive_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mikit.activations.reading._LARGEST_ARCHIVE", 100)
    np.savez(tmp_path / "a.npz", a=ROWS)
    with pytest.raises(InputError, match="limit for an archive is 100 bytes"):
        read_array(tmp_path / "a.npz")


def test_zeros_that_compress_well_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros((1000, 1000)))
    assert read_array(tmp_path / "a.npz").values.shape == (1000, 1000)


def test_names_in_an_archive_are_never_paths(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("../../evil.npy", "w") as member:
        np.lib.format.write_array(member, ROWS)
    assert np.array_equal(read_array(tmp_path / "a.npz", key="../../evil").values, ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def lying_npy(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue() + data


@pytest.mark.parametrize("shape", [(10**6, 10**6), (10**12,), (2**62, 2**62), (1,)])
def test_a_lying_npy_header_is_refused_without_allocating(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "a.npy").write_bytes(lying_npy(shape))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", lying_npy(shape))
    expected = 128 + 8 * int(np.prod([float(length) for length in shape]))
    tracemalloc.start()
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match=rf"{name}.*bytes, but it has 128 bytes") as raised:
            read_array(tmp_path / name)
        if expected < 2**53:
            assert str(expected) in str(raised.value)
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()


def test_negative_lengths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(lying_npy((-2, -3), bytes(48)))
    with pytest.raises(InputError, match="is damaged"):
        read_array(tmp_path / "a.npy")


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            safetensors_bytes({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
            "is truncated",
        ),
        (
            safetensors_bytes({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}, bytes(4)),
            "cannot be 4",
        ),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)), "impossible"),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)), "impossible"),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}, bytes(4)), "not a readable"),
        (safetensors_bytes({"a": 3}), "not a readable"),
        (safetensors_bytes(b"{" * 50), "not a readable"),
        (safetensors_bytes(b'{"a":' * 20_000), "not a readable"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header length is"),
        (struct.pack("<Q", 5000) + b"{}", "is truncated"),
    ],
)
def test_damaged_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_array(tmp_path / "a.safetensors")


def written(tmp_path: Path, name: str) -> bytes:
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, ROWS)
    elif name.endswith(".npz"):
        np.savez_compressed(path, a=ROWS)
    elif name.endswith(".pt"):
        torch.save(torch.from_numpy(ROWS), path)
    else:
        save_file({"a": ROWS}, path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.safetensors"])
def test_a_truncated_file_is_named_with_its_bytes(tmp_path: Path, name: str) -> None:
    whole = written(tmp_path, name)
    for length in {0, 1, 5, 8, 9, 40, len(whole) // 2, len(whole) - 1}:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(InputError, match=name) as raised:
            read_array(tmp_path / name)
        assert "bytes" in str(raised.value) or "header" in str(raised.value)
    if name in ("a.npy", "a.safetensors"):
        assert f"{len(whole)} bytes, but it has {len(whole) - 1} bytes" in _message(tmp_path / name, whole[:-1])


def _message(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_array(path)
    return str(raised.value)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.safetensors"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_file_never_ends_in_another_exception(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(written(folder, name))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content)
    try:
        values = read_array(folder / name).values
    except InputError:
        return
    assert values.nbytes < 1 << 20


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file or folder"):
        read_array(tmp_path / "none.npy")
    for content, message in (
        (b"", "is empty: 0 bytes"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"x,y\n1,2\n", "not in a supported format.*8 bytes"),
    ):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_array(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="not one of NumPy or PyTorch"):
        read_array(tmp_path / "a.npz")
    for path in ("", "a\0b"):
        with pytest.raises(InputError, match="is not a path"):
            read_array(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_array(tmp_path / ("x" * 400))
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(InputError, match="bytes after its array"):
        read_array(_appended(tmp_path / "a.npy"))


def _appended(path: Path) -> Path:
    path.write_bytes(path.read_bytes() + b"more")
    return path


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    (tmp_path / "a.npy").rename(tmp_path / "a.safetensors")
    assert np.array_equal(read_array(tmp_path / "a.safetensors").values, ROWS)
