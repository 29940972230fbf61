"""VID's other forms: released codes, closed and full variances, maps of two sizes, rows beside maps, special cases."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from mikit.core.errors import InputError
from mikit.estimators.vid.vid import VID
from mikit.functional.vid.full_covariance import joint_difference_of_entropies, joint_gaussian_nll

FORMS = [
    {"variance": "learned"},
    {"variance": "closed"},
    {"variance": "full"},
    {"arch": "relu3", "variance": "full"},
    {"compat": "repdistiller"},
    {"compat": "xfer"},
]
BUILT = ["rows", "maps", "rows beside maps"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def features(built: str, n: int = 40) -> tuple[Tensor, Tensor]:
    if built == "rows":
        s = sample(n, 4)
        return s, 2 + s @ sample(4, 3, seed=1) + 0.5 * sample(n, 3, seed=2)
    maps = sample(n, 4, 6, 5)
    t = 2 + torch.einsum("nchw,ct->nthw", maps, sample(4, 3, seed=1)) + 0.5 * sample(n, 3, 6, 5, seed=2)
    return (maps, t) if built == "maps" else (maps.mean((2, 3)), t)


def test_the_joint_score_equals_the_distribution() -> None:
    residual, root = sample(9, 3, 2, 4).double(), sample(3, 3, seed=1).double()
    covariance, coordinates = root @ root.T + torch.eye(3), sample(3, 3, seed=2).double()
    distribution = MultivariateNormal(torch.zeros(3).double(), covariance)
    positions = residual.permute(0, 2, 3, 1) @ coordinates.T
    value = joint_gaussian_nll(residual, covariance, coordinates=coordinates)
    torch.testing.assert_close(value, -distribution.log_prob(positions).mean())
    target = sample(9, 3, 2, 4, seed=3).double()
    standard = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    gain = distribution.log_prob(positions) - standard.log_prob(target.permute(0, 2, 3, 1) @ coordinates.T)
    found = joint_difference_of_entropies(residual, target, covariance, coordinates=coordinates)
    torch.testing.assert_close(found, gain.sum((1, 2)))


@pytest.mark.parametrize(("code", "eps", "raw"), [("repdistiller", 1e-5, None), ("xfer", 0.0, math.log1p(math.exp(5)))])
def test_released_losses_and_gradients_to_1e_6(code: str, eps: float, raw: float | None) -> None:
    s, t = features("maps")
    vid = VID.between(s, t, compat=code, generator=generator())
    log_scale = torch.full((3,), math.log(math.exp(5 - eps) - 1) if raw is None else raw, requires_grad=True)
    head = copy.deepcopy(vid.head)
    variance = torch.log(1 + torch.exp(log_scale)) + eps
    assert float(variance.detach()[0]) == pytest.approx(5.0 if code == "repdistiller" else 5.0134, abs=5e-5)
    spread = variance.view(1, -1, 1, 1)
    released = (0.5 * ((head(s) - t) ** 2 / spread + spread.log())).mean()
    loss = vid(s, t)
    released.backward()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(released.detach()), abs=1e-6, rel=1e-6)
    torch.testing.assert_close(vid.law.alpha.grad, log_scale.grad, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(vid.head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_repdistiller_pools_the_larger_and_xfer_has_no_rule() -> None:
    s, t = sample(4, 4, 8, 8), sample(4, 3, 4, 4, seed=1)
    vid = VID.between(s, t, compat="repdistiller", generator=generator())
    error = (vid.head(nn.functional.adaptive_avg_pool2d(s, (4, 4))) - t).square().mean()
    assert float((vid(s, t) - 0.5 * (error / 5 + math.log(5))).detach()) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="no rule for different sizes"):
        VID.between(s, t, compat="xfer")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("built", BUILT)
def test_ten_steps_move_every_parameter(built: str, form: dict[str, str]) -> None:
    if built == "rows beside maps" and ("compat" in form or "arch" in form):
        pytest.skip("these have heads of their own")
    s, t = features(built)
    vid = VID.between(s, t, generator=generator(), **form)
    groups = vid.param_groups()
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in vid.parameters())
    assert all(group.get("weight_decay") == 0 for group in groups[1:])
    assert len(groups) == (1 if form.get("variance") == "closed" else 2)
    start = {name: value.clone() for name, value in vid.state_dict().items()}
    optimizer = torch.optim.SGD(groups, lr=0.02, weight_decay=5e-4)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = vid(s, t)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    moved = [name for name, _ in vid.named_parameters()]
    moved += ["law.running"] if form.get("variance") == "closed" else []
    assert all(not torch.equal(vid.state_dict()[name], start[name]) for name in moved)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_after_relu_at_ten_deviations(dtype: torch.dtype, form: dict[str, str]) -> None:
    s, t = ((v + 10).relu() for v in (sample(64, 4, 4, 4), sample(64, 3, 4, 4, seed=1)))
    vid = VID.between(s, t, reduction="mean", generator=generator(), **form)
    whole = float(vid(s, t).detach())
    half = s.to(dtype).requires_grad_()
    vid = VID.between(s, t, reduction="mean", generator=generator(), **form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vid(half, t.to(dtype))
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(whole, rel=1e-2)
    assert bool(torch.isfinite(half.grad).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in vid.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_the_compiler_keeps_one_graph(form: dict[str, str]) -> None:
    torch.compiler.reset()
    s, t = features("maps", n=12)
    vid = VID.between(s, t, generator=generator(), **form)
    eager = copy.deepcopy(vid)
    compiled = torch.compile(vid, fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(s, t), eager(s, t)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for a, b in zip(vid.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_full_covariance_counts_correlated_channels_once() -> None:
    s, noise, mix = sample(8000, 3), sample(8000, 4, seed=1), sample(3, 4, seed=2)
    root = torch.eye(4) + 0.8 * sample(4, 4, seed=3)
    t = s @ mix + noise @ root
    joint, rest = mix.T @ mix + root.T @ root, root.T @ root
    truth = 0.5 * float(torch.logdet(joint.double()) - torch.logdet(rest.double()))
    values = {}
    for variance in ("learned", "full"):
        vid = VID.between(s[:4000], t[:4000], variance=variance, generator=generator())
        vid.fit(s[:4000], t[:4000], generator=generator())
        values[variance] = float(vid.estimate(s[4000:], t[4000:])), vid.standard_error(s[4000:], t[4000:])
    assert values["full"][0] == pytest.approx(truth, abs=3 * math.sqrt(2) * values["full"][1])
    assert abs(values["learned"][0] - truth) > 10 * values["learned"][1]


def test_a_dependent_channel_is_left_out_of_a_full_covariance() -> None:
    s, t = features("rows", n=400)
    doubled = torch.cat([t, t[:, :1] - t[:, 1:2]], dim=1)
    with pytest.warns(UserWarning, match="1 directions of the 4"):
        vid = VID.between(s, doubled, variance="full", generator=generator())
    with pytest.warns(UserWarning, match="1 directions of the 4"):
        vid.fit(s, doubled, generator=generator())
    plain = VID.between(s, t, variance="full", generator=generator())
    plain.fit(s, t, generator=generator())
    assert float(vid.estimate(s, doubled)) == pytest.approx(float(plain.estimate(s, t)), abs=0.02)


def test_fitnet_kd_and_attention_transfer_are_special_cases() -> None:
    s, t = features("maps")
    fitnet = VID(4, 3, spatial=True).requires_grad_(False)
    fitnet.head.requires_grad_(True)
    assert [len(group["params"]) for group in fitnet.param_groups()] == [2]
    torch.testing.assert_close(fitnet(s, t), 0.5 * nn.functional.mse_loss(fitnet.head(s), t))

    def identity(width: int) -> VID:
        vid = VID(width, width)
        with torch.no_grad():
            vid.head[0].weight.copy_(torch.eye(width))
            vid.head[0].bias.zero_()
        return vid

    z_s, z_t = (v - v.mean(1, keepdim=True) for v in (sample(30, 7).double(), sample(30, 7, seed=1).double()))
    heat = 1e4
    soft = [torch.log_softmax(z / heat, dim=1) for z in (z_s, z_t)]
    kd = heat**2 * nn.functional.kl_div(soft[0], soft[1], reduction="batchmean", log_target=True)
    torch.testing.assert_close(identity(7).double()(z_s, z_t), kd, rtol=1e-3, atol=0)

    a_s, a_t = (nn.functional.normalize(v.square().mean(1).flatten(1)) for v in (s, t))
    torch.testing.assert_close(identity(30)(a_s, a_t), 0.5 * (a_s - a_t).square().mean())


def test_interpolation_leaves_the_teacher_as_it_is() -> None:
    s, t = sample(6, 4, 3, 3), sample(6, 3, 6, 5, seed=1)
    vid = VID.between(s, t, resize="interpolate", generator=generator())
    finer = nn.functional.interpolate(s, size=(6, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(vid(s, t), vid(finer, t))
    torch.testing.assert_close(vid.pair.teacher_variance, t.var((0, 2, 3), correction=0))


def test_closed_variances_follow_the_residuals_and_the_gradient_is_that_of_the_profile() -> None:
    s, t = features("rows", n=300)
    vid = VID.between(s, t, variance="closed", generator=generator())
    for _ in range(200):
        loss = vid(s, t)
    residual = (vid.head(vid.pair.student(s)) - vid.pair.teacher(t)).square().mean(0)
    torch.testing.assert_close(vid.law.running, residual.detach(), rtol=1e-4, atol=0)
    (ours,) = torch.autograd.grad(loss, vid.head[0].weight)
    (profile,) = torch.autograd.grad(0.5 * residual.log().mean(), vid.head[0].weight)
    torch.testing.assert_close(ours, profile, rtol=1e-3, atol=1e-6)
    before = vid.law.running.clone()
    vid.eval()(s + 1, t)
    assert torch.equal(before, vid.law.running)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VID(2, 2, variance="diagonal"), "no VID variance"),
        (lambda: VID(2, 2, compat="mdistiller"), "no VID compat"),
        (lambda: VID(2, 2, resize="crop"), "no VID resize"),
        (lambda: VID(2, 2, arch="transposed"), "needs the size"),
        (lambda: VID(2, 2, compat="xfer", arch="relu3"), 'where arch is "linear2"'),
        (lambda: VID(2, 2, compat="xfer", variance_floor=0.1), "its own variance floor"),
        (lambda: VID(2, 3, spatial=True, size=(4, 4))(torch.ones(3, 2), torch.ones(3, 3, 5, 5)), "predicts maps of 4"),
    ],
)
def test_unusable_options_are_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
