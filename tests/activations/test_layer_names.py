"""One module under several readouts, in one pass: captured, recorded, recorded during training, and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mikit import ActivationStore, InputError, Recorder, capture, record_activations, trace
from mikit.activations.layer_names import module_and_readout, readouts_by_layer
from mikit.activations.readout import Grid, Pool

BOTH = ["conv:pool", "conv:pool2", "fc"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.fc = nn.Linear(3 * 36, 2)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.fc(self.conv(images).relu_().flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(80, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_one_forward_gives_both_readouts(net, images) -> None:
    with capture(net, BOTH) as acts:
        net(images)
    assert net.calls == 1
    assert list(acts) == BOTH
    whole = net.conv(images).detach()
    torch.testing.assert_close(acts["conv:pool"], whole.mean(dim=(2, 3)))
    torch.testing.assert_close(acts["conv:pool2"], Grid(2)(whole))
    with capture(net, ["conv", "conv:pool2"], readout="flatten") as acts:
        net(images)
    torch.testing.assert_close(acts["conv"], whole.flatten(1))


def test_both_are_stored_under_their_names_and_traced_as_two_layers(net, images, tmp_path) -> None:
    for name in ("t", "s"):
        store = ActivationStore(tmp_path / name, network=name, seed=0)
        record_activations(net, images.split(32), BOTH, store, ids=range(80), phase=0)
    assert net.calls == 6
    assert list(store.layers) == BOTH
    assert [store.readout(layer) for layer in BOTH] == ["pool", "pool2", "pool"]
    assert store.shape("conv:pool2", 0) == (80, 12)
    frame = trace(ActivationStore.open(tmp_path / "t"), store, noise=0.3, reduce=8).frame
    readouts = frame.groupby("layer")["readout"].first()
    assert readouts.to_dict() == {"conv:pool": "pool", "conv:pool2": "pool2", "fc": "pool"}
    again = ActivationStore.open(tmp_path / "s")
    assert np.array_equal(again.read("conv:pool", 0), store.read("conv:pool", 0))


def test_a_recorder_records_both_and_goes_on_with_them(net, images, tmp_path) -> None:
    for phases in ([0], [0, 1]):
        store = ActivationStore(tmp_path / "s", network="s", seed=0)
        with Recorder(store, net, images, ids=range(80), layers=BOTH, schedule=phases) as recorder:
            for phase in phases:
                recorder(phase)
    assert store.phases == (0, 1)
    torch.testing.assert_close(torch.tensor(store.read("conv:pool2", 1)), Grid(2)(net.conv(images)).detach())


def test_mikit_capture_takes_both(net, images, tmp_path, monkeypatch) -> None:
    from typer.testing import CliRunner

    from mikit.cli import app

    Path(tmp_path / "two_readouts_net.py").write_text(
        "from torch import nn\n\n\ndef build():\n    conv, fc = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(108, 2)\n"
        "    return nn.Sequential(conv, nn.Flatten(), fc)\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    torch.save(nn.Sequential(net.conv, nn.Flatten(), net.fc).state_dict(), tmp_path / "runs" / "epoch3.pt")
    np.savez(tmp_path / "data.npz", images=images.numpy(), ids=np.arange(80))
    command = ["capture", "two_readouts_net:build", "--checkpoints", "runs", "--data", "data.npz", "--out", "store"]
    result = CliRunner().invoke(app, [*command, "--layers", "0:pool,0:pool2,2"])
    assert result.exit_code == 0, result.output
    assert list(ActivationStore.open(tmp_path / "store").layers) == ["0:pool", "0:pool2", "2"]
    again = CliRunner().invoke(app, [*command, "--layers", "0:pool,0:pool2,2"])
    assert "Already recorded" in again.output
    other = CliRunner().invoke(app, [*command, "--layers", "0:pool,0:pool4,2"])
    assert other.exit_code == 2
    assert "contains the layers ['0:pool', '0:pool2', '2']" in other.stderr
    wrong = CliRunner().invoke(app, [*command, "--layers", "0:grid4"])
    assert 'There is no readout "grid4"' in wrong.stderr


@pytest.mark.parametrize(
    ("layers", "readout", "said"),
    [
        (["conv", "conv:pool"], "pool", "are the same module with the same readout"),
        (["conv:grid4"], "pool", r'There is no readout "grid4"\. The readouts are pool'),
        (["cnv:pool"], "pool", r"no module 'cnv:pool'\. Did you mean 'conv'"),
        (["conv:pool2"], {"conv:pool2": "pool"}, "whose name contains its readout"),
        (["conv:pool2", "fc"], {}, "readout has no entry for the layers 'fc'"),
        (["conv:pool2"], {"conv": "pool"}, "'conv', which is not among the layers 'conv:pool2'"),
    ],
)
def test_names_without_meaning_are_refused(net, layers, readout, said) -> None:
    with pytest.raises(InputError, match=said), capture(net, layers, readout=readout):
        pass


def test_a_colon_in_a_module_s_own_name_is_no_readout() -> None:
    assert module_and_readout("a:b") == ("a:b", None)
    assert module_and_readout("a:pool") == ("a", Pool())
    assert readouts_by_layer("flatten", ["a:b", "c:pool2"])["c:pool2"] == Grid(2)
    odd = nn.ModuleDict({"a:b": nn.Linear(2, 3)})
    with capture(odd, ["a:b"]) as acts:
        odd["a:b"](torch.ones(4, 2))
    assert acts["a:b"].shape == (4, 3)
