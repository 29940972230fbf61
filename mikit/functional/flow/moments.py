"""Second moments of a layer by folds, factored once, so that pairs of layers are compared without their samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student_t
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.flow.leading_axes import leading_axes
from mikit.functional.flow.log_determinants import corrected_log_determinant

__all__ = [
    "LayerFactor",
    "Similarity",
    "centered",
    "cross_covariance",
    "cross_products",
    "device_cross_products",
    "device_eigh",
    "device_rows",
    "factor_layer",
    "factored_cka",
    "fold_covariances",
    "jackknife",
    "principal_axes",
]


def device_rows(rows: Array, device: torch.device) -> Tensor:
    """Return rows on the device, in float64."""
    return torch.tensor(rows).to(device=device, dtype=torch.float64)


def device_cross_products(first: Tensor, second: Tensor, parts: Sequence[Array | slice]) -> Array:
    """Return ``Σ_i a_i b_iᵀ`` per fold, ``(k, d_a, d_b)``, of paired float64 rows on one device."""
    products = [first[part].T @ second[part] for part in parts]
    return np.asarray(torch.stack(products).cpu().numpy())


def device_eigh(matrices: Array, device: torch.device) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors of symmetric matrices, as :func:`numpy.linalg.eigh` does."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(matrices).to(device))
    return np.asarray(values.cpu().numpy()), np.ascontiguousarray(vectors.cpu().numpy())


Array = NDArray[Any]
Part = Array | slice

_BLOCK = 1024
_WIDE = 1024


@final
@dataclass(frozen=True)
class LayerFactor:
    """Everything needed to score any pair that contains a layer, at any noise level, without its samples.

    All moments are in units of ``scale``. "Fit" means all folds but one, "held out" means that one fold.
    """

    scale: float  # RMS SD sqrt(tr Σ / d) over all rows, in the features' own unit; 1 for a layer that never varies.
    sizes: Array  # Rows per fold (k,).
    sums: Array  # Sums per fold (k, d).
    spectrum: Array  # Eigenvalues of the covariance of all rows (d,).
    axes: Array  # Its eigenvectors as columns (d, d).
    fit_spectra: Array  # Eigenvalues of each fold's fit covariance (k, d).
    fit_axes: Array  # Their eigenvectors (k, d, d).
    held_out: Array  # Each fold's second moments about the fit mean, in the fit axes (k, d, d).

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.sizes.sum())

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.spectrum.shape[0])

    def ceiling(self, noise: float) -> float:
        """Return ``½ Σ log(1 + λ_i / σ²)`` in nats: the information of a noisy copy of the layer about the layer.

        The bias of the sample eigenvalues for few rows is removed
        (:func:`~mikit.functional.flow.log_determinants.corrected_log_determinant`), which needs more rows than columns.
        """
        degrees = self.rows - 1
        return 0.5 * corrected_log_determinant(self.spectrum * (self.rows / degrees) / noise**2, degrees)

    def effective_dimension(self, noise: float) -> float:
        """Return ``Σ λ_i / (λ_i + σ²)``: the number of directions with more variance than the noise."""
        return float((self.spectrum / (self.spectrum + noise**2)).sum())


@final
@dataclass(frozen=True)
class Similarity:
    """Linear CKA, dimensionless, with its delete-one-fold jackknife standard error."""

    value: float
    standard_error: float
    folds: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % sampling interval, Student's t with one degree of freedom less than there are folds."""
        reach = float(student_t.ppf(0.975, self.folds - 1)) * self.standard_error
        return self.value - reach, self.value + reach


def centered(features: Array) -> Array:
    """Return a copy with the column means removed in float64; float32 stays float32, so products of it are fast."""
    out = np.array(features, dtype=np.float32 if features.dtype in (np.float16, np.float32) else np.float64)
    mean = out.mean(axis=0, dtype=np.float64)
    for start in range(0, out.shape[0], _BLOCK):
        out[start : start + _BLOCK] = out[start : start + _BLOCK] - mean
    return out


def factor_layer(rows: Array, parts: Sequence[Part], *, device: torch.device | None = None) -> LayerFactor:
    """Factor one layer: fold sums, second moments, RMS SD, and the eigenbases that make every noise level cheap.

    ``rows`` are centered. ``parts`` are row indices or slices of at least 2 folds that together contain every row once.
    With a ``device``, products and eigenbases are computed there in float64; otherwise by NumPy, with products of
    float32 rows in float32 over blocks. ``O(n d² + k d³)`` time and ``O(k d²)`` memory for ``k`` folds.

    Example:
        >>> rows = centered(np.random.default_rng(0).standard_normal((1000, 4)))
        >>> factor = factor_layer(rows, [slice(0, 500), slice(500, 1000)])
        >>> factor.rows, factor.width, round(float(factor.spectrum.mean()), 6)
        (1000, 4, 1.0)
    """
    sizes = np.array([rows[part].shape[0] for part in parts])
    if len(parts) < 2 or sizes.sum() != rows.shape[0] or sizes.min() == 0:
        raise InputError(
            f"{len(parts)} folds with {int(sizes.sum())} samples in total do not cover {rows.shape[0]} samples; pass "
            "at least 2 folds that together contain every sample once."
        )
    sums = np.stack([rows[part].sum(axis=0, dtype=np.float64) for part in parts])
    if device is None:
        seconds = cross_products(rows, rows, parts)
    else:
        there = device_rows(rows, device)
        seconds = device_cross_products(there, there, parts)
    n = rows.shape[0]
    mean = sums.sum(axis=0) / n
    covariance = seconds.sum(axis=0) / n - np.outer(mean, mean)
    variance = float(np.trace(covariance)) / rows.shape[1]
    scale = float(np.sqrt(variance)) if variance > 0 else 1.0
    sums, seconds, covariance = sums / scale, seconds / scale**2, covariance / scale**2
    spectrum, axes = _eigh(covariance, device)
    # Sums and second moments of disjoint folds add up, so the moments of a fit part are a difference: no fold is read
    # more than once, however many folds there are.
    others = (n - sizes)[:, None]
    fit_means = (sums.sum(axis=0) - sums) / others
    fit_covariances = (seconds.sum(axis=0) - seconds) / others[..., None]
    fit_covariances -= fit_means[:, :, None] * fit_means[:, None, :]
    fit_spectra, fit_axes = _eigh(fit_covariances, device)
    held_out = _about(seconds, sums, sums, fit_means, fit_means, sizes)
    held_out = fit_axes.transpose(0, 2, 1) @ held_out @ fit_axes
    return LayerFactor(
        scale, sizes, sums, np.clip(spectrum, 0, None), axes, np.clip(fit_spectra, 0, None), fit_axes, held_out
    )


