"""Ross's estimator against naive loops, scikit-learn, and mixtures whose information is an integral."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_classif
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.neighbors.distances import Metric
from mikit.functional.neighbors.ross import ross_mi, ross_pointwise


def _classes(n: int, d: int, classes: int, apart: float, seed: int) -> tuple[Tensor, Tensor]:
    """Unit Gaussians whose means are ``apart`` times the class, in the first column."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    x[:, 0] += apart * labels
    return x, labels


def _truth(apart: float, weights: list[float]) -> float:
    """I(X; C) of unit Gaussians at 0, apart, 2 apart, ...: h(X) - log(2πe) / 2 by quadrature."""

    def density(x: float) -> float:
        return sum(w * math.exp(-0.5 * (x - c * apart) ** 2) for c, w in enumerate(weights)) / math.sqrt(2 * math.pi)

    entropy = quad(lambda x: -density(x) * math.log(density(x)), -9, 9 + apart * len(weights), limit=200)[0]
    return float(entropy - 0.5 * math.log(2 * math.pi * math.e))


def _by_loops(x: Tensor, labels: Tensor, k: int, metric: Metric) -> list[float]:
    z = (x - x.mean(0)) / x.std(0, correction=0)
    between = torch.cdist(z, z, p=2 if metric == "euclidean" else math.inf, compute_mode="donot_use_mm_for_euclid_dist")
    rows, codes = between.tolist(), labels.tolist()
    kept = [i for i, c in enumerate(codes) if codes.count(c) > 1]
    values = []
    for i in kept:
        mine = sorted(rows[i][j] for j in kept if j != i and codes[j] == codes[i])
        reach = mine[min(k, len(mine)) - 1]
        inside = 1e-9 if reach < 1e-9 else reach - 1e-9
        own = 1 + sum(d < inside for d in mine)
        near = sum(rows[i][j] < inside for j in kept)
        values.append(digamma(len(kept)) + digamma(own) - digamma(len(mine) + 1) - digamma(near))
    return values


