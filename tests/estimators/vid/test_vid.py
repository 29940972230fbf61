"""VID as a loss in a plain training loop and as a difference of entropies."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.estimators.fitting import Training
from mikit.estimators.vid.heads import HEADS
from mikit.estimators.vid.vid import VID

QUICK = Training(steps=100, batch=128, learning_rate=3e-3, every=25, patience=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(n: int, d: int, rho: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    s = torch.randn(n, d, generator=g)
    return s, rho * s + math.sqrt(1 - rho**2) * torch.randn(n, d, generator=g)


def maps(n: int = 12, c_s: int = 3, c_t: int = 5, height: int = 6, width: int = 4) -> tuple[Tensor, Tensor]:
    g = generator()
    s = torch.randn(n, c_s, height, width, generator=g)
    noise = torch.randn(n, c_t, height, width, generator=g)
    mix = torch.randn(c_t, c_s, generator=g)
    return s, 2 + torch.einsum("tc,nchw->nthw", mix, s) + 0.5 * noise


# ---- the estimator


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99])
def test_gaussian_information_in_eight_dimensions(rho: float) -> None:
    truth = -4 * math.log(1 - rho**2)  # 1.151, 6.643, 15.668 nats
    s, t = pair(8000, 8, rho)
    vid = VID.between(s[:4000], t[:4000], generator=generator())
    vid.fit(s[:4000], t[:4000], generator=generator())
    error = vid.standard_error(s[4000:], t[4000:])
    assert error is not None
    # The fit adds an error of its own, as large as that of the evaluation rows.
    assert float(vid.estimate(s[4000:], t[4000:])) == pytest.approx(truth, abs=3 * math.sqrt(2) * error)
    assert error < 0.01 * truth + 0.04


@pytest.mark.parametrize("with_select", [False, True])
@pytest.mark.parametrize("arch", ["relu3", "bn_relu3x2"])
def test_a_trained_head_ends_with_the_residual_variances(arch: str, with_select: bool) -> None:
    # The variance parameter alone could not travel from 1 to 0.02 in these few steps.
    s, t = pair(2000, 4, 0.99)
    vid = VID.between(s[:1500], t[:1500], arch=arch, generator=generator())
    select = (s[1500:], t[1500:]) if with_select else None
    training = Training(steps=200, batch=512, learning_rate=1e-2)
    vid.fit(s[:1500], t[:1500], select=select, generator=generator(), training=training)
    x, y = select if select is not None else (s[:1500], t[:1500])
    prediction = vid.pair.teacher_mean + vid.pair.teacher_variance.sqrt() * vid.head(
        (x - vid.pair.student_mean) / vid.pair.student_scale
    )
    torch.testing.assert_close(vid.variance, (prediction - y).square().mean(0), rtol=1e-4, atol=0)


def test_two_linear_layers_are_fitted_as_exactly_as_one() -> None:
    for s, t in (pair(300, 3, 0.9), maps()):
        values = []
        for arch in ("linear", "linear2"):
            vid = VID.between(s + 2, t, arch=arch, generator=generator())
            vid.fit(s + 2, t, generator=generator())
            values.append(float(vid.estimate(s + 2, t)))
        assert values[1] == pytest.approx(values[0], rel=1e-4)


@pytest.mark.parametrize("arch", HEADS)
def test_independent_features_give_zero_on_new_rows(arch: str) -> None:
    s, t = torch.randn(1500, 6, generator=generator(1)), torch.randn(1500, 4, generator=generator(2))
    vid = VID.between(s[:800], t[:800], arch=arch, generator=generator())
    vid.fit(s[:800], t[:800], select=(s[800:1000], t[800:1000]), generator=generator(), training=QUICK)
    error = vid.standard_error(s[1000:], t[1000:])
    assert error is not None
    # Fitting 4 x 6 weights and 8 moments costs about 32 / (2 * 800) = 0.02 nats; trained heads some more.
    assert -0.08 - 3 * error < float(vid.estimate(s[1000:], t[1000:])) < 3 * error


def test_shuffled_pairs_lose_what_paired_rows_had() -> None:
    s, t = pair(2000, 4, 0.9)
    shuffled = t[torch.randperm(2000, generator=generator(9))]
    values = []
    for target in (t, shuffled):
        vid = VID.between(s[:1000], target[:1000])
        vid.fit(s[:1000], target[:1000], generator=generator())
        values.append(float(vid.estimate(s[1000:], target[1000:])))
    assert values[0] > 2.5
    assert abs(values[1]) < 0.05


def test_a_trained_head_sees_what_a_linear_one_cannot() -> None:
    s = torch.randn(2500, 2, generator=generator())
    t = s.square() + 0.3 * torch.randn(2500, 2, generator=generator(1))
    values = {}
    for arch in ("linear", "bn_relu3x2"):
        vid = VID.between(s[:1500], t[:1500], arch=arch, generator=generator())
        vid.fit(s[:1500], t[:1500], select=(s[1500:2000], t[1500:2000]), generator=generator())
        values[arch] = float(vid.estimate(s[2000:], t[2000:]))
    assert values["linear"] < 0.1
    assert values["bn_relu3x2"] > 1.0


def test_a_bimodal_teacher_shows_why_this_is_no_bound() -> None:
    sign = torch.randint(2, (4000, 1), generator=generator()).float() * 2 - 1
    t = sign + 0.05 * torch.randn(4000, 1, generator=generator(1))  # log 2 = 0.69 nats about the sign
    vid = VID.between(sign[:2000], t[:2000])
    vid.fit(sign[:2000], t[:2000], generator=generator())
    assert float(vid.estimate(sign[2000:], t[2000:])) == pytest.approx(0.5 * math.log(1 / 0.05**2), abs=0.1)


def test_the_closed_fit_of_maps_is_that_of_their_positions() -> None:
    s, t = maps()
    of_maps = VID.between(s, t)
    of_maps.fit(s, t, generator=generator())
    rows_s, rows_t = (v.permute(0, 2, 3, 1).reshape(-1, v.shape[1]) for v in (s, t))
    of_rows = VID.between(rows_s, rows_t)
    of_rows.fit(rows_s, rows_t, generator=generator())
    torch.testing.assert_close(of_maps.estimate(s, t), 24 * of_rows.estimate(rows_s, rows_t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_maps.variance, of_rows.variance)


@pytest.mark.parametrize("arch", HEADS)
def test_estimate_is_the_mean_of_pointwise_and_leaves_no_trace(arch: str) -> None:
    s, t = maps()
    vid = VID.between(s, t, arch=arch, generator=generator()).train()
    before = {name: value.clone() for name, value in vid.state_dict().items()}
    value, terms = vid.estimate(s, t), vid.pointwise(s, t)
    assert terms.shape == (12,)
    torch.testing.assert_close(value, terms.mean())
    torch.testing.assert_close(vid.pointwise(s[:5], t[:5]), terms[:5], atol=1e-4, rtol=1e-4)
    assert vid.training
    assert vid.head.training
    assert all(torch.equal(before[name], value) for name, value in vid.state_dict().items())
    assert not value.requires_grad


def test_rescaled_features_give_the_same_number_after_a_fit() -> None:
    s, t = pair(500, 3, 0.8)
    s, t = s.double(), t.double()
    scale = torch.tensor([1e-6, 1.0, 1e5]).double()
    values = []
    for x, y in ((s, t), (scale * (s + 1e4), t), (s, scale * (t - 1e4))):
        vid = VID.between(x[:300], y[:300])
        vid.fit(x[:300], y[:300], generator=generator())
        values.append(float(vid.estimate(x[300:], y[300:])))
    assert values[1:] == pytest.approx([values[0]] * 2, abs=1e-4)


# ---- the loss


def naive_loss(vid: VID, s: Tensor, t: Tensor, reduction: str) -> float:
    """The formula, element by element, with the variance and the prediction in the teacher's own units."""
    with torch.no_grad():
        centered = (s - vid.pair.student_mean.view(1, -1, 1, 1)) / vid.pair.student_scale.view(1, -1, 1, 1)
        spread = vid.pair.teacher_variance.sqrt().view(1, -1, 1, 1)
        mu = vid.pair.teacher_mean.view(1, -1, 1, 1) + spread * vid.head(centered)
    total, count = 0.0, 0
    for n in range(t.shape[0]):
        for c in range(t.shape[1]):
            v = float(vid.variance.detach()[c])
            for h in range(t.shape[2]):
                for w in range(t.shape[3]):
                    total += 0.5 * ((float(mu[n, c, h, w]) - float(t[n, c, h, w])) ** 2 / v + math.log(v))
                    total += 0.5 * math.log(2 * math.pi) if reduction == "nats" else 0.0
                    count += 1
    return total / (t.shape[0] if reduction == "nats" else count)


