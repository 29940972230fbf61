"""WeightedKL as an estimator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import mikit
from mikit.core.errors import InputError
from mikit.estimators.neighbors.weighted_kl import WeightedKL
from mikit.functional.neighbors.entropy import weighted_kl_mi
from mikit.testing import check_estimator


def _pair(n: int, d: int, rho: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, d, generator=g)


def test_it_keeps_the_contract() -> None:
    check_estimator(WeightedKL())


def test_it_measures_what_the_formula_says() -> None:
    x, y = _pair(2000, 1, 0.8, seed=2)
    m = mikit.measure(x, y, WeightedKL())
    assert m.value == pytest.approx(weighted_kl_mi(x, y).item(), abs=1e-12)
    assert m.interval[0] < -0.5 * math.log(1 - 0.64) < m.interval[1]
    assert m.ceiling is None
    assert m.verdict == "trustworthy"


def test_what_has_no_density_is_refused() -> None:
    x, y = _pair(300, 2, 0.8)
    with pytest.raises(InputError, match="use ksg"):
        mikit.measure(x, y.relu(), WeightedKL())
    with pytest.raises(InputError, match="linearly dependent"):
        WeightedKL().estimate(x, torch.cat([x, y], dim=1))


def test_the_dimension_is_flagged() -> None:
    outcomes = [WeightedKL().checks(*_pair(500, d, 0.0))[0].outcome for d in (2, 5, 10)]
    assert outcomes == ["pass", "warn", "fail"]


def test_refusals() -> None:
    x, y = _pair(50, 2, 0.8)
    with pytest.raises(TypeError, match="not a loss"):
        WeightedKL()(x, y)
    with pytest.raises(InputError, match="k is 0"):
        WeightedKL(0)
    with pytest.raises(InputError, match="at least 22"):
        WeightedKL().estimate(x[:21], y[:21])
    wide = torch.randn(100, 60)
    with pytest.raises(InputError, match="at least 122"):
        mikit.measure(wide, wide.flip(0), WeightedKL())
