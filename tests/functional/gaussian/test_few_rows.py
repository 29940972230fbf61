"""Divergences of Gaussians of few rows: those of the whole covariances, values and gradients."""

from __future__ import annotations

import pytest
import torch

from mikit.functional import gaussian_kl
from mikit.functional.gaussian.divergence import FewRowGaussian, divergence_of_few_rows
from mikit.functional.gaussian.shrinkage import centered_rows, ledoit_wolf_weight


def dense(x: torch.Tensor, y: torch.Tensor, weights: tuple[float, float]) -> torch.Tensor:
    """The formula, with covariances as matrices and torch's own gradient."""
    distributions = []
    for rows, weight in zip((x, y), weights, strict=True):
        covariance = torch.cov(rows.T, correction=0)
        scale = covariance.trace() / rows.shape[1]
        distributions.append(
            (rows.mean(0), (1 - weight) * covariance + weight * scale * torch.eye(rows.shape[1]).double())
        )
    normals = [torch.distributions.MultivariateNormal(mean, covariance) for mean, covariance in distributions]
    return torch.distributions.kl_divergence(*normals)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 9, 40), (2, 30, 64), (30, 2, 31), (8, 8, 9)])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 0.2), (0.01, 0.9)])
def test_it_is_the_dense_formula(n: int, m: int, d: int, weights: tuple[float, float]) -> None:
    g = torch.Generator().manual_seed(n)
    x, y = (torch.randn(rows, d, generator=g, dtype=torch.float64).relu() + 1 for rows in (n, m))
    x.requires_grad_()
    y.requires_grad_()
    wanted = dense(x, y, weights)
    gradients = torch.autograd.grad(wanted, (x, y))
    fitted = [
        FewRowGaussian.fitted(*centered_rows(rows.detach()), torch.tensor(weight, dtype=torch.float64))
        for rows, weight in zip((x, y), weights, strict=True)
    ]
    assert fitted[0] is not None
    assert fitted[1] is not None
    value, *found = divergence_of_few_rows((True, True), x.detach(), y.detach(), fitted[0], fitted[1])
    assert value.item() == pytest.approx(wanted.item(), rel=1e-9)
    for own, other in zip(found, gradients, strict=True):
        assert (own - other).norm() < 1e-8 * other.norm()


def test_the_public_function_takes_it_and_agrees() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 50, generator=g).double(), torch.randn(20, 50, generator=g).double()
    x.requires_grad_()
    weights = (ledoit_wolf_weight(x).item(), ledoit_wolf_weight(y).item())
    value, wanted = gaussian_kl(x, y), dense(x, y, weights)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-9)
    own, other = (torch.autograd.grad(one, x)[0] for one in (value, wanted))
    assert (own - other).norm() < 1e-8 * other.norm()


def test_it_leaves_what_is_close_to_singular_to_whole_covariances() -> None:
    rows, mean = centered_rows(torch.randn(5, 20, dtype=torch.float64))
    assert FewRowGaussian.fitted(rows, mean, rows.new_tensor(1e-6)) is None
    assert FewRowGaussian.fitted(torch.zeros_like(rows), mean, rows.new_tensor(0.5)) is None
    many, mean = centered_rows(torch.randn(30, 20, dtype=torch.float64))
    assert FewRowGaussian.fitted(many, mean, rows.new_tensor(0.5)) is None
