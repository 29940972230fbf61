"""Block and linear-time MMD against the full statistic on the same rows, naive loops, gradients and their spread."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.kernels.mmd import mmd2, polynomial_mmd2
from mikit.functional.kernels.mmd_blocks import (
    block_mmd2,
    block_mmd2_pointwise,
    linear_time_mmd2,
    linear_time_mmd2_pointwise,
)
from mikit.functional.kernels.mmd_error import mmd2_pointwise, mmd2_standard_error
from mikit.functional.kernels.pair_kernels import Gaussian, Kernel, Polynomial

KERNELS: list[dict[str, Any]] = [
    {"bandwidth": 1.3},
    {"bandwidth": (0.5, 2.0)},
    {"degree": 1, "scale": 1.0, "offset": 0.0},
    {"degree": 3},
]


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _kernel(given: dict[str, Any]) -> Kernel:
    return Polynomial(**given) if "degree" in given else Gaussian(**given)


def _full(x: Tensor, y: Tensor, paired: bool, given: dict[str, Any]) -> float:
    return (polynomial_mmd2 if "degree" in given else mmd2)(x, y, paired=paired, **given).item()


@pytest.mark.parametrize("given", KERNELS)
@pytest.mark.parametrize(("n", "m", "block", "paired"), [(24, 24, 6, False), (26, 26, 6, True), (23, 31, 5, False)])
def test_blocks_are_the_full_statistic_on_their_rows(
    n: int, m: int, block: int, paired: bool, given: dict[str, Any]
) -> None:
    x, y = _rows(n, 3, 0, 5.0), _rows(m, 3, 1, 5.4)
    count = min(n, m) // block
    parts = zip(x.tensor_split(count), y.tensor_split(count), strict=True)
    expected = [_full(a, b, paired, given) for a, b in parts]
    values = block_mmd2_pointwise(x, y, _kernel(given), block=block, paired=paired)
    assert values.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)
    assert block_mmd2(x, y, block=block, paired=paired, **given).item() == pytest.approx(np.mean(expected), rel=1e-9)


def test_one_block_is_the_whole_and_no_block_is_about_the_root() -> None:
    x, y = _rows(50, 2, 2), _rows(50, 2, 3, 0.5)
    assert block_mmd2(x, y, block=50).item() == pytest.approx(mmd2(x, y).item(), abs=1e-12)
    assert block_mmd2_pointwise(x, y, Gaussian()).shape == (50 // 7,)


@pytest.mark.parametrize("given", KERNELS)
@pytest.mark.parametrize("n", [2, 3, 8, 9])
def test_linear_time_is_the_naive_loop(n: int, given: dict[str, Any]) -> None:
    x, y = _rows(n, 2, 4), _rows(n, 2, 5, 0.3)

    def kernel(a: Tensor, b: Tensor) -> float:
        if "degree" in given:
            return float((given.get("scale", 1 / 2) * a.dot(b) + given.get("offset", 1.0)) ** given["degree"])
        widths = given["bandwidth"] if isinstance(given["bandwidth"], tuple) else (given["bandwidth"],)
        return sum(math.exp(-float((a - b).square().sum()) / (2 * width**2)) for width in widths)

    def term(i: int, j: int) -> float:
        return kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])

    expected = [term(i, i + 1) for i in range(0, n - 1, 2)]
    if n % 2:
        expected[-1] = (term(n - 3, n - 2) + term(n - 2, n - 1) + term(n - 3, n - 1)) / 3
    assert linear_time_mmd2_pointwise(x, y, _kernel(given)).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert linear_time_mmd2(x, y, **given).item() == pytest.approx(np.mean(expected), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.6])
@pytest.mark.parametrize("form", ["block", "linear-time"])
def test_unbiased_with_an_exact_standard_error(form: str, shift: float) -> None:
    values, errors = [], []
    for seed in range(300):
        x = _rows(80, 2, 2 * seed)
        y = 0.8 * x + 0.6 * _rows(80, 2, 2 * seed + 1) + shift  # dependent rows
        if form == "block":
            terms = block_mmd2_pointwise(x, y, Gaussian(1.5), block=8, paired=True)
        else:
            terms = linear_time_mmd2_pointwise(x, y, Gaussian(1.5))
        values.append(terms.mean().item())
        errors.append(terms.std().item() / math.sqrt(terms.shape[0]))
    height = 1.5**2 / (1.5**2 + 2)
    population = 2 * height * (1 - math.exp(-2 * shift**2 / (2 * (1.5**2 + 2))))
    spread = float(np.std(values, ddof=1))
    assert abs(float(np.mean(values)) - population) < 3 * spread / math.sqrt(300)
    # 300 values fix a standard deviation to 4 %; three of its standard errors.
    assert 0.87 < math.sqrt(float(np.mean(np.square(errors)))) / spread < 1.13


@pytest.mark.parametrize("given", KERNELS)
def test_gradients(given: dict[str, Any]) -> None:
    x, y = _rows(7, 2, 6), _rows(7, 2, 7, 0.2)
    x[1], y[2] = x[0], x[2]
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: block_mmd2(a, b, block=3, **given), inputs)
    assert torch.autograd.gradcheck(lambda a, b: linear_time_mmd2(a, b, **given), inputs)


def test_half_precision_is_computed_in_single_outside_autocast() -> None:
    x, y = _rows(60, 4, 8, 100.0), _rows(60, 4, 9, 100.5)
    exact = block_mmd2(x, y, bandwidth=2.0).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = block_mmd2(x.float(), y.float(), bandwidth=2.0)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact, abs=1e-5)


def test_errors_of_the_polynomial_kernel_fit_the_spread() -> None:
    for shift in (0.0, 0.8):
        values, errors = [], []
        for seed in range(300):
            x, y = _rows(50, 3, 2 * seed), _rows(50, 3, 2 * seed + 1, shift)
            values.append(polynomial_mmd2(x, y, degree=1, scale=1.0, offset=0.0).item())
            errors.append(mmd2_standard_error(x, y, Polynomial(1, 1.0, 0.0), strip=17))
        assert abs(float(np.mean(values)) - 3 * shift**2) < 3 * float(np.std(values)) / math.sqrt(300)
        # As for the Gaussian kernel: a negative first variance set to 0 makes the error too large by about a fifth.
        assert 0.85 < math.sqrt(float(np.mean(np.square(errors)))) / float(np.std(values, ddof=1)) < 1.35
    x, y = _rows(20, 3, 0), _rows(20, 3, 1, 0.5)
    for paired in (False, True):
        mean = mmd2_pointwise(x, y, Polynomial(), paired=paired).mean().item()
        assert mean == pytest.approx(polynomial_mmd2(x, y, paired=paired).item(), rel=1e-9)
    different = mmd2_standard_error(x, _rows(31, 3, 2, 0.5), Polynomial())
    assert 0 < different < 5


def test_factors_multiply_the_median() -> None:
    from mikit.functional.kernels.bandwidth import median_bandwidth

    x, y = _rows(30, 2, 10), _rows(30, 2, 11, 0.4)
    median = median_bandwidth(x, y)
    expected = mmd2(x, y, bandwidth=[median / 2, median, 2 * median]).item()
    assert mmd2(x, y, factors=(0.5, 1.0, 2.0)).item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(InputError, match="factors multiply the median"):
        mmd2(x, y, bandwidth=1.0, factors=(0.5, 2.0))
    with pytest.raises(InputError, match="factors is"):
        mmd2(x, y, factors=(0.0,))


def test_what_cannot_be_used_is_refused() -> None:
    x = _rows(10, 2, 12)
    for block in (1, 11):
        with pytest.raises(InputError, match=f"block is {block}, but the smaller sample has 10 rows"):
            block_mmd2(x, x, block=block)
    with pytest.raises(InputError, match="10 samples and y has 9"):
        linear_time_mmd2(x, x[:9])
    with pytest.raises(InputError, match="no bandwidth"):
        block_mmd2(x, x, degree=2, bandwidth=1.0)
    with pytest.raises(InputError, match="degree is 0"):
        linear_time_mmd2(x, x, degree=0)
