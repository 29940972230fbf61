"""Losses between layers in a module of Lightning: logged, trained, saved, resumed, recorded, the teacher left alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import mikit
from mikit.core.errors import InputError
from mikit.distillation import PhaseRecorder, random_stream
from mikit.models import ResNet8

lightning = pytest.importorskip("lightning", reason="needs Lightning: pip install 'mikit[integrations]'")

from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from mikit.adapters.lightning import DistillationModuleMixin, phase_callback  # noqa: E402

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

STAGE, LOGITS = ("stage2", "stage3"), ("fc", "fc")
WANTED = {STAGE: mikit.VID, LOGITS: mikit.HintonKD}


class Distillation(DistillationModuleMixin, lightning.LightningModule):
    def __init__(self, pairs):
        super().__init__()
        self.pairs = pairs

    def configure_optimizers(self):
        return torch.optim.SGD(self.pairs.param_groups(), lr=0.05, momentum=0.9)


@pytest.fixture(scope="module")
def part():
    return mikit.datasets.digits().train.per_class(5, seed=0)


def pairs_for(part, wanted=WANTED, *, seed=0, **settings):
    student = ResNet8(width=0.25, generator=random_stream(seed, "weights"))
    teacher = ResNet8(width=0.5, generator=random_stream(7, "weights")).eval()
    generator = random_stream(0, "losses")
    settings = {"weights": 0.5, "labels": part.labels, "generator": generator, **settings}
    return mikit.LayerPairs(student, teacher, wanted, example=part.images, **settings)


def fit(module, part, folder, *, checkpoint=None, **settings):
    settings = {"max_epochs": 2, "log_every_n_steps": 1, "callbacks": [], **settings}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=CSVLogger(folder, name="log", version=0),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    loader = DataLoader(TensorDataset(part.images, part.labels), batch_size=25)
    trainer.fit(module, loader, ckpt_path=checkpoint, **({"weights_only": True} if checkpoint else {}))
    return trainer


@pytest.fixture(scope="module")
def whole(part, tmp_path_factory):
    """A run of two epochs, and the state before it."""
    folder = tmp_path_factory.mktemp("lightning")
    pairs = pairs_for(part)
    before = copy.deepcopy((pairs.state_dict(), pairs.teacher.state_dict()))
    module = Distillation(pairs)
    trainer = fit(module, part, folder)
    trainer.save_checkpoint(folder / "end.ckpt")
    return module, trainer, folder, before


def test_terms_are_logged_and_add_up_to_the_loss(whole):
    module, _, folder, _ = whole
    import pandas as pd

    logged = pd.read_csv(folder / "log" / "version_0" / "metrics.csv")
    assert len(logged) == 4
    units = dict(zip(module.pairs.names, module.pairs.units.tolist(), strict=True))
    assert set(units.values()) == {1.0, 10.0}
    terms = sum(unit * logged[f"distillation/{name}"] for name, unit in units.items())
    assert logged["train/loss"].to_numpy() == pytest.approx((logged["train/task"] + 0.5 * terms).to_numpy(), rel=1e-5)


def test_every_parameter_of_student_and_losses_moves_and_none_of_the_teacher(whole):
    module, trainer, _, (before, teacher) = whole
    after = module.pairs.state_dict()
    assert [name for name, _ in module.pairs.named_parameters() if torch.equal(before[name], after[name])] == []
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters()}
    assert not held & {id(p) for p in module.pairs.teacher.parameters()}
    assert all(torch.equal(value, module.pairs.teacher.state_dict()[name]) for name, value in teacher.items())


def test_the_teacher_stays_in_evaluation_mode(whole):
    module, _, _, _ = whole
    module.train()
    assert module.pairs.student.training
    assert not any(part.training for part in module.pairs.teacher.modules())


def test_the_checkpoint_holds_the_losses_and_no_teacher(whole):
    module, _, folder, _ = whole
    state = torch.load(folder / "end.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {f"pairs.{name}" for name in module.pairs.state_dict()}
    assert any(name.startswith("pairs.losses.") for name in state)
    widths = {value.shape[0] for name, value in state.items() if name.endswith("fc.weight")}
    assert widths == {10}
    assert sum(value.numel() for value in state.values()) == sum(v.numel() for v in module.pairs.state_dict().values())


def test_a_resumed_run_ends_with_the_same_weights(whole, part, tmp_path):
    module, _, _, _ = whole
    first = fit(Distillation(pairs_for(part)), part, tmp_path, max_epochs=1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    again = Distillation(pairs_for(part, seed=5))
    fit(again, part, tmp_path / "again", checkpoint=tmp_path / "half.ckpt")
    found = again.pairs.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in module.pairs.state_dict().items())


def test_the_steps_are_those_of_a_plain_loop(whole, part):
    module, _, _, _ = whole
    pairs = pairs_for(part).train()
    optimizer = torch.optim.SGD(pairs.param_groups(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for rows in torch.arange(50).split(25):
            logits, loss, _ = pairs(part.images[rows], part.labels[rows])
            optimizer.zero_grad()
            (torch.nn.functional.cross_entropy(logits, part.labels[rows]) + loss).backward()
            optimizer.step()
    found = module.pairs.state_dict()
    same = {name: torch.allclose(value, found[name], atol=1e-6) for name, value in pairs.state_dict().items()}
    same.pop("epoch")
    assert all(same.values())


def test_steps_can_be_limited(part, tmp_path):
    module = Distillation(pairs_for(part))
    assert fit(module, part, tmp_path, max_epochs=-1, max_steps=3).global_step == 3


def test_schedules_follow_the_epoch(part, tmp_path):
    pairs = pairs_for(part, {LOGITS: mikit.HintonKD}, schedules={LOGITS: lambda epoch: 0.5**epoch})
    fit(Distillation(pairs), part, tmp_path)
    assert (int(pairs.epoch), pairs.factors.tolist()) == (1, [0.5])


def test_phases_are_recorded_and_leave_training_alone(whole, part, tmp_path):
    module, _, _, _ = whole
    pairs = pairs_for(part)
    store = mikit.ActivationStore(tmp_path / "store", network="student", seed=0)
    recorder = PhaseRecorder(store, part.images, ids=part.ids, layers=["stage2", "fc"], phases=[0, 1, 2])
    fit(Distillation(pairs), part, tmp_path, callbacks=[phase_callback(recorder, pairs.student)])
    assert store.phases == (0, 1, 2)
    found = pairs.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in module.pairs.state_dict().items())
    with torch.no_grad():
        logits = pairs.student.eval()(part.images)
    assert torch.allclose(torch.from_numpy(store.read("fc", 2)), logits, atol=1e-6)


def test_bfloat16(part, tmp_path):
    module = Distillation(pairs_for(part))
    fit(module, part, tmp_path, precision="bf16-mixed", max_epochs=1)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_an_optimiser_that_lacks_the_losses_is_refused(part, tmp_path):
    class Forgetful(Distillation):
        def configure_optimizers(self):
            return torch.optim.SGD(self.pairs.student.parameters(), lr=0.05)

    with pytest.raises(InputError, match=r"lacks 4 trainable parameters of LayerPairs|lacks 3 trainable"):
        fit(Forgetful(pairs_for(part)), part, tmp_path)


def test_a_module_without_losses_is_refused(part, tmp_path):
    class Empty(Distillation):
        def configure_optimizers(self):
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    with pytest.raises(InputError, match="This module has no losses"):
        fit(Empty(None), part, tmp_path)


def test_a_batch_of_another_kind_is_refused(part):
    with pytest.raises(InputError, match="The batch is a list and not a pair of inputs and labels"):
        Distillation(pairs_for(part)).training_step([part.images], 0)


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "lightning.md").read_text()
    code = page.split("```python\n", 1)[1].split("```", 1)[0]
    space = {}
    exec(compile(code, "docs/lightning.md", "exec"), space)
    assert space["store"].phases == (0, 1, 4)
    assert any(name.startswith("distillation/") for name in space["trainer"].logged_metrics)
