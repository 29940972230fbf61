"""The contribution of every sample to a Gaussian's held-out score and to linear CKA, to pair differences by sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mikit.core.errors import InputError
from mikit.functional.flow.moments import (
    Array,
    LayerFactor,
    Part,
    cross_covariance,
    factored_cka,
    fold_covariances,
)
from mikit.functional.flow.recovery import TOO_LITTLE_NOISE, require_rows

__all__ = ["cka_influence", "recovery_scores", "whitened_rows"]


def whitened_rows(rows: Array, factor: LayerFactor, parts: Sequence[Part], noise: float) -> Array:
    """Return every row in the coordinates in which the noisy fit covariance of its fold is the identity, ``(n, d)``.

    ``rows`` are the rows that were factored on the folds ``parts``; ``noise`` is in RMS SDs of the layer.
    """
    out = np.empty((factor.rows, factor.width))
    others = (factor.rows - factor.sizes)[:, None]
    means = (factor.sums.sum(axis=0) - factor.sums) / others
    weights = 1.0 / np.sqrt(factor.fit_spectra + noise**2)
    for fold, part in enumerate(parts):
        out[part] = (rows[part] / factor.scale - means[fold]) @ factor.fit_axes[fold] * weights[fold]
    return out


def recovery_scores(
    source: LayerFactor,
    target: LayerFactor,
    cross: Array,
    source_rows: Array,
    target_rows: Array,
    parts: Sequence[Part],
    *,
    source_noise: float,
    target_noise: float,
) -> Array:
    """Return every row's held-out Gaussian log-score of a target layer given a source layer, ``(n,)`` in nats.

    Formula: ``E_z[log q(t' | s') - log q(t')]`` of each row, with ``t' = t + σ_t z`` and ``s' = s + σ_s z``, and ``q``
    the Gaussian with the noisy moments of the folds that do not contain the row. Its mean over rows is ``held_out`` of
    :func:`mikit.functional.flow.recovery.recover`. Exchanging source and target with their noise changes nothing.

    ``source_rows`` and ``target_rows`` come from :func:`whitened_rows`, ``cross`` from ``cross_products`` in the
    features' own units, and the noise is in RMS SDs. Rows of one fold share the fit: a standard error over rows covers
    the sampling of the scored rows but not that of the fits.
    """
    if not np.array_equal(source.sizes, target.sizes) or cross.shape[0] != len(parts):
        raise InputError("The two layers were factored on different folds; use the same samples and folds for both.")
    require_rows(source.rows, source.width, target.width)
    products = np.asarray(cross) / (source.scale * target.scale)
    # The score is symmetric in the pair, so the narrower layer can take the place of the target: the matrices that are
    # factored have its size.
    a, b, rows_a, rows_b, noise_a, noise_b = target, source, target_rows, source_rows, target_noise, source_noise
    if target.width > source.width:
        a, b, rows_a, rows_b, noise_a, noise_b = b, a, rows_b, rows_a, noise_b, noise_a
    else:
        products = products.transpose(0, 2, 1)
    fit, _ = fold_covariances(a, b, products)
    weights_a = 1.0 / np.sqrt(a.fit_spectra + noise_a**2)
    weights_b = 1.0 / np.sqrt(b.fit_spectra + noise_b**2)
    couplings = a.fit_axes.transpose(0, 2, 1) @ fit @ b.fit_axes * weights_a[:, :, None] * weights_b[:, None, :]
    scores = np.empty(a.rows)
    for fold, part in enumerate(parts):
        noise = noise_a * weights_a[fold], noise_b * weights_b[fold]
        scores[part] = _scores_of_a_fold(couplings[fold], rows_a[part], rows_b[part], noise)
    return scores


def _scores_of_a_fold(coupling: Array, rows_a: Array, rows_b: Array, noise: tuple[Array, Array]) -> Array:
    """Return the rows' scores in whitened coordinates; ``coupling`` is the covariance of a and b in them."""
    try:
        root = np.linalg.cholesky(np.eye(len(coupling)) - coupling @ coupling.T)
    except np.linalg.LinAlgError:
        raise InputError(TOO_LITTLE_NOISE) from None
    inverse = np.linalg.inv(root)
    information = -float(np.log(np.diag(root)).sum())
    residual = (rows_a - rows_b @ coupling.T) @ inverse.T
    # The noise is never drawn. It adds to both quadratic forms, and its expectation is the sum of squares of the
    # matrices that it passes through; a row's score is then free of the scatter of a draw.
    noise_a, noise_b = noise
    added = ((inverse * noise_a) ** 2).sum() + ((inverse @ coupling * noise_b) ** 2).sum() - (noise_a**2).sum()
    return np.asarray(information - 0.5 * ((residual**2).sum(axis=1) - (rows_a**2).sum(axis=1) + added))


def cka_influence(
    first: LayerFactor, second: LayerFactor, cross: Array, first_rows: Array, second_rows: Array
) -> tuple[float, Array]:
    """Return linear CKA of two layers and every row's influence on it, ``(n,)`` with mean 0.

    Formula: with ``A = Σ_st``, the influence of row ``(s, t)`` on ``‖A‖² / (‖Σ_ss‖ ‖Σ_tt‖)`` is the value times
    ``2 (sᵀ A t / ‖A‖² - 1) - (sᵀ Σ_ss s / ‖Σ_ss‖² - 1) - (tᵀ Σ_tt t / ‖Σ_tt‖² - 1)``. The standard deviation of the
    influences over ``sqrt(n)`` is the standard error of the value; that of a difference of influences is the standard
    error of a difference. It is of first order in ``1/n``: near a CKA of 0 the error is of second order and this one is
    too small. ``cross`` comes from ``cross_products``. ``O(n d_s d_t)`` time.
    """
    value = factored_cka(first, second, cross).value
    if not np.isfinite(value):
        raise InputError("One of the two layers never varies, so its CKA is undefined. Leave it out.")
    products = np.asarray(cross).sum(axis=0) / (first.scale * second.scale)
    between = cross_covariance(products, first.sums.sum(axis=0), second.sums.sum(axis=0), first.rows)
    s = (first_rows / first.scale - first.sums.sum(axis=0) / first.rows) @ first.axes
    t = (second_rows / second.scale - second.sums.sum(axis=0) / second.rows) @ second.axes
    # The derivative along a point mass at the row. In the eigenbases both layers' own norms are diagonal, so their
    # terms cost O(n d) instead of O(n d²).
    rotated = first.axes.T @ between @ second.axes
    total = float((rotated**2).sum())
    crossed = ((s @ rotated) * t).sum(axis=1) / total if total > 0 else np.ones(first.rows)
    norm_s = (s**2 @ first.spectrum) / float((first.spectrum**2).sum())
    norm_t = (t**2 @ second.spectrum) / float((second.spectrum**2).sum())
    return value, np.asarray(value * (2 * (crossed - 1) - (norm_s - 1) - (norm_t - 1)))
