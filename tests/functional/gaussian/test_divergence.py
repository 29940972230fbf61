"""Gaussian divergences, shrunk covariances and the distance of columns against torch, scikit-learn and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from mikit.core.errors import InputError
from mikit.functional.gaussian.bures import gaussian_wasserstein2
from mikit.functional.gaussian.divergence import diagonal_gaussian_wasserstein2, gaussian_kl
from mikit.functional.gaussian.shrinkage import ledoit_wolf_weight, shrunk_sample


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return rows @ (mixing + 0.5 * torch.eye(d, dtype=torch.float64)) + shift


def _covariance(rows: Tensor, amount: float) -> Tensor:
    covariance = torch.atleast_2d(torch.cov(rows.T, correction=0))
    return (1 - amount) * covariance + amount * covariance.trace() / len(covariance) * torch.eye(
        len(covariance)
    ).double()


def _by_torch(x: Tensor, y: Tensor, amounts: tuple[float, float], diagonal: bool = False) -> Tensor:
    distributions = []
    for rows, amount in zip((x, y), amounts, strict=True):
        covariance = _covariance(rows, amount)
        distributions.append(MultivariateNormal(rows.mean(0), covariance.diagonal().diag() if diagonal else covariance))
    value: Tensor = kl_divergence(*distributions)
    return value


def _opposite(d: int, n: int, rho: float = 0.9) -> tuple[Tensor, Tensor]:
    """Return samples of variance 1 whose columns correlate by rho, the second with every other column turned over."""
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(z.T, correction=0)), z.T, upper=False)
    covariance = rho * torch.ones(d, d, dtype=torch.float64) + (1 - rho) * torch.eye(d, dtype=torch.float64)
    x = (torch.linalg.cholesky(covariance) @ z).T
    return x, x * torch.where(torch.arange(d) % 2 == 0, 1.0, -1.0).double()


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.3, 1.0])
def test_value_and_gradient_equal_those_of_torch(shrinkage: float | None, diagonal: bool) -> None:
    x, y = _rows(40, 5, 0, 2.0).requires_grad_(), _rows(30, 5, 1).requires_grad_()
    ours = gaussian_kl(x, y, shrinkage=shrinkage, diagonal=diagonal)
    amount = shrinkage or 0.0
    theirs = _by_torch(x, y, (amount, amount), diagonal)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    for own, other in zip(torch.autograd.grad(ours, (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True):
        assert torch.allclose(own, other, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 5), (12, 20, 40), (128, 128, 64), (30, 12, 1)])
def test_ledoit_wolf_weights_are_those_of_scikit_learn(n: int, m: int, d: int) -> None:
    x, y = _rows(n, d, 0, 2.0), _rows(m, d, 1)
    amounts = tuple(float(ledoit_wolf(rows.numpy())[1]) for rows in (x, y))
    if d > 1:  # with one column no weight changes anything, and theirs is 0
        assert [ledoit_wolf_weight(rows).item() for rows in (x, y)] == pytest.approx(amounts, rel=1e-10)
    theirs = _by_torch(x, y, (amounts[0], amounts[1]))
    assert gaussian_kl(x, y).item() == pytest.approx(theirs.item(), rel=1e-8)


def test_the_weight_of_variances_alone_is_that_of_loops() -> None:
    x = _rows(30, 6, 0, 2.0) * torch.linspace(0.5, 1.5, 6)
    squares = [[float(entry) ** 2 for entry in column] for column in (x - x.mean(0)).T]
    variances = [sum(column) / 30 for column in squares]
    mean = sum(variances) / 6
    errors = sum(
        sum((square - variance) ** 2 for square in column) / 30**2
        for column, variance in zip(squares, variances, strict=True)
    )
    expected = errors / sum((variance - mean) ** 2 for variance in variances)
    assert 0 < expected < 1
    assert ledoit_wolf_weight(x, diagonal=True).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 5), (12, 20, 40)])
def test_shrunk_samples_have_the_shrunk_covariance(n: int, m: int, d: int) -> None:
    x, y = _rows(n, d, 0, 2.0), _rows(m, d, 1)
    drawn = shrunk_sample(x, shrinkage="ledoit-wolf")
    assert torch.allclose(torch.cov(drawn.T, correction=0), torch.from_numpy(ledoit_wolf(x.numpy())[0]), atol=1e-10)
    assert torch.allclose(drawn.mean(0), x.mean(0), atol=1e-12)
    rows = x.requires_grad_()

    def of(sample: Tensor) -> Tensor:
        return gaussian_wasserstein2(shrunk_sample(sample, shrinkage=0.3), shrunk_sample(y, shrinkage=0.3))

    (own,) = torch.autograd.grad(of(rows), rows)
    step = 1e-5 * _rows(n, d, 3)
    slope = (of(rows.detach() + step) - of(rows.detach() - step)).item() / 2
    assert float((own * step).sum()) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("n", "m", "shrinkage"), [(12, 9, None), (4, 5, 0.4)])
def test_gradients_are_derivatives(n: int, m: int, shrinkage: float | None, diagonal: bool) -> None:
    x, y = _rows(n, 6, 0).requires_grad_(), _rows(m, 6, 1, 0.3).requires_grad_()
    if diagonal or n > 6:

        def value(a: Tensor, b: Tensor) -> Tensor:
            return gaussian_kl(a, b, shrinkage=shrinkage, diagonal=diagonal)

        assert torch.autograd.gradcheck(value, (x, y), atol=1e-5)
    assert torch.autograd.gradcheck(
        lambda a, b: diagonal_gaussian_wasserstein2(a, b, shrinkage=shrinkage), (x, y), atol=1e-6
    )


def test_gradients_of_few_rows_are_derivatives() -> None:
    x, y = _rows(4, 6, 0).requires_grad_(), _rows(5, 6, 1, 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: gaussian_kl(a, b, shrinkage=0.4), (x, y), atol=1e-6)


def test_values_known_in_closed_form() -> None:
    x = _rows(50, 4, 0)
    assert gaussian_kl(x, x.flip(0)).item() == pytest.approx(0, abs=1e-12)
    scaled = 3 * (x - x.mean(0)) + x.mean(0)
    # d (1/9 - 1 + log 9) / 2 one way, d (9 - 1 - log 9) / 2 the other.
    assert gaussian_kl(x, scaled, shrinkage=None).item() == pytest.approx(2 * (1 / 9 - 1 + math.log(9)))
    assert gaussian_kl(scaled, x, shrinkage=None).item() == pytest.approx(2 * (9 - 1 - math.log(9)))
    # The divergence does not change under an invertible map of both.
    y, turn = _rows(40, 4, 1, 0.5), _rows(4, 4, 2)
    assert gaussian_kl(x @ turn, y @ turn, shrinkage=None).item() == pytest.approx(
        gaussian_kl(x, y, shrinkage=None).item(), rel=1e-9
    )
    small = torch.tensor([1e-6, 1.0, 1e3, 1.0], dtype=torch.float64)
    assert gaussian_kl(x * small, y * small, shrinkage=None).item() == pytest.approx(
        gaussian_kl(x, y, shrinkage=None).item(), rel=1e-9
    )


def test_the_bias_of_small_samples_is_as_stated() -> None:
    d, n = 4, 200
    values = [
        gaussian_kl(
            torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
            torch.randn(n, d, generator=torch.Generator().manual_seed(900 + seed), dtype=torch.float64),
            shrinkage=None,
        ).item()
        for seed in range(200)
    ]
    spread = torch.tensor(values).std().item() / math.sqrt(200)
    # To first order in 1 / n; the next one is about d / n of it.
    assert abs(sum(values) / 200 - d * (d + 3) / 2 / n) < 3 * spread + d / n * d * (d + 3) / 2 / n


@pytest.mark.parametrize(("n", "d", "dead"), [(128, 64, 8), (128, 512, 0), (128, 512, 200), (3, 10, 2)])
def test_dead_units_and_few_rows_stay_finite(n: int, d: int, dead: int) -> None:
    x, y = torch.randn(2, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, :dead] = 0.1
    for diagonal in (False, True):
        for first, second in ((x, y), (y, x)):
            rows = first.clone().float().requires_grad_()
            value = gaussian_kl(rows, second.float(), diagonal=diagonal)
            value.backward()
            assert 0 < value.item() < math.inf
            assert rows.grad is not None
            assert torch.isfinite(rows.grad).all()
            assert rows.grad.abs().sum() > 0


def test_singular_covariances_are_refused_without_shrinkage() -> None:
    x, y = _rows(40, 5, 0), _rows(40, 5, 1)
    dead = x.clone()
    dead[:, 2] = 1.1
    for first, second, name in ((dead, y, "x"), (y, dead, "y")):
        for diagonal in (False, True):
            with pytest.raises(InputError, match=f"covariance of {name} is singular: 1 of its 5 features"):
                gaussian_kl(first, second, shrinkage=None, diagonal=diagonal)
    copied = x.clone()
    copied[:, 4] = copied[:, 0] - 2 * copied[:, 1]
    for rows in (copied, copied.float()):
        with pytest.raises(InputError, match="40 samples leave combinations of the 5 features"):
            gaussian_kl(rows, y.to(rows.dtype), shrinkage=None)
    with pytest.raises(InputError, match='shrinkage="ledoit-wolf"'):
        gaussian_kl(x[:4], y, shrinkage=None)
    with pytest.raises(InputError, match="5 of its 5 features never vary"):
        gaussian_kl(torch.ones(9, 5, dtype=torch.float64), y)


@pytest.mark.parametrize(("d", "expected"), [(2, 2.26), (64, 106)])
def test_columns_are_blind_to_opposite_correlations(d: int, expected: float) -> None:
    x, y = _opposite(d, 400)
    assert diagonal_gaussian_wasserstein2(x, y).item() == pytest.approx(0, abs=1e-12)
    assert gaussian_wasserstein2(x, y).item() == pytest.approx(expected, rel=2e-3)  # as many digits as are stated
    # The leading directions, of variance 1 + (d - 1) rho against 1 - rho elsewhere, are orthogonal.
    own = 2 * (math.sqrt(1 + (d - 1) * 0.9) - math.sqrt(0.1)) ** 2
    assert gaussian_wasserstein2(x, y).item() == pytest.approx(own, rel=1e-8)
    assert gaussian_kl(x, y, diagonal=True, shrinkage=None).item() == pytest.approx(0, abs=1e-12)
    assert gaussian_kl(x, y, shrinkage=None).item() > 1


def test_the_columns_are_those_of_the_released_code() -> None:
    x, y = _rows(30, 6, 0, 1.0), _rows(20, 6, 1)
    expected = (x.mean(0) - y.mean(0)).square().sum() + (x.std(0, correction=0) - y.std(0, correction=0)).square().sum()
    assert diagonal_gaussian_wasserstein2(x, y).item() == pytest.approx(expected.item(), rel=1e-12)
    assert diagonal_gaussian_wasserstein2(x, y).item() <= gaussian_wasserstein2(x, y).item()
    variances = x.var(0, correction=0)
    narrow = 0.5 * variances + 0.5 * variances.mean()
    pulled = diagonal_gaussian_wasserstein2(x, x[:1].expand(30, -1), shrinkage=0.5).item()
    assert pulled == pytest.approx(float((x.mean(0) - x[0]).square().sum() + narrow.sum()), rel=1e-10)


def test_dead_columns_have_no_gradient_in_their_spread() -> None:
    x, y = _rows(10, 3, 0), _rows(10, 3, 1)
    x[:, 1] = 0.7
    rows = x.clone().requires_grad_()
    diagonal_gaussian_wasserstein2(rows, y).backward()
    assert rows.grad is not None
    shift = 2 * (0.7 - float(y[:, 1].mean())) / 10
    assert torch.allclose(rows.grad[:, 1], torch.full((10,), shift, dtype=torch.float64))


def test_dtypes_autocast_and_offsets() -> None:
    x, y = _rows(40, 5, 0).float(), _rows(40, 5, 1).float()
    for formula in (gaussian_kl, diagonal_gaussian_wasserstein2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = formula(x, y)
        assert inside.dtype == torch.float32
        assert torch.equal(inside, formula(x, y))
        assert formula(x.double() + 1e6, y.double() + 1e6).item() == pytest.approx(inside.item(), rel=1e-5)
        assert formula(x * float("nan"), y).isnan()


def test_second_derivatives_are_refused() -> None:
    x, y = _rows(9, 3, 0).requires_grad_(), _rows(9, 3, 1)
    (gradient,) = torch.autograd.grad(gaussian_kl(x, y), x, create_graph=True)
    with pytest.raises(NotImplementedError):
        gradient.sum().backward()


def test_what_cannot_be_used_is_refused() -> None:
    x = _rows(9, 3, 0)
    with pytest.raises(InputError, match=r"shrinkage is 1\.5"):
        gaussian_kl(x, x, shrinkage=1.5)
    with pytest.raises(InputError, match='shrinkage is "oracle"'):
        diagonal_gaussian_wasserstein2(x, x, shrinkage="oracle")
    with pytest.raises(InputError, match="features"):
        gaussian_kl(x, x[:, :2])
    with pytest.raises(InputError, match="1 samples"):
        gaussian_kl(x, x[:1])
    with pytest.raises(InputError, match="shape"):
        shrunk_sample(x[0], shrinkage=0.1)
