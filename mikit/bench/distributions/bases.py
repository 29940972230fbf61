"""Pairs of variables whose mutual information has a closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import digamma, gammaln, ive

from mikit.bench.distributions.task import Array, Pair

__all__ = [
    "additive_uniform",
    "angles",
    "gaussian",
    "gaussian_information",
    "gaussian_pairs",
    "independent",
    "log_gamma_exponential",
    "noisy_symbols",
    "pairs_with_information",
    "student",
    "student_correction",
    "symbol_information",
]


def gaussian_information(covariance: Array, d_x: int) -> float:
    """Return ``½ (ln|S_x| + ln|S_y| - ln|S|)``, the information between the first ``d_x`` features and the others.

    Example:
        >>> round(gaussian_information(np.array([[1.0, 0.8], [0.8, 1.0]]), 1), 6)
        0.510826
    """
    parts = (covariance[:d_x, :d_x], covariance[d_x:, d_x:], covariance)
    x, y, whole = (float(np.linalg.slogdet(part)[1]) for part in parts)
    return (x + y - whole) / 2


def gaussian(covariance: Array, d_x: int) -> Pair:
    """Return Gaussian variables with mean 0 and this joint covariance."""
    root = np.linalg.cholesky(covariance)

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        both = rng.standard_normal((n, root.shape[0])) @ root.T
        return both[:, :d_x], both[:, d_x:]

    return Pair(d_x, covariance.shape[0] - d_x, gaussian_information(covariance, d_x), sample)


def gaussian_pairs(correlations: Sequence[float], d_x: int, d_y: int | None = None) -> Pair:
    """Return standard Gaussian features, the first few correlated one to one: ``I = -½ Σ ln(1 - ρ²)``.

    Example:
        >>> round(gaussian_pairs([0.8, 0.8], 25).information, 6)
        1.021651
    """
    width = d_x if d_y is None else d_y
    rho = np.asarray(correlations, dtype=np.float64)
    noise = np.sqrt(1 - rho**2)

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = rng.standard_normal((n, d_x)), rng.standard_normal((n, width))
        y[:, : rho.size] = rho * x[:, : rho.size] + noise * y[:, : rho.size]
        return x, y

    return Pair(d_x, width, float(-np.log1p(-(rho**2)).sum() / 2), sample)


def pairs_with_information(information: float, pairs: int, d: int | None = None) -> Pair:
    """Return Gaussian pairs with equal correlations ``ρ = √(1 - exp(-2 I / pairs))`` among ``d`` features."""
    rho = math.sqrt(-math.expm1(-2 * information / pairs))
    return gaussian_pairs([rho] * pairs, pairs if d is None else d)


def independent(d_x: int, d_y: int, degrees: float | None = None) -> Pair:
    """Return independent features: Gaussian, or Student's t with these degrees of freedom."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        if degrees is None:
            return rng.standard_normal((n, d_x)), rng.standard_normal((n, d_y))
        return rng.standard_t(degrees, (n, d_x)), rng.standard_t(degrees, (n, d_y))

    return Pair(d_x, d_y, 0.0, sample)


def student_correction(degrees: float, d_x: int, d_y: int) -> float:
    """Return the information due to a common scale: ``c(v) + c(v+m+n) - c(v+m) - c(v+n)``.

    ``c(d) = lnΓ(d/2) - (d/2) ψ(d/2)``, for v degrees of freedom, m and n features.

    Example:
        >>> round(student_correction(1, 1, 1), 6)
        0.224171
    """

    def c(d: float) -> float:
        return float(gammaln(d / 2) - d / 2 * digamma(d / 2))

    return c(degrees) + c(degrees + d_x + d_y) - c(degrees + d_x) - c(degrees + d_y)


def student(degrees: float, d_x: int, d_y: int) -> Pair:
    """Return the two parts of a multivariate t with identity dispersion: uncorrelated, with a common scale."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        scale = np.sqrt(degrees / rng.chisquare(degrees, (n, 1)))
        return scale * rng.standard_normal((n, d_x)), scale * rng.standard_normal((n, d_y))

    return Pair(d_x, d_y, student_correction(degrees, d_x, d_y), sample)


def additive_uniform(reach: float) -> Pair:
    """Return ``X ~ U(0, 1)``, ``Y = X + U(-e, e)``: ``I = e - ln 2e`` up to ``e = ½``, then ``1 / 4e``.

    Example:
        >>> round(additive_uniform(0.1).information, 6)
        1.709438
    """

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.uniform(size=(n, 1))
        return x, x + rng.uniform(-reach, reach, (n, 1))

    return Pair(1, 1, reach - math.log(2 * reach) if reach <= 0.5 else 1 / (4 * reach), sample)


def log_gamma_exponential(shape: float) -> Pair:
    """Return the logarithms of ``X ~ Gamma(1/s)`` and of ``Y | X ~ Exp(rate X)``: ``I = ψ(1/s) + s + ln s``."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        # ln Gamma(a) = ln Gamma(a + 1) + ln U / a, which does not underflow for small a.
        x = np.log(rng.gamma(1 / shape + 1, size=(n, 1))) - shape * rng.standard_exponential((n, 1))
        return x, np.log(rng.standard_exponential((n, 1))) - x

    return Pair(1, 1, float(digamma(1 / shape)) + shape + math.log(shape), sample)


def angles(concentration: float) -> Pair:
    """Return two uniform angles with a von Mises difference, as points on circles.

    ``I = κ I₁(κ)/I₀(κ) - ln I₀(κ)``, with the concentration ``κ`` of the difference.
    """

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        first = rng.uniform(0, 2 * np.pi, n)
        second = first + rng.vonmises(0, concentration, n)
        return np.stack([np.cos(first), np.sin(first)], 1), np.stack([np.cos(second), np.sin(second)], 1)

    # ive is scaled by exp(-κ), so it does not overflow; the scale is subtracted from its logarithm.
    ratio = float(ive(1, concentration) / ive(0, concentration))
    information = concentration * ratio - math.log(float(ive(0, concentration))) - concentration
    return Pair(2, 2, information, sample)


def symbol_information(symbols: int, reroll: float) -> float:
    """Return the information between a uniform symbol and a copy that is replaced at random with some probability.

    ``I = ln K + p ln p + (1 - p) ln(q / K)``, ``p = 1 - q (1 - 1/K)``.

    Example:
        >>> round(symbol_information(2, 1.0), 6)
        0.0
    """
    kept = 1 - reroll * (1 - 1 / symbols)
    return math.log(symbols) + kept * math.log(kept) + (1 - kept) * math.log(reroll / symbols)


def noisy_symbols(symbols: int, reroll: float) -> Pair:
    """Return a uniform symbol and a copy that is replaced at random with some probability, as class numbers."""

    def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.integers(symbols, size=(n, 1))
        again = rng.uniform(size=(n, 1)) < reroll
        return x.astype(np.float64), np.where(again, rng.integers(symbols, size=(n, 1)), x).astype(np.float64)

    return Pair(1, 1, symbol_information(symbols, reroll), sample)
