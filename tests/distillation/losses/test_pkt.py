"""PKT: the released number written out, the batch size, the meaning of weight 1, gradients, precision, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.distillation.losses.pkt import PKT
from mikit.testing import contract_checks

# What only a measure of laws keeps: PKT is never negative, and asks for pairs rather than for a law.
NOT_ASKED = ("dependence shows", "nothing is clipped")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 48, d_s: int = 5, d_t: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = seeded(seed)
    teacher = torch.randn(n, d_t, generator=g, dtype=torch.float64) + 0.5
    student = teacher[:, :d_s] + 0.7 * torch.randn(n, d_s, generator=g, dtype=torch.float64)
    return student, teacher


def neighbours(rows: Tensor, kernel: str, *, diagonal: bool) -> list[list[float]]:
    """Probabilities by loops."""
    n = len(rows)
    table = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            if i == j and not diagonal:
                continue
            a, b = rows[i], rows[j]
            if kernel == "cosine":
                table[i][j] = 0.5 * (float(a @ b / (a.norm() * b.norm())) + 1)
            else:
                table[i][j] = 1 / (1 + math.sqrt(max(float((a - b).square().sum()), 0.0) + 1e-6))
        total = sum(table[i])
        table[i] = [entry / total for entry in table[i]]
    return table


def by_rows(student: Tensor, teacher: Tensor, kernel: str, divergence: str) -> float:
    """The mean over rows, the diagonal left out."""
    if kernel == "combined":
        return by_rows(student, teacher, "cosine", divergence) + by_rows(student, teacher, "student", divergence)
    q, p = (neighbours(rows, kernel, diagonal=False) for rows in (student, teacher))
    total = 0.0
    for i in range(len(p)):
        for j in range(len(p)):
            if i != j:
                log = math.log(p[i][j] / q[i][j])
                total += (p[i][j] - q[i][j]) * log if divergence == "jeffreys" else p[i][j] * log
    return total / len(p)


def released(student: Tensor, teacher: Tensor, kernel: str, divergence: str) -> float:
    """The released code's number: diagonal counted, the mean over all n² entries."""
    if kernel == "combined":
        return released(student, teacher, "cosine", divergence) + released(student, teacher, "student", divergence)
    q, p = (torch.tensor(neighbours(r, kernel, diagonal=True), dtype=torch.float64) for r in (student, teacher))
    if divergence == "jeffreys":
        return float(((q - p) * (q.log() - p.log())).mean())
    return float((p * torch.log((p + 1e-7) / (q + 1e-7))).mean())


@pytest.mark.parametrize("kernel", ["cosine", "student", "combined"])
@pytest.mark.parametrize("divergence", ["kl", "jeffreys"])
class TestValues:
    def test_estimate_is_the_loop(self, kernel: str, divergence: str) -> None:
        x, y = batch(n=20)
        value = PKT(kernel, divergence=divergence).estimate(x, y)
        assert value.item() == pytest.approx(by_rows(x, y, kernel, divergence), rel=1e-9)

    def test_pkth_is_the_released_number(self, kernel: str, divergence: str) -> None:
        x, y = batch(n=32)
        loss = PKT.between(x, y, kernel=kernel, divergence=divergence, compat="pkth")
        assert loss.standard.item() == 1
        # Relative: the numbers themselves are near 1e-4.
        assert loss(x, y).item() == pytest.approx(released(x, y, kernel, divergence), rel=1e-6)

    def test_value_does_not_fall_with_the_batch(self, kernel: str, divergence: str) -> None:
        ours, theirs = PKT(kernel, divergence=divergence), PKT(kernel, divergence=divergence, compat="pkth")
        small = [batch(n=64, seed=seed) for seed in range(20)]
        large = [batch(n=256, seed=seed) for seed in range(20, 25)]
        means = []
        for loss in (ours, theirs):
            few = torch.stack([loss.estimate(*pair) for pair in small])
            many = torch.stack([loss.estimate(*pair) for pair in large])
            error = math.hypot(float(few.std()) / math.sqrt(20), float(many.std()) / math.sqrt(5))
            means.append((float(few.mean()), float(many.mean()), error))
        # What is left is of order 1/n: the share of a row's own neighbourhood, 1/64 against 1/256, of a few units.
        few, many, error = means[0]
        assert abs(few - many) <= 4 * error + 4 * many / 64
        assert means[1][0] / means[1][1] == pytest.approx(4, rel=0.15)

    def test_weight_one_is_other_inputs(self, kernel: str, divergence: str) -> None:
        x, y = batch(n=256)
        for scale in (1.0, 10.0):
            teacher = scale * y
            loss = PKT.between(x, teacher, kernel=kernel, divergence=divergence)
            orders = [torch.randperm(256, generator=seeded(seed)) for seed in range(8)]
            other = torch.stack([loss(teacher[order], teacher) for order in orders])
            # `standard` comes from one such order, and 8 more spread about as much.
            assert other.mean().item() == pytest.approx(1, abs=5 * other.std().item() + 0.02)
            assert other.std() < 0.1
            assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-9)


