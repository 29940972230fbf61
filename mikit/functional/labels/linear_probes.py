"""Linear probes that predict class labels from features: multinomial logistic and shared-covariance Gaussian.

A probe is a declared family of predictors. Its held-out cross-entropy, taken from the entropy of the labels, is the
information that this family can use; another family finds another amount.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mikit.core.errors import InputError
from mikit.functional.labels.logistic import LogisticObjective, descend, log_softmax

__all__ = ["LinearProbe", "fit_gaussian_probe", "fit_logistic_probe", "label_entropy"]

Array = NDArray[Any]

# Standardised features beyond this many SDs are set to it: part of the probe's definition, so that one wild row cannot
# rule a linear fit.
CLIP = 8.0
RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
SHRINKAGES = (1e-3, 1e-2, 1e-1, 0.5)
# Beyond this width the eigendecomposition costs more than the iterations it saves.
_WIDEST_ROTATION = 2048
_PATH_SLACK = 10.0


@final
@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: ``log q(k | x) = log softmax_k(W z + b)`` with ``z`` the standardised features.

    Attributes:
        mean: Column means of the fit part ``(d,)``, float64.
        scale: Column SDs of the fit part ``(d,)``, float64; infinite for columns that do not vary, which drops them.
        weights: ``(d, classes)``, float64.
        bias: ``(classes,)``, float64.
        log_prior: Log class frequencies of the fit part ``(classes,)``, float64.
        strength: The ridge (logistic) or the shrinkage (Gaussian) that was chosen.
        inverse_temperature: Factor on the Gaussian discriminants; 1 for a logistic probe.
        iterations: Function evaluations of the optimiser over the whole path; 0 for a closed form.
        gradient_norm: Euclidean norm of the gradient, in whitened coordinates, where the chosen fit stopped.
        converged: Whether that norm is within the tolerance.
        select_cross_entropy: Cross-entropy on the select part in nats; NaN without one.
    """

    mean: Array
    scale: Array
    weights: Array
    bias: Array
    log_prior: Array
    strength: float
    inverse_temperature: float
    iterations: int
    gradient_norm: float
    converged: bool
    select_cross_entropy: float

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.bias.shape[0])

    def log_probabilities(self, features: Array) -> Array:
        """Return ``log q(k | x)`` in nats, ``(n, classes)``, float64, for features ``(n, d)``."""
        if features.ndim != 2 or features.shape[1] != self.mean.shape[0]:
            raise InputError(
                f"The features have shape {features.shape}, but this probe was fitted to {self.mean.shape[0]} columns."
            )
        z = standardised(features, self.mean, self.scale)
        return log_softmax((z @ self.weights.astype(z.dtype)).astype(np.float64) + self.bias)

    def information(self, features: Array, labels: Array) -> Array:
        """Return ``log q(y | x) - log prior(y)`` per row in nats, ``(n,)``; its mean is the V-information."""
        codes = _checked_labels(labels, features.shape[0], self.classes)
        rows = np.arange(codes.shape[0])
        return np.asarray(self.log_probabilities(features)[rows, codes] - self.log_prior[codes])


