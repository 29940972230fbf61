"""Squared MMD and linear CKA against naive loops, closed forms, gradients and full Gram matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.kernels.bandwidth import linear_cka, median_bandwidth
from mikit.functional.kernels.mmd import mmd2
from mikit.functional.kernels.mmd_error import mmd2_pointwise, mmd2_standard_error
from mikit.functional.kernels.pair_kernels import Gaussian


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _by_loops(x: Tensor, y: Tensor, sigma: float, *, unbiased: bool, paired: bool) -> float:
    def mean(a: Tensor, b: Tensor, hollow: bool) -> float:
        values = [
            math.exp(-(math.dist(p, q) ** 2) / (2 * sigma**2))
            for i, p in enumerate(a.tolist())
            for j, q in enumerate(b.tolist())
            if not (hollow and i == j)
        ]
        return math.fsum(values) / len(values)

    return mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, unbiased and paired)


def _population(d: int, sigma: float, shift: float) -> float:
    """Return the squared MMD of N(0, I) and N(shift, I)."""
    height = (sigma**2 / (sigma**2 + 2)) ** (d / 2)
    return 2 * height * (1 - math.exp(-d * shift**2 / (2 * (sigma**2 + 2))))


@pytest.mark.parametrize(
    ("n", "m", "unbiased", "paired"),
    [(9, 9, True, False), (9, 9, True, True), (9, 9, False, False), (9, 9, False, True), (7, 12, True, False),
     (12, 7, False, False)],
)  # fmt: skip
@pytest.mark.parametrize("strip", [None, 1, 4])
def test_the_value_equals_the_naive_loop(n: int, m: int, unbiased: bool, paired: bool, strip: int | None) -> None:
    x, y = _rows(n, 3, 0, 100.0), _rows(m, 3, 1, 100.5)
    value = mmd2(x, y, bandwidth=1.3, unbiased=unbiased, paired=paired, strip=strip)
    assert value.item() == pytest.approx(_by_loops(x, y, 1.3, unbiased=unbiased, paired=paired), abs=1e-12)


def test_single_precision_survives_a_large_offset() -> None:
    x, y = _rows(200, 64, 2, 100.0), _rows(200, 64, 3, 100.1)
    exact = mmd2(x, y, bandwidth=8.0).item()
    assert mmd2(x.float(), y.float(), bandwidth=8.0).item() == pytest.approx(exact, abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mmd2(x.float(), y.float(), bandwidth=8.0)
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(exact, abs=1e-6)
    assert mmd2(x.bfloat16(), y.bfloat16(), bandwidth=8.0).dtype == torch.float32


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
def test_gradients(unbiased: bool, paired: bool) -> None:
    x, y = _rows(6, 3, 4), _rows(6, 3, 5)
    x[1] = x[0]  # a row that occurs twice
    y[2] = x[3]  # and one that both samples hold
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda a, b: mmd2(a, b, bandwidth=0.9, unbiased=unbiased, paired=paired, strip=4), inputs
    )
    same, shorter = x.detach().clone(), y.detach()[:4]
    assert torch.autograd.gradcheck(lambda a: mmd2(a, same, bandwidth=0.9, paired=paired), inputs[:1])
    assert torch.autograd.gradcheck(lambda a: mmd2(a, shorter, bandwidth=0.9), inputs[:1])


def test_the_median_bandwidth_is_a_constant_for_the_gradient() -> None:
    x, y = _rows(20, 2, 6).requires_grad_(), _rows(20, 2, 7)
    (automatic,) = torch.autograd.grad(mmd2(x, y), x)
    (given,) = torch.autograd.grad(mmd2(x, y, bandwidth=median_bandwidth(x, y)), x)
    assert torch.allclose(automatic, given, rtol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.7])
@pytest.mark.parametrize(("n", "m", "paired"), [(15, 15, False), (10, 25, False), (15, 15, True)])
def test_the_unbiased_form_is_unbiased(n: int, m: int, paired: bool, shift: float) -> None:
    values = []
    for seed in range(400):
        x, y = _rows(n, 2, 2 * seed), _rows(m, 2, 2 * seed + 1, shift)
        if paired:  # dependent rows, of which each sample alone keeps its distribution
            y = 0.8 * x + 0.6 * (y - shift) + shift
        values.append(mmd2(x, y, bandwidth=1.5, paired=paired).item())
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    assert abs(float(np.mean(values)) - _population(2, 1.5, shift)) < 3 * error
    assert min(values) < 0 or shift > 0


def test_dependent_rows_bias_the_general_form_only() -> None:
    x = _rows(20, 2, 8)
    kernel = 1 - (mmd2(x, x, bandwidth=1.0).item() * -20 / 2)  # the mean kernel of two different rows
    assert 0 < kernel < 0.5
    assert mmd2(x, x, bandwidth=1.0).item() == pytest.approx(-2 * (1 - kernel) / 20, abs=1e-12)
    assert mmd2(x, x, bandwidth=1.0, paired=True).item() == 0


def test_contributions_average_to_the_value() -> None:
    x, y = _rows(30, 3, 9), _rows(30, 3, 10, 0.5)
    for paired in (False, True):
        contributions = mmd2_pointwise(x, y, Gaussian(), paired=paired)
        assert contributions.shape == (30,)
        assert contributions.mean().item() == pytest.approx(mmd2(x, y, paired=paired).item(), abs=1e-14)


@pytest.mark.parametrize("shift", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("n", "m", "dependent"), [(60, 60, False), (60, 60, True), (40, 90, False)])
def test_the_standard_error_matches_the_spread(n: int, m: int, shift: float, dependent: bool) -> None:
    values, errors = [], []
    for seed in range(150):
        x, y = _rows(n, 3, 2 * seed), _rows(m, 3, 2 * seed + 1)
        if dependent:
            y = 0.8 * x + 0.6 * y
        values.append(mmd2(x, y + shift, bandwidth=2.0, paired=dependent).item())
        errors.append(mmd2_standard_error(x, y + shift, Gaussian(2.0), strip=17))
    # 150 values fix a standard deviation to 6 %, worse for the skewed distribution of equal samples, where setting a
    # negative first variance to 0 also makes the stated error too large by a fifth.
    assert 0.85 < math.sqrt(np.mean(np.square(errors))) / np.std(values, ddof=1) < 1.35


def test_the_standard_error_of_equal_samples_is_positive() -> None:
    x = _rows(50, 2, 11)
    assert 0 < mmd2_standard_error(x, _rows(50, 2, 12), Gaussian()) < 0.05
    assert mmd2_standard_error(x, x, Gaussian()) == 0  # nothing varies: the paired value is exactly 0 for every sample
    assert mmd2_standard_error(x[:3], x[3:6], Gaussian()) == math.inf


def test_the_median_distance() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [3.0]])
    assert median_bandwidth(x) == 2.0  # distances 1, 2, 2, 3, 3 and a pair that coincides
    assert median_bandwidth(x[:1], x[1:]) == 2.0
    assert median_bandwidth(torch.ones(5, 2)) == 1.0
    many = _rows(5000, 4, 13)
    assert median_bandwidth(many) == median_bandwidth(many)
    # 2,048 rows of 5,000 fix the median distance to about one percent.
    assert median_bandwidth(many) == pytest.approx(torch.pdist(many[:3000]).median().item(), rel=0.02)
    assert median_bandwidth(many + 1e6) == pytest.approx(median_bandwidth(many), rel=1e-6)


def test_identical_rows_are_no_discrepancy() -> None:
    constant = torch.ones(6, 2)
    assert mmd2(constant, constant).item() == 0
    assert mmd2(constant, constant[:4]).item() == 0


@pytest.mark.parametrize(("n", "d_x", "d_y"), [(50, 4, 7), (10, 4, 30), (8, 20, 20)])
def test_linear_cka_equals_the_gram_formula(n: int, d_x: int, d_y: int) -> None:
    x, y = _rows(n, d_x, 16, 3.0), _rows(n, d_y, 17, -2.0)
    y[:, :4] += x[:, :4]
    center = torch.eye(n, dtype=torch.float64) - 1 / n
    gram_x, gram_y = center @ x @ x.T @ center, center @ y @ y.T @ center
    expected = (gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm())
    assert linear_cka(x, y).item() == pytest.approx(expected.item(), abs=1e-12)
    assert linear_cka(y, x).item() == pytest.approx(expected.item(), abs=1e-12)
    assert linear_cka(1e-150 * x, 1e150 * y).item() == pytest.approx(expected.item(), abs=1e-12)
    assert torch.autograd.gradcheck(linear_cka, (x.requires_grad_(), y.requires_grad_()))


def test_linear_cka_at_its_ends() -> None:
    x = _rows(40, 5, 18)
    rotation = torch.linalg.qr(_rows(5, 5, 19)).Q
    assert linear_cka(x, 3 * x @ rotation + 1).item() == pytest.approx(1, abs=1e-12)
    constant = torch.full((40, 2), 0.1, dtype=torch.float64, requires_grad=True)
    value = linear_cka(constant, x)
    value.backward()
    assert value.item() == 0
    assert constant.grad is not None
    assert bool(torch.isfinite(constant.grad).all())
    assert linear_cka(x.bfloat16(), x.bfloat16()).dtype == torch.float32


def test_what_cannot_be_used_is_refused() -> None:
    x = _rows(5, 2, 20)
    for call, message in (
        (lambda: mmd2(x, x[:, :1]), "2 features and y has 1"),
        (lambda: mmd2(x, x[:4], paired=True), "5 samples and y has 4"),
        (lambda: mmd2(x[:1], x), "x has 1 samples"),
        (lambda: mmd2(x, x, bandwidth=0.0), "bandwidth is 0.0"),
        (lambda: mmd2(x, x, bandwidth=math.nan), "bandwidth is nan"),
        (lambda: mmd2(x[0], x), "x has shape (2,)"),
        (lambda: mmd2_pointwise(x, x[:4], Gaussian()), "5 samples and y has 4"),
        (lambda: median_bandwidth(x, most=1), "most is 1"),
        (lambda: linear_cka(x, x[:4]), "5 samples and y has 4"),
    ):
        with pytest.raises(InputError) as refusal:
            call()
        assert message in str(refusal.value)
