"""Gaussian log-scores, difference of entropies and ridge, against torch.distributions, loops and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.distributions import Normal

from mikit.core.errors import InputError
from mikit.functional.vid.residuals import (
    difference_of_entropies,
    gaussian_nll,
    residual_variance,
    ridge_regression,
)


def sample(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(9, 3), (5, 3, 2, 4)])
def test_the_one_pass_form_equals_the_distribution(shape: tuple[int, ...]) -> None:
    mean, target, variance = sample(*shape), sample(*shape, seed=1), torch.tensor([0.2, 1.0, 7.0]).double()
    spread = variance.reshape(1, 3, *[1] * (len(shape) - 2))
    log_density = Normal(mean, spread.sqrt()).log_prob(target)
    axes = [0, *range(2, len(shape))]
    torch.testing.assert_close(gaussian_nll(mean, target, variance), -log_density.mean(axes))
    torch.testing.assert_close(residual_variance(mean, target), (mean - target).square().mean(axes))


@pytest.mark.parametrize("shape", [(9, 3), (5, 3, 2, 4)])
def test_difference_of_entropies_equals_the_distributions(shape: tuple[int, ...]) -> None:
    mean, target = sample(*shape), 3 + sample(*shape, seed=1)
    v, m_0, v_0 = torch.tensor([[0.2, 1.0, 7.0], [3.0, 2.0, 1.0], [1.0, 2.0, 0.5]]).double()
    across = (1, 3, *[1] * (len(shape) - 2))
    gain = Normal(mean, v.sqrt().reshape(across)).log_prob(target)
    gain = gain - Normal(m_0.expand(3).reshape(across), v_0.sqrt().reshape(across)).log_prob(target)
    reference = {"reference_mean": m_0, "reference_variance": v_0}
    torch.testing.assert_close(difference_of_entropies(mean, target, v, **reference), gain.flatten(1).sum(1))
    channels = torch.tensor([True, False, True])
    some = difference_of_entropies(mean, target, v, **reference, channels=channels)
    torch.testing.assert_close(some, gain[:, channels].flatten(1).sum(1))


def test_with_exact_variances_it_is_half_the_log_of_their_ratio() -> None:
    s, t = sample(500, 4), sample(500, 4, seed=1)
    t = 0.8 * s + 0.6 * t
    residual, total = residual_variance(0.8 * s, t), residual_variance(t.mean(0).expand_as(t), t)
    gain = difference_of_entropies(0.8 * s, t, residual, reference_mean=t.mean(0), reference_variance=total)
    torch.testing.assert_close(gain.mean(), 0.5 * (total / residual).log().sum())


def test_rescaling_the_target_moves_the_loss_by_the_log_and_the_estimate_not_at_all() -> None:
    mean, t, v = sample(40, 3), sample(40, 3, seed=1), torch.ones(3).double()
    moved = gaussian_nll(10 * mean, 10 * t, 100 * v) - gaussian_nll(mean, t, v)
    torch.testing.assert_close(moved, torch.full((3,), math.log(10)).double())
    plain = difference_of_entropies(mean, t, v, reference_mean=0 * v, reference_variance=2 * v)
    scaled = difference_of_entropies(10 * mean, 10 * t, 100 * v, reference_mean=0 * v, reference_variance=200 * v)
    torch.testing.assert_close(plain, scaled)


def test_gradcheck() -> None:
    mean, target = sample(3, 2, 2, 2).requires_grad_(), sample(3, 2, 2, 2, seed=1)
    variance = torch.tensor([0.3, 2.0]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: gaussian_nll(m, target, v), (mean, variance))
    assert torch.autograd.gradgradcheck(lambda m, v: gaussian_nll(m, target, v), (mean, variance))
    exact = target.clone().requires_grad_()  # residual 0
    assert torch.autograd.gradcheck(lambda m, v: gaussian_nll(m, target, v), (exact, variance))


@pytest.mark.parametrize("rows", [30, 200])
def test_ridge_equals_scikit_learn_at_the_best_penalty(rows: int) -> None:
    x, noise = sample(rows, 12), sample(rows, 1, seed=1)
    y = x[:, :1] - 0.5 * x[:, 1:2] + noise
    fit = ridge_regression(x, y)
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    best: tuple[float, Tensor, float] | None = None
    for penalty in torch.logspace(-6, 3, 19).double() * values.mean():
        peer = Ridge(alpha=rows * float(penalty)).fit(x.numpy(), y.numpy())
        rss = float((y - torch.from_numpy(peer.predict(x.numpy())).reshape(-1, 1)).square().mean())
        score = rss / (1 - (1 + float((values / (values + penalty)).sum())) / rows) ** 2
        if best is None or score < best[0]:
            best = score, torch.from_numpy(peer.coef_).reshape(1, -1), float(peer.intercept_[0])
    assert best is not None
    assert float(fit.variance) == pytest.approx(best[0], rel=1e-8)
    torch.testing.assert_close(fit.weight, best[1], atol=1e-8, rtol=1e-6)
    assert float(fit.bias) == pytest.approx(best[2], abs=1e-8)


@pytest.mark.parametrize(("rows", "width"), [(100, 5), (100, 60), (100, 500)])
def test_the_variance_is_the_error_on_new_rows(rows: int, width: int) -> None:
    # 40 targets of one law; their mean variance estimate against their mean squared error on 2000 new rows.
    x, fresh = sample(rows, width), sample(2000, width, seed=1)
    true = sample(width, 40, seed=2) / width**0.5
    y, fresh_y = x @ true + sample(rows, 40, seed=3), fresh @ true + sample(2000, 40, seed=4)
    fit = ridge_regression(x, y)
    error = (fresh_y - fresh @ fit.weight.T - fit.bias).square().mean(0)
    # One variance estimate scatters by about sqrt(2 / degrees of freedom left), here at most 0.25.
    assert float(fit.variance.mean() / error.mean()) == pytest.approx(1, abs=4 * 0.25 / 40**0.5)


def test_ridge_stands_constant_columns_and_few_rows() -> None:
    fit = ridge_regression(torch.ones(5, 3), sample(5, 2))
    torch.testing.assert_close(fit.weight, torch.zeros(2, 3).double())
    assert bool(torch.isfinite(ridge_regression(sample(3, 50), sample(3, 2)).weight).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_nll(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2)), "3 channels"),
        (lambda: gaussian_nll(torch.ones(2, 2), torch.ones(2, 3), torch.ones(3)), "must agree"),
        (lambda: residual_variance(torch.ones(3), torch.ones(3)), "must agree"),
        (lambda: ridge_regression(torch.ones(1, 2), torch.ones(1, 2)), "1 sample; it needs at least 2"),
        (lambda: ridge_regression(torch.ones(4, 2), torch.ones(3, 2)), "regression needs"),
    ],
)
def test_unusable_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
