"""The energy distance against naive loops, SciPy on a line, GeomLoss in space, gradients and its own spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from geomloss import SamplesLoss
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.kernels.energy import (
    energy_distance2,
    energy_distance2_pointwise,
    energy_distance2_standard_error,
)


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _weights(n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _by_loops(x: Tensor, y: Tensor, *, unbiased: bool, paired: bool, weights: tuple[Tensor, Tensor]) -> float:
    def mean(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, hollow: bool) -> float:
        total = mass = 0.0
        for i, (p, w) in enumerate(zip(a.tolist(), of_a.tolist(), strict=True)):
            for j, (q, v) in enumerate(zip(b.tolist(), of_b.tolist(), strict=True)):
                if not (hollow and i == j):
                    total, mass = total + w * v * math.dist(p, q), mass + w * v
        return total / mass

    own, other = weights
    within = mean(x, x, own, own, unbiased) + mean(y, y, other, other, unbiased)
    return 2 * mean(x, y, own, other, unbiased and paired) - within


@pytest.mark.parametrize(
    ("n", "m", "unbiased", "paired", "weighted"),
    [(9, 9, True, False, False), (9, 9, True, True, False), (9, 9, False, True, False), (7, 12, True, False, False),
     (7, 12, True, False, True), (12, 7, False, False, True)],
)  # fmt: skip
@pytest.mark.parametrize("strip", [None, 1, 4])
def test_the_value_equals_the_naive_loop(
    n: int, m: int, unbiased: bool, paired: bool, weighted: bool, strip: int | None
) -> None:
    x, y = _rows(n, 3, 0, 100.0), _rows(m, 3, 1, 100.5)
    weights = (_weights(n, 2), _weights(m, 3)) if weighted else (torch.ones(n), torch.ones(m))
    given = {"weights_x": weights[0], "weights_y": weights[1]} if weighted else {}
    value = energy_distance2(x, y, unbiased=unbiased, paired=paired, strip=strip, **given)
    expected = _by_loops(x, y, unbiased=unbiased, paired=paired, weights=weights)
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_one_side_weighted_and_weights_of_zero() -> None:
    x, y = _rows(10, 2, 0), _rows(8, 2, 1, 0.4)
    kept = torch.tensor([1.0, 1, 0, 1, 0, 1, 1, 1, 0, 1], dtype=torch.float64)
    for unbiased in (True, False):
        value = energy_distance2(x, y, unbiased=unbiased, weights_x=kept)
        assert value.item() == pytest.approx(energy_distance2(x[kept > 0], y, unbiased=unbiased).item(), abs=1e-12)


def test_on_a_line_it_is_scipys_squared() -> None:
    x, y = _rows(40, 1, 2), _rows(25, 1, 3, 0.7)
    expected = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance2(x, y, unbiased=False).item() == pytest.approx(expected, rel=1e-10)
    own, other = _weights(40, 4), _weights(25, 5)
    expected = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy(), own.numpy(), other.numpy()) ** 2
    value = energy_distance2(x, y, unbiased=False, weights_x=own, weights_y=other)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_in_space_it_is_twice_what_geomloss_calls_energy() -> None:
    x, y = _rows(30, 4, 6).requires_grad_(), _rows(20, 4, 7, 0.5)
    theirs = 2 * SamplesLoss("energy", backend="tensorized")(x, y)
    ours = energy_distance2(x, y, unbiased=False)
    # GeomLoss takes distances below 1e-4 for 1e-4, which adds to the mean distance of each sample from itself.
    assert ours.item() == pytest.approx(theirs.item() + 1e-4 * (1 / 30 + 1 / 20), rel=1e-9)
    expected, found = (torch.autograd.grad(value, x)[0] for value in (theirs, ours))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
def test_gradients(unbiased: bool, paired: bool) -> None:
    inputs = (_rows(6, 3, 8).requires_grad_(), _rows(6, 3, 9).requires_grad_())
    own, other = _weights(6, 10), _weights(6, 11)
    assert torch.autograd.gradcheck(
        lambda a, b: energy_distance2(a, b, unbiased=unbiased, paired=paired, strip=4), inputs
    )
    if not paired:
        assert torch.autograd.gradcheck(
            lambda a, b: energy_distance2(a, b, unbiased=unbiased, weights_x=own, weights_y=other, strip=4), inputs
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_finite_at_coincident_rows(dtype: torch.dtype) -> None:
    x = _rows(6, 3, 12, 10.0).to(dtype)
    y = _rows(6, 3, 13, 10.0).to(dtype)
    x[1], y[2] = x[0], x[3]  # a row that occurs twice, and one that both samples hold
    for other in (y, x.clone()):
        student = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(energy_distance2(student, other, unbiased=False), student)
        assert torch.isfinite(gradient).all()
        assert float(gradient.norm(dim=1).max()) <= 4 / 6  # each row's unit vectors, averaged, in all its roles
    identical = torch.ones(4, 2, dtype=dtype, requires_grad=True)
    value = energy_distance2(identical, torch.ones(4, 2, dtype=dtype))
    value.backward()
    assert value.item() == 0
    assert torch.equal(identical.grad, torch.zeros(4, 2, dtype=dtype))


def test_the_shape_of_equal_samples_and_of_a_shift() -> None:
    x = _rows(30, 2, 14)
    assert energy_distance2(x, x, unbiased=False).item() == pytest.approx(0, abs=1e-8)
    assert energy_distance2(x, x, paired=True).item() == pytest.approx(0, abs=1e-12)
    assert energy_distance2(x, x.flip(0), unbiased=False).item() == pytest.approx(0, abs=1e-8)
    far = energy_distance2(x, x + 1000.0, unbiased=False).item()
    assert far == pytest.approx(2 * 1000 * math.sqrt(2), rel=0.01)  # the spread of the rows is a thousandth of it


@pytest.mark.parametrize("shift", [0.0, 0.7])
@pytest.mark.parametrize(("n", "m", "paired"), [(60, 60, False), (40, 90, False), (60, 60, True)])
def test_the_unbiased_form_is_unbiased_and_its_error_fits(n: int, m: int, paired: bool, shift: float) -> None:
    values, errors = [], []
    for seed in range(400):
        x, y = _rows(n, 1, 2 * seed), _rows(m, 1, 2 * seed + 1)
        if paired:  # dependent rows, of which each sample alone keeps its distribution
            y = 0.8 * x + 0.6 * y
        values.append(energy_distance2(x, y + shift, paired=paired).item())
        errors.append(energy_distance2_standard_error(x, y + shift))
    apart = scipy.stats.norm(shift, math.sqrt(2))
    mean_distance = 2 * (apart.pdf(0) * 2 + shift * (0.5 - apart.cdf(0)))  # E|N(s, 2)| by its closed form
    population = 2 * mean_distance - 2 * 2 / math.sqrt(math.pi)
    spread = float(np.std(values, ddof=1))
    assert abs(float(np.mean(values)) - population) < 3 * spread / math.sqrt(len(values))
    assert min(values) < 0 or shift > 0
    # As of the MMD: a first variance below 0 is set to 0, which makes the error too large for equal distributions, by a
    # fifth in three columns and by up to a half in one, as here.
    assert 0.85 < math.sqrt(float(np.mean(np.square(errors)))) / spread < (1.6 if shift == 0 else 1.15)


def test_contributions_average_to_the_value() -> None:
    x, y = _rows(30, 3, 15), _rows(30, 3, 16, 0.5)
    for paired in (False, True):
        mean = energy_distance2_pointwise(x, y, paired=paired).mean().item()
        assert mean == pytest.approx(energy_distance2(x, y, paired=paired).item(), abs=1e-13)


def test_single_precision_survives_a_large_offset() -> None:
    x, y = _rows(200, 64, 17, 100.0), _rows(200, 64, 18, 100.1)
    exact = energy_distance2(x, y).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = energy_distance2(x.float(), y.float())
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(exact, abs=1e-5)


def test_what_cannot_be_used_is_refused() -> None:
    x = _rows(5, 2, 19)
    first = torch.tensor([1.0, 0, 0, 0, 0])
    cases = [
        (lambda: energy_distance2(x, x[:, :1]), "2 features and y has 1"),
        (lambda: energy_distance2(x, x[:4], paired=True), "5 samples and y has 4"),
        (lambda: energy_distance2(x[:1], x), "x has 1 samples"),
        (lambda: energy_distance2(x, x, weights_x=torch.ones(4)), "weights_x has shape"),
        (lambda: energy_distance2(x, x, weights_y=-first), "not negative"),
        (lambda: energy_distance2(x, x, weights_y=first), "weights_y are positive for one sample only"),
        (lambda: energy_distance2(x, x, weights_x=torch.arange(5.0), paired=True), "takes no weights"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
    assert energy_distance2(x, x[:1], unbiased=False, weights_x=first).item() == pytest.approx(0, abs=1e-12)
