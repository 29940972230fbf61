"""Activations from saved checkpoints, by the command and by its parts."""

from __future__ import annotations

import json
import os
import pickle
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import mikit
from mikit.activations import ActivationStore, record_activations
from mikit.activations.checkpoints import find_checkpoints, load_weights, record_checkpoints
from mikit.cli import app
from mikit.cli.inputs import model_from, read_probe
from mikit.core.errors import InputError
from mikit.datasets import from_npz

N = 10
LABELS = np.arange(N) % 3
IMAGES = np.random.default_rng(0).standard_normal((N, 1, 6, 6)).astype(np.float32)
NETWORKS = """
    import torch
    from torch import nn

    def student():
        torch.manual_seed(99)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

    class Family:
        small = staticmethod(student)

    def failing():
        raise ValueError("no such width")

    def number():
        return 3

    constant = 3
"""


def student(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    network(torch.randn(20, 1, 6, 6))  # Batch statistics of its own.
    return network.eval()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with a module, inputs, and checkpoints of five phases, each written another way."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_networks.py").write_text(textwrap.dedent(NETWORKS))
    np.savez("probe.npz", images=IMAGES, labels=LABELS, ids=np.arange(100, 100 + N), training_ids=np.arange(50))
    (tmp_path / "saved").mkdir()
    states = {phase: student(phase).state_dict() for phase in (0, 1, 2, 4, 10)}
    torch.save(states[0], "saved/epoch-0.pt")
    torch.save({"version": 1, "network": states[1], "losses": {}, "records": [{"epoch": 1}]}, "saved/epoch-1.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in states[2].items()}}, "saved/epoch-2.pth")
    save_file(states[4], "saved/epoch-4.safetensors")
    torch.save({f"_orig_mod.{name}": value for name, value in states[10].items()}, "saved/epoch-10.ckpt")
    (tmp_path / "saved" / "notes.txt").write_text("7")
    torch.save(states[0], "saved/best.pt")
    return tmp_path


def capture(*options, factory="own_networks:student", **replaced):
    given = {"checkpoints": "saved", "data": "probe.npz", "layers": "0,4", "out": "store", **replaced}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return CliRunner().invoke(app, ["capture", factory, *words, *map(str, options)])


def refused(result, *said):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert line.endswith(".")
    assert "Traceback" not in result.output
    for words in said:
        assert words in line


# --- the command ----------------------------------------------------------------------------------------------------


def test_every_phase_holds_what_its_checkpoint_gives(run):
    result = capture("--seed", 3, "--batch", 4, "--json", "summary.json")
    assert result.exit_code == 0, result.output
    store = ActivationStore.open("store")
    assert store.phases == (0, 1, 2, 4, 10)
    assert (store.network, store.seed, store.layers, store.readout("0")) == ("store", 3, ("0", "4"), "pool")
    assert store.labels_for(store.ids(4)).tolist() == LABELS.tolist()
    assert store.training_ids.tolist() == list(range(50))
    for phase in store.phases:
        network = student(phase)
        with torch.no_grad():
            maps, logits = network[0](torch.from_numpy(IMAGES)), network(torch.from_numpy(IMAGES))
        np.testing.assert_allclose(store.read("0", phase), maps.mean((2, 3)).numpy(), atol=1e-6)
        np.testing.assert_allclose(store.read("4", phase), logits.numpy(), atol=1e-5)
        assert store.notes[phase]["accuracy"] == (logits.argmax(1).numpy() == LABELS).mean()
        assert store.notes[phase]["accuracy_n"] == N
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["recorded"], summary["skipped"], summary["unmatched"]) == ([0, 1, 2, 4, 10], [], ["best.pt"])
    assert summary["accuracy"]["10"] == store.notes[10]["accuracy"]
    assert "Recorded 5 phases of 2 layers on 10 samples in store." in result.stdout
    assert "Not matched by *{phase}: best.pt." in result.stdout


def test_a_run_that_was_stopped_goes_on(run):
    (run / "saved" / "epoch-4.safetensors").rename(run / "later.safetensors")
    (run / "saved" / "epoch-4.pt").write_bytes(b"damaged")
    refused(capture(), "'saved/epoch-4.pt' cannot be read as weights")
    store = ActivationStore.open("store")
    assert store.phases == (0, 1, 2)
    before = {phase: store.read("4", phase).copy() for phase in store.phases}
    files = {entry.name for entry in (run / "store" / "data").iterdir()}
    (run / "saved" / "epoch-4.pt").unlink()
    (run / "later.safetensors").rename(run / "saved" / "epoch-4.safetensors")
    result = capture()
    assert result.exit_code == 0, result.output
    assert "Recorded 2 phases" in result.stdout
    assert "Already recorded from the same weights: 0, 1, 2." in result.stdout
    store = ActivationStore.open("store")
    assert store.phases == (0, 1, 2, 4, 10)
    assert all(np.array_equal(store.read("4", phase), rows) for phase, rows in before.items())
    # Labels and training ids are written again, rows are not.
    assert {name for name in files if "ids" not in name} <= {entry.name for entry in (run / "store" / "data").iterdir()}
    again = capture("--json", "-")
    assert json.loads(again.stdout)["skipped"] == [0, 1, 2, 4, 10]


