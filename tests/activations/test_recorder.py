"""Recording beside a training loop: the loop notices nothing, and what was interrupted is done again."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import mikit
from mikit import ActivationStore, InputError, Recorder, phase_schedule
from mikit.distillation import PhaseRecorder

N = 12
LABELS = torch.arange(N) % 3
LAYERS = ["0", "2", "5"]


class Counting(nn.Module):
    """Follows its inputs in a buffer, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean = self.mean * 0.9 + 0.1 * x.detach().mean()
        return x


def fresh():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3), Counting()
    )


IMAGES = torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def train(network, epochs, after=lambda epoch: None):
    """A loop of one's own, whose dropout and noise draw from the global generator."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(5)
    after(0)
    for epoch in range(1, epochs + 1):
        network.train()
        for _ in range(3):
            noisy = IMAGES + 0.1 * torch.randn_like(IMAGES)
            optimizer.zero_grad()
            cross_entropy(network(noisy), LABELS).backward()
            optimizer.step()
        after(epoch)
    return network


def recorder_for(store, network, **options):
    given = {"ids": range(N), "layers": LAYERS, "schedule": [0, 1, 2, 4], "labels": LABELS, "batch": 5}
    return Recorder(store, network, IMAGES, **{**given, **options})


@pytest.fixture(scope="module")
def undisturbed():
    """The state after a training without a recorder, and the random number drawn after it."""
    state = {name: value.clone() for name, value in train(fresh(), 4).state_dict().items()}
    return state, torch.rand(1)


@pytest.fixture(scope="module")
def expected():
    """Activations and accuracy at each phase, from a copy of the network that is set aside and run by hand."""
    found = {}
    network = fresh()

    def look(epoch):
        state = {name: value.clone() for name, value in network.state_dict().items()}
        found[epoch] = state

    train(network, 4, look)
    values = {}
    for epoch, state in found.items():
        twin = fresh()
        twin.load_state_dict(state)
        twin.eval()
        with torch.no_grad():
            maps = twin[0](IMAGES)
            logits = twin(IMAGES)
        values[epoch] = maps.mean((2, 3)).numpy(), logits.argmax(1).eq(LABELS).double().mean().item()
    return values


# --- schedule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "dense", "phases"),
    [
        (1, 1, (0, 1)),
        (16, 1, (0, 1, 2, 4, 8, 16)),
        (40, 1, (0, 1, 2, 4, 8, 16, 32, 40)),
        (10, 2, (0, 1, 2, 3, 4, 6, 8, 10)),
    ],
)
def test_the_schedule_is_dense_early_and_logarithmic_later(epochs, dense, phases):
    assert phase_schedule(epochs, per_doubling=dense) == phases


def test_a_schedule_grows_with_the_logarithm():
    for dense in (1, 3, 4):
        for epochs in (7, 200, 5000):
            phases = phase_schedule(epochs, per_doubling=dense)
            assert phases[0] == 0
            assert phases[-1] == epochs
            assert phases == tuple(sorted(set(phases)))
            assert len(phases) <= dense * np.log2(epochs) + 3
            gaps = np.diff(phases[:-1])
            assert (np.diff(gaps) >= -1).all()  # Gaps grow, but for rounding.
    assert len(phase_schedule(200, per_doubling=4)) == 28


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"epochs": 2.5}, {"epochs": True}, {"epochs": 3, "per_doubling": 0}])
def test_schedules_that_cannot_be(bad):
    with pytest.raises(InputError, match="Pass an integer of at least 1"):
        phase_schedule(**bad)


# --- recording ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_training_is_undisturbed_and_phases_hold_what_evaluation_gives(tmp_path, undisturbed, expected, background):
    state, drawn = undisturbed
    network, store = fresh(), ActivationStore(tmp_path / "s")
    network[1].eval()  # A flag of its own, which must come back.
    network[1].train()
    with recorder_for(store, network, background=background) as recorder:
        modes = []

        def after(epoch):
            flags = [module.training for module in network.modules()]
            recorder(epoch)
            modes.append(flags == [module.training for module in network.modules()])

        train(network, 4, after)
        assert torch.equal(torch.rand(1), drawn)
    assert all(modes)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert store.phases == (0, 1, 2, 4)
    assert recorder.missing == ()
    assert store.layers == tuple(LAYERS)
    for phase in store.phases:
        np.testing.assert_allclose(store.read("0", phase), expected[phase][0], atol=1e-6)
        assert store.notes[phase] == {"accuracy": expected[phase][1], "accuracy_n": N}
    assert store.labels_for(np.arange(N)).tolist() == LABELS.tolist()
    assert sorted(entry.name for entry in store.path.iterdir()) == [".lock", "data", "manifest.json"]


def test_a_phase_reached_again_is_recorded_anew(tmp_path):
    network, store = fresh(), ActivationStore(tmp_path / "s")
    with recorder_for(store, network) as recorder:
        recorder(1)
        before = store.read("0", 1).copy()
        with torch.no_grad():
            network[0].weight.add_(1)
        recorder(1)
    assert not np.array_equal(store.read("0", 1), before)
    assert store.shape("0", 1) == (N, 4)
    assert recorder.missing == (0, 2, 4)


def test_a_phase_half_recorded_is_missing_and_done_again(tmp_path, monkeypatch):
    network, store = fresh(), ActivationStore(tmp_path / "s")
    monkeypatch.setattr("mikit.activations.recording._BYTES_HELD", 1)
    calls = 0

    def failing(x):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return x

    handle = network[2].register_forward_pre_hook(lambda module, args: failing(args[0]))
    recorder = recorder_for(store, network)
    with pytest.raises(KeyboardInterrupt):
        recorder(0)
    assert store.shape("0", 0) == (10, 4)
    assert "accuracy" not in store.notes.get(0, {})
    assert recorder.missing == (0, 1, 2, 4)
    handle.remove()
    recorder(0)
    assert store.shape("0", 0) == (N, 4)
    assert recorder.missing == (1, 2, 4)


def test_the_background_runs_while_training_goes_on(tmp_path, monkeypatch):
    """The call returns before the recording ends, weights change meanwhile, and a third phase waits for room."""
    network, store = fresh(), ActivationStore(tmp_path / "s")
    gate = threading.Event()
    appended = ActivationStore.append

    def slow(self, *args, **options):
        assert threading.current_thread().name.startswith("mikit-recorder")
        assert gate.wait(20)
        return appended(self, *args, **options)

    recorder = recorder_for(store, network, background=True)
    monkeypatch.setattr(ActivationStore, "append", slow)
    before = network[0](IMAGES).mean((2, 3)).detach().numpy()
    recorder(0)
    with torch.no_grad():
        network[0].weight.add_(1)
    recorder(1)
    assert store.phases == ()
    assert len(list((store.path / "pending").iterdir())) == 2
    threading.Timer(0.2, gate.set).start()
    start = time.monotonic()
    recorder(2)
    assert time.monotonic() - start > 0.1
    recorder.close()
    np.testing.assert_allclose(store.read("0", 0), before, atol=1e-6)
    assert np.abs(store.read("0", 1) - before).max() > 0.1
    assert store.phases == (0, 1, 2)


def test_faults_of_the_background_surface_at_the_next_call_and_at_the_end(tmp_path):
    network, store = fresh(), ActivationStore(tmp_path / "s")
    recorder = recorder_for(store, network, background=True)
    with torch.no_grad():
        network[0].weight.fill_(float("nan"))
    recorder(0)

    def until_told():
        for _ in range(400):
            recorder(3)
            time.sleep(0.05)

    with pytest.raises(InputError, match=r"Phase 0 could not be recorded in the background\. layer '0' contains.*NaN"):
        until_told()
    recorder(4)
    with pytest.raises(InputError, match=r"Phase 4 .* Its weights are in .*phase-000004\.safetensors"):
        recorder.close()
    with pytest.raises(InputError, match="was closed"):
        recorder(4)
    error = ValueError("of the loop")
    with (  # The weights of both phases are there, and a fault of the loop is not hidden by theirs.
        pytest.raises(ValueError, match="of the loop"),
        recorder_for(store, fresh(), background=True),
    ):
        raise error
    assert "Phase 0 could not" in error.__notes__[0]


KILLED = """
    import sys, time
    import torch
    from torch import nn
    from mikit.activations import ActivationStore, Recorder

    network = nn.Sequential(nn.Linear(3, 2))
    network[0].weight.data.fill_(1)
    network[0].bias.data.fill_(0)
    appended = ActivationStore.append
    ActivationStore.append = lambda self, *args, **options: (
        appended(self, *args, **options) if options["phase"] < 1 else time.sleep(60)
    )
    store = ActivationStore(sys.argv[1])
    recorder = Recorder(store, network, torch.ones(4, 3), ids=range(4), layers=["0"], schedule=[0, 1], background=True)
    recorder(0)
    network[0].weight.data.fill_(2)
    recorder(1)
    network[0].weight.data.fill_(3)
    while store.phases != (0,):
        time.sleep(0.01)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The store of a process that was killed while phase 1 was on its way."""
    folder = tmp_path_factory.mktemp("killed") / "s"
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(folder)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return folder


@pytest.mark.parametrize("background", [False, True])
def test_what_a_killed_process_had_set_aside_is_recorded_by_the_next(killed, tmp_path, background):
    folder = tmp_path / "s"
    shutil.copytree(killed, folder)
    store = ActivationStore.open(folder)
    assert store.phases == (0,)
    (folder / "pending" / ".tmp-left").write_bytes(b"")
    network = nn.Sequential(nn.Linear(3, 2))
    options = {"ids": range(4), "layers": ["0"], "schedule": [0, 1], "background": background}
    with Recorder(store, network, torch.ones(4, 3), labels=[0, 0, 0, 1], **options):
        pass
    assert store.phases == (0, 1)
    assert (store.read("0", 0) == 3).all()
    assert (store.read("0", 1) == 6).all()  # The weights of the call: not those after it, nor the fresh network's.
    assert store.notes[1] == {"accuracy": 0.75, "accuracy_n": 4}
    assert not (folder / "pending").exists()


def test_weights_of_another_network_are_told(tmp_path):
    network, store = fresh(), ActivationStore(tmp_path / "s")
    recorder = recorder_for(store, network, background=True)
    recorder.close()
    pending = store.path / "pending"
    pending.mkdir()
    from mikit.activations.replica import write_weights

    write_weights(nn.Linear(3, 2), pending / "phase-000001.safetensors")
    with pytest.raises(InputError, match=r"do not fit this network.*skip that phase"):
        recorder_for(store, network)
    (pending / "phase-000001.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cannot be read.*skip that phase"):
        recorder_for(store, network)


# --- networks that are not plain ------------------------------------------------------------------------------------


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x) + torch.rand(())


def test_what_cannot_run_beside_a_training_is_refused(tmp_path):
    store = ActivationStore(tmp_path / "s")
    options = {"ids": range(4), "layers": ["inner"], "schedule": [0], "background": True}
    with pytest.raises(InputError, match="draws random numbers"):
        Recorder(store, Drawing(), torch.ones(4, 3), **options)
    hooked = nn.Sequential()
    hooked.add_module("inner", nn.Linear(3, 2))
    hooked.inner.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(InputError, match="The module 'inner' has a hook that a copy of it shares"):
        Recorder(store, hooked, torch.ones(4, 3), **options)
    lazy = nn.Sequential()
    lazy.add_module("inner", nn.LazyLinear(2))
    with pytest.raises(InputError, match="its layer is lazy"):
        Recorder(store, lazy, torch.ones(4, 3), **options)
    handle = threading.Lock()
    locked = nn.Sequential()
    locked.add_module("inner", nn.Linear(3, 2))
    locked.handle = handle
    with pytest.raises(InputError, match=r"cannot be copied.*background=False"):
        Recorder(store, locked, torch.ones(4, 3), **options)
    drawing = Drawing()
    random = torch.random.get_rng_state()
    with Recorder(store, drawing, torch.ones(4, 3), **{**options, "background": False}) as recorder:
        recorder(0)
    assert torch.equal(random, torch.random.get_rng_state())


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, *, features, scale):
        return {"logits": self.inner(features) * scale}


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("background", [False, True])
def test_mappings_go_by_keyword(tmp_path, background):
    images = {"features": torch.arange(12.0).reshape(4, 3), "scale": torch.full((4, 1), 2.0)}
    network, store = Keywords(), ActivationStore(tmp_path / "s")
    options = {"ids": list("abcd"), "layers": ["inner"], "schedule": [3], "batch": 3, "background": background}
    with Recorder(store, network, images, **options) as recorder:
        recorder(3)
    expected = network.inner(images["features"]).detach().numpy()
    np.testing.assert_allclose(store.read("inner", 3), expected, atol=1e-6)
    with pytest.raises(InputError, match=r"returns a dict.*Leave out labels"):
        Recorder(store, network, images, labels=[0, 1, 1, 0], **{**options, "background": False})(3)


def test_wrapped_networks_are_run_as_they_are_inside(tmp_path):
    inner = fresh()
    compiled = torch.compile(inner, backend="eager")
    store = ActivationStore(tmp_path / "s")
    with recorder_for(store, compiled) as recorder:
        recorder(0, compiled)
        recorder(1, inner)
    assert store.phases == (0, 1)
    with pytest.raises(InputError, match="belongs to another network"):
        recorder_for(store, inner)(0, fresh())


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ids": range(N - 1), "labels": None}, r"images is \(12, 1, 8, 8\) for 11 ids"),
        ({"ids": [0] * N}, "the sample id 0 12 times"),
        ({"layers": ["conv"]}, "no module 'conv'"),
        ({"schedule": []}, "schedule is empty"),
        ({"schedule": [-1]}, "phase is -1"),
        ({"schedule": "0,1"}, "The schedule is '0,1'"),
        ({"readout": "mean"}, 'no readout "mean"'),
        ({"labels": LABELS[:-1]}, "labels"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_bad_input_is_told_before_the_first_epoch(tmp_path, options, said):
    store = ActivationStore(tmp_path / "s")
    with pytest.raises(InputError, match=said):
        recorder_for(store, fresh(), **options)


def test_labels_must_be_class_indices_of_the_output(tmp_path):
    store = ActivationStore(tmp_path / "s")
    with pytest.raises(InputError, match=r"contain 7, but the model has 3 classes"):
        recorder_for(store, fresh(), labels=LABELS.clone().fill_(7))(0)
    with pytest.raises(InputError, match="contains other labels"):
        recorder_for(store, fresh())
    with pytest.raises(InputError, match="Pass one class index"):
        recorder_for(ActivationStore(tmp_path / "t"), fresh(), labels=["a", "b", "c"] * 4)
    with pytest.raises(InputError, match="start at 0"):
        recorder_for(ActivationStore(tmp_path / "u"), fresh(), labels=LABELS - 1)


def test_other_samples_in_the_store_are_refused(tmp_path):
    store = ActivationStore(tmp_path / "s")
    recorder_for(store, fresh(), labels=None)(0)
    with pytest.raises(InputError, match=r"contains 4 samples that are not among these inputs; the first is 0"):
        recorder_for(store, fresh(), labels=None, ids=range(4, 4 + N))


def test_the_phase_recorder_is_the_same_with_a_network_at_the_call(tmp_path, expected):
    network, store = fresh(), ActivationStore(tmp_path / "s")
    record = PhaseRecorder(store, IMAGES, ids=range(N), layers=LAYERS, phases=[1, 2], labels=LABELS, batch=5)
    train(network, 2, lambda epoch: record(epoch, network))
    assert store.phases == (1, 2)
    np.testing.assert_allclose(store.read("0", 2), expected[2][0], atol=1e-6)
    assert store.notes[2]["accuracy"] == expected[2][1]
    record(1, fresh())  # Another network: a fresh recorder.
    assert np.abs(store.read("0", 1) - expected[1][0]).max() > 1e-3


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "recording.md").read_text()
    torch.manual_seed(0)
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    assert "(0, 1, 2, 4, 5) {'accuracy': 0." in capsys.readouterr().out


def test_the_recorder_serves_the_trainer(tmp_path):
    data = mikit.datasets.digits()
    part, some = data.train.per_class(5, seed=0), data.test.rows(torch.arange(40))
    network = mikit.models.ResNet8(width=0.25, generator=torch.Generator().manual_seed(0))
    store = ActivationStore(tmp_path / "s")
    plan = mikit.distillation.TrainingPlan(epochs=2, batch=25, rate=0.05)
    with Recorder(
        store,
        network,
        some.images,
        ids=some.ids,
        layers=["stage2", "fc"],
        schedule=phase_schedule(2),
        labels=some.labels,
        background=True,
    ) as recorder:
        mikit.distillation.train_network(network, part.images, part.labels, plan, on_epoch=recorder)
    assert store.phases == (0, 1, 2)
    assert store.notes[2]["accuracy"] == mikit.distillation.accuracy_on(network, some.images, some.labels)
