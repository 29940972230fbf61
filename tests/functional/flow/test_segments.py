"""Segmentation against every way to cut, its false alarms, its power, and the coverage of its intervals."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy.special import logsumexp

import mikit
from mikit.functional.flow.segments import flat_penalty, segment_curve


def cost_of(y, sigma, x, degree, bounds):
    """Cost and log-evidence of one way to cut, by least squares."""
    cost, log = 0.0, 0.0
    for start, end in pairwise(bounds):
        design = np.stack([x[start:end] ** p for p in range(degree + 1)], axis=1) / sigma[start:end, None]
        target = y[start:end] / sigma[start:end]
        fit = design @ np.linalg.lstsq(design, target, rcond=None)[0]
        cost += ((target - fit) ** 2).sum()
        log -= 0.5 * np.linalg.slogdet(design.T @ design)[1]
    return cost, log


def ways(n, degree, changes=None):
    for count in range(n) if changes is None else (changes,):
        for inner in combinations(range(1, n), count):
            bounds = (0, *inner, n)
            if min(np.diff(bounds)) >= degree + 1:
                yield bounds


@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_no_way_to_cut_is_cheaper_and_the_places_are_weighed_over_all(degree, seed):
    rng = np.random.default_rng(seed)
    n = 8
    x = np.cumsum(rng.uniform(0.5, 2, n))
    sigma = rng.uniform(0.1, 0.3, n)
    y = np.where(np.arange(n) < 4, 0.0, 1.5) + sigma * rng.standard_normal(n)
    found = segment_curve(y, sigma, positions=x, degree=degree, penalty=6.0)
    totals = {b: cost_of(y, sigma, x, degree, b)[0] + 6.0 * (len(b) - 2) for b in ways(n, degree)}
    best = min(totals, key=totals.get)
    assert found.changes == best[1:-1]
    assert found.cost == pytest.approx(cost_of(y, sigma, x, degree, best)[0], abs=1e-9)
    alike = list(ways(n, degree, len(found.changes)))
    logs = np.array([log - cost / 2 for cost, log in (cost_of(y, sigma, x, degree, b) for b in alike)])
    shares = np.exp(logs - logsumexp(logs))
    for index in range(len(found.changes)):
        expected = np.zeros(n)
        for bounds, share in zip(alike, shares, strict=True):
            expected[bounds[1 + index]] += share
        assert found.weights[index] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("degree", [0, 1])
def test_flat_curves_are_left_whole(degree):
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        sigma = rng.uniform(0.01, 0.02, 8)
        level = rng.uniform(0, 1) + (0.05 * np.arange(8) if degree else 0)
        alarms += bool(segment_curve(level + sigma * rng.standard_normal(8), sigma, degree=degree).changes)
    # 1 % at most: four standard deviations of 200 draws above it.
    assert alarms <= 2 + 4 * np.sqrt(2)


def test_the_penalty_is_the_union_bound():
    from scipy.stats import chi2

    beta = flat_penalty(3, degree=1, level=0.05)
    assert 2 * chi2.sf(beta, 2) + chi2.sf(2 * beta, 4) == pytest.approx(0.05)


def test_a_step_is_found_and_its_interval_covers_it():
    rng = np.random.default_rng(1)
    near, covered, confidence = 0, 0, []
    for _ in range(100):
        at = int(rng.integers(2, 11))
        y = 5.0 * (np.arange(12) >= at) + rng.standard_normal(12)
        found = segment_curve(y, np.ones(12), degree=0)
        if len(found.changes) != 1:
            continue
        near += abs(found.changes[0] - at) <= 1
        covered += found.intervals[0][0] <= at <= found.intervals[0][1]
        confidence.append(found.confidence[0])
        assert found.p_values[0] < 0.05
    assert near >= 95 - 2  # two standard deviations of 100 draws at 95 % below 97
    assert covered >= 95 - 4 * np.sqrt(100 * 0.05 * 0.95)
    assert np.mean(confidence) > 0.9


def test_a_bend_is_found_in_straight_pieces():
    y = np.array([0.0, 0.3, 0.6, 0.9, 1.2, 1.2, 1.2, 1.2, 1.2])
    found = segment_curve(y, np.full(9, 0.02))
    assert len(found.changes) == 1
    assert found.changes[0] in (4, 5)
    assert found.slopes == pytest.approx((0.3, 0.0), abs=0.05)
    assert segment_curve(0.3 * np.arange(9), np.full(9, 0.02)).changes == ()


def test_short_and_bad_curves():
    assert segment_curve(np.array([1.0]), np.array([0.1])).changes == ()
    assert segment_curve(np.array([1.0, 9.0]), np.array([0.1, 0.1])).changes == ()
    assert segment_curve(np.array([1.0, 9.0]), np.array([0.1, 0.1]), degree=0).changes == (1,)
    good = np.ones(4)
    for given, said in (
        ((np.array([1, np.nan, 1, 1]), good), "not finite"),
        ((good, np.array([1.0, 0, 1, 1])), "not a positive number"),
        ((good, np.ones(3)), "one of each"),
    ):
        with pytest.raises(mikit.InputError, match=said):
            segment_curve(*given)
    with pytest.raises(mikit.InputError, match="do not increase"):
        segment_curve(good, good, positions=np.array([0, 1, 1, 2]))
    with pytest.raises(mikit.InputError, match="degree is 2"):
        segment_curve(good, good, degree=2)
    with pytest.raises(mikit.InputError, match="level is 0"):
        segment_curve(good, good, level=0)
    with pytest.raises(mikit.InputError, match="penalty is -1"):
        segment_curve(good, good, penalty=-1.0)
    with pytest.raises(mikit.InputError, match="n is 0"):
        flat_penalty(0)
