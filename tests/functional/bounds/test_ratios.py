"""The density-ratio objectives where the best critic is known, and invalid input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional import anchored_infonce, dv, infonce, jsd, nwj, smile


def embedded_pair(rho: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return embeddings whose products are the log density ratio of a Gaussian pair with correlation ``rho``."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, generator=generator, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    gain = 1 / (1 - rho**2)
    ones = torch.ones_like(x)
    # log p(x, y) / p(x) p(y) = -log(1 - rho²) / 2 + gain (rho x y - rho² (x² + y²) / 2)
    u = torch.stack([gain * rho * x, -gain * rho**2 * x.square() / 2, ones, ones * -0.5 * math.log(1 - rho**2)], dim=1)
    v = torch.stack([y, ones, -gain * rho**2 * y.square() / 2, ones], dim=1)
    return u, v


def shifted(u: Tensor, amount: float) -> Tensor:
    """Return the embeddings of x with every score larger by ``amount``."""
    u = u.clone()
    u[:, 3] += amount
    return u


# Twice the Jensen-Shannon divergence of the joint distribution and the product, by quadrature: what the best critic
# attains.
@pytest.mark.parametrize(("rho", "divergence"), [(0.3, 0.024), (0.6, 0.116), (0.9, 0.431), (0.99, 0.881)])
def test_at_the_best_critic_jsd_is_the_divergence_and_not_the_information(rho: float, divergence: float) -> None:
    values = torch.stack([jsd(*embedded_pair(rho, 1500, seed)) for seed in range(8)])
    # Four standard errors, and half of the last digit of the expected value.
    assert abs(values.mean() - divergence) < 4 * values.std() / math.sqrt(8) + 5e-4
    assert values.mean() < -0.5 * math.log(1 - rho**2)


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
def test_at_the_best_critic_the_others_read_the_information(rho: float) -> None:
    truth = -0.5 * math.log(1 - rho**2)
    pairs = [embedded_pair(rho, 1500, seed) for seed in range(8)]
    for name, values in {
        "nwj": torch.stack([nwj(shifted(u, 1.0), v) for u, v in pairs]),
        "dv": torch.stack([dv(u, v) for u, v in pairs]),
        "smile": torch.stack([smile(u, v, clip=20.0) for u, v in pairs]),
        "infonce": torch.stack([infonce(u, v) for u, v in pairs]),
    }.items():
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(8), name


@pytest.mark.parametrize("objective", [jsd, nwj, dv, anchored_infonce])
def test_the_best_critic_is_better_than_its_neighbors(objective: object) -> None:
    assert callable(objective)
    u, v = embedded_pair(0.7, 3000, 0)
    best = 1.0 if objective is nwj else 0.0
    at_best = objective(shifted(u, best), v)
    assert at_best > objective(shifted(0.7 * u, best), v)
    if objective is dv:  # blind to a constant
        assert torch.allclose(at_best, objective(shifted(u, 5.0), v))
    else:
        # A score is off by 0.4 where the spread of the best constant over draws of this size is below 0.1.
        assert at_best > objective(shifted(u, best + 0.4), v)
        assert at_best > objective(shifted(u, best - 0.4), v)


def test_infonce_does_not_see_a_function_of_x_and_the_anchored_form_does() -> None:
    u, v = embedded_pair(0.7, 200, 1)
    moved = u.clone()
    moved[:, 3] += torch.linspace(-1, 1, 200, dtype=torch.float64)
    assert torch.allclose(infonce(moved, v), infonce(u, v))
    assert anchored_infonce(moved, v, anchor=200.0) < anchored_infonce(u, v, anchor=200.0) - 0.01


def test_scores_far_beyond_the_range_of_exp() -> None:
    x, y = torch.eye(6) * 40, torch.eye(6) * 40  # positives score 1600, negatives 0
    assert jsd(x, y).item() == pytest.approx(-math.log(2) + 2 * math.log(2), rel=1e-6)
    assert dv(x, y).item() == pytest.approx(1600.0)
    assert dv(-x, y).item() == pytest.approx(-1600.0)
    assert smile(x, y).item() == pytest.approx(1600.0)
    shifted_y = y.roll(1, dims=0)  # negatives score 1600
    assert dv(x, shifted_y).item() == pytest.approx(-1600 + math.log(5), rel=1e-6)
    assert smile(x, shifted_y).item() == pytest.approx(-math.log((math.exp(5) + 4) / 5), rel=1e-5)
    assert nwj(x, shifted_y).item() == -math.inf
    assert jsd(x, shifted_y).item() == pytest.approx(-math.log(2) - (1600 + 4 * math.log(2)) / 5 + 2 * math.log(2))
    assert anchored_infonce(x, y).item() == pytest.approx(1 / 6 * -math.log(6), rel=1e-5)
    gradients = []
    for objective in (jsd, dv, smile, anchored_infonce):
        inputs = (x.clone().requires_grad_(), shifted_y.clone().requires_grad_())
        gradients += torch.autograd.grad(objective(*inputs), inputs)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_a_learned_temperature_gets_its_gradient() -> None:
    u, v = embedded_pair(0.5, 20, 2)
    temperature = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    for objective in (jsd, nwj, dv, smile, anchored_infonce, infonce):
        assert torch.autograd.gradcheck(lambda t, f=objective: f(u, v, temperature=t), (temperature,))


def test_only_the_wanted_gradients_are_formed() -> None:
    u, v = embedded_pair(0.5, 20, 3)
    for objective in (jsd, nwj, dv, smile, anchored_infonce, infonce):
        both = torch.autograd.grad(objective(u.requires_grad_(), v.requires_grad_()), (u, v))
        (left,) = torch.autograd.grad(objective(u, v.detach()), u)
        (right,) = torch.autograd.grad(objective(u.detach(), v), v)
        assert torch.allclose(left, both[0])
        assert torch.allclose(right, both[1])
        with torch.no_grad():
            assert not objective(u, v).requires_grad


@pytest.mark.parametrize("objective", [jsd, nwj, dv, smile, anchored_infonce])
def test_unusable_input_is_refused(objective: object) -> None:
    assert callable(objective)
    rows = torch.ones(4, 2)
    for x, y, message in [
        (rows[:1], rows[:1], "pair of samples"),
        (rows, rows[:3], "two equal"),
        (rows, torch.ones(4, 3), "two equal"),
        (rows, rows.to("meta"), "one device"),
    ]:
        with pytest.raises(InputError, match=message):
            objective(x, y)
    with pytest.raises(InputError, match="must be positive"):
        objective(rows, rows, temperature=-1.0)
    with pytest.raises(InputError, match="strip is 0; it must be at least 1"):
        objective(rows, rows, strip=0)


def test_limits_are_refused_too() -> None:
    rows = torch.ones(4, 2)
    with pytest.raises(InputError, match="clip is "):
        smile(rows, rows, clip=0.0)
    with pytest.raises(InputError, match="anchor is 0"):
        anchored_infonce(rows, rows, anchor=0.0)
    with pytest.raises(InputError, match="at least 3"):
        anchored_infonce(rows[:2], rows[:2])
