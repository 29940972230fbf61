"""Plug-in entropy and information against tables whose truth is a sum, and corrections against exact expectations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma
from scipy.stats import binom
from sklearn.metrics import mutual_info_score
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.labels.plug_in import Correction, occurrences, plug_in_entropy, plug_in_mi, plug_in_pointwise

CORRECTIONS: list[Correction | None] = [None, "miller-madow", "grassberger"]
JOINT = np.array([[0.2, 0.05, 0.05], [0.1, 0.3, 0.0], [0.02, 0.08, 0.2]])


def _truth(joint: np.ndarray) -> float:
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    held = joint > 0
    return float((joint[held] * np.log(joint[held] / product[held])).sum())


def _draw(joint: np.ndarray, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    cells = rng.choice(joint.size, size=n, p=joint.ravel())
    return torch.from_numpy(cells // joint.shape[1]), torch.from_numpy(cells % joint.shape[1])


def _table(counts: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rows that have exactly these counts."""
    rows, columns = (np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(counts.shape))
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _entropy_by_loops(counts: list[int], correction: Correction | None) -> float:
    n = sum(counts)
    plain = -sum(c / n * math.log(c / n) for c in counts)
    if correction is None:
        return plain
    if correction == "miller-madow":
        return plain + (len(counts) - 1) / (2 * n)
    g = {c: digamma(c) + 0.5 * (-1) ** c * (digamma((c + 1) / 2) - digamma(c / 2)) for c in counts}
    return float(math.log(n) - sum(c * g[c] for c in counts) / n)


def test_a_table_that_holds_its_law_gives_the_truth() -> None:
    x, y = _table(np.rint(100 * JOINT).astype(int))
    assert plug_in_mi(x, y, None).item() == pytest.approx(_truth(JOINT), abs=1e-13)
    assert plug_in_mi(x, y, None).item() == pytest.approx(mutual_info_score(x.numpy(), y.numpy()), abs=1e-13)
    assert plug_in_entropy(x, None).item() == pytest.approx(-(0.3 * math.log(0.3) * 2 + 0.4 * math.log(0.4)), abs=1e-13)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_every_correction_follows_the_naive_loop(correction: Correction | None) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 6, (4, 5))
    x, y = _table(counts)
    margins = [counts.sum(1), counts.sum(0), counts.ravel()]
    h = [_entropy_by_loops([int(c) for c in m if c], correction) for m in margins]
    assert plug_in_entropy(x, correction).item() == pytest.approx(h[0], abs=1e-12)
    assert plug_in_mi(x, y, correction).item() == pytest.approx(h[0] + h[1] - h[2], abs=1e-12)
    both = torch.stack([x, y], dim=1)
    assert plug_in_entropy(both, correction).item() == pytest.approx(h[2], abs=1e-12)


def test_grassbergers_terms_are_those_of_his_recursion() -> None:
    # G(1) = -γ - log 2, G(2) = 2 - γ - log 2, G(2m + 1) = G(2m), G(2m + 2) = G(2m) + 2 / (2m + 1).
    g = [math.nan, -np.euler_gamma - math.log(2), 2 - np.euler_gamma - math.log(2)]
    for m in range(1, 6):
        g += [g[2 * m], g[2 * m] + 2 / (2 * m + 1)]
    for c in range(1, 12):
        # One value c times, among others that occur once each: 100 - c of them.
        x = torch.cat([torch.zeros(c), torch.arange(1, 101 - c)])
        expected = math.log(100) - (c * g[c] + (100 - c) * g[1]) / 100
        assert plug_in_entropy(x, "grassberger").item() == pytest.approx(expected, abs=1e-12)


def _expected_entropy(p: float, n: int, correction: Correction | None) -> float:
    """The exact expectation over all samples of n coins."""
    heads = np.arange(n + 1)
    values = [_entropy_by_loops([c for c in (int(h), n - int(h)) if c], correction) for h in heads]
    return float((binom.pmf(heads, n, p) * np.array(values)).sum())


def test_corrections_take_off_the_bias_they_claim() -> None:
    truth = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    for n in (20, 40, 80):
        off = {c: _expected_entropy(0.3, n, c) - truth for c in CORRECTIONS}
        # -(K - 1) / 2n without. Grassberger's adds K / 2n, one half of a count too much, as his counts are Poisson.
        # What is left is of second order: below 1 / n² times a constant of the distribution.
        assert off[None] == pytest.approx(-1 / (2 * n), abs=1 / n**2)
        assert abs(off["miller-madow"]) < 1 / n**2
        assert off["grassberger"] == pytest.approx(1 / (2 * n), abs=1 / n**2)
    rng = np.random.default_rng(1)
    x, _ = _draw(JOINT, 30, rng)
    for correction in CORRECTIONS:  # the estimator is the function whose expectation was taken
        mine = plug_in_entropy(x, correction).item()
        assert mine == pytest.approx(_entropy_by_loops(torch.bincount(x).tolist(), correction), abs=1e-12)


