from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import mikit
from mikit.activations import ActivationStore
from mikit.core.errors import InputError
from mikit.datasets import digits
from mikit.distillation import (
    DistillationTerm,
    PhaseRecorder,
    TrainingPlan,
    accuracy_on,
    example_features,
    example_layers,
    random_stream,
    train_network,
    train_student,
)
from mikit.models import ResNet8

PLAN = TrainingPlan(epochs=3, batch=25, rate=0.1)


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(scope="module")
def part(data):
    return data.train.per_class(5, seed=0)


@pytest.fixture(scope="module")
def teacher(data):
    network = ResNet8(width=0.5, generator=random_stream(7, "weights"))
    plan = TrainingPlan(epochs=4, batch=50, rate=0.1, clip=None)
    train_network(network, data.train.images, data.train.labels, plan, views=data.views)
    return network.eval()


def student(seed=0):
    return ResNet8(width=0.25, generator=random_stream(seed, "weights"))


def vid_terms(network, teacher, part, seed=0):
    generator = random_stream(seed, "losses")
    return {
        layer: DistillationTerm(
            loss=mikit.VID.between(
                *example_features(network, teacher, part.images, layer, readout="whole"), generator=generator
            ),
            layer=layer,
            weight=10.0,
            readout="whole",
        )
        for layer in ("stage1", "stage3")
    }


def numbers(curve):
    """Return the records without their times."""
    return [dataclasses.replace(record, seconds=0.0) for record in curve.records]


def naive(network, teacher, vid, weight, data, part, plan):
    """Train by the plainest loop there is, with one VID between the last hidden layers; return the losses by step."""
    groups = [{"params": network.parameters()}, *vid.param_groups()]
    groups = [{"weight_decay": plan.weight_decay, **group} for group in groups]
    optimiser = torch.optim.SGD(groups, lr=plan.rate, momentum=0.9, nesterov=True)
    steps = len(part) // plan.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, plan.rate, total_steps=steps * plan.epochs, pct_start=plan.warm_up, cycle_momentum=False
    )
    generator = random_stream(plan.seed, "views")
    losses = []
    for _ in range(plan.epochs):
        network.train()
        order = torch.randperm(len(part), generator=generator)
        for step in range(steps):
            rows = order[step * plan.batch : (step + 1) * plan.batch]
            views = data.views(part.images[rows], generator=generator)
            with torch.no_grad():
                told = teacher.pool(torch.relu(hidden(teacher, views)))
            own = network.pool(torch.relu(hidden(network, views)))
            loss = cross_entropy(network.fc(own), part.labels[rows]) + weight * vid(own, told)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
    return losses


def hidden(network, views):
    maps = torch.relu(network.stage1(network.stem(views)))
    return network.stage3(torch.relu(network.stage2(maps)))


