"""Invertible maps of one side that reveal more of the dependence to a linear method."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mikit.functional.gaussian.canonical import rank_gaussianise

__all__ = ["independent_coordinates"]

_ROWS_FOR_COMPONENTS, _ITERATIONS = 5000, 40


def independent_coordinates(x: Tensor, *, contrast: str = "skew", rounds: int = 3, seed: int = 0) -> Tensor:
    """Return normal scores of independent components, ``(n, r)`` in float64: an invertible map of ``x (n, d)``.

    Each of the ``rounds`` rotates the columns to independent components by symmetric FastICA (Hyvärinen, 1999) and
    replaces each by its normal scores, as in rotation-based Gaussianization. ``contrast`` is ``"skew"`` (third moments,
    for rectified units) or ``"tails"`` (log cosh, for heavy or light tails). The map is fitted to the sample and
    invertible on these rows only. If no direction is skewed (or heavy-tailed), the components are arbitrary and can
    hide dependence: keep the original coordinates where they show more. At most 40 iterations per round on at most
    5,000 rows.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    # Layers of networks with rectifiers are mixtures of skewed variables. Each round undoes part of the mixing, so that
    # a linear method sees more of what two layers share, and invertible maps of one side keep the information.
    scores = rank_gaussianise(x)
    for _ in range(rounds):
        rows = scores.cpu().numpy()
        rank = int(np.linalg.matrix_rank(rows[: 8 * rows.shape[1]]))
        fitted = rows[:: math.ceil(rows.shape[0] / _ROWS_FOR_COMPONENTS)]
        found = FastICA(
            n_components=max(rank, 1),
            algorithm="parallel",
            whiten="unit-variance",
            fun=_cube if contrast == "skew" else "logcosh",
            max_iter=_ITERATIONS,
            tol=1e-3,
            random_state=seed,
        )
        with warnings.catch_warnings():
            # A rotation that has not converged is just as invertible.
            warnings.simplefilter("ignore", ConvergenceWarning)
            components = found.fit(fitted).transform(rows)
        scores = rank_gaussianise(torch.from_numpy(np.ascontiguousarray(components)).to(x.device))
    return scores


def _cube(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the derivative of the contrast for third moments, and the mean of its own derivative."""
    return values**2, (2 * values).mean(axis=-1)
