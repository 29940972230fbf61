"""Log-determinants of covariances of which only a sample is known, freed from the bias of few rows.

The eigenvalues of a sample's covariance are spread further than those of the law, the more so the more columns there
are for a row. A log-determinant of them is too low by about ``d² / 2n``: for layers of hundreds of columns many nats,
while its own scatter is below one. The bias is known, whatever the spectrum, from the Marchenko-Pastur equation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mikit.core.errors import InputError

__all__ = ["corrected_information", "corrected_log_determinant", "spectral_shift"]

Array = NDArray[Any]

_STEPS = 200
_CLOSE = 1e-13


def spectral_shift(eigenvalues: Array, degrees: float) -> float:
    """Return the shift at which a sample's spectrum stands for that of the law with noise of variance 1.

    Formula: the root in ``(0, 1]`` of ``w = 1 - (1/m) Σ_i l_i / (l_i + w)``.

    Args:
        eigenvalues: Of the sample covariance, divided by the degrees of freedom, in units of the noise's variance;
            ``(d,)``, not negative.
        degrees: Degrees of freedom ``m``: rows less 1 where the mean was taken out. More than ``d``.

    Returns:
        The shift, dimensionless; 1 for a layer that never varies.

    Raises:
        InputError: If there are not more degrees of freedom than eigenvalues.

    Cost:
        Some ten sums over the eigenvalues.

    Pitfalls:
        Near ``m = d`` it goes to 0, and what is computed with it is uncertain.

    Source:
        The point where the companion Stieltjes transform of the Marchenko-Pastur equation is 1 [known].

    Example:
        >>> round(spectral_shift(np.array([1.0, 1.0]), 10), 3)
        0.894
    """
    if not degrees > eigenvalues.shape[0]:
        raise InputError(
            f"{degrees:g} degrees of freedom are too few for {eigenvalues.shape[0]} columns: more than one row for a "
            "column is needed. Use more rows, or reduce the columns."
        )
    w = 1.0
    for _ in range(_STEPS):
        parts = eigenvalues / (eigenvalues + w)
        # Newton's step for w - 1 + mean; the mean falls with w, and its slope is above -1.
        step = (w - 1.0 + parts.sum() / degrees) / (1.0 - (parts / (eigenvalues + w)).sum() / degrees)
        w -= step
        if abs(step) < _CLOSE:
            break
    return float(w)


def corrected_log_determinant(eigenvalues: Array, degrees: float) -> float:
    """Estimate ``log det(I + R)`` from the eigenvalues of a sample of ``R``.

    Formula: ``max_w Σ_i log(1 + l_i / w) + m (log w + 1 - w)``, reached at :func:`spectral_shift`. At ``w = 1`` it is
    the plug-in value.

    Args:
        eigenvalues: Of the sample covariance, divided by the degrees of freedom, ``(d,)``, not negative.
        degrees: Degrees of freedom ``m``, more than ``d``.

    Returns:
        The log-determinant, in nats (twice an entropy difference).

    Raises:
        InputError: As :func:`spectral_shift`.

    Cost:
        Some ten sums over the eigenvalues.

    Pitfalls:
        The equation holds for rows that are linear in independent variables, or Gaussian. Rows whose overall size
        varies (heavy tails of the whole row) leave a bias that falls with the number of rows. What is left for Gaussian
        rows is of the order ``d / 4m``.

    Source:
        The deterministic equivalent of ``log det(I + Σ/w)``, ``log det(I + R) - m (log w + 1 - w)`` at this shift
        (Marchenko-Pastur) [known], solved for the law's own.

    Example:
        >>> rows = np.random.default_rng(0).standard_normal((400, 100))
        >>> spectrum = np.linalg.eigvalsh(rows.T @ rows / 400)
        >>> values = 100 * np.log(2), np.log1p(spectrum).sum(), corrected_log_determinant(spectrum, 400)
        >>> [round(float(value), 1) for value in values]  # truth, plug-in, corrected
        [69.3, 66.4, 69.5]
    """
    w = spectral_shift(eigenvalues, degrees)
    return float(np.log1p(eigenvalues / w).sum() + degrees * (np.log(w) + 1.0 - w))


def corrected_information(first: Array, second: Array, plug_in: Callable[[Array], Array], degrees: float) -> float:
    """Estimate the information between two Gaussian layers under noise, from a sample's moments.

    Formula: ``½ [L(first) + L(second) - L(joint)]`` with ``L`` of :func:`corrected_log_determinant`. That of the joint
    layer needs no eigenvalues: at the shift ``w`` it is ``Σ log(1 + l / w)`` of both layers less twice the plug-in
    information with both noise variances multiplied by ``w``, and it is stationary in ``w``. It is therefore read off a
    parabola in ``log w`` through three values, between the shifts of the wider layer and of both layers side by side,
    where the joint shift must lie.

    Args:
        first: Eigenvalues of a layer's sample covariance, divided by the degrees of freedom, in units of its noise's
            variance.
        second: The same of the other layer.
        plug_in: Returns for shifts ``(3,)`` the plug-in informations in nats, ``(3,)``, with both noise variances
            multiplied by the shift.
        degrees: Degrees of freedom, more than there are columns in both.

    Returns:
        Information, in nats. 0 in expectation for independent layers, up to ``O(d / m)`` of noise; it can be negative.

    Raises:
        InputError: As :func:`spectral_shift`.

    Cost:
        Three plug-in values.

    Pitfalls:
        Those of :func:`corrected_log_determinant`.

    Source:
        As :func:`corrected_log_determinant`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.standard_normal((500, 80))
        >>> cov = rows.T @ rows / 500
        >>> def plug_in(shifts):
        ...     dets = [[np.linalg.slogdet(np.eye(len(c)) + c / w)[1] for c in (cov[:40, :40], cov[40:, 40:], cov)]
        ...             for w in shifts]
        ...     return np.array([0.5 * (a + b - both) for a, b, both in dets])
        >>> spectra = [np.linalg.eigvalsh(c) for c in (cov[:40, :40], cov[40:, 40:])]
        >>> values = plug_in([1.0])[0], corrected_information(*spectra, plug_in, 500)
        >>> [round(float(value), 2) for value in values]  # plug-in, corrected; the truth is 0
        [0.37, -0.02]
    """
    both = np.concatenate([first, second])
    low = np.log(spectral_shift(both, degrees))
    high = np.log(min(spectral_shift(first, degrees), spectral_shift(second, degrees)))
    points = np.array([low, 0.5 * (low + high), high])
    shifts = np.exp(points)
    joint = np.log1p(both / shifts[:, None]).sum(axis=1) - 2.0 * plug_in(shifts)
    joint += degrees * (points + 1.0 - shifts)
    slope, bend = 0.5 * (joint[2] - joint[0]), joint[2] - 2.0 * joint[1] + joint[0]
    # Where one layer never varies the three points are one.
    highest = joint[1] - (0.5 * slope**2 / bend if bend < 0 else 0.0)
    own = corrected_log_determinant(first, degrees) + corrected_log_determinant(second, degrees)
    return float(0.5 * (own - highest))
