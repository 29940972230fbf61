"""InfoNCE as a loss and as an estimator."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.estimators.bounds.infonce import InfoNCE
from mikit.estimators.fitting import Training
from mikit.functional.bounds.infonce_scores import infonce_from_scores

CRITICS = ("separable", "bilinear", "joint")
QUICK = Training(steps=150, batch=128, learning_rate=3e-3, weight_decay=0.3, every=25, patience=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_pair(n: int, d: int, nats: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    rho = math.sqrt(1 - math.exp(-2 * nats / d))
    x = torch.randn(n, d, generator=g)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, d, generator=g)


def fitted(x: Tensor, y: Tensor, training: Training | None = None) -> tuple[InfoNCE, Tensor, Tensor]:
    """Fit on 60 %, select on 20 %, and return the 20 % that were never seen."""
    a, b = int(0.6 * len(x)), int(0.8 * len(x))
    g = generator(1)
    estimator = InfoNCE.between(x[:a], y[:a], generator=g)
    estimator.fit(x[:a], y[:a], select=(x[a:b], y[a:b]), generator=g, training=training)
    return estimator, x[b:], y[b:]


def test_two_nats_in_five_dimensions() -> None:
    estimator, x, y = fitted(*gaussian_pair(6000, 5, 2.0))
    value, error = float(estimator.estimate(x, y)), estimator.standard_error(x, y)
    # A lower bound; the critic and the saturation at log 1200 = 7.1 cost about 0.05 nats.
    assert error is not None
    assert 2.0 - 0.1 - 3 * error < value < 2.0 + 3 * error
    assert error < 0.06


def test_independent_rows_give_zero_on_new_rows_whatever_was_learned_by_heart() -> None:
    x, y = gaussian_pair(1000, 5, 0.0)
    estimator, new_x, new_y = fitted(x, y, QUICK)
    error = estimator.standard_error(new_x, new_y)
    assert error is not None
    value = float(estimator.estimate(new_x, new_y))
    assert -0.1 - 3 * error < value < 3 * error
    hoarder = InfoNCE.between(x[:200], y[:200], generator=generator())
    hoarder.fit(x[:200], y[:200], generator=generator(), training=Training(steps=300, batch=200))
    assert float(hoarder.estimate(x[:200], y[:200])) > 1.0  # the fit rows show a nat that is not there


@pytest.mark.parametrize("both_directions", [False, True])
@pytest.mark.parametrize("critic", CRITICS)
def test_loss_estimate_and_contributions_agree(critic: str, both_directions: bool) -> None:
    x, y = gaussian_pair(60, 3, 1.0)
    estimator = InfoNCE.between(
        x, y, critic=critic, width=16, embedding=4, both_directions=both_directions, generator=generator()
    )
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(3)))
        scores = estimator.critic.scores(x, y)
        expected = infonce_from_scores(scores, both_directions=both_directions)
    value = estimator.estimate(x, y)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(estimator(x, y).detach(), -expected)
    torch.testing.assert_close(estimator.pointwise(x, y).mean(), expected, atol=1e-5, rtol=1e-5)
    assert value <= estimator.ceiling(60) == math.log(60)
    assert not value.requires_grad


@pytest.mark.parametrize("critic", CRITICS)
def test_a_fit_raises_the_bound(critic: str) -> None:
    x, y = gaussian_pair(600, 3, 1.0)
    g = generator()
    estimator = InfoNCE.between(x[:400], y[:400], critic=critic, width=32, generator=g)
    before = float(estimator.estimate(x[400:], y[400:]))
    estimator.fit(x[:400], y[:400], generator=g, training=QUICK)
    assert float(estimator.estimate(x[400:], y[400:])) > before + 0.3


def test_the_teacher_gets_no_gradient_and_every_parameter_moves() -> None:
    x, y = gaussian_pair(64, 3, 1.0)
    x.requires_grad_()
    y.requires_grad_()
    for critic in CRITICS:
        estimator = InfoNCE.between(x, y, critic=critic, width=8, embedding=4, generator=generator())
        # Choosing y given x cannot see an offset of x, and vice versa; both directions together see both.
        optimizer = torch.optim.SGD(estimator.param_groups(), lr=0.1)
        start = {name: p.detach().clone() for name, p in estimator.named_parameters()}
        for _ in range(10):
            optimizer.zero_grad()
            estimator(x, y).backward()
            optimizer.step()
        for name, parameter in estimator.named_parameters():
            last_bias_of_joint = critic == "joint" and name.endswith("rest.3.bias")
            assert last_bias_of_joint or not torch.equal(parameter, start[name]), (critic, name)
            assert name in estimator.state_dict()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert y.grad is None


def test_same_seed_same_critic_and_no_trace_in_the_global_generator() -> None:
    x, y = gaussian_pair(300, 3, 1.0)
    state = torch.random.get_rng_state()
    values = []
    for _ in range(2):
        g = generator(5)
        estimator = InfoNCE.between(x, y, generator=g)
        estimator.fit(x, y, generator=g, training=Training(steps=20, batch=64))
        values.append(float(estimator.estimate(x, y)))
    assert values[0] == values[1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fresh_keeps_the_hyper_parameters_and_forgets_the_fit() -> None:
    x, y = gaussian_pair(100, 3, 1.0)
    old = InfoNCE.between(x, y, critic="joint", width=24, depth=3, embedding=7, both_directions=False)
    new = old.fresh(x[:, :2], y, generator=generator())
    assert new.describe() == old.describe().replace("InfoNCE(3", "InfoNCE(2")
    assert not torch.equal(next(new.critic.parameters()), next(old.critic.parameters()))


def test_state_dict_restores_the_number() -> None:
    x, y = gaussian_pair(100, 3, 1.0)
    one = InfoNCE.between(3 + 2 * x, y, generator=generator(1))
    other = InfoNCE(3, 3)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other.estimate(3 + 2 * x, y), one.estimate(3 + 2 * x, y), atol=0, rtol=0)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing_and_half_features_little(dtype: torch.dtype, critic: str) -> None:
    x, y = gaussian_pair(128, 4, 2.0)
    estimator = InfoNCE.between(x, y, critic=critic, width=16, generator=generator())
    estimator.fit(x, y, generator=generator(), training=Training(steps=50, batch=64))
    plain = float(estimator(x, y).detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(estimator(x, y).detach()) == plain
        half = estimator(x.to(dtype), y.to(dtype))
    assert half.dtype == torch.float32
    assert float(half.detach()) == pytest.approx(plain, abs=5e-3)
    half.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in estimator.parameters() if p.grad is not None)


def test_shift_and_scale_of_the_features_do_not_matter() -> None:
    x, y = gaussian_pair(200, 3, 1.0)
    x, y = x.double(), y.double()
    scale = torch.tensor([1e-3, 1.0, 1e3]).double()
    plain = InfoNCE.between(x, y, generator=generator()).estimate(x, y)
    moved = scale * (1e4 + x)
    assert float(InfoNCE.between(moved, y, generator=generator()).estimate(moved, y)) == pytest.approx(
        float(plain), abs=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InfoNCE(2, 2, critic="dot"), "no critic"),
        (lambda: InfoNCE.between(torch.ones(3, 2), torch.ones(4, 2)), "never truncates"),
        (lambda: InfoNCE.between(torch.full((3, 2), torch.nan), torch.ones(3, 2)), "x contains 6 NaN"),
        (lambda: InfoNCE(2, 2)(torch.ones(3, 4), torch.ones(3, 2)), "width 2"),
        (lambda: InfoNCE(2, 2)(torch.ones(1, 2), torch.ones(1, 2)), "at least 2"),
        (lambda: InfoNCE(2, 2)(torch.ones(3, 2, 1, 1), torch.ones(3, 2)), "needs shape"),
    ],
)
def test_unusable_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
