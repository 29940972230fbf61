"""Entropic transport against POT in float64, closed forms, gradients, and itself on its other path."""

from __future__ import annotations

import math
import warnings

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from mikit.core.errors import ConvergenceWarning, InputError
from mikit.functional.transport.sinkhorn import sinkhorn, sinkhorn_divergence

_TIGHT = {"tolerance": 1e-10, "max_iterations": 3000}


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _weights(n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def _plan_by_pot(x: Tensor, y: Tensor, epsilon: float, a: Tensor | None, b: Tensor | None) -> tuple[np.ndarray, float]:
    """Return POT's plan and the cost with the entropy relative to independence."""
    p = (torch.full((len(x),), 1 / len(x)) if a is None else a / a.sum()).double().numpy()
    q = (torch.full((len(y),), 1 / len(y)) if b is None else b / b.sum()).double().numpy()
    p, q = p / p.sum(), q / q.sum()
    cost = 0.5 * ot.dist(x.numpy(), y.numpy())
    plan = ot.sinkhorn(p, q, cost, epsilon, method="sinkhorn_log", stopThr=1e-11, numItermax=5000)
    relative = np.divide(plan, np.outer(p, q), out=np.ones_like(plan), where=plan > 0)
    return plan, float((plan * cost).sum() + epsilon * (plan * np.log(relative)).sum())


def _self_plan(x: Tensor, epsilon: float, a: Tensor | None) -> tuple[Tensor, float]:
    """Return the plan of a sample with itself and its cost, in logarithms, where alternating updates crawl."""
    p = torch.ones(len(x), dtype=torch.float64) if a is None else a
    p = p / p.sum()
    cost = 0.5 * (x[:, None] - x).square().sum(dim=2)
    f = torch.zeros_like(p)
    for _ in range(200):
        f = 0.5 * (f - epsilon * torch.logsumexp((f - cost) / epsilon + p.log(), dim=1))
    return ((f[:, None] + f - cost) / epsilon).exp() * p[:, None] * p, 2 * float(p @ f)


def _divergence_by_pot(x: Tensor, y: Tensor, epsilon: float, a: Tensor | None = None, b: Tensor | None = None) -> float:
    own = 0.5 * (_self_plan(x, epsilon, a)[1] + _self_plan(y, epsilon, b)[1])
    return _plan_by_pot(x, y, epsilon, a, b)[1] - own


def _gradient_by_pot(x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    across, _ = _plan_by_pot(x, y, epsilon, None, None)
    return _self_plan(x, epsilon, None)[0] @ x - torch.from_numpy(across) @ y


def _gradients(x: Tensor, y: Tensor, **options: float) -> tuple[Tensor, Tensor]:
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    first, second = torch.autograd.grad(sinkhorn_divergence(x, y, **options), (x, y))
    return first, second


def _error(own: Tensor, exact: Tensor) -> float:
    return float((own.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("held", [2**26, 0])
@pytest.mark.parametrize(
    ("n", "m", "epsilon", "weighted"),
    [(20, 20, 1.0, False), (15, 24, 0.5, False), (24, 15, 0.5, True), (30, 30, 0.2, True), (1, 9, 0.2, True)],
)
def test_values_equal_those_of_pot(n: int, m: int, epsilon: float, weighted: bool, held: int) -> None:
    x, y = _rows(n, 3, 0), _rows(m, 3, 1, 0.4)
    a, b = (_weights(n, 2), _weights(m, 3)) if weighted else (None, None)
    options = {"epsilon": epsilon, "weights_x": a, "weights_y": b, "held_entries": held, "strip": 7, **_TIGHT}
    solution = sinkhorn(x, y, **options)
    plan, value = _plan_by_pot(x, y, epsilon, a, b)
    assert solution.converged
    assert solution.marginal_error <= 1e-10
    assert solution.value.item() == pytest.approx(value, rel=1e-8)
    # The plan of the potentials as documented.
    p, q = (torch.ones(k, dtype=torch.float64) if w is None else w for k, w in ((n, a), (m, b)))
    cost = 0.5 * (x[:, None] - y).square().sum(dim=2)
    own = (solution.potential_x[:, None] + solution.potential_y - cost).div(epsilon).exp()
    own = own * (p / p.sum())[:, None] * (q / q.sum())
    assert np.abs(own.numpy() - plan).max() < 1e-8
    assert sinkhorn_divergence(x, y, **options).item() == pytest.approx(
        _divergence_by_pot(x, y, epsilon, a, b), abs=1e-8
    )


@pytest.mark.parametrize("held", [2**26, 0])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_derivatives(held: int, weighted: bool) -> None:
    x, y = _rows(6, 2, 0).requires_grad_(), _rows(5, 2, 1, 0.3).requires_grad_()
    a, b = (_weights(6, 2), _weights(5, 3)) if weighted else (None, None)
    assert torch.autograd.gradcheck(
        lambda p, q: sinkhorn_divergence(
            p, q, epsilon=0.3, weights_x=a, weights_y=b, held_entries=held, tolerance=1e-11, max_iterations=5000
        ),
        (x, y),
        atol=1e-6,
    )


@pytest.mark.parametrize("epsilon", [0.05, 0.01])
def test_the_default_tolerance_keeps_the_gradient_within_two_thousandths(epsilon: float) -> None:
    scale = 64**-0.5  # the mean cost is about 1
    x, y = _rows(300, 64, 0) * scale, _rows(250, 64, 1) * scale * 1.3 + 0.02
    exact = _gradients(x, y, epsilon=epsilon, tolerance=1e-8, max_iterations=20000)
    value = sinkhorn_divergence(x, y, epsilon=epsilon, tolerance=1e-8, max_iterations=20000).item()
    for held in (2**26, 0):
        own = _gradients(x.float(), y.float(), epsilon=epsilon, held_entries=held)
        assert max(_error(o, e) for o, e in zip(own, exact, strict=True)) < 2e-3
        single = sinkhorn_divergence(x.float(), y.float(), epsilon=epsilon, held_entries=held)
        assert single.item() == pytest.approx(value, rel=1e-5)
    reference = _gradient_by_pot(x, y, epsilon) if epsilon == 0.05 else exact[0]
    assert _error(exact[0], reference) < 1e-5


def test_small_epsilon_in_single_precision_goes_to_exact_transport() -> None:
    x, y = _rows(60, 4, 0), _rows(60, 4, 1, 1.0)
    plan, _ = ot.emd([], [], 0.5 * ot.dist(x.numpy(), y.numpy()), log=True)
    exact = float((plan * 0.5 * ot.dist(x.numpy(), y.numpy())).sum())
    for held in (2**26, 0):
        solution = sinkhorn(x.float(), y.float(), epsilon=1e-3, tolerance=1e-2, max_iterations=5000, held_entries=held)
        assert solution.converged
        # The entropy of a plan is at most log n.
        assert solution.value.item() == pytest.approx(exact, abs=1e-3 * math.log(60) + 0.02)
        assert torch.isfinite(solution.potential_x).all()


def test_values_known_in_closed_form() -> None:
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 4.0]])
    assert sinkhorn(one, two, epsilon=0.1).value.item() == 8.0
    assert sinkhorn_divergence(one, two, epsilon=0.1).item() == 8.0
    x = _rows(30, 3, 0)
    assert sinkhorn_divergence(x, x + 2, epsilon=0.2, **_TIGHT).item() == pytest.approx(6.0)
    assert sinkhorn_divergence(x, x.flip(0), epsilon=0.2, **_TIGHT).item() == pytest.approx(0, abs=1e-12)
    # Two points on each side, by symmetry one number: the share s of mass that goes to the other point.
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])
    s = 1 / (1 + math.exp(0.5 / 0.3))
    value = s * 0.5 + 0.3 * (s * math.log(2 * s) + (1 - s) * math.log(2 * (1 - s)))
    assert sinkhorn(a, b, epsilon=0.3).value.item() == pytest.approx(value, rel=1e-6)


