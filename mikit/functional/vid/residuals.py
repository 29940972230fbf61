"""The Gaussian variational family: log-scores, residual variances, differences of entropies and ridge regression.

``target`` and ``mean`` have shape ``(n, c)`` or ``(n, c, h, w)``; variances are per channel, ``(c,)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from mikit.core.errors import InputError

__all__ = [
    "LinearFit",
    "at_least_float32",
    "difference_of_entropies",
    "gaussian_nll",
    "moment_nll",
    "residual_variance",
    "ridge_regression",
]

# Ridge penalties tried, in units of the mean eigenvalue of the covariance.
_PENALTIES = torch.logspace(-6, 3, 19, dtype=torch.float64)
_CHUNK_ROWS = 65536


def residual_variance(mean: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared residual per channel, ``(c,)``: ``e_c = mean over samples and positions of (t - μ)²``.

    It is not a variance if the residuals have a mean; the second moment is what a Gaussian log-score needs. On the
    samples that fitted ``mean`` it is too small.

    Example:
        >>> residual_variance(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [1.0, 4.0]])).tolist()
        [1.0, 10.0]
    """
    _require_same_shape(mean, target)
    with torch.autocast(mean.device.type, enabled=False):
        difference = at_least_float32(mean) - at_least_float32(target)
        if torch.compiler.is_compiling():  # The compiler fuses the passes itself.
            return difference.square().mean(dim=[0, *range(2, target.ndim)])
        moments: Tensor = _MeanSquares.apply(difference)  # type: ignore[no-untyped-call]  # torch gives it no types
        return moments


@final
class _MeanSquares(torch.autograd.Function):
    """Mean squares per channel, with a gradient computed in one pass. It can be differentiated any number of times.

    Through autograd's own square the backward pass takes three passes, which ignore the memory layout of the maps.
    """

    @staticmethod
    def forward(ctx: Any, difference: Tensor) -> Tensor:
        ctx.save_for_backward(difference)
        axes = [0, *range(2, difference.ndim)]
        return (difference * difference).sum(dim=axes) / _elements(difference)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (difference,) = ctx.saved_tensors
        scale = gradients[0] * (2 / _elements(difference))
        gradient: Tensor = difference * scale.view(1, -1, *[1] * (difference.ndim - 2))
        return gradient


def _elements(difference: Tensor) -> int:
    """Return the number of elements of a channel."""
    return difference.shape[0] * math.prod(difference.shape[2:])


