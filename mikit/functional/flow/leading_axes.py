"""The directions of largest variance of a wide layer, without its covariance.

The covariance of 8,192 columns takes half a gigabyte, and its eigenvectors take minutes. If few of them are needed and
the spectrum decays, products of the rows with about eighty columns span them after a few passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["leading_axes"]

Array = NDArray[Any]

_BLOCK, _BESIDE = 1024, 16


def leading_axes(rows: Array, count: int, *, most: int, seed: int = 0) -> Array | None:
    """Return the ``count`` directions of largest variance of centered rows, ``(d, count)`` in float64, largest first.

    Formula: Rayleigh-Ritz vectors of ``A = Xᵀ X`` in ``span(V, A V, A² V, ...)``, where ``V`` is random with
    ``count + 16`` columns. The iteration stops when ``‖A u - θ u‖ ≤ ε θ_1`` for all of them. Directions whose variances
    are equal up to ``ε`` are not distinguished, as in any eigendecomposition. None if a basis of ``most`` columns does
    not suffice, as for a flat spectrum. ``O(n d (count + 16))`` per pass, 3 to 8 passes where the spectrum decays.
    """
    # ε is the precision of the products of the rows; a smaller residual is never reached.
    tolerance = 1e-6 if rows.dtype == np.float32 else 1e-10
    d, width = rows.shape[1], count + _BESIDE
    block = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, width)))[0]
    basis, image, projected = np.empty((d, 0)), np.empty((d, 0)), np.empty((0, 0))
    # A block of count + 16 columns rather than one: a single Krylov vector cannot separate directions of equal
    # variance. The basis grows instead of being restarted, since few passes suffice and the rows are expensive to read.
    while basis.shape[1] + width <= most:
        moved = _times_covariance(rows, block)
        basis, image = np.hstack([basis, block]), np.hstack([image, moved])
        old = projected.shape[0]
        new = basis.T @ moved
        projected = np.block([[projected, new[:old]], [new[:old].T, 0.5 * (new[old:] + new[old:].T)]])
        values, vectors = np.linalg.eigh(projected)
        values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
        found = basis @ vectors
        residuals = np.linalg.norm(image @ vectors - found * values, axis=0)
        if residuals.max() <= tolerance * max(float(values[0]), 0.0):
            return np.asarray(found)
        for _ in range(2):  # Once leaves what rounding put back.
            moved = moved - basis @ (basis.T @ moved)
        block = np.linalg.qr(moved)[0]
    return None


def _times_covariance(rows: Array, block: Array) -> Array:
    """Return ``Xᵀ X V``, the products in the rows' precision, their sum over blocks of rows in float64."""
    narrow = block.astype(rows.dtype)
    out = np.zeros(block.shape)
    for start in range(0, rows.shape[0], _BLOCK):
        part = rows[start : start + _BLOCK]
        out += part.T @ (part @ narrow)
    return out