def cross_products(first: Array, second: Array, parts: Sequence[Part]) -> Array:
    """Return ``Σ_i a_i b_iᵀ`` per fold, ``(k, d_a, d_b)``, summed in float64 over blocks of 1,024 paired rows."""
    out = np.zeros((len(parts), first.shape[1], second.shape[1]))
    for fold, part in enumerate(parts):
        a, b = first[part], second[part]
        for start in range(0, a.shape[0], _BLOCK):
            out[fold] += a[start : start + _BLOCK].T @ b[start : start + _BLOCK]
    return out


def factored_cka(student: LayerFactor, teacher: LayerFactor, cross: Array) -> Similarity:
    """Return linear centered kernel alignment ``‖Σ_st‖²_F / (‖Σ_ss‖_F ‖Σ_tt‖_F)`` of two factored layers.

    ``cross`` comes from :func:`cross_products`. The value lies in ``[0, 1]``; it is NaN if a layer never varies. It is
    biased upwards for wide layers and few samples. It weighs directions by variance and is symmetric: a similarity, not
    an amount of information. Kornblith et al., ICML 2019. ``O(k d_s d_t)`` time.
    """
    if not np.array_equal(student.sizes, teacher.sizes):
        raise InputError("The two layers were factored on different folds; use the same samples and folds for both.")
    products = np.asarray(cross) / (student.scale * teacher.scale)
    whole = cross_covariance(products.sum(0), student.sums.sum(0), teacher.sums.sum(0), student.rows)
    fit, _ = fold_covariances(student, teacher, products)
    norm = float(np.linalg.norm(student.spectrum) * np.linalg.norm(teacher.spectrum))
    fit_norms = np.linalg.norm(student.fit_spectra, axis=1) * np.linalg.norm(teacher.fit_spectra, axis=1)
    if norm == 0 or not fit_norms.all():
        return Similarity(float("nan"), float("nan"), len(fit))
    values = (fit**2).sum(axis=(1, 2)) / fit_norms
    return Similarity(float((whole**2).sum() / norm), jackknife(values), len(fit))


def principal_axes(rows: Array, count: int) -> Array:
    """Return the ``count`` directions of largest variance of centered rows as columns ``(d, count)``.

    From 1,024 columns on, a small ``count`` is found without the covariance if the spectrum decays fast enough
    (:mod:`mikit.functional.flow.leading_axes`).
    """
    width = rows.shape[1]
    if not 1 <= count <= width:
        raise InputError(f"{count} principal components were requested of {width} features.")
    found = leading_axes(rows, count, most=width // 4) if width >= _WIDE and 16 * count <= width else None
    if found is None:
        found = np.linalg.eigh(cross_products(rows, rows, [slice(None)])[0])[1][:, ::-1][:, :count]
    return np.ascontiguousarray(found.astype(rows.dtype))


def cross_covariance(products: Array, sum_a: Array, sum_b: Array, n: int) -> Array:
    """Return the covariance of two layers from raw sums over ``n`` rows."""
    return np.asarray(products / n - np.outer(sum_a / n, sum_b / n))


def _eigh(matrices: Array, device: torch.device | None) -> tuple[Array, Array]:
    if device is not None:
        return device_eigh(matrices, device)
    values, vectors = np.linalg.eigh(matrices)
    return values, vectors


def _about(products: Array, sums_a: Array, sums_b: Array, means_a: Array, means_b: Array, sizes: Array) -> Array:
    """Return each fold's mean of ``(a - m_a)(b - m_b)ᵀ`` from its raw sums."""
    count = sizes[:, None]
    here_a, here_b = sums_a / count, sums_b / count
    out = products / count[..., None]
    out -= here_a[:, :, None] * means_b[:, None, :]
    out -= means_a[:, :, None] * (here_b - means_b)[:, None, :]
    return np.asarray(out)


def fold_covariances(a: LayerFactor, b: LayerFactor, products: Array) -> tuple[Array, Array]:
    """Return per fold the cross-covariance of the fit rows and the held-out moments about the fit means."""
    others = (a.rows - a.sizes)[:, None]
    means_a = (a.sums.sum(axis=0) - a.sums) / others
    means_b = (b.sums.sum(axis=0) - b.sums) / others
    fit = (products.sum(axis=0) - products) / others[..., None]
    fit -= means_a[:, :, None] * means_b[:, None, :]
    return fit, _about(products, a.sums, b.sums, means_a, means_b, a.sizes)


def jackknife(values: Array) -> float:
    """Return the delete-one-fold jackknife standard error from the values without each fold."""
    k = values.shape[0]
    return float(np.sqrt((k - 1) / k * ((values - values.mean()) ** 2).sum()))
