"""What every single row adds to a Gaussian's held-out score, and to linear CKA: differences can be paired by row."""

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
from mikit.functional.flow.recovery import require_rows

__all__ = ["cka_influence", "recovery_scores", "whitened_rows"]


def whitened_rows(rows: Array, factor: LayerFactor, parts: Sequence[Part], noise: float) -> Array:
    """Return every row in the coordinates in which the noisy fit covariance of its fold is the identity.

    Args:
        rows: ``(n, d)``, the rows that were factored.
        factor: Their factor.
        parts: The folds that it was factored on.
        noise: Noise of the layer, in RMS SDs.
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
    """Return every row's held-out Gaussian log-score of a target layer given a source layer.

    Formula: ``E_z[log q(t' | s') - log q(t')]`` of each row, with ``t' = t + σ_t z`` and ``s' = s + σ_s z`` in units of
    the layers' RMS SDs, and ``q`` the Gaussian with the noisy moments of the folds that the row is not in. The
    expectation over the noise is taken in closed form. The mean over rows is ``held_out`` of
    :func:`mikit.functional.flow.recovery.recover`.

    Args:
        source: Factor of the layer to recover from.
        target: Factor of the layer to recover, on the same rows and folds.
        cross: ``cross_products(source_rows, target_rows, parts)``, ``(k, d_s, d_t)``, in the features' own units.
        source_rows: :func:`whitened_rows` of the source with ``source_noise``, ``(n, d_s)``.
        target_rows: Those of the target with ``target_noise``, ``(n, d_t)``.
        parts: The folds.
        source_noise: Noise on the source, in RMS SDs, positive.
        target_noise: Noise on the target, in RMS SDs, positive.

    Returns:
        Tensor ``(n,)`` in nats, in the order of the rows. Kind: an estimate; its mean lies below the Gaussian
        information of the two noisy layers. It is the same with source and target exchanged along with their noise.

    Raises:
        InputError: If the folds differ, or there are fewer than ``5 (d_s + d_t)`` rows.

    Cost:
        ``O(n d² + k d³)``.

    Pitfalls:
        Rows of one fold share the fit, so a standard error over rows holds the sampling of the rows that are scored and
        not that of the fits.

    Source:
        Gaussian conditioning; mikit's own.

    Example:
        >>> from mikit.functional.flow.moments import centred, cross_products, factor_layer
        >>> rng = np.random.default_rng(0)
        >>> s = centred(rng.standard_normal((2000, 3)))
        >>> t = centred(s[:, :2] + 0.5 * rng.standard_normal((2000, 2)))
        >>> parts = [slice(0, 1000), slice(1000, 2000)]
        >>> factors = factor_layer(s, parts), factor_layer(t, parts)
        >>> white = whitened_rows(s, factors[0], parts, 0.01), whitened_rows(t, factors[1], parts, 0.3)
        >>> scores = recovery_scores(*factors, cross_products(s, t, parts), *white, parts, source_noise=0.01,
        ...                          target_noise=0.3)
        >>> scores.shape, round(float(scores.mean()), 1)
        ((2000,), 1.3)
    """
    if not np.array_equal(source.sizes, target.sizes) or cross.shape[0] != len(parts):
        raise InputError("The two layers were factored on different folds; use the same rows and folds for both.")
    require_rows(source.rows, source.width, target.width)
    products = np.asarray(cross) / (source.scale * target.scale)
    # The score is that of the pair, so the narrower layer can stand in the place of the target: its matrix is factored.
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
        coupling = couplings[fold]
        try:
            root = np.linalg.cholesky(np.eye(a.width) - coupling @ coupling.T)
        except np.linalg.LinAlgError:
            raise InputError(
                "At this noise level a direction of one layer is recovered from the other beyond the precision of the "
                "moments. Declare more noise, or store the activations in float64."
            ) from None
        inverse = np.linalg.inv(root)
        information = -float(np.log(np.diag(root)).sum())
        own = rows_a[part]
        residual = (own - rows_b[part] @ coupling.T) @ inverse.T
        # What the noise adds to both quadratic forms, in expectation.
        left = inverse * (noise_a * weights_a[fold])
        right = inverse @ coupling * (noise_b * weights_b[fold])
        added = (left**2).sum() + (right**2).sum() - noise_a**2 * (weights_a[fold] ** 2).sum()
        scores[part] = information - 0.5 * ((residual**2).sum(axis=1) - (own**2).sum(axis=1) + added)
    return scores


def cka_influence(
    first: LayerFactor, second: LayerFactor, cross: Array, first_rows: Array, second_rows: Array
) -> tuple[float, Array]:
    """Return linear CKA of two layers and every row's influence on it.

    Formula: with ``A = Σ_st``, the influence of row ``(s, t)`` on ``‖A‖² / (‖Σ_ss‖ ‖Σ_tt‖)`` is the value times
    ``2 (sᵀ A t / ‖A‖² - 1) - (sᵀ Σ_ss s / ‖Σ_ss‖² - 1) - (tᵀ Σ_tt t / ‖Σ_tt‖² - 1)``, the derivative along a point
    mass.

    Args:
        first: Factor of one layer.
        second: Factor of the other, on the same rows and folds.
        cross: ``cross_products(first_rows, second_rows, parts)``.
        first_rows: ``(n, d_s)``, the rows that were factored.
        second_rows: ``(n, d_t)``, rows paired.

    Returns:
        The value, dimensionless, and ``(n,)`` influences whose mean is 0. Their standard deviation over ``sqrt(n)`` is
        the standard error of the value; that of a difference of influences is the standard error of a difference.
        Kind: an index.

    Raises:
        InputError: If a layer never varies, or the folds differ.

    Cost:
        ``O(n d_s d_t)``.

    Pitfalls:
        To first order in ``1/n``: where CKA is near 0 its error is of second order, and this one too small.

    Source:
        The delta method; linear CKA: Kornblith et al., ICML 2019 [known].

    Example:
        >>> from mikit.functional.flow.moments import centred, cross_products, factor_layer
        >>> rows = centred(np.random.default_rng(0).standard_normal((500, 3)))
        >>> factor = factor_layer(rows, [slice(0, 250), slice(250, 500)])
        >>> cross = cross_products(rows, rows, [slice(0, 250), slice(250, 500)])
        >>> value, influence = cka_influence(factor, factor, cross, rows, rows)
        >>> round(value, 6), round(float(np.abs(influence).max()), 6)  # a layer is like itself whatever the rows
        (1.0, 0.0)
    """
    value = factored_cka(first, second, cross).value
    if not np.isfinite(value):
        raise InputError("One of the two layers never varies, so it has no likeness to another. Leave it out.")
    products = np.asarray(cross).sum(axis=0) / (first.scale * second.scale)
    between = cross_covariance(products, first.sums.sum(axis=0), second.sums.sum(axis=0), first.rows)
    s = (first_rows / first.scale - first.sums.sum(axis=0) / first.rows) @ first.axes
    t = (second_rows / second.scale - second.sums.sum(axis=0) / second.rows) @ second.axes
    rotated = first.axes.T @ between @ second.axes
    total = float((rotated**2).sum())
    crossed = ((s @ rotated) * t).sum(axis=1) / total if total > 0 else np.ones(first.rows)
    own = (s**2 @ first.spectrum) / float((first.spectrum**2).sum())
    other = (t**2 @ second.spectrum) / float((second.spectrum**2).sum())
    return value, np.asarray(value * (2 * (crossed - 1) - (own - 1) - (other - 1)))
