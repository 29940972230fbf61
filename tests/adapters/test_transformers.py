"""Losses between layers in the Trainer of transformers: logged, trained, saved, resumed, and the teacher left alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import mikit
from mikit.core.errors import InputError

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'mikit[integrations]'")
pytest.importorskip("accelerate", reason="needs accelerate: pip install 'mikit[integrations]'")

from mikit.adapters.transformers import LOSSES_FILE, DistillationTrainerMixin  # noqa: E402

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

LAYER = "bert.encoder.layer.1"
HIDDEN, LOGITS = (LAYER, LAYER), ("classifier", "classifier")
VID = f"{LAYER} -> {LAYER}: VID"
N = 64


class DistillationTrainer(DistillationTrainerMixin, transformers.Trainer):
    pass


def bert(width, seed):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def rows(n=N):
    g = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(1, 50, (8,), generator=g),
            "attention_mask": torch.tensor([1] * (5 + i % 4) + [0] * (3 - i % 4)),
            "labels": torch.tensor(i % 3),
        }
        for i in range(n)
    ]


def example(n=32):
    batch = rows(n)
    return {name: torch.stack([row[name] for row in batch]) for name in ("input_ids", "attention_mask")}


def losses(student, wanted=None, **settings):
    wanted = wanted or {HIDDEN: mikit.VID, LOGITS: mikit.HintonKD}
    readouts = {HIDDEN: "cls"} if HIDDEN in wanted else None
    g = torch.Generator().manual_seed(3)
    settings = {"example": example(), "readouts": readouts, "generator": g, **settings}
    return mikit.LayerPairs(student, bert(16, 1).eval(), wanted, **settings)


def trainer(folder, student=None, *, teach=True, optimizers=(None, None), wanted=None, weights=0.5, **arguments):
    student = student or bert(8, 0)
    settings = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 16,
        "logging_steps": 2,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
        **arguments,
    }
    made = DistillationTrainer(
        model=student,
        args=transformers.TrainingArguments(**settings),
        train_dataset=rows(),
        eval_dataset=rows(16),
        optimizers=optimizers,
    )
    if teach:
        made.learn_from(losses(student, wanted, weights=weights))
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four steps with a checkpoint after two, and what the networks were before."""
    folder = tmp_path_factory.mktemp("whole")
    made = trainer(folder)
    before = copy.deepcopy((made.layer_pairs.state_dict(), made.layer_pairs.teacher.state_dict()))
    made.train()
    return made, folder, before