def test_gaussians_at_large_samples() -> None:
    # For N(0, s²) and N(0, t²), the cost |x - y|² / 2 and epsilon e the entropic cost is
    # (s² + t²) / 2 - (e / 2) (w - 1 - log((w + 1) / 2)) with w = √(1 + 4 s² t² / e²).
    def entropic(s: float, t: float, e: float) -> float:
        w = math.sqrt(1 + 4 * s**2 * t**2 / e**2)
        return 0.5 * (s**2 + t**2) - 0.5 * e * (w - 1 - math.log(0.5 * (w + 1)))

    e, t = 0.5, 2.0
    grid = torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)[:, None]
    expected = entropic(1, t, e) - 0.5 * entropic(1, 1, e) - 0.5 * entropic(t, t, e)
    own = sinkhorn_divergence(grid, t * grid, epsilon=e)
    assert own.item() == pytest.approx(expected, rel=5e-3)  # the grid's variance is 0.998


def test_symmetry_sizes_and_duplicates() -> None:
    x, y = _rows(12, 3, 0), _rows(9, 3, 1)
    options = {"epsilon": 0.2, **_TIGHT}
    one, other = (sinkhorn_divergence(p, q, **options).item() for p, q in ((x, y), (y, x)))
    assert one == pytest.approx(other, abs=1e-10)
    # A row twice is a row of twice the weight.
    doubled = torch.cat([x, x[:1]])
    weights = torch.ones(12, dtype=torch.float64)
    weights[0] = 2
    merged = sinkhorn_divergence(x, y, weights_x=weights, **options)
    assert sinkhorn_divergence(doubled, y, **options).item() == pytest.approx(merged.item(), abs=1e-10)
    still = torch.zeros(5, 3)
    assert sinkhorn_divergence(still, still + 1, epsilon=0.1).item() == pytest.approx(1.5)
    assert sinkhorn_divergence(still, still, epsilon=0.1).item() == pytest.approx(0, abs=1e-8)