@pytest.mark.parametrize("arch", ["linear", "linear2", "relu3"])
@pytest.mark.parametrize("reduction", ["mean", "nats"])
def test_the_loss_equals_the_naive_loop(reduction: str, arch: str) -> None:
    s, t = maps(n=4)
    vid = VID.between(s, t, arch=arch, reduction=reduction, generator=generator())
    with torch.no_grad():
        vid.law.alpha.add_(torch.randn(5, generator=generator(1)))
    assert float(vid(s, t).detach()) == pytest.approx(naive_loss(vid, s, t, reduction), rel=1e-5)


def test_variances_start_at_the_teachers_and_training_moves_them_towards_the_residuals() -> None:
    s, t = pair(400, 3, 0.9)
    t = t * torch.tensor([0.01, 1.0, 100.0])
    vid = VID.between(s, t, generator=generator())
    torch.testing.assert_close(vid.variance.detach(), t.var(0, correction=0), rtol=1e-5, atol=0)
    optimizer = torch.optim.SGD(vid.param_groups(), lr=0.5, momentum=0.9)
    for _ in range(400):
        optimizer.zero_grad()
        vid(s, t).backward()
        optimizer.step()
    # 0.19 is the residual share; whatever the channel's scale, its variance has arrived.
    torch.testing.assert_close(vid.variance.detach() / t.var(0), torch.full((3,), 0.19), rtol=0.25, atol=0)


