"""Nonlinear probes that predict class labels: one hidden layer, and class frequencies among nearest neighbors.

Their held-out cross-entropy is interpreted like that of the linear probes. Both approach the class frequencies where
the select part shows that they predict no better than these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.labels.logistic import log_softmax
from mikit.functional.labels.probe import Array, FitPart, LabeledRows, Probe, best_inverse_temperature

__all__ = [
    "HiddenLayerProbe",
    "NeighborProbe",
    "fit_mlp_probe",
    "fit_neighbor_probe",
    "neighbor_frequencies",
    "neighbor_labels",
]

NEIGHBORS = (5, 10, 20, 40, 80, 160)
# Weight of the class frequencies in the prediction; one minus these is that of the neighbors.
_PRIOR_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 0.99)

_DECAY = 1e-3
_LEARNING_RATE = 3e-3
_BATCH = 256
_PATIENCE = 10
_LEAST_GAIN = 1e-4  # smallest decrease of the select cross-entropy, in nats, that counts as progress
_START_STEPS = 40
_FEW = 4


@final
@dataclass(frozen=True, kw_only=True)
class HiddenLayerProbe(Probe):
    """A fitted probe: ``log q(k | x) = log softmax_k(W GELU(V z + a) + b)`` with ``z`` the standardized features.

    ``hidden_weights`` are ``(d, width)``, ``hidden_bias`` ``(width,)``, ``weights`` ``(width, classes)`` and ``bias``
    ``(classes,)``, float64; the last two include the temperature. ``inverse_temperature`` is the factor on the logits'
    distance from ``log_prior``, and ``best_iteration`` the step whose state was kept.
    """

    hidden_weights: Array
    hidden_bias: Array
    weights: Array
    bias: Array
    inverse_temperature: float
    best_iteration: int

    def log_probabilities(self, features: Array) -> Array:
        """Return ``log q(k | x)`` in nats, ``(n, classes)``, float64, for features ``(n, d)``."""
        z = torch.from_numpy(self.standardized(features))
        layers = (torch.from_numpy(v).to(z) for v in (self.hidden_weights, self.hidden_bias, self.weights, self.bias))
        return log_softmax(_logits(z, *layers).double().numpy())


@final
@dataclass(frozen=True, kw_only=True)
class NeighborProbe(Probe):
    """A fitted probe: ``q(c | x) = (n_c + s π_c) / (k + s)``, with ``n_c`` of the k nearest fit samples in class c.

    ``rows`` ``(n, d)`` and ``codes`` ``(n,)`` are the standardized features and classes of the fit part, ``neighbors``
    is k. ``strength`` is s, the number of neighbors that the class frequencies π count for; it is positive, so that no
    class has probability 0.
    """

    rows: Array
    codes: Array
    neighbors: int
    strength: float

    def log_probabilities(self, features: Array) -> Array:
        """Return ``log q(k | x)`` in nats, ``(n, classes)``, float64, for features ``(n, d)``."""
        z = torch.from_numpy(self.standardized(features))
        near = neighbor_labels(z, torch.from_numpy(self.rows), torch.from_numpy(self.codes), self.neighbors)
        prior = torch.from_numpy(np.exp(self.log_prior))
        return np.asarray(neighbor_frequencies(near, prior, self.strength).log().numpy())


# ----------------------------------------------------------------------------------------------- one hidden layer


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
    """Fit a probe with one hidden layer; stop it, and choose its temperature, on the select part.

    It is trained by AdamW on minibatches of 256 samples, in the precision of the features. The state of lowest
    cross-entropy on the select part, to 1e-4 nats, is kept, and its logits ``l`` become ``log π + β (l - log π)``.
    Without a select part it takes 40 steps. ``seed`` is that of the initial weights and of the minibatches.

    Cost: up to ``max_steps`` steps of ``O(256 d width)``. The value varies with the seed. Compare probes fitted to
    equally many samples only, and not on the samples they were fitted to.
    """
    part = FitPart.of(features, labels, classes)
    require.at_least(width, "width")
    require.at_least(max_steps, "max_steps")
    held_out = part.held_out(select)
    draw = torch.Generator().manual_seed(seed)
    rows, targets = _tensors(LabeledRows(part.standardized(features), part.codes))
    # The output layer starts at W = 0 and b = log π, so that the first predictions are the class frequencies.
    layers = [
        torch.randn(rows.shape[1], width, generator=draw, dtype=rows.dtype) / part.varying**0.5,
        torch.rand(width, generator=draw, dtype=rows.dtype) * 2 - 1,
        torch.zeros(width, classes, dtype=rows.dtype),
        torch.from_numpy(part.log_prior).to(rows.dtype).clone(),
    ]
    most = _START_STEPS if held_out is None else max_steps
    trained = _trained(layers, (rows, targets), held_out, most, draw)
    factor, loss = 1.0, float("nan")
    if held_out is not None:
        distance = _logits(torch.from_numpy(held_out.z), *trained.layers).double().numpy() - part.log_prior
        factor, loss = best_inverse_temperature(distance, held_out.codes, part.log_prior)
    hidden_weights, hidden_bias, weights, bias = (layer.double().numpy() for layer in trained.layers)
    return HiddenLayerProbe(
        mean=part.mean,
        scale=part.scale,
        log_prior=part.log_prior,
        iterations=trained.steps,
        converged=trained.stopped_early,
        select_cross_entropy=loss,
        hidden_weights=hidden_weights,
        hidden_bias=hidden_bias,
        weights=factor * weights,
        bias=part.log_prior + factor * (bias - part.log_prior),
        inverse_temperature=factor,
        best_iteration=trained.best_step,
    )


@final
@dataclass(frozen=True)
class _Trained:
    """The layers that were kept, the steps taken, the step of these layers, and whether patience ran out."""

    layers: list[Tensor]
    steps: int
    best_step: int
    stopped_early: bool


def _trained(
    layers: list[Tensor],
    data: tuple[Tensor, Tensor],
    held_out: LabeledRows | None,
    limit: int,
    draw: torch.Generator,
) -> _Trained:
    """Train the layers by AdamW; keep the state that is best on the select part, or the last one without it."""
    rows, targets = data
    n = rows.shape[0]
    for layer in layers:
        layer.requires_grad_()
    optimizer = torch.optim.AdamW(
        [{"params": layers[::2], "weight_decay": _DECAY}, {"params": layers[1::2], "weight_decay": 0.0}],
        lr=_LEARNING_RATE,
        fused=True,
    )
    chosen = None if held_out is None else _tensors(held_out)
    between = max(-(-n // _BATCH), 10)  # steps between two evaluations: one pass over the samples, or ten steps
    best, best_step, kept, taken = np.inf, 0, [layer.detach().clone() for layer in layers], 0
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        while taken < limit:
            if order.shape[0] < min(_BATCH, n):
                order = torch.cat([order, torch.randperm(n, generator=draw)])
            batch, order = order[:_BATCH], order[_BATCH:]
            optimizer.zero_grad()
            loss = cross_entropy(_logits(rows[batch], *layers), targets[batch])
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            optimizer.step()
            taken += 1
            if chosen is None or (taken % between and taken < limit):
                continue
            with torch.no_grad():
                now = float(cross_entropy(_logits(chosen[0], *layers).double(), chosen[1]))
            if now < best - _LEAST_GAIN:
                best, best_step, kept = now, taken, [layer.detach().clone() for layer in layers]
            elif taken - best_step >= _PATIENCE * between:
                break
    if chosen is None:
        best_step, kept = taken, [layer.detach() for layer in layers]
    return _Trained(kept, taken, best_step, taken - best_step >= _PATIENCE * between)


def _tensors(rows: LabeledRows) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(rows.z), torch.from_numpy(rows.codes.astype(np.int64))


def _logits(z: Tensor, hidden_weights: Tensor, hidden_bias: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    return gelu(z @ hidden_weights + hidden_bias) @ weights + bias


# ------------------------------------------------------------------------------------------------------ neighbors


def fit_neighbor_probe(
    features: Array,
    labels: Array,
    classes: int,
    *,
    select: tuple[Array, Array] | None = None,
    neighbors: Sequence[int] = NEIGHBORS,
) -> NeighborProbe:
    """Fit the probe of class frequencies among nearest neighbors; choose k and s on the select part.

    The distance is Euclidean between standardized features, in float64. k and s minimize the cross-entropy on the
    select part, over ``neighbors`` and eleven values of ``s / (k + s)`` from 0.01 to 0.99; without a select part the
    largest of both is used. A number of neighbors that the fit part does not have is skipped.

    Cost: ``O(n m d)`` for m samples to predict; the probe keeps the features of the fit part. All features count
    equally in the distance, so many irrelevant ones hide the informative ones. With many features it finds less than a
    linear probe even if the classes are linearly separable.
    """
    part = FitPart.of(features, labels, classes)
    if not neighbors or min(neighbors) < 1:
        raise InputError(f"The numbers of neighbors are {tuple(neighbors)}. Pass at least one, all at least 1.")
    z, codes = part.standardized(features), part.codes.astype(np.int64)
    held_out = part.held_out(select)
    most = z.shape[0] - 1
    if most < 1:
        raise InputError("There is 1 sample to fit the probe to; it needs at least 2.")
    tried = sorted({k for k in neighbors if k <= most} or {most})
    prior = np.exp(part.log_prior)
    k, share, best = tried[-1], _PRIOR_SHARES[-1], float("nan")
    if held_out is not None:
        near = neighbor_labels(
            torch.from_numpy(held_out.z), torch.from_numpy(z), torch.from_numpy(codes), tried[-1]
        ).numpy()
        # Only the frequency of the true class enters the cross-entropy.
        hits = np.cumsum(near == held_out.codes[:, None], axis=1)
        best = np.inf
        for candidate in tried:
            frequency = hits[:, candidate - 1] / candidate
            for weight in _PRIOR_SHARES:
                value = -float(np.log((1 - weight) * frequency + weight * prior[held_out.codes]).mean())
                if value < best:
                    k, share, best = candidate, weight, value
    return NeighborProbe(
        mean=part.mean,
        scale=part.scale,
        log_prior=part.log_prior,
        iterations=0,
        converged=True,
        select_cross_entropy=best,
        rows=z,
        codes=codes,
        neighbors=k,
        strength=k * share / (1 - share),
    )


def neighbor_labels(queries: Tensor, rows: Tensor, codes: Tensor, k: int) -> Tensor:
    """Return the classes ``(m, k)`` of the k nearest of ``rows`` to each query, nearest first; needs more than k rows.

    One row that equals the query is left out, so that values on the fit part are leave-one-out values.

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
            part = queries[start : start + strip].double().contiguous()
            nearest = (squares - 2 * (part @ flat)).topk(k + 1, dim=1, largest=False).indices
            # Rows equal to the query are the first few, if there are any.
            same = torch.zeros_like(nearest, dtype=torch.bool)
            same[:, :_FEW] = (across[nearest[:, :_FEW]] == part[:, None, :]).all(dim=2)
            # A stable sort by whether it is the first equal one moves that to the end and keeps the others in order.
            first = same & (same.cumsum(dim=1) == 1)
            order = first.to(torch.int8).argsort(dim=1, stable=True)[:, :k]
            found.append(codes[nearest.gather(1, order)])
    return torch.cat(found) if found else codes.new_empty(0, k)


def neighbor_frequencies(near: Tensor, prior: Tensor, strength: float) -> Tensor:
    """Return ``(n_c + strength π_c) / (k + strength)``, ``(m, classes)``, for neighbors of classes ``near`` ``(m, k)``.

    Example:
        >>> neighbor_frequencies(torch.tensor([[0, 0, 1]]), torch.tensor([0.5, 0.5]), 1.0)
        tensor([[0.6250, 0.3750]])
    """
    counts = prior.new_zeros(near.shape[0], prior.shape[0])
    counts.scatter_add_(1, near, torch.ones_like(near, dtype=prior.dtype))
    return (counts + strength * prior) / (near.shape[1] + strength)