def test_terms_are_logged_and_add_up_to_the_loss(whole):
    made, _, _ = whole
    logs = [entry for entry in made.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        units = zip(made.layer_pairs.names, made.layer_pairs.units.tolist(), strict=True)
        terms = [unit * entry[f"distillation/{name}"] for name, unit in units]
        assert entry["loss"] == pytest.approx(entry["distillation/task"] + 0.5 * sum(terms), rel=1e-4)


def test_every_parameter_of_student_and_losses_moves_and_none_of_the_teacher(whole):
    made, _, (before, teacher) = whole
    pairs = made.layer_pairs
    held = {id(p) for group in made.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in pairs.parameters() if p.requires_grad} == held
    assert not held & {id(p) for p in pairs.teacher.parameters()}
    losses_own = [name for name, _ in pairs.named_parameters() if name.startswith("losses.")]
    assert losses_own
    assert all(not torch.equal(before[name], pairs.state_dict()[name]) for name in losses_own)
    assert all(torch.equal(value, pairs.teacher.state_dict()[name]) for name, value in teacher.items())
    assert not pairs.teacher.training
    variance = next(p for name, p in pairs.named_parameters() if "law" in name)
    group = next(g for g in made.optimizer.param_groups if any(p is variance for p in g["params"]))
    assert group["weight_decay"] == 0.0


def test_the_checkpoint_holds_the_losses_and_no_teacher(whole):
    made, folder, _ = whole
    checkpoint = folder / "checkpoint-4"
    state = torch.load(checkpoint / LOSSES_FILE, weights_only=True)
    assert set(state) == {name for name in made.layer_pairs.state_dict() if not name.startswith("student.")}
    assert all(torch.equal(value, made.layer_pairs.state_dict()[name]) for name, value in state.items())
    loaded = transformers.BertForSequenceClassification.from_pretrained(checkpoint)
    assert loaded.config.hidden_size == 8
    own = made.model.state_dict()
    assert {name: tuple(value.shape) for name, value in loaded.state_dict().items()} == {
        name: tuple(value.shape) for name, value in own.items()
    }
    assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("given", [True, "path"])
def test_a_resumed_run_ends_with_the_same_weights(whole, tmp_path, given):
    made, _, _ = whole
    trainer(tmp_path, max_steps=2).train()
    again = trainer(tmp_path, bert(8, 5))
    again.train(resume_from_checkpoint=given if given is True else str(tmp_path / "checkpoint-2"))
    expected = made.layer_pairs.state_dict()
    found = again.layer_pairs.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_an_evaluation_reports_the_task_alone(whole):
    made, _, _ = whole
    found = made.evaluate()["eval_loss"]
    batch = {name: torch.stack([row[name] for row in rows(16)]) for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        assert found == pytest.approx(made.model.eval()(**batch).loss.item(), rel=1e-5)


@pytest.mark.parametrize("items_told", [False, True])
def test_accumulated_micro_batches_step_as_one_batch(tmp_path, items_told):
    """Where the Trainer tells the model the rows of all micro-batches, BERT averages anyway: only the losses agree."""
    runs = []
    for batch, steps in ((16, 1), (8, 2)):
        made = trainer(
            tmp_path / str(steps),
            max_steps=1 if items_told else 3,
            logging_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            save_strategy="no",
            optim="sgd",
            max_grad_norm=0.0,
        )
        made.model_accepts_loss_kwargs = items_told
        made.train()
        runs.append(made)
    one, other = (made.layer_pairs.state_dict() for made in runs)
    compared = [name for name in one if one[name].is_floating_point() and (name[:7] == "losses." or not items_told)]
    assert all(torch.allclose(one[name], other[name], atol=2e-6) for name in compared)
    for term in (VID, *([] if items_told else ["task"])):
        first, second = (made.state.log_history[0][f"distillation/{term}"] for made in runs)
        assert first == pytest.approx(second, rel=1e-4)


def test_losses_that_take_labels_get_the_class_indices(tmp_path):
    made = trainer(tmp_path, wanted={LOGITS: mikit.DKD}, save_strategy="no")
    made.train()
    assert made.state.log_history[0]["distillation/classifier -> classifier: DKD"] > 0


def test_schedules_follow_the_epoch(tmp_path):
    student = bert(8, 0)
    made = trainer(tmp_path, student, teach=False, max_steps=12, save_strategy="no")
    seen = []
    pairs = losses(student, {LOGITS: mikit.HintonKD}, schedules={LOGITS: lambda e: seen.append(e) or 0.5**e})
    made.learn_from(pairs)
    made.train()
    assert seen == [0, 1, 2]
    assert pairs.factors.tolist() == [0.25]


def test_vision_transformers_have_tokens_too(tmp_path):
    def vit(width, seed):
        torch.manual_seed(seed)
        config = transformers.ViTConfig(
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * width,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=3,
        )
        return transformers.ViTForImageClassification(config)

    student, teacher = vit(8, 0), vit(16, 1).eval()
    g = torch.Generator().manual_seed(0)
    data = [{"pixel_values": torch.randn(1, 8, 8, generator=g), "labels": torch.tensor(i % 3)} for i in range(32)]
    images = {"pixel_values": torch.stack([row["pixel_values"] for row in data])}
    layer = next(name for name, _ in student.named_modules() if name.endswith("layernorm"))
    pairs = mikit.LayerPairs(student, teacher, {(layer, layer): mikit.VID}, example=images, readouts="cls")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    made = DistillationTrainer(model=student, args=arguments, train_dataset=data)
    made.learn_from(pairs)
    before = copy.deepcopy(pairs.losses.state_dict())
    made.train()
    assert any(not torch.equal(value, pairs.losses.state_dict()[name]) for name, value in before.items())


def test_without_losses_nothing_is_trained(tmp_path):
    with pytest.raises(InputError, match=r"Call learn_from\(layer_pairs\) before train"):
        trainer(tmp_path, teach=False).train()


def test_losses_of_another_model_are_refused(tmp_path):
    with pytest.raises(InputError, match="not the Trainer's model"):
        trainer(tmp_path, teach=False).learn_from(losses(bert(8, 0)))


def test_an_optimiser_of_ones_own_must_hold_the_losses(tmp_path):
    student = bert(8, 0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"lacks .* trainable parameters"):
        trainer(tmp_path, student, optimizers=(optimizer, None)).train()


def test_a_checkpoint_without_losses_or_with_others_is_refused(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    file = tmp_path / "checkpoint-2" / LOSSES_FILE
    with pytest.raises(InputError, match="are not those of this Trainer"):
        trainer(tmp_path, wanted={LOGITS: mikit.HintonKD}).train(resume_from_checkpoint=True)
    file.write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be read"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    file.unlink()
    with pytest.raises(InputError, match=f"There is no .*{LOSSES_FILE}"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_compiled_training_is_refused(tmp_path):
    with pytest.raises(InputError, match="torch_compile"):
        trainer(tmp_path, torch_compile=True)


def test_several_processes_are_refused_where_losses_have_parameters(tmp_path, monkeypatch):
    made = trainer(tmp_path, teach=False)
    monkeypatch.setattr(type(made.args), "world_size", property(lambda _: 2))
    with pytest.raises(InputError, match="does not synchronize between its 2 processes"):
        made.learn_from(losses(made.model))
    made.learn_from(losses(made.model, {LOGITS: mikit.HintonKD}))


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text()
    code = page.split("```python\n", 1)[1].split("```", 1)[0]
    space = {}
    exec(compile(code, "docs/huggingface.md", "exec"), space)
    assert any(name.startswith("distillation/") for entry in space["trainer"].state.log_history for name in entry)
    assert (tmp_path / "student" / "checkpoint-20" / LOSSES_FILE).is_file()
