"""JSD, NWJ, DV, SMILE and anchored InfoNCE where the truth is known, and what each promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mikit.core.errors import InputError
from mikit.critics import EmbeddingCritic, Joint
from mikit.estimators.bounds.base import CappedEstimator, CriticEstimator, RatioEstimator
from mikit.estimators.bounds.infonce import AnchoredInfoNCE
from mikit.estimators.bounds.ratios import DV, JSD, NWJ, SMILE
from mikit.estimators.fitting import Training
from mikit.functional.bounds.infonce_scores import anchored_infonce_from_scores
from mikit.functional.bounds.ratio_scores import dv_from_scores, jsd_from_scores, nwj_from_scores, smile_from_scores
from mikit.measuring.pipeline import measure

ALL: tuple[type[CriticEstimator], ...] = (JSD, NWJ, DV, SMILE, AnchoredInfoNCE)
RATIOS: tuple[type[RatioEstimator], ...] = (JSD, NWJ, DV, SMILE)
CRITICS = ("separable", "bilinear", "joint")
SHORT = Training(steps=150, batch=256, learning_rate=3e-3, weight_decay=1.0, every=50, patience=8)
TINY = Training(steps=40, batch=64, learning_rate=3e-3, every=20)

FROZEN = Training(steps=1, batch=64, learning_rate=1e-9, weight_decay=0.0, every=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_pair(n: int, d: int, nats: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    rho = math.sqrt(1 - math.exp(-2 * nats / d))
    x = torch.randn(n, d, generator=g)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, d, generator=g)


def fitted(cls: type[CriticEstimator], x: Tensor, y: Tensor, seed: int = 1) -> tuple[CriticEstimator, Tensor, Tensor]:
    """Fit a small critic on 60 %, select on 20 %, and return the 20 % that were never seen."""
    a, b = int(0.6 * len(x)), int(0.8 * len(x))
    g = generator(seed)
    estimator = cls.between(x[:a], y[:a], width=64, embedding=16, generator=g)
    estimator.fit(x[:a], y[:a], select=(x[a:b], y[a:b]), generator=g, training=SHORT)
    return estimator, x[b:], y[b:]


def log_ratio(x: Tensor, y: Tensor, rho: float) -> Tensor:
    """Return the log density ratios of a Gaussian pair with one correlation per column, for all combinations."""
    gain = 1 / (1 - rho**2)
    squares = 0.5 * gain * rho**2 * (x.square().sum(1)[:, None] + y.square().sum(1)[None, :])
    return gain * rho * x @ y.T - squares - 0.5 * x.shape[1] * math.log(1 - rho**2)


def stirred(cls: type[CriticEstimator], x: Tensor, y: Tensor, **options: Any) -> Any:
    """Return an estimator whose critic is random and far from zero."""
    estimator = cls.between(x, y, width=16, embedding=4, generator=generator(), **options)
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(3)))
    return estimator


@pytest.mark.parametrize("nats", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("cls", ALL)
def test_known_information(cls: type[CriticEstimator], nats: float) -> None:
    estimator, x, y = fitted(cls, *gaussian_pair(4000, 5, nats))
    value, error = float(estimator.estimate(x, y)), estimator.standard_error(x, y) or math.inf
    # A small critic and a short fit cost some of the truth; bounds and estimates alike do not pass it by more.
    assert nats - 0.08 - 0.06 * nats - 3 * error < value < nats + 0.05 + 3 * error
    assert error < 0.085


@pytest.mark.parametrize("cls", ALL)
def test_independent_rows(cls: type[CriticEstimator]) -> None:
    for seed in (0, 1):
        estimator, x, y = fitted(cls, *gaussian_pair(1000, 5, 0.0, seed), seed=seed)
        value, error = float(estimator.estimate(x, y)), estimator.standard_error(x, y)
        assert error is not None
        assert value - 2 * error < 0 < value + 2 * error + 0.03, (value, error)


@pytest.mark.parametrize("cls", ALL)
def test_what_was_learned_by_heart_is_not_reported(cls: type[CriticEstimator]) -> None:
    x, y = gaussian_pair(500, 5, 0.0)
    hoarder = cls.between(x[:200], y[:200], width=96, embedding=16, generator=generator())
    by_heart = Training(steps=120, batch=200, learning_rate=3e-3, weight_decay=0.0, every=120)
    hoarder.fit(x[:200], y[:200], generator=generator(), training=by_heart)
    # The fit rows show nats that are not there; JSD's bound falls instead, because its critic overrates negatives.
    read = hoarder.mean_score if isinstance(hoarder, JSD) else hoarder.estimate
    assert float(read(x[:200], y[:200])) > 0.4
    assert float(hoarder.estimate(x[200:], y[200:])) < 0.2
    prototype = cls.between(x, y, width=32, embedding=8, generator=generator())
    reported = measure(x, y, prototype, permutations=0, training=by_heart)
    assert reported.value < 0.1
    assert reported.interval[0] < 0


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("cls", ALL)
def test_loss_estimate_and_contributions_agree(cls: type[CriticEstimator], critic: str) -> None:
    x, y = gaussian_pair(60, 3, 1.0)
    estimator = stirred(cls, x, y, critic=critic)
    with torch.no_grad():
        scores = estimator.critic.scores(x, y).double()
    loss, value = {
        JSD: (-jsd_from_scores(scores), nwj_from_scores(scores + 1)),
        NWJ: (-nwj_from_scores(scores + 1), nwj_from_scores(scores + 1)),
        DV: (-dv_from_scores(scores), dv_from_scores(scores)),
        SMILE: (-jsd_from_scores(scores), smile_from_scores(scores)),
        AnchoredInfoNCE: (-anchored_infonce_from_scores(scores, anchor=4.0 * 59), scores.diagonal().mean()),
    }[cls]
    close = {"atol": 1e-5, "rtol": 1e-5, "check_dtype": False}
    for training in (True, False):
        torch.testing.assert_close(estimator.train(training)(x, y).detach(), loss, **close)
    torch.testing.assert_close(estimator.estimate(x, y), value, **close)
    torch.testing.assert_close(estimator.pointwise(x, y).mean(), value, **close)
    assert not estimator.estimate(x, y).requires_grad


@pytest.mark.parametrize("cls", ALL)
def test_the_standard_error_is_the_spread_over_samples(cls: type[CriticEstimator]) -> None:
    estimator, *_ = fitted(cls, *gaussian_pair(2000, 3, 1.0))
    values, errors = [], []
    for seed in range(40):
        x, y = gaussian_pair(400, 3, 1.0, 1000 + seed)
        values.append(float(estimator.estimate(x, y)))
        errors.append(estimator.standard_error(x, y) or math.inf)
    spread = float(torch.tensor(values).std())
    # The standard deviation of 40 values is known to 11 %; three of these.
    assert sum(errors) / 40 == pytest.approx(spread, rel=0.33)


def test_the_jensen_shannon_objective_is_never_the_number() -> None:
    estimator, x, y = fitted(JSD, *gaussian_pair(4000, 5, 2.0))
    assert isinstance(estimator, JSD)
    assert -float(estimator(x, y).detach()) < 2 * math.log(2) < float(estimator.estimate(x, y))
    score = float(estimator.mean_score(x, y))
    with torch.no_grad():
        assert score == pytest.approx(float(estimator.critic.pair_scores(x, y).mean()), abs=1e-6)
    assert 1.2 < score < 2.3  # a small critic after a short fit
    second = estimator.checks(x, y)[-1]
    assert (second.name, second.figure) == ("second read-out", score)


@pytest.mark.parametrize("cls", [JSD, NWJ, DV])
def test_a_cap_keeps_single_scores_from_ruling_the_bound(cls: type[CappedEstimator]) -> None:
    x, y = gaussian_pair(900, 2, 1.0)
    estimator = cls.between(x[:400], y[:400], critic="bilinear", generator=generator())
    weight = estimator.critic.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight.copy_(2.5 * torch.eye(2))  # the scores of large rows are far too high
    uncapped = float(estimator.estimate(x[650:], y[650:]))
    estimator.fit(x[:400], y[:400], select=(x[400:650], y[400:650]), generator=generator(), training=FROZEN)
    cap = float(estimator.cap)
    assert math.isfinite(cap)
    assert uncapped + 0.3 < float(estimator.estimate(x[650:], y[650:])) < 1.0
    with torch.no_grad():
        scores = estimator.critic.scores(x[650:], y[650:]).clamp(max=cap)
    value = dv_from_scores(scores) if cls is DV else nwj_from_scores(scores + 1)
    torch.testing.assert_close(estimator.estimate(x[650:], y[650:]), value.double(), atol=1e-5, rtol=1e-5)
    estimator.forget()
    assert float(estimator.estimate(x[650:], y[650:])) == pytest.approx(uncapped, rel=0.05)


def test_the_mean_mini_batch_gradient_is_that_of_all_rows_once_it_is_corrected() -> None:
    x, y = (side.double() for side in gaussian_pair(600, 2, 1.0))
    gradients = {}
    for rate in (1.0, 0.01):
        estimator = DV.between(x, y, critic="bilinear", rate=rate).double()
        weight = estimator.critic.weight
        assert isinstance(weight, Tensor)
        with torch.no_grad():
            weight.copy_(0.4 * torch.eye(2))
        g, total, batches = generator(2), torch.zeros(2, 2, dtype=torch.float64), 1500
        for step in range(batches + 300):  # the average needs some hundred batches to settle
            rows = torch.randperm(600, generator=g)[:8]
            (gradient,) = torch.autograd.grad(estimator(x[rows], y[rows]), weight)
            if step >= 300:
                total += gradient / batches
        gradients[rate] = total
        (full,) = torch.autograd.grad(estimator.eval()(x, y), weight)
    plain, corrected = (float((gradients[rate] - full).norm() / full.norm()) for rate in (1.0, 0.01))
    assert corrected < 0.5 * plain, (corrected, plain)


def test_the_moving_average_is_touched_by_training_alone() -> None:
    x, y = gaussian_pair(50, 2, 1.0)
    estimator = stirred(DV, x, y, rate=0.25)
    estimator.eval()(x, y)
    estimator.estimate(x, y)
    with torch.no_grad():
        estimator.train()(x, y)
    assert int(estimator.batches) == 0
    normalizers = []
    for rows in (slice(0, 25), slice(25, 50)):
        estimator(x[rows], y[rows])
        scores = estimator.critic.scores(x[rows], y[rows]).detach().double()
        normalizers.append(float((scores.diagonal().mean() - dv_from_scores(scores)).exp()))
    share = 0.25 / (1 - 0.75**2)
    expected = (1 - share) * normalizers[0] + share * normalizers[1]
    assert float(estimator.log_average.exp()) == pytest.approx(expected, rel=1e-5)
    assert int(estimator.fresh(x, y, generator=generator()).batches) == 0


def test_a_jump_of_the_normalizer_moves_the_gradient_by_at_most_one_over_the_rate() -> None:
    x, y = gaussian_pair(50, 2, 1.0)
    estimator = DV.between(x, y, critic="bilinear", rate=0.1)
    for scale in (0.0, 400.0):
        with torch.no_grad():
            estimator.critic.weight.fill_(scale)
        for _ in range(50 if scale == 0 else 1):
            loss = estimator(x, y)
        loss.backward()
        gradient = estimator.critic.weight.grad
        assert gradient is not None
        assert bool(gradient.isfinite().all())
        largest = float((x.abs().max() * y.abs().max()) * 4)
        assert float(gradient.abs().max()) < (1 + 1 / 0.1) * largest


@pytest.mark.parametrize("critic", CRITICS)
def test_smile_without_a_limit_in_reach_is_donsker_varadhan(critic: str) -> None:
    x, y = gaussian_pair(80, 3, 1.0)
    open_ended, other = stirred(SMILE, x, y, critic=critic, clip=1e6), stirred(DV, x, y, critic=critic)
    torch.testing.assert_close(open_ended.estimate(x, y).double(), other.estimate(x, y).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(open_ended.pointwise(x, y), other.pointwise(x, y), atol=1e-5, rtol=0)
    tight = stirred(SMILE, x, y, critic=critic, clip=0.2)
    assert abs(float(tight.estimate(x, y) - other.estimate(x, y))) > 1e-3


@pytest.mark.parametrize("critic", ["bilinear", "joint"])
@pytest.mark.parametrize("cls", ALL)
def test_scores_far_beyond_the_range_of_exp(cls: type[CriticEstimator], critic: str) -> None:
    x, y = gaussian_pair(40, 2, 1.0)
    estimator = stirred(cls, x, y, critic=critic)
    last = estimator.critic.rest[-1] if isinstance(estimator.critic, Joint) else estimator.critic
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(300 / estimator.critic.scores(x, y).max())
        assert float(estimator.critic.scores(x, y).max()) > 88  # exp leaves float32
    value, contributions = estimator.estimate(x, y), estimator.pointwise(x, y)
    assert bool(value.isfinite())
    assert contributions is not None
    assert bool(contributions.isfinite().all())
    assert float(contributions.mean()) == pytest.approx(float(value), rel=1e-4)
    if cls is not NWJ:  # its loss is minus infinity here, which the fit refuses by name
        loss = estimator(x, y)
        loss.backward()
        assert bool(loss.isfinite())
        assert all(bool(p.grad.isfinite().all()) for p in estimator.parameters() if p.grad is not None)


@pytest.mark.parametrize("cls", RATIOS)
def test_few_rows_that_carry_the_negatives_are_named(cls: type[RatioEstimator]) -> None:
    x, y = gaussian_pair(400, 2, 1.0)
    estimator = cls.between(x, y, critic="bilinear", generator=generator())
    assert estimator.checks(x, y)[0].outcome == "pass"
    assert estimator.checks(x, y)[0].figure == pytest.approx(400, rel=1e-6)
    with torch.no_grad():
        estimator.critic.weight.copy_(6 * torch.eye(2))
    check = estimator.checks(x, y)[0]
    if cls is SMILE:  # clipping is what keeps single rows from ruling
        assert check.outcome == "pass"
    else:
        assert check.outcome == "warn"
        assert "not met" in check.sentence


class _Largest(TorchDispatchMode):
    """Notes the number of entries of the largest tensor that an operation returns."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return result