def test_a_phase_without_all_its_rows_or_its_fingerprint_is_recorded_anew(run):
    store = ActivationStore(run / "store", network="store")
    part = torch.from_numpy(IMAGES[:6])
    record_activations(student(7), [part], ["0", "4"], store, ids=np.arange(100, 106), phase=1)
    record_activations(student(7), [torch.from_numpy(IMAGES)], ["0", "4"], store, ids=np.arange(100, 110), phase=2)
    found = find_checkpoints("saved")
    done = record_checkpoints(
        model_from("own_networks:student"),
        {phase: found[phase] for phase in (0, 1, 2)},
        store,
        torch.from_numpy(IMAGES),
        ids=np.arange(100, 110),
        layers=["0", "4"],
    )
    assert done.recorded == (0, 1, 2)
    with torch.no_grad():
        for phase in (1, 2):
            np.testing.assert_allclose(
                store.read("4", phase), student(phase)(torch.from_numpy(IMAGES)).numpy(), atol=1e-5
            )


def test_other_weights_layers_readouts_or_inputs_are_refused(run):
    assert capture().exit_code == 0
    refused(capture(layers="0"), "contains the layers ['0', '4'], not ['0']")
    refused(capture("--readout", "flatten"), 'with the readout "pool", not "flatten"')
    np.savez("other.npz", images=IMAGES + 1)
    refused(capture(data="other.npz"), "was created with data_hash=")
    torch.save(student(77).state_dict(), "saved/epoch-1.pt")
    refused(capture(), "Phase 1 in the store", "other weights than those of 'saved/epoch-1.pt'")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"factory": "own_networks"}, "is not a factory. Write module:factory"),
        ({"factory": "nowhere:student"}, 'There is no module "nowhere"'),
        ({"factory": "own_networks:teacher"}, 'has no "teacher"'),
        ({"factory": "own_networks:constant"}, "is a int and cannot be called"),
        ({"factory": "own_networks:failing"}, "raised ValueError: no such width"),
        ({"factory": "own_networks:number"}, "returned a int, not a torch.nn.Module"),
        ({"checkpoints": "nowhere"}, "There is no folder 'nowhere'"),
        ({"data": "nowhere.npz"}, "There is no file nowhere.npz"),
        ({"layers": "0,conv"}, "The model has no module 'conv'"),
        ({"layers": ","}, "layers is empty"),
        ({"pattern": "epoch-*.pt"}, "contains {phase} 0 times"),
        ({"pattern": "step-{phase}"}, "No file in 'saved' matches the pattern \"step-{phase}\"; it contains best.pt"),
        ({"readout": "mean"}, 'no readout "mean"'),
        ({"device": "tpu"}, "must be cpu or cuda"),
        ({"key": "ema"}, "has no key 'ema'"),
    ],
)
def test_bad_input_is_told_in_a_sentence(run, options, said):
    refused(capture(**options), said)


def test_weights_that_do_not_fit_are_told(run):
    torch.save(nn.Linear(3, 2).state_dict(), "saved/epoch-3.pt")
    refused(capture(pattern="epoch-{phase}.pt"), "'saved/epoch-3.pt' do not fit the model")
    broken = student(3)
    broken[0].weight.data.fill_(float("nan"))
    torch.save(broken.state_dict(), "saved/epoch-3.pt")
    refused(capture(pattern="epoch-{phase}.pt"), "'saved/epoch-3.pt' was not recorded. layer '0' contains", "NaN")


