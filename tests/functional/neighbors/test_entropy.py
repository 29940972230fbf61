"""Nearest-neighbor entropies against naive loops and closed forms, and the information made of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import digamma, gamma
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.neighbors import entropy as nearest_entropy
from mikit.functional.neighbors.entropy import (
    entropy_weights,
    kozachenko_leonenko,
    weighted_kl_mi,
    weighted_kl_pointwise,
    weighted_kozachenko_leonenko,
)
from mikit.functional.neighbors.ksg import ksg

DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": torch.clone,
    "uniform": torch.special.ndtr,
    "half-cube": lambda rows: rows.sign() * rows.abs() ** 1.5,
}


def _rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _pair(n: int, d: int, rho: float, seed: int) -> tuple[Tensor, Tensor]:
    both = _rows(n, 2 * d, seed)
    return both[:, :d], rho * both[:, :d] + math.sqrt(1 - rho**2) * both[:, d:]


def _by_loops(x: Tensor, weights: dict[int, float]) -> float:
    n, d = x.shape
    volume = math.pi ** (d / 2) / float(gamma(d / 2 + 1))
    rows, total = x.tolist(), 0.0
    for i in range(n):
        near = sorted(math.dist(rows[i], rows[j]) for j in range(n) if j != i)
        for k, w in weights.items():
            total += w * (digamma(n) - digamma(k) + math.log(volume) + d * math.log(near[k - 1]))
    return float(total / n)


@pytest.mark.parametrize("d", [1, 2, 5, 12])
@pytest.mark.parametrize("k", [1, 4])
def test_entropy_follows_the_naive_loop(d: int, k: int) -> None:
    x = _rows(80, d, seed=0)
    assert kozachenko_leonenko(x, k).item() == pytest.approx(_by_loops(x, {k: 1.0}), abs=1e-11)
    weights = {j + 1: float(w) for j, w in enumerate(entropy_weights(20, d)) if w}
    # Weights of 12 columns are large, and so is what they do to rounding.
    assert weighted_kozachenko_leonenko(x).item() == pytest.approx(_by_loops(x, weights), abs=1e-9)


@pytest.mark.parametrize("k", [4, 5, 20, 50])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 6, 8, 13])
def test_weights_meet_their_conditions(k: int, d: int) -> None:
    weights = entropy_weights(k, d)
    assert weights.shape == (k,)
    assert weights.sum() == pytest.approx(1, abs=1e-10)
    j = np.arange(1, k + 1)
    for power in range(1, d // 4 + 1):
        terms = weights * gamma(j + 2 * power / d) / gamma(j)
        assert abs(terms.sum()) < 1e-9 * np.abs(terms).sum() + 1e-12
    allowed = {i * k // d for i in range(1, d + 1)} - {0}
    assert {int(n) + 1 for n in np.flatnonzero(weights)} <= allowed
    if d < 4:
        np.testing.assert_allclose(weights[weights != 0], 1 / len(allowed), atol=1e-12)


def test_weights_cancel_what_a_density_of_known_curvature_adds() -> None:
    # Where the log density bends as the square of the radius, the mean of log ρ_j^d moves by Γ(j + 2/d) / Γ(j).
    d, k = 6, 20
    j = np.arange(1, k + 1)
    for bend in (0.3, -2.0):
        moved = digamma(j) + bend * gamma(j + 2 / d) / gamma(j)
        assert (entropy_weights(k, d) * (moved - digamma(j))).sum() == pytest.approx(0, abs=1e-10)
        assert abs(moved[2] - digamma(3)) > 0.1


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 6])
def test_gaussian_entropy(d: int) -> None:
    truth = d * 0.5 * math.log(2 * math.pi * math.e)
    for estimate in (kozachenko_leonenko, weighted_kozachenko_leonenko):
        values = [estimate(_rows(2000, d, seed=s)).item() - truth for s in range(4)]
        # The bias grows to 0.1 in six columns; the standard error of four samples is below 0.03.
        assert abs(np.mean(values)) < 0.09 + 0.015 * d


@pytest.mark.parametrize("d", [4, 5])
def test_weights_take_bias_off_smooth_densities(d: int) -> None:
    truth = d * 0.5 * math.log(2 * math.pi * math.e)
    plain, weighted = [], []
    for seed in range(12):
        x = _rows(1500, d, seed=50 + seed)
        plain.append(kozachenko_leonenko(x, 5).item() - truth)
        weighted.append(weighted_kozachenko_leonenko(x).item() - truth)
    assert np.mean(plain) < -0.03
    assert abs(np.mean(weighted)) < abs(np.mean(plain))


# In one column each, and in two of heavy tails, both are biased alike, by some hundredths.
@pytest.mark.parametrize(("d", "distribution"), [(2, "uniform"), (3, "uniform"), (3, "half-cube")])
def test_weighted_information_is_less_biased_than_plain(d: int, distribution: str) -> None:
    truth = -0.5 * d * math.log(1 - 0.7**2)
    plain, weighted, nearest = [], [], []
    for seed in range(5):
        x, y = (DISTRIBUTIONS[distribution](rows) for rows in _pair(1500, d, 0.7, seed=70 + seed))
        parts = (kozachenko_leonenko(rows, 3, whiten=True).item() for rows in (x, y, torch.cat([x, y], dim=1)))
        h_x, h_y, h_xy = parts
        plain.append(h_x + h_y - h_xy - truth)
        weighted.append(weighted_kl_mi(x, y).item() - truth)
        nearest.append(ksg(x, y).item() - truth)
    assert abs(np.mean(weighted)) < 0.7 * abs(np.mean(plain))
    assert abs(np.mean(weighted)) < abs(np.mean(nearest))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("rho", [0.0, 0.7, 0.999])
def test_gaussian_information(d: int, rho: float) -> None:
    contributions = weighted_kl_pointwise(*_pair(3000, d, rho, seed=3))
    truth = -0.5 * d * math.log(1 - rho**2)
    error = 1.5 * contributions.std().item() / math.sqrt(3000)
    assert abs(contributions.mean().item() - truth) < 3 * error + 0.02


def test_strong_dependence_has_no_ceiling() -> None:
    x, y = _pair(500, 1, 1 - 1e-10, seed=4)
    truth = -0.5 * math.log(1 - (1 - 1e-10) ** 2)
    assert weighted_kl_mi(x, y).item() == pytest.approx(truth, abs=0.2)  # 11.2 nats from 500 rows
    assert ksg(x, y).item() < math.log(500)


def test_entropy_moves_with_the_units_and_information_does_not() -> None:
    x, y = _pair(600, 2, 0.7, seed=5)
    mixing = torch.tensor([[3.0, 1.0], [0.5, -2.0]], dtype=torch.float64)
    added = math.log(abs(float(torch.linalg.det(mixing))))
    for estimate in (kozachenko_leonenko, weighted_kozachenko_leonenko):
        assert estimate(5 * x).item() == pytest.approx(estimate(x).item() + 2 * math.log(5), abs=1e-10)
        assert estimate(x + 1000).item() == pytest.approx(estimate(x).item(), abs=1e-8)
        white = estimate(x, whiten=True).item()
        assert estimate(x @ mixing, whiten=True).item() == pytest.approx(white + added, abs=1e-9)
    value = weighted_kl_mi(x, y).item()
    assert weighted_kl_mi(y, x).item() == pytest.approx(value, abs=1e-10)
    assert weighted_kl_mi(x @ mixing + 7, -1e6 * y).item() == pytest.approx(value, abs=1e-8)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    assert weighted_kl_mi(x[order], y[order]).item() == pytest.approx(value, abs=1e-10)
    np.testing.assert_allclose(weighted_kl_pointwise(x[order], y[order]), weighted_kl_pointwise(x, y)[order], atol=1e-9)
    constant = torch.cat([x, torch.full((600, 1), 4.0)], dim=1)
    assert weighted_kl_mi(constant, y).item() == pytest.approx(value, abs=1e-12)
    assert weighted_kl_mi(torch.full((600, 2), 4.0), y).item() == 0
    assert weighted_kl_mi(x.float(), y.float()).item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("d", [1, 3, 7])
def test_trees_and_all_pairs_agree(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = 100 + 1e-3 * _rows(700, d, seed=6)
    tree = nearest_entropy._distances(x, 12)
    monkeypatch.setattr(nearest_entropy, "_TREE_WIDTH", 0)
    torch.testing.assert_close(nearest_entropy._distances(x - x.mean(0), 12), tree, rtol=1e-8, atol=0)


@pytest.mark.parametrize("d", [1, 2])
def test_a_permutation_leaves_nothing(d: int) -> None:
    x, y = _pair(1500, d, 0.9, seed=7)
    contributions = weighted_kl_pointwise(x, y[torch.randperm(1500, generator=torch.Generator().manual_seed(1))])
    error = 1.5 * contributions.std().item() / math.sqrt(1500)
    assert abs(contributions.mean().item()) < 3 * error + 0.01


def test_independent_rows_give_values_on_both_sides_of_zero() -> None:
    values = [weighted_kl_mi(*_pair(500, 1, 0.0, seed=200 + s)).item() for s in range(20)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values, ddof=1) / math.sqrt(20) + 0.01


def test_ties_are_refused_with_a_sentence() -> None:
    x, y = _pair(500, 1, 0.7, seed=8)
    with pytest.raises(InputError, match=r"of the 500 samples of x coincide with 20 others or more; the first is row"):
        weighted_kl_mi(x.relu(), y)
    with pytest.raises(InputError, match="use ksg, which counts coincident samples"):
        weighted_kl_mi(x, (y > 0).double())
    with pytest.raises(InputError, match="coincide with 3 others"):
        kozachenko_leonenko(x.round())
    # What is not used does not matter: pairs that coincide leave the third neighbor where it was.
    twice = torch.cat([x, x[:5]])
    assert math.isfinite(kozachenko_leonenko(twice, 3).item())


def test_what_cannot_be_used_is_refused() -> None:
    x, y = _pair(50, 2, 0.7, seed=9)
    with pytest.raises(InputError, match="x has 50 samples and y has 49"):
        weighted_kl_mi(x, y[:-1])
    with pytest.raises(InputError, match="x and y together are linearly dependent"):
        weighted_kl_mi(x, 2 * x)
    with pytest.raises(InputError, match="features of y are linearly dependent"):
        weighted_kl_mi(x, torch.cat([y, y[:, :1]], dim=1))
    with pytest.raises(InputError, match="linearly dependent"):
        kozachenko_leonenko(torch.cat([x, torch.ones(50, 1)], dim=1))
    with pytest.raises(InputError, match="30 samples for 30 features"):
        kozachenko_leonenko(_rows(30, 30, seed=0))
    with pytest.raises(InputError, match="at least 51"):
        kozachenko_leonenko(x, 50)
    with pytest.raises(InputError, match="x has no features"):
        kozachenko_leonenko(x[:, :0])
    with pytest.raises(InputError, match="first is row 3"):
        kozachenko_leonenko(torch.where(torch.arange(50)[:, None] == 3, math.nan, x))
    with pytest.raises(InputError, match="2 neighbors are too few to cancel the bias in 8 features: at least 3"):
        entropy_weights(2, 8)
    with pytest.raises(InputError, match="both must be at least 1"):
        entropy_weights(0, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [2, 6])
def test_a_gpu_gives_the_same(d: int) -> None:
    x, y = _pair(1500, d, 0.7, seed=10)
    on_gpu = weighted_kl_pointwise(x.cuda(), y.cuda()).cpu()
    torch.testing.assert_close(on_gpu, weighted_kl_pointwise(x, y), rtol=0, atol=1e-7)
