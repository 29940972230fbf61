"""Log-determinants of covariances of which only a sample is known, corrected for the bias of few samples.

The eigenvalues of a sample covariance are more spread out than those of the distribution, the more so the more columns
there are per sample. Their log-determinant is too low by about ``d² / 2n``: many nats for layers of hundreds of
columns, while its own scatter is below one nat. The bias is known for every spectrum, from the Marchenko-Pastur
equation.
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
    """Return the root in ``(0, 1]`` of ``w = 1 - (1/m) Σ_i l_i / (l_i + w)``.

    At this shift the spectrum of a sample is equivalent to that of the distribution with noise of variance 1.
    ``eigenvalues (d,)`` are those of the sample covariance divided by the degrees of freedom, in units of the noise
    variance. ``degrees`` is ``m``, more than ``d``: rows minus 1 where the mean was removed. Near ``m = d`` the shift
    goes to 0, and what is computed with it is uncertain.

    Example:
        >>> round(spectral_shift(np.array([1.0, 1.0]), 10), 3)
        0.894
    """
    if not degrees > eigenvalues.shape[0]:
        raise InputError(
            f"{degrees:g} degrees of freedom are too few for {eigenvalues.shape[0]} features: there must be more than "
            "one sample per feature. Use more samples, or reduce the features."
        )
    # The point where the companion Stieltjes transform of the Marchenko-Pastur equation is 1.
    w = 1.0
    for _ in range(_STEPS):
        parts = eigenvalues / (eigenvalues + w)
        # Newton's step for w - 1 + mean. The mean decreases in w with a slope above -1, so the function increases and
        # has one root.
        step = (w - 1.0 + parts.sum() / degrees) / (1.0 - (parts / (eigenvalues + w)).sum() / degrees)
        w -= step
        if abs(step) < _CLOSE:
            break
    return float(w)


def corrected_log_determinant(eigenvalues: Array, degrees: float) -> float:
    """Estimate ``log det(I + R)`` in nats from the eigenvalues of a sample of ``R``.

    Formula: ``max_w Σ_i log(1 + l_i / w) + m (log w + 1 - w)``, attained at :func:`spectral_shift`, which takes the
    same arguments. At ``w = 1`` it is the plug-in value. For Gaussian rows a bias of the order ``d / 4m`` remains.

    Example:
        >>> rows = np.random.default_rng(0).standard_normal((400, 100))
        >>> spectrum = np.linalg.eigvalsh(rows.T @ rows / 400)
        >>> [round(float(v), 1) for v in (100 * np.log(2), corrected_log_determinant(spectrum, 400))]  # true, corrected
        [69.3, 69.5]
    """
    # For rows that are linear in independent variables, log det(I + Σ/w) of the sample has the deterministic equivalent
    # log det(I + R) - m (log w + 1 - w) at this shift (Marchenko-Pastur); solved for log det(I + R). Rows whose norm
    # varies (heavy tails of the whole row) violate the assumption and leave a bias that falls with the number of rows.
    w = spectral_shift(eigenvalues, degrees)
    return float(np.log1p(eigenvalues / w).sum() + degrees * (np.log(w) + 1.0 - w))


def corrected_information(first: Array, second: Array, plug_in: Callable[[Array], Array], degrees: float) -> float:
    """Estimate the information in nats between two Gaussian layers under noise, from the moments of a sample.

    Formula: ``½ [L(first) + L(second) - L(joint)]`` with ``L`` of :func:`corrected_log_determinant`. ``first`` and
    ``second`` are eigenvalues as :func:`spectral_shift` takes them, each in units of its noise variance; ``degrees``
    must exceed the columns of both. ``plug_in`` returns the plug-in informations for three shifts by which both noise
    variances are multiplied. For independent layers the expectation is 0, up to ``O(d / m)``; the estimate can be
    negative.
    """
    # The joint layer needs no eigenvalues: at a shift w, Σ log(1 + l / w) over both layers minus twice the plug-in
    # information is its log-determinant. L(joint) is the maximum over w of a smooth function, and the joint shift lies
    # between that of both layers side by side and that of the wider layer. A parabola in log w through three points of
    # that range gives the maximum, since an error in the place changes the value in second order only.
    both = np.concatenate([first, second])
    low = np.log(spectral_shift(both, degrees))
    high = np.log(min(spectral_shift(first, degrees), spectral_shift(second, degrees)))
    points = np.array([low, 0.5 * (low + high), high])
    shifts = np.exp(points)
    joint = np.log1p(both / shifts[:, None]).sum(axis=1) - 2.0 * plug_in(shifts)
    joint += degrees * (points + 1.0 - shifts)
    slope, bend = 0.5 * (joint[2] - joint[0]), joint[2] - 2.0 * joint[1] + joint[0]
    # If one layer never varies, the three points coincide.
    highest = joint[1] - (0.5 * slope**2 / bend if bend < 0 else 0.0)
    marginals = corrected_log_determinant(first, degrees) + corrected_log_determinant(second, degrees)
    return float(0.5 * (marginals - highest))
