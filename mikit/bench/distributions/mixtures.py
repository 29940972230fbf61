"""Gaussian mixtures: samples, densities, and pointwise mutual information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.special import logsumexp

from mikit.bench.distributions.task import Array, Pair

__all__ = ["Mixture"]


@final
@dataclass(frozen=True)
class Mixture:
    """A mixture of joint Gaussian distributions of two variables, of which the first has ``d_x`` features."""

    weights: Sequence[float]
    means: Sequence[Array]
    covariances: Sequence[Array]
    d_x: int

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return ``n`` samples of both variables."""
        means = np.stack(self.means)
        roots = np.stack([np.linalg.cholesky(covariance) for covariance in self.covariances])
        which = rng.choice(len(self.weights), size=n, p=np.asarray(self.weights))
        noise = rng.standard_normal((n, means.shape[1]))
        both = np.empty_like(noise)
        for k in range(len(self.weights)):
            own = which == k
            both[own] = means[k] + noise[own] @ roots[k].T
        return both[:, : self.d_x], both[:, self.d_x :]

    def pointwise(self, x: Array, y: Array) -> Array:
        """Return ``ln p(x, y) - ln p(x) - ln p(y)`` per sample; its expectation is the mutual information."""
        split = slice(None, self.d_x), slice(self.d_x, None)
        first, second = (self._log_density(rows, own) for rows, own in zip((x, y), split, strict=True))
        found: Array = self._log_density(np.hstack([x, y]), slice(None)) - first - second
        return found

    def pair(self, information: float, error: float = 0.0) -> Pair:
        """Return the pair with its information, from an integral or a mean of :meth:`pointwise`."""
        d = len(self.means[0])
        return Pair(self.d_x, d - self.d_x, information, self.sample, error)

    def _log_density(self, rows: Array, columns: slice) -> Array:
        parts = []
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True):
            own = covariance[columns, columns]
            root = np.linalg.cholesky(own)
            scaled = np.linalg.solve(root, (rows - mean[columns]).T)
            volume = np.log(np.diag(root)).sum() + own.shape[0] / 2 * np.log(2 * np.pi)
            parts.append(np.log(weight) - volume - (scaled**2).sum(0) / 2)
        found: Array = logsumexp(np.stack(parts), axis=0)
        return found
