"""QMI, HSIC and CKA as metrics: the formulas by loops, their signs, their state, and invalid input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import mikit
from mikit.core.errors import InputError
from mikit.estimators import REGISTRY, Estimator
from mikit.estimators.kernels.dependence import CKA, HSIC, QMI, LabelQMI


def sample(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    x = torch.randn(n, 2, generator=g, dtype=torch.float64) + labels[:, None]
    y = x.square() + 0.3 * torch.randn(n, 2, generator=g, dtype=torch.float64)
    return x, y, labels


def kernel(a: Tensor, b: Tensor, bandwidth: float) -> float:
    return math.exp(-float((a - b).square().sum()) / (2 * bandwidth**2))


def test_qmi_is_the_three_potentials() -> None:
    x, y, _ = sample()
    n, width = len(x), 0.8
    k = [[kernel(a, b, math.sqrt(2) * width) for b in x] for a in x]
    m = [[kernel(a, b, math.sqrt(2) * width) for b in y] for a in y]
    inside = sum(k[i][j] * m[i][j] for i, j in itertools.product(range(n), repeat=2)) / n**2
    everything = sum(map(sum, k)) * sum(map(sum, m)) / n**4
    between = sum(sum(k[i]) * sum(m[i]) for i in range(n)) / n**3
    assert QMI(width, width).estimate(x, y).item() == pytest.approx(inside + everything - 2 * between, rel=1e-9)
    assert HSIC(math.sqrt(2) * width, math.sqrt(2) * width, unbiased=False).estimate(x, y).item() == pytest.approx(
        QMI(width, width).estimate(x, y).item(), rel=1e-10
    )


def test_label_qmi_is_the_sum_over_classes() -> None:
    x, _, labels = sample()
    n, width = len(x), 0.8
    k = [[kernel(a, b, math.sqrt(2) * width) for b in x] for a in x]
    groups = [[i for i in range(n) if labels[i] == c] for c in range(3)]
    inside = sum(k[i][j] for rows in groups for i, j in itertools.product(rows, repeat=2)) / n**2
    everything = sum((len(rows) / n) ** 2 for rows in groups) * sum(map(sum, k)) / n**2
    between = sum(len(rows) / n * sum(sum(k[i]) for i in rows) for rows in groups) / n**2
    value = LabelQMI(width).estimate(x, labels).item()
    assert value == pytest.approx(inside + everything - 2 * between, rel=1e-9)


@pytest.mark.parametrize("index", [QMI(), HSIC(), HSIC(unbiased=False), CKA(), CKA(unbiased=False)], ids=repr)
def test_the_loss_is_minus_the_index_and_trains_the_student_alone(index: Estimator) -> None:
    x, y, _ = sample()
    x, y = x.requires_grad_(), y.requires_grad_()
    loss = index(x, y)
    assert loss.item() == pytest.approx(-index.estimate(x, y).item(), rel=1e-10)
    loss.backward()
    assert y.grad is None
    assert x.grad is not None
    better = index(x.detach() - 1e-2 * x.grad / x.grad.norm(), y.detach())
    assert better < loss


def test_labels_train_the_student() -> None:
    x, _, labels = sample()
    x.requires_grad_()
    LabelQMI()(x, labels).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("cls", [HSIC, CKA])
def test_u_statistics_are_centered_on_zero(cls: type[HSIC] | type[CKA]) -> None:
    values = {True: [], False: []}
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, 24, 6, generator=g, dtype=torch.float64)
        for unbiased, found in values.items():
            found.append(cls(3.0, 3.0, unbiased=unbiased).estimate(x, y).item())
    mean, error = {}, {}
    for unbiased, found in values.items():
        mean[unbiased] = sum(found) / len(found)
        error[unbiased] = torch.tensor(found).std().item() / math.sqrt(len(found))
    assert abs(mean[True]) <= 4 * error[True]
    assert mean[False] > 20 * error[False]


def test_cka_sees_no_rotation_nor_scale() -> None:
    x, _, _ = sample()
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    assert CKA().estimate(x, 5 * x @ turn + 2).item() == pytest.approx(1, abs=1e-9)


def test_they_measure_and_stand_in_the_registry() -> None:
    x, y, labels = sample(n=120)
    assert {name for name, cls in REGISTRY.items() if cls.kind == "index"} == {
        "qmi", "label_qmi", "hsic", "label_hsic", "cka"
    }  # fmt: skip
    found = mikit.measure(x, y, "hsic", permutations=5)
    assert found.kind == "index"
    assert found.unit == "dimensionless"
    assert found.value == pytest.approx(HSIC().estimate(x, y).item(), rel=1e-6)
    assert mikit.measure(x, labels, "label_qmi", permutations=5).value > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QMI(0.0), "bandwidth_x is 0.0"),
        (lambda: CKA(1.0, float("inf")), "bandwidth_y is inf"),
        (lambda: LabelQMI(-1.0), "bandwidth is -1.0"),
        (lambda: HSIC()(torch.zeros(3, 2), torch.zeros(3, 2)), "4"),
        (lambda: QMI()(torch.zeros(8, 2), torch.zeros(7, 2)), "samples"),
        (lambda: QMI()(torch.zeros(8, 2, 2), torch.zeros(8, 2)), "Pool or flatten"),
        (lambda: LabelQMI()(torch.zeros(8, 2), torch.zeros(8)), "integers"),
        (lambda: LabelQMI()(torch.zeros(8, 2), torch.zeros(7, dtype=torch.long)), "one label per sample"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
