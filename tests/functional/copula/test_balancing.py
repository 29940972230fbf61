"""Balanced log ratios are proper laws, and pairings drawn from them follow those laws."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from mikit import InputError
from mikit.functional.copula.balancing import balanced_log_ratios, drawn_pairing


def _scores(n: int, *, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _sinkhorn(scores: Tensor, rounds: int) -> Tensor:
    """Rows, then columns, in logarithms throughout."""
    ratios = scores.clone()
    for _ in range(rounds):
        for axis in (1, 0):
            ratios = ratios - torch.logsumexp(ratios, axis, keepdim=True) + math.log(scores.shape[0])
    return ratios


def _gaussian_log_ratio(x: Tensor, y: Tensor, rho: float) -> Tensor:
    """The log density ratio of all pairs of two standard normal columns with correlation rho."""
    rest = 1 - rho**2
    both = rho**2 * (x.square()[:, None] + y.square()) - 2 * rho * x[:, None] * y
    return -both / (2 * rest) - math.log(rest) / 2


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_rows_and_columns_sum_to_n(n: int) -> None:
    weights = balanced_log_ratios(_scores(n, seed=n), rounds=60).exp()
    full = torch.full((n,), float(n), dtype=torch.float64)
    torch.testing.assert_close(weights.sum(0), full, rtol=1e-12, atol=0)
    torch.testing.assert_close(weights.sum(1), full, rtol=1e-9, atol=0)


def test_the_default_rounds_suffice_for_a_law_with_dependence() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(400, generator=g)
    y = 0.8 * x + 0.6 * torch.randn(400, generator=g)
    weights = balanced_log_ratios(_gaussian_log_ratio(x, y, 0.8)).exp()
    torch.testing.assert_close(weights.mean(0), torch.ones(400), rtol=1e-4, atol=0)
    torch.testing.assert_close(weights.mean(1), torch.ones(400), rtol=1e-2, atol=0)


def test_what_rows_and_columns_have_in_common_does_not_matter() -> None:
    scores = _scores(40)
    g = torch.Generator().manual_seed(2)
    own, other = (5 * torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((40, 1), (1, 40)))
    moved = balanced_log_ratios(scores + own + other, rounds=60)
    torch.testing.assert_close(moved, balanced_log_ratios(scores, rounds=60), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rounds", [1, 2, 8])
def test_it_equals_sinkhorn_in_logarithms(rounds: int) -> None:
    scores = _scores(30, scale=2.0, seed=3)
    ratios = balanced_log_ratios(scores, rounds=rounds)
    torch.testing.assert_close(ratios, _sinkhorn(scores, rounds), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_200_survive(dtype: torch.dtype) -> None:
    scores = (400 * torch.rand(50, 50, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 200).to(dtype)
    for given in (scores, 200 * (2 * torch.eye(50, dtype=dtype) - 1), torch.full_like(scores, -200.0)):
        before = given.clone()
        ratios = balanced_log_ratios(given)
        assert torch.equal(given, before), "the scores were changed in place"
        assert ratios.dtype == dtype
        assert bool(ratios.isfinite().all())
        torch.testing.assert_close(ratios.exp().mean(0), torch.ones(50, dtype=dtype), rtol=1e-4, atol=0)
        assert float(ratios.max()) <= math.log(50) + 1e-4


def test_scores_that_are_not_square_are_refused() -> None:
    g = torch.Generator().manual_seed(0)
    for wrong in (torch.zeros(4, 5), torch.zeros(4), torch.zeros(2, 3, 3)):
        with pytest.raises(InputError, match=r"scores has shape .*; balancing needs a square matrix of all pairs\."):
            balanced_log_ratios(wrong)
        with pytest.raises(InputError, match=r"log_ratios has shape .*; a pairing needs a square matrix\."):
            drawn_pairing(wrong, generator=g)


@pytest.mark.parametrize("n", [1, 2, 5, 200])
def test_a_drawn_pairing_is_a_permutation(n: int) -> None:
    pairing = drawn_pairing(_scores(n), generator=torch.Generator().manual_seed(5), sweeps=30)
    assert pairing.sort().values.tolist() == list(range(n))


def test_drawn_pairings_follow_the_law_of_permutations() -> None:
    n, draws = 4, 300
    scores = _scores(n, scale=0.6, seed=6)
    permutations = list(itertools.permutations(range(n)))
    weights = torch.stack([sum(scores[i, j] for i, j in enumerate(one)) for one in permutations])
    expected = draws * torch.softmax(weights, 0)
    g = torch.Generator().manual_seed(7)
    counted = Counter(tuple(drawn_pairing(scores, generator=g, sweeps=25).tolist()) for _ in range(draws))
    common = expected >= 5
    observed = torch.tensor([counted[one] for one in permutations], dtype=torch.float64)
    cells = [torch.cat([seen[common], seen[~common].sum()[None]]) for seen in (observed, expected)]
    statistic = float(((cells[0] - cells[1]) ** 2 / cells[1]).sum())
    assert statistic < chi2.ppf(0.999, df=cells[0].shape[0] - 1)
    uniform = float(((observed - draws / 24) ** 2 / (draws / 24)).sum())
    assert uniform > chi2.ppf(0.999, df=23), "with so few draws, the test cannot tell the law from the uniform one"


def test_offsets_do_not_change_the_pairing() -> None:
    scores = _scores(30)
    moved = scores + torch.arange(30.0, dtype=torch.float64) + 2 * torch.arange(30.0, dtype=torch.float64)[:, None]
    first, second = (
        drawn_pairing(given, generator=torch.Generator().manual_seed(8), sweeps=50) for given in (scores, moved)
    )
    assert torch.equal(first, second)


def test_the_draws_come_from_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, again = (drawn_pairing(_scores(50), generator=torch.Generator().manual_seed(9), sweeps=50) for _ in range(2))
    assert torch.equal(first, again)
    other = drawn_pairing(_scores(50), generator=torch.Generator().manual_seed(10), sweeps=50)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_pairs_drawn_from_a_gaussian_law_have_its_correlation() -> None:
    n, rho = 1000, 0.8
    g = torch.Generator().manual_seed(11)
    x, y = torch.randn(2, n, generator=g, dtype=torch.float64)
    ratios = balanced_log_ratios(_gaussian_log_ratio(x, y, rho))
    pairing = drawn_pairing(ratios, generator=g, sweeps=1500)
    correlation = float(torch.corrcoef(torch.stack([x, y[pairing]]))[0, 1])
    assert abs(correlation - rho) < 4 * (1 - rho**2) / math.sqrt(n)