def test_rows_of_weight_zero_change_nothing() -> None:
    x, y = _rows(10, 3, 0), _rows(8, 3, 1)
    a, b = _weights(10, 2), _weights(8, 3)
    a[3], b[0] = 0, 0
    x[3] = y[0] = 1000.0
    far_x, far_y = x.clone().requires_grad_(), y.clone().requires_grad_()
    options = {"epsilon": 0.2, **_TIGHT}
    value = sinkhorn_divergence(far_x, far_y, weights_x=a, weights_y=b, **options)
    kept_x, kept_y = (torch.arange(n) != k for n, k in ((10, 3), (8, 0)))
    less = sinkhorn_divergence(x[kept_x], y[kept_y], weights_x=a[kept_x], weights_y=b[kept_y], **options)
    assert value.item() == pytest.approx(less.item(), abs=1e-12)
    value.backward()
    assert far_x.grad is not None
    assert far_x.grad[3].abs().max() == 0
    assert far_x.grad[kept_x].abs().min() > 0
    solution = sinkhorn(x, y, weights_x=a, weights_y=b, **options)
    cost = 0.5 * (x[3] - y).square().sum(dim=1)
    # The potential of a row without weight is the soft minimum over the other sample.
    soft = -0.2 * torch.logsumexp((solution.potential_y - cost) / 0.2 + (b / b.sum()).log(), dim=0)
    assert solution.potential_x[3].item() == pytest.approx(soft.item(), rel=1e-9)


@pytest.mark.parametrize("held", [2**26, 0])
def test_a_large_offset_and_outliers_cost_no_digits(held: int) -> None:
    x, y = (torch.round(_rows(40, 4, seed) * 64) / 64 for seed in (0, 1))  # exact in float32 after the shift
    options = {"epsilon": 0.5, "held_entries": held}
    exact = sinkhorn_divergence(x, y, **options).item()
    together = sinkhorn_divergence((x + 1e4).float(), (y + 1e4).float(), **options)
    assert together.item() == pytest.approx(exact, rel=1e-4)
    apart = sinkhorn_divergence((x + 1e4).float(), (y - 1e4).float(), **options)
    assert apart.item() == pytest.approx(0.5 * 4 * 2e4**2, rel=1e-4)
    # A single far row on one side only: every entry of its column starts below what float32 can hold.
    y[5] = 60.0
    outlying = sinkhorn(x.float(), y.float(), **options)
    reference = sinkhorn(x, y, **options)
    assert outlying.converged
    assert reference.converged
    assert outlying.value.item() == pytest.approx(reference.value.item(), rel=1e-5)
    # The entropy that the value adds to that of exact transport is between 0 and log n.
    exact = ot.emd2([], [], 0.5 * ot.dist(x.numpy(), y.numpy()))
    assert exact < reference.value.item() < exact + 0.5 * math.log(40)


def test_both_paths_agree_with_any_strip() -> None:
    x, y = _rows(50, 5, 0).float(), _rows(33, 5, 1).float()
    held = _gradients(x, y, epsilon=0.2, tolerance=1e-5)
    value = sinkhorn_divergence(x, y, epsilon=0.2, tolerance=1e-5).item()
    for strip in (1, 8, 100):
        streamed = _gradients(x, y, epsilon=0.2, tolerance=1e-5, held_entries=0, strip=strip)
        for own, other in zip(streamed, held, strict=True):
            assert _error(own, other.double()) < 1e-4
        again = sinkhorn_divergence(x, y, epsilon=0.2, tolerance=1e-5, held_entries=0, strip=strip)
        assert again.item() == pytest.approx(value, rel=1e-5)


