"""MMD as a loss and as an instrument."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit.errors import InputError
from mikit.estimators.distribution import MMD
from mikit.functional.kernels import median_bandwidth
from mikit.functional.mmd import mmd2
from mikit.functional.mmd_error import mmd2_pointwise


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
    assert torch.equal(contributions, mmd2_pointwise(x, y, bandwidth=2.0))
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
    optimiser = torch.optim.Adam([shift], lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        MMD()(x + shift, y).backward()
        optimiser.step()
    # The means of both samples are known to about 0.12 together.
    assert torch.allclose(shift.detach(), torch.full((3,), 2.0), atol=0.4)


def test_samples_of_different_sizes() -> None:
    x, y = _samples(120, 70, 3, 1.0)
    assert MMD().estimate(x, y).item() > 4 * MMD().standard_error(x, y) > 0
    assert MMD().pointwise(x, y) is None
    assert not MMD().needs_pairs
    assert MMD(paired=True).needs_pairs
    with pytest.raises(InputError, match="120 rows and y has 70"):
        MMD(paired=True).estimate(x, y)
    with pytest.raises(InputError, match="groups belong"):
        MMD().standard_error(x, y, groups=torch.arange(120))


def test_equal_laws_have_a_finite_standard_error_that_fits() -> None:
    values, squares = [], []
    for seed in range(200):
        x, y = _samples(50, 50, seed)
        instrument = MMD(2.0)
        error = instrument.standard_error(x, y)
        assert 0 < error < 0.05
        values.append(instrument.estimate(x, y).item())
        squares.append(error**2)
    spread = torch.tensor(values).std().item()
    assert abs(sum(values) / 200) < 3 * spread / math.sqrt(200)
    # The stated error is too large by about a fifth here; 200 values of a skewed law fix the spread to about a tenth.
    assert 0.85 < math.sqrt(sum(squares) / 200) / spread < 1.4


def test_groups_of_copies_count_once() -> None:
    x, y = _samples(60, 60, 4, 1.0)
    groups = torch.arange(60).repeat_interleave(4)
    copied = MMD(2.0).standard_error(x.repeat_interleave(4, 0), y.repeat_interleave(4, 0), groups=groups)
    assert copied == pytest.approx(MMD(2.0).standard_error(x, y), rel=0.15)


def test_what_cannot_be_used_is_refused() -> None:
    x, _ = _samples(10, 10, 5)
    with pytest.raises(InputError, match="3 columns and y has 2"):
        MMD().estimate(x, x[:, :2])
    with pytest.raises(InputError, match="bandwidth is -1"):
        MMD(-1.0)
    with pytest.raises(InputError, match=r"\(n, d\)"):
        MMD().estimate(x[:, :, None], x)