@pytest.mark.parametrize("arch", HEADS)
@pytest.mark.parametrize("spatial", [False, True])
def test_ten_plain_sgd_steps_move_every_parameter(arch: str, spatial: bool) -> None:
    torch.manual_seed(0)
    student = nn.Conv2d(3, 4, 3, padding=1) if spatial else nn.Linear(3, 4)
    data, t = maps(n=16) if spatial else (pair(64, 3, 0.9)[0], pair(64, 5, 0.9, seed=1)[1])
    vid = VID.between(student(data), t, arch=arch, generator=generator())
    optimizer = torch.optim.SGD([{"params": student.parameters()}, *vid.param_groups()], lr=0.1, weight_decay=5e-4)
    start = {name: p.detach().clone() for name, p in vid.named_parameters()}
    losses = []
    for _ in range(10):
        loss = vid(student(data), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert {"law.alpha", "head.0.weight"} <= set(start)
    for name, parameter in vid.named_parameters():
        assert not torch.equal(parameter, start[name]), name
        assert name in vid.state_dict()
    grouped = [id(p) for group in vid.param_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in vid.parameters())
    assert vid.param_groups()[-1] == {"params": [vid.law.alpha], "weight_decay": 0.0}


def test_the_teacher_gets_no_gradient_and_nothing_is_cached() -> None:
    s, t = maps()
    s.requires_grad_()
    t.requires_grad_()
    vid = VID.between(s, t, generator=generator())
    attributes = set(vars(vid))
    vid(s, t).backward()
    assert s.grad is not None
    assert t.grad is None
    assert set(vars(vid)) == attributes


@pytest.mark.parametrize("reduction", ["mean", "nats"])
def test_gradcheck(reduction: str) -> None:
    s, t = (v.double() for v in maps(n=2, c_s=2, c_t=2, height=2, width=3))
    vid = VID.between(s, t, arch="linear", reduction=reduction, generator=generator()).double()

    def loss(features: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(vid, dict(zip(names, parameters, strict=True)), (features, t))

    names = [name for name, _ in vid.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in vid.parameters()]
    assert torch.autograd.gradcheck(loss, (s.requires_grad_(), *parameters))
    assert torch.autograd.gradgradcheck(loss, (s, *parameters))


@pytest.mark.parametrize(
    ("student", "teacher", "met"),
    [((8, 8), (4, 4), (4, 4)), ((4, 6), (8, 3), (4, 3)), ((5, 7), (5, 7), (5, 7)), ((1, 1), (7, 5), (1, 1))],
)
def test_maps_meet_at_the_smaller_height_and_the_smaller_width(
    student: tuple[int, int], teacher: tuple[int, int], met: tuple[int, int]
) -> None:
    s = torch.randn(6, 3, *student, generator=generator())
    t = torch.randn(6, 5, *teacher, generator=generator(1))
    vid = VID.between(s, t, generator=generator())
    pooled = [nn.functional.adaptive_avg_pool2d(v, met) for v in (s, t)]
    torch.testing.assert_close(vid(s, t), vid(*pooled))
    torch.testing.assert_close(vid.pair.teacher_variance, pooled[1].var((0, 2, 3), correction=0))
    loss_in_nats = VID.between(s, t, reduction="nats", generator=generator())(s, t)
    elements = 5 * met[0] * met[1]
    torch.testing.assert_close(loss_in_nats, elements * (vid(s, t) + 0.5 * math.log(2 * math.pi)))


def test_dead_teacher_channels_are_named_and_left_out() -> None:
    s, t = maps()
    t[:, 1], t[:, 3] = 0.1, 0.0
    alive = [0, 2, 4]
    with pytest.warns(UserWarning, match="2 of 5 teacher channels are constant .* channel 1"):
        vid = VID.between(s, t, generator=generator())
    assert vid.pair.live.tolist() == [True, False, True, False, True]
    assert vid.variance[1] == 0
    with pytest.warns(UserWarning, match="2 of 5"):
        vid.fit(s, t, generator=generator())
    rest = VID.between(s, t[:, alive])
    rest.fit(s, t[:, alive], generator=generator())
    for compare in (lambda v, y: v.estimate(s, y), lambda v, y: v(s, y).detach()):
        torch.testing.assert_close(compare(vid, t), compare(rest, t[:, alive]), rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    vid(s, t).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in vid.parameters() if p.grad is not None)


def test_a_constant_teacher_says_nothing() -> None:
    s = torch.randn(50, 3, generator=generator())
    with pytest.warns(UserWarning, match="1 of 1"):
        vid = VID.between(s, torch.full((50, 1), 3.0))
    assert float(vid.estimate(s, torch.full((50, 1), 3.0))) == 0.0
    assert float(vid(s, torch.full((50, 1), 3.0)).detach()) == 0.0


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1.0, 1e4), (1e4, 0.0), (1e-3, 10.0), (100.0, -1e6)])
def test_extreme_features_train_and_measure_like_plain_ones(scale: float, shift: float) -> None:
    s, t = pair(600, 3, 0.9)
    plain = VID.between(s, t, generator=generator())
    moved_s, moved_t = scale * s + shift, scale * t + shift
    moved = VID.between(moved_s, moved_t, generator=generator())
    for vid, x, y in ((plain, s, t), (moved, moved_s, moved_t)):
        optimizer = torch.optim.SGD(vid.param_groups(), lr=0.1, momentum=0.9)
        for _ in range(50):
            optimizer.zero_grad()
            vid(x, y).backward()
            assert all(bool(torch.isfinite(p.grad).all()) for p in vid.parameters() if p.grad is not None)
            optimizer.step()
    # float32 holds 1e4 standard deviations of offset to 1e-3 of one.
    assert float(moved.estimate(moved_s, moved_t)) == pytest.approx(float(plain.estimate(s, t)), abs=5e-3)


