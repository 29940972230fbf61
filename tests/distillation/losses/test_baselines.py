"""Baseline distillation losses: naive loops, released forms, gradients, precision, state, and refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.distillation import check_optimizer
from mikit.distillation.losses.crd import CRD
from mikit.distillation.losses.features import AttentionTransfer, ChannelMMD, FitNet
from mikit.distillation.losses.logits import DKD, HintonKD
from mikit.functional.distillation.feature_maps import attention_gap, channel_mmd2
from mikit.functional.distillation.logits import decoupled_kl, softened_kl
from mikit.testing import contract_checks


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(n: int = 12, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 3 * torch.randn(2, n, classes, generator=seeded(), dtype=torch.float64)
    return student, teacher, torch.arange(n) % classes


def maps(c_s: int = 3, c_t: int = 5, size_s: int = 4, size_t: int = 4) -> tuple[Tensor, Tensor]:
    g = seeded()
    return (
        torch.randn(6, c_s, size_s, size_s, generator=g, dtype=torch.float64),
        torch.randn(6, c_t, size_t, size_t, generator=g, dtype=torch.float64),
    )


def softmax(row: Tensor, temperature: float) -> list[float]:
    powers = [math.exp(float(entry) / temperature) for entry in row]
    return [power / sum(powers) for power in powers]


class TestLogits:
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_hinton_is_the_loop(self, temperature: float) -> None:
        x, y, _ = logits()
        total = 0.0
        for own, aim in zip(x, y, strict=True):
            q, p = softmax(own, temperature), softmax(aim, temperature)
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        kd = HintonKD(temperature)
        assert kd.estimate(x, y).item() == pytest.approx(total / len(x), rel=1e-10)
        assert kd(x, y).item() == pytest.approx(temperature**2 * total / len(x), rel=1e-10)

    def test_dkd_is_the_loop(self) -> None:
        x, y, labels = logits()
        total = 0.0
        for own, aim, label in zip(x, y, labels.tolist(), strict=True):
            q, p = softmax(own, 4.0), softmax(aim, 4.0)
            a, b = p[label], q[label]
            total += a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
            rest = [(s / (1 - a), t / (1 - b)) for k, (s, t) in enumerate(zip(p, q, strict=True)) if k != label]
            total += 8 * sum(s * math.log(s / t) for s, t in rest)
        assert DKD()(x, y, labels=labels).item() == pytest.approx(16 * total / len(x), rel=1e-10)

    def test_the_parts_make_up_the_whole(self) -> None:
        x, y, labels = logits()
        for row in range(len(x)):
            one = slice(row, row + 1)
            target, others = decoupled_kl(x[one], y[one], labels[one], temperature=2.0)
            rest = 1 - softmax(y[row], 2.0)[labels[row]]
            assert softened_kl(x[one], y[one], temperature=2.0).item() == pytest.approx(
                (target + rest * others).item(), rel=1e-9
            )

    def test_gradient_size_survives_the_temperature(self) -> None:
        sizes = []
        for temperature in (20.0, 40.0):
            x, y, _ = logits()
            (slope,) = torch.autograd.grad(HintonKD(temperature)(x.requires_grad_(), y), x)
            sizes.append(slope.norm().item())
        assert sizes[0] == pytest.approx(sizes[1], rel=0.1)

    def test_extreme_logits_stay_finite(self) -> None:
        x = torch.tensor([[500.0, -500.0, 0.0], [0.0, 0.0, 900.0]], requires_grad=True)
        y = torch.tensor([[-500.0, 500.0, 0.0], [900.0, 0.0, 0.0]])
        for loss in (HintonKD(1.0)(x, y), DKD(temperature=1.0)(x, y, labels=torch.tensor([0, 2]))):
            (slope,) = torch.autograd.grad(loss, x)
            assert bool(loss.isfinite())
            assert bool(slope.isfinite().all())

    def test_two_classes_leave_nothing_among_the_rest(self) -> None:
        x, y, _ = logits(classes=2)
        assert decoupled_kl(x, y, torch.zeros(12, dtype=torch.long))[1].item() == 0


class TestMaps:
    def test_attention_is_the_loop(self) -> None:
        x, y = maps()
        total = 0.0
        for own, aim in zip(x, y, strict=True):
            sides = []
            for one in (own, aim):
                cells = [sum(float(v) ** 2 for v in one[:, i, j]) for i in range(4) for j in range(4)]
                length = math.sqrt(sum(cell**2 for cell in cells))
                sides.append([cell / length for cell in cells])
            total += sum((a - b) ** 2 for a, b in zip(*sides, strict=True))
        assert AttentionTransfer().estimate(x, y).item() == pytest.approx(total / 6, rel=1e-10)
        # The released form: the mean over cells. Weight 1000 there is 4 here at 16 x 16, up to rounding to 3.9.
        released = (
            (
                nn.functional.normalize(x.pow(2).mean(1).flatten(1))
                - nn.functional.normalize(y.pow(2).mean(1).flatten(1))
            )
            .pow(2)
            .mean()
        )
        assert attention_gap(x, y).item() == pytest.approx(16 * released.item(), rel=1e-10)

    def test_attention_does_not_depend_on_the_size(self) -> None:
        x, y = maps()
        larger = [one.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3) for one in (x, y)]
        assert attention_gap(*larger).item() == pytest.approx(attention_gap(x, y).item(), rel=1e-10)

    @pytest.mark.parametrize(("c_s", "c_t"), [(3, 5), (9, 12)])
    def test_channels_are_the_loop(self, c_s: int, c_t: int) -> None:
        x, y = maps(c_s, c_t)
        total = 0.0
        for own, aim in zip(x, y, strict=True):
            u = [channel.flatten() / channel.norm() for channel in own]
            v = [channel.flatten() / channel.norm() for channel in aim]

            def mean(first: list[Tensor], second: list[Tensor]) -> float:
                return sum(float(a @ b) ** 2 for a in first for b in second) / len(first) / len(second)

            total += mean(u, u) + mean(v, v) - 2 * mean(u, v)
        assert ChannelMMD().estimate(x, y).item() == pytest.approx(total / 6, rel=1e-9)
        assert channel_mmd2(x, x).item() == pytest.approx(0, abs=1e-12)

    def test_larger_maps_are_pooled(self) -> None:
        x, y = maps(size_s=8, size_t=4)
        small = nn.functional.avg_pool2d(x, 2)
        for gap in (attention_gap, channel_mmd2):
            assert gap(x, y).item() == pytest.approx(gap(small, y).item(), rel=1e-12)

    def test_maps_of_zeros_have_gradients(self) -> None:
        x, y = maps()
        x[0], x[1, 1] = 0, 0
        for loss in (AttentionTransfer(), ChannelMMD()):
            (slope,) = torch.autograd.grad(loss(x.requires_grad_(), y), x)
            assert bool(slope.isfinite().all())


class TestFitNet:
    @pytest.mark.parametrize("spatial", [False, True])
    def test_it_is_the_mean_squared_error_over_the_variance(self, spatial: bool) -> None:
        x, y = maps() if spatial else (torch.randn(40, 3, generator=seeded()), torch.randn(40, 5, generator=seeded(1)))
        y = 3 * y + 7
        hint = FitNet.between(x, y, generator=seeded())
        axes = (0, 2, 3) if spatial else (0,)
        variance = y.var(dim=axes, unbiased=False).mean()
        rows, aim = (one.permute(0, 2, 3, 1).flatten(0, 2) if spatial else one for one in (x, y))
        centred = rows - rows.mean(0)
        standard = centred / centred.square().mean().sqrt()
        weight, bias = hint.regressor.weight.flatten(1).to(x.dtype), hint.regressor.bias.to(x.dtype)
        found = aim.mean(0) + variance.sqrt() * (standard @ weight.T + bias)
        expected = (found - aim).square().mean() / variance
        assert hint.estimate(x, y).item() == pytest.approx(expected.item(), rel=1e-5)
        assert hint(x, y).item() == pytest.approx(5 * expected.item(), rel=1e-5)

    def test_scale_of_either_side_does_not_matter(self) -> None:
        x, y = maps()
        values = [
            FitNet.between(a * x, b * y + 1, generator=seeded())(a * x, b * y + 1) for a, b in ((1, 1), (30, 0.1))
        ]
        assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)

    def test_a_mean_costs_the_whole_variance(self) -> None:
        x, y = maps()
        hint = FitNet.between(x, y)
        nn.init.zeros_(hint.regressor.weight)
        nn.init.zeros_(hint.regressor.bias)
        assert hint.estimate(x, y).item() == pytest.approx(1, rel=1e-6)


class TestCRD:
    def test_it_is_the_loop(self) -> None:
        x, y = torch.randn(9, 4, generator=seeded()), torch.randn(9, 6, generator=seeded(1))
        crd = CRD.between(x, y, embedding=8, generator=seeded()).double()
        x, y = x.double(), y.double()
        labels = torch.arange(9) % 3
        scores = crd.scores(x, y).tolist()
        assert max(map(max, scores)) <= 1 / 0.07
        for given in (None, labels):
            total = 0.0
            for i in range(9):
                kept = [j for j in range(9) if given is None or j == i or given[i] != given[j]]
                for row in (scores[i], [scores[j][i] for j in range(9)]):
                    total += row[i] - math.log(sum(math.exp(row[j]) for j in kept) / 9)
            assert crd(x, y, labels=given).item() == pytest.approx(-total / 18, rel=1e-9)
        assert crd.estimate(x, y) <= crd.ceiling(9) == math.log(9)

    def test_training_finds_the_pairs(self) -> None:
        x = torch.randn(64, 4, generator=seeded())
        y = x @ torch.randn(4, 6, generator=seeded(1))
        crd = CRD.between(x, y, generator=seeded(2))
        optimiser = torch.optim.Adam(crd.param_groups(), lr=1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            crd(x, y).backward()
            optimiser.step()
        # Four columns on a sphere leave close neighbours at this temperature: most of the ceiling, not all.
        assert 0.8 * math.log(64) < crd.estimate(x, y).item() <= math.log(64)


ROWS = (torch.randn(16, 4, generator=seeded(3)), torch.randn(16, 6, generator=seeded(4)))
MAPS = tuple(one.float() for one in maps())
ALL: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, Tensor]]] = {
    "hinton": (HintonKD, (ROWS[0], ROWS[1][:, :4])),
    "fitnet": (lambda: FitNet.between(*ROWS, generator=seeded()), ROWS),
    "fitnet-maps": (lambda: FitNet.between(*MAPS, generator=seeded()), MAPS),
    "attention": (AttentionTransfer, MAPS),
    "channels": (ChannelMMD, MAPS),
    "crd": (lambda: CRD.between(*ROWS, generator=seeded()), ROWS),
}


@pytest.mark.parametrize("name", ALL)
class TestAll:
    def test_gradient_reaches_the_student_alone_and_every_parameter_moves(self, name: str) -> None:
        build, (x, y) = ALL[name]
        loss = build()
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        loss(x, y).backward()
        assert y.grad is None
        assert x.grad is not None
        assert x.grad.abs().sum() > 0
        parameters = list(loss.parameters())
        if parameters:
            before = copy.deepcopy(loss.state_dict())
            optimiser = torch.optim.SGD(loss.param_groups(), lr=0.1)
            check_optimizer(optimiser, loss)
            optimiser.step()
            names = [one for one, _ in loss.named_parameters()]
            assert not any(torch.equal(before[one], loss.state_dict()[one]) for one in names)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_an_island(self, name: str, dtype: torch.dtype) -> None:
        build, (x, y) = ALL[name]
        loss = build()
        low, aim = (30 * x).to(dtype).requires_grad_(), y.to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(low, aim)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(low.detach().float(), aim.float()).item(), rel=1e-5)
        value.backward()
        assert low.grad is not None
        assert bool(low.grad.isfinite().all())

    def test_state_is_the_value(self, name: str) -> None:
        build, (x, y) = ALL[name]
        loss = build()
        other = build()
        with torch.no_grad():
            for one in other.parameters():
                one.add_(1)
        other.load_state_dict(loss.state_dict())
        assert other(x, y).item() == loss(x, y).item()


# What only laws keep (these losses ask for pairs and are never negative); CRD keeps everything.
NOT_ASKED = ("dependence shows", "nothing is clipped")
CONTRACT = [
    pytest.param(cls, check, marks=() if cls is HintonKD else pytest.mark.slow, id=f"{cls.__name__}-{name}")
    for cls in (HintonKD, FitNet, CRD)
    for name, check in contract_checks()
    if cls is CRD or name not in NOT_ASKED
]


@pytest.mark.parametrize(("cls", "check"), CONTRACT)
def test_those_of_rows_keep_the_contract(cls: type, check: Callable[[type], None]) -> None:
    check(cls)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: HintonKD(0.0), "temperature is 0.0"),
        (lambda: HintonKD()(torch.zeros(4, 3), torch.zeros(4, 2)), "features"),
        (lambda: HintonKD()(torch.zeros(4, 1), torch.zeros(4, 1)), "one class"),
        (lambda: DKD(beta=-1.0), "beta is -1.0"),
        (lambda: DKD()(torch.zeros(4, 3), torch.zeros(4, 3)), "labels="),
        (lambda: DKD()(torch.zeros(4, 3), torch.zeros(4, 3), labels=torch.full((4,), 3)), "3 classes"),
        (lambda: DKD()(torch.zeros(4, 3), torch.zeros(4, 3), labels=torch.zeros(4)), "one class index"),
        (lambda: FitNet.between(torch.zeros(4, 3, 2, 2), torch.ones(4, 3)), "feature maps"),
        (lambda: FitNet.between(torch.randn(4, 3), torch.ones(4, 3)), "regression is not possible"),
        (lambda: FitNet(3, 5)(torch.zeros(4, 5), torch.zeros(4, 3)), "The student comes first"),
        (lambda: AttentionTransfer()(torch.zeros(4, 3), torch.zeros(4, 3)), "before pooling"),
        (lambda: AttentionTransfer(0.5), "power is 0.5"),
        (lambda: ChannelMMD()(torch.zeros(4, 3, 2, 2), torch.zeros(5, 3, 2, 2)), "samples"),
        (lambda: CRD(4, 6)(torch.zeros(4, 6), torch.zeros(4, 4)), "The student comes first"),
        (lambda: CRD(4, 6)(*ROWS, labels=torch.zeros(16, dtype=torch.long)), "no negative is left"),
        (lambda: CRD(4, 6)(*ROWS, labels=torch.zeros(15, dtype=torch.long)), "one class index"),
        (lambda: CRD(4, 6, temperature=0.0), "temperature is 0.0"),
    ],
)
def test_refusals(call: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()
