"""The plain formulas against loops, closed forms and other people's code: they are the reference of every error."""

from __future__ import annotations

import math
from functools import partial

import ot
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.feature_selection import mutual_info_regression

from mikit.bench.speed import problems, reference as whole
from mikit.bench.speed.problems import Problem
from mikit.functional import infonce, ksg, mmd2

N, D = 40, 5


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return x, 0.7 * x + torch.randn(N, D, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("both", [False, True])
def test_infonce_is_the_formula(pair, both: bool) -> None:
    value = infonce(*pair, temperature=0.5, both_directions=both)
    assert whole.infonce(*pair, 0.5, both).item() == pytest.approx(value.item(), rel=1e-12)


def test_jsd_is_the_sum_over_pairs(pair) -> None:
    def sp(s: float) -> float:
        return math.log1p(math.exp(s))

    scores = (pair[0] @ pair[1].T / 0.5).tolist()
    positive = sum(-sp(-scores[i][i]) for i in range(N)) / N
    negative = sum(sp(scores[i][j]) for i in range(N) for j in range(N) if i != j) / (N * (N - 1))
    assert whole.jsd(*pair, 0.5).item() == pytest.approx(positive - negative + 2 * math.log(2), rel=1e-12)
    assert whole.jsd_lean(*pair, 0.5).item() == pytest.approx(positive - negative + 2 * math.log(2), rel=1e-12)


def test_mmd2_is_the_formula(pair) -> None:
    for unbiased in (True, False):
        value = mmd2(*pair, bandwidth=2.0, unbiased=unbiased)
        assert whole.mmd2(*pair, 2.0, unbiased).item() == pytest.approx(value.item(), rel=1e-10)
    value = whole.mmd2(*pair, 2.0)
    assert whole.mmd2_by_cdist(*pair, 2.0).item() == pytest.approx(value.item(), rel=1e-10)
    assert whole.mmd2_lean(*pair, 2.0).item() == pytest.approx(whole.mmd2(*pair, 2.0, False).item(), rel=1e-10)


def test_hsic_is_the_trace(pair) -> None:
    centre = torch.eye(N, dtype=torch.float64) - 1 / N
    k, m = (torch.exp(-torch.cdist(a, a).square() / (2 * s * s)) for a, s in zip(pair, (2.0, 3.0), strict=True))
    expected = torch.trace(k @ centre @ m @ centre) / N**2
    assert whole.hsic(*pair, 2.0, 3.0).item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("diagonal", [False, True])
def test_pkt_is_the_divergence_of_neighbour_shares(pair, diagonal: bool) -> None:
    shares = []
    for rows in pair:
        cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2)
        kernel = (cosine + 1) / 2
        if not diagonal:
            kernel.fill_diagonal_(0)
        shares.append(kernel / kernel.sum(1, keepdim=True))
    own, given = shares
    counted = given > 0
    expected = (given[counted] * (given[counted] / own[counted]).log()).sum() / N
    assert whole.pkt(*pair, diagonal).item() == pytest.approx(expected.item(), rel=1e-10)
    assert whole.pkt(pair[0], pair[0], diagonal).item() == pytest.approx(0, abs=1e-12)
    if diagonal:
        assert whole.pkt_lean(*pair).item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize(
    "formula",
    [
        partial(whole.infonce, temperature=0.5, both_directions=True),
        partial(whole.jsd, temperature=0.5),
        partial(whole.jsd_lean, temperature=0.5),
        partial(whole.mmd2_lean, bandwidth=2.0),
        partial(whole.mmd2, bandwidth=2.0),
        partial(whole.mmd2, bandwidth=2.0, unbiased=False),
        partial(whole.hsic, bandwidth_x=2.0, bandwidth_y=3.0),
        partial(whole.pkt, diagonal=True),
        whole.pkt,
        whole.pkt_lean,
    ],
)
def test_gradients_are_those_of_the_values(pair, formula) -> None:
    x, y = (rows[:8].clone().requires_grad_() for rows in pair)
    assert torch.autograd.gradcheck(formula, (x, y))


def test_sinkhorn_is_what_pot_converges_to(pair) -> None:
    x, y = (rows / 3 for rows in pair)
    x = x.clone().requires_grad_()
    value = whole.sinkhorn_divergence(x, y, 0.1)
    value.backward()
    own = x.grad.clone()
    x.grad = None

    def cost(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ot.solve(ot.dist(a, b) / 2, reg=0.1, grad="envelope", tol=1e-10, max_iter=20_000).value

    other = cost(x, y) - (cost(x, x) + cost(y, y)) / 2
    other.backward()
    assert value.item() == pytest.approx(other.item(), rel=1e-6)
    torch.testing.assert_close(own, x.grad, rtol=1e-5, atol=1e-8)


def test_sliced_is_pot_squared(pair) -> None:
    directions = torch.nn.functional.normalize(torch.randn(7, D, dtype=torch.float64))
    expected = ot.sliced_wasserstein_distance(*pair, projections=directions.T) ** 2
    assert whole.sliced_wasserstein2(*pair, directions).item() == pytest.approx(expected.item(), rel=1e-10)


def test_bures_is_the_matrix_root(pair) -> None:
    first, second = (torch.cov(rows.T, correction=0) for rows in pair)
    root = torch.from_numpy(sqrtm(second.numpy()))
    cross = torch.from_numpy(sqrtm((root @ first @ root).numpy())).trace()
    expected = (first.trace() + second.trace() - 2 * cross).item()
    assert whole.bures2(*pair).item() == pytest.approx(expected, rel=1e-8)
    assert whole.bures2_by_gram(*pair).item() == pytest.approx(expected, rel=1e-8)


def test_ksg_is_the_formula_and_scikit_learn(pair) -> None:
    value = whole.ksg(*pair, 3, chebyshev=False, equal_spaces=True)
    assert value.item() == pytest.approx(ksg(*pair).item(), rel=1e-10)
    x, y = pair[0][:, :1], pair[1][:, 0]
    expected = mutual_info_regression(x.numpy(), y.numpy(), n_neighbors=3, random_state=0)[0]
    value = whole.ksg(x, y[:, None], 3, chebyshev=True, equal_spaces=False)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_samples_are_what_they_say() -> None:
    unit = problems.unit_rows(50, 8, 0)
    assert all(torch.allclose(rows.norm(dim=1), torch.ones(50)) for rows in unit.inputs)
    assert (unit.inputs[0] * unit.inputs[1]).sum(1).mean() > 0.3  # pairs belong together
    x, y = problems.clouds(300, 64, 0, 0.05).inputs
    assert (torch.cdist(x, y).square() / 2).mean().item() == pytest.approx(1, rel=1e-3)
    again, other = problems.clouds(300, 64, 0, 0.05), problems.clouds(300, 64, 1, 0.05)
    assert torch.equal(again.inputs[0], x)
    assert not torch.equal(other.inputs[0], x)


def test_a_moved_problem_has_leaves_of_its_own() -> None:
    problem = Problem((torch.ones(2, 2), torch.ones(2, 2)), 1, {})
    moved = problem.to(dtype=torch.float64)
    assert [rows.requires_grad for rows in moved.inputs] == [True, False]
    assert moved.inputs[0].dtype == torch.float64
    assert problem.to().inputs[0] is not problem.inputs[0]
    assert problem.input_bytes == 32