@pytest.mark.parametrize("d", [1, 3, 6])
@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
@pytest.mark.parametrize("k", [1, 4])
def test_every_contribution_follows_the_naive_loop(d: int, metric: Metric, k: int) -> None:
    x, labels = _classes(120, d, 3, 1.0, seed=0)
    for f in (torch.clone, torch.relu, torch.round, lambda rows: rows[torch.arange(120) // 3]):
        mine = ross_pointwise(f(x), labels, k, metric=metric)
        np.testing.assert_allclose(mine, _by_loops(f(x), labels, k, metric), atol=1e-12)


@pytest.mark.parametrize("d", [1, 3, 6])
def test_small_classes_are_searched_as_far_as_they_go(d: int) -> None:
    x, _ = _classes(60, d, 1, 0.0, seed=1)
    labels = torch.cat([torch.zeros(30), torch.ones(20), torch.full((4,), 2), torch.full((3,), 5), torch.full((2,), 9)])
    labels = torch.cat([labels, torch.tensor([77.0])]).long()[
        torch.randperm(60, generator=torch.Generator().manual_seed(0))
    ]
    metric: Metric = "chebyshev" if d <= 4 else "euclidean"
    kept = labels != 77
    reference = _by_loops(x[kept], labels[kept], 3, metric)
    # The class of one sample is left out, as though it were not there.
    assert ross_mi(x, labels).item() == pytest.approx(sum(reference) / 59, abs=1e-12)
    mine = ross_pointwise(x, labels)
    np.testing.assert_allclose(mine[kept], reference, atol=1e-12)
    assert mine.mean().item() == pytest.approx(ross_mi(x, labels).item(), abs=1e-12)


def test_a_class_of_one_sample_is_left_out_as_scikit_learn_leaves_it_out() -> None:
    x, labels = _classes(300, 1, 3, 1.0, seed=1)
    labels[17] = 8
    theirs = mutual_info_classif(x.numpy(), labels.numpy(), discrete_features=False, random_state=0)[0]
    assert ross_mi(x, labels).item() == pytest.approx(theirs, abs=1e-6)


# Where a class has no more than 2k samples scikit-learn compares all pairs by a formula that rounds, and then counts a
# neighbor at the edge of its own ball; the naive loop above covers those.
@pytest.mark.parametrize("n", [100, 400, 3000])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_one_column_agrees_with_scikit_learn(n: int, k: int) -> None:
    x, labels = _classes(n, 1, 4, 1.5, seed=n)
    theirs = mutual_info_classif(x.numpy(), labels.numpy(), discrete_features=False, n_neighbors=k, random_state=0)[0]
    assert ross_mi(x, labels, k).item() == pytest.approx(theirs, abs=1e-6)  # scikit-learn adds noise of 1e-10


@pytest.mark.parametrize(
    ("apart", "weights"), [(0.5, [0.5, 0.5]), (2.0, [0.5, 0.5]), (2.0, [0.8, 0.2]), (1.5, [0.25] * 4)]
)
def test_mixtures_give_their_integral(apart: float, weights: list[float]) -> None:
    g = torch.Generator().manual_seed(2)
    labels = torch.multinomial(torch.tensor(weights), 10_000, replacement=True, generator=g)
    x = torch.randn(10_000, generator=g, dtype=torch.float64) + apart * labels
    contributions = ross_pointwise(x, labels)
    error = 1.4 * contributions.std().item() / 100
    assert abs(contributions.mean().item() - _truth(apart, weights)) < 3 * error + 0.003
    wide = torch.cat([x[:, None], torch.randn(10_000, 1, generator=g, dtype=torch.float64)], dim=1)[:4000]
    few = ross_pointwise(wide, labels[:4000])
    # A column that knows nothing adds neighbors that know nothing: the bias is some hundredths.
    assert abs(few.mean().item() - _truth(apart, weights)) < 3 * 1.4 * few.std().item() / math.sqrt(4000) + 0.02


def test_the_doctests_truth() -> None:
    assert _truth(2.0, [0.5, 0.5]) == pytest.approx(0.337, abs=5e-4)


def test_separated_classes_give_their_entropy() -> None:
    x, labels = _classes(1500, 5, 4, 100.0, seed=3)
    p = torch.bincount(labels) / 1500
    # ψ(n) - Σ p ψ(n_c) exceeds the entropy of the frequencies by (C - 1) / 2n to first order.
    assert ross_mi(x, labels, scale=False).item() == pytest.approx(
        float(torch.special.entr(p).sum()) + 3 / 3000, abs=1e-5
    )


@pytest.mark.parametrize("d", [1, 5])
def test_independent_rows_give_zero_on_average_and_negative_values(d: int) -> None:
    values = [ross_mi(*_classes(300, d, 3, 0.0, seed=s)).item() for s in range(40)]
    assert min(values) < 0
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(40) + 0.003


def test_a_permutation_of_the_labels_leaves_nothing() -> None:
    x, labels = _classes(1500, 2, 2, 2.0, seed=4)
    g = torch.Generator().manual_seed(0)
    assert ross_mi(x, labels).item() > 0.3
    nulls = [ross_mi(x, labels[torch.randperm(1500, generator=g)]).item() for _ in range(20)]
    assert abs(np.mean(nulls)) < 3 * np.std(nulls) / math.sqrt(20) + 0.002


@pytest.mark.parametrize("d", [1, 3, 7])
def test_units_names_order_and_constants_do_not_matter(d: int) -> None:
    x, labels = _classes(400, d, 3, 1.0, seed=5)
    value = ross_mi(x, labels).item()
    for factor in (1e-3, 1e3, 1e-150, -1.0):
        scaled = x.clone()
        scaled[:, 0] *= factor
        assert ross_mi(scaled, labels).item() == pytest.approx(value, abs=1e-10)
    assert ross_mi(x + 1e6, labels).item() == pytest.approx(value, abs=1e-5)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    assert ross_mi(x[order], labels[order]).item() == pytest.approx(value, abs=1e-10)
    assert ross_mi(x, 100 - 7 * labels).item() == pytest.approx(value, abs=1e-12)
    assert ross_mi(torch.cat([x, torch.full((400, 1), 3.0)], dim=1), labels).item() == pytest.approx(value, abs=1e-12)
    assert ross_mi(torch.full((400, d), 3.0), labels).item() == 0
    assert ross_mi(x, torch.zeros(400, dtype=torch.int64)).item() == pytest.approx(0, abs=1e-12)
    for strip in (1, 7, 1000):
        assert ross_mi(x, labels, metric="euclidean", strip=strip).item() == pytest.approx(
            ross_mi(x, labels, metric="euclidean").item(), abs=1e-12
        )


def test_an_atom_behind_a_relu() -> None:
    # Two classes at ∓1: I(relu X; C) is that of the atom and of the density above it.
    def part(x: float) -> float:
        p, q = (math.exp(-0.5 * (x - m) ** 2) / math.sqrt(2 * math.pi) / 2 for m in (-1, 1))
        return p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q))

    low, high = 0.5 * math.erfc(-1 / math.sqrt(2)) / 2, 0.5 * math.erfc(1 / math.sqrt(2)) / 2
    atom = low * math.log(2 * low / (low + high)) + high * math.log(2 * high / (low + high))
    truth = atom + quad(part, 0, 10)[0]
    g = torch.Generator().manual_seed(6)
    labels = torch.randint(2, (10_000,), generator=g)
    x = (torch.randn(10_000, generator=g) + 2 * labels - 1).relu()
    assert ross_mi(x, labels).item() == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize(
    ("x", "labels", "k", "message"),
    [
        (torch.zeros(5, 1), torch.zeros(4, dtype=torch.int64), 3, "x has 5 samples and labels has 4"),
        (torch.zeros(5, 1), torch.zeros(5), 3, "one integer per sample"),
        (torch.zeros(5, 1), torch.zeros(5, 1, dtype=torch.int64), 3, "(5, 1)"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), 3, "at least 4"),
        (torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64), 0, "k is 0; it must be at least 1"),
        (torch.zeros(5, 1), torch.arange(5), 3, "has a different label"),
        (torch.tensor([0, 1, math.nan, 3, 4]), torch.zeros(5, dtype=torch.int64), 3, "first is row 2"),
        (torch.zeros(5, 1, 2), torch.zeros(5, dtype=torch.int64), 3, "(5, 1, 2)"),
    ],
)
def test_what_cannot_be_used_is_refused(x: Tensor, labels: Tensor, k: int, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        ross_mi(x, labels, k)
    assert message in str(refusal.value)


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    x, labels = _classes(1000, 8, 3, 1.0, seed=7)
    torch.testing.assert_close(
        ross_pointwise(x.cuda(), labels.cuda()).cpu(), ross_pointwise(x, labels), rtol=0, atol=1e-12
    )
