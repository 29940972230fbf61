"""The parts that all probes share: standardization, checks of labels, class frequencies, and the temperature."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, final

import numpy as np
from numpy.typing import NDArray

from mikit.core.errors import InputError
from mikit.functional.labels.logistic import log_softmax

__all__ = ["CLIP", "Array", "FitPart", "LabeledRows", "Probe", "best_inverse_temperature", "standardized"]

Array = NDArray[Any]

# Standardized features are clipped at this many SDs. This is part of the probe's definition: one extreme sample cannot
# dominate a linear fit.
CLIP = 8.0
_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True, kw_only=True)
class Probe(abc.ABC):
    """A fitted probe: probabilities of the classes given standardized features.

    ``mean`` and ``scale`` are the means and SDs of the features in the fit part, ``(d,)`` float64; ``scale`` is
    infinite for constant features, which removes them. ``log_prior`` are the log class frequencies of the fit part,
    ``(classes,)``. ``iterations`` are those of the optimizer, 0 for a closed form, and ``converged`` is whether it met
    its tolerance or stopped early. ``select_cross_entropy`` is in nats; NaN without a select part.
    """

    mean: Array
    scale: Array
    log_prior: Array
    iterations: int
    converged: bool
    select_cross_entropy: float

    @abc.abstractmethod
    def log_probabilities(self, features: Array) -> Array:
        """Return ``log q(k | x)`` in nats, ``(n, classes)``, float64, for features ``(n, d)``."""

    def information(self, features: Array, labels: Array) -> Array:
        """Return ``log q(y | x) - log prior(y)`` per sample in nats, ``(n,)``; its mean is the V-information."""
        log_q = self.log_probabilities(features)
        codes = checked_labels(labels, log_q.shape[0], self.log_prior.shape[0])
        return np.asarray(log_q[np.arange(codes.shape[0]), codes] - self.log_prior[codes])

    def standardized(self, features: Array) -> Array:
        """Return the features as :func:`standardized` does, after a check of their width."""
        if features.ndim != 2 or features.shape[1] != self.mean.shape[0]:
            raise InputError(
                f"The features have shape {features.shape}, but this probe was fitted to {self.mean.shape[0]} features."
            )
        return standardized(features, self.mean, self.scale)


@final
class LabeledRows(NamedTuple):
    """Standardized features and their classes."""

    z: Array
    codes: Array


@final
@dataclass(frozen=True)
class FitPart:
    """Means, SDs, classes and log class frequencies of the samples that a probe is fitted to."""

    mean: Array
    scale: Array
    codes: Array
    log_prior: Array

    @classmethod
    def of(cls, features: Array, labels: Array, classes: int) -> Self:
        """Return the statistics of features ``(n, d)`` and labels ``(n,)`` in ``0 .. classes - 1``."""
        codes = checked_labels(labels, features.shape[0], classes)
        counts = np.bincount(codes, minlength=classes)
        empty = np.flatnonzero(counts == 0)
        if empty.shape[0]:
            raise InputError(
                f"{empty.shape[0]} of the {classes} classes have no sample in the part that the probe is fitted to; "
                f"the first is class {empty[0]} (counted from 0 in sorted order). Use more samples, or drop that class "
                "from all samples."
            )
        mean = features.mean(axis=0, dtype=np.float64)
        square = np.zeros_like(mean)
        for start in range(0, features.shape[0], _ROWS_AT_A_TIME):
            square += ((features[start : start + _ROWS_AT_A_TIME] - mean) ** 2).sum(axis=0)
        deviation = np.sqrt(square / features.shape[0])
        # If the SD of a feature is no larger than the rounding of its mean, the feature is constant.
        rounding = np.finfo(np.float32 if features.dtype == np.float32 else np.float64).eps * np.abs(mean)
        scale = np.where(deviation > rounding, deviation, np.inf)
        return cls(mean, scale, codes, np.log(counts / counts.sum()))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.log_prior.shape[0])

    @property
    def varying(self) -> int:
        """Number of features that are not constant, at least 1."""
        return max(int(np.isfinite(self.scale).sum()), 1)

    def standardized(self, features: Array) -> Array:
        """Return features standardized by the statistics of this part."""
        return standardized(features, self.mean, self.scale)

    def held_out(self, select: tuple[Array, Array] | None) -> LabeledRows | None:
        """Return the select part standardized by this part; None without one."""
        if select is None:
            return None
        codes = checked_labels(select[1], select[0].shape[0], self.classes)
        return LabeledRows(self.standardized(select[0]), codes)


def standardized(features: Array, mean: Array, scale: Array) -> Array:
    """Return features minus ``mean``, over ``scale``, clipped at ±8; float32 stays float32, the rest is float64."""
    dtype = np.float32 if features.dtype in (np.float32, np.float16) else np.float64
    # In blocks, so that the float64 differences of a large sample are never all in memory.
    out = np.empty(features.shape, dtype=dtype)
    for start in range(0, features.shape[0], _ROWS_AT_A_TIME):
        block = slice(start, start + _ROWS_AT_A_TIME)
        out[block] = np.clip((features[block] - mean) / scale, -CLIP, CLIP)
    return out


def checked_labels(labels: Array, n: int, classes: int) -> Array:
    """Return the labels, or raise an error unless they are one class in ``0 .. classes - 1`` for each of ``n`` rows."""
    if labels.shape != (n,):
        raise InputError(f"The labels have shape {labels.shape} but there are {n} samples. Pass one class per sample.")
    if n == 0:
        raise InputError("There are no samples to fit or evaluate a probe on.")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
        raise InputError(
            f"Row {wrong} has class {labels[wrong]}, but the probe has the classes 0 to {classes - 1} only. Every "
            "class must occur in the samples that the probe is fitted to."
        )
    return labels


def best_inverse_temperature(discriminants: Array, codes: Array, log_prior: Array) -> tuple[float, float]:
    """Return the ``β >= 0`` that minimizes the cross-entropy of ``log_prior + β discriminants``, and that minimum."""
    # By the rule of succession a sample has another label, at random by the prior, with probability 1/(n + 1). Without
    # that, β would grow without limit where all samples of the select part are classified correctly, and a single
    # error on other samples would cost hundreds of nats.
    rows = np.arange(codes.shape[0])
    fault = 1.0 / (codes.shape[0] + 1)
    target = (1 - fault) * discriminants[rows, codes].mean() + fault * (discriminants @ np.exp(log_prior)).mean()
    factor, low, high, value = 1.0, 0.0, np.inf, np.inf
    # The cross-entropy is convex in β: Newton's method, kept between bounds that are known to enclose the minimum.
    for _ in range(60):
        log_q = log_softmax(log_prior + factor * discriminants)
        value = -float(log_q[rows, codes].mean())
        q = np.exp(log_q)
        expected = (q * discriminants).sum(axis=1)
        slope = float(expected.mean() - target)
        bend = float(((q * discriminants**2).sum(axis=1) - expected**2).mean())
        low, high = (factor, high) if slope < 0 else (low, factor)
        if slope**2 <= 1e-10 * bend or slope == 0:
            break
        step = factor - slope / bend if bend > 0 else np.inf  # bend is 0 by rounding if every class is certain
        factor = step if low < step < high else (0.5 * (low + high) if np.isfinite(high) else 2 * factor)
    return factor, value
