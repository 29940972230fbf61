"""Ross as an estimator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mikit
from mikit.core.errors import InputError
from mikit.estimators.neighbors.ross import Ross
from mikit.functional.neighbors.ross import ross_mi
from mikit.testing import check_estimator


def _classes(n: int, d: int, *, apart: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=g)
    return torch.randn(n, d, generator=g) + apart * y[:, None], y


def test_it_keeps_the_contract() -> None:
    check_estimator(Ross())
    check_estimator(Ross(k=8, metric="euclidean", scale=False))


def test_it_measures_what_the_formula_says() -> None:
    x, y = _classes(2000, 1)
    m = mikit.measure(x, labels=y, estimator=Ross())
    assert m.value == pytest.approx(ross_mi(x, y).item(), abs=1e-12)
    assert m.interval[0] < 0.337 < m.interval[1]  # the truth, by quadrature
    assert m.verdict == "trustworthy"
    assert m.estimator == "Ross(k=3, metric=None, scale=True)"
    named = mikit.measure(x, labels=[("even", "odd")[int(c)] for c in y], estimator=Ross())
    assert named.value == m.value


def test_small_classes_are_reported() -> None:
    x, y = _classes(400, 1)
    y[:30] = torch.arange(30) // 2 + 2  # fifteen classes of two
    y[30] = 99
    check, _ = Ross().checks(x, y)
    assert check.outcome == "warn"
    assert "31 of 400 samples are in classes of 3 samples or fewer; 1 class of one sample is left out" in check.sentence
    assert Ross().checks(x[31:], y[31:])[0].outcome == "pass"
    y[:60] = torch.arange(60) + 100
    assert Ross().checks(x, y)[0].outcome == "fail"
    assert Ross().pointwise(x, y).shape == (400,)


def test_wide_features_are_flagged() -> None:
    assert Ross().checks(*_classes(300, 20, apart=0.0))[1].outcome == "warn"
    assert Ross().checks(*_classes(300, 60, apart=0.0))[1].outcome == "fail"
    assert Ross().checks(*_classes(300, 3))[1].outcome == "pass"


def test_refusals() -> None:
    x, y = _classes(50, 2)
    with pytest.raises(TypeError, match="no gradient"):
        Ross()(x, y)
    with pytest.raises(InputError, match="k is 0"):
        Ross(0)
    with pytest.raises(InputError, match='metric is "l1"'):
        Ross(metric="l1")
    with pytest.raises(InputError, match="at least 5"):
        Ross().estimate(x[:4], y[:4])
    with pytest.raises(InputError, match=r"needs shape \(n, d\)"):
        Ross().estimate(x[:, :, None], y)
