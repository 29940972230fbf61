"""Information flow: the weighted sum by hand, both schedules, matchings, state, the auxiliary teacher, refusals."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.datasets import digits
from mikit.distillation import TrainingPlan
from mikit.distillation.losses.information_flow import InformationFlow
from mikit.distillation.losses.pkt import PKT
from mikit.distillation.training.auxiliary_teacher import auxiliary_teacher, train_auxiliary_teacher
from mikit.functional.flow.flow_vectors import flow_divergence, flow_vector, monotone_matching
from mikit.models import ResNet8


def layers(seed: int = 0) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Layers that know more of the labels the deeper they lie."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % 3
    signal = torch.eye(3, 6)[labels]
    student = [strength * signal + torch.randn(60, 6, generator=g) for strength in (0.5, 1.5, 3.0)]
    teacher = [strength * signal + torch.randn(60, 6, generator=g) for strength in (0.0, 1.0, 2.0, 4.0)]
    student[0] = student[0].reshape(60, 6, 1, 1)
    return student, teacher, labels


def test_the_loss_is_the_weighted_sum() -> None:
    student, teacher, _ = layers()
    flow = InformationFlow.between(student, teacher, matching=(0, 2, 3), alpha=10.0, gamma=0.5)
    pkts = [PKT.between(t, t, kernel="combined", divergence="jeffreys") for t in (teacher[0], teacher[2], teacher[3])]
    pairs = zip(pkts, student, (teacher[0], teacher[2], teacher[3]), strict=True)
    values = [loss(s.flatten(1), t).item() for loss, s, t in pairs]
    for epoch in (0, 3):
        flow.set_epoch(epoch)
        a = 10 * 0.5**epoch
        expected = (a * values[0] + a * values[1] + values[2]) / (2 * a + 1)
        assert flow(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    terms = flow.terms(student, teacher)
    assert [terms[f"layer_{i}"].item() for i in range(3)] == pytest.approx(values, rel=1e-5)
    assert sum(terms[f"weight_{i}"].item() for i in range(3)) == pytest.approx(1)


def test_intermediate_layers_fall_below_the_last_from_epoch_13() -> None:
    flow = InformationFlow((0, 1))
    ratios = []
    for epoch in (12, 13):
        flow.set_epoch(epoch)
        first, last = flow.weights()
        ratios.append(first / last)
    assert ratios[0] == pytest.approx(100 * 0.7**12)
    assert ratios[1] < 1 < ratios[0]


def test_the_measured_schedule_follows_the_divergence() -> None:
    student, teacher, labels = layers()
    flow = InformationFlow.between(student, teacher, schedule="measured", alpha=8.0)
    before = flow.weights()
    assert before[0] / before[-1] == pytest.approx(8)
    first = flow.observe(student, teacher, labels)
    expected = flow_divergence(flow_vector(student, labels), flow_vector(teacher, labels), flow.matching)
    assert first == expected
    assert flow.weights() == before
    flow.set_epoch(50)
    assert flow.weights() == before
    nearer = [0.5 * (s.flatten(1) + teacher[k]) for s, k in zip(student, flow.matching, strict=True)]
    later = flow.observe(nearer, teacher, labels)
    now = flow.weights()
    assert now[0] / now[-1] == pytest.approx(8 * later.intermediate / first.intermediate)


def test_matchings() -> None:
    student, teacher, labels = layers()
    assert InformationFlow.between(student, teacher).matching == (1, 2, 3)
    found = InformationFlow.between(student, teacher, matching="monotone", labels=labels).matching
    assert found == monotone_matching(flow_vector(student, labels), flow_vector(teacher, labels))
    assert InformationFlow.between(student, teacher, matching="nearest", labels=labels).matching[-1] == 3


def test_state_holds_epoch_divergences_and_units() -> None:
    student, teacher, labels = layers()
    flow = InformationFlow.between(student, teacher, schedule="measured")
    flow.observe(student, teacher, labels)
    flow.observe(student[:1] + student[2:] + student[2:], teacher, labels)
    flow.set_epoch(4)
    other = InformationFlow(flow.matching, schedule="measured")
    other.load_state_dict(flow.state_dict())
    assert other(student, teacher).item() == flow(student, teacher).item()
    assert other.epoch.item() == 4


def test_gradients_and_half_precision() -> None:
    student, teacher, _ = layers()
    flow = InformationFlow.between(student, teacher)
    low = [layer.bfloat16().requires_grad_() for layer in student]
    aim = [layer.clone().requires_grad_() for layer in teacher]
    with torch.autocast("cpu", torch.bfloat16):
        loss = flow(low, aim)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(layer.grad is None for layer in aim)
    assert all(layer.grad is not None and bool(layer.grad.isfinite().all()) for layer in low)
    assert flow.param_groups() == list(flow.parameters()) == []


def test_an_auxiliary_teacher_is_built_and_trained() -> None:
    part = digits().train.per_class(4, seed=0)
    g = torch.Generator().manual_seed(0)
    teacher = ResNet8(width=0.5, generator=g).eval()
    plan = TrainingPlan(epochs=3, batch=20, rate=0.1)
    factory = functools.partial(ResNet8, channels=1)
    network, curve = train_auxiliary_teacher(factory, teacher, part.images, part.labels, plan, width=0.25, layer="pool")
    assert isinstance(network, ResNet8)
    assert not network.training
    assert network.fc.in_features == 16
    assert curve.records[-1].terms["pkt"] < curve.records[0].terms["pkt"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: InformationFlow(()), "matching is"),
        (lambda: InformationFlow((0, -1)), "matching is"),
        (lambda: InformationFlow((0,), gamma=1.5), "gamma is 1.5"),
        (lambda: InformationFlow((0,), alpha=0.0), "alpha is 0.0"),
        (lambda: InformationFlow((0,), schedule="step"), "schedule is"),
        (lambda: InformationFlow((0,)).set_epoch(-1), "counted from 0"),
        (lambda: InformationFlow((0, 3))(*layers()[:2]), "There are 3 student and 4 teacher"),
        (lambda: InformationFlow.between([], []), "one layer"),
        (lambda: InformationFlow.between(*layers()[:2], matching="nearest"), "labels="),
        (lambda: InformationFlow.between(*layers()[:2], matching="dtw"), "matching is"),
        (lambda: auxiliary_teacher(lambda width, generator: 3, 1.0), "must return a torch module"),
    ],
)
def test_refusals(call: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()
