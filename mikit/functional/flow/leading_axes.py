"""The directions of largest variance of a wide layer, without its covariance.

The covariance of 8,192 columns is half a gigabyte, and its eigenvectors cost minutes. Where few of them are wanted and
the spectrum falls, products of the rows with some eighty columns span them after a handful of passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["leading_axes"]

Array = NDArray[Any]

_BLOCK, _BESIDE = 1024, 16


def leading_axes(rows: Array, count: int, *, most: int, seed: int = 0) -> Array | None:
    """Return the ``count`` directions of largest variance of centred rows, by block Krylov iteration.

    Formula: Rayleigh-Ritz vectors of ``A = Xᵀ X`` in ``span(V, A V, A² V, ...)``, ``V`` random with ``count + 16``
    columns, orthonormalised throughout. It stops where ``‖A u - θ u‖ ≤ ε θ_1`` for every one of them; ``ε`` is 1e-6 for
    float32 rows, which is the precision of their products, and 1e-10 for float64.

    Args:
        rows: ``(n, d)``, centred, float32 or float64.
        count: How many.
        most: The most columns of the basis.
        seed: Seed of ``V``. Where the iteration stops, the answer depends on it only in what ``ε`` leaves open.

    Returns:
        Orthonormal columns ``(d, count)``, float64, the largest variance first; None where ``most`` columns did not
        suffice, as for a flat spectrum.

    Cost:
        ``O(n d (count + 16))`` per pass, 3 to 8 passes where the spectrum falls; memory ``O(d · most)`` at most.

    Pitfalls:
        Directions of nearly the same variance are not told apart beyond ``ε``, as in any eigendecomposition.

    Source:
        Block Lanczos with full orthogonalisation [known].

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.standard_normal((500, 200)) * np.r_[9.0, 5.0, 3.0, np.full(197, 0.1)]
        >>> found = leading_axes(rows - rows.mean(axis=0), 2, most=100)
        >>> [int(np.abs(axis).argmax()) for axis in found.T]
        [0, 1]
    """
    tolerance = 1e-6 if rows.dtype == np.float32 else 1e-10
    d, width = rows.shape[1], count + _BESIDE
    block = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, width)))[0]
    basis, image, projected = np.empty((d, 0)), np.empty((d, 0)), np.empty((0, 0))
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
        for _ in range(2):  # once leaves what rounding put back
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
