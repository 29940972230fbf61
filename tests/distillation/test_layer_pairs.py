"""Losses between layers as one module: built from an example, trained, saved without the teacher, and honest errors."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mikit
from mikit.core.errors import InputError
from mikit.distillation import LayerPairs
from mikit.models import ResNet8

WANTED = {
    ("stage2", "stage2"): mikit.VID,
    ("stage3", "stage3"): mikit.AttentionTransfer,
    ("pool", "pool"): partial(mikit.KD2M.between, conditional="class"),
    ("fc", "fc"): mikit.HintonKD,
}
NAMES = [
    "stage2 -> stage2: VID",
    "stage3 -> stage3: AttentionTransfer",
    "pool -> pool: KD2M",
    "fc -> fc: HintonKD",
]


def _networks() -> tuple[ResNet8, ResNet8]:
    student = ResNet8(width=0.25, generator=torch.Generator().manual_seed(0))
    return student, ResNet8(width=0.5, generator=torch.Generator().manual_seed(1)).eval()


def _batch(n: int = 32, seed: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=g), torch.arange(n) % 4


def _pairs(**settings: object) -> LayerPairs:
    images, labels = _batch()
    generator = torch.Generator().manual_seed(3)
    return LayerPairs(*_networks(), WANTED, example=images, labels=labels, generator=generator, **settings)


def test_the_loss_is_the_weighted_sum_of_the_losses_on_both_activations() -> None:
    pairs = _pairs(weights={("fc", "fc"): 0.25, ("pool", "pool"): 0.0}).eval()
    images, labels = _batch(seed=4)
    logits, loss, terms = pairs(images, labels)
    assert list(terms) == NAMES
    assert torch.equal(logits, pairs.student(images))
    weights = dict(zip(NAMES, (1.0, 1.0, 0.0, 0.25), strict=True))
    assert NAMES[0].endswith("VID")
    weights[NAMES[0]] *= 10  # its recommended weight
    assert loss.item() == pytest.approx(sum(weights[name] * terms[name].item() for name in NAMES), rel=1e-6)
    with torch.no_grad(), mikit.capture(pairs.student, ["stage2"], readout="whole") as own:
        pairs.student(images)
        with mikit.capture(pairs.teacher, ["stage2"], readout="whole") as told:
            pairs.teacher(images)
    assert own["stage2"].ndim == 4
    assert terms[NAMES[0]].item() == pytest.approx(pairs.losses[0](own["stage2"], told["stage2"]).item(), rel=1e-6)
    assert all(not term.requires_grad for term in terms.values())


def test_ten_steps_move_every_parameter_and_no_part_of_the_teacher() -> None:
    pairs = _pairs()
    optimiser = torch.optim.SGD(pairs.param_groups(), lr=0.05)
    mikit.check_optimizer(optimiser, pairs)
    teacher = copy.deepcopy(pairs.teacher.state_dict())
    before = {name: p.detach().clone() for name, p in pairs.named_parameters()}
    images, labels = _batch()
    for _ in range(10):
        logits, loss, _ = pairs(images, labels)
        optimiser.zero_grad()
        (cross_entropy(logits, labels) + loss).backward()
        optimiser.step()
    still = [name for name, p in pairs.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    assert all(torch.equal(value, teacher[name]) for name, value in pairs.teacher.state_dict().items())
    assert not any(p.grad is not None for p in pairs.teacher.parameters())
    variance = [group for group in pairs.param_groups() if group.get("weight_decay") == 0.0]
    assert variance, "VID's variances are not decayed"


def test_an_optimiser_of_the_student_alone_is_caught() -> None:
    pairs = _pairs()
    with pytest.raises(InputError, match="would never be trained"):
        mikit.check_optimizer(torch.optim.SGD(pairs.student.parameters(), lr=0.1), pairs)


def test_the_state_holds_student_and_losses_and_not_the_teacher() -> None:
    pairs, images, labels = _pairs(), *_batch(seed=5)
    for _ in range(2):
        pairs(images, labels)[1].backward()
    state = pairs.state_dict()
    assert {name.split(".")[0] for name in state} == {"student", "losses", "weights", "factors", "epoch"}
    other = _pairs()
    other.load_state_dict(state)
    pairs.eval(), other.eval()
    assert other(images, labels).loss.item() == pairs(images, labels).loss.item()


def test_it_moves_with_its_teacher_and_trains_without_it() -> None:
    pairs = _pairs().double()
    assert next(pairs.teacher.parameters()).dtype == torch.float64
    pairs.train()
    assert not pairs.teacher.training
    assert pairs.student.training


def test_schedules_follow_the_epoch_and_travel_with_the_state() -> None:
    pairs = _pairs(schedules={("fc", "fc"): lambda epoch: 0.5**epoch})
    assert pairs.factors.tolist() == [1.0, 1.0, 1.0, 1.0]
    pairs.set_epoch(3)
    assert pairs.factors.tolist() == [1.0, 1.0, 1.0, 0.125]
    other = _pairs()
    other.load_state_dict(pairs.state_dict())
    assert int(other.epoch) == 3
    assert other.factors.tolist() == pairs.factors.tolist()
    with pytest.raises(InputError, match="factors must be finite and not negative"):
        _pairs(schedules={("fc", "fc"): lambda epoch: -1.0})


def test_chance_and_ratios_leave_everything_as_it_was() -> None:
    pairs, images, labels = _pairs(), *_batch(seed=6)
    before = copy.deepcopy(pairs.state_dict())
    chance = pairs.chance(images, labels)
    ratios = pairs.gradient_ratios(images, labels)
    assert list(chance) == list(ratios) == NAMES
    assert all(float(value) > 0 for value in ratios.values())
    assert all(torch.equal(value, before[name]) for name, value in pairs.state_dict().items())
    assert pairs.training
    assert all(p.grad is None for p in pairs.parameters())
    parameters = list(pairs.student.parameters())
    pairs.eval()
    logits, _, _ = pairs(images, labels)
    task = torch.cat([g.flatten() for g in torch.autograd.grad(cross_entropy(logits, labels), parameters)]).norm()
    logits, _, _ = pairs(images, labels)
    with mikit.capture(pairs.student, ["fc"], detach=False) as own:
        pairs.student(images)
    value = pairs.losses[3](own["fc"], pairs.teacher(images).detach())
    length = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]).norm()
    assert pairs.gradient_ratios(images, labels)[NAMES[3]].item() == pytest.approx((length / task).item(), rel=1e-4)


def test_information_is_told_of_the_losses_that_measure_it() -> None:
    pairs = _pairs()
    assert list(pairs.information(_batch(seed=7)[0])) == [NAMES[0]]


def test_one_layer_may_stand_in_several_pairs() -> None:
    images, _ = _batch()
    wanted = {("stage3", "stage2"): mikit.VID, ("stage3", "stage3"): mikit.FitNet, ("stage3", "pool"): mikit.MMD}
    student, teacher = ResNet8(width=0.5).train(), ResNet8(width=0.5).eval()
    pairs = LayerPairs(student, teacher, wanted, example=images)
    assert all(bool(torch.isfinite(term)) for term in pairs(images).terms.values())
    assert not student._forward_hooks
    assert not teacher._forward_hooks
    assert not any(module._forward_hooks for module in student.modules())


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ({}, "pairs is empty"),
        ({("stage4", "stage3"): mikit.VID}, "no module 'stage4'. Did you mean"),
        ({"stage3": mikit.VID}, "a key must be a layer of the student"),
        ({("pool", "pool"): mikit.MMD()}, r"'pool' \(32, 16\) and 'pool' \(32, 32\) refused the example"),
        ({("pool", "pool"): lambda x, y: 3}, "is of type int"),
    ],
)
def test_pairs_that_cannot_be_are_refused(pairs: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        LayerPairs(*_networks(), pairs, example=_batch()[0])


def test_networks_that_cannot_teach_or_learn_are_refused() -> None:
    (student, teacher), (images, _) = _networks(), _batch()
    wanted = {("pool", "pool"): mikit.PKT}
    with pytest.raises(InputError, match="same module"):
        LayerPairs(teacher, teacher, wanted, example=images)
    with pytest.raises(InputError, match=r"teacher is in training mode.*teacher.eval\(\)"):
        LayerPairs(student, copy.deepcopy(teacher).train(), wanted, example=images)
    with pytest.raises(InputError, match="student is compiled"):
        LayerPairs(torch.compile(copy.deepcopy(student), backend="eager"), teacher, wanted, example=images)
    with pytest.raises(InputError, match="weights names"):
        LayerPairs(student, teacher, wanted, example=images, weights={("fc", "fc"): 1.0})
    with pytest.raises(InputError, match="cannot be negative"):
        LayerPairs(student, teacher, wanted, example=images, weights=-1.0)
    pairs = LayerPairs(student, teacher, wanted, example=images)
    teacher.train()
    with pytest.raises(InputError, match="teacher is in training mode"):
        pairs(images)


def test_missing_labels_are_named_with_the_pair() -> None:
    pairs = _pairs()
    with pytest.raises(InputError, match=r"pool -> pool: KD2M refused the batch.*labels"):
        pairs(_batch()[0])


def test_a_plain_module_is_a_loss_as_well() -> None:
    class Gap(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x.mean() - y.mean()).square()

    pairs = LayerPairs(*_networks(), {("pool", "pool"): Gap()}, example=_batch()[0])
    assert list(pairs(_batch()[0]).terms) == ["pool -> pool: Gap"]
    assert len(pairs.param_groups()) == 1


class _Named(nn.Module):
    """Takes its images by keyword, as language models take their tokens."""

    def __init__(self, network: ResNet8) -> None:
        super().__init__()
        self.network = network

    def forward(self, *, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(images)}


def test_the_entries_of_a_mapping_are_passed_by_keyword() -> None:
    student, teacher = _networks()
    images, labels = _batch()
    wanted = {("network.stage2", "network.stage2"): mikit.VID, ("network.fc", "network.fc"): mikit.HintonKD}
    settings = {"labels": labels, "generator": torch.Generator().manual_seed(3)}
    named = LayerPairs(_Named(student), _Named(teacher).eval(), wanted, example={"images": images}, **settings)
    plain = LayerPairs(
        student,
        teacher,
        {("stage2", "stage2"): mikit.VID, ("fc", "fc"): mikit.HintonKD},
        example=images,
        labels=labels,
        generator=torch.Generator().manual_seed(3),
    )
    found = named({"images": images}, labels)
    assert torch.equal(found.loss, plain(images, labels).loss)
    assert torch.equal(found.logits["logits"], plain(images, labels).logits)
    assert all(not value.requires_grad for value in named.chance({"images": images}, labels).values())


def test_losses_beside_a_student_that_somebody_else_runs() -> None:
    pairs = _pairs().eval()
    images, labels = _batch(seed=4)
    wrapped = nn.Sequential(pairs.student)
    found = pairs.beside(lambda: ("mine", wrapped(images)), images, labels)
    assert found.logits[0] == "mine"
    assert torch.equal(found.loss, pairs(images, labels).loss)
    assert list(found.terms) == NAMES
    with pytest.raises(InputError, match="did not run"):
        pairs.beside(lambda: None, images, labels)
