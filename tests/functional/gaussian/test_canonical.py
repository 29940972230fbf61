"""Gaussian information against closed forms, its exact bias, and what must not move it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata
from sklearn.cross_decomposition import CCA
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.gaussian.canonical import (
    bartlett_rank,
    canonical_form,
    cca,
    gaussian_mi,
    rank_gaussianise,
    wishart_bias,
)


def _pair(n: int, d: int, rho: float, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, d, generator=g, dtype=torch.float64)


def test_canonical_correlations_agree_with_scikit_learn() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=g) @ torch.randn(3, 3, generator=g)
    y = torch.cat([x @ torch.randn(3, 2, generator=g), torch.zeros(400, 2)], 1) + torch.randn(400, 4, generator=g)
    fitted = CCA(n_components=3, scale=False, max_iter=5000, tol=1e-12).fit(x.numpy(), y.numpy())
    u, v = fitted.transform(x.numpy(), y.numpy())
    expected = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(3)]
    assert cca(x, y).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("n", "d", "rho"), [(40, 5, 0.6), (40, 5, 0.0), (300, 20, 0.3)])
def test_the_bias_correction_is_exact_on_gaussian_data(n: int, d: int, rho: float) -> None:
    truth = -0.5 * d * math.log(1 - rho**2)
    values = torch.stack([gaussian_mi(*_pair(n, d, rho, seed)) for seed in range(300)])
    error = float(values.std() / math.sqrt(300))
    assert abs(float(values.mean()) - truth) < 4 * error
    assert wishart_bias(n, d, d) > 10 * error, "without the correction the test above would fail"


def test_the_bias_is_the_mean_wishart_log_determinant() -> None:
    assert wishart_bias(5000, 50, 50) == pytest.approx(50 * 50 / (2 * 5000), rel=0.02)
    with pytest.raises(InputError, match="infinite"):
        wishart_bias(20, 10, 10)


def test_the_log_ratio_averages_to_the_plug_in_value() -> None:
    x, y = _pair(500, 3, 0.7, 1)
    form = canonical_form(x, y)
    assert float(form.log_ratio(x, y).mean()) == pytest.approx(float(gaussian_mi(x, y, correct_bias=False)), abs=1e-12)


def test_the_log_ratio_is_the_density_ratio() -> None:
    x, y = _pair(2000, 1, 0.6, 2)
    form = canonical_form(x, y)
    z = torch.cat([x, y], 1) - torch.cat([x, y], 1).mean(0)
    joint = torch.distributions.MultivariateNormal(torch.zeros(2).double(), z.T @ z / 2000)
    sides = [torch.distributions.Normal(0.0, z[:, i].square().mean().sqrt()) for i in (0, 1)]
    expected = joint.log_prob(z) - sides[0].log_prob(z[:, 0]) - sides[1].log_prob(z[:, 1])
    assert torch.allclose(form.log_ratio(x, y), expected, atol=1e-10)


def test_invertible_linear_maps_do_not_move_it() -> None:
    x, y = _pair(400, 3, 0.5, 3)
    g = torch.Generator().manual_seed(9)
    mixed = x @ torch.randn(3, 3, generator=g, dtype=torch.float64) * 1e3 + 1e6
    assert float(gaussian_mi(mixed, y)) == pytest.approx(float(gaussian_mi(x, y)), abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_collinear_and_constant_columns_add_nothing(offset: float) -> None:
    x, y = _pair(400, 2, 0.5, 4)
    wide = torch.cat([x, x[:, :1] - 2 * x[:, 1:], torch.full((400, 1), 7.0)], 1) + offset
    assert float(gaussian_mi(wide, y)) == pytest.approx(float(gaussian_mi(x, y)), abs=1e-6)


@pytest.mark.parametrize("n", [10_000, 1_000_000])
@pytest.mark.parametrize("constant", [0.0, 3.0, 1e9, 0.1])
def test_a_constant_says_nothing(n: int, constant: float) -> None:
    y = torch.randn(n, 1, generator=torch.Generator().manual_seed(5))
    assert abs(float(gaussian_mi(torch.full((n, 1), constant), y))) <= 1e-6


def test_an_exact_relation_is_refused() -> None:
    x, y = _pair(200, 3, 0.5, 6)
    with pytest.raises(InputError, match="1 linear combination of x equals a combination of y exactly"):
        gaussian_mi(x, torch.cat([y, x[:, :1] + x[:, 1:2]], 1))


def test_too_few_rows_are_refused() -> None:
    g = torch.Generator().manual_seed(0)
    with pytest.raises(InputError, match="more samples than features"):
        gaussian_mi(torch.randn(8, 4, generator=g), torch.randn(8, 4, generator=g))


def test_normal_scores_against_scipy() -> None:
    g = torch.Generator().manual_seed(7)
    x = torch.randint(0, 6, (200, 3), generator=g).double()
    x[:, 2] = torch.randn(200, generator=g)
    expected = np.stack([norm.ppf((rankdata(column) - 0.5) / 200) for column in x.numpy().T], 1)
    expected /= np.sqrt((expected**2).mean(0))
    assert np.allclose(rank_gaussianise(x).numpy(), expected, atol=1e-9)
    assert torch.equal(rank_gaussianise(torch.full((5, 2), 3.0)), torch.zeros(5, 2, dtype=torch.float64))


def test_bartletts_test_finds_the_planted_rank() -> None:
    g = torch.Generator().manual_seed(8)
    hits = 0
    for _ in range(40):
        x, y = torch.randn(2000, 6, generator=g), torch.randn(2000, 6, generator=g)
        y[:, :2] = 0.5 * x[:, :2] + 0.8 * y[:, :2]
        hits += bartlett_rank(cca(x, y), 2000, 6, 6) == 2
    assert hits >= 36
