"""Discrepancies of fitted Gaussians as losses and as instruments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit import GaussianKL, GaussianWasserstein, Wasserstein
from mikit.core.errors import InputError
from mikit.functional import diagonal_gaussian_wasserstein2, gaussian_kl, gaussian_wasserstein2
from mikit.functional.gaussian.shrinkage import ledoit_wolf_weight, shrunk_sample

DIRECTIONS = ("student||teacher", "teacher||student", "symmetric")


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@pytest.mark.parametrize("shrinkage", [None, 0.2, "ledoit-wolf"])
@pytest.mark.parametrize("diagonal", [False, True])
def test_values_are_those_of_the_formulas(diagonal: bool, shrinkage: float | str | None) -> None:
    x, y = _rows(40, 5, 0), _rows(30, 5, 1, 0.5) * 2
    there, back = (gaussian_kl(a, b, shrinkage=shrinkage, diagonal=diagonal).item() for a, b in ((x, y), (y, x)))
    values = [GaussianKL(one, shrinkage=shrinkage, diagonal=diagonal).estimate(x, y).item() for one in DIRECTIONS]
    assert values == pytest.approx([there, back, (there + back) / 2], rel=1e-12)
    if diagonal:
        expected = diagonal_gaussian_wasserstein2(x, y, shrinkage=shrinkage)
    elif shrinkage is None:
        expected = gaussian_wasserstein2(x, y)
    else:
        expected = gaussian_wasserstein2(shrunk_sample(x, shrinkage=shrinkage), shrunk_sample(y, shrinkage=shrinkage))
    own = GaussianWasserstein(diagonal=diagonal, shrinkage=shrinkage).estimate(x, y)
    assert own.item() == pytest.approx(expected.item(), rel=1e-12)
    assert (
        GaussianWasserstein(diagonal=diagonal, shrinkage=shrinkage).estimate(x.float(), y.float()).dtype
        == torch.float32
    )


def test_shrunk_distances_equal_matrix_square_roots() -> None:
    x, y = _rows(20, 6, 0), _rows(15, 6, 1, 0.3)
    covariances = []
    for rows in (x, y):
        amount, covariance = ledoit_wolf_weight(rows), torch.cov(rows.T, correction=0)
        covariances.append((1 - amount) * covariance + amount * covariance.trace() / 6 * torch.eye(6).double())
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.sqrt() @ vectors.T
    inner = torch.linalg.eigvalsh(root @ covariances[1] @ root).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * inner
    found = GaussianWasserstein(shrinkage="ledoit-wolf").estimate(x, y).item()
    assert found == pytest.approx(expected.item(), rel=1e-9)


def test_the_full_distance_sees_what_the_diagonal_does_not() -> None:
    for d, expected in ((2, 2.26), (64, 106)):
        covariance = 0.9 * torch.ones(d, d).double() + 0.1 * torch.eye(d).double()
        x = _rows(20_000, d, 0) @ torch.linalg.cholesky(covariance).T
        x = x - x.mean(0)
        y = x * torch.where(torch.arange(d) % 2 == 0, 1.0, -1.0)
        assert GaussianWasserstein(diagonal=True).estimate(x, y).item() == pytest.approx(0, abs=1e-10)
        # A variance of 20,000 rows is known to a hundredth.
        assert GaussianWasserstein().estimate(x, y).item() == pytest.approx(expected, rel=0.03)


def test_the_gaussian_distance_is_a_lower_bound_on_the_exact_one() -> None:
    x, y = _rows(60, 4, 0), _rows(60, 4, 1).exp()
    assert 0 < GaussianWasserstein(diagonal=True).estimate(x, y) <= GaussianWasserstein().estimate(x, y)
    assert GaussianWasserstein().estimate(x, y) < Wasserstein().estimate(x, y)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_dead_units_leave_a_finite_loss_with_a_gradient(direction: str) -> None:
    x, y = _rows(128, 64, 0), _rows(128, 64, 1)
    x[:, :8] = 0
    for dtype in (torch.float32, torch.float64):
        rows, teacher = x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()
        loss = GaussianKL(direction)(rows, teacher)
        loss.backward()
        assert 0 < loss.item() < math.inf
        assert rows.grad is not None
        assert torch.isfinite(rows.grad).all()
        assert rows.grad[:, :8].abs().sum() > 0  # dead units feel the pull
        assert teacher.grad is None
        with pytest.raises(InputError, match="8 of its 64 features never vary"):
            GaussianKL(direction, shrinkage=None)(rows, teacher)


@pytest.mark.parametrize("d", [4, 64, 512])
def test_debiasing_removes_what_finite_samples_add(d: int) -> None:
    seeds = 60 if d == 4 else 15
    for instrument in (
        GaussianWasserstein(debias=True),
        GaussianWasserstein(diagonal=True, debias=True),
        GaussianKL("symmetric", debias=True),
    ):
        if d == 512 and instrument.name == "gaussian_wasserstein" and not instrument.diagonal:
            continue  # seconds a value
        values = torch.tensor(
            [instrument.estimate(_rows(128, d, s), _rows(128, d, 1000 + s)).item() for s in range(seeds)]
        )
        assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(seeds)


@pytest.mark.parametrize(
    "instrument",
    [
        GaussianWasserstein(),
        GaussianWasserstein(diagonal=True),
        GaussianWasserstein(shrinkage=0.1, debias=True),
        GaussianKL(),
        GaussianKL("symmetric", shrinkage=None, debias=True),
    ],
    ids=repr,
)
def test_standard_errors_match_the_spread(instrument: GaussianWasserstein | GaussianKL) -> None:
    values, squares = [], []
    for seed in range(60):
        x = _rows(100, 3, seed)
        y = 0.8 * x + 0.6 * _rows(100, 3, 1000 + seed) + 1
        values.append(instrument.estimate(x, y).item())
        if seed < 15:
            error = instrument.standard_error(x, y)
            assert error is not None
            squares.append(error**2)
    spread = torch.tensor(values).std().item()
    # A spread of 60 values is known to 9 %, the mean of 15 jackknives to about 10 %.
    assert math.sqrt(sum(squares) / 15) == pytest.approx(spread, rel=0.45)


def test_rows_that_covariances_need() -> None:
    assert GaussianKL().minimum_rows(64, 64) == 4
    assert GaussianKL(shrinkage=None).minimum_rows(64, 64) == 66
    assert GaussianKL(shrinkage=None, debias=True).minimum_rows(64, 64) == 132
    assert GaussianKL(shrinkage=None, diagonal=True).minimum_rows(64, 64) == 4
    x, y = _rows(7, 5, 0), _rows(7, 5, 1)
    assert GaussianKL(shrinkage=None).estimate(x, y).item() > 0
    assert GaussianKL(shrinkage=None).standard_error(x, y) is None
    assert GaussianKL().standard_error(x, y) is not None


def test_symmetry_is_declared_where_it_holds() -> None:
    x, y = _rows(30, 3, 0), 2 * _rows(20, 3, 1)
    assert GaussianKL("symmetric").symmetric
    assert not GaussianKL().symmetric
    there, back = GaussianKL("symmetric").estimate(x, y).item(), GaussianKL("symmetric").estimate(y, x).item()
    assert there == pytest.approx(back, rel=1e-12)
    assert GaussianKL().estimate(x, y).item() != pytest.approx(GaussianKL().estimate(y, x).item(), rel=0.1)
    assert GaussianKL("teacher||student").describe().startswith("GaussianKL('teacher||student'")


def test_what_cannot_be_used_is_refused() -> None:
    x = _rows(10, 3, 0)
    with pytest.raises(InputError, match='direction is "both"'):
        GaussianKL("both")
    for cls in (GaussianKL, GaussianWasserstein):
        with pytest.raises(InputError, match=r"shrinkage is 1\.5"):
            cls(shrinkage=1.5)
        with pytest.raises(InputError, match='shrinkage is "oracle"'):
            cls(shrinkage="oracle")
        with pytest.raises(InputError, match="3 features and y has 2"):
            cls().estimate(x, x[:, :2])
        with pytest.raises(InputError, match="takes no weights"):
            cls().estimate(x, x, weights_x=torch.ones(10))
