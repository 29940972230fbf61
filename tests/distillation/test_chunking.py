"""Chunked training gives the gradient of the large batch: dropout, several outputs, a learned loss, mixed precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mikit
from mikit.distillation import chunked_backward

ROWS = 26


class Student(nn.Module):
    """Logits and features, with dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"pool": features, "logits": self.head(features)}


def setting(dtype: torch.dtype, dropout: float) -> tuple[Student, Tensor, Tensor, Tensor, mikit.MIMKD | mikit.CRD]:
    torch.manual_seed(0)
    student = Student(dropout).to(dtype)
    inputs, teacher = torch.randn(ROWS, 5, dtype=dtype), torch.randn(ROWS, 4, dtype=dtype)
    kd = mikit.CRD.between(student(inputs)["pool"].detach(), teacher).to(dtype)
    return student, inputs, teacher, torch.arange(ROWS) % 3, kd


def whole_loss(out: dict[str, Tensor], teacher: Tensor, labels: Tensor, kd: nn.Module) -> Tensor:
    value: Tensor = cross_entropy(out["logits"], labels) + kd(out["pool"], teacher, labels=labels)
    return value


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_the_gradient_is_that_of_the_large_batch(dtype: torch.dtype, bar: float, dropout: float) -> None:
    student, inputs, teacher, labels, kd = setting(dtype, dropout)
    other, other_kd = copy.deepcopy(student), copy.deepcopy(kd)
    torch.manual_seed(4)
    # Chunks draw their dropout one after the other, so the large batch is put together from such draws, graph and all.
    parts = [other(chunk) for chunk in inputs.split(8 if dropout else ROWS)]
    wanted = whole_loss(
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, teacher, labels, other_kd
    )
    wanted.backward()
    drawn = torch.rand(1)
    torch.manual_seed(4)
    value = chunked_backward(student, inputs, lambda out: whole_loss(out, teacher, labels, kd), rows=8)
    assert torch.rand(1) == drawn  # the second passes leave no trace in the random state
    assert not value.requires_grad
    assert value.item() == pytest.approx(wanted.item(), abs=bar)
    pairs = [*zip(student.parameters(), other.parameters(), strict=True)]
    pairs += [*zip(kd.parameters(), other_kd.parameters(), strict=True)]
    for ours, theirs in pairs:
        assert ours.grad is not None
        assert theirs.grad is not None
        assert float((ours.grad - theirs.grad).abs().max()) <= bar * max(1.0, float(theirs.grad.abs().max()))


def test_accumulating_small_batches_is_something_else() -> None:
    student, inputs, teacher, _, _ = setting(torch.float64, 0.0)
    kd = mikit.PKT.between(student(inputs)["pool"].detach(), teacher)
    chunked_backward(student, inputs, lambda out: kd(out["pool"], teacher), rows=13)
    exact = [p.grad.clone() for p in student.body.parameters() if p.grad is not None]
    student.zero_grad()
    for part, aim in zip(inputs.split(13), teacher.split(13), strict=True):
        (kd(student(part)["pool"], aim) / 2).backward()
    apart = max(
        float((a - p.grad).abs().max() / a.abs().max())
        for a, p in zip(exact, student.body.parameters(), strict=True)
        if p.grad is not None
    )
    assert apart > 0.05


def test_gradients_are_added_and_unused_outputs_left_alone() -> None:
    student, inputs, teacher, _, _ = setting(torch.float64, 0.0)
    for _ in range(2):
        chunked_backward(student, inputs, lambda out: mikit.PKT()(out["pool"], teacher), rows=100)
    assert student.head.weight.grad is None
    wanted = torch.autograd.grad(mikit.PKT()(student(inputs)["pool"], teacher), student.body[0].weight)[0]
    assert torch.allclose(student.body[0].weight.grad, 2 * wanted, atol=1e-12)


def test_autocast_reaches_both_passes() -> None:
    student, inputs, teacher, _, _ = setting(torch.float32, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        chunked_backward(student, inputs, lambda out: mikit.PKT()(out["pool"], teacher), rows=9)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in student.body.parameters())


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.layer(x))
        return normalised


def test_batch_normalisation_is_told_of_and_counted_once() -> None:
    torch.manual_seed(0)
    network, inputs, teacher = Normalised().double(), torch.randn(12, 5).double(), torch.randn(12, 3).double()
    other = copy.deepcopy(network)
    with pytest.warns(UserWarning, match="batch normalization in training mode"):
        chunked_backward(network, inputs, lambda out: mikit.PKT()(out, teacher), rows=6)
    mikit.PKT()(torch.cat([other(part) for part in inputs.split(6)]), teacher).backward()
    assert torch.allclose(network.layer.weight.grad, other.layer.weight.grad, atol=1e-12)
    assert torch.equal(network.norm.running_mean, other.norm.running_mean)
    assert network.norm.num_batches_tracked == 2
    network.norm.eval()
    chunked_backward(network, inputs, lambda out: mikit.PKT()(out, teacher), rows=6)  # a warning would be an error


class Restless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.own = nn.Parameter(torch.ones(())), torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x * torch.rand(x.shape, generator=self.own)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"inputs": {"a": torch.ones(3, 2), "b": torch.ones(4, 2)}}, "of one length n"),
        ({"inputs": "images"}, "inputs is a str"),
        ({"network": nn.Flatten(0)}, r"For 4 samples the network returns a tensor of shape \(8,\)"),
        ({"loss": lambda out: out}, "0-dim tensor with a gradient"),
        ({"loss": lambda out: out.detach().sum()}, "0-dim tensor with a gradient"),
        ({"loss": lambda out: torch.ones((), requires_grad=True) * 2}, "no gradient to the network's output"),
        ({"network": Restless()}, "second pass of a chunk differs"),
    ],
)
def test_refusals(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"network": nn.Linear(2, 2), "inputs": torch.ones(8, 2), "rows": 4} | change
    loss = given.pop("loss", lambda out: out.sum())
    with pytest.raises(mikit.InputError, match=said):
        chunked_backward(given["network"], given["inputs"], loss, rows=given["rows"])