def test_the_steps_are_those_of_a_plain_loop(data, part, teacher):
    plan = dataclasses.replace(PLAN, clip=0.5)  # Small enough to act.
    mine, theirs = student(), student()
    example = example_features(mine, teacher, part.images, "pool")
    vids = [mikit.VID.between(*example, generator=random_stream(0, "losses")) for _ in range(2)]
    terms = {"vid": DistillationTerm(loss=vids[0], layer="pool", weight=2.0)}
    curve = train_student(mine, teacher, terms, part.images, part.labels, plan, views=data.views)
    losses = naive(theirs, teacher, vids[1], 2.0, data, part, plan)
    steps = len(part) // plan.batch
    # The same operations in the same order; the mean over steps is taken in float64 on both sides.
    for record, expected in zip(curve.records, torch.tensor(losses).double().reshape(-1, steps).mean(1), strict=True):
        assert record.loss == pytest.approx(float(expected), rel=1e-6)
    for (name, own), other in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6, msg=name)
    for own, other in zip(vids[0].parameters(), vids[1].parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_a_run_repeats_itself_and_leaves_the_global_state_alone(data, part, teacher):
    before = torch.get_rng_state()
    states = []
    for _ in range(2):
        network = student()
        held_out = (data.test.images, data.test.labels)
        terms = vid_terms(network, teacher, part)
        curve = train_student(
            network, teacher, terms, part.images, part.labels, PLAN, views=data.views, held_out=held_out
        )
        states.append((numbers(curve), network.state_dict()))
        assert curve.accuracy == accuracy_on(network, *held_out)
        torch.rand(5)  # What others draw in between changes nothing.
    assert states[0][0] == states[1][0]
    assert all(torch.equal(states[0][1][name], states[1][1][name]) for name in states[0][1])
    torch.set_rng_state(before)
    train_network(student(), part.images, part.labels, PLAN, views=data.views)
    assert torch.equal(before, torch.get_rng_state())


def test_all_methods_of_a_seed_see_the_same_views(data, part, teacher):
    seen = {}

    def run(name, terms):
        views = []

        def watched(images, *, generator):
            views.append(data.views(images, generator=generator))
            return views[-1]

        network = student()
        if terms is None:
            train_network(network, part.images, part.labels, PLAN, views=watched)
        else:
            train_student(network, teacher, terms(network), part.images, part.labels, PLAN, views=watched)
        seen[name] = torch.cat(views)

    run("alone", None)
    run("vid", lambda network: vid_terms(network, teacher, part))
    run("drawing", lambda _: {"noise": DistillationTerm(loss=Drawing(), layer="pool")})
    assert torch.equal(seen["alone"], seen["vid"])
    assert torch.equal(seen["alone"], seen["drawing"])


def several_terms(network, teacher, part):
    examples = example_layers(network, teacher, part.images, ("stage2", "pool"))
    built = {
        "mimkd": mikit.MIMKD.between(*examples, generator=torch.Generator().manual_seed(0)),
        "flow": mikit.InformationFlow.between(*examples, generator=torch.Generator().manual_seed(0)),
    }
    return {
        name: DistillationTerm(loss=loss, layer=tuple(examples[0]), readout="whole") for name, loss in built.items()
    }


def test_losses_that_read_several_layers_train_know_the_epoch_and_resume(data, part, teacher, tmp_path):
    whole, resumed = student(), student()
    terms = several_terms(whole, teacher, part)
    before = [parameter.clone() for parameter in terms["mimkd"].loss.parameters()]
    curve = train_student(whole, teacher, terms, part.images, part.labels, PLAN, views=data.views)
    assert all(not torch.equal(old, new) for old, new in zip(before, terms["mimkd"].loss.parameters(), strict=True))
    assert int(terms["flow"].loss.epoch) == PLAN.epochs - 1

    def stop(epoch, network):
        if epoch == 2:
            raise KeyboardInterrupt

    run = {"views": data.views, "folder": tmp_path}
    again = several_terms(resumed, teacher, part)
    with pytest.raises(KeyboardInterrupt):
        train_student(resumed, teacher, again, part.images, part.labels, PLAN, on_epoch=stop, **run)
    again = several_terms(resumed, teacher, part)
    assert numbers(train_student(resumed, teacher, again, part.images, part.labels, PLAN, **run)) == numbers(curve)


def test_the_layers_of_teacher_and_student_pair_up(part, teacher):
    own, other = example_layers(student(), teacher, part.images, ("stage2", "pool"), ("stage3", "pool"))
    assert list(own) == list(other) == ["stage2", "pool"]
    assert other["stage2"].shape[1:] == (teacher.fc.in_features, 2, 2)
    with pytest.raises(InputError, match="Pass equally many of each"):
        example_layers(student(), teacher, part.images, ("stage2",), ("stage3", "pool"))
    with pytest.raises(InputError, match="tuples of equally many"):
        DistillationTerm(loss=mikit.MMD(), layer=("stage2",), teacher_layer="stage2")


class Drawing(nn.Module):
    """A loss that draws from a generator of its own and from the global one, and counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, y):
        self.calls += 1
        own = torch.randn(x.shape[1], generator=self.generator) + 0.1 * torch.randn(x.shape[1])
        return (x @ own).square().mean() / (10 + self.calls)


KILLED = """
    import sys, time
    import torch
    from pathlib import Path
    import test_trainer as here

    torch.set_num_threads(1)
    here.resumable(Path(sys.argv[1]), pause=0.15)
"""


def resumable(folder, pause=0.0):
    """Run a student with critics, drawing losses and a recorder; return its curve, its state and its losses' states."""
    data = digits()
    part = data.train.per_class(5, seed=0)
    teacher = ResNet8(width=0.5, generator=random_stream(7, "weights")).eval()
    network = student()
    terms = {
        **vid_terms(network, teacher, part),
        "drawing": DistillationTerm(loss=Drawing(), layer="pool", weight=0.1),
    }
    store = ActivationStore(folder / "store", network="student", seed=0)
    recorder = PhaseRecorder(
        store, data.test.images[:50], ids=data.test.ids[:50], layers=["pool"], phases=range(20), batch=50
    )

    def on_epoch(epoch, trained):
        recorder(epoch, trained)
        time.sleep(pause)

    curve = train_student(
        network,
        teacher,
        terms,
        part.images,
        part.labels,
        dataclasses.replace(PLAN, epochs=8),
        views=data.views,
        held_out=(data.test.images[:200], data.test.labels[:200]),
        folder=folder,
        on_epoch=on_epoch,
    )
    return curve, network.state_dict(), {name: term.loss.state_dict() for name, term in terms.items()}, store


def test_a_killed_run_goes_on_to_the_identical_curve(tmp_path, request):
    whole = resumable(tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    log = folder / "log.jsonl"
    for least in (2, 5):  # Killed twice, the second time in the continued run.
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)],
            cwd=request.path.parent,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 60
        while not (log.exists() and len(log.read_text().splitlines()) >= least):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        assert len(log.read_text().splitlines()) < 8
    resumed = resumable(folder)
    assert numbers(resumed[0]) == numbers(whole[0])
    for first, second in [(resumed[1], whole[1]), *zip(resumed[2].values(), whole[2].values(), strict=True)]:
        assert all(torch.equal(first[name], second[name]) for name in second)
    assert resumed[3].phases == whole[3].phases == tuple(range(9))
    for phase in range(9):
        assert (resumed[3].read("pool", phase) == whole[3].read("pool", phase)).all()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 9))
    assert set(lines[0]["terms"]) == {"stage1", "stage3", "drawing"}
    assert [line["loss"] for line in lines] == [record.loss for record in whole[0].records]