@pytest.mark.parametrize("critic", ["separable", "bilinear"])
@pytest.mark.parametrize("cls", ALL)
def test_embedding_critics_never_hold_all_pairs(cls: type[CriticEstimator], critic: str) -> None:
    n = 3000
    x, y = gaussian_pair(n, 2, 1.0)
    estimator = cls.between(x, y, critic=critic, width=8, embedding=4, generator=generator()).eval()
    assert isinstance(estimator.critic, EmbeddingCritic)
    with _Largest() as largest:
        estimator.estimate(x, y)
        estimator.standard_error(x, y)
        estimator.checks(x, y)
    assert largest.entries < n * n / 4


@pytest.mark.parametrize(
    ("cls", "options"),
    [(JSD, {}), (NWJ, {}), (DV, {"rate": 0.3}), (SMILE, {"clip": 2.0}), (AnchoredInfoNCE, {"relative_anchor": 2.0})],
)
def test_fresh_keeps_the_hyper_parameters_and_forgets_the_fit(
    cls: type[CriticEstimator], options: dict[str, Any]
) -> None:
    x, y = gaussian_pair(100, 3, 1.0)
    old: Any = cls.between(x, y, critic="joint", width=24, depth=3, embedding=7, **options)
    old.fit(x, y, generator=generator(), training=TINY)
    new = old.fresh(x[:, :2], y, generator=generator())
    assert new.training
    assert new.describe() == old.describe().replace(f"{cls.__name__}(3", f"{cls.__name__}(2")
    assert all(f"{name}={value:g}" in new.describe() for name, value in options.items())
    assert not torch.equal(next(new.critic.parameters()), next(old.critic.parameters()))
    same_seed = old.fresh(x[:, :2], y, generator=generator())
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), same_seed.parameters(), strict=True))


