"""MMD as a loss and as a metric."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.estimators.kernels.energy import EnergyDistance
from mikit.estimators.kernels.mmd import MMD
from mikit.functional.kernels.bandwidth import median_bandwidth
from mikit.functional.kernels.energy import energy_distance2
from mikit.functional.kernels.mmd import mmd2, polynomial_mmd2
from mikit.functional.kernels.mmd_blocks import block_mmd2, linear_time_mmd2
from mikit.functional.kernels.mmd_error import mmd2_pointwise
from mikit.functional.kernels.pair_kernels import Gaussian


def _samples(n: int, m: int, seed: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=g), torch.randn(m, 3, generator=g) + shift


def test_loss_and_report_are_the_formula() -> None:
    x, y = _samples(40, 40, 0, 0.5)
    # The median rescales the rows instead of the kernel, which rounds differently.
    assert MMD().estimate(x, y).item() == pytest.approx(mmd2(x, y, bandwidth=median_bandwidth(x, y)).item(), rel=1e-5)
    assert MMD(2.0, paired=True)(x, y).item() == mmd2(x, y, bandwidth=2.0, paired=True).item()
    contributions = MMD(2.0).pointwise(x, y)
    assert contributions is not None
    assert torch.equal(contributions, mmd2_pointwise(x, y, Gaussian(2.0)))
    assert MMD(2.0).describe() == "MMD(bandwidth=2.0, paired=False)"


def test_the_teacher_is_detached() -> None:
    x, y = (rows.requires_grad_() for rows in _samples(20, 20, 1))
    MMD()(x, y).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert y.grad is None


def test_as_a_loss_it_moves_the_student_onto_the_teacher() -> None:
    x, y = _samples(128, 128, 2, 2.0)
    shift = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        MMD()(x + shift, y).backward()
        optimizer.step()
    # The means of both samples are known to about 0.12 together.
    assert torch.allclose(shift.detach(), torch.full((3,), 2.0), atol=0.4)


def test_samples_of_different_sizes() -> None:
    x, y = _samples(120, 70, 3, 1.0)
    assert MMD().estimate(x, y).item() > 4 * MMD().standard_error(x, y) > 0
    assert MMD().pointwise(x, y) is None
    assert not MMD().needs_pairs
    assert MMD(paired=True).needs_pairs
    with pytest.raises(InputError, match="120 samples and y has 70"):
        MMD(paired=True).estimate(x, y)
    with pytest.raises(InputError, match="groups belong"):
        MMD().standard_error(x, y, groups=torch.arange(120))


def test_equal_distributions_have_a_finite_standard_error_that_fits() -> None:
    values, squares = [], []
    for seed in range(200):
        x, y = _samples(50, 50, seed)
        metric = MMD(2.0)
        error = metric.standard_error(x, y)
        assert 0 < error < 0.05
        values.append(metric.estimate(x, y).item())
        squares.append(error**2)
    spread = torch.tensor(values).std().item()
    assert abs(sum(values) / 200) < 3 * spread / math.sqrt(200)
    # The stated error is too large by about a fifth here; 200 values of a skewed distribution determine the spread to
    # about a tenth.
    assert 0.85 < math.sqrt(sum(squares) / 200) / spread < 1.4


def test_groups_of_copies_count_once() -> None:
    x, y = _samples(60, 60, 4, 1.0)
    groups = torch.arange(60).repeat_interleave(4)
    copied = MMD(2.0).standard_error(x.repeat_interleave(4, 0), y.repeat_interleave(4, 0), groups=groups)
    assert copied == pytest.approx(MMD(2.0).standard_error(x, y), rel=0.15)


def test_every_kernel_and_form_is_its_formula() -> None:
    x, y = _samples(40, 40, 6, 0.5)
    linear = {"degree": 1, "scale": 1.0, "offset": 0.0}
    cubic = {"degree": 3, "scale": 0.5, "offset": 2.0}
    cases = [
        (MMD((0.5, 2.0)), mmd2(x, y, bandwidth=(0.5, 2.0))),
        (MMD(factors=(0.5, 2.0)), mmd2(x, y, factors=(0.5, 2.0))),
        (MMD(1.0, form="biased"), mmd2(x, y, bandwidth=1.0, unbiased=False)),
        (MMD(kernel="linear", paired=True), polynomial_mmd2(x, y, paired=True, **linear)),
        (MMD(kernel="polynomial", **cubic), polynomial_mmd2(x, y, **cubic)),
        (MMD(1.0, form="block", block=7), block_mmd2(x, y, block=7, bandwidth=1.0)),
        (MMD(kernel="linear", form="block"), block_mmd2(x, y, **linear)),
        (MMD(1.0, form="linear-time"), linear_time_mmd2(x, y, bandwidth=1.0)),
        (MMD(kernel="polynomial", form="linear-time"), linear_time_mmd2(x, y, degree=3)),
    ]
    for metric, expected in cases:
        assert metric.estimate(x, y).item() == pytest.approx(expected.item(), rel=1e-6), metric.describe()
        assert metric(x, y).item() == metric.estimate(x, y).item()
        found = metric.pointwise(x, y)
        assert (found is None) == (metric.form != "unbiased")
        if found is not None:
            assert found.mean().item() == pytest.approx(expected.item(), rel=1e-5)
        assert 0 < metric.standard_error(x, y) < math.inf
    distance = (x.mean(dim=0) - y.mean(dim=0)).square().sum().item()
    assert MMD(kernel="linear", form="biased").estimate(x, y).item() == pytest.approx(distance, rel=1e-5)


def test_the_biased_form_says_so() -> None:
    biased = MMD(form="biased")
    assert not biased.unbiased
    assert MMD().unbiased
    assert "form='biased'" in biased.describe()
    values = [biased.estimate(*_samples(50, 50, seed)).item() for seed in range(100)]
    debiased = [MMD(form="biased", debias=True).estimate(*_samples(50, 50, seed)).item() for seed in range(100)]
    assert min(values) > 0
    error = torch.tensor(debiased).std().item() / 10
    assert abs(sum(debiased) / 100) < 3 * error < sum(values) / 300
    assert MMD(form="biased", debias=True).standard_error(*_samples(50, 50, 0)) is None


def test_units_and_what_belongs_to_what() -> None:
    assert MMD(kernel="linear").unit == "feature²"
    assert MMD.unit == MMD(kernel="polynomial").unit == "dimensionless"
    cases = [
        ({"kernel": "cubic"}, "kernel is"),
        ({"form": "fast"}, "form is"),
        ({"kernel": "linear", "bandwidth": 1.0}, "no bandwidth"),
        ({"kernel": "polynomial", "factors": (2.0,)}, "no bandwidth"),
        ({"degree": 2}, "belong to the polynomial"),
        ({"bandwidth": 1.0, "factors": (2.0,)}, "do not go with"),
        ({"block": 4}, "block belongs"),
        ({"debias": True}, "no bias to subtract"),
        ({"bandwidth": ()}, "bandwidth is"),
    ]
    for given, message in cases:
        with pytest.raises(InputError, match=message):
            MMD(**given)
    x, y = _samples(20, 20, 7)
    with pytest.raises(InputError, match="takes no weights"):
        MMD().estimate(x, y, weights_x=torch.ones(20))
    with pytest.raises(InputError, match="unbiased form only"):
        MMD(form="block").standard_error(x, y, groups=torch.arange(20) // 2)
    with pytest.raises(InputError, match="20 samples and y has 19"):
        MMD(form="linear-time").estimate(x, y[:19])


def test_energy_distance_is_its_formula() -> None:
    x, y = _samples(30, 20, 8, 0.5)
    weights = torch.rand(30, generator=torch.Generator().manual_seed(9))
    assert EnergyDistance().estimate(x, y).item() == energy_distance2(x, y).item()
    biased = EnergyDistance(form="biased")
    expected = energy_distance2(x, y, unbiased=False, weights_x=weights).item()
    assert biased.estimate(x, y, weights_x=weights).item() == expected
    assert biased.pointwise(x, x) is None
    assert EnergyDistance().standard_error(x, x.flip(0) + 1, groups=torch.arange(30) // 2) > 0
    for call, message in (
        (lambda: EnergyDistance(form="block"), "form is"),
        (lambda: EnergyDistance(debias=True), "no bias"),
        (lambda: EnergyDistance(paired=True).estimate(x, y), "30 samples and y has 20"),
        (lambda: EnergyDistance().standard_error(x, y, groups=torch.arange(30)), "one size only"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_what_cannot_be_used_is_refused() -> None:
    x, _ = _samples(10, 10, 5)
    with pytest.raises(InputError, match="3 features and y has 2"):
        MMD().estimate(x, x[:, :2])
    with pytest.raises(InputError, match="bandwidth is -1"):
        MMD(-1.0)
    with pytest.raises(InputError, match=r"\(n, d\)"):
        MMD().estimate(x[:, :, None], x)
