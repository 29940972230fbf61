"""Probes that predict class labels without a linear form: one hidden layer, and frequencies among neighbours.

Their held-out cross-entropy is read as that of the linear probes is. Both fall back to the class frequencies where the
select part shows that they know no better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu

from mikit.core.errors import InputError
from mikit.functional.labels.linear_probes import _best_factor, _checked_labels, _fit_part, _select_part, standardised
from mikit.functional.labels.logistic import log_softmax

__all__ = [
    "HiddenLayerProbe",
    "NeighborProbe",
    "fit_mlp_probe",
    "fit_neighbor_probe",
    "neighbor_frequencies",
    "neighbor_labels",
]

Array = NDArray[Any]

NEIGHBORS = (5, 10, 20, 40, 80, 160)
# Weight of the class frequencies: 1 / (1 + these) of what is said comes from the neighbours.
_PRIOR_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 0.99)

_DECAY = 1e-3
_LEARNING_RATE = 3e-3
_BATCH = 256
_PATIENCE = 10
_LEAST_GAIN = 1e-4  # nats of select cross-entropy that are worth going on for
_START_STEPS = 40
_FEW = 4


@final
@dataclass(frozen=True)
class HiddenLayerProbe:
    """A fitted probe: ``log q(k | x) = log softmax_k(W GELU(V z + a) + b)`` with ``z`` the standardised features.

    Attributes:
        mean: Column means of the fit part ``(d,)``, float64.
        scale: Column SDs of the fit part ``(d,)``, float64; infinite for columns that do not vary, which drops them.
        hidden_weights: ``(d, width)``, float64.
        hidden_bias: ``(width,)``, float64.
        weights: ``(width, classes)``, float64, the temperature included.
        bias: ``(classes,)``, float64, the temperature included.
        log_prior: Log class frequencies of the fit part ``(classes,)``, float64.
        inverse_temperature: Factor on the logits' distance from ``log_prior``.
        iterations: Optimiser steps taken.
        best_iteration: The step whose state was kept.
        converged: Whether the select part stopped improving before the last step.
        select_cross_entropy: Cross-entropy on the select part in nats; NaN without one.
    """

    mean: Array
    scale: Array
    hidden_weights: Array
    hidden_bias: Array
    weights: Array
    bias: Array
    log_prior: Array
    inverse_temperature: float
    iterations: int
    best_iteration: int
    converged: bool
    select_cross_entropy: float

    def log_probabilities(self, features: Array) -> Array:
        """Return ``log q(k | x)`` in nats, ``(n, classes)``, float64, for features ``(n, d)``."""
        z = torch.from_numpy(standardised(_of_width(features, self.mean), self.mean, self.scale))
        layers = (torch.from_numpy(v).to(z) for v in (self.hidden_weights, self.hidden_bias, self.weights, self.bias))
        return log_softmax(_logits(z, *layers).double().numpy())

    def information(self, features: Array, labels: Array) -> Array:
        """Return ``log q(y | x) - log prior(y)`` per row in nats, ``(n,)``; its mean is the V-information."""
        return _information(self.log_probabilities(features), labels, self.log_prior)


@final
@dataclass(frozen=True)
class NeighborProbe:
    """A fitted probe: ``q(c | x) = (n_c + s π_c) / (k + s)``, ``n_c`` of the k nearest fit rows being of class c.

    Attributes:
        mean: Column means of the fit part ``(d,)``, float64.
        scale: Column SDs of the fit part ``(d,)``, float64; infinite for columns that do not vary, which drops them.
        rows: The standardised features of the fit part ``(n, d)``.
        codes: Their classes ``(n,)``.
        log_prior: ``log π``, the log class frequencies of the fit part ``(classes,)``, float64.
        neighbors: k.
        strength: s, the number of neighbours that the class frequencies count for; positive, so that no class has
            probability 0.
        iterations: 0; nothing is iterated.
        converged: True.
        select_cross_entropy: Cross-entropy on the select part in nats; NaN without one.
    """

    mean: Array
    scale: Array
    rows: Array
    codes: Array
    log_prior: Array
    neighbors: int
    strength: float
    iterations: int
    converged: bool
    select_cross_entropy: float

    def log_probabilities(self, features: Array) -> Array:
        """Return ``log q(k | x)`` in nats, ``(n, classes)``, float64, for features ``(n, d)``."""
        z = standardised(_of_width(features, self.mean), self.mean, self.scale)
        near = neighbor_labels(torch.from_numpy(z), torch.from_numpy(self.rows), torch.from_numpy(self.codes),
                               self.neighbors)  # fmt: skip
        prior = torch.from_numpy(np.exp(self.log_prior))
        return np.asarray(neighbor_frequencies(near, prior, self.strength).log().numpy())

    def information(self, features: Array, labels: Array) -> Array:
        """Return ``log q(y | x) - log prior(y)`` per row in nats, ``(n,)``; its mean is the V-information."""
        return _information(self.log_probabilities(features), labels, self.log_prior)


def fit_mlp_probe(
    features: Array,
    labels: Array,
    classes: int,
    *,
    select: tuple[Array, Array] | None = None,
    width: int = 256,
    max_steps: int = 3000,
    seed: int = 0,
) -> HiddenLayerProbe:
    """Fit a probe with one hidden layer; stop it, and choose its temperature, on other rows.

    Formula: minimise ``(1/n) Σ_i -log softmax_{y_i}(W GELU(V z_i + a) + b)`` over minibatches of 256 rows by Adam with
    decoupled weight decay of 1e-3, ``z`` the features standardised by the fit part's means and SDs and set to ±8 beyond
    8 SDs. It starts at the class frequencies (``W = 0``, ``b = log π``). The state with the lowest cross-entropy on the
    select part, to 1e-4 nats, is kept, and the logits ``l`` become ``log π + β (l - log π)`` with the ``β >= 0`` that
    minimises it.

    Args:
        features: ``(n, d)``, float32 or float64; the iterations run in this precision.
        labels: Class indices ``0 .. classes-1``, ``(n,)``.
        classes: Number of classes.
        select: Features and labels of the rows that stop it. Without them 40 steps are taken.
        width: Hidden units.
        max_steps: Steps at most.
        seed: Seed of the starting weights and of the minibatches.

    Returns:
        The fitted probe. Its log probabilities are in nats.

    Raises:
        InputError: If shapes do not match, a label is out of range, or a class has no row in the fit part.

    Cost:
        Up to 3,000 steps of ``O(256 d width)``, and one pass over the select part after every pass over the rows.

    Pitfalls:
        The held-out value grows with the number of rows, and varies with the seed. On its own fit rows a probe proves
        nothing.

    Source:
        A multilayer perceptron with early stopping; temperature scaling on held-out rows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((3000, 2))
        >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)  # no linear probe can tell
        >>> probe = fit_mlp_probe(x[:1800], y[:1800], 2, select=(x[1800:2400], y[1800:2400]), max_steps=200)
        >>> bool(probe.information(x[2400:], y[2400:]).mean() > 0.4)
        True
    """
    codes = _checked_labels(labels, features.shape[0], classes)
    if width < 1 or max_steps < 1:
        raise InputError(f"width is {width} and max_steps is {max_steps}; both must be at least 1.")
    mean, scale, z, log_prior = _fit_part(features, codes, classes)
    chosen = _select_part(select, mean, scale, classes)
    draw = torch.Generator().manual_seed(seed)
    rows, targets = torch.from_numpy(z), torch.from_numpy(codes.astype(np.int64))
    n, d, dtype = rows.shape[0], rows.shape[1], rows.dtype
    varying = max(int(np.isfinite(scale).sum()), 1)
    prior = torch.from_numpy(log_prior).to(dtype)
    layers = [
        torch.randn(d, width, generator=draw, dtype=dtype) / varying**0.5,
        torch.rand(width, generator=draw, dtype=dtype) * 2 - 1,
        torch.zeros(width, classes, dtype=dtype),
        prior.clone(),
    ]
    for layer in layers:
        layer.requires_grad_()
    optimiser = torch.optim.AdamW(
        [{"params": layers[::2], "weight_decay": _DECAY}, {"params": layers[1::2], "weight_decay": 0.0}],
        lr=_LEARNING_RATE,
        fused=True,
    )
    held_out = None if chosen is None else (torch.from_numpy(chosen[0]), torch.from_numpy(chosen[1].astype(np.int64)))
    limit, between = (max_steps if held_out is not None else _START_STEPS), max(-(-n // _BATCH), 10)
    best, best_step, kept, taken = np.inf, 0, [layer.detach().clone() for layer in layers], 0
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        while taken < limit:
            if order.shape[0] < min(_BATCH, n):
                order = torch.cat([order, torch.randperm(n, generator=draw)])
            batch, order = order[:_BATCH], order[_BATCH:]
            optimiser.zero_grad()
            loss = cross_entropy(_logits(rows[batch], *layers), targets[batch])
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            optimiser.step()
            taken += 1
            if held_out is None or (taken % between and taken < limit):
                continue
            with torch.no_grad():
                now = float(cross_entropy(_logits(held_out[0], *layers).double(), held_out[1]))
            if now < best - _LEAST_GAIN:
                best, best_step, kept = now, taken, [layer.detach().clone() for layer in layers]
            elif taken - best_step >= _PATIENCE * between:
                break
    if held_out is None:
        best_step, kept = taken, [layer.detach() for layer in layers]
    factor, value = 1.0, float("nan")
    if held_out is not None and chosen is not None:
        distance = _logits(held_out[0], *kept).double().numpy() - log_prior
        factor, value = _best_factor(distance, chosen[1], log_prior)
    hidden_weights, hidden_bias, weights, bias = (layer.double().numpy() for layer in kept)
    return HiddenLayerProbe(
        mean, scale, hidden_weights, hidden_bias, factor * weights, log_prior + factor * (bias - log_prior), log_prior,
        factor, taken, best_step, taken - best_step >= _PATIENCE * between, value,
    )  # fmt: skip


def fit_neighbor_probe(
    features: Array,
    labels: Array,
    classes: int,
    *,
    select: tuple[Array, Array] | None = None,
    neighbors: Sequence[int] = NEIGHBORS,
) -> NeighborProbe:
    """Fit the probe of class frequencies among nearest neighbours; choose their number and the prior on other rows.

    Formula: ``q(c | x) = (n_c + s π_c) / (k + s)``, with ``n_c`` the rows of class c among the k nearest rows of the
    fit part and ``π_c`` the class frequencies there. The distance is Euclidean, between features standardised by the
    fit part's means and SDs and set to ±8 beyond 8 SDs. k and s minimise the cross-entropy on the select part, over the
    given k and eleven values of ``s / (k + s)`` from 0.01 to 0.99. As s is positive, no class ever has probability 0.

    A fit row that equals the row judged in every column is taken for that row itself and left out (one of them, where
    there are more), so that values on the fit part are those of leaving one out.

    Args:
        features: ``(n, d)``, float32 or float64; distances are formed in float64.
        labels: Class indices ``0 .. classes-1``, ``(n,)``.
        classes: Number of classes.
        select: Features and labels of the rows that choose k and s. Without them the largest of both is used.
        neighbors: The numbers of neighbours to choose from; those that the fit part does not have are passed over,
            and all of its other rows stand in where none is left.

    Returns:
        The fitted probe. Its log probabilities are in nats.

    Raises:
        InputError: If shapes do not match, a label is out of range, a class has no row in the fit part, or a number of
            neighbours is below 1.

    Cost:
        ``O(n m d)`` for m rows judged; the probe keeps the features of the fit part.

    Pitfalls:
        All columns count alike in the distance, so that columns without information drown those with some. With
        many columns it finds less than a linear probe even where the classes are linearly separable.

    Source:
        Nearest-neighbour class frequencies with a Dirichlet prior at the class frequencies; no single paper.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((3000, 2))
        >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)  # no linear probe can tell
        >>> probe = fit_neighbor_probe(x[:1800], y[:1800], 2, select=(x[1800:2400], y[1800:2400]))
        >>> bool(probe.information(x[2400:], y[2400:]).mean() > 0.5)
        True
    """
    codes = _checked_labels(labels, features.shape[0], classes).astype(np.int64)
    if not neighbors or min(neighbors) < 1:
        raise InputError(f"The numbers of neighbours are {tuple(neighbors)}; pass at least one, all at least 1.")
    mean, scale, z, log_prior = _fit_part(features, codes, classes)
    chosen = _select_part(select, mean, scale, classes)
    most = z.shape[0] - 1
    if most < 1:
        raise InputError("There is 1 row to fit the probe to; it needs at least 2.")
    tried = sorted({k for k in neighbors if k <= most} or {most})
    prior = np.exp(log_prior)
    k, share, best = tried[-1], _PRIOR_SHARES[-1], float("nan")
    if chosen is not None:
        near = neighbor_labels(
            torch.from_numpy(chosen[0]), torch.from_numpy(z), torch.from_numpy(codes), tried[-1]
        ).numpy()
        # Only the frequency of the true class enters the cross-entropy.
        hits = np.cumsum(near == chosen[1][:, None], axis=1)
        best = np.inf
        for candidate in tried:
            frequency = hits[:, candidate - 1] / candidate
            for weight in _PRIOR_SHARES:
                value = -float(np.log((1 - weight) * frequency + weight * prior[chosen[1]]).mean())
                if value < best:
                    k, share, best = candidate, weight, value
    return NeighborProbe(mean, scale, z, codes, log_prior, k, k * share / (1 - share), 0, True, best)


def neighbor_labels(queries: Tensor, rows: Tensor, codes: Tensor, k: int) -> Tensor:
    """Return the classes of the k nearest of ``rows`` to each query, nearest first, a row equal to it left out.

    Args:
        queries: ``(m, d)``.
        rows: ``(n, d)`` with ``n > k``.
        codes: Classes of the rows ``(n,)``.
        k: Number of neighbours.

    Returns:
        Classes ``(m, k)``, on the device of ``queries``.

    Cost:
        O(m n d) time in float64, O(n d) memory.

    Pitfalls:
        Rows at equal distances are ordered as ``topk`` orders them.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [3.0]])
        >>> neighbor_labels(torch.tensor([[0.9], [3.0]]), rows, torch.tensor([7, 8, 9]), 2).tolist()
        [[8, 7], [8, 7]]
    """
    across = rows.double()
    squares = across.square().sum(dim=1)
    flat = across.T.contiguous()
    strip = max(1, 2**22 // rows.shape[0])
    found = []
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, queries.shape[0], strip):
            own = queries[start : start + strip].double().contiguous()
            nearest = (squares - 2 * (own @ flat)).topk(k + 1, dim=1, largest=False).indices
            # Rows equal to the query are the first few, if there are any.
            same = torch.zeros_like(nearest, dtype=torch.bool)
            same[:, :_FEW] = (across[nearest[:, :_FEW]] == own[:, None, :]).all(dim=2)
            # Sorting by whether it is the first equal one moves that to the end and keeps the others in order.
            first = same & (same.cumsum(dim=1) == 1)
            order = first.to(torch.int8).argsort(dim=1, stable=True)[:, :k]
            found.append(codes[nearest.gather(1, order)])
    return torch.cat(found) if found else codes.new_empty(0, k)


def neighbor_frequencies(near: Tensor, prior: Tensor, strength: float) -> Tensor:
    """Return ``(n_c + strength π_c) / (k + strength)`` for neighbours of classes ``near``, ``(m, k)``.

    Args:
        near: Classes of the neighbours ``(m, k)``.
        prior: Class frequencies ``π``, ``(classes,)``, floating.
        strength: Number of neighbours the prior counts for.

    Returns:
        Probabilities ``(m, classes)``, in the dtype of ``prior``.

    Cost:
        O(m (k + classes)).

    Pitfalls:
        With strength 0, classes without a neighbour have probability 0.

    Example:
        >>> neighbor_frequencies(torch.tensor([[0, 0, 1]]), torch.tensor([0.5, 0.5]), 1.0)
        tensor([[0.6250, 0.3750]])
    """
    counts = prior.new_zeros(near.shape[0], prior.shape[0])
    counts.scatter_add_(1, near, torch.ones_like(near, dtype=prior.dtype))
    return (counts + strength * prior) / (near.shape[1] + strength)


def _logits(z: Tensor, hidden_weights: Tensor, hidden_bias: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    return gelu(z @ hidden_weights + hidden_bias) @ weights + bias


def _information(log_q: Array, labels: Array, log_prior: Array) -> Array:
    codes = _checked_labels(labels, log_q.shape[0], log_prior.shape[0])
    return np.asarray(log_q[np.arange(codes.shape[0]), codes] - log_prior[codes])


def _of_width(features: Array, mean: Array) -> Array:
    if features.ndim != 2 or features.shape[1] != mean.shape[0]:
        raise InputError(
            f"The features have shape {features.shape}, but this probe was fitted to {mean.shape[0]} columns."
        )
    return features