@pytest.mark.parametrize("cls", ALL)
def test_the_teacher_gets_no_gradient(cls: type[CriticEstimator]) -> None:
    x, y = (side.requires_grad_() for side in gaussian_pair(64, 3, 1.0))
    for critic in CRITICS:
        stirred(cls, x, y, critic=critic)(x, y).backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert y.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: JSD(2, 2, critic="dot"), "no critic"),
        (lambda: DV(2, 2, rate=0.0), "rate is 0"),
        (lambda: DV(2, 2, rate=1.5), "rate is 1.5"),
        (lambda: SMILE(2, 2, clip=0.0), "clip is 0"),
        (lambda: SMILE(2, 2, clip=math.inf), "clip is inf"),
        (lambda: AnchoredInfoNCE(2, 2, relative_anchor=-1.0), "relative_anchor is -1"),
        (lambda: NWJ.between(torch.ones(3, 2), torch.ones(4, 2)), "never truncates"),
        (lambda: NWJ.between(torch.full((3, 2), torch.nan), torch.ones(3, 2)), "x contains 6 NaN"),
        (lambda: DV(2, 2)(torch.ones(3, 4), torch.ones(3, 2)), "width 2"),
        (lambda: SMILE(2, 2).estimate(torch.ones(1, 2), torch.ones(1, 2)), "at least 2"),
        (lambda: AnchoredInfoNCE(2, 2)(torch.ones(2, 2), torch.ones(2, 2)), "at least 3"),
    ],
)
def test_unusable_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
