"""ReducedKSG: codes of wide rows, read beside Gaussian samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit import InputError, ReducedKSG, measure
from mikit.bench.distributions.suites import task_named
from mikit.functional.gaussian.canonical import gaussian_mi
from mikit.functional.neighbors.anchored import anchored_ksg


def _planted(n: int, latents: int, rho: float, d: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, latents, generator=g)
    w = rho * z + math.sqrt(1 - rho**2) * torch.randn(n, latents, generator=g)
    x, y = (one @ torch.randn(latents, d, generator=g) + torch.randn(n, d, generator=g) for one in (z, w))
    return x, y


def _fitted(x: Tensor, y: Tensor, seed: int = 0) -> ReducedKSG:
    third = x.shape[0] // 3
    estimator = ReducedKSG()
    estimator.fit(
        x[:third],
        y[:third],
        select=(x[third : 2 * third], y[third : 2 * third]),
        generator=torch.Generator().manual_seed(seed),
    )
    return estimator


def test_planted_latents_in_many_columns() -> None:
    x, y = _planted(2400, 4, 0.8, 300, seed=0)
    m = measure(x, y, ReducedKSG(), permutations=1)
    truth = -2 * math.log(1 - 0.64)
    assert m.interval[0] - 0.05 < truth < m.interval[1] + 0.05
    assert m.null is not None
    assert abs(m.null.mean) < 0.15
    assert m.verdict != "unreliable"


def test_independent_rows_with_more_columns_than_rows_give_about_0() -> None:
    g = torch.Generator().manual_seed(1)
    m = measure(torch.randn(500, 700, generator=g), torch.randn(500, 600, generator=g), "reduced_ksg", permutations=0)
    assert m.standard_error is not None
    assert abs(m.value) < 4 * m.standard_error + 0.02


def test_one_gaussian_pair_reads_its_closed_form() -> None:
    x, y = _planted(3000, 1, 0.9, 20, seed=2)
    estimator = _fitted(x, y)
    # Noise on twenty columns leaves ρ² a few percent lower on either side.
    truth = -0.5 * math.log(1 - 0.81)
    value = float(estimator.estimate(x[2000:], y[2000:]))
    assert truth - 0.3 < value < truth + 0.1


def test_the_state_dict_holds_all_that_was_found() -> None:
    x, y = _planted(600, 2, 0.8, 30, seed=3)
    estimator = _fitted(x, y)
    other = ReducedKSG()
    other.load_state_dict(estimator.state_dict())
    assert float(other.estimate(x[400:], y[400:])) == float(estimator.estimate(x[400:], y[400:]))
    again = _fitted(*_planted(600, 3, 0.8, 40, seed=4))
    again.load_state_dict(estimator.state_dict())
    assert float(again.estimate(x[400:], y[400:])) == float(estimator.estimate(x[400:], y[400:]))


def test_the_same_seed_gives_the_same_value_and_column_scales_do_not_matter() -> None:
    x, y = _planted(600, 2, 0.8, 30, seed=5)
    x, y = x.double(), y.double()
    scale = torch.exp(3 * torch.randn(30, generator=torch.Generator().manual_seed(6))).double()
    value = float(_fitted(x, y).estimate(x[400:], y[400:]))
    assert float(_fitted(x, y).estimate(x[400:], y[400:])) == value
    assert float(_fitted(x * scale, y).estimate(x[400:] * scale, y[400:])) == pytest.approx(value, abs=0.02)


def test_fit_without_select_rows_sets_some_aside() -> None:
    x, y = _planted(600, 2, 0.8, 30, seed=7)
    estimator = ReducedKSG()
    estimator.fit(x[:400], y[:400], generator=torch.Generator().manual_seed(0))
    assert float(estimator.estimate(x[400:], y[400:])) > 0.5


def test_the_checks_name_the_codes_and_their_contrast() -> None:
    x, y = _planted(900, 1, 0.95, 20, seed=8)
    estimator = _fitted(x, y)
    codes, contrast = estimator.checks(x[600:], y[600:])
    assert codes.figure == estimator.reduction().pairs
    assert estimator.reduction().description in codes.sentence
    assert contrast.outcome == "pass"


def test_neighbors_take_back_part_of_what_a_repeated_code_counts_twice() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(800, 1, generator=g)
    b = 0.9 * a + math.sqrt(0.19) * torch.randn(800, 1, generator=g)
    both = torch.cat([a, a.square()], 1), torch.cat([b, b.square()], 1)
    twice = float(anchored_ksg(*both, generator=g))
    assert twice < float(gaussian_mi(*both)) - 0.1


def test_what_cannot_be_measured_is_refused() -> None:
    x, y = _planted(600, 2, 0.8, 30, seed=9)
    with pytest.raises(InputError, match="not fitted"):
        ReducedKSG().estimate(x, y)
    with pytest.raises(InputError, match="most is 0"):
        ReducedKSG(most=0)
    with pytest.raises(TypeError, match="no gradient"):
        ReducedKSG()(x, y)
    estimator = _fitted(x, y)
    with pytest.raises(InputError, match="at least"):
        estimator.estimate(x[:4], y[:4])
    with pytest.raises(InputError, match="width 30"):
        estimator.estimate(x[:, :20], y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear-1000-columns-2", "mlp-1000-columns-2"])
def test_ten_latents_in_a_thousand_columns_are_within_a_fifth_of_a_nat(name: str) -> None:
    task = task_named("wide", name)
    for seed in (0, 1):
        x, y = task.draw(4000, seed)
        m = measure(x, y, ReducedKSG(), rotations=5, permutations=0)
        assert abs(m.value - task.information) < 0.2
