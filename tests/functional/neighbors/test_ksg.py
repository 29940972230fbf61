"""KSG against naive loops, scikit-learn, closed forms, and everything that must not move it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_regression
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.neighbors import counts as neighbor_counts, samples, screen, trees
from mikit.functional.neighbors.ksg import Metric, ksg, ksg_pointwise


def _pair(n: int, d_x: int, d_y: int, rho: float, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian rows whose first columns correlate by ``rho``: min(d_x, d_y) independent channels."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_x, generator=g, dtype=torch.float64)
    y = torch.randn(n, d_y, generator=g, dtype=torch.float64)
    d = min(d_x, d_y)
    y[:, :d] = rho * x[:, :d] + math.sqrt(1 - rho**2) * y[:, :d]
    return x, y


def _truth(d: int, rho: float) -> float:
    return -0.5 * d * math.log(1 - rho**2)


def _standard_error(x: Tensor, y: Tensor, k: int = 3) -> float:
    contributions = ksg_pointwise(x, y, k)
    return float(contributions.std() / math.sqrt(contributions.shape[0]))


def _scaled(rows: Tensor, metric: Metric) -> list[list[float]]:
    z = (rows - rows.mean(dim=0)) / rows.std(dim=0, correction=0)
    norms = z.square().sum(dim=1) if metric == "euclidean" else z.square().amax(dim=1)
    scaled: list[list[float]] = (z / norms.mean().sqrt()).tolist()
    return scaled


def _distance(a: list[float], b: list[float], metric: Metric) -> float:
    return math.dist(a, b) if metric == "euclidean" else max(abs(p - q) for p, q in zip(a, b, strict=True))


def _by_loops(x: Tensor, y: Tensor, k: int, metric: Metric) -> list[float]:
    xs, ys = _scaled(x, metric), _scaled(y, metric)
    n = len(xs)
    values = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        in_x = {j: _distance(xs[i], xs[j], metric) for j in others}
        in_y = {j: _distance(ys[i], ys[j], metric) for j in others}
        joint = {j: max(in_x[j], in_y[j]) for j in others}
        reach = sorted(joint.values())[k - 1]

        def count(distances: dict[int, float], reach: float = reach) -> int:
            if reach < 1e-9:
                return 1 + sum(d < 1e-9 for d in distances.values())
            return 1 + sum(d < reach - 1e-9 for d in distances.values())

        values.append(digamma(n) + digamma(count(joint)) - digamma(count(in_x)) - digamma(count(in_y)))
    return values


@pytest.mark.parametrize(
    ("d_x", "d_y", "metric"),
    [(1, 1, "chebyshev"), (2, 1, "chebyshev"), (2, 2, "chebyshev"), (2, 2, "euclidean"), (3, 2, "chebyshev"),
     (3, 5, "euclidean"), (70, 2, "euclidean")],
)  # fmt: skip
@pytest.mark.parametrize("k", [1, 4])
def test_every_contribution_equals_the_naive_loop(d_x: int, d_y: int, metric: Metric, k: int) -> None:
    x, y = _pair(130, d_x, d_y, 0.8, seed=0)
    np.testing.assert_allclose(ksg_pointwise(x, y, k, metric=metric), _by_loops(x, y, k, metric), atol=1e-12)


@pytest.mark.parametrize(("d", "metric"), [(1, "chebyshev"), (2, "chebyshev"), (3, "chebyshev"), (3, "euclidean")])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_ties_follow_the_naive_loop(d: int, metric: Metric, k: int) -> None:
    x, y = _pair(150, d, d, 0.8, seed=1)
    for f in (torch.relu, torch.round, lambda rows: rows[torch.arange(150) // 3]):
        mine = ksg_pointwise(f(x), f(y), k, metric=metric)
        np.testing.assert_allclose(mine, _by_loops(f(x), f(y), k, metric), atol=1e-12)


@given(
    values=st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=6, max_size=40),
    k=st.integers(1, 5),
    offset=st.sampled_from([0.0, 0.7, -100.0]),
    spread=st.sampled_from([1.0, 1e-3, 0.1, 1 / 3]),
)
@settings(deadline=None, max_examples=100)
def test_lattices_follow_the_naive_loop(values: list[tuple[int, int]], k: int, offset: float, spread: float) -> None:
    rows = torch.tensor(values, dtype=torch.float64) * spread + offset
    x, y = rows[:, :1], rows[:, 1:]
    if len(x.unique()) == 1 or len(y.unique()) == 1:
        assert ksg(x, y, k).item() == 0
    else:
        np.testing.assert_allclose(ksg_pointwise(x, y, k), _by_loops(x, y, k, "chebyshev"), atol=1e-12)


@pytest.mark.parametrize("n", [100, 1000, 5000])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_one_column_each_agrees_with_scikit_learn(n: int, k: int) -> None:
    x, y = _pair(n, 1, 1, 0.9, seed=n)
    theirs = mutual_info_regression(x.numpy(), y[:, 0].numpy(), n_neighbors=k, random_state=0)[0]
    assert ksg(x, y, k).item() == pytest.approx(theirs, abs=1e-6)  # scikit-learn adds noise of 1e-10


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.99])
def test_gaussian_truth_in_one_column(rho: float) -> None:
    x, y = _pair(10_000, 1, 1, rho, seed=3)
    # The bias at this size is below 0.01 nat for up to two nats.
    assert abs(ksg(x, y).item() - _truth(1, rho)) < 3 * _standard_error(x, y) + 0.01


def test_the_documented_bias_in_many_columns() -> None:
    x, y = _pair(4000, 16, 16, 0.5, seed=4)
    assert 0.9 < ksg(x, y).item() < 1.0 < _truth(16, 0.5) / 2


def test_euclid_inside_a_wide_space_underestimates_less() -> None:
    x, y = _pair(1000, 25, 25, 0.6, seed=5)
    assert ksg(x, y, metric="chebyshev").item() < ksg(x, y).item() < _truth(25, 0.6)


def test_a_wider_space_does_not_drown_the_other() -> None:
    x, y = _pair(1000, 256, 64, 0.6, seed=6)
    assert ksg(x, y, scale=False).item() == pytest.approx(0, abs=1e-3)  # what scaling is for
    assert ksg(x, y).item() > 0.4


@pytest.mark.parametrize(("d_x", "d_y"), [(1, 1), (2, 2), (4, 3)])
def test_units_of_a_column_do_not_matter(d_x: int, d_y: int) -> None:
    x, y = _pair(600, d_x, d_y, 0.8, seed=7)
    reference = ksg(x, y).item()
    for factor in (1e-3, 1e3, 1e-160, 1e160, -1.0):
        scaled = x.clone()
        scaled[:, 0] *= factor
        assert ksg(scaled, y).item() == pytest.approx(reference, abs=1e-10)
    assert abs(ksg(x * torch.tensor([1e3] + [1.0] * (d_x - 1)), y, scale=False).item() - reference) > 0.1


@pytest.mark.parametrize(("d_x", "d_y"), [(1, 1), (4, 3)])
def test_an_offset_does_not_matter(d_x: int, d_y: int) -> None:
    x, y = _pair(600, d_x, d_y, 0.8, seed=8)
    # An offset of 1e6 rounds the input itself at 1e-10; one sample changing sides moves the mean by about 1e-5.
    assert ksg(x + 1e6, y).item() == pytest.approx(ksg(x, y).item(), abs=1e-6)


@pytest.mark.parametrize(("d_x", "d_y"), [(1, 1), (2, 1), (5, 3)])
@pytest.mark.parametrize("f", [torch.clone, torch.relu], ids=["continuous", "relu"])
def test_symmetry_and_row_order(d_x: int, d_y: int, f: Callable[[Tensor], Tensor]) -> None:
    x, y = (f(rows) for rows in _pair(700, d_x, d_y, 0.8, seed=9))
    value = ksg(x, y).item()
    assert ksg(y, x).item() == pytest.approx(value, abs=1e-10)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    assert ksg(x[order], y[order]).item() == pytest.approx(value, abs=1e-10)
    np.testing.assert_allclose(ksg_pointwise(x[order], y[order]), ksg_pointwise(x, y)[order], atol=1e-10)


@pytest.mark.parametrize("metric", ["euclidean", "chebyshev"])
def test_the_size_of_a_strip_does_not_matter(metric: Metric) -> None:
    x, y = _pair(333, 4, 3, 0.8, seed=10)
    reference = ksg(x, y, metric=metric).item()
    for strip in (1, 7, 64, 333, 5000):
        assert ksg(x, y, metric=metric, strip=strip).item() == pytest.approx(reference, abs=1e-12)


def test_tree_and_strips_agree() -> None:
    x, y = _pair(900, 1, 1, 0.8, seed=11)
    for f in (torch.clone, torch.relu, torch.round):
        a, b = (samples.scaled(f(rows), "chebyshev", True)[0] for rows in (x, y))
        tree = trees.counts_by_tree(a.numpy(), b.numpy(), 3, 1.0)
        for metric in ("euclidean", "chebyshev"):
            for ours, theirs in zip(tree, neighbor_counts.counts_of_all_pairs(a, b, 3, metric, 1.0, None), strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("n", [10_000, 1_000_000])
def test_a_constant_says_nothing_however_many_rows(n: int) -> None:
    y = torch.randn(n, generator=torch.Generator().manual_seed(12))
    start = time.process_time()
    for x in (torch.full((n,), 0.1), torch.zeros(n, 2, dtype=torch.uint8)):
        assert ksg(x, y).item() == 0
        assert ksg(y, x).item() == 0
    assert ksg(torch.ones(n), torch.ones(n)).item() == 0
    assert time.process_time() - start < 5


def test_a_constant_column_changes_nothing() -> None:
    x, y = _pair(400, 4, 1, 0.8, seed=13)
    x = x[:, :3]
    assert ksg(torch.cat([x, torch.full((400, 1), 7.0)], dim=1), y).item() == ksg(x, y).item()


def test_the_rule_for_coincident_samples_gives_zero_on_constants_too() -> None:
    # Dropping constants is a shortcut: with the whole sample inside every ball of x, the counts cancel by themselves.
    y = torch.randn(50, 1, generator=torch.Generator().manual_seed(14), dtype=torch.float64)
    joint, near_x, near_y = trees.counts_by_tree(np.zeros((50, 1)), y.numpy(), 3, 0.0)
    assert (near_x == 50).all()
    np.testing.assert_array_equal(joint, near_y)


@pytest.mark.parametrize(("both", "truth"), [(False, 0.605805), (True, 0.554370)])
def test_the_atom_behind_a_relu(both: bool, truth: float) -> None:
    # Truths by quadrature: the atoms and the density part of I(relu X; Y) at correlation 0.9.
    x, y = _pair(10_000, 1, 1, 0.9, seed=15)
    assert ksg(x.relu(), y.relu() if both else y).item() == pytest.approx(truth, abs=0.03)
    wide = torch.cat([x.relu(), torch.zeros(10_000, 1)], dim=1)[:2500]
    assert ksg(wide, y[:2500], metric="euclidean").item() == pytest.approx(0.605805, abs=0.05)


def test_labels_give_their_entropy_and_no_more() -> None:
    g = torch.Generator().manual_seed(16)
    label = torch.randint(4, (2000,), generator=g)
    entropy = -sum(p * math.log(p) for p in (torch.bincount(label) / 2000).tolist())
    assert ksg(label, label).item() == pytest.approx(entropy, abs=0.002)
    apart = 100 * label[:, None] + torch.randn(2000, 1, generator=g)
    assert ksg(apart, label).item() == pytest.approx(entropy, abs=0.01)
    other = torch.randint(4, (2000,), generator=g)
    assert abs(ksg(label, other).item()) < 3 * _standard_error(label, other) + 0.003


@pytest.mark.parametrize("d", [1, 3])
def test_rows_that_occur_many_times_are_finite(d: int) -> None:
    x, y = _pair(150, d, d, 0.5, seed=17)
    for copies in (2, 4, 20):
        assert bool(torch.isfinite(ksg_pointwise(x.repeat(copies, 1), y.repeat(copies, 1))).all())


def test_atoms_stay_fast_at_many_rows() -> None:
    x, y = _pair(100_000, 1, 1, 0.9, seed=18)
    start = time.process_time()
    assert ksg(x.relu(), y.relu()).item() == pytest.approx(0.554370, abs=0.01)
    assert time.process_time() - start < 3  # comparing all pairs of coincident samples takes a minute


def test_the_ceiling_is_reached_by_a_deterministic_pair() -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(19), dtype=torch.float64)
    assert ksg(x, 2 * x).item() == pytest.approx(digamma(500) - digamma(3), abs=1e-12)


def test_integers_halves_and_views_are_read_as_their_values() -> None:
    g = torch.Generator().manual_seed(20)
    whole = torch.randint(0, 255, (300, 2), generator=g, dtype=torch.uint8)
    assert ksg(whole[:, 0], whole[:, 1]).item() == ksg(whole[:, 0].double(), whole[:, 1].double()).item()
    x, y = _pair(300, 2, 3, 0.8, seed=20)
    low = x.bfloat16()
    assert ksg(low, y).item() == ksg(low.double(), y).item()
    assert ksg(x.T.contiguous().T, y.flip(0).flip(0)).item() == ksg(x, y).item()


def test_input_and_gradient_are_left_alone() -> None:
    x, y = _pair(200, 3, 3, 0.8, seed=21)
    before = x.clone(), y.clone()
    value = ksg(x.requires_grad_(), y)
    assert not value.requires_grad
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize(
    ("x", "y", "k", "message"),
    [
        (torch.zeros(5, 1), torch.zeros(4, 1), 3, "5 samples and y has 4"),
        (torch.zeros(3, 1), torch.zeros(3, 1), 3, "at least 4"),
        (torch.zeros(0, 1), torch.zeros(0, 1), 3, "0 samples"),
        (torch.zeros(5, 1), torch.zeros(5, 1), 0, "k is 0; it must be at least 1"),
        (torch.zeros(5, 1, 2), torch.zeros(5, 1), 3, "(5, 1, 2)"),
        (torch.zeros(5, 1, dtype=torch.complex64), torch.zeros(5, 1), 3, "complex"),
        (torch.tensor([0, 1, math.nan, 3, 4]), torch.zeros(5), 3, "x contains NaN or infinity in 1 of 5 samples"),
        (torch.zeros(5), torch.tensor([0, 1, 2, -math.inf, 4]), 3, "row 3"),
    ],
)
def test_what_cannot_be_used_is_refused(x: Tensor, y: Tensor, k: int, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        ksg(x, y, k)
    assert message in str(refusal.value)


def test_unknown_settings_are_refused() -> None:
    x = torch.randn(10, 1)
    with pytest.raises(InputError, match='metric is "manhattan"'):
        ksg(x, x, metric="manhattan")
    with pytest.raises(InputError, match="strip is 0"):
        ksg(x, x, strip=0)


# ------------------------------------------------------------------------------ float32 first, float64 where it decides


def _counts(x: Tensor, y: Tensor, k: int, metric: Metric, scale: bool = True) -> tuple[Tensor, Tensor, int]:
    """Return the counts, those of float64 alone, and how many rows float32 left undecided."""
    a, offset_a = samples.scaled(samples.varying_columns(x.double()), metric, scale)
    b, offset_b = samples.scaled(samples.varying_columns(y.double()), metric, scale)
    offset = max(offset_a, offset_b)
    spaces = screen.Spaces.of(a, b, metric, offset)
    counts, exact = torch.zeros(2, 3, x.shape[0], dtype=torch.int64)
    everything = torch.arange(x.shape[0])
    neighbor_counts._count_in_float64(spaces, everything, k, None, exact)
    left = neighbor_counts._decide_in_float32(spaces, k, None, counts)
    neighbor_counts._count_in_float64(spaces, left, k, None, counts)
    return counts, exact, left.shape[0]


def _difficult(kind: str, n: int, d_x: int, d_y: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(21)
    x, y = _pair(n, d_x, d_y, 0.6, seed=22)
    pairs = torch.arange(n) // 2
    noise = torch.randn(n, d_x, generator=g, dtype=torch.float64)
    if kind == "one row far out":
        x[7] *= 1e6
    elif kind == "heavy tails":
        x, y = x / noise, (3 * y).exp()
    elif kind == "near ties":
        sphere = noise / noise.norm(dim=1, keepdim=True) * (1 + 1e-7 * torch.randn(n, 1, generator=g))
        sphere[::10] = 0
        x = 100 * x[torch.arange(n) // 10] + sphere
    elif kind == "nearly twice":
        x, y = x[pairs] + 1e-7 * noise, y[pairs]
    elif kind == "twice":
        x, y = x[pairs], y[pairs]
    elif kind == "tight clusters":
        x = x[torch.arange(n) // 20] + 1e-4 * noise
        y = y[torch.arange(n) // 20] + 1e-4 * torch.randn(n, d_y, generator=g)
    elif kind == "clusters far apart":
        x = 1e6 * noise[:3][torch.randint(3, (n,), generator=g)] + x
    elif kind == "integers":
        x, y = x.round(), y.round()
    elif kind == "label":
        y = torch.randint(3, (n, 1), generator=g).double()
    elif kind == "label beside columns":
        x = torch.cat([x, torch.randint(3, (n, 2), generator=g)], dim=1)
    elif kind == "relu":
        x, y = x.relu(), y.relu()
        x[torch.rand(n, generator=g) < 0.5] = 0
    elif kind == "off center":
        x = x + 1e7
    else:
        assert kind == "plain"
    return x, y


_DIFFICULT = ["plain", "one row far out", "heavy tails", "near ties", "nearly twice", "twice", "tight clusters",
              "clusters far apart", "integers", "label", "label beside columns", "relu", "off center"]  # fmt: skip


@pytest.mark.parametrize("kind", _DIFFICULT)
@pytest.mark.parametrize("metric", ["euclidean", "chebyshev"])
@pytest.mark.parametrize(("d_x", "d_y"), [(3, 2), (20, 20), (300, 5)])
def test_float32_counts_as_float64_does(
    kind: str, metric: Metric, d_x: int, d_y: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbor_counts, "_SMALL", 0)
    monkeypatch.setattr(screen, "_TILE", 128)  # several tiles
    monkeypatch.setattr(neighbor_counts, "_PENDING", 300)  # several rounds of settling
    x, y = _difficult(kind, 330, d_x, d_y)
    for k, scale in ((1, True), (3, True), (7, False)):
        counts, exact, left = _counts(x, y, k, metric, scale)
        torch.testing.assert_close(counts, exact, rtol=0, atol=0)
        if kind in ("plain", "heavy tails", "off center"):
            assert left == 0


def test_ties_everywhere_are_left_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbor_counts, "_SMALL", 0)
    g = torch.Generator().manual_seed(23)
    x, y = (torch.randint(2, (700, 3), generator=g).double() for _ in range(2))
    counts, exact, left = _counts(x, y, 3, "euclidean")
    assert left == 700
    assert torch.equal(counts, exact)


@pytest.mark.parametrize("kind", ["plain", "one row far out", "heavy tails", "clusters far apart"])
@pytest.mark.parametrize("metric", ["euclidean", "chebyshev"])
def test_float32_distances_stay_within_their_bound(kind: str, metric: Metric) -> None:
    x, y = _difficult(kind, 320, 600, 3)
    a, b = samples.scaled(x, metric, True)[0], samples.scaled(y, metric, True)[0]
    spaces = screen.Spaces.of(a, b, metric, 0.0)
    norm = spaces.size.sqrt() if metric == "euclidean" else spaces.size
    found = screen.Screen(spaces, norm, 2.0**-10, 320)
    found.compare(slice(0, 320), 3)
    for space, between in zip((a, b), found.between, strict=True):
        rows = space * 2.0**-10
        true = torch.cdist(rows, rows, p=2 if metric == "euclidean" else math.inf,
                           compute_mode="donot_use_mm_for_euclid_dist")  # fmt: skip
        power = 2 if metric == "euclidean" else 1
        error = (between[0].double() - true**power).abs()
        bound = found.relative * (2 * found.norm[:, None] + true) ** power + found.absolute
        assert bool((error <= bound)[~torch.eye(320, dtype=torch.bool)].all())
        assert bool((bound <= 2e-4 * (2 * found.norm[:, None] + true) ** power + 1e-30).all())


def test_products_of_too_few_digits_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbor_counts, "_SMALL", 0)
    x, y = _pair(300, 10, 10, 0.6, seed=24)
    reference, _, left = _counts(x, y, 3, "euclidean")
    assert left == 0
    product = torch.mm

    def coarse(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        if a.dtype == torch.float32:
            a, b = (side.bfloat16().float() for side in (a, b))
        return product(a, b, out=out)

    monkeypatch.setattr(torch, "mm", coarse)
    counts, _, left = _counts(x, y, 3, "euclidean")
    assert left == 300
    assert torch.equal(counts, reference)


@pytest.mark.parametrize("kind", ["plain", "near ties", "relu", "label"])
def test_the_branch_without_numpy_counts_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbor_counts, "_SMALL", 0)
    start = screen.Screen.__init__

    def without(self: screen.Screen, *arguments: Any) -> None:
        start(self, *arguments)
        self.flags = []  # what a GPU has

    monkeypatch.setattr(screen.Screen, "__init__", without)
    counts, exact, _ = _counts(*_difficult(kind, 330, 20, 5), 3, "euclidean")
    assert torch.equal(counts, exact)


def test_autocast_changes_nothing() -> None:
    x, y = _pair(3000, 25, 25, 0.6, seed=25)
    reference = ksg_pointwise(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ksg_pointwise(x, y), reference)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", _DIFFICULT)
@pytest.mark.parametrize("metric", ["euclidean", "chebyshev"])
def test_a_gpu_counts_as_the_processor_does(kind: str, metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbor_counts, "_SMALL", 0)
    x, y = _difficult(kind, 1000, 20, 20)
    reference = ksg_pointwise(x, y, metric=metric)
    torch.testing.assert_close(ksg_pointwise(x.cuda(), y.cuda(), metric=metric).cpu(), reference, rtol=0, atol=1e-12)


@pytest.mark.gpu
def test_tf32_does_not_reach_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbor_counts, "_SMALL", 0)
    x, y = (rows.cuda() for rows in _pair(3000, 60, 60, 0.6, seed=26))
    reference = ksg_pointwise(x, y)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    torch.testing.assert_close(ksg_pointwise(x, y), reference, rtol=0, atol=1e-12)