class TestGradients:
    @pytest.mark.parametrize("kernel", ["cosine", "student", "combined"])
    def test_reach_the_student_alone(self, kernel: str) -> None:
        x, y = batch(n=12)
        x, y = x.requires_grad_(), y.requires_grad_()
        loss = PKT.between(x.detach(), y.detach(), kernel=kernel)
        assert torch.autograd.gradcheck(lambda rows: loss(rows, y), (x,))
        loss(x, y).backward()
        assert y.grad is None
        assert x.grad is not None
        assert x.grad.abs().sum() > 0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_an_island(self, dtype: torch.dtype) -> None:
        x, y = (rows.abs().float() + 3 for rows in batch(n=64))
        loss = PKT.between(x, y, kernel="combined")
        low = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(low, y.to(dtype))
        assert value.dtype == torch.float32
        exact = loss(low.detach().float(), y.to(dtype).float())
        assert value.item() == pytest.approx(exact.item(), rel=1e-4)
        value.backward()
        assert low.grad is not None
        assert bool(low.grad.isfinite().all())

    def test_coinciding_rows_and_rows_of_zeros(self) -> None:
        x, y = batch(n=16)
        x[3] = x[4]
        x[5] = 0
        x.requires_grad_()
        PKT("combined")(x, y).backward()
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())


class TestUse:
    @pytest.mark.parametrize("name", [name for name, _ in contract_checks() if name not in NOT_ASKED])
    def test_it_keeps_the_contract(self, name: str) -> None:
        dict(contract_checks())[name](PKT)

    def test_unit_stands_in_the_state(self) -> None:
        x, y = batch()
        loss = PKT.between(x, y)
        other = PKT()
        other.load_state_dict(loss.state_dict())
        assert other(x, y).item() == loss(x, y).item() != PKT()(x, y).item()
        assert copy.deepcopy(loss)(x, y).item() == loss(x, y).item()
        assert loss.param_groups() == []

    def test_breaking_the_pairs_shows(self) -> None:
        x, y = batch()
        loss = PKT.between(x, y)
        assert loss(x, y) < 0.7 * loss(x.roll(1, 0), y)

    @pytest.mark.parametrize(
        ("call", "said"),
        [
            (lambda: PKT("gaussian"), "kernel is"),
            (lambda: PKT(divergence="js"), "divergence is"),
            (lambda: PKT(compat="repdistiller"), "compat is"),
            (lambda: PKT()(torch.zeros(4, 2, 3), torch.zeros(4, 2)), "Pool or flatten"),
            (lambda: PKT()(torch.zeros(4, 2), torch.zeros(5, 2)), "samples"),
            (lambda: PKT()(torch.ones(2, 2), torch.ones(2, 2)), "at least 3"),
            (lambda: PKT.between(torch.ones(8, 2), torch.ones(8, 2)), "nothing to transfer"),
        ],
    )
    def test_refusals(self, call: object, said: str) -> None:
        with pytest.raises(InputError, match=said):
            call()
