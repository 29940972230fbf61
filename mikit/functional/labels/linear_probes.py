"""Linear probes that predict class labels from features: multinomial logistic and Gaussian with shared covariance.

A probe is a declared family of predictors. The entropy of the labels minus the probe's held-out cross-entropy is the
information that this family can use; another family finds another amount.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from mikit.core.errors import InputError
from mikit.functional.labels.logistic import LogisticObjective, descend, log_softmax
from mikit.functional.labels.probe import Array, FitPart, LabeledRows, Probe, best_inverse_temperature

__all__ = ["LinearProbe", "fit_gaussian_probe", "fit_logistic_probe", "label_entropy"]

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
SHRINKAGES = (1e-3, 1e-2, 1e-1, 0.5)
# Above this width the eigendecomposition costs more than the iterations it saves.
_WIDEST_ROTATION = 2048
_PATH_SLACK = 10.0


@final
@dataclass(frozen=True, kw_only=True)
class LinearProbe(Probe):
    """A fitted probe: ``log q(k | x) = log softmax_k(W z + b)`` with ``z`` the standardized features.

    ``weights`` are ``(d, classes)`` and ``bias`` ``(classes,)``, float64. ``strength`` is the ridge (logistic) or
    shrinkage (Gaussian) that was chosen, ``inverse_temperature`` the factor of the Gaussian discriminants (1 for a
    logistic probe), and ``gradient_norm`` the Euclidean norm of the gradient in whitened coordinates at the end.
    """

    weights: Array
    bias: Array
    strength: float
    inverse_temperature: float
    gradient_norm: float

    def log_probabilities(self, features: Array) -> Array:
        """Return ``log q(k | x)`` in nats, ``(n, classes)``, float64, for features ``(n, d)``."""
        z = self.standardized(features)
        return log_softmax((z @ self.weights.astype(z.dtype)).astype(np.float64) + self.bias)


def label_entropy(labels: Array) -> float:
    """Return the entropy of the class frequencies in nats, which no features' information about the labels exceeds.

    It is a plug-in value for these samples: low by about ``(classes - 1) / 2n``, and higher in a balanced subset than
    in an unbalanced population.

    Example:
        >>> round(label_entropy(np.array([0, 0, 1, 1])), 4)
        0.6931
    """
    if labels.shape[0] == 0:
        raise InputError("There are no labels. Pass one class per sample.")
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
    """Fit a multinomial logistic probe with penalty ``ridge / 2 ‖W‖²``; choose the ridge on the select part.

    The iterations run in the precision of the features, sums in float64. ``tolerance`` is the norm of the gradient in
    coordinates whitened by the regularized covariance; 1e-3 leaves the cross-entropy within about 1e-5 nats of its
    minimum. Without a select part the strongest ridge is used.

    Cost: some 20 evaluations of ``O(n d classes)`` per ridge and ``O(d³)``; memory for two copies of the features.
    Pitfalls: compare probes fitted to equally many samples only, and not on the samples they were fitted to.
    """
    part = FitPart.of(features, labels, classes)
    held_out = part.held_out(select)
    if not ridges or min(ridges) <= 0:
        raise InputError(f"The ridges are {tuple(ridges)}. Pass at least one, all positive.")
    z, spectrum, axes = _rotated(part.standardized(features))
    objective = LogisticObjective(z, part.codes, classes)
    # Ridges are tried from strong to weak, each fit starting from the one before, until the cross-entropy on the select
    # part rises. The path has a looser tolerance, enough to compare the ridges; the chosen fit is then completed.
    best: tuple[float, float, Array, Array] | None = None
    weights, bias, spent = np.zeros((classes, z.shape[1])), part.log_prior.copy(), 0
    for ridge in sorted(ridges, reverse=True):
        coordinates = objective.coordinates(ridge, spectrum, weights, bias)
        weights, bias, _, used = descend(coordinates, weights, bias, _PATH_SLACK * tolerance, max_iterations)
        spent += used
        loss = _cross_entropy(held_out, _turned(weights, axes), bias)
        if best is not None and loss > best[0]:
            break
        best = (loss, ridge, weights, bias)
        if held_out is None:
            break
    assert best is not None
    _, ridge, weights, bias = best
    coordinates = objective.coordinates(ridge, spectrum, weights, bias)
    weights, bias, norm, used = descend(coordinates, weights, bias, tolerance, max_iterations)
    weights = _turned(weights, axes)
    return LinearProbe(
        mean=part.mean,
        scale=part.scale,
        log_prior=part.log_prior,
        iterations=spent + used,
        converged=norm <= tolerance,
        select_cross_entropy=_cross_entropy(held_out, weights, bias),
        weights=weights,
        bias=bias,
        strength=ridge,
        inverse_temperature=1.0,
        gradient_norm=norm,
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

    Its logits are ``log π_k + β δ_k(x)`` with ``δ_k = zᵀ C⁻¹ μ_k - ½ μ_kᵀ C⁻¹ μ_k`` and ``C = (1 - a) S + a s I``,
    where ``S`` is the pooled covariance within classes and ``s`` its mean diagonal entry over features that vary. The
    shrinkage ``a`` and inverse temperature ``β`` minimize the cross-entropy on the select part. Without one, ``β = 1``
    and the strongest shrinkage is used.

    Cost: ``O(n d² + d³)`` time. Where one covariance for all classes is far off, the logistic probe finds more. As a
    quick mode it ranks layers like the logistic probe, with somewhat lower values.
    """
    part = FitPart.of(features, labels, classes)
    held_out = part.held_out(select)
    if not shrinkages or not 0 < min(shrinkages) <= max(shrinkages) <= 1:
        raise InputError(f"The shrinkages are {tuple(shrinkages)}. Pass at least one, all in (0, 1].")
    centers, spectrum, axes = _within_classes(part.standardized(features), part.codes, classes)
    # Constant features are already removed; the average is over the others, so that dead units change nothing.
    average = float(spectrum.sum()) / part.varying
    turned_centers = centers @ axes

    best: tuple[float, float, float, Array, Array] | None = None
    for shrinkage in sorted(shrinkages, reverse=True):
        # The eigenvectors of C do not depend on the shrinkage, so one decomposition serves all. If no feature varies
        # within a class, the average is 0, and any positive number can take its place.
        precision = 1.0 / ((1 - shrinkage) * spectrum + shrinkage * (average if average > 0 else 1.0))
        weights = axes @ (turned_centers * precision).T
        offset = -0.5 * (turned_centers**2 * precision).sum(axis=1)
        if held_out is None:
            best = (np.nan, shrinkage, 1.0, weights, offset)
            break
        discriminants = (held_out.z @ weights.astype(held_out.z.dtype)).astype(np.float64) + offset
        factor, loss = best_inverse_temperature(discriminants, held_out.codes, part.log_prior)
        if best is None or loss < best[0]:
            best = (loss, shrinkage, factor, weights, offset)
    assert best is not None
    loss, shrinkage, factor, weights, offset = best
    return LinearProbe(
        mean=part.mean,
        scale=part.scale,
        log_prior=part.log_prior,
        iterations=0,
        converged=True,
        select_cross_entropy=loss,
        weights=factor * weights,
        bias=part.log_prior + factor * offset,
        strength=shrinkage,
        inverse_temperature=factor,
        gradient_norm=0.0,
    )


