from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mikit
from mikit import ActivationStore, InputError, record_activations
from mikit.activations import collect_activations


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )


@pytest.fixture
def images() -> Tensor:
    return torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_recording_holds_what_evaluation_gives(tmp_path: Path, images: Tensor) -> None:
    model = network()
    store = ActivationStore(tmp_path / "s")
    rows = record_activations(
        model, images.split(4), ["0", "5"], store, ids=np.arange(10), phase=2, readout={"0": "pool4", "5": "pool"}
    )
    assert rows == 10
    assert store.layers == ("0", "5")
    assert (store.readout("0"), store.readout("5")) == ("pool4", "pool")
    assert store.ids(2).tolist() == list(range(10))
    model.eval()
    np.testing.assert_allclose(store.read("5", 2), model(images).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_in_memory_and_on_disk_agree(tmp_path: Path, images: Tensor) -> None:
    store = ActivationStore(tmp_path / "s")
    record_activations(network(), images.split(4), ["0", "5"], store, ids=range(10), phase=0)
    held = collect_activations(network(), images.split(4), ["0", "5"])
    assert all(np.array_equal(held[layer].numpy(), store.read(layer, 0)) for layer in ("0", "5"))


@pytest.mark.parametrize("fails", [False, True])
def test_the_training_run_notices_nothing(images: Tensor, fails: bool) -> None:
    model = network()
    model[1].eval()
    model[3].train()
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    loader = DataLoader(TensorDataset(images, torch.arange(10)), batch_size=4)
    generator = torch.random.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError):
            collect_activations(model, [images, torch.ones(3)], ["5"])
    else:
        assert collect_activations(model, loader, ["5"])["5"].grad_fn is None
    assert [module.training for module in model.modules()] == flags
    assert torch.random.get_rng_state().equal(generator)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, *, features: Tensor, scale: float) -> Tensor:
        return self.inner(features) * scale


def test_batches_may_be_tensors_pairs_or_mappings(images: Tensor) -> None:
    model = network()
    plain = collect_activations(model, [images], ["5"])["5"]
    assert collect_activations(model, [(images, "labels")], ["5"])["5"].equal(plain)
    assert collect_activations(model, [[images]], ["5"])["5"].equal(plain)
    batch = {"features": torch.ones(2, 3), "scale": 2.0}
    assert collect_activations(Keywords(), [batch], ["inner"])["inner"].shape == (2, 2)
    with pytest.raises(InputError, match="empty tuple"):
        collect_activations(model, [()], ["5"])
    with pytest.raises(InputError, match="batches is empty"):
        collect_activations(model, [], ["5"])


def test_a_shuffling_loader_is_refused(tmp_path: Path, images: Tensor) -> None:
    loader = DataLoader(TensorDataset(images), batch_size=4, shuffle=True)
    store = ActivationStore(tmp_path / "s")
    with pytest.raises(InputError, match="random order"):
        record_activations(network(), loader, ["5"], store, ids=range(10), phase=0)


@pytest.mark.parametrize("count", [9, 11])
def test_rows_and_ids_must_match(tmp_path: Path, images: Tensor, count: int) -> None:
    store = ActivationStore(tmp_path / "s")
    with pytest.raises(InputError, match="one id per sample"):
        record_activations(network(), images.split(4), ["5"], store, ids=range(count), phase=0)
    assert store.phases == ()


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.steps = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self.rows(x).transpose(0, 1))


def test_layers_that_put_time_first_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="different numbers of samples"):
        collect_activations(TimeFirst(), [torch.ones(4, 7, 2)], ["rows", "steps"])


def test_large_recordings_are_written_in_pieces(
    tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mikit.activations.recording._BYTES_HELD", 100)
    store = ActivationStore(tmp_path / "s")
    record_activations(network(), images.split(3), ["0", "5"], store, ids=[f"img{i}" for i in range(10)], phase=0)
    whole = collect_activations(network(), images.split(3), ["0", "5"])
    assert len(list((store.path / "data").iterdir())) > 3
    assert np.array_equal(store.read("0", 0), whole["0"].numpy())
    assert store.ids(0).tolist() == [f"img{i}" for i in range(10)]


def test_stored_in_half_precision(tmp_path: Path, images: Tensor) -> None:
    store = ActivationStore(tmp_path / "s")
    record_activations(network(), [images], ["5"], store, ids=range(10), phase=0, dtype=torch.float16)
    assert store.read("5", 0).dtype == np.float16


def test_recording_a_phase_twice_is_refused(tmp_path: Path, images: Tensor) -> None:
    store = ActivationStore(tmp_path / "s")
    record_activations(network(), [images], ["5"], store, ids=range(10), phase=0)
    with pytest.raises(InputError, match="already in phase 0"):
        record_activations(network(), [images], ["5"], store, ids=range(10), phase=0)
    store.discard(0)
    mikit.record_activations(network(), [images], ["0"], store, ids=range(10), phase=0)
    assert store.layers == ("0",)