def test_a_finished_run_returns_at_once(part, tmp_path):
    first, second = student(), student()
    told = []
    curve = train_network(first, part.images, part.labels, PLAN, folder=tmp_path)
    (tmp_path / "log.jsonl").unlink()
    again = train_network(
        second, part.images, part.labels, PLAN, folder=tmp_path, on_epoch=lambda epoch, _: told.append(epoch)
    )
    assert curve == again
    assert told == []
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == PLAN.epochs


def test_a_checkpoint_of_another_run_is_refused(part, teacher, tmp_path):
    train_network(student(), part.images, part.labels, PLAN, folder=tmp_path)
    with pytest.raises(InputError, match=r"its plan\.rate is 0\.1, not 0\.2"):
        train_network(student(), part.images, part.labels, dataclasses.replace(PLAN, rate=0.2), folder=tmp_path)
    with pytest.raises(InputError, match="its data is"):
        train_network(student(), part.images + 1, part.labels, PLAN, folder=tmp_path)
    terms = {"mmd": DistillationTerm(loss=nn.MSELoss(), layer="fc")}
    with pytest.raises(InputError, match=r"its teacher is None.*loss mmd differ too"):
        train_student(student(), teacher, terms, part.images, part.labels, PLAN, folder=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be read"):
        train_network(student(), part.images, part.labels, PLAN, folder=tmp_path)


def test_divergence_is_told(part, tmp_path):
    plan = dataclasses.replace(PLAN, rate=1e30, clip=None)
    curve = train_network(student(), part.images, part.labels, plan, folder=tmp_path)
    assert "diverged in epoch 1: the loss is nan" in curve.diverged
    with pytest.raises(InputError, match="diverged in epoch 1"):
        _ = curve.accuracy
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["loss"] == "nan"
    assert not (tmp_path / "checkpoint.pt").exists()


def test_divergence_in_the_last_step_is_told(part):
    class Lost(nn.Module):
        def forward(self, x, y):
            return (x * 0).sum().sqrt()  # 0, with a gradient that is not finite.

    teacher = student(1).eval()
    terms = {"lost": DistillationTerm(loss=Lost(), layer="pool")}
    plan = TrainingPlan(epochs=1, batch=50, rate=0.1)
    curve = train_student(student(), teacher, terms, part.images, part.labels, plan)
    assert "the parameter 'stem.0.weight' is not finite" in curve.diverged


def test_bfloat16_and_channels_last_change_rounding_only(data, part, teacher):
    held_out = (data.test.images, data.test.labels)
    curves = []
    for reduced in (False, True):
        plan = dataclasses.replace(PLAN, epochs=5, autocast=reduced, channels_last=reduced, evaluate_every=3)
        network = student()
        terms = vid_terms(network, teacher, part)
        curves.append(
            train_student(network, teacher, terms, part.images, part.labels, plan, views=data.views, held_out=held_out)
        )
        assert network.fc.weight.dtype == torch.float32
    assert [record.epoch for record in curves[1].records if record.accuracy is not None] == [3, 5]
    # bfloat16 keeps 8 bits, so a value moves by up to 0.4 % an operation; two steps of small rate add little to it.
    exact, reduced = (curve.records[0].loss for curve in curves)
    assert exact != reduced
    assert reduced == pytest.approx(exact, rel=0.02)


def test_every_parameter_of_the_losses_moves(data, part, teacher):
    network = student()
    terms = vid_terms(network, teacher, part)
    before = {name: {k: v.clone() for k, v in term.loss.state_dict().items()} for name, term in terms.items()}
    weights = [parameter.clone() for parameter in teacher.state_dict().values()]
    train_student(network, teacher, terms, part.images, part.labels, PLAN, views=data.views)
    for name, term in terms.items():
        for key, parameter in term.loss.named_parameters():
            assert not torch.equal(parameter, before[name][key]), f"{name} {key}"
    assert all(torch.equal(a, b) for a, b in zip(weights, teacher.state_dict().values(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_loss_may_bring_its_own_rate_and_ask_for_labels(part, teacher):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.seen = []

        def param_groups(self):
            return [{"params": [self.scale], "lr": 1e-9, "weight_decay": 0.0}]

        def forward(self, x, y, *, labels):
            self.seen.append(labels)
            return self.scale * x.square().mean()

    loss = Own()
    terms = {"own": DistillationTerm(loss=loss, layer="pool", labels=True)}
    train_student(student(), teacher, terms, part.images, part.labels, PLAN)
    assert float((loss.scale - 1).detach().abs()) < 1e-6
    assert torch.equal(torch.cat(loss.seen[:2]).sort().values, part.labels.sort().values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": "training"}, "training mode"),
        ({"teacher": "student"}, "same module"),
        ({"terms": {}}, "Use train_network"),
        ({"layer": "pol"}, "Did you mean 'pool'"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "one class index"),
        ({"labels": torch.zeros(50)}, "one class index"),
    ],
)
def test_bad_input(part, teacher, change, said):
    network = student()
    teachers = {"training": student(), "student": network}
    term = DistillationTerm(loss=nn.MSELoss(), layer=change.get("layer", "pool"))
    with pytest.raises(InputError, match=said):
        train_student(
            network,
            teachers.get(change.get("teacher"), teacher),
            change.get("terms", {"mse": term}),
            part.images,
            change.get("labels", part.labels),
            PLAN,
        )


def test_a_weight_that_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="The weight of the loss on the layer 'pool' is nan"):
        DistillationTerm(loss=nn.MSELoss(), layer="pool", weight=float("nan"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"rate": 0.0}, "rate is 0"),
        ({"clip": -1.0}, "clip is -1"),
        ({"momentum": 1.0}, "momentum is 1"),
        ({"warm_up": 0.0}, "warm_up is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(PLAN, **change)
