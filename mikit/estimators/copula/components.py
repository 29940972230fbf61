"""Invertible maps of one side alone after which a linear method sees more."""

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
    """Normal scores of independent components, several times over: an invertible map of one side.

    Each round turns the columns to independent components by symmetric FastICA and replaces each by its normal scores.
    Layers of networks with rectifiers are skewed mixtures, which this undoes step by step, so that a linear method sees
    more of what they share; the information is kept.

    Args:
        x: ``(n, d)``.
        contrast: ``"skew"`` (third moments; for rectified units) or ``"tails"`` (log cosh; for heavy or light tails).
        rounds: How often.
        seed: Of the start.

    Returns:
        ``(n, r)``, float64, with ``r`` the rank of the normal scores of ``x``; dimensionless.

    Raises:
        Nothing beyond scikit-learn's own errors.

    Cost:
        ``O(n d² iterations)``, at most 40 iterations a round on at most 5,000 rows.

    Pitfalls:
        Fitted to the sample: invertible on these rows only. Where no direction is skewed (or heavy-tailed) the
        components are arbitrary, and harm is possible: keep the original coordinates where they show more.

    Source:
        FastICA of Hyvärinen (1999), iterated as in rotation-based Gaussianisation.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> mixed = torch.randn(2000, 2, generator=g).exp() @ torch.tensor([[1.0, 0.5], [-0.5, 1.0]])
        >>> independent_coordinates(mixed).shape
        torch.Size([2000, 2])
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

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
            warnings.simplefilter("ignore", ConvergenceWarning)  # A rotation that is not final is as invertible.
            components = found.fit(fitted).transform(rows)
        scores = rank_gaussianise(torch.from_numpy(np.ascontiguousarray(components)).to(x.device))
    return scores


def _cube(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the derivative of the third moment's contrast and the mean of its own derivative."""
    return values**2, (2 * values).mean(axis=-1)