def test_classes_and_packages_can_be_named(run):
    assert isinstance(model_from("own_networks:Family.small"), nn.Sequential)
    (run / "own_broken.py").write_text("import not_there_at_all\n")
    with pytest.raises(InputError, match=r"own_broken.*cannot be imported: No module named 'not_there_at_all'"):
        model_from("own_broken:student")
    (run / "own_raising.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        model_from("own_raising:student")


# --- its parts ------------------------------------------------------------------------------------------------------


def test_the_number_before_the_ending_is_the_phase(tmp_path):
    for name in ("v1.5-epoch3.pt", "resnet18_07.safetensors", "model.pt", "readme9.txt"):
        (tmp_path / name).touch()
    assert [(phase, path.name) for phase, path in find_checkpoints(tmp_path).items()] == [
        (3, "v1.5-epoch3.pt"),
        (7, "resnet18_07.safetensors"),
    ]
    (tmp_path / "v2-epoch3.pt").touch()
    with pytest.raises(InputError, match=r"v1\.5-epoch3\.pt and v2-epoch3\.pt .* are both phase 3"):
        find_checkpoints(tmp_path)
    assert list(find_checkpoints(tmp_path, "v2-epoch{phase}.pt")) == [3]


def test_steps_and_epochs_in_one_name(tmp_path):
    for epoch in (1, 2):
        (tmp_path / f"epoch={epoch}-step={100 * epoch}.ckpt").touch()
    assert list(find_checkpoints(tmp_path)) == [100, 200]
    assert list(find_checkpoints(tmp_path, "epoch={phase}-*")) == [1, 2]


class Run:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": student(0).state_dict(), "arguments": Run()}, "a1.pt")
    with open("a2.pt", "wb") as file:
        pickle.dump(Run(), file)
    for name in ("a1.pt", "a2.pt"):
        with pytest.raises(InputError, match="pickled objects are not loaded"):
            load_weights(name)
    assert not (tmp_path / "executed").exists()


def test_where_a_checkpoint_holds_its_weights(tmp_path):
    state = student(0).state_dict()
    torch.save({"model": state, "ema": state, "epoch": 3}, tmp_path / "a.pt")
    assert list(load_weights(tmp_path / "a.pt")) == list(state)
    assert list(load_weights(tmp_path / "a.pt", key="ema")) == list(state)
    torch.save({"weights": state, "epoch": 3}, tmp_path / "b.pt")
    with pytest.raises(InputError, match="contains no state dict: it contains 'weights', 'epoch'"):
        load_weights(tmp_path / "b.pt")
    torch.save(torch.ones(3), tmp_path / "c.pt")
    with pytest.raises(InputError, match="it contains a Tensor"):
        load_weights(tmp_path / "c.pt")
    with pytest.raises(InputError, match="no file"):
        load_weights(tmp_path / "d.pt")


def test_a_checkpoint_of_the_trainer_is_read(tmp_path):
    data = mikit.datasets.digits()
    part = data.train.per_class(2, seed=0)
    network = mikit.models.ResNet8(width=0.25)
    plan = mikit.distillation.TrainingPlan(epochs=1, batch=20, rate=0.05)
    mikit.distillation.train_network(network, part.images, part.labels, plan, folder=tmp_path)
    weights = load_weights(tmp_path / "checkpoint.pt")
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


def test_the_test_part_of_an_image_file_is_taken(tmp_path):
    rng = np.random.default_rng(0)
    parts = {"train": 20, "test": 10}
    images = {f"{part}_images": rng.integers(256, size=(n, 8, 8, 3), dtype=np.uint8) for part, n in parts.items()}
    np.savez(tmp_path / "data.npz", **images, **{f"{part}_labels": np.arange(n) % 2 for part, n in parts.items()})
    probe, data = read_probe(tmp_path / "data.npz"), from_npz(tmp_path / "data.npz")
    assert torch.equal(probe.images, data.test.images)
    assert probe.ids.tolist() == list(range(20, 30))
    assert probe.labels.tolist() == data.test.labels.tolist()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": IMAGES}, 'has no array "images"; it contains x'),
        ({"images": IMAGES, "label": LABELS}, 'contains the unknown array "label"'),
        ({"images": IMAGES.astype(np.uint8)}, "dtype uint8, so the scaling that the network needs is unknown"),
        ({"images": IMAGES[:, 0, 0, 0]}, r"shape \(10,\)"),
        ({"images": IMAGES, "labels": LABELS[1:]}, r'"labels" has shape \(9,\) for 10 images'),
        ({"images": IMAGES, "ids": LABELS[:, None]}, r'"ids" has shape \(10, 1\)'),
    ],
)
def test_inputs_that_cannot_be_used(tmp_path, arrays, said):
    np.savez(tmp_path / "probe.npz", **arrays)
    with pytest.raises(InputError, match=said):
        read_probe(tmp_path / "probe.npz")


def test_token_ids_stay_whole_numbers(tmp_path):
    np.savez(tmp_path / "probe.npz", images=np.arange(12, dtype=np.int32).reshape(3, 4))
    assert read_probe(tmp_path / "probe.npz").images.dtype == torch.int64
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"is not a \.npz file"):
        read_probe(tmp_path / "damaged.npz")
