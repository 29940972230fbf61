"""Conditional information against naive loops, closed forms, and the rule that chains it to plain information."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.neighbors.conditional import conditional_mi, conditional_pointwise
from mikit.functional.neighbors.distances import Metric
from mikit.functional.neighbors.ksg import ksg_pointwise
from mikit.functional.neighbors.subspaces import counts_in_subspaces


def _chain(n: int, widths: tuple[int, int, int], direct: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x <- z -> y in the first columns, and ``direct`` times x's noise in y."""
    g = torch.Generator().manual_seed(seed)
    x, y, z = (torch.randn(n, d, generator=g, dtype=torch.float64) for d in widths)
    noise = x[:, 0].clone()
    x[:, 0] = z[:, 0] + noise
    y[:, 0] = z[:, 0] + direct * noise + math.sqrt(1 - direct**2) * y[:, 0]
    return x, y, z


def _truth(direct: float) -> float:
    """Given z, x and y are Gaussian with correlation ``direct``."""
    return -0.5 * math.log(1 - direct**2)


def _by_loops(x: Tensor, y: Tensor, z: Tensor, k: int, metric: Metric) -> list[float]:
    spaces = []
    for rows in (x, y, z):
        c = (rows - rows.mean(0)) / rows.std(0, correction=0)
        norm = c.square().sum(1) if metric == "euclidean" else c.square().amax(1)
        c = c / norm.mean().sqrt()
        p = 2 if metric == "euclidean" else math.inf
        spaces.append(torch.cdist(c, c, p=p, compute_mode="donot_use_mm_for_euclid_dist").tolist())
    n = x.shape[0]
    values = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        reach = sorted(max(s[i][j] for s in spaces) for j in others)[k - 1]
        inside = 1e-9 if reach < 1e-9 else reach - 1e-9
        m, m_xz, m_yz, m_z = (
            1 + sum(max(spaces[s][i][j] for s in chosen) < inside for j in others)
            for chosen in ((0, 1, 2), (0, 2), (1, 2), (2,))
        )
        values.append(digamma(m) - digamma(m_xz) - digamma(m_yz) + digamma(m_z))
    return values


@pytest.mark.parametrize(
    ("widths", "metric"),
    [((1, 1, 1), "chebyshev"), ((1, 1, 2), "chebyshev"), ((1, 1, 1), "euclidean"), ((2, 3, 1), "euclidean"),
     ((2, 3, 2), "chebyshev")],
)  # fmt: skip
@pytest.mark.parametrize("k", [1, 4])
def test_every_contribution_follows_the_naive_loop(widths: tuple[int, int, int], metric: Metric, k: int) -> None:
    x, y, z = _chain(100, widths, 0.6, seed=0)
    for f in (torch.clone, torch.relu, torch.round, lambda rows: rows[torch.arange(100) // 3]):
        mine = conditional_pointwise(f(x), f(y), f(z), k, metric=metric)
        np.testing.assert_allclose(mine, _by_loops(f(x), f(y), f(z), k, metric), atol=1e-12)


def test_a_label_on_any_side_follows_the_naive_loop() -> None:
    x, y, z = _chain(100, (1, 1, 1), 0.6, seed=1)
    for rows in ((x, y, z.sign()), (x.sign(), y, z), (x.sign(), y.sign(), z), (x.sign(), y.sign(), z.sign())):
        mine = conditional_pointwise(*rows)
        np.testing.assert_allclose(mine, _by_loops(*rows, k=3, metric="chebyshev"), atol=1e-12)


@pytest.mark.parametrize("direct", [0.0, 0.6, 0.9])
def test_gaussian_truth(direct: float) -> None:
    x, y, z = _chain(6000, (1, 1, 1), direct, seed=2)
    contributions = conditional_pointwise(x, y, z)
    # The bias at this size is some hundredths towards 0.
    error = 1.4 * contributions.std().item() / math.sqrt(6000)
    assert abs(contributions.mean().item() - _truth(direct)) < 3 * error + 0.03 * _truth(direct) + 0.005


@pytest.mark.parametrize(("widths", "bias"), [((1, 1, 1), 0.0), ((1, 2, 2), 0.015)])
def test_what_goes_through_z_is_nothing_given_z(widths: tuple[int, int, int], bias: float) -> None:
    values, plain = [], []
    for seed in range(16):
        x, y, z = _chain(500, widths, 0.0, seed=100 + seed)
        values.append(conditional_mi(x, y, z).item())
        plain.append(ksg_pointwise(x, y).mean().item())
    error = float(np.std(values, ddof=1) / 4)
    assert abs(np.mean(values)) < 3 * error + bias
    assert min(values) < 0  # never clipped
    assert np.mean(plain) > 0.05 + 5 * error  # while x and y do share information


def test_columns_that_say_nothing_lower_it_as_documented() -> None:
    # Standard errors are about 0.01.
    assert conditional_mi(*_chain(2000, (1, 1, 1), 0.9, seed=3)).item() == pytest.approx(_truth(0.9), abs=0.06)
    assert conditional_mi(*_chain(2000, (1, 1, 6), 0.9, seed=3)).item() == pytest.approx(0.62, abs=0.06)


def test_a_constant_condition_leaves_plain_information() -> None:
    for widths in ((1, 2, 1), (3, 4, 2)):
        x, y, _ = _chain(400, widths, 0.8, seed=4)
        constant = torch.full((400, widths[2]), 2.5)
        for f in (torch.clone, torch.relu):
            mine = conditional_pointwise(f(x), f(y), constant)
            np.testing.assert_allclose(mine, ksg_pointwise(f(x), f(y)), atol=1e-12)


def test_discrete_variables_give_the_plug_in_value() -> None:
    g = torch.Generator().manual_seed(5)
    z = torch.randint(2, (3000,), generator=g)
    x = z ^ (torch.rand(3000, generator=g) < 0.3)
    y = x ^ (torch.rand(3000, generator=g) < 0.2)

    def term(*parts: Tensor) -> float:
        counts = torch.unique(torch.stack(parts), dim=1, return_inverse=True, return_counts=True)
        return float(np.mean(digamma(counts[2][counts[1]].numpy())))

    # Every ball is the samples that coincide, so the sums run over cells.
    expected = term(x, y, z) - term(x, z) - term(y, z) + term(z)
    assert conditional_mi(x, y, z).item() == pytest.approx(expected, abs=1e-12)
    # H(Y | Z) - H(Y | X): the second is that of a coin of 0.2, the first of 0.3 · 0.8 + 0.7 · 0.2 = 0.38.
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.38, 0.2)]
    assert conditional_mi(x, y, z).item() == pytest.approx(entropy[0] - entropy[1], abs=0.03)


