from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mikit import ActivationStore, InputError
from mikit.activations import hash_of_array, hash_of_model
from mikit.core.files import locked

FORMATS = ("npy", "safetensors")


def batch(start: int, rows: int = 4, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    base = np.arange(start, start + rows, dtype=dtype)
    return {"conv": np.stack([base, base + 0.5], 1), "fc": np.tile(base[:, None, None], (1, 2, 3))}


def filled(path: Path, **arguments: Any) -> ActivationStore:
    store = ActivationStore(path, network="student", seed=1, **arguments)
    store.append(batch(0), ids=range(4), phase=0, readouts={"conv": "pool", "fc": "whole"})
    store.append(batch(4), ids=range(4, 8), phase=0, readouts={"conv": "pool", "fc": "whole"})
    store.append(batch(100), ids=range(4), phase=10, readouts={"conv": "pool", "fc": "whole"})
    return store


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_appended_is_read_back(tmp_path: Path, format: Any) -> None:
    filled(tmp_path / "s", format=format, model_hash="m", data_hash="d")
    store = ActivationStore.open(tmp_path / "s")
    assert store.layers == ("conv", "fc")
    assert store.phases == (0, 10)
    assert store.ids(0).tolist() == list(range(8))
    assert store.ids(0).dtype == np.int64
    assert store.shape("fc", 0) == (8, 2, 3)
    assert store.shape("fc", 10) == (4, 2, 3)
    whole = {layer: np.concatenate([batch(0)[layer], batch(4)[layer]]) for layer in store.layers}
    for layer in store.layers:
        assert np.array_equal(store.read(layer, 0), whole[layer])
        assert np.array_equal(store.read(layer, 10), batch(100)[layer])
        assert store.read(layer, 0).dtype == np.float32
    assert isinstance(store.read("fc", 10), np.memmap)
    assert (store.readout("conv"), store.readout("fc")) == ("pool", "whole")
    assert (store.network, store.seed, store.model_hash, store.data_hash, store.format) == (
        "student", 1, "m", "d", format,
    )  # fmt: skip
    assert store.versions["torch"] == torch.__version__
    store.verify()


@given(rows=st.integers(1, 12))
@settings(deadline=None, max_examples=12)
def test_chunks_are_the_whole_in_pieces(tmp_path_factory: pytest.TempPathFactory, rows: int) -> None:
    store = filled(tmp_path_factory.mktemp("store") / "s")
    pieces = list(store.chunks("conv", 0, rows))
    assert np.array_equal(np.concatenate(pieces), store.read("conv", 0))
    assert [piece.shape[0] for piece in pieces[:-1]] == [rows] * (len(pieces) - 1)
    assert len(pieces) == -(-8 // rows)


def test_rows_cannot_be_written_to(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    for phase in (0, 10):
        with pytest.raises(ValueError, match="read-only"):
            store.read("conv", phase)[0, 0] = 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (np.ones((3, 2), np.float16), "float16"),
        (np.ones((3, 2), np.float64), "float64"),
        (np.ones((3, 2), ">f4"), "float32"),
        (torch.ones(3, 2, dtype=torch.float16), "float16"),
        (torch.full((3, 2), 1.0, dtype=torch.bfloat16), "float32"),
        (np.ones((3, 2), np.uint8), "float64"),
        (np.ones((3, 2), bool), "float64"),
        ([[1, 1], [1, 1], [1, 1]], "float64"),
        (np.ones((2, 3), np.float32).T, "float32"),
        (np.ones((6, 2), np.float32)[::-2], "float32"),
    ],
)
def test_dtypes(tmp_path: Path, value: Any, stored: str, format: Any) -> None:
    store = ActivationStore(tmp_path / "s", format=format)
    store.append({"a": value}, ids=range(3), phase=0)
    held = store.read("a", 0)
    assert str(held.dtype) == stored
    assert np.array_equal(held, np.ones((3, 2)))


def test_a_vector_becomes_a_column(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "s")
    store.append({"a": np.arange(3.0)}, ids=range(3), phase=0)
    assert store.shape("a", 0) == (3, 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([[1.0, np.nan], [0, 0]]), "layer 'a' contains 1 NaN value in 1 of 2 samples; the first is row 0"),
        (np.array([[1.0, 0], [0, np.inf]], np.float16), "1 infinite value.*row 1"),
        (torch.tensor([[1.0, 0], [0, -torch.inf]], dtype=torch.bfloat16), "1 infinite"),
        (np.ones((2, 2), complex), "complex"),
        (np.array([["a"], ["b"]]), "real numbers"),
        (np.array([[{}], [{}]]), "real numbers"),
        ([[1.0], [1.0, 2.0]], "not a rectangular array"),
        (np.ones((2, 0)), "at least one sample and one feature"),
        (np.float64(3), "at least one sample"),
        (np.ones((3, 2)), "has 3 samples, but there are 2 ids"),
        (torch.ones(2, 2).to_sparse(), "layout"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    store = ActivationStore(tmp_path / "s")
    with pytest.raises(InputError, match=message):
        store.append({"ok": np.ones((2, 2)), "a": value}, ids=[1, 2], phase=0)
    assert ActivationStore.open(tmp_path / "s").phases == ()
    assert list((tmp_path / "s" / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 1], "contains the sample id 1 2 times"),
        ([1.0, 2.0], "integers or strings"),
        ([True, False], "integers or strings"),
        ([[1, 2]], "one id per sample"),
        ([], "one id per sample"),
        ([1], "has 2 samples, but there are 1 ids"),
        (np.array([1, 2**63], np.uint64), "does not fit into int64"),
        (["a", "b\0c"], "zero byte"),
        ([None, "a"], "integers or strings"),
    ],
)
def test_ids_that_cannot_be_used_are_refused(tmp_path: Path, ids: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ActivationStore(tmp_path / "s").append({"a": np.ones((2, 2))}, ids=ids, phase=0)


def test_ids_are_unique_within_a_phase(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    with pytest.raises(InputError, match=r"1 of 4 sample ids are already in phase 0; the first is .*7"):
        store.append(batch(7), ids=range(7, 11), phase=0, readouts={"conv": "pool", "fc": "whole"})
    assert store.shape("conv", 0) == (8, 2)


def test_ids_may_be_strings_of_any_length(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "s")
    store.append({"a": np.ones((2, 1))}, ids=["a", "ünïcode"], phase=0)
    store.append({"a": np.ones((1, 1))}, ids=np.array(["x" * 300], object), phase=0)
    assert ActivationStore.open(tmp_path / "s").ids(0).tolist() == ["a", "ünïcode", "x" * 300]
    with pytest.raises(InputError, match="ids of the store are str, but these are int64"):
        store.append({"a": np.ones((1, 1))}, ids=[1], phase=1)
    with pytest.raises(InputError, match="one type of id"):
        store.set_training_ids([1])
    with pytest.raises(InputError, match="one type of id"):
        store.set_labels([1], [1])


@pytest.mark.parametrize(
    ("change", "readouts", "message"),
    [
        ({"conv": np.ones((1, 3), np.float32)}, "pool", r"shape of one sample of layer 'conv' is \(2,\).*\(3,\)"),
        ({"conv": np.ones((1, 2), np.float64)}, "pool", "dtype of layer 'conv' is 'float32'.*'float64'"),
        ({}, "flatten", "readout of layer 'conv' is 'pool' in the store, but 'flatten'"),
        ({"new": np.ones((1, 2), np.float32)}, "pool", "same layers every time"),
    ],
)
def test_appends_must_agree(tmp_path: Path, change: dict[str, Any], readouts: str, message: str) -> None:
    store = ActivationStore(tmp_path / "s")
    first = {"conv": np.ones((1, 2), np.float32), "fc": np.ones((1, 2), np.float32)}
    store.append(first, ids=[0], phase=0, readouts="pool")
    with pytest.raises(InputError, match=message):
        store.append({**first, **change}, ids=[1], phase=1, readouts=readouts)
    with pytest.raises(InputError, match="same layers every time"):
        store.append({"conv": first["conv"]}, ids=[1], phase=1, readouts="pool")
    assert store.phases == (0,)


def test_the_order_of_layers_is_that_of_the_first_append(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "s")
    store.append({"b": np.ones((1, 1)), "a": np.zeros((1, 1))}, ids=[0], phase=0)
    store.append({"a": np.zeros((1, 1)), "b": np.ones((1, 1))}, ids=[1], phase=0)
    assert store.layers == ("b", "a")
    assert store.read("b", 0).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("phase", [-1, 0.5, True, "0", None])
def test_phases_are_whole_numbers(tmp_path: Path, phase: Any) -> None:
    with pytest.raises(InputError, match="integer from 0"):
        ActivationStore(tmp_path / "s").append({"a": np.ones((1, 1))}, ids=[0], phase=phase)


def test_wrong_batches(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "s")
    with pytest.raises(InputError, match="contains no layers"):
        store.append({}, ids=[0], phase=0)
    with pytest.raises(InputError, match="not empty"):
        store.append({"": np.ones((1, 1))}, ids=[0], phase=0)
    with pytest.raises(InputError, match="readout of layer 'a' is None"):
        store.append({"a": np.ones((1, 1))}, ids=[0], phase=0, readouts={})
    with pytest.raises(InputError, match="not a layer of the batch"):
        store.append({"a": np.ones((1, 1))}, ids=[0], phase=0, readouts={"a": "pool", "b": "pool"})


def test_asking_for_what_is_not_there(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    for call in (lambda: store.read("cnv", 0), lambda: store.readout("cnv"), lambda: store.shape("cnv", 0)):
        with pytest.raises(InputError, match=r"no layer 'cnv'; its layers are \['conv', 'fc'\]"):
            call()
    for call in (lambda: store.read("conv", 3), lambda: store.ids(3), lambda: store.chunks("conv", 3)):
        with pytest.raises(InputError, match=r"no phase 3; its phases are \[0, 10\]"):
            call()
    with pytest.raises(InputError, match="rows is 0; it must be at least 1"):
        store.chunks("conv", 0, rows=0)


# --------------------------------------------------------------------- names

NASTY = [
    "../../evil", "/etc/passwd", "..", ".", "a\0b", "x" * 300, "Layer", "layer", "LAYER", "CON", "nul.txt", "a/b\\c",
    "layer1.0.conv2", "ünï", "<script>", " ", "-rf", ".hidden", "a:b", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_any_layer_name_is_safe(tmp_path: Path, format: Any) -> None:
    root = tmp_path / "deep" / "er" / "s"
    store = ActivationStore(root, format=format)
    store.append({name: np.full((2, 1), i, np.float32) for i, name in enumerate(NASTY)}, ids=[0, 1], phase=0)
    outside = {path for path in tmp_path.rglob("*") if path.is_file() and root not in path.parents}
    assert outside == set()
    names = [path.name for path in (root / "data").iterdir()]
    assert len({name.lower() for name in names}) == len(NASTY) + 1
    assert all(name[0].isdigit() and len(name) < 80 and name.isascii() for name in names)
    again = ActivationStore.open(root)
    assert again.layers == tuple(NASTY)
    assert [float(again.read(name, 0)[0, 0]) for name in NASTY] == [float(i) for i in range(len(NASTY))]


@pytest.mark.parametrize("name", ["../../outside.npy", "/etc/passwd", "a\0b.npy", "..", ".tmp-1", "", "x" * 300, 7])
def test_a_manifest_that_points_outside_is_refused(tmp_path: Path, name: Any) -> None:
    store = filled(tmp_path / "s")
    manifest = json.loads((store.path / "manifest.json").read_text())
    manifest["phases"][0]["shards"][0]["layers"][0]["name"] = name
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"is damaged.*not a file name"):
        ActivationStore.open(tmp_path / "s")


def test_a_link_out_of_the_store_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    victim = sorted((store.path / "data").glob("*conv.npy"))[0]
    victim.rename(tmp_path / "outside.npy")
    victim.symlink_to(tmp_path / "outside.npy")
    with pytest.raises(InputError, match="is a link out of the store"):
        store.read("conv", 0)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_impossible_paths(path: str) -> None:
    with pytest.raises(InputError, match="is not a path"):
        ActivationStore(path)


def test_paths_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be"):
        ActivationStore(tmp_path / ("x" * 400))


def test_a_store_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = filled(Path("s"))
    monkeypatch.chdir("/")
    assert store.read("conv", 10).shape == (4, 2)


# --------------------------------------------------------------------- opening


def test_metadata_must_agree(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    assert ActivationStore(tmp_path / "s", network="student", seed=np.int64(1)).layers == ("conv", "fc")
    for arguments, message in (
        ({"network": "teacher"}, "network='student', not 'teacher'"),
        ({"seed": 2}, "seed=1, not 2"),
        ({"model_hash": "m"}, "model_hash=None, not 'm'"),
        ({"format": "safetensors"}, "format='npy', not 'safetensors'"),
    ):
        with pytest.raises(InputError, match=message):
            ActivationStore(tmp_path / "s", **arguments)
    with pytest.raises(InputError, match='"npy" or "safetensors"'):
        ActivationStore(tmp_path / "t", format="zarr")


def test_opening_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ActivationStore.open(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder without a manifest"):
        ActivationStore.open(tmp_path / "folder")
    (tmp_path / "folder" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"not a store and not empty: it contains 'thesis.tex'"):
        ActivationStore(tmp_path / "folder")
    with pytest.raises(InputError, match="is a file"):
        ActivationStore(tmp_path / "folder" / "thesis.tex")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["thesis.tex"]


def test_a_newer_schema_says_to_update(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    manifest = json.loads((store.path / "manifest.json").read_text())
    manifest["schema_version"] = 2
    manifest["something"] = "new"
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"schema version 2 of a newer mikit.*up to version 1. Update mikit"):
        ActivationStore.open(tmp_path / "s")


def test_a_store_of_schema_version_1_opens_for_ever(tmp_path: Path) -> None:
    # Written out by hand, so that a change of the format cannot change both sides.
    root = tmp_path / "s"
    (root / "data").mkdir(parents=True)
    np.save(root / "data" / "000001-ids.npy", np.array([5, 6]))
    np.save(root / "data" / "000001-000-conv.npy", np.array([[1.0], [2.0]], np.float32))

    def described(name: str) -> dict[str, Any]:
        return {"name": name, "bytes": (root / "data" / name).stat().st_size, "sha256": "0" * 64}

    manifest = {
        "kind": "mikit activation store", "schema_version": 1, "format": "npy", "network": "n", "seed": 3,
        "model_hash": None, "data_hash": None, "writes": 1, "id_kind": "int64",
        "layers": [{"name": "conv", "readout": "pool", "dtype": "float32", "shape": [1]}],
        "phases": [{"phase": 4, "shards": [{
            "rows": 2, "ids": described("000001-ids.npy"), "layers": [described("000001-000-conv.npy")]}]}],
        "notes": {"4": {"accuracy": 0.5}}, "labels": None, "training_ids": None,
        "created": "2025-01-01T00:00:00+00:00", "versions": {"mikit": "0.1.0"},
    }  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(manifest))
    store = ActivationStore.open(root)
    assert store.read("conv", 4).tolist() == [[1.0], [2.0]]
    assert store.ids(4).tolist() == [5, 6]
    assert store.notes == {4: {"accuracy": 0.5}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable as JSON"),
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[]", "not the manifest of an activation store"),
        ('{"kind": "other"}', "not the manifest of an activation store"),
        ('{"kind": "mikit activation store", "schema_version": 1}', "is damaged"),
        ('{"kind": "mikit activation store", "schema_version": "1"}', "is damaged"),
        ('{"kind": "mikit activation store"}', "is damaged"),
    ],
)
def test_a_broken_manifest_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        ActivationStore.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "1"}, {"seed": True}, {"network": 3}, {"writes": -1}, {"format": "pickle"}, {"id_kind": "object"},
        {"layers": [{"name": "a", "readout": "pool", "dtype": "object", "shape": [1]}]}, {"layers": []},
        {"layers": {"a": 1}}, {"phases": [{"phase": -1, "shards": []}]}, {"notes": {"0": {"x": "nan"}}},
        {"notes": []}, {"labels": [1]}, {"training_ids": "x"}, {"versions": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_with_a_wrong_field_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    path = filled(tmp_path / "s").path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match="is damaged"):
        ActivationStore.open(tmp_path / "s")


# --------------------------------------------------------------------- damage


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_shard_names_file_and_bytes(tmp_path: Path, format: Any) -> None:
    store = filled(tmp_path / "s", format=format)
    victim = sorted((store.path / "data").glob("*conv*"))[0]
    whole = victim.read_bytes()
    for content, word in ((whole[:-1], "truncated"), (b"", "truncated"), (whole + b"x", "too long")):
        victim.write_bytes(content)
        with pytest.raises(
            InputError, match=rf"{victim.name}.* is {word}: {len(whole)} bytes.* is {len(content)} bytes long"
        ):
            store.read("conv", 0)
    victim.unlink()
    with pytest.raises(InputError, match=rf"{victim.name}.* {len(whole)} bytes long when written, cannot be read"):
        store.read("conv", 0)
    assert store.read("conv", 10).shape == (4, 2)


@pytest.mark.parametrize("format", FORMATS)
def test_verify_finds_one_changed_bit(tmp_path: Path, format: Any) -> None:
    store = filled(tmp_path / "s", format=format)
    store.verify()
    victim = sorted((store.path / "data").glob("*fc*"))[-1]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(InputError, match=f"{victim.name}.*SHA-256"):
        store.verify()


def test_a_shard_that_is_another_array_of_the_same_size_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    victim = sorted((store.path / "data").glob("*conv*"))[0]
    size = victim.stat().st_size
    np.save(victim, batch(0)["conv"].view(np.int32))
    assert victim.stat().st_size == size
    with pytest.raises(InputError, match=r"contains int32.*the manifest float32"):
        store.read("conv", 0)


def test_a_pickle_in_place_of_a_shard_is_not_opened(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    victim = sorted((store.path / "data").glob("*ids.npy"))[0]
    size = victim.stat().st_size
    np.save(victim, np.array([{}], object), allow_pickle=True)
    victim.write_bytes(victim.read_bytes()[:size].ljust(size, b" "))
    with pytest.raises(InputError, match="Python objects"):
        ActivationStore.open(tmp_path / "s").ids(0)


# --------------------------------------------------------------------- labels, notes


def test_labels_are_looked_up_by_id(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    assert store.labels_for([1]) is None
    store.set_labels([30, 10, 20], torch.tensor([3, 1, 2]))
    again = ActivationStore.open(tmp_path / "s")
    assert again.labels_for([10, 20, 30, 10]).tolist() == [1, 2, 3, 1]
    with pytest.raises(InputError, match=r"1 of 2 sample ids have no label.*the first is .*99"):
        again.labels_for([10, 99])
    again.set_labels([1, 2], ["cat", "dog"])
    assert again.labels_for([2]).tolist() == ["dog"]
    assert len(list((again.path / "data").glob("*labels*"))) <= 2
    for labels, message in (
        ([1, 2, 3], "3 labels for 2 ids"),
        ([0.5, 1], "not categorical"),
        ([[1, 0], [0, 1]], "one label per sample"),
        (np.array([1, 2**63], np.uint64), "does not fit into int64"),
    ):
        with pytest.raises(InputError, match=message):
            again.set_labels([1, 2], labels)


def test_training_ids(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    assert store.training_ids is None
    store.set_training_ids(torch.tensor([9, 8]))
    held = ActivationStore.open(tmp_path / "s").training_ids
    assert held is not None
    assert held.tolist() == [9, 8]
    with pytest.raises(InputError, match="contains the sample id 1 2 times"):
        store.set_training_ids([1, 1])


def test_notes(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    store.note(10, accuracy=0.25, loss=torch.tensor(2.0))
    store.note(0, accuracy=np.float32(0.5))
    store.note(10, accuracy=0.75)
    again = ActivationStore.open(tmp_path / "s")
    assert again.notes == {0: {"accuracy": 0.5}, 10: {"accuracy": 0.75, "loss": 2.0}}
    assert list(again.notes) == [0, 10]
    for value in (float("nan"), float("inf"), "high"):
        with pytest.raises(InputError, match="Pass a"):
            store.note(0, accuracy=value)
    again.notes[0]["accuracy"] = 9.0
    assert again.notes[0]["accuracy"] == 0.5


def test_discarding_a_phase_frees_its_files(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    store.note(0, accuracy=0.1)
    before = len(list((store.path / "data").iterdir()))
    store.discard(0)
    assert store.phases == (10,)
    assert store.notes == {}
    assert len(list((store.path / "data").iterdir())) == before - 6
    store.append(batch(50), ids=range(4), phase=0, readouts={"conv": "pool", "fc": "whole"})
    assert store.read("conv", 0)[0, 0] == 50
    with pytest.raises(InputError, match="no phase 3"):
        store.discard(3)
    store.discard(0)
    store.discard(10)
    store.append({"other": np.ones((1, 1))}, ids=["a"], phase=0)
    assert store.layers == ("other",)


# --------------------------------------------------------------------- writing


class Fault:
    """Raises at the n-th system call that makes a change last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, after: bool) -> None:
        self.calls, self.nth, self.after = 0, nth, after
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, call: Any) -> Any:
        def faulty(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.nth and not self.after:
                raise OSError(errno.ENOSPC, "No space left on device")
            result = call(*arguments)
            if self.calls == self.nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            return result

        return faulty


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_the_old_or_the_new_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any, after: bool
) -> None:
    store = ActivationStore(tmp_path / "s", format=format)
    store.append(batch(0), ids=range(4), phase=0)
    outcomes = []
    for nth in range(1, 40):
        start = 4 * nth
        before = store.shape("conv", 0)[0]
        with monkeypatch.context() as patched:
            fault = Fault(patched, nth, after)
            message = ""
            try:
                store.append(batch(start), ids=range(start, start + 4), phase=0)
            except InputError as error:
                message = str(error)
        assert not message or "could not be written: [Errno 28] No space left" in message
        again = ActivationStore.open(tmp_path / "s")
        rows = again.shape("conv", 0)[0]
        assert rows in (before, before + 4)
        outcomes.append(rows == before)
        assert again.read("conv", 0)[:, 0].tolist() == again.ids(0).tolist()
        again.verify()
        assert not list(store.path.glob(".tmp-*")) + list((store.path / "data").glob(".tmp-*"))
        assert store.shape("conv", 0)[0] == rows
        assert len(list((store.path / "data").iterdir())) == 3 * rows // 4
        if fault.calls < nth:
            break
    else:
        pytest.fail("the faults did not end")
    assert outcomes.count(True) >= 8
    assert outcomes[-1] is False


def test_everything_is_synced_in_the_order_that_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ActivationStore(tmp_path / "s")
    root, data = (os.stat(folder).st_ino for folder in (store.path, store.path / "data"))
    events: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        node = os.fstat(descriptor).st_ino
        events.append({root: "sync folder", data: "sync data"}.get(node, "sync file"))
        sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append("new manifest" if target.name == "manifest.json" else "new file")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    store.append(batch(0), ids=range(4), phase=0)
    file = ["sync file", "new file"]
    assert events == [*file, *file, *file, "sync data", "sync file", "new manifest", "sync folder"]


def test_strays_of_a_killed_writer_are_ignored_and_removed(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    for stray in ("data/.tmp-1-ab", "data/000009-000-conv.npy", ".tmp-2-cd"):
        (store.path / stray).write_bytes(b"half")
    (store.path / "data" / "mine.txt").write_text("not ours")
    again = ActivationStore.open(tmp_path / "s")
    assert again.shape("conv", 0) == (8, 2)
    again.note(0, accuracy=0.1)
    left = {path.name for path in store.path.rglob("*")}
    assert not left & {".tmp-1-ab", "000009-000-conv.npy", ".tmp-2-cd"}
    assert "mine.txt" in left
    again.verify()


def test_an_interrupted_creation_can_be_taken_up(tmp_path: Path) -> None:
    (tmp_path / "s" / "data").mkdir(parents=True)
    (tmp_path / "s" / ".lock").touch()
    (tmp_path / "s" / ".tmp-1-ab").write_bytes(b"{")
    assert filled(tmp_path / "s").phases == (0, 10)


def test_a_read_only_place_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot be created: .*Permission denied"):
        ActivationStore(tmp_path / "s")


def test_a_held_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "s")
    monkeypatch.setattr("mikit.core.files._SECONDS_TO_WAIT", 0.05)
    with locked(store.path / ".lock", store.path):
        started = time.monotonic()
        with pytest.raises(InputError, match="Another process is writing to the store"):
            store.note(0, accuracy=0.1)
        assert time.monotonic() - started < 5
        assert store.read("conv", 0).shape == (8, 2)
    store.note(0, accuracy=0.1)


def test_two_objects_take_turns(tmp_path: Path) -> None:
    first, second = filled(tmp_path / "s"), ActivationStore.open(tmp_path / "s")
    readouts = {"conv": "pool", "fc": "whole"}
    first.append(batch(8), ids=range(8, 12), phase=0, readouts=readouts)
    second.append(batch(12), ids=range(12, 16), phase=0, readouts=readouts)
    with pytest.raises(InputError, match="already in phase 0"):
        first.append(batch(12), ids=range(12, 16), phase=0, readouts=readouts)
    assert second.ids(0).tolist() == list(range(16))
    assert first.ids(0).tolist() == list(range(16))


# --------------------------------------------------------------------- hashes


def test_hashes_of_arrays() -> None:
    value = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert hash_of_array(value) == hash_of_array(torch.from_numpy(value)) == hash_of_array(np.asfortranarray(value))
    others = [value.reshape(4, 3), value.astype(np.float64), value + 1, value[::-1]]
    assert len({hash_of_array(other) for other in [value, *others]}) == 5
    assert hash_of_array(torch.ones(3, dtype=torch.bfloat16)) != hash_of_array(torch.ones(3, dtype=torch.float16))
    assert hash_of_array(np.float64(1)) == hash_of_array(torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(InputError, match="no hash"):
        hash_of_array(np.array(["a"]))


def test_hashes_of_models() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    state = model.state_dict()
    first = hash_of_model(state)
    assert hash_of_model(dict(reversed(list(state.items())))) == first
    model(torch.randn(4, 2))
    assert hash_of_model(model.state_dict()) != first
    assert hash_of_model(model.to(torch.bfloat16).state_dict()) != first
    with pytest.raises(InputError, match="'extra'"):
        hash_of_model({"extra": 3})
