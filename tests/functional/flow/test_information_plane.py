"""The information between an input and a noisy layer: by loops, by quadrature, in closed form, at its ceiling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mikit import InputError
from mikit.functional import noisy_input_information


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int = 40, d: int = 3) -> Tensor:
    return torch.randn(n, d, generator=seeded(5), dtype=torch.float64)


def test_it_is_the_mixture_by_loops_whatever_the_strip() -> None:
    layer, level = 3.0 + 2.0 * rows(), 0.7
    scale = float((layer - layer.mean(0)).square().mean().sqrt())
    drawn = torch.randn(40, 3, generator=seeded(), dtype=torch.float64)
    told = []
    for i in range(40):
        noisy = layer[i] + level * scale * drawn[i]
        density = sum(math.exp(-float((noisy - t).square().sum()) / (2 * (level * scale) ** 2)) for t in layer) / 40
        told.append(-float(drawn[i].square().sum()) / 2 - math.log(density))
    for strip in (None, 7):
        (found,) = noisy_input_information(layer, [level], generator=seeded(), strip=strip)
        assert found.value == pytest.approx(np.mean(told), rel=1e-10)
        assert found.standard_error == pytest.approx(np.std(told, ddof=1) / math.sqrt(40), rel=1e-8)
    single = noisy_input_information(layer.float(), [level], generator=seeded())[0]
    other = noisy_input_information(layer.float(), [level], generator=seeded(), strip=7)[0]
    assert single.value == pytest.approx(other.value, abs=1e-5)


def test_draws_scatter_around_the_quadrature_of_the_mixture() -> None:
    layer = torch.tensor([[0.0], [1.0], [1.5], [4.0]], dtype=torch.float64)
    scale, level = float((layer - layer.mean()).square().mean().sqrt()), 0.4
    width = level * scale
    grid = np.linspace(-10, 14, 200_001)
    density = np.mean([np.exp(-((grid - t) ** 2) / (2 * width**2)) for t in layer[:, 0].numpy()], axis=0)
    density /= width * math.sqrt(2 * math.pi)
    entropy = -np.sum(density * np.log(np.maximum(density, 1e-300))) * (grid[1] - grid[0])
    expected = entropy - 0.5 * math.log(2 * math.pi * math.e * width**2)
    found = [noisy_input_information(layer, [level], generator=seeded(i))[0].value for i in range(400)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / math.sqrt(400))


def test_clusters_count_and_a_gaussian_layer_has_its_closed_form() -> None:
    corners = 10.0 * torch.eye(4)[torch.arange(200) % 4]
    (found,) = noisy_input_information(corners, [0.02], generator=seeded())
    assert found.value == pytest.approx(math.log(4), abs=1e-6)
    # Information of a Gaussian layer; with n rows it is low by the spread of the density ratio over n.
    layer = torch.randn(3000, 2, generator=seeded(3))
    (found,) = noisy_input_information(layer, [1.0], generator=seeded())
    truth, bias = math.log(2), 4 / 3000
    assert -4 * found.standard_error - 2 * bias < found.value - truth < 4 * found.standard_error


def test_no_row_tells_more_than_the_ceiling_and_small_noise_reaches_it() -> None:
    small, large = noisy_input_information(rows(60, 20).float() * 1e3, [1e-3, 3.0], generator=seeded())
    assert small.ceiling == large.ceiling == math.log(60)
    assert small.value == pytest.approx(math.log(60), abs=1e-6)
    assert small.value <= small.ceiling
    assert 0 < large.value < 0.8 * large.ceiling


def test_it_is_low_on_average_and_rises_with_rows() -> None:
    layer = torch.randn(1600, 4, generator=seeded(9), dtype=torch.float64)
    truth = 2 * math.log(1 + 1 / 0.5**2)
    few = [noisy_input_information(layer[i : i + 50], [0.5], generator=seeded(i))[0].value for i in range(0, 1600, 50)]
    (many,) = noisy_input_information(layer, [0.5], generator=seeded())
    assert np.mean(few) + 4 * np.std(few) / math.sqrt(len(few)) < many.value < truth + 4 * many.standard_error


def test_a_layer_that_never_varies_tells_nothing_and_bad_input_is_refused() -> None:
    assert noisy_input_information(torch.ones(20, 3), [0.3], generator=seeded())[0].value == pytest.approx(0, abs=1e-6)
    for level in ([], [0.0], [math.nan], [-1.0]):
        with pytest.raises(InputError, match="positive numbers"):
            noisy_input_information(rows(), level, generator=seeded())
    with pytest.raises(InputError, match="NaN or infinity"):
        noisy_input_information(rows().fill_(math.nan), [0.3], generator=seeded())
    with pytest.raises(InputError, match=r"\(n, d\)"):
        noisy_input_information(torch.ones(5), [0.3], generator=seeded())


def test_no_matrix_of_all_pairs_is_held() -> None:
    layer = torch.randn(2500, 2, generator=seeded())
    shapes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            shapes.append(out.numel() if isinstance(out, Tensor) else 0)
            return out

    with Watch():
        noisy_input_information(layer, [1.0], generator=seeded())
    assert max(shapes) <= 2500 * 420 < 2500**2 / 5