def gaussian_nll(mean: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """Return the negative Gaussian log-likelihood per channel, averaged over samples and positions.

    Formula: ``½ [ e_c / σ_c² + log σ_c² + log 2π ]``, where ``e_c`` is the mean squared residual of the channel.

    Args:
        mean: Predictions, ``(n, c)`` or ``(n, c, h, w)``.
        target: Targets, same shape.
        variance: ``σ_c²``, ``(c,)``, positive.

    Returns:
        Tensor ``(c,)``, in nats per element. Sum over channels and multiply by ``h w`` for nats per sample.

    Unit: nats.

    Kind: exact. Its expectation is a cross-entropy, so it is at least the conditional differential entropy of the
    target.

    Raises:
        InputError: If the shapes do not match.

    Cost:
        ``O(n c h w)`` time in one pass, and one temporary of that size; then arithmetic on ``c`` numbers.

    Pitfalls:
        Negative values are correct: a differential entropy falls without limit as the variance goes to 0.

    Source:
        Ahn, Hu, Damianou, Lawrence, Dai, 2019; the form per element as in the released code.

    Example:
        >>> value = gaussian_nll(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1))
        >>> round(float(value), 4) == round(0.5 + 0.5 * math.log(2 * math.pi), 4)
        True
    """
    if variance.shape != target.shape[1:2]:
        raise InputError(f"variance has shape {tuple(variance.shape)}, but the target has {target.shape[1]} channels.")
    with torch.autocast(mean.device.type, enabled=False):
        return moment_nll(residual_variance(mean, target), at_least_float32(variance))


def moment_nll(second_moment: Tensor, variance: Tensor) -> Tensor:
    """Return ``½ [ e_c / σ_c² + log σ_c² + log 2π ]`` per channel, in nats per element, from ``e_c (c,)``.

    This is what :func:`gaussian_nll` does after its pass over the maps. It is smallest at ``σ_c² = e_c``.

    Example:
        >>> round(float(moment_nll(torch.ones(1), torch.ones(1))[0]), 4)
        1.4189
    """
    if second_moment.shape != variance.shape:
        raise InputError(
            f"The second moments have shape {tuple(second_moment.shape)} and the variances {tuple(variance.shape)}; "
            "they must agree."
        )
    return 0.5 * (second_moment / variance + variance.log() + math.log(2 * math.pi))


def difference_of_entropies(
    mean: Tensor,
    target: Tensor,
    variance: Tensor,
    *,
    reference_mean: Tensor,
    reference_variance: Tensor,
    channels: Tensor | None = None,
) -> Tensor:
    """Return by how much a conditional Gaussian scores each sample better than an unconditional one.

    Formula: ``Σ_c,h,w [ log N(t; μ, σ_c²) - log N(t; m_c, V_c) ]``. Its mean is ``Σ_c [ h0(t_c) - h_q(t_c | s) ]``, a
    difference of two cross-entropies. With exact residual variances on the same samples it is
    ``½ Σ_c log(V_c / σ_c²)``.

    Args:
        mean: Predictions ``μ``, ``(n, c)`` or ``(n, c, h, w)``.
        target: Targets, same shape.
        variance: ``σ_c²``, ``(c,)``.
        reference_mean: ``m_c``, ``(c,)``.
        reference_variance: ``V_c``, ``(c,)``.
        channels: Boolean ``(c,)``: the channels to include. Default: all.

    Returns:
        Tensor ``(n,)``.

    Unit: nats.

    Kind: estimate of the mutual information, neither a lower nor an upper bound: it equals
    ``I - E KL(p(t|s) || q) + Σ_c KL(p(t_c) || q0_c) + [the teacher channels' total correlation]``.

    Raises:
        InputError: If the shapes do not match.

    Cost:
        ``O(n c h w)`` time and memory.

    Pitfalls:
        Channels and positions are summed as if they were independent, so correlated ones are counted several times.
        For a bimodal channel the reference fits badly and the value is too high: a network that predicts the mean
        exactly reached 3.00 nats where the true value is 0.69.

    Source:
        The variational bound of Barber and Agakov with the entropy replaced by that of a Gaussian.

    Example:
        >>> t = torch.tensor([[2.0], [-2.0]])
        >>> unit, zero = torch.ones(1), torch.zeros(1)
        >>> gain = difference_of_entropies(t, t, unit, reference_mean=zero, reference_variance=unit)
        >>> gain.tolist()  # ½ t²: the prediction is exact, the reference is not
        [2.0, 2.0]
    """
    _require_same_shape(mean, target)
    with torch.autocast(mean.device.type, enabled=False):
        shape = (1, -1) + (1,) * (target.ndim - 2)
        target = at_least_float32(target)
        v, m_0, v_0 = (at_least_float32(p).reshape(shape) for p in (variance, reference_mean, reference_variance))
        residual = (target - at_least_float32(mean)).square() / v
        gain = 0.5 * ((target - m_0).square() / v_0 - residual + (v_0 / v).log())
        if channels is not None:
            gain = torch.where(channels.reshape(shape), gain, 0.0)
        return gain.flatten(1).sum(dim=1)


@final
@dataclass(frozen=True)
class LinearFit:
    """A linear regression of every channel.

    Attributes:
        weight: ``(c, d)``.
        bias: ``(c,)``.
        variance: Expected squared error on new samples, ``(c,)``, by generalized cross-validation.
    """

    weight: Tensor
    bias: Tensor
    variance: Tensor


def ridge_regression(x: Tensor, y: Tensor) -> LinearFit:
    """Return ridge regressions of every column of ``y (n, c)`` on ``x (n, d)``, in float64.

    Formula: ``W_c = argmin |y_c - x w - b|² / n + λ_c |w|²``, with ``λ_c`` chosen from a grid by generalized
    cross-validation (Golub, Heath, Wahba, 1979). The samples count as independent. The penalty depends on the scales of
    the columns of ``x``: standardize them first. ``O(n d (d + c) + d³)`` time and ``O(d (d + c))`` memory.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> fit = ridge_regression(x, 2 * x + 1)
        >>> round(float(fit.weight), 3), round(float(fit.bias), 3)
        (2.0, 1.0)
    """
    n = x.shape[0]
    if x.ndim != 2 or y.ndim != 2 or y.shape[0] != n:
        raise InputError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; regression needs (n, d) and (n, c).")
    if n < 2:
        raise InputError(f"Regression was given {n} sample{'s' * (n != 1)}; it needs at least 2.")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        mean_x, mean_y = x.mean(0, dtype=torch.float64), y.mean(0, dtype=torch.float64)
        gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        cross = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
        power = torch.zeros_like(mean_y)
        for start in range(0, n, _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            centered_x, centered_y = x[rows].double() - mean_x, y[rows].double() - mean_y
            gram += centered_x.T @ centered_x
            cross += centered_x.T @ centered_y
            power += centered_y.square().sum(0)
        values, vectors = torch.linalg.eigh(gram / n)
        values = values.clamp(min=0)
        cross = vectors.T @ cross / n
        penalty, variance = _best_penalties(values, cross, power / n, n)
        weight = (vectors @ (cross / (values[:, None] + penalty))).T
        return LinearFit(weight, mean_y - weight @ mean_x, variance)


def _best_penalties(values: Tensor, cross: Tensor, power: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return every channel's penalty and its score ``GCV(λ) = (RSS / n) / (1 - df(λ) / n)²``.

    ``values (d,)`` are the eigenvalues of the covariance of ``x``, ``cross (d, c)`` the covariances with ``y`` in its
    eigenvectors, and ``power (c,)`` the variances of ``y``.
    """
    # In the eigenbasis a penalty changes only a diagonal, so the whole grid costs less than the one decomposition. The
    # unit is the mean of the eigenvalues that are not 0 for lack of samples: the grid then fits features of any scale.
    unit = (values.sum() / min(n - 1, values.shape[0])).clamp(min=1e-30)
    best = torch.full_like(power, float("inf"))
    penalty = torch.zeros_like(power)
    for candidate in (_PENALTIES.to(values.device) * unit).unbind():
        shrunk = 1 / (values + candidate)
        freedom_left = 1 - (1 + (values * shrunk).sum()) / n
        explained = (cross.square() * (2 * shrunk - values * shrunk.square())[:, None]).sum(0)
        # A model with as many degrees of freedom as samples says nothing about new samples.
        score = torch.where(freedom_left > 0.05, (power - explained).clamp(min=0) / freedom_left.square(), float("inf"))
        penalty = torch.where(score < best, candidate, penalty)
        best = torch.minimum(score, best)
    return penalty, best


def _require_same_shape(mean: Tensor, target: Tensor) -> None:
    if mean.shape != target.shape or target.ndim < 2:
        raise InputError(
            f"The prediction has shape {tuple(mean.shape)} and the target {tuple(target.shape)}; they must agree, "
            "with the channels as the second axis."
        )


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision and integers as float32, and float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