def _rotated(z: Array) -> tuple[Array, Array, Array | None]:
    """Return features in the axes of their covariance, its spectrum, and the axes; wide features stay as they are."""
    # In these axes the ridge penalty keeps its form, and the Hessian is nearly diagonal. Dividing each coordinate by
    # the root of its curvature then makes the problem well-conditioned, so that a fit takes some twenty evaluations.
    n, d = z.shape
    if d > _WIDEST_ROTATION:
        return z, np.einsum("ij,ij->j", z, z).astype(np.float64) / n, None
    spectrum, axes = np.linalg.eigh((z.T @ z).astype(np.float64) / n)
    return z @ axes.astype(z.dtype), spectrum, axes


def _turned(weights: Array, axes: Array | None) -> Array:
    """Return weights ``(classes, d)`` on the rotated features as weights ``(d, classes)`` on the features."""
    return np.asarray(weights.T if axes is None else axes @ weights.T)


def _within_classes(z: Array, codes: Array, classes: int) -> tuple[Array, Array, Array]:
    """Return the class means, and the spectrum and the axes of the pooled covariance within classes."""
    n = z.shape[0]
    one_hot = np.zeros((n, classes), dtype=z.dtype)
    one_hot[np.arange(n), codes] = 1.0
    counts = np.bincount(codes, minlength=classes).astype(np.float64)
    centers = (one_hot.T @ z).astype(np.float64) / counts[:, None]
    within = (z.T @ z).astype(np.float64) / n - (centers.T * (counts / n)) @ centers
    spectrum, axes = np.linalg.eigh(within)
    return centers, np.clip(spectrum, 0.0, None), axes


def _cross_entropy(held_out: LabeledRows | None, weights: Array, bias: Array) -> float:
    """Return the cross-entropy on the select part in nats; NaN without one."""
    if held_out is None:
        return float("nan")
    logits = (held_out.z @ weights.astype(held_out.z.dtype)).astype(np.float64) + bias
    return -float(log_softmax(logits)[np.arange(held_out.codes.shape[0]), held_out.codes].mean())