@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 2, 2)])
def test_units_order_sides_and_strips_do_not_matter(widths: tuple[int, int, int]) -> None:
    x, y, z = _chain(400, widths, 0.7, seed=6)
    value = conditional_mi(x, y, z).item()
    assert conditional_mi(y, x, z).item() == pytest.approx(value, abs=1e-12)
    assert conditional_mi(1e6 * x, 1e-6 * y, -3 * z).item() == pytest.approx(value, abs=1e-10)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    assert conditional_mi(x[order], y[order], z[order]).item() == pytest.approx(value, abs=1e-10)
    assert conditional_mi(torch.cat([x, torch.ones(400, 1)], dim=1), y, z).item() == pytest.approx(value, abs=1e-12)
    wide = conditional_mi(x, y, z, metric="euclidean").item()
    for strip in (1, 7, 1000):
        assert conditional_mi(x, y, z, metric="euclidean", strip=strip).item() == pytest.approx(wide, abs=1e-12)
    assert conditional_mi(torch.ones(400), y, z).item() == 0


@pytest.mark.parametrize("widths", [(1, 1, 1), (1, 1, 2)])
def test_trees_and_all_pairs_agree(widths: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [value.relu() for value in _chain(300, widths, 0.7, seed=7)]
    tree = conditional_pointwise(*rows, metric="chebyshev")
    monkeypatch.setattr("mikit.functional.neighbors.conditional.TREE_WIDTH", 0)
    torch.testing.assert_close(conditional_pointwise(*rows, metric="chebyshev"), tree, rtol=0, atol=1e-12)


def test_a_permutation_leaves_nothing() -> None:
    x, y, z = _chain(1500, (1, 1, 1), 0.9, seed=8)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(1))
    contributions = conditional_pointwise(x, y[order], z)
    assert abs(contributions.mean().item()) < 3 * 1.4 * contributions.std().item() / math.sqrt(1500)


def test_what_cannot_be_used_is_refused() -> None:
    x = torch.randn(10, 1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="x has 10 samples and z has 9"):
        conditional_mi(x, x, x[:9])
    with pytest.raises(InputError, match="x has 10 samples and y has 9"):
        conditional_mi(x, x[:9], x)
    with pytest.raises(InputError, match="z contains NaN or infinity in 1 of 10 samples; the first is row 4"):
        conditional_mi(x, x, torch.where(torch.arange(10)[:, None] == 4, math.inf, x))
    with pytest.raises(InputError, match="z has shape"):
        conditional_mi(x, x, x[:, :, None])
    with pytest.raises(InputError, match="at least 11"):
        conditional_mi(x, x, x, 10)
    with pytest.raises(InputError, match='metric is "l1"'):
        conditional_mi(x, x, x, metric="l1")


def test_counts_of_a_line() -> None:
    x = torch.tensor([[-4.0], [-1.0], [0.0], [5.0]], dtype=torch.float64)
    for metric in ("euclidean", "chebyshev"):
        together, (alone,) = counts_in_subspaces([x, 0 * x], torch.tensor([1, 2, 3, 1]), [[0]], metric, 0.0)
        assert together.tolist() == alone.tolist() == [1, 2, 3, 1]


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    rows = _chain(1000, (3, 2, 4), 0.8, seed=9)
    on_gpu = conditional_pointwise(*(value.cuda() for value in rows)).cpu()
    torch.testing.assert_close(on_gpu, conditional_pointwise(*rows), rtol=0, atol=1e-12)
