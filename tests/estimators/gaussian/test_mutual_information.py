"""GaussianMI as an instrument and as a loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit import GaussianMI, InputError


def _pair(n: int, d: int, nats: float, seed: int) -> tuple[Tensor, Tensor]:
    rho = math.sqrt(1 - math.exp(-2 * nats / d))
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, d, generator=g)


@pytest.mark.parametrize("copula", [False, True])
@pytest.mark.parametrize("nats", [0.0, 2.0])
def test_the_interval_covers_the_truth(copula: bool, nats: float) -> None:
    instrument = GaussianMI(copula=copula)
    covered = 0
    for seed in range(100):
        x, y = _pair(800, 5, nats, seed)
        covered += abs(float(instrument.estimate(x, y)) - nats) < 1.96 * instrument.standard_error(x, y)
    # 95 expected; a binomial with p = .95 falls below 87 once in a thousand times.
    assert covered >= 87


def test_held_out_rows_cost_what_was_overfitted() -> None:
    x, y = _pair(300, 20, 2.0, 0)
    instrument = GaussianMI(held_out=True)
    instrument.fit(x[:150], y[:150], generator=torch.Generator())
    seen = float(instrument.estimate(x[:150], y[:150]))
    unseen = float(instrument.estimate(x[150:], y[150:]))
    assert unseen < 2.0 < seen


def test_shrinkage_helps_where_rows_are_few() -> None:
    x, y = _pair(2060, 30, 6.0, 1)
    values = {}
    for shrinkage in (0.0, "ledoit-wolf"):
        instrument = GaussianMI(held_out=True, shrinkage=shrinkage)
        instrument.fit(x[:62], y[:62], generator=torch.Generator())
        values[shrinkage] = float(instrument.estimate(x[62:], y[62:]))
    assert values["ledoit-wolf"] > values[0.0] + 1.0


def test_more_columns_than_rows_work_with_shrinkage_only() -> None:
    x, y = _pair(60, 50, 10.0, 2)
    with pytest.raises(InputError, match="60 samples for 50 \\+ 50 independent features"):
        GaussianMI().estimate(x, y)
    instrument = GaussianMI(held_out=True, shrinkage="ledoit-wolf")
    instrument.fit(x[:40], y[:40], generator=torch.Generator())
    assert math.isfinite(float(instrument.estimate(x[40:], y[40:])))


def test_the_copula_is_blind_to_monotone_maps() -> None:
    x, y = _pair(500, 3, 1.0, 3)
    instrument = GaussianMI(copula=True)
    assert float(instrument.estimate(x.exp(), y**3)) == pytest.approx(float(instrument.estimate(x, y)), abs=1e-9)


def test_the_loss_tracks_the_estimate_and_trains_the_student() -> None:
    x, y = _pair(2000, 4, 1.5, 4)
    assert float(GaussianMI()(x, y)) == pytest.approx(-1.5, abs=0.1)
    weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    source = torch.cat([x, torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))], 1)
    optimiser = torch.optim.Adam([weight], lr=0.05)
    first = float(GaussianMI()(source @ weight.detach(), y))
    for _ in range(60):
        optimiser.zero_grad()
        GaussianMI()(source @ weight, y).backward()
        optimiser.step()
    assert float(GaussianMI()(source @ weight.detach(), y)) < first - 0.5


def test_the_gradient_is_right() -> None:
    g = torch.Generator().manual_seed(5)
    x = torch.randn(12, 2, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.randn(12, 3, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: GaussianMI()(a, y), (x,))


@pytest.mark.parametrize("shrinkage", [-0.1, 1.0, "oas"])
def test_a_bad_shrinkage_is_refused(shrinkage: float | str) -> None:
    with pytest.raises(InputError, match="shrinkage is"):
        GaussianMI(shrinkage=shrinkage, held_out=True)
    with pytest.raises(InputError, match="needs held_out=True"):
        GaussianMI(shrinkage=0.2)


def test_an_unfitted_held_out_instrument_says_so() -> None:
    x, y = _pair(50, 2, 1.0, 6)
    with pytest.raises(InputError, match="is not fitted"):
        GaussianMI(held_out=True).estimate(x, y)
