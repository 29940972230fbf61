"""Densities of a teacher's rows by normalising flows, with and without a condition; no measure of their own.

:class:`NormalScores` brings columns into the shape of a normal law, :class:`FlowPair` holds the two densities whose
ratio is read. Flows come from zuko, which is imported only here and only when a flow is built.
"""

from __future__ import annotations

import importlib
import math
import sys
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError

__all__ = ["FlowPair", "NormalScores"]

_KNOTS = 129
# A column keeps its own shape where its distance from the normal law, times √n, is below this: normal samples reach
# 0.9 once in twenty times and 1.1 about once in three hundred.
_CLOSE_TO_NORMAL = 1.1
_BINS = 8
# Numbers by which a condition bends the residual; more of them fit noise.
_CONTEXT = 8
_TRUSTS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_SHRINKAGES = (1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 0.7)
# log σ is bent so that it stays within ± this, which no data call for.
_LOG_SCALE_LIMIT = 7.0
# Rows whose splines are held at once where no gradient is needed.
_ROWS_AT_ONCE = 4096


@final
class NormalScores(nn.Module):
    """A strictly rising map of each column, taken from example rows, after which the column is close to normal.

    A column that looks normal is only standardised. Another goes through straight lines between 129 of its quantiles
    and their normal scores, and continues as a logarithm outside of them. A constant column becomes 0.

    Args:
        d: Columns.
    """

    centre: Tensor
    scale: Tensor
    knots: Tensor
    scores: Tensor
    straight: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        line = torch.linspace(-3.0, 3.0, _KNOTS).expand(d, -1).clone()
        self.register_buffer("centre", torch.zeros(d))
        self.register_buffer("scale", torch.ones(d))
        self.register_buffer("knots", line)
        self.register_buffer("scores", line.clone())
        self.register_buffer("straight", torch.ones(d, dtype=torch.bool))

    @torch.no_grad()
    def taken_from(self, rows: Tensor) -> None:
        """Take the map from example rows ``(n, d)``."""
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        rows = rows.detach().double()
        n = rows.shape[0]
        centre = rows.mean(dim=0)
        deviation = (rows - centre).square().mean(dim=0).sqrt()
        scale = torch.where(deviation > torch.finfo(dtype).eps * centre.abs(), deviation, 1.0)
        ordered = ((rows - centre) / scale).sort(dim=0).values.T.contiguous()
        ranks = (torch.arange(n, dtype=torch.float64, device=rows.device) + 0.5) / n
        distance = (torch.special.ndtr(ordered) - ranks).abs().amax(dim=1) * n**0.5
        limit = float(torch.special.ndtri(ranks[-1]))
        levels = torch.special.ndtr(torch.linspace(-limit, limit, _KNOTS, dtype=torch.float64, device=rows.device))
        place = (levels * n - 0.5).clamp(0, n - 1)
        below = place.floor().long()
        knots = torch.lerp(ordered[:, below], ordered[:, (below + 1).clamp(max=n - 1)], place - below)
        # Ties share the middle of their ranks, so that an atom has one score; elsewhere a knot keeps its own level.
        before, up_to = torch.searchsorted(ordered, knots), torch.searchsorted(ordered, knots, right=True)
        middle = ((before + up_to) / (2 * n)).clamp(0.5 / n, 1 - 0.5 / n)
        scores = torch.special.ndtri(torch.where(up_to - before > 1, middle, levels))
        self.centre, self.scale = centre.to(dtype), scale.to(dtype)
        self.knots, self.scores = knots.to(dtype), scores.to(dtype)
        self.straight = (distance < _CLOSE_TO_NORMAL) | (deviation <= torch.finfo(dtype).eps * centre.abs())

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows with every column mapped, differentiable."""
        z = (rows - self.centre) / self.scale
        if bool(self.straight.all()):
            return z
        columns = z.T.contiguous()
        knots, scores = self.knots.to(z.dtype), self.scores.to(z.dtype)
        right = torch.searchsorted(knots, columns.detach()).clamp(1, _KNOTS - 1)
        left_knot, right_knot = knots.gather(1, right - 1), knots.gather(1, right)
        left_score, right_score = scores.gather(1, right - 1), scores.gather(1, right)
        width = right_knot - left_knot
        slope = torch.where(width > 0, (right_score - left_score) / torch.where(width > 0, width, 1.0), 0.0)
        first, last = knots[:, :1], knots[:, -1:]
        inside = left_score + slope * (torch.minimum(torch.maximum(columns, first), last) - left_knot)
        tails = torch.log1p((columns - last).clamp(min=0)) - torch.log1p((first - columns).clamp(min=0))
        return torch.where(self.straight, z, (inside + tails).T)


@final
class FlowPair(nn.Module):
    """Two densities of ``y``: given all columns of a condition, and given its first columns only.

    With ``w = T(y)``, one flow for both, each density is ``T``'s Jacobian times the density of ``w``: a linear Gaussian
    regression on the condition, whose residual is shifted and scaled by a perceptron of the condition and bent by a
    spline flow that knows it. All but the regression starts as the identity, so the start is the Gaussian answer. In
    the ratio of the two the Jacobian cancels.

    Args:
        d: Columns of ``y``.
        d_condition: Columns of the condition.
        d_known: How many of them, the first ones, both densities know; 0 for an unconditional second density.
        width: Hidden units per layer of the perceptrons.
        depth: Their hidden layers.
        transforms: Spline transforms in ``T``.
        dropout: Share of hidden units left out in training.
    """

    def __init__(
        self, d: int, d_condition: int, d_known: int, *, width: int, depth: int, transforms: int, dropout: float
    ) -> None:
        super().__init__()
        if min(d, d_condition, width, depth, transforms) < 1:
            raise InputError(
                "A flow needs at least one column on each side, and width, depth and transforms of at least 1; there "
                f"are {d_condition} and {d} columns, width is {width}, depth {depth} and transforms {transforms}."
            )
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}; the share of units left out must lie in [0, 1).")
        self.d_known = d_known
        self.condition_map = NormalScores(d_condition)
        self.target_map = NormalScores(d)
        self.whitening = _Affine(d)
        self.bends = nn.ModuleList(_spline(d, 0, backwards=bool(turn % 2)) for turn in range(transforms))
        self.mixings = nn.ModuleList(_Mixing(d) for _ in range(transforms))
        self.informed = _Residual(d, d_condition, width=width, depth=depth, dropout=dropout)
        self.uninformed = _Residual(d, d_known, width=width, depth=depth, dropout=dropout)

    @torch.no_grad()
    def start_from(self, condition: Tensor, y: Tensor) -> None:
        """Take the maps, the whitening and both regressions from example rows."""
        self.condition_map.taken_from(condition)
        self.target_map.taken_from(y)
        u, v = self._mapped(condition, y)
        u, v = u.double(), v.double()
        root, mean = _regression(v.new_zeros(v.shape[0], 0), v)[1:]
        self.whitening.set_to(root, mean)
        w = (v - mean) @ root.T
        self.informed.start_from(u, w)
        self.uninformed.start_from(u[:, : self.d_known], w)

    @torch.no_grad()
    def settle(self, condition: Tensor, y: Tensor, select: tuple[Tensor, Tensor]) -> None:
        """Draw what each perceptron says to its mean over the fit rows, by what describes the select rows best.

        Training stops where both densities together are best, and one of them may have learned noise by then.
        """
        for residual, columns in ((self.informed, condition.shape[1]), (self.uninformed, self.d_known)):
            if not columns:
                continue
            residual.centre_on(self.condition_map(condition)[:, :columns])
            losses = []
            for trust in _TRUSTS:
                residual.trust.fill_(trust)
                losses.append(-float(sum(logs.double().mean() for logs in self.log_densities(*select))))
            residual.trust.fill_(_TRUSTS[losses.index(min(losses))])

    def log_densities(self, condition: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return both log-densities of each mapped row, ``(n,)``: given the condition, and given its known columns."""
        if not torch.is_grad_enabled() and y.shape[0] > _ROWS_AT_ONCE:
            parts = [
                self.log_densities(*rows)
                for rows in zip(torch.split(condition, _ROWS_AT_ONCE), torch.split(y, _ROWS_AT_ONCE), strict=True)
            ]
            return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        with torch.autocast(y.device.type, enabled=False):
            u, w = self._mapped(condition, y)
            w, volume = self.whitening(w)
            for bend, mixing in zip(self.bends, self.mixings, strict=True):
                w, bent = bend(None).call_and_ladj(w)
                w, mixed = mixing(w)
                volume = volume + bent + mixed
            return volume + self.informed(u, w), volume + self.uninformed(u[:, : self.d_known], w)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return matrices in one group and vectors in another with ``weight_decay=0``."""
        matrices = [p for p in self.parameters() if p.ndim > 1]
        return [{"params": matrices}, {"params": [p for p in self.parameters() if p.ndim <= 1], "weight_decay": 0.0}]

    def _mapped(self, condition: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        dtype = self.whitening.root.dtype
        return self.condition_map(condition).to(dtype), self.target_map(y).to(dtype)


class _Affine(nn.Module):
    """``(v - mean) root^T``, with buffers set in closed form."""

    mean: Tensor
    root: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("root", torch.eye(d))

    def set_to(self, root: Tensor, mean: Tensor) -> None:
        self.root.copy_(root)
        self.mean.copy_(mean)

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        volume: Tensor = self.root.diagonal().log().sum()
        return (v - self.mean) @ self.root.T, volume


class _Mixing(nn.Module):
    """A learned linear map ``L U w`` with unit lower ``L`` and upper ``U`` of positive diagonal; starts as identity."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.entries = nn.Parameter(torch.zeros(d, d))
        self.offset = nn.Parameter(torch.zeros(d))

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        diagonal = self.entries.diagonal()
        lower = self.entries.tril(-1) + torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
        upper = self.entries.triu(1) + torch.diag(diagonal.exp())
        return w @ (lower @ upper).T + self.offset, diagonal.sum()