@pytest.mark.parametrize("arch", HEADS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing_and_half_features_little(dtype: torch.dtype, arch: str) -> None:
    s, t = maps()
    vid = VID.between(s, t, arch=arch, generator=generator())
    plain = float(vid(s, t).detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(vid(s, t).detach()) == plain
        half = vid(s.to(dtype), t.to(dtype))
    assert half.dtype == torch.float32
    assert float(half.detach()) == pytest.approx(plain, abs=1e-3 if dtype == torch.float16 else 5e-3)
    half.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in vid.parameters() if p.grad is not None)
    built_from_half = VID.between(s.to(dtype), t.to(dtype), arch=arch, generator=generator())
    assert float(built_from_half(s, t).detach()) == pytest.approx(plain, abs=5e-3)


def test_a_variance_parameter_far_out_stays_finite() -> None:
    s, t = pair(20, 2, 0.9)
    vid = VID.between(s, t)
    with torch.no_grad():
        vid.law.alpha.copy_(torch.tensor([-200.0, 200.0]))  # log(1 + exp(200)) overflows in float32
    loss = vid(s, t)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert vid.law.alpha.grad is not None
    assert bool(torch.isfinite(vid.law.alpha.grad).all())
    torch.testing.assert_close(vid.variance[0] / vid.pair.teacher_variance[0], torch.tensor(1e-3))


# ---- building and keeping


def test_state_dict_restores_loss_and_estimate() -> None:
    s, t = maps()
    one = VID.between(s, t, arch="bn_relu3x2", generator=generator())
    one.fit(s, t, generator=generator(), training=QUICK)
    other = VID(3, 5, spatial=True, arch="bn_relu3x2").eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.estimate(s, t), one.estimate(s, t))
    assert torch.equal(other(s, t), one(s, t))


