from __future__ import annotations

import copy
import gc
import sys
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn

import mikit
from mikit import InputError, capture
from mikit.activations import Flatten


class Block(nn.Module):
    """A residual block whose one ReLU runs twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.relu(self.norm(self.conv(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.layer1 = Block(4)
        self.extra = nn.Linear(4, 2)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 2)
        self.use_extra = False
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.act(self.stem(x)))
        if self.fails:
            raise RuntimeError("the forward broke")
        x = self.drop(x.mean((2, 3)))
        return self.extra(x) if self.use_extra else self.fc(x)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def hook_count(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._forward_hooks_always_called)
        for module in model.modules()
    )


def test_activations_are_those_of_the_layers(net: Net, images: Tensor) -> None:
    net.eval()
    with capture(net, ["fc", "stem", "layer1.norm"], readout="whole") as acts:
        out = net(images)
    assert list(acts) == ["fc", "stem", "layer1.norm"]
    assert len(acts) == 3
    assert acts["fc"].equal(out)
    assert acts["stem"].equal(net.stem(images))
    assert acts["layer1.norm"].equal(net.layer1.norm(net.layer1.conv(net.act(net.stem(images)))))


def test_an_in_place_relu_does_not_change_what_was_captured(net: Net, images: Tensor) -> None:
    with capture(net, ["stem"], readout="whole") as acts:
        net(images)
    assert acts["stem"].equal(net.stem(images))
    assert (acts["stem"] < 0).any()
    for readout in ("flatten", "tokens"):
        with capture(net, ["stem"], readout=readout) as acts:
            net(images)
        assert (acts["stem"] < 0).any(), readout


def test_captured_vectors_do_not_share_memory_with_the_model(images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(inplace=True))
    with capture(model, ["1"]) as acts:
        model(images)
    assert acts["1"].equal(model[1](model[0](images)))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_bit_identical(net: Net, images: Tensor, training: bool) -> None:
    net.train(training)
    net.layer1.eval()
    twin = copy.deepcopy(net)
    flags = [module.training for module in net.modules()]
    torch.manual_seed(3)
    with capture(net, ["stem", "layer1", "fc"], readout={"stem": "projection:8", "layer1": "pool4", "fc": "pool"}):
        out = net(images)
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    assert out.equal(twin(images))
    assert torch.random.get_rng_state().equal(state)
    assert [module.training for module in net.modules()] == flags
    for (name, mine), theirs in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        assert mine.equal(theirs), name
    assert hook_count(net) == 0


def test_hooks_go_when_the_forward_raises(net: Net, images: Tensor) -> None:
    net.fails = True
    with pytest.raises(RuntimeError, match="the forward broke"), capture(net, ["stem"]) as acts:
        net(images)
    assert hook_count(net) == 0
    with pytest.raises(InputError, match="raised an exception"):
        acts["stem"]


def test_a_forward_after_a_failed_one_reads_as_usual(net: Net, images: Tensor) -> None:
    with capture(net, ["stem"]) as acts:
        net.fails = True
        with pytest.raises(RuntimeError):
            net(images)
        net.fails = False
        net(images)
        assert acts["stem"].shape == (5, 4)


def test_hooks_go_when_the_body_raises(net: Net) -> None:
    with pytest.raises(KeyError), capture(net, ["stem"]):
        raise KeyError
    assert hook_count(net) == 0


def test_hooks_go_when_the_names_are_wrong(net: Net) -> None:
    with pytest.raises(InputError), capture(net, ["stem", "nothing"]):
        pass
    assert hook_count(net) == 0


def test_other_hooks_of_the_model_stay(net: Net, images: Tensor) -> None:
    calls: list[str] = []
    net.stem.register_forward_hook(lambda *_: calls.append("mine"))
    with capture(net, ["stem"]):
        net(images)
    net(images)
    assert calls == ["mine", "mine"]


def test_each_forward_clears_the_last(net: Net, images: Tensor) -> None:
    with capture(net, ["fc", "extra"]) as acts:
        with pytest.raises(InputError, match="there was no forward pass yet"):
            acts["fc"]
        net(images)
        assert acts["fc"].shape == (5, 2)
        with pytest.raises(InputError, match="'extra' did not run in the last forward"):
            acts["extra"]
        net.use_extra = True
        net(images[:3])
        assert acts["extra"].shape == (3, 2)
        with pytest.raises(InputError, match="'fc' did not run in the last forward"):
            acts["fc"]


def test_a_layer_that_runs_twice_is_refused(net: Net, images: Tensor) -> None:
    with capture(net, ["layer1.relu", "stem"]) as acts:
        net(images)
    assert acts["stem"].shape == (5, 4)
    with pytest.raises(InputError, match=r"'layer1.relu' ran 2 times in the last forward pass.*outer module"):
        acts["layer1.relu"]


def test_a_part_of_the_model_can_be_called_alone(net: Net, images: Tensor) -> None:
    with capture(net, ["stem"], readout="whole") as acts:
        net.stem(images)
        net.stem(images + 1)
        assert acts["stem"].equal(net.stem(images + 1))


def test_mapping_manners(net: Net, images: Tensor) -> None:
    with capture(net, ["stem", "extra"]) as acts:
        net(images)
    assert "stem" in acts
    assert "extra" in acts
    assert "fc" not in acts
    with pytest.raises(InputError, match="'extra' did not run"):
        dict(acts)
    with pytest.raises(InputError, match="'fc' is not captured; the captured layers are 'stem' and 'extra'"):
        acts["fc"]
    assert repr(acts) == "CapturedActivations({'stem': (5, 4)})"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["layer1.conf"], "no module 'layer1.conf'. Did you mean 'layer1.conv'"),
        (["layer2"], "Did you mean 'layer1'"),
        (["zzzzzz"], "Its modules are 'stem'"),
        (["stem", "stem"], "twice"),
        ([""], "the model itself"),
        ([], "layers is empty"),
        ("stem", r"Pass a list of names: \['stem'\]"),
        ([3], "not a module name"),
    ],
)
def test_wrong_names_are_refused(net: Net, layers: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message), capture(net, layers):
        pass


def test_a_model_without_modules_says_so() -> None:
    with pytest.raises(InputError, match="contains no modules"), capture(nn.Linear(2, 2), ["weight"]):
        pass


def test_one_module_under_two_names_is_refused(net: Net) -> None:
    net.head = net.fc
    with pytest.raises(InputError, match="are the same module"), capture(net, ["fc", "head"]):
        pass


def test_a_shared_module_can_be_captured_under_either_name(net: Net, images: Tensor) -> None:
    net.head = net.fc
    with capture(net, ["head"]) as acts:
        out = net.eval()(images)
    assert acts["head"].equal(out)


def test_the_readout_can_differ_by_layer(net: Net, images: Tensor) -> None:
    with capture(net, ["stem", "fc"], readout={"stem": Flatten(), "fc": "pool"}) as acts:
        net(images)
    assert acts["stem"].shape == (5, 4 * 36)
    for readout, message in (
        ({"stem": "pool"}, "has no entry for the layers 'fc'"),
        ({"stem": "pool", "fc": "pool", "x": "pool"}, "'x', which is not among"),
        ("max", 'There is no readout "max"'),
    ):
        with pytest.raises(InputError, match=message), capture(net, ["stem", "fc"], readout=readout):
            pass


def test_a_readout_that_does_not_fit_is_told_when_reading(net: Net, images: Tensor) -> None:
    net.eval()
    with capture(net, ["fc", "stem"], readout="tokens") as acts:
        assert net(images).equal(net(images))
    assert acts["stem"].shape == (5, 36, 4)
    with pytest.raises(InputError, match=r"'fc' could not be captured.*no tokens"):
        acts["fc"]


def test_gradients_are_cut_or_kept(net: Net, images: Tensor) -> None:
    net.eval()
    with capture(net, ["stem", "fc"]) as acts:
        net(images)
    assert not acts["stem"].requires_grad
    with capture(net, ["stem"], detach=False) as acts:
        net(images)
    (gradient,) = torch.autograd.grad(acts["stem"].square().sum(), net.stem.weight)
    (expected,) = torch.autograd.grad(net.stem(images).mean((2, 3)).square().sum(), net.stem.weight)
    torch.testing.assert_close(gradient, expected)


def test_training_through_a_kept_gradient_survives_the_in_place_relu(net: Net, images: Tensor) -> None:
    with capture(net, ["stem", "layer1"], detach=False, readout="whole") as acts:
        (net(images).sum() + acts["stem"].square().sum() + acts["layer1"].sum()).backward()
    assert net.stem.weight.grad is not None


def test_dtype_and_device(net: Net, images: Tensor) -> None:
    with capture(net, ["stem"], dtype=torch.float64, device="cpu") as acts:
        net(images)
    assert acts["stem"].dtype == torch.float64
    with pytest.raises(InputError, match="floating-point"), capture(net, ["stem"], dtype=torch.int32):
        pass


def test_readouts_run_outside_autocast(net: Net, images: Tensor) -> None:
    with capture(net, ["stem"], readout="projection:8") as acts, torch.autocast("cpu", torch.bfloat16):
        net.eval()(images)
    half = acts["stem"]
    with torch.autocast("cpu", torch.bfloat16):
        stem = net.stem(images)
    assert half.dtype == torch.bfloat16
    assert half.equal(mikit.activations.Projection(8)(stem))


def test_tuples_give_their_first_tensor() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    with capture(model, ["0"], readout="whole") as acts:
        out, _ = model(torch.ones(2, 5, 3))
    assert acts["0"].equal(out)


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x, "features": x}


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


@pytest.mark.parametrize(
    ("layer", "message"),
    [(Dictionary(), "returns a dict with the keys 'logits' and 'features'"), (Nothing(), "returns a NoneType")],
)
def test_other_outputs_say_what_they_are(layer: nn.Module, message: str) -> None:
    model = nn.Sequential(layer)
    with capture(model, ["0"]) as acts:
        model(torch.ones(2, 3))
    with pytest.raises(InputError, match=message):
        acts["0"]


def test_whole_numbers_are_refused_when_read() -> None:
    model = nn.Sequential(nn.Flatten())
    with capture(model, ["0"]) as acts:
        model(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="floating-point"):
        acts["0"]


def test_two_captures_can_be_nested(net: Net, images: Tensor) -> None:
    with capture(net, ["stem"]) as outer, capture(net, ["stem", "fc"]) as inner:
        net(images)
    assert outer["stem"].equal(inner["stem"])
    assert hook_count(net) == 0


def test_recomputed_activations_are_not_counted_twice(net: Net, images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 2))

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)

    outer = Checkpointed()
    with capture(outer, ["inner.0"]) as acts:
        outer(images).sum().backward()
        assert acts["inner.0"].shape == (5, 3)


def test_a_compiled_model_is_warned_about(net: Net, images: Tensor) -> None:
    compiled = torch.compile(net.eval(), backend="eager")
    with pytest.warns(UserWarning, match="before torch.compile"), capture(compiled, ["stem"]):
        pass
    net.layer1.compile(backend="eager")
    with pytest.warns(UserWarning, match="before torch.compile"), capture(net, ["stem"]):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with capture(Net(), ["stem"]):
            pass


@pytest.mark.slow
@pytest.mark.filterwarnings("default:The .grad attribute:UserWarning")
def test_a_model_compiled_inside_the_block_is_captured(net: Net, images: Tensor) -> None:
    net.eval()
    with capture(net, ["stem", "fc"]) as acts:
        out = torch.compile(net, backend="eager")(images)
    assert acts["fc"].equal(out)


def test_data_parallel_without_devices_runs_as_it_is(net: Net, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["torch.nn.parallel.data_parallel"], "_get_available_device_type", lambda: None)
    model = nn.DataParallel(net.eval())
    with capture(model, ["module.fc"]) as acts:
        out = model(images)
    assert acts["module.fc"].equal(out)


def test_data_parallel_over_several_devices_is_refused(net: Net) -> None:
    model = nn.DataParallel(net)
    model.device_ids = [0, 1]
    with pytest.raises(InputError, match=r"model.module"), capture(model, ["module.fc"]):
        pass


def test_the_model_is_not_kept_alive(images: Tensor) -> None:
    model = Net()
    with capture(model, ["stem"]) as acts:
        model(images)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert acts["stem"].shape == (5, 4)
