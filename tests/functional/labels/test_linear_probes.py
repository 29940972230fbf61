"""Probes against scikit-learn, closed forms and their own definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from sklearn.linear_model import LogisticRegression

from mikit.core.errors import InputError
from mikit.functional.labels.linear_probes import fit_gaussian_probe, fit_logistic_probe, label_entropy
from mikit.functional.labels.probe import CLIP, standardized


def _classes(n: int, d: int, classes: int, *, spread: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes with one covariance, not aligned with the axes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    centers = spread * rng.standard_normal((classes, d))
    return (centers[y] + rng.standard_normal((n, d))) @ rng.standard_normal((d, d)), y


def _parts(n: int) -> tuple[slice, slice, slice]:
    return slice(0, 3 * n // 5), slice(3 * n // 5, 4 * n // 5), slice(4 * n // 5, n)


@pytest.mark.parametrize("ridge", [1e-1, 1e-3])
@pytest.mark.parametrize("classes", [2, 5])
def test_logistic_probe_is_scikit_learns_with_the_same_ridge(ridge: float, classes: int) -> None:
    x, y = _classes(1200, 6, classes)
    probe = fit_logistic_probe(x, y, classes, ridges=[ridge], tolerance=1e-8)
    z = standardized(x, probe.mean, probe.scale)
    # Its penalty is ½‖W‖² + C Σ loss; with two classes it fits one vector, the difference of ours, so half the penalty.
    strength = 1 / (ridge * len(y)) * (2 if classes == 2 else 1)
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=5000).fit(z, y)
    assert probe.converged
    ours = probe.weights.T - probe.weights.T.mean(axis=0)
    if classes == 2:
        ours = (probe.weights[:, 1] - probe.weights[:, 0])[None]
        assert np.allclose(probe.bias[1] - probe.bias[0], reference.intercept_, atol=1e-5)
    assert np.allclose(ours, reference.coef_, atol=1e-5)
    assert np.allclose(probe.log_probabilities(x), reference.predict_log_proba(z), atol=1e-5)


def test_default_tolerance_leaves_the_cross_entropy_within_1e_5_nats() -> None:
    x, y = _classes(3000, 24, 6, spread=0.4)
    x = np.maximum(x, 0)
    rows = np.arange(len(y))
    for ridge in (1e-2, 1e-4):
        penalised = []
        for tolerance, dtype in ((1e-3, np.float32), (1e-9, np.float64)):
            probe = fit_logistic_probe(x.astype(dtype), y, 6, ridges=[ridge], tolerance=tolerance, max_iterations=2000)
            assert probe.converged
            loss = -probe.log_probabilities(x)[rows, y].mean() + ridge / 2 * (probe.weights**2).sum()
            penalised.append(loss)
        assert 0 <= penalised[0] - penalised[1] + 1e-9 < 1e-5


def test_ridge_is_the_one_with_the_lowest_cross_entropy_on_the_select_part() -> None:
    x, y = _classes(500, 30, 4, spread=0.2)
    fit, select, _ = _parts(500)
    chosen = fit_logistic_probe(x[fit], y[fit], 4, select=(x[select], y[select]))
    rows = np.arange(100)
    losses = {
        ridge: -fit_logistic_probe(x[fit], y[fit], 4, ridges=[ridge])
        .log_probabilities(x[select])[rows, y[select]]
        .mean()
        for ridge in (1e-1, 1e-2, 1e-3, 1e-4)
    }
    assert chosen.strength == min(losses, key=losses.__getitem__)
    assert chosen.select_cross_entropy == pytest.approx(losses[chosen.strength], abs=1e-4)


def test_a_fit_that_is_cut_short_says_so() -> None:
    x, y = _classes(300, 5, 3)
    probe = fit_logistic_probe(x, y, 3, ridges=[1e-4], max_iterations=2)
    assert not probe.converged
    assert probe.gradient_norm > 1e-3


def test_gaussian_probe_without_shrinkage_is_bayes_rule() -> None:
    rng = np.random.default_rng(1)
    y = np.arange(900) % 3
    x = rng.standard_normal((900, 4)) @ rng.standard_normal((4, 4)) + y[:, None]
    probe = fit_gaussian_probe(x, y, 3, shrinkages=[1e-12])
    centers = np.stack([x[y == k].mean(axis=0) for k in range(3)])
    within = sum((x[y == k] - centers[k]).T @ (x[y == k] - centers[k]) for k in range(3)) / 900
    precision = np.linalg.inv(within)
    density = np.stack([-0.5 * np.einsum("ij,jk,ik->i", x - c, precision, x - c) for c in centers], axis=1)
    expected = density - np.logaddexp.reduce(density, axis=1, keepdims=True)
    assert np.allclose(probe.log_probabilities(x), expected, atol=1e-8)


def test_temperature_minimizes_the_cross_entropy_on_select_rows_of_which_one_may_be_at_fault() -> None:
    x, y = _classes(200, 30, 3, spread=0.3)
    fit, select, _ = _parts(200)
    probe = fit_gaussian_probe(x[fit], y[fit], 3, select=(x[select], y[select]), shrinkages=[1e-3])
    assert 0 < probe.inverse_temperature < 1  # 120 rows for 30 columns: the unscaled discriminants are overconfident
    rows = np.arange(40)
    discriminants = (probe.bias - probe.log_prior) + standardized(x[select], probe.mean, probe.scale) @ probe.weights
    losses = []
    for factor in (0.98, 1.0, 1.02):
        logits = probe.log_prior + factor * discriminants
        log_q = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        losses.append(-(40 / 41 * log_q[rows, y[select]] + 1 / 41 * log_q @ np.exp(probe.log_prior)).mean())
    assert losses[1] == min(losses)
    own = probe.log_probabilities(x[select])[rows, y[select]]
    assert probe.select_cross_entropy == pytest.approx(-own.mean(), abs=1e-9)


def test_rows_told_apart_without_a_fault_do_not_make_a_single_fault_elsewhere_cost_hundreds_of_nats() -> None:
    # Without allowing for a fault the temperature falls with every step of the search, and this row costs 1,700 nats.
    rng = np.random.default_rng(4)
    y = np.arange(400) % 2
    x = rng.standard_normal((400, 3)) + 12.0 * y[:, None]
    probe = fit_gaussian_probe(x[:200], y[:200], 2, select=(x[200:], y[200:]))
    wrong = -probe.log_probabilities(np.full((1, 3), 12.0))[0, 0]
    assert 4 < wrong < 4 * np.log(201)  # A fault in 201 rows is expected, at log 201 nats or somewhat more.


@pytest.mark.parametrize("fit", [fit_logistic_probe, fit_gaussian_probe])
def test_two_gaussian_classes_have_a_known_information(fit) -> None:
    # x = ±m + noise: the log-odds are 2 m x, so the information is log 2 - E log(1 + exp(-2 m (m + z))).
    m, n = 0.8, 40_000
    truth = (
        np.log(2)
        - quad(lambda z: np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * np.log1p(np.exp(-2 * m * (m + z))), -12, 12)[0]
    )
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, n)
    x = rng.standard_normal((n, 3))
    x[:, 1] += m * (2 * y - 1)
    a, b, c = _parts(n)
    contributions = fit(x[a], y[a], 2, select=(x[b], y[b])).information(x[c], y[c])
    error = contributions.std() / np.sqrt(len(contributions))
    assert abs(contributions.mean() - truth) < 3 * error + 1e-3  # the second term: what is lost in fitting 8 parameters


def test_lda_is_close_to_logistic_on_gaussian_classes() -> None:
    x, y = _classes(5000, 12, 5, spread=0.4)
    a, b, c = _parts(5000)
    values = [
        float(fit(x[a], y[a], 5, select=(x[b], y[b])).information(x[c], y[c]).mean())
        for fit in (fit_logistic_probe, fit_gaussian_probe)
    ]
    assert values[0] > 0.2
    assert abs(values[0] - values[1]) < 0.02


@pytest.mark.parametrize("fit", [fit_logistic_probe, fit_gaussian_probe])
def test_scale_offset_and_constant_columns_change_nothing(fit) -> None:
    x, y = _classes(1000, 4, 3)
    a, b, c = _parts(1000)
    plain = fit(x[a], y[a], 3, select=(x[b], y[b])).information(x[c], y[c])
    other = np.column_stack([x * [1e-3, 1.0, 1e4, 7.0] + [1e3, 0, -1e5, 1], np.full(1000, 5.0)])
    moved = fit(other[a], y[a], 3, select=(other[b], y[b])).information(other[c], y[c])
    assert np.allclose(plain, moved, atol=1e-5)


def test_standardized_features_stop_at_eight_standard_deviations() -> None:
    x = np.array([[0.0], [100.0], [-100.0]])
    assert standardized(x, np.zeros(1), np.ones(1)).ravel().tolist() == [0.0, CLIP, -CLIP]


@pytest.mark.parametrize("fit", [fit_logistic_probe, fit_gaussian_probe])
def test_refusals_say_which_class_and_row(fit) -> None:
    x, y = _classes(60, 2, 3)
    with pytest.raises(InputError, match=r"1 of the 4 classes have no sample.*class 3"):
        fit(x, y, 4)
    wrong = y.copy()
    wrong[5] = 7
    with pytest.raises(InputError, match="Row 5 has class 7"):
        fit(x, wrong, 3)
    with pytest.raises(InputError, match="there are 60 samples"):
        fit(x, y[:-1], 3)
    with pytest.raises(InputError, match="fitted to 2 features"):
        fit(x, y, 3).log_probabilities(np.zeros((2, 5)))


def test_label_entropy() -> None:
    assert label_entropy(np.repeat([0, 1, 2, 3], 5)) == pytest.approx(np.log(4))
    assert label_entropy(np.array([0, 0, 0, 4])) == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))


def test_inputs_are_left_alone() -> None:
    x, y = _classes(100, 3, 2)
    before = x.copy(), y.copy()
    for fit in (fit_logistic_probe, fit_gaussian_probe):
        fit(x[:60], y[:60], 2, select=(x[60:80], y[60:80])).information(x[80:], y[80:])
    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1])