def test_fresh_keeps_the_hyper_parameters_and_forgets_the_fit() -> None:
    s, t = maps()
    old = VID.between(s, t, arch="relu3", reduction="nats", variance_floor=0.01, generator=generator())
    new = old.fresh(s, t, generator=generator(7))
    assert new.describe() == old.describe()
    assert not torch.equal(next(new.head.parameters()), next(old.head.parameters()))
    again = old.fresh(s, t, generator=generator(7))
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), again.parameters(), strict=True))


def test_building_and_fitting_leave_no_trace() -> None:
    s, t = pair(300, 3, 0.5)
    before, state = (s.clone(), t.clone()), torch.random.get_rng_state()
    for arch in ("linear", "relu3"):
        vid = VID.between(s, t, arch=arch, generator=generator())
        vid.fit(s, t, generator=generator(), training=QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(s, before[0])
    assert torch.equal(t, before[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VID(2, 2, arch="relu4"), "no VID head"),
        (lambda: VID(2, 2, reduction="sum"), "no VID reduction"),
        (lambda: VID(2, 2, variance_floor=0.0), "variance_floor is 0"),
        (lambda: VID.between(torch.ones(3, 2), torch.ones(4, 2)), "never truncates"),
        (lambda: VID.between(torch.ones(3, 2, 1, 1), torch.ones(3, 2)), "one layout"),
        (lambda: VID.between(torch.full((3, 2), torch.inf), torch.ones(3, 2)), "x contains 6 infinite"),
        (lambda: VID(2, 3)(torch.ones(3, 3), torch.ones(3, 2)), "student comes first"),
        (lambda: VID(2, 3, spatial=True)(torch.ones(3, 2), torch.ones(3, 3)), "built for maps"),
    ],
)
def test_unusable_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