def label_entropy(labels: Array) -> float:
    """Return the entropy of the class frequencies, the most any features can say about the labels.

    Formula: ``H(Y) = -Σ_k p_k log p_k``.

    Args:
        labels: Class indices ``(n,)``.

    Returns:
        Entropy in nats, a plug-in value: low by about ``(classes - 1) / 2n``.

    Raises:
        InputError: If there are no labels.

    Cost:
        ``O(n)``.

    Pitfalls:
        It is the entropy of these rows' frequencies; in a balanced subset it is higher than in the world.

    Source:
        Shannon, 1948.

    Example:
        >>> round(label_entropy(np.array([0, 0, 1, 1])), 4)
        0.6931
    """
    if labels.shape[0] == 0:
        raise InputError("There are no labels; pass one class per row.")
    counts = np.unique(labels, return_counts=True)[1].astype(np.float64)
    frequencies = counts / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def fit_logistic_probe(
    features: Array,
    labels: Array,
    classes: int,
    *,
    select: tuple[Array, Array] | None = None,
    ridges: Sequence[float] = RIDGES,
    tolerance: float = 1e-3,
    max_iterations: int = 300,
) -> LinearProbe:
    """Fit a multinomial logistic probe; choose its ridge on other rows.

    Formula: minimise ``(1/n) Σ_i -log softmax_{y_i}(W z_i + b) + (ridge / 2) ‖W‖²``, ``b`` unpenalised, with ``z`` the
    features standardised by the fit part's means and SDs and set to ±8 beyond 8 SDs. The ridges are tried from strong
    to weak, each fit starting from the one before, until the cross-entropy on the select part rises.

    Args:
        features: ``(n, d)``, float32 or float64; the iterations run in this precision, sums in float64.
        labels: Class indices ``0 .. classes-1``, ``(n,)``.
        classes: Number of classes.
        select: Features and labels of the rows that choose the ridge. Without them the strongest ridge is used.
        ridges: The ridges.
        tolerance: Euclidean norm of the gradient, in coordinates whitened by the regularised covariance, at which a fit
            counts as converged. 1e-3 leaves the cross-entropy within about 1e-5 nats of its minimum.
        max_iterations: Function evaluations at most, per ridge.

    Returns:
        The fitted probe. Its log probabilities are in nats; ``converged`` says whether the tolerance was met.

    Raises:
        InputError: If shapes do not match, a label is out of range, or a class has no row in the fit part.

    Cost:
        Some 20 evaluations of ``O(n d classes)`` per ridge and one eigendecomposition ``O(d³)``; memory two copies of
        the features.

    Pitfalls:
        The held-out value grows with the number of rows: compare probes fitted to equally many rows only. On its own
        fit rows a probe proves nothing.

    Source:
        Ridge-penalised multinomial logistic regression; limited-memory BFGS.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 2, 2000)
        >>> x = rng.standard_normal((2000, 2)) + 2.0 * y[:, None]
        >>> probe = fit_logistic_probe(x[:1200], y[:1200], 2, select=(x[1200:1600], y[1200:1600]))
        >>> probe.converged, 0.4 < float(probe.information(x[1600:], y[1600:]).mean()) < label_entropy(y)
        (True, True)
    """
    codes = _checked_labels(labels, features.shape[0], classes)
    mean, scale, z, log_prior = _fit_part(features, codes, classes)
    chosen_rows = _select_part(select, mean, scale, classes)
    if not ridges or min(ridges) <= 0:
        raise InputError(f"The ridges are {tuple(ridges)}; pass at least one, all positive.")
    n, d = z.shape
    if d <= _WIDEST_ROTATION:
        spectrum, axes = np.linalg.eigh((z.T @ z).astype(np.float64) / n)
        z = z @ axes.astype(z.dtype)
    else:
        spectrum, axes = np.einsum("ij,ij->j", z, z).astype(np.float64) / n, None
    objective = LogisticObjective(z, codes, classes)

    def fitted(ridge: float, weights: Array, bias: Array, tolerance: float) -> tuple[Array, Array, float, int]:
        curvature = objective.curvature(weights, bias)
        stretch = 1.0 / np.sqrt(curvature[:, None] * np.clip(spectrum, 0.0, None) + ridge)
        return descend(objective.at(ridge, stretch, 1.0 / np.sqrt(curvature)), weights, bias, tolerance, max_iterations)

    # The path is walked with a looser tolerance, enough to tell the ridges apart; the chosen fit is then completed.
    best: tuple[float, float, Array, Array] | None = None
    weights, bias, spent = np.zeros((classes, d)), log_prior.copy(), 0
    for ridge in sorted(ridges, reverse=True):
        weights, bias, _, used = fitted(ridge, weights, bias, _PATH_SLACK * tolerance)
        spent += used
        held_out = np.nan if chosen_rows is None else _cross_entropy(chosen_rows, _turned(weights, axes), bias)
        if best is not None and held_out > best[0]:
            break
        best = (held_out, ridge, weights, bias)
        if chosen_rows is None:
            break
    assert best is not None
    _, ridge, weights, bias = best
    weights, bias, norm, used = fitted(ridge, weights, bias, tolerance)
    weights = _turned(weights, axes)
    held_out = np.nan if chosen_rows is None else _cross_entropy(chosen_rows, weights, bias)
    return LinearProbe(
        mean, scale, weights, bias, log_prior, ridge, 1.0, spent + used, norm, norm <= tolerance, held_out
    )


