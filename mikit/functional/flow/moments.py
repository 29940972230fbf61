"""Second moments of a layer by folds, factored once: what pairs of layers are compared by, without their rows."""

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
    "centred",
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
    """Return ``Σ_i a_i b_iᵀ`` per fold, ``(k, d_a, d_b)``, of rows on one device.

    Args:
        first: ``(n, d_a)``, float64.
        second: ``(n, d_b)``, float64, rows paired with ``first``.
        parts: The folds.

    Example:
        >>> rows = torch.arange(8.0, dtype=torch.float64).reshape(4, 2)
        >>> device_cross_products(rows, rows[:, :1], [slice(0, 2), slice(2, 4)]).tolist()
        [[[4.0], [6.0]], [[52.0], [62.0]]]
    """
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
    """What is kept of a layer: enough to score any pair it is part of, at any noise level, without its rows.

    All moments are in units of ``scale``. "Fit" means all folds but one, "held out" that one fold.

    Attributes:
        scale: RMS SD ``sqrt(tr Σ / d)`` over all rows, in the features' own unit; 1 for a layer that never varies.
        sizes: Rows per fold ``(k,)``.
        sums: Sums per fold ``(k, d)``.
        spectrum: Eigenvalues of the covariance of all rows ``(d,)``.
        axes: Its eigenvectors as columns ``(d, d)``.
        fit_spectra: Eigenvalues of each fold's fit covariance ``(k, d)``.
        fit_axes: Their eigenvectors ``(k, d, d)``.
        held_out: Each fold's second moments about the fit mean, in the fit axes ``(k, d, d)``.
    """

    scale: float
    sizes: Array
    sums: Array
    spectrum: Array
    axes: Array
    fit_spectra: Array
    fit_axes: Array
    held_out: Array

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.sizes.sum())

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.spectrum.shape[0])

    def ceiling(self, noise: float) -> float:
        """Return ``½ Σ log(1 + λ_i / σ²)`` in nats: what a noisy copy of the layer says about the layer.

        The ``λ_i`` are those of the law: the bias that the sample's have for few rows is taken out
        (:func:`~mikit.functional.flow.log_determinants.corrected_log_determinant`).

        Raises:
            InputError: If there are not more rows than columns.
        """
        degrees = self.rows - 1
        return 0.5 * corrected_log_determinant(self.spectrum * (self.rows / degrees) / noise**2, degrees)

    def effective_dimension(self, noise: float) -> float:
        """Return ``Σ λ_i / (λ_i + σ²)``: how many directions stand out of the noise."""
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


def centred(features: Array) -> Array:
    """Return a copy with the column means removed in float64; float32 stays float32, so products of it are fast."""
    out = np.array(features, dtype=np.float32 if features.dtype in (np.float16, np.float32) else np.float64)
    mean = out.mean(axis=0, dtype=np.float64)
    for start in range(0, out.shape[0], _BLOCK):
        out[start : start + _BLOCK] = out[start : start + _BLOCK] - mean
    return out


def factor_layer(rows: Array, parts: Sequence[Part], *, device: torch.device | None = None) -> LayerFactor:
    """Factor one layer: fold sums, second moments, RMS SD, and the eigenbases that make every noise level cheap.

    Args:
        rows: ``(n, d)``, float32 or float64, centred (:func:`centred`).
        parts: Row indices or slices of at least 2 folds that together hold every row once.
        device: Where to compute products and eigenbases, in float64; None: by NumPy, products of float32 rows in
            float32 over blocks.

    Returns:
        The factor; moments in float64, in units of the RMS SD.

    Raises:
        InputError: If there are fewer than 2 folds, or they do not hold every row once.

    Cost:
        ``O(n d² + k d³)`` time and ``O(k d²)`` memory for ``k`` folds.

    Pitfalls:
        The formulas hold for rows that are not centred too, but a mean much larger than the SD costs digits.

    Source:
        Second moments of disjoint folds add up; no paper.

    Example:
        >>> rows = centred(np.random.default_rng(0).standard_normal((1000, 4)))
        >>> factor = factor_layer(rows, [slice(0, 500), slice(500, 1000)])
        >>> factor.rows, factor.width, round(float(factor.spectrum.mean()), 6)
        (1000, 4, 1.0)
    """
    sizes = np.array([rows[part].shape[0] for part in parts])
    if len(parts) < 2 or sizes.sum() != rows.shape[0] or sizes.min() == 0:
        raise InputError(
            f"{len(parts)} folds with {int(sizes.sum())} rows in all do not deal out {rows.shape[0]} rows; pass at "
            "least 2 folds that hold every row once."
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
    """Return ``Σ_i a_i b_iᵀ`` per fold, ``(k, d_a, d_b)``, summed in float64 over blocks of 1,024 rows.

    Args:
        first: ``(n, d_a)``.
        second: ``(n, d_b)``, rows paired with ``first``.
        parts: The folds, as in :func:`factor_layer`.
    """
    out = np.zeros((len(parts), first.shape[1], second.shape[1]))
    for fold, part in enumerate(parts):
        a, b = first[part], second[part]
        for start in range(0, a.shape[0], _BLOCK):
            out[fold] += a[start : start + _BLOCK].T @ b[start : start + _BLOCK]
    return out


def factored_cka(student: LayerFactor, teacher: LayerFactor, cross: Array) -> Similarity:
    """Return linear centred kernel alignment of two layers from the moments already at hand.

    Formula: ``‖Σ_st‖²_F / (‖Σ_ss‖_F ‖Σ_tt‖_F)``.

    Args:
        student: Factor of the student layer.
        teacher: Factor of the teacher layer, on the same rows and folds.
        cross: ``cross_products(student_rows, teacher_rows, parts)``.

    Returns:
        An index, dimensionless, in ``[0, 1]``; NaN if a layer never varies.

    Raises:
        InputError: If the folds differ.

    Cost:
        ``O(k d_s d_t)``.

    Pitfalls:
        Biased upwards for wide layers and few rows. It weighs directions by variance and is symmetric: a similarity,
        not an amount of information. It has no unit.

    Source:
        Kornblith et al., ICML 2019 [known].

    Example:
        >>> rows = centred(np.random.default_rng(0).standard_normal((1000, 3)))
        >>> parts = [slice(0, 500), slice(500, 1000)]
        >>> factor = factor_layer(rows, parts)
        >>> round(factored_cka(factor, factor, cross_products(rows, rows, parts)).value, 6)
        1.0
    """
    if not np.array_equal(student.sizes, teacher.sizes):
        raise InputError("The two layers were factored on different folds; use the same rows and folds for both.")
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
    """Return the ``count`` directions of largest variance of centred rows as columns ``(d, count)``.

    From 1,024 columns on, a small ``count`` is found without the covariance where the spectrum allows it
    (:mod:`mikit.functional.flow.leading_axes`).
    """
    width = rows.shape[1]
    if not 1 <= count <= width:
        raise InputError(f"{count} principal components were asked of {width} columns.")
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