class _Residual(nn.Module):
    """The log-density of ``w`` given a condition, which may have no columns: then what it would say is learned."""

    slope: Tensor
    trust: Tensor
    centre: Tensor

    def __init__(self, d: int, d_condition: int, *, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.d = d
        self.d_condition = d_condition
        self.register_buffer("slope", torch.zeros(d_condition, d))
        self.scaling = _Affine(d)
        outputs = 2 * d + _CONTEXT
        self.register_buffer("trust", torch.ones(()))
        self.register_buffer("centre", torch.zeros(outputs))
        if d_condition:
            layers: list[nn.Module] = []
            for index in range(depth):
                layers += [nn.Linear(d_condition if index == 0 else width, width), nn.SiLU(), nn.Dropout(dropout)]
            head = nn.Linear(width, outputs)
            nn.init.zeros_(head.weight[: 2 * d])
            nn.init.zeros_(head.bias)
            self.says = nn.Sequential(*layers, head)
        else:
            self.constant = nn.Parameter(torch.zeros(outputs))
        self.bend = _spline(d, _CONTEXT)

    def start_from(self, u: Tensor, w: Tensor) -> None:
        slope, root, mean = _regression(u, w)
        self.slope.copy_(slope)
        self.scaling.set_to(root, mean)
        self.trust.fill_(1.0)

    def centre_on(self, u: Tensor) -> None:
        rows = torch.split(u.to(self.centre.dtype), _ROWS_AT_ONCE)
        self.centre.copy_(sum(self.says(part).double().sum(dim=0) for part in rows) / u.shape[0])

    def forward(self, u: Tensor, w: Tensor) -> Tensor:
        if self.d_condition:
            said = torch.lerp(self.centre, self.says(u), self.trust)
        else:
            said = self.constant.expand(w.shape[0], -1)
        shift, log_scale, context = said[:, : self.d], said[:, self.d : 2 * self.d], said[:, 2 * self.d :]
        log_scale = log_scale / (1 + log_scale.abs() / _LOG_SCALE_LIMIT)
        residual, volume = self.scaling(w - u @ self.slope)
        residual = (residual - shift) * torch.exp(-log_scale)
        residual, bent = self.bend(context).call_and_ladj(residual)
        normal = -0.5 * residual.square().sum(dim=1) - 0.5 * self.d * math.log(2 * math.pi)
        density: Tensor = normal + bent + volume - log_scale.sum(dim=1)
        return density


def _regression(u: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return slope, whitening root of the residual and mean of the regression of ``w`` on ``u``, in float64.

    The joint correlation matrix is drawn to the identity by the amount that predicts every fifth row best.
    """
    n = w.shape[0]
    held = torch.arange(n, device=w.device) % 5 == 0
    best, amount = math.inf, _SHRINKAGES[-1]
    for candidate in _SHRINKAGES if n >= 10 else ():
        slope, root, mean = _shrunk_regression(u[~held], w[~held], candidate)
        residual = (w[held] - mean - u[held] @ slope) @ root.T
        loss = float(0.5 * residual.square().sum(dim=1).mean() - root.diagonal().log().sum())
        if loss < best:
            best, amount = loss, candidate
    return _shrunk_regression(u, w, amount)


def _shrunk_regression(u: Tensor, w: Tensor, amount: float) -> tuple[Tensor, Tensor, Tensor]:
    k = u.shape[1]
    joint = torch.cat([u, w], dim=1)
    mean = joint.mean(dim=0)
    covariance = (joint - mean).T @ (joint - mean) / joint.shape[0]
    variance = covariance.diagonal()
    # A constant column has no variance to draw to; it gets 1 and says nothing.
    covariance = (1 - amount) * covariance + torch.diag(torch.where(variance > 0, amount * variance, 1.0))
    slope = torch.linalg.solve(covariance[:k, :k], covariance[:k, k:])
    left = covariance[k:, k:] - covariance[k:, :k] @ slope
    root = torch.linalg.inv(torch.linalg.cholesky((left + left.T) / 2))
    return slope, root, mean[k:] - mean[:k] @ slope


def _spline(d: int, context: int, *, backwards: bool = False) -> nn.Module:
    """Return zuko's autoregressive rational-quadratic spline transform of ``d`` columns, started as the identity."""
    autoregressive, spline = _zuko_parts()
    order = torch.arange(d).flip(0) if backwards else torch.arange(d)
    transform: nn.Module = autoregressive(
        d,
        context,
        order=order if d > 1 else None,
        univariate=partial(spline, slope=1e-3),
        shapes=[(_BINS,), (_BINS,), (_BINS - 1,)],
        **({"hidden_features": (64,), "activation": nn.SiLU} if d > 1 or context else {}),
    )
    layers = [module for module in transform.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for parameter in layers[-1].parameters() if layers else transform.parameters():
            parameter.zero_()
    return transform


def _zuko_parts() -> tuple[Any, Any]:
    """Return zuko's autoregressive transform and its spline; leave torch's distributions as they were.

    zuko turns the validation of all of torch's distributions off when it is imported. Only its transforms are used
    here, which do not depend on that.
    """
    if "zuko" in sys.modules:
        from zuko.flows.autoregressive import MaskedAutoregressiveTransform
        from zuko.transforms import MonotonicRQSTransform

        return MaskedAutoregressiveTransform, MonotonicRQSTransform
    shared = torch.distributions.Distribution
    kept = {name: vars(shared)[name] for name in ("_validate_args", "arg_constraints")}
    try:
        importlib.import_module("zuko")
    finally:
        for name, value in kept.items():
            setattr(shared, name, value)
    return _zuko_parts()
