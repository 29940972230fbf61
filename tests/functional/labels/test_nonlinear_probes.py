"""The probes with a hidden layer and of neighbors: naive loops, known information, held-out honesty."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from sklearn.neighbors import KNeighborsClassifier

from mikit.core.errors import InputError
from mikit.functional.labels.linear_probes import fit_logistic_probe
from mikit.functional.labels.nonlinear_probes import (
    NEIGHBORS,
    HiddenLayerProbe,
    NeighborProbe,
    fit_mlp_probe,
    fit_neighbor_probe,
    neighbor_frequencies,
    neighbor_labels,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def _circle(n: int, seed: int) -> tuple[Floats, Integers]:
    """Two classes that differ in radius only: P(y = 1 | r²) = sigmoid(2 (r² - 2)). No linear probe can tell."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2))
    return x, (rng.random(n) < 1 / (1 + np.exp(-2 * ((x**2).sum(1) - 2)))).astype(np.int64)


def _circles_truth() -> float:
    """r² is exponential with mean 2."""

    def p(t: float) -> float:
        return 1 / (1 + math.exp(-2 * (t - 2)))

    def h(q: float) -> float:
        return -q * math.log(q) - (1 - q) * math.log1p(-q) if 0 < q < 1 else 0.0

    mean = quad(lambda t: 0.5 * math.exp(-t / 2) * p(t), 0, 60)[0]
    return float(h(mean) - quad(lambda t: 0.5 * math.exp(-t / 2) * h(p(t)), 0, 18)[0])


def _parts(x: Floats, y: Integers) -> tuple[tuple[Floats, Integers], tuple[Floats, Integers], tuple[Floats, Integers]]:
    a, b = int(0.5 * len(y)), int(0.7 * len(y))
    return (x[:a], y[:a]), (x[a:b], y[a:b]), (x[b:], y[b:])


@pytest.mark.parametrize(("fit", "short"), [(fit_mlp_probe, 0.03), (fit_neighbor_probe, 0.05)])
def test_what_no_linear_probe_sees_is_found(fit: object, short: float) -> None:
    one, two, three = _parts(*_circle(6000, seed=0))
    assert callable(fit)
    probe = fit(*one, 2, select=two)
    found = probe.information(*three)
    error = float(found.std() / math.sqrt(found.shape[0]))
    truth = _circles_truth()
    assert truth - short - 3 * error < found.mean() < truth + 3 * error
    linear = fit_logistic_probe(*one, 2, select=two).information(*three)
    assert linear.mean() < 0.02


@pytest.mark.parametrize("fit", [fit_mlp_probe, fit_neighbor_probe])
def test_labels_that_cannot_be_known_cost_next_to_nothing(fit: object) -> None:
    assert callable(fit)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((900, 10)), rng.integers(0, 3, 900)
    one, two, three = _parts(x, y)
    probe = fit(*one, 3, select=two)
    # The select part chooses to say the class frequencies; those of 450 rows cost 2 / 900 nats in expectation.
    assert -0.03 < probe.information(*three).mean() < 0.02
    assert probe.select_cross_entropy < -probe.log_prior[two[1]].mean() + 0.002
    log_q = probe.log_probabilities(two[0])
    assert -log_q[np.arange(len(two[1])), two[1]].mean() == pytest.approx(probe.select_cross_entropy, abs=1e-9)


@pytest.mark.parametrize("fit", [fit_mlp_probe, fit_neighbor_probe])
def test_probabilities_sum_to_one_and_none_is_zero(fit: object) -> None:
    assert callable(fit)
    x, y = _circle(400, seed=2)
    x = x + 100 * y[:, None]  # classes that lie far apart
    one, two, three = _parts(x, y)
    probe = fit(*one, 2, select=two)
    log_q = probe.log_probabilities(np.concatenate([three[0], 1e6 * three[0]]))
    assert np.isfinite(log_q).all()
    np.testing.assert_allclose(np.exp(log_q).sum(1), 1, atol=1e-9)
    assert probe.information(*three).mean() > 0.6
    np.testing.assert_allclose(
        probe.information(*three),
        log_q[: len(three[1])][np.arange(len(three[1])), three[1]] - probe.log_prior[three[1]],
    )