def test_it_says_when_it_has_not_converged() -> None:
    x, y = _rows(30, 3, 0), _rows(30, 3, 1)
    solution = sinkhorn(x, y, epsilon=0.01, max_iterations=3)
    assert not solution.converged
    assert solution.iterations == 3
    assert solution.marginal_error > 3e-4
    with pytest.warns(ConvergenceWarning, match="stopped after 3 iterations with a marginal error of"):
        sinkhorn_divergence(x, y, epsilon=0.01, max_iterations=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sinkhorn_divergence(x, y, epsilon=0.5)
    with pytest.warns(ConvergenceWarning, match="nan"):
        assert math.isnan(sinkhorn_divergence(torch.full((3, 2), math.nan), x[:, :2].float(), epsilon=0.1))


def test_over_relaxation_needs_fewer_iterations() -> None:
    scale = 64**-0.5
    x, y = _rows(200, 64, 0) * scale, _rows(200, 64, 1) * scale
    solution = sinkhorn(x, y, epsilon=0.02, tolerance=1e-6)
    # Alternating updates alone, as POT has them, in float64.
    p = np.full(200, 1 / 200)
    _, log = ot.sinkhorn(
        p, p, 0.5 * ot.dist(x.numpy(), y.numpy()), 0.02, method="sinkhorn_log", stopThr=1e-6, numItermax=5000, log=True
    )
    assert solution.converged
    assert solution.iterations < 0.7 * log["niter"]


def test_dtypes_autocast_and_unneeded_gradients() -> None:
    x, y = _rows(10, 4, 0).float(), _rows(12, 4, 1).float()
    before = x.clone()
    outside = sinkhorn_divergence(x, y, epsilon=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sinkhorn_divergence(x, y, epsilon=0.3), outside)
        assert torch.equal(sinkhorn(x, y, epsilon=0.3).value, sinkhorn(x.clone(), y, epsilon=0.3).value)
    assert outside.dtype == torch.float32
    half = x.bfloat16().requires_grad_()
    value = sinkhorn_divergence(half, y, epsilon=0.3)
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    for first, second, position in ((x.clone().requires_grad_(), y, 0), (x, y.clone().requires_grad_(), 1)):
        sinkhorn_divergence(first, second, epsilon=0.3).backward()
        gradient = (first, second)[position].grad
        assert gradient is not None
        assert torch.allclose(gradient, _gradients(x, y, epsilon=0.3)[position], atol=1e-7)
    assert torch.equal(x, before)


def test_second_derivatives_are_refused() -> None:
    x, y = _rows(6, 3, 0).requires_grad_(), _rows(6, 3, 1)
    (gradient,) = torch.autograd.grad(sinkhorn_divergence(x, y, epsilon=0.5), x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError)):
        gradient.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("held", [2**26, 0])
def test_the_gpu_agrees(held: int) -> None:
    x, y = _rows(40, 5, 0), _rows(50, 5, 1)
    options = {"epsilon": 0.2, "tolerance": 1e-9, "held_entries": held}
    own = sinkhorn_divergence(x.cuda(), y.cuda(), **options)
    assert own.item() == pytest.approx(sinkhorn_divergence(x, y, **options).item(), rel=1e-8)
    for first, second in zip(_gradients(x.cuda(), y.cuda(), **options), _gradients(x, y, **options), strict=True):
        assert torch.allclose(first.cpu(), second, atol=1e-9)


def test_what_cannot_be_used_is_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(InputError, match="shape"):
        sinkhorn_divergence(torch.zeros(3), x, epsilon=1.0)
    with pytest.raises(InputError, match="features"):
        sinkhorn(x, torch.zeros(3, 4), epsilon=1.0)
    for epsilon in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="epsilon is"):
            sinkhorn_divergence(x, x, epsilon=epsilon)
    with pytest.raises(InputError, match="tolerance is 0"):
        sinkhorn(x, x, epsilon=1.0, tolerance=0)
    with pytest.raises(InputError, match="max_iterations is 0"):
        sinkhorn(x, x, epsilon=1.0, max_iterations=0)
    with pytest.raises(InputError, match="strip is 0"):
        sinkhorn(x, x, epsilon=1.0, strip=0)
    with pytest.raises(InputError, match=r"weights_y has shape \(2,\)"):
        sinkhorn(x, x, epsilon=1.0, weights_y=torch.ones(2))
    for weights in (torch.tensor([1.0, -1.0, 1.0]), torch.zeros(3), torch.tensor([1.0, math.nan, 1.0])):
        with pytest.raises(InputError, match="weights_x must be finite"):
            sinkhorn_divergence(x, x, epsilon=1.0, weights_x=weights)