def fit_gaussian_probe(
    features: Array,
    labels: Array,
    classes: int,
    *,
    select: tuple[Array, Array] | None = None,
    shrinkages: Sequence[float] = SHRINKAGES,
) -> LinearProbe:
    """Fit the probe of Gaussian classes with one covariance (linear discriminant analysis), in closed form.

    Formula: ``log q(k | x) = log softmax_k(log π_k + β δ_k(x))`` with ``δ_k = zᵀ C⁻¹ μ_k - ½ μ_kᵀ C⁻¹ μ_k`` and
    ``C = (1 - a) S + a (tr S / d) I``, ``S`` the pooled within-class covariance of the standardised
    features, ``tr S / d`` taken over those that vary. The
    shrinkage ``a`` and the inverse temperature ``β`` minimise the cross-entropy on the select part, whose labels are
    taken to be at random with probability ``1/(n + 1)``, so that ``β`` stays finite where the part is told apart
    without a fault.

    Args:
        features: ``(n, d)``, float32 or float64.
        labels: Class indices ``0 .. classes-1``, ``(n,)``.
        classes: Number of classes.
        select: Features and labels of the rows that choose ``a`` and ``β``. Without them ``β = 1`` and the strongest
            shrinkage is used.
        shrinkages: The shrinkages, in ``(0, 1]``.

    Returns:
        The fitted probe; log probabilities in nats.

    Raises:
        InputError: If shapes do not match, a label is out of range, or a class has no row in the fit part.

    Cost:
        ``O(n d² + d³)`` time; memory one copy of the features.

    Pitfalls:
        Assumes one covariance for all classes; where that is far off, the logistic probe finds more. As quick mode it
        ranks layers as the logistic probe does, with somewhat lower values.

    Source:
        Fisher's linear discriminant; temperature scaling on held-out rows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 2, 2000)
        >>> x = rng.standard_normal((2000, 2)) + 2.0 * y[:, None]
        >>> probe = fit_gaussian_probe(x[:1200], y[:1200], 2, select=(x[1200:1600], y[1200:1600]))
        >>> bool(0.4 < probe.information(x[1600:], y[1600:]).mean() < label_entropy(y))
        True
    """
    codes = _checked_labels(labels, features.shape[0], classes)
    mean, scale, z, log_prior = _fit_part(features, codes, classes)
    chosen_rows = _select_part(select, mean, scale, classes)
    if not shrinkages or not 0 < min(shrinkages) <= max(shrinkages) <= 1:
        raise InputError(f"The shrinkages are {tuple(shrinkages)}; pass at least one, all in (0, 1].")
    n = z.shape[0]
    one_hot = np.zeros((n, classes), dtype=z.dtype)
    one_hot[np.arange(n), codes] = 1.0
    counts = np.bincount(codes, minlength=classes).astype(np.float64)
    centres = (one_hot.T @ z).astype(np.float64) / counts[:, None]
    within = (z.T @ z).astype(np.float64) / n - (centres.T * (counts / n)) @ centres
    spectrum, axes = np.linalg.eigh(within)
    spectrum = np.clip(spectrum, 0.0, None)
    # Columns that never vary were dropped; the average is over the others, so that dead units change nothing.
    average = float(spectrum.sum()) / max(int(np.isfinite(scale).sum()), 1)
    turned_centres = centres @ axes

    best: tuple[float, float, float, Array, Array] | None = None
    for shrinkage in sorted(shrinkages, reverse=True):
        # Features that never vary within a class leave nothing to divide by; any positive number does then.
        precision = 1.0 / ((1 - shrinkage) * spectrum + shrinkage * (average if average > 0 else 1.0))
        weights = axes @ (turned_centres * precision).T
        offset = -0.5 * (turned_centres**2 * precision).sum(axis=1)
        if chosen_rows is None:
            best = (np.nan, shrinkage, 1.0, weights, offset)
            break
        rows, chosen_codes = chosen_rows
        discriminants = (rows @ weights.astype(rows.dtype)).astype(np.float64) + offset
        factor, held_out = _best_factor(discriminants, chosen_codes, log_prior)
        if best is None or held_out < best[0]:
            best = (held_out, shrinkage, factor, weights, offset)
    assert best is not None
    held_out, shrinkage, factor, weights, offset = best
    bias = log_prior + factor * offset
    return LinearProbe(mean, scale, factor * weights, bias, log_prior, shrinkage, factor, 0, 0.0, True, held_out)


