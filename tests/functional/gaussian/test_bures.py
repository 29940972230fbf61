"""Squared Bures and Gaussian Wasserstein distances against matrix square roots, closed forms and exact transport."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import scipy.linalg
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.gaussian.bures import bures2, gaussian_wasserstein2, polar_by_eigenvectors, polar_by_products


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return rows @ (mixing + 0.5 * torch.eye(d, dtype=torch.float64)) + shift


def _by_square_roots(x: Tensor, y: Tensor, correction: int = 0) -> float:
    a, b = (np.atleast_2d(np.cov(rows.numpy().T, ddof=correction)) for rows in (x, y))
    values, vectors = scipy.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    inner = scipy.linalg.eigvalsh(root @ b @ root)
    return float(np.trace(a) + np.trace(b) - 2 * np.sqrt(inner.clip(min=0)).sum())


def _gradients(x: Tensor, y: Tensor, correction: int = 0) -> tuple[Tensor, Tensor]:
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    first, second = torch.autograd.grad(bures2(x, y, correction=correction), (x, y))
    return first, second


def _by_singular_values(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and gradient in ``x``, both from one singular value decomposition in float64."""
    a, b = ((rows.double() - rows.double().mean(dim=0)) / rows.shape[0] ** 0.5 for rows in (x, y))
    u, s, v = torch.linalg.svd(a @ b.T, full_matrices=False)
    kept = s > 1e-9 * s[0]
    polar = u[:, kept] @ v[kept]
    return a.square().sum() + b.square().sum() - 2 * s.sum(), 2 * (a - polar @ b) / x.shape[0] ** 0.5


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize(
    ("n", "m", "d"), [(40, 30, 5), (8, 11, 20), (9, 30, 12), (30, 9, 12), (6, 6, 6), (7, 7, 6), (4, 9, 1)]
)
def test_the_value_equals_matrix_square_roots(n: int, m: int, d: int, correction: int) -> None:
    x, y = _rows(n, d, 0, 3.0), _rows(m, d, 1)
    # Eigenvalues that should be 0 come out near 1e-17, their roots near 3e-9: the reference's error, not ours.
    assert bures2(x, y, correction=correction).item() == pytest.approx(_by_square_roots(x, y, correction), abs=1e-6)


def test_values_known_in_closed_form() -> None:
    x = _rows(50, 4, 0)
    trace = float(torch.cov(x.T, correction=0).trace())
    assert bures2(x, 3 * x).item() == pytest.approx(4 * trace)  # (3 - 1)² times the trace
    assert bures2(x, x).item() == pytest.approx(0, abs=1e-13)
    assert bures2(x, x.flip(0) + 7).item() == pytest.approx(0, abs=1e-12)
    assert bures2(x, torch.zeros_like(x)).item() == pytest.approx(trace)
    assert gaussian_wasserstein2(x, x + 2).item() == pytest.approx(4 * 2**2)
    # Opposite correlations: no difference in any column, yet a distance.
    y = x[:, :2] @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x[:, :2].T, correction=0))).T
    rho = 0.8
    positive, negative = (
        y @ torch.linalg.cholesky(torch.tensor([[1, r], [r, 1]], dtype=torch.float64)).T for r in (rho, -rho)
    )
    # The covariances commute with eigenvalues 1 ± rho in opposite order.
    assert bures2(positive, negative).item() == pytest.approx(2 * (math.sqrt(1 + rho) - math.sqrt(1 - rho)) ** 2)


def test_the_gaussian_distance_bounds_exact_transport_from_below() -> None:
    x, y = _rows(60, 3, 0), _rows(60, 3, 1, 0.5).exp()
    exact = ot.emd2([], [], ot.dist(x.numpy(), y.numpy()))
    assert 0 < gaussian_wasserstein2(x, y).item() < exact
    shape = bures2(x, y).item()
    shift = float((x.mean(0) - y.mean(0)).square().sum())
    assert gaussian_wasserstein2(x, y).item() == pytest.approx(shape + shift)


@pytest.mark.parametrize(("n", "m", "d"), [(12, 9, 4), (5, 7, 9), (5, 12, 8)])
def test_gradients_are_derivatives(n: int, m: int, d: int) -> None:
    x, y = _rows(n, d, 0).requires_grad_(), _rows(m, d, 1, 0.3).requires_grad_()
    assert torch.autograd.gradcheck(bures2, (x, y), atol=1e-6)
    assert torch.autograd.gradcheck(lambda a, b: gaussian_wasserstein2(a, b, correction=1), (x, y), atol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(60, 200), (60, 80), (80, 60), (300, 40)])
def test_single_precision_keeps_six_digits_of_the_gradient(n: int, d: int) -> None:
    scale = torch.logspace(0, -2, d)
    x, y = (_rows(n, d, seed).float() * scale + 100 for seed in (0, 1))
    value, gradient = _by_singular_values(x, y)
    assert bures2(x, y).item() == pytest.approx(value.item(), rel=1e-6)
    own, _ = _gradients(x, y)
    assert own.dtype == torch.float32
    assert float((own - gradient).norm() / gradient.norm()) < 1e-5