def test_the_hidden_layer_is_its_formula_and_its_seed() -> None:
    one, two, three = _parts(*_circle(600, seed=3))
    probe = fit_mlp_probe(*one, 2, select=two, width=16, seed=5)
    assert isinstance(probe, HiddenLayerProbe)
    z = (three[0] - one[0].mean(0)) / one[0].std(0)
    v = z @ probe.hidden_weights + probe.hidden_bias
    hidden = v * 0.5 * (1 + torch.erf(torch.from_numpy(v) / math.sqrt(2)).numpy())
    logits = hidden @ probe.weights + probe.bias
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(probe.log_probabilities(three[0]), log_q, atol=1e-10)
    state = torch.random.get_rng_state()
    again = fit_mlp_probe(*one, 2, select=two, width=16, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(again.weights, probe.weights)
    assert not np.array_equal(fit_mlp_probe(*one, 2, select=two, width=16, seed=6).weights, probe.weights)
    assert 0 < probe.best_iteration <= probe.iterations


def test_a_constant_says_the_class_frequencies() -> None:
    y = np.repeat([0, 1, 1, 1], 50)
    flat = np.full((200, 3), 7.0)
    np.random.default_rng(0).shuffle(y)
    for probe in (fit_mlp_probe(flat, y, 2, select=(flat, y)), fit_neighbor_probe(flat, y, 2, select=(flat, y))):
        assert abs(probe.information(flat, y).mean()) < 0.01


def test_frequencies_follow_scikit_learn_and_the_formula() -> None:
    one, two, three = _parts(*_circle(800, seed=4))
    probe = fit_neighbor_probe(*one, 2, select=two, neighbors=(7,))
    assert isinstance(probe, NeighborProbe)
    assert probe.neighbors == 7
    mean, sd = one[0].mean(0), one[0].std(0)
    theirs = KNeighborsClassifier(7).fit((one[0] - mean) / sd, one[1]).predict_proba((three[0] - mean) / sd)
    q = (7 * theirs + probe.strength * np.exp(probe.log_prior)) / (7 + probe.strength)
    np.testing.assert_allclose(np.exp(probe.log_probabilities(three[0])), q, atol=1e-12)


def test_the_select_part_chooses_the_best_of_all_that_were_tried() -> None:
    one, two, _ = _parts(*_circle(500, seed=5))
    probe = fit_neighbor_probe(*one, 2, select=two)
    values = {}
    for k in NEIGHBORS:
        fixed = fit_neighbor_probe(*one, 2, select=two, neighbors=(k,))
        values[k] = fixed.select_cross_entropy
        log_q = fixed.log_probabilities(two[0])
        assert -log_q[np.arange(len(two[1])), two[1]].mean() == pytest.approx(values[k], abs=1e-12)
    assert probe.select_cross_entropy == min(values.values())
    assert values[probe.neighbors] == min(values.values())


def test_rows_of_the_fit_part_are_judged_without_themselves() -> None:
    x, y = _circle(300, seed=6)
    probe = fit_neighbor_probe(x, y, 2, neighbors=(9,))
    mine = probe.log_probabilities(x)
    z = (x - x.mean(0)) / x.std(0)
    prior = np.exp(probe.log_prior)
    for i in (0, 17, 299):
        order = [j for j in np.argsort(((z - z[i]) ** 2).sum(1)) if j != i][:9]
        counts = np.bincount(y[order], minlength=2)
        np.testing.assert_allclose(
            np.exp(mine[i]), (counts + probe.strength * prior) / (9 + probe.strength), atol=1e-12
        )


def test_neighbors_of_a_line_and_ties() -> None:
    rows, codes = torch.tensor([[0.0], [0.0], [0.0], [2.0], [5.0]]), torch.tensor([0, 0, 0, 1, 2])
    found = neighbor_labels(torch.tensor([[0.0], [1.9], [5.0]]), rows, codes, 3)
    assert found.tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 0]]  # one of the equal rows is left out
    assert neighbor_labels(rows[:0], rows, codes, 3).shape == (0, 3)
    q = neighbor_frequencies(found, torch.tensor([0.6, 0.2, 0.2]), 2.0)
    torch.testing.assert_close(q[0], torch.tensor([2 + 1.2, 1 + 0.4, 0.4]) / 5)


def test_more_neighbors_than_rows_are_passed_over() -> None:
    x, y = _circle(12, seed=7)
    y[:2] = (0, 1)
    assert fit_neighbor_probe(x, y, 2, neighbors=(5, 50)).neighbors == 5
    assert fit_neighbor_probe(x, y, 2, neighbors=(50,)).neighbors == 11


def test_refusals() -> None:
    x, y = _circle(50, seed=8)
    with pytest.raises(InputError, match="no sample in the part"):
        fit_mlp_probe(x, y, 3)
    with pytest.raises(InputError, match="no sample in the part"):
        fit_neighbor_probe(x, y, 3)
    with pytest.raises(InputError, match="width is 0"):
        fit_mlp_probe(x, y, 2, width=0)
    with pytest.raises(InputError, match=r"neighbors are \(0,\)"):
        fit_neighbor_probe(x, y, 2, neighbors=(0,))
    with pytest.raises(InputError, match="at least 2"):
        fit_neighbor_probe(x[:1], np.zeros(1, dtype=np.int64), 1)
    for probe in (fit_mlp_probe(x, y, 2, max_steps=5, select=(x, y)), fit_neighbor_probe(x, y, 2)):
        with pytest.raises(InputError, match="fitted to 2 features"):
            probe.log_probabilities(x[:, :1])
        with pytest.raises(InputError, match="Row 0 has class 4"):
            probe.information(x[:1], np.array([4]))
