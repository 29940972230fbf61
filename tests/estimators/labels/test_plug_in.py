"""PlugIn as an estimator."""

from __future__ import annotations

import math
from typing import final

import numpy as np
import pytest
import torch
from torch import Tensor

import mikit
from mikit.core.errors import InputError
from mikit.estimators.base import Estimator
from mikit.estimators.labels.plug_in import PlugIn
from mikit.functional.labels.plug_in import plug_in_mi
from mikit.testing import check_estimator


def _channel(n: int, flipped: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=g)
    return (y ^ (torch.rand(n, generator=g) < flipped))[:, None], y


@final
class _OnSigns(Estimator):
    """PlugIn on the signs of numbers: the contract suite draws numbers, which are categories only so."""

    name = "plug_in_on_signs"
    unit = "nats"
    kind = "estimate"
    explains = "labels"
    differentiable = False

    def __init__(self, inner: PlugIn) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x, y)

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner.estimate((x > 0).to(x), y)

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner.pointwise((x > 0).to(x), y)

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        return self.inner.standard_error((x > 0).to(x), y, groups=groups)

    def ceiling(self, n: int) -> float:
        return self.inner.ceiling(n)


def test_it_keeps_the_contract() -> None:
    check_estimator(_OnSigns(PlugIn()))
    check_estimator(_OnSigns(PlugIn("miller-madow")))


def test_it_measures_what_the_formula_says() -> None:
    x, y = _channel(2000, 0.1)
    truth = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    m = mikit.measure(x, labels=y, estimator=PlugIn())
    assert m.value == pytest.approx(plug_in_mi(x, y).item(), abs=1e-12)
    assert m.interval[0] < truth < m.interval[1]
    assert all("repeat another one" in reason for reason in m.reasons)  # categories do repeat
    assert mikit.measure(x[:, 0].numpy(), labels=y, estimator=PlugIn()).value == m.value


def test_the_error_of_independent_categories_is_that_of_the_counts() -> None:
    values, errors = [], []
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        x, y = torch.randint(5, (400, 1), generator=g), torch.randint(4, (400,), generator=g)
        values.append(PlugIn().estimate(x, y).item())
        errors.append(PlugIn().standard_error(x, y))
    # 2n times the value has 12 degrees of freedom and variance 24; the spread of 60 values is known to a tenth.
    assert np.mean(errors) > math.sqrt(24) / 800
    assert 0.7 < np.std(values) / np.mean(errors) < 1.4
    assert min(values) < 0 < max(values)


def test_groups_widen_the_error() -> None:
    x, y = _channel(200, 0.1)
    groups = torch.arange(200).repeat_interleave(5)
    many = PlugIn().standard_error(x.repeat_interleave(5, 0), y.repeat_interleave(5), groups=groups)
    assert many == pytest.approx(PlugIn().standard_error(x, y), rel=0.05)


def test_an_empty_table_is_flagged() -> None:
    g = torch.Generator().manual_seed(1)
    y = torch.randint(2, (300,), generator=g)
    outcomes = [
        PlugIn().checks(torch.randint(values, (300, 1), generator=g), y)[0].outcome for values in (4, 100, 1000)
    ]
    assert outcomes == ["pass", "warn", "fail"]
    check = PlugIn().checks(torch.randn(300, 3, generator=g), y)[0]
    assert check.figure == 1
    assert "For continuous features use Ross" in check.sentence


@pytest.mark.parametrize("correction", ["grassberger", "miller-madow", None])
def test_the_ceiling_holds_where_all_rows_differ(correction: str | None) -> None:
    estimator = PlugIn(correction)
    everything = torch.arange(50)
    value = estimator.estimate(everything[:, None], everything).item()
    assert value <= estimator.ceiling(50) + 1e-9
    assert value > estimator.ceiling(50) - 0.02


def test_refusals() -> None:
    x, y = _channel(20, 0.1)
    with pytest.raises(TypeError, match="no gradient"):
        PlugIn()(x, y)
    with pytest.raises(InputError, match='correction is "jackknife"'):
        PlugIn("jackknife")
    with pytest.raises(InputError, match="Pass rows of categories"):
        PlugIn().estimate(x[:, 0], y)
    with pytest.raises(InputError, match="20 samples and y has 19"):
        PlugIn().estimate(x, y[:-1])
