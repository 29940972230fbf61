"""Held-out conditional information against partial covariances and against nearest neighbors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.estimators import ConditionalInformation, held_out_conditional_mi
from mikit.estimators.base import clustered_standard_error
from mikit.estimators.fitting import Training
from mikit.functional import conditional_mi

QUICK = Training(steps=20, batch=256, learning_rate=3e-3, every=10, patience=2)


def _gaussian(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return x (2 columns), y (2), z (1) of one Gaussian distribution, and I(X; Y | Z) from its partial covariance."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(5, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    covariance = root @ root.T + torch.eye(5, dtype=torch.float64)
    rows = torch.randn(n, 5, generator=g, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T

    def log_volume(*columns: int) -> float:
        return float(torch.logdet(covariance[list(columns)][:, list(columns)]))

    truth = 0.5 * (log_volume(0, 1, 4) + log_volume(2, 3, 4) - log_volume(4) - log_volume(0, 1, 2, 3, 4))
    return rows[:, :2], rows[:, 2:4], rows[:, 4:], truth


def _quick(x: Tensor, y: Tensor, z: Tensor, *, groups: Tensor | None = None, seed: int = 0) -> ConditionalInformation:
    return held_out_conditional_mi(x, y, z, groups=groups, folds=3, width=32, depth=1, training=QUICK, seed=seed)


def test_gaussian_partial_information_is_read() -> None:
    x, y, z, truth = _gaussian(3000)
    estimated = _quick(x, y, z)
    assert truth > 0.2
    assert abs(estimated.value - truth) < 3.5 * estimated.standard_error + 0.01
    assert estimated.interval[0] < estimated.value < estimated.interval[1]
    assert (estimated.unit, estimated.kind) == ("nats", "estimate")
    assert estimated.sizes == {"fit": 1000, "select": 1000, "report": 1000, "n": 3000, "d_x": 2, "d_y": 2, "d_z": 1}


def test_it_agrees_with_nearest_neighbors_on_bent_columns() -> None:
    x, y, z, truth = _gaussian(2000, seed=1)
    x, y, z = x[:, :1], y[:, :1], z
    estimated = _quick(x.exp(), y.pow(3), z)
    neighbors = float(conditional_mi(x, y, z))
    # The nearest-neighbor estimate spreads by about 0.02 at 2,000 rows.
    assert abs(estimated.value - neighbors) < 3 * estimated.standard_error + 0.06
    assert truth > 0


def test_what_x_and_y_share_only_through_z_does_not_count() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 3, generator=g)
    x, y = (z + 0.5 * torch.randn(2000, 3, generator=g) for _ in range(2))
    estimated = _quick(x, y, z)
    assert abs(estimated.value) < 4 * estimated.standard_error + 0.01


def test_a_constant_z_leaves_mutual_information() -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(1500, 1, generator=g)
    y = 0.8 * x + 0.6 * torch.randn(1500, 1, generator=g)
    estimated = _quick(x, y, torch.ones(1500))
    assert abs(estimated.value + 0.5 * math.log(1 - 0.64)) < 4 * estimated.standard_error + 0.01


def test_every_row_reports_once_and_groups_stay_together() -> None:
    x, y, z, _ = _gaussian(240)
    plain = _quick(x, y, z)
    assert plain.contributions.shape == (240,)
    assert plain.value == pytest.approx(float(plain.contributions.mean()))
    groups = torch.arange(80).repeat_interleave(3)
    copies = [rows[:80].repeat_interleave(3, dim=0) for rows in (x, y, z)]
    grouped = _quick(*copies, groups=groups)
    assert grouped.standard_error == pytest.approx(clustered_standard_error(grouped.contributions, groups))
    # Copies that stay together are reported by one flow and add the same.
    assert torch.allclose(grouped.contributions.view(80, 3), grouped.contributions[::3, None].expand(80, 3), atol=1e-5)
    assert grouped.standard_error > 1.6 * clustered_standard_error(grouped.contributions)


def test_a_seed_decides_everything_and_global_states_stay() -> None:
    x, y, z, _ = _gaussian(150)
    state = torch.random.get_rng_state()
    first, second, other = (_quick(x, y, z, seed=seed).value for seed in (0, 0, 1))
    assert first == second != other
    assert torch.equal(state, torch.random.get_rng_state())


def test_refusals() -> None:
    x, y, z, _ = _gaussian(60)
    with pytest.raises(InputError, match="z has 59"):
        held_out_conditional_mi(x, y, z[:-1])
    with pytest.raises(InputError, match="folds is 2"):
        held_out_conditional_mi(x, y, z, folds=2)
    with pytest.raises(InputError, match="need at least 20"):
        held_out_conditional_mi(x[:19], y[:19], z[:19])
    with pytest.raises(InputError, match="y has shape"):
        held_out_conditional_mi(x, y[:, :, None], z)
    with pytest.raises(InputError, match="seed is -1"):
        held_out_conditional_mi(x, y, z, seed=-1)
    with pytest.raises(InputError, match="fewer than the 5 folds"):
        held_out_conditional_mi(x, y, z, groups=torch.arange(60) % 4)
    spoilt = z.clone()
    spoilt[3] = float("nan")
    with pytest.raises(InputError, match="z contains 1 NaN"):
        held_out_conditional_mi(x, y, spoilt)