def test_the_documented_bias_of_information_in_a_sparse_table() -> None:
    g = torch.Generator().manual_seed(0)
    means = {}
    for correction in CORRECTIONS:
        values = [
            plug_in_mi(torch.randint(8, (100,), generator=g), torch.randint(8, (100,), generator=g), correction).item()
            for _ in range(150)
        ]
        means[correction] = sum(values) / 150  # standard error at most 0.007
    assert means[None] == pytest.approx(0.30, abs=0.025)
    assert means["miller-madow"] == pytest.approx(0.11, abs=0.025)
    assert means["grassberger"] == pytest.approx(0.02, abs=0.025)


def test_information_of_samples_is_unbiased_where_cells_are_full() -> None:
    rng = np.random.default_rng(2)
    for correction in ("miller-madow", "grassberger"):
        values = [plug_in_mi(*_draw(JOINT, 300, rng), correction).item() for _ in range(200)]
        error = float(np.std(values) / math.sqrt(200))
        over = 1 / 600 if correction == "grassberger" else 0.0
        assert abs(np.mean(values) - over - _truth(JOINT)) < 3 * error + 10 / 300**2
    plain = [plug_in_mi(*_draw(JOINT, 300, rng), None).item() for _ in range(200)]
    # (K_xy - K_x - K_y + 1) / 2n with 8 cells that can occur.
    assert np.mean(plain) - _truth(JOINT) == pytest.approx(3 / 600, abs=0.006)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_names_order_and_side_do_not_matter(correction: Correction | None) -> None:
    rng = np.random.default_rng(3)
    x, y = _draw(JOINT, 120, rng)
    value = plug_in_mi(x, y, correction).item()
    assert plug_in_mi(y, x, correction).item() == pytest.approx(value, abs=1e-13)
    order = torch.from_numpy(rng.permutation(120))
    assert plug_in_mi(x[order], y[order], correction).item() == pytest.approx(value, abs=1e-13)
    for renamed in (-7 * x, 2**62 - x, x.double() / 3, (x + 1).to(torch.uint8), x[:, None].bfloat16(), x * 10**9):
        assert plug_in_mi(renamed, y, correction).item() == pytest.approx(value, abs=1e-13)
    digits = torch.stack([x == 0, x == 1], dim=1)  # a code in two columns is the same variable
    assert plug_in_mi(digits, y, correction).item() == pytest.approx(value, abs=1e-13)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_pointwise_averages_and_a_constant_says_nothing(correction: Correction | None) -> None:
    x, y = _draw(JOINT, 90, np.random.default_rng(4))
    assert plug_in_pointwise(x, y, correction).shape == (90,)
    assert plug_in_mi(torch.full((90,), 5), y, correction).item() == 0
    assert plug_in_pointwise(x, y, correction).mean().item() == plug_in_mi(x, y, correction).item()
    assert not plug_in_mi(x, y, correction).requires_grad


def test_a_permutation_of_one_side_leaves_nothing() -> None:
    rng = np.random.default_rng(5)
    x, y = _draw(JOINT, 2000, rng)
    assert plug_in_mi(x, y).item() > 0.2
    nulls = [plug_in_mi(x, y[torch.from_numpy(rng.permutation(2000))]).item() for _ in range(100)]
    # 2n times the uncorrected value is chi-squared with 4 degrees: SD of the mean sqrt(8) / 4000 / 10.
    assert abs(np.mean(nulls)) < 4 * math.sqrt(8) / 4000 / 10
    assert min(nulls) < 0


def test_what_cannot_be_used_is_refused() -> None:
    x = torch.tensor([0, 1, 1])
    with pytest.raises(InputError, match="x has 3 samples and y has 2"):
        plug_in_mi(x, x[:2])
    with pytest.raises(InputError, match="0 samples"):
        plug_in_entropy(x[:0])
    with pytest.raises(InputError, match=r"x contains NaN or infinity in 1 of 3 samples; the first is row 2"):
        plug_in_entropy(torch.tensor([0, 1, math.nan]))
    with pytest.raises(InputError, match=r"shape \(1, 1, 3\)"):
        plug_in_entropy(x[None, None])
    with pytest.raises(InputError, match="complex"):
        plug_in_entropy(x.to(torch.complex64))
    with pytest.raises(InputError, match='correction is "jackknife"'):
        plug_in_mi(x, x, "jackknife")


def test_occurrences_of_rows() -> None:
    assert occurrences(torch.tensor([3, 1, 3, 3])).tolist() == [3, 1, 3, 3]