def test_singular_covariances_have_finite_gradients_without_noise() -> None:
    for n, d in ((40, 10), (12, 30), (11, 10)):
        x, y = _rows(n, d, 0), _rows(n + 3, d, 1)
        x[:, 1], x[:, 2], x[:, 3] = 0.0, 1.1, x[:, 4]  # a dead unit, a constant that rounds, a copy
        assert bures2(x, y).item() == pytest.approx(_by_square_roots(x, y), abs=1e-5)
        for rows in (x, x.float()):
            value, expected = _by_singular_values(x, y)
            own, other = _gradients(rows, y.to(rows.dtype))
            assert float((own - expected).norm() / expected.norm()) < 1e-5
            assert torch.isfinite(other).all()
            # Nothing points out of the span of the columns of x.
            basis = scipy.linalg.orth((x - x.mean(0)).numpy(), rcond=1e-9)
            outside = own.double().numpy() - basis @ (basis.T @ own.double().numpy())
            assert np.abs(outside).max() < 1e-6 * own.abs().max()
            assert bures2(rows, y.to(rows.dtype)).item() == pytest.approx(value.item(), rel=1e-6)


def test_samples_without_any_variance() -> None:
    for n, d in ((1, 3), (4, 6), (6, 4)):
        still, y = torch.full((n, d), 0.1), _rows(5, d, 0).float()
        own, other = _gradients(still, y)
        assert bures2(still, y).item() == pytest.approx(float(torch.cov(y.T, correction=0).trace()), rel=1e-6)
        assert own.abs().max() == 0
        assert torch.isfinite(other).all()
        assert bures2(still, still).item() == 0


def test_a_large_offset_costs_no_digits() -> None:
    for n, d in ((50, 8), (8, 50)):
        x, y = (torch.round(_rows(n, d, seed) * 64) / 64 for seed in (0, 1))  # exact in float32 after the shift
        exact, gradient = bures2(x, y).item(), _gradients(x, y)[0]
        far_x, far_y = (x + 1e4).float(), (y - 1e4).float()
        assert bures2(far_x, far_y).item() == pytest.approx(exact, rel=1e-6)
        assert torch.allclose(_gradients(far_x, far_y)[0].double(), gradient, atol=1e-6 * float(gradient.abs().max()))


def test_dtypes_autocast_and_unneeded_gradients() -> None:
    x, y = _rows(10, 4, 0).float(), _rows(12, 4, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bures2(x, y), bures2(x.clone(), y.clone()))
        assert bures2(x, y).dtype == torch.float32
    half = x.bfloat16().requires_grad_()
    value = bures2(half, y)
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    assert bures2(x.double(), y).dtype == torch.float64
    only = x.clone().requires_grad_()
    bures2(only, y).backward()
    assert only.grad is not None
    assert torch.equal(only.grad, _gradients(x, y)[0])


def test_the_samples_are_left_as_they_are() -> None:
    for n, d in ((9, 4), (4, 9)):
        x, y = _rows(n, d, 0, 2.0), _rows(n, d, 1)
        before = x.clone(), y.clone()
        _gradients(x, y)
        assert torch.equal(x, before[0])
        assert torch.equal(y, before[1])


def test_second_derivatives_are_refused() -> None:
    x, y = _rows(6, 3, 0).requires_grad_(), _rows(7, 3, 1)
    (gradient,) = torch.autograd.grad(bures2(x, y), x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError)):
        gradient.sum().backward()


@pytest.mark.parametrize(("k", "l", "rank"), [(20, 20, 20), (12, 30, 12), (30, 12, 12), (20, 25, 7)])
def test_products_give_the_polar_factor_of_eigenvectors(k: int, l: int, rank: int) -> None:  # noqa: E741
    generator = torch.Generator().manual_seed(k + l)
    left, right = (torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in (k, l))
    u, v = torch.linalg.qr(left)[0], torch.linalg.qr(right)[0]
    matrix = (u * torch.logspace(0, -4, rank, dtype=torch.float64)) @ v.T * 7
    polar = polar_by_products(matrix)
    # Singular values of 1e-17 that should be 0 are up to 1e-7 by the end.
    assert polar.residual < (1e-12 if rank == min(k, l) else 1e-6)
    # Rounding of 1e-16 in the matrix is 1e-12 of its smallest singular value.
    assert torch.allclose(polar.factor, u @ v.T, atol=1e-6)
    assert torch.allclose(polar_by_eigenvectors(matrix), u @ v.T, atol=1e-7)
    assert float((polar.factor * matrix).sum()) == pytest.approx(7 * float(torch.logspace(0, -4, rank).sum()), rel=1e-6)


def test_products_serve_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _rows(30, 60, 0), _rows(20, 60, 1)
    expected, gradients = bures2(x, y), _gradients(x, y)
    monkeypatch.setattr(
        "mikit.functional.gaussian.bures.polar_by_eigenvectors", lambda cross, accuracy: polar_by_products(cross).factor
    )
    assert bures2(x, y).item() == pytest.approx(expected.item(), rel=1e-12)
    for own, other in zip(_gradients(x, y), gradients, strict=True):
        assert torch.allclose(own, other, atol=1e-7)


@pytest.mark.gpu
def test_the_gpu_agrees() -> None:
    x, y = _rows(40, 100, 0), _rows(50, 100, 1)
    assert bures2(x.cuda(), y.cuda()).item() == pytest.approx(bures2(x, y).item(), rel=1e-9)
    for own, other in zip(_gradients(x.cuda(), y.cuda()), _gradients(x, y), strict=True):
        assert torch.allclose(own.cpu(), other, atol=1e-8)


def test_what_cannot_be_used_is_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(InputError, match="shape"):
        bures2(torch.zeros(3), x)
    with pytest.raises(InputError, match="features"):
        bures2(x, torch.zeros(3, 4))
    with pytest.raises(InputError, match="correction is 2"):
        bures2(x, x, correction=2)
    with pytest.raises(InputError, match="at least 2"):
        gaussian_wasserstein2(x, x[:1], correction=1)
    with pytest.raises(InputError, match="at least 1"):
        bures2(x, x[:0])
