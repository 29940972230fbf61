"""The gap of risks under the teacher's head and its bounds: by hand, on random heads, and where they are reached."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings, strategies as st

from mikit import InputError, RiskGap, risk_gap
from mikit.functional.distillation.risk import cross_entropy_lipschitz

Array = np.ndarray[Any, Any]


def _case(seed: int, n: int = 40, classes: int = 4, d: int = 3, scale: float = 1.0) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    teacher = rng.standard_normal((n, d)) + 2 * rng.standard_normal((classes, d))[labels]
    student = teacher * rng.uniform(0.3, 1.2) + scale * rng.standard_normal((n, d))
    weight, bias = rng.uniform(0.1, 3) * rng.standard_normal((classes, d)), rng.standard_normal(classes)
    return student, teacher, labels, weight, bias


def _risk(rows: Array, labels: Array, weight: Array, bias: Array) -> float:
    logits = rows @ weight.T + bias
    top = logits.max(axis=1)
    return float(
        np.mean(np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(rows)), labels])
    )


def _chain(found: RiskGap) -> None:
    slack = 1e-9 * (1 + found.bound_w2)
    assert abs(found.gap) <= found.bound + slack
    assert found.bound <= found.bound_w2 + slack
    for one in found.classes:
        if one.teacher_rows:
            assert abs(one.gap) <= one.bound + slack
    if found.bound_paired is not None and found.bound_paired_rms is not None:
        assert found.bound <= found.bound_paired + slack
        assert max(found.bound_w2, found.bound_paired) <= found.bound_paired_rms + slack


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 30),
    classes=st.integers(1, 5),
    d=st.integers(1, 6),
    scale=st.floats(0, 20),
)
def test_no_random_head_exceeds_its_bounds(seed: int, n: int, classes: int, d: int, scale: float) -> None:
    student, teacher, labels, weight, bias = _case(seed, n, classes, d, scale)
    found = risk_gap(student, teacher, labels, weight, bias)
    _chain(found)
    assert found.student_risk == pytest.approx(_risk(student, labels, weight, bias), rel=1e-9, abs=1e-12)
    assert found.teacher_risk == pytest.approx(_risk(teacher, labels, weight, bias), rel=1e-9, abs=1e-12)


def test_two_classes_by_hand() -> None:
    weight, bias = np.array([[1.0], [-1.0]]), np.array([0.0, 0.5])
    teacher = np.array([[1.0], [3.0], [-2.0]])
    student = np.array([[2.5], [0.5], [-1.0]])
    labels = [0, 0, 1]
    found = risk_gap(student, teacher, labels, weight, bias)

    def loss(z: float, label: int) -> float:
        logits = (z, -z + 0.5)
        return math.log(math.exp(logits[0]) + math.exp(logits[1])) - logits[label]

    student_risk = (loss(2.5, 0) + loss(0.5, 0) + loss(-1.0, 1)) / 3
    teacher_risk = (loss(1.0, 0) + loss(3.0, 0) + loss(-2.0, 1)) / 3
    assert found.student_risk == pytest.approx(student_risk, rel=1e-12)
    assert found.gap == pytest.approx(student_risk - teacher_risk, rel=1e-12)
    # L is 2 for both. Class 0: {0.5, 2.5} against {1, 3}, each 0.5 away in order, 1.5 and 2.5 as paired.
    assert [one.lipschitz for one in found.classes] == [2.0, 2.0]
    assert [one.wasserstein1 for one in found.classes] == pytest.approx([0.5, 1.0])
    assert found.bound == pytest.approx(2 / 3 * 2 * 0.5 + 1 / 3 * 2 * 1.0)
    assert found.bound_w2 == pytest.approx(found.bound)
    assert found.bound_paired == pytest.approx(2 / 3 * 2 * 2.0 + 1 / 3 * 2 * 1.0)
    assert found.bound_paired_rms == pytest.approx(2 / 3 * 2 * math.sqrt((1.5**2 + 2.5**2) / 2) + 1 / 3 * 2)
    assert found.ratio == pytest.approx(found.bound / abs(found.gap))


def test_the_bound_is_reached_far_out() -> None:
    # Where the true class is hopeless its loss falls at the rate L along w_k - w_y.
    weight = np.array([[1.0, 0.0], [0.0, 1.0]])
    teacher = np.array([[-60.0, 60.0], [-50.0, 50.0]])
    student = teacher + np.array([[-1.0, 1.0]])
    found = risk_gap(student, teacher, [0, 0], weight)
    assert found.gap == pytest.approx(2.0, rel=1e-12)
    assert found.bound == pytest.approx(2.0, rel=1e-12)
    assert found.ratio == pytest.approx(1.0, rel=1e-12)
    assert found.bound == pytest.approx(found.bound_w2) == pytest.approx(found.bound_paired)


def test_equal_features_have_no_gap_and_no_bound() -> None:
    _, teacher, labels, weight, bias = _case(0)
    found = risk_gap(teacher, teacher, labels, weight, bias)
    assert found.gap == found.bound == found.bound_w2 == found.bound_paired == 0
    assert found.ratio is None


def test_rows_shuffled_within_classes_move_only_the_paired_bound() -> None:
    _, teacher, labels, weight, bias = _case(1)
    student = teacher.copy()
    for label in range(4):
        student[labels == label] = student[labels == label][::-1]
    found = risk_gap(student, teacher, labels, weight, bias)
    assert found.gap == pytest.approx(0, abs=1e-12)
    assert found.bound == pytest.approx(0, abs=1e-12)
    assert found.bound_paired is not None
    assert found.bound_paired > 1


def test_the_mean_paired_distance_does_not_bound_the_second_sum() -> None:
    teacher = np.array([[0.0], [5.0]])
    found = risk_gap(teacher + np.array([[0.0], [1.0]]), teacher, [0, 0], np.array([[1.0], [-1.0]]))
    assert found.bound_paired is not None
    assert found.bound == pytest.approx(1.0)
    assert found.bound_paired == pytest.approx(1.0)
    assert found.bound_w2 == pytest.approx(math.sqrt(2)) == pytest.approx(found.bound_paired_rms)


def test_distances_are_those_of_an_assignment() -> None:
    student, teacher, labels, weight, bias = _case(2)
    found = risk_gap(student, teacher, labels, weight, bias)
    for one in found.classes:
        a, b = student[labels == one.label], teacher[labels == one.label]
        costs = np.linalg.norm(a[:, None] - b[None], axis=2)
        best = scipy.optimize.linear_sum_assignment(costs)
        assert one.wasserstein1 == pytest.approx(costs[best].mean(), rel=1e-9)
        squares = scipy.optimize.linear_sum_assignment(costs**2)
        assert one.wasserstein2 == pytest.approx(math.sqrt((costs[squares] ** 2).mean()), rel=1e-9)


def test_lipschitz_constants() -> None:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [max(float((weight[k] - weight[y]).norm()) for k in range(6)) for y in range(6)]
    assert cross_entropy_lipschitz(weight).tolist() == pytest.approx(expected)
    naive = math.sqrt(2) * float(torch.linalg.matrix_norm(weight, 2))
    assert max(expected) <= naive
    z = (3 * torch.randn(500, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).requires_grad_()
    for label in range(6):
        losses = torch.nn.functional.cross_entropy(z @ weight.T, torch.full((500,), label), reduction="sum")
        (slope,) = torch.autograd.grad(losses, z)
        assert float(slope.norm(dim=1).max()) <= expected[label] + 1e-12


def test_single_rows_one_class_and_an_empty_class() -> None:
    student, teacher, _, weight, bias = _case(3, n=4)
    single = risk_gap(student, teacher, [0, 1, 2, 3], weight, bias)
    assert single.bound == pytest.approx(single.bound_w2) == pytest.approx(single.bound_paired)
    one = risk_gap(student, teacher, [2, 2, 2, 2], weight, bias)
    assert one.empty == (0, 1, 3)
    assert math.isnan(one.classes[0].wasserstein1)
    assert "no samples of class 0, 1, 3: not evaluated" in str(one)
    _chain(one)
    alone = risk_gap(student, teacher, [0, 0, 0, 0], weight[:1], bias[:1])
    assert alone.gap == alone.bound == 0


def test_different_samples_of_the_two_networks() -> None:
    student, teacher, labels, weight, bias = _case(4, n=60)
    other = np.arange(60) % 4
    found = risk_gap(student, teacher[:33], other, weight, bias, teacher_labels=labels[:33])
    assert found.bound_paired is None
    assert found.bound_paired_rms is None
    _chain(found)
    assert found.teacher_risk == pytest.approx(_risk(teacher[:33], labels[:33], weight, bias))
    shares = [(labels[:33] == label).mean() for label in range(4)]
    own = [_risk(student[other == label], other[other == label], weight, bias) for label in range(4)]
    assert found.student_risk == pytest.approx(np.dot(shares, own))
    assert any(one.student_rows != one.teacher_rows for one in found.classes)
    with pytest.raises(InputError, match="Class 3 has 0 samples of the student"):
        risk_gap(student, teacher, other % 3, weight, bias, teacher_labels=other)


def test_a_map_and_the_students_own_head() -> None:
    student, teacher, labels, weight, bias = _case(5)
    wide = torch.nn.Linear(3, 3)
    logits = np.random.default_rng(6).standard_normal((40, 4))
    found = risk_gap(student, teacher, labels, weight, bias, project=lambda z: wide(z.float()), student_logits=logits)
    mapped = wide(torch.from_numpy(student).float()).detach().double().numpy()
    assert found.gap == pytest.approx(risk_gap(mapped, teacher, labels, weight, bias).gap)
    assert found.head_swap == pytest.approx(_risk(logits, labels, np.eye(4), np.zeros(4)) - found.student_risk)
    assert found.total_gap == pytest.approx(_risk(logits, labels, np.eye(4), np.zeros(4)) - found.teacher_risk)
    assert "own head adds" in str(found)


def test_what_is_written() -> None:
    student, teacher, labels, weight, bias = _case(7)
    found = risk_gap(student, teacher, labels, weight, bias)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["gap"] == found.gap
    assert content["classes"][1]["gap"] == found.classes[1].gap
    printed = str(found)
    assert f"gap {found.gap:+.4g} nats" in printed
    assert f"at most {found.bound:.4g} by class-wise W1" in printed
    many = risk_gap(*_case(8, n=90, classes=15))
    assert "and 5 more, in .classes" in str(many)


def test_what_cannot_be_used_is_refused() -> None:
    student, teacher, labels, weight, bias = _case(9)
    spoilt = student.copy()
    spoilt[3, 0] = math.nan
    cases = [
        ((spoilt, teacher, labels, weight, bias), "student contains 1 NaN"),
        ((student[:, :2], teacher, labels, weight, bias), "pass project"),
        ((student[:5], teacher, labels[:5], weight, bias), "pass teacher_labels"),
        ((student, teacher, labels + 1, weight, bias), "labels run from 1 to 4"),
        ((student, teacher, labels[:5], weight, bias), "labels has shape"),
        ((student, teacher, labels + 0.5, weight, bias), "whole numbers"),
        ((student, teacher, labels, weight[:, :2], bias), "weight has 2 columns"),
        ((student, teacher, labels, weight, bias[:2]), "bias has shape"),
        ((student, teacher, labels[:, None], weight, bias), "labels has shape"),
    ]
    for given_case, said in cases:
        with pytest.raises(InputError, match=said):
            risk_gap(*given_case)
    with pytest.raises(InputError, match="student_logits has shape"):
        risk_gap(student, teacher, labels, weight, bias, student_logits=student)