def standardised(features: Array, mean: Array, scale: Array) -> Array:
    """Return features less ``mean``, over ``scale``, set to ±8 beyond; float32 stays float32, the rest is float64."""
    dtype = np.float32 if features.dtype in (np.float32, np.float16) else np.float64
    # In blocks, so that the float64 differences of a large sample never stand in memory at once.
    out = np.empty(features.shape, dtype=dtype)
    for start in range(0, features.shape[0], 4096):
        block = slice(start, start + 4096)
        out[block] = np.clip((features[block] - mean) / scale, -CLIP, CLIP)
    return out


def _turned(weights: Array, axes: Array | None) -> Array:
    """Return weights ``(classes, d)`` on the rotated features as weights ``(d, classes)`` on the features."""
    return np.asarray(weights.T if axes is None else axes @ weights.T)


def _fit_part(features: Array, codes: Array, classes: int) -> tuple[Array, Array, Array, Array]:
    counts = np.bincount(codes, minlength=classes)
    empty = np.flatnonzero(counts == 0)
    if empty.shape[0]:
        raise InputError(
            f"{empty.shape[0]} of the {classes} classes have no row in the part that the probe is fitted to; the first "
            f"is class {empty[0]} (counted from 0 in sorted order). Use more rows, or drop that class from all rows."
        )
    mean = features.mean(axis=0, dtype=np.float64)
    square = np.zeros_like(mean)
    for start in range(0, features.shape[0], 4096):
        square += ((features[start : start + 4096] - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(square / features.shape[0])
    # A column whose SD is rounding of its mean does not vary.
    rounding = np.finfo(np.float32 if features.dtype == np.float32 else np.float64).eps * np.abs(mean)
    scale = np.where(deviation > rounding, deviation, np.inf)
    return mean, scale, standardised(features, mean, scale), np.log(counts / counts.sum())


def _select_part(
    select: tuple[Array, Array] | None, mean: Array, scale: Array, classes: int
) -> tuple[Array, Array] | None:
    if select is None:
        return None
    codes = _checked_labels(select[1], select[0].shape[0], classes)
    return standardised(select[0], mean, scale), codes


def _checked_labels(labels: Array, n: int, classes: int) -> Array:
    if labels.shape != (n,):
        raise InputError(f"The labels have shape {labels.shape} but there are {n} rows; pass one class per row.")
    if n == 0:
        raise InputError("There are no rows to fit or evaluate a probe on.")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
        raise InputError(
            f"Row {wrong} has class {labels[wrong]}, but the probe knows the classes 0 to {classes - 1} only. Every "
            "class must occur in the rows the probe is fitted to."
        )
    return labels


def _cross_entropy(rows: tuple[Array, Array], weights: Array, bias: Array) -> float:
    z, codes = rows
    logits = (z @ weights.astype(z.dtype)).astype(np.float64) + bias
    return -float(log_softmax(logits)[np.arange(codes.shape[0]), codes].mean())


def _best_factor(discriminants: Array, codes: Array, log_prior: Array) -> tuple[float, float]:
    """Return the ``β >= 0`` that minimises the cross-entropy of ``log_prior + β discriminants``, and the rows' own.

    By the rule of succession a row has another label with probability ``1/(n + 1)``, at random by the prior. Without
    that, rows that are told apart without a fault would have ``β`` grow without end, and a single fault elsewhere cost
    hundreds of nats.

    The cross-entropy is convex in ``β``: Newton's method, held between the ends that are known to enclose the minimum.
    """
    rows = np.arange(codes.shape[0])
    fault = 1.0 / (codes.shape[0] + 1)
    target = (1 - fault) * discriminants[rows, codes].mean() + fault * (discriminants @ np.exp(log_prior)).mean()
    factor, low, high, value = 1.0, 0.0, np.inf, np.inf
    for _ in range(60):
        log_q = log_softmax(log_prior + factor * discriminants)
        value = -float(log_q[rows, codes].mean())
        q = np.exp(log_q)
        expected = (q * discriminants).sum(axis=1)
        slope = float(expected.mean() - target)
        bend = float(((q * discriminants**2).sum(axis=1) - expected**2).mean())
        low, high = (factor, high) if slope < 0 else (low, factor)
        if slope**2 <= 1e-10 * bend or slope == 0:
            break
        step = factor - slope / bend if bend > 0 else np.inf  # Rounding leaves no curvature where all is certain.
        factor = step if low < step < high else (0.5 * (low + high) if np.isfinite(high) else 2 * factor)
    return factor, value
