"""The penalized multinomial cross-entropy, and a limited-memory BFGS method that minimizes it."""

from __future__ import annotations

from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

__all__ = ["LogisticObjective", "descend", "log_softmax"]

Array = NDArray[Any]

_PAIRS_KEPT = 12


def log_softmax(logits: Array) -> Array:
    """Return the log of the softmax over the last of two axes."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


@final
class LogisticObjective:
    """The penalized cross-entropy as a function of whitened weights and bias in one float64 vector."""

    def __init__(self, z: Array, codes: Array, classes: int) -> None:
        # Logits are stored as (classes, n): sums over a few classes are then sums of long rows.
        self.z = z
        self.columns = np.ascontiguousarray(z.T)
        self.one_hot = np.zeros((classes, z.shape[0]), dtype=z.dtype)
        self.one_hot[codes, np.arange(z.shape[0])] = 1.0
        self.ridge = 0.0
        self.stretch = np.ones((classes, z.shape[1]))
        self.bias_stretch = np.ones(classes)

    def coordinates(self, ridge: float, spectrum: Array, weights: Array, bias: Array) -> Self:
        """Set the ridge, and coordinates in which the Hessian at these weights is about the identity."""
        # The Hessian of class k is about p_k (1 - p_k) times the covariance of the features, plus the ridge. The
        # features are in the axes of that covariance, so its diagonal is the spectrum. BFGS starts from the identity
        # and needs few steps if the Hessian is close to it. Also, one tolerance for the gradient then suits all ridges.
        curvature = self._curvature(weights, bias)
        self.ridge = ridge
        self.stretch = 1.0 / np.sqrt(curvature[:, None] * np.clip(spectrum, 0.0, None) + ridge)
        self.bias_stretch = 1.0 / np.sqrt(curvature)
        return self

    def _curvature(self, weights: Array, bias: Array) -> Array:
        """Return the mean of ``p (1 - p)`` per class: the scale of the Hessian at these weights."""
        q = np.exp(log_softmax((self.z @ weights.T.astype(self.z.dtype)) + bias.astype(self.z.dtype)))
        out = np.maximum((q * (1 - q)).mean(axis=0, dtype=np.float64), 1e-6)
        return np.asarray(out)

    def packed(self, weights: Array, bias: Array) -> Array:
        """Return weights ``(classes, d)`` and bias as one vector."""
        return np.concatenate([(weights / self.stretch).ravel(), bias / self.bias_stretch])

    def unpacked(self, point: Array) -> tuple[Array, Array]:
        """Return weights and bias of a vector."""
        classes, d = self.one_hot.shape[0], self.z.shape[1]
        weights = point[: classes * d].reshape(classes, d)
        return np.asarray(weights * self.stretch), np.asarray(point[classes * d :] * self.bias_stretch)

    def __call__(self, point: Array) -> tuple[float, Array]:
        """Return the value and the gradient."""
        weights, bias = self.unpacked(point)
        n = self.z.shape[0]
        logits = weights.astype(self.z.dtype) @ self.columns
        logits += bias.astype(self.z.dtype)[:, None]
        logits -= logits.max(axis=0)
        target = np.einsum("ij,ij->", logits, self.one_hot, dtype=np.float64)
        np.exp(logits, out=logits)
        total = logits.sum(axis=0)
        value = (float(np.log(total).sum(dtype=np.float64)) - float(target)) / n
        value += 0.5 * self.ridge * float(np.vdot(weights, weights))
        # The buffer of the logits becomes that of the probabilities and then of the residuals p - y.
        logits /= total
        logits -= self.one_hot
        slope = (logits @ self.z).astype(np.float64) / n + self.ridge * weights
        slope_bias = logits.sum(axis=1, dtype=np.float64) / n
        return value, np.concatenate([(slope * self.stretch).ravel(), slope_bias * self.bias_stretch])


def descend(
    objective: LogisticObjective, weights: Array, bias: Array, tolerance: float, max_iterations: int
) -> tuple[Array, Array, float, int]:
    """Minimize by limited-memory BFGS with backtracking; return weights, bias, gradient norm and evaluations."""
    point = objective.packed(weights, bias)
    value, gradient = objective(point)
    evaluations = 1
    steps: list[Array] = []
    changes: list[Array] = []
    curvatures: list[float] = []
    while evaluations < max_iterations and np.linalg.norm(gradient) > tolerance:
        direction = -_inverse_hessian_times(gradient, steps, changes, curvatures)
        descent = float(direction @ gradient)
        if descent >= 0:  # rounding has spoiled the pairs; start again from the gradient
            steps, changes, curvatures = [], [], []
            direction, descent = -gradient, -float(gradient @ gradient)
        length = 1.0
        while True:
            candidate = point + length * direction
            new_value, new_gradient = objective(candidate)
            evaluations += 1
            # A sufficient decrease (Armijo). The slack is the rounding of a float32 sum: near the minimum the true
            # decrease is smaller than that, and a strict test would halve the step without end.
            if new_value <= value + 1e-4 * length * descent + 1e-7 * abs(value) or evaluations >= max_iterations:
                break
            length *= 0.5
            if length < 1e-6:
                return (*objective.unpacked(point), float(np.linalg.norm(gradient)), evaluations)
        step, change = candidate - point, new_gradient - gradient
        # Backtracking does not guarantee positive curvature along a step. A pair without it would make the approximate
        # Hessian indefinite, so it is not kept.
        bend = float(step @ change)
        if bend > 1e-10 * float(change @ change):
            steps, changes = [*steps, step][-_PAIRS_KEPT:], [*changes, change][-_PAIRS_KEPT:]
            curvatures = [*curvatures, bend][-_PAIRS_KEPT:]
        point, value, gradient = candidate, new_value, new_gradient
    return (*objective.unpacked(point), float(np.linalg.norm(gradient)), evaluations)


def _inverse_hessian_times(gradient: Array, steps: list[Array], changes: list[Array], bends: list[float]) -> Array:
    """Return the product of the approximate inverse Hessian and the gradient, by the two-loop recursion of L-BFGS."""
    out = gradient.copy()
    pulls = []
    for step, change, bend in zip(reversed(steps), reversed(changes), reversed(bends), strict=True):
        pull = float(step @ out) / bend
        pulls.append(pull)
        out -= pull * change
    if steps:
        out *= bends[-1] / float(changes[-1] @ changes[-1])
    for step, change, bend, pull in zip(steps, changes, bends, reversed(pulls), strict=True):
        out += (pull - float(change @ out) / bend) * step
    return out
