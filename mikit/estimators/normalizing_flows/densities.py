"""Densities of a teacher's features by normalizing flows, with and without a condition.

:class:`NormalScores` makes each column approximately normal, :class:`FlowPair` contains two densities. The flows come
from zuko, which is imported only here and only when a flow is built.
"""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.core import require
from mikit.core.errors import InputError

__all__ = ["FlowOptions", "FlowPair", "NormalScores"]

_KNOTS = 129
# A column keeps its shape if its distance from the normal distribution, times √n, is below this: normal samples reach
# 0.9 once in twenty times and 1.1 about once in three hundred.
_CLOSE_TO_NORMAL = 1.1
_BINS = 8
# Number of features of the condition that the residual's spline depends on; more of them fit noise.
_CONTEXT = 8
_TRUSTS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_SHRINKAGES = (1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 0.7)
# log σ saturates at ± this, a range that data do not need.
_LOG_SCALE_LIMIT = 7.0
# Rows whose splines are in memory at once where no gradient is needed.
_ROWS_AT_ONCE = 4096


@final
@dataclass(frozen=True)
class FlowOptions:
    """Size of the networks of a :class:`FlowPair`, as in :class:`~mikit.FlowMI`."""

    width: int
    depth: int
    transforms: int
    dropout: float

    def __post_init__(self) -> None:
        for name in ("width", "depth", "transforms"):
            require.at_least(getattr(self, name), name)
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; the fraction of units left out must be in [0, 1).")


@final
class NormalScores(nn.Module):
    """A strictly increasing map of each of ``d`` columns, estimated from samples, that makes it approximately normal.

    A column that looks normal is only standardized. For others the map interpolates linearly between 129 quantiles and
    their normal scores, and continues as a logarithm outside of them. A constant column becomes 0.
    """

    centre: Tensor  # spelled as in saved states
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
    def fit_to(self, rows: Tensor) -> None:
        """Estimate the map from samples ``(n, d)``."""
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        rows = rows.detach().double()
        n = rows.shape[0]
        center = rows.mean(dim=0)
        deviation = (rows - center).square().mean(dim=0).sqrt()
        varies = deviation > torch.finfo(dtype).eps * center.abs()
        scale = torch.where(varies, deviation, 1.0)
        ordered = ((rows - center) / scale).sort(dim=0).values.T.contiguous()
        # About Kolmogorov's distance between a column and the normal distribution. Mapping a column that is already
        # normal would only add the noise of its quantiles.
        ranks = (torch.arange(n, dtype=torch.float64, device=rows.device) + 0.5) / n
        distance = (torch.special.ndtr(ordered) - ranks).abs().amax(dim=1) * n**0.5
        # Knots at equal distances in normal scores: many in the tails, where the quantiles are far apart.
        limit = float(torch.special.ndtri(ranks[-1]))
        levels = torch.special.ndtr(torch.linspace(-limit, limit, _KNOTS, dtype=torch.float64, device=rows.device))
        place = (levels * n - 0.5).clamp(0, n - 1)
        below = place.floor().long()
        knots = torch.lerp(ordered[:, below], ordered[:, (below + 1).clamp(max=n - 1)], place - below)
        # Ties get the middle of their ranks, so that an atom has one score; elsewhere a knot keeps its level.
        before, up_to = torch.searchsorted(ordered, knots), torch.searchsorted(ordered, knots, right=True)
        middle = ((before + up_to) / (2 * n)).clamp(0.5 / n, 1 - 0.5 / n)
        scores = torch.special.ndtri(torch.where(up_to - before > 1, middle, levels))
        self.centre, self.scale = center.to(dtype), scale.to(dtype)
        self.knots, self.scores = knots.to(dtype), scores.to(dtype)
        self.straight = (distance < _CLOSE_TO_NORMAL) | ~varies

    def forward(self, rows: Tensor) -> Tensor:
        """Return the mapped columns, differentiable."""
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
        # New samples may lie far beyond the examples: a logarithm keeps their order and compresses outliers.
        tails = torch.log1p((columns - last).clamp(min=0)) - torch.log1p((first - columns).clamp(min=0))
        return torch.where(self.straight, z, (inside + tails).T)


@final
class FlowPair(nn.Module):
    """Two densities of ``y``: given all columns of a condition, and given its first ``d_known`` columns only.

    With ``w = T(y)``, one flow for both, each density is ``T``'s Jacobian times the density of ``w``: a linear Gaussian
    regression on the condition, whose residual is shifted and scaled by a perceptron of the condition and transformed
    by a spline flow that depends on it. All but the regression starts as the identity.
    """

    def __init__(self, d: int, d_condition: int, d_known: int, options: FlowOptions) -> None:
        super().__init__()
        if min(d, d_condition) < 1:
            raise InputError(
                f"The condition has {d_condition} features and y has {d}; a normalizing flow needs at least 1 of both."
            )
        self.d_known = d_known
        self.condition_map = NormalScores(d_condition)
        self.target_map = NormalScores(d)
        self.whitening = _Affine(d)
        self.bends = nn.ModuleList(_spline(d, 0, backwards=bool(turn % 2)) for turn in range(options.transforms))
        self.mixings = nn.ModuleList(_Mixing(d) for _ in range(options.transforms))
        self.informed = _Residual(d, d_condition, options)
        self.uninformed = _Residual(d, d_known, options)

    @torch.no_grad()
    def start_from(self, condition: Tensor, y: Tensor) -> None:
        """Set the maps, the whitening and both regressions in closed form."""
        # The ratio of the two densities is then that of Gaussians fitted to the mapped columns, close to the Gaussian
        # copula's: training only has to find what that misses.
        self.condition_map.fit_to(condition)
        self.target_map.fit_to(y)
        u, v = self._mapped(condition, y)
        u, v = u.double(), v.double()
        _, root, mean = _regression(v.new_zeros(v.shape[0], 0), v)
        self.whitening.set_to(root, mean)
        w = (v - mean) @ root.T
        self.informed.start_from(u, w)
        self.uninformed.start_from(u[:, : self.d_known], w)

    @torch.no_grad()
    def shrink(self, condition: Tensor, select: tuple[Tensor, Tensor]) -> None:
        """Shrink each perceptron's output toward its mean over the fit part, as far as the select part favors.

        Training stops where both densities together are best, and one of them may have learned noise by then.
        """
        for residual, columns in ((self.informed, condition.shape[1]), (self.uninformed, self.d_known)):
            if not columns:
                continue
            residual.center_on(self.condition_map(condition)[:, :columns])
            losses = []
            for trust in _TRUSTS:
                residual.trust.fill_(trust)
                losses.append(-float(sum(logs.double().mean() for logs in self.log_densities(*select))))
            residual.trust.fill_(_TRUSTS[losses.index(min(losses))])

    def log_densities(self, condition: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-densities of mapped samples, ``(n,)``: given the condition, and given its known columns."""
        if not torch.is_grad_enabled() and y.shape[0] > _ROWS_AT_ONCE:
            parts = [
                self.log_densities(*rows)
                for rows in zip(torch.split(condition, _ROWS_AT_ONCE), torch.split(y, _ROWS_AT_ONCE), strict=True)
            ]
            return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        with torch.autocast(y.device.type, enabled=False):
            # The Jacobians of T are the same in both densities and cancel in their ratio, so T only has to make the
            # regressions easy. They are kept because the losses of both are minimized together: without them, T could
            # lower both losses by shrinking w.
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
    """``(v - mean) rootᵀ`` with a lower triangular ``root``; both are set in closed form."""

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
    """A learned linear map ``L U w`` with unit lower ``L`` and upper ``U`` of positive diagonal; starts as identity.

    The factors make it invertible, and its log-determinant a sum.
    """

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
    """The log-density of ``w`` given a condition, which may have no columns.

    The perceptron ``says`` predicts shift, log-scale and spline parameters of the residual; without a condition they
    are the learned ``constant``. (These names, and ``centre``, are part of saved states.)
    """

    slope: Tensor
    trust: Tensor
    centre: Tensor

    def __init__(self, d: int, d_condition: int, options: FlowOptions) -> None:
        super().__init__()
        width = options.width
        self.d = d
        self.d_condition = d_condition
        self.register_buffer("slope", torch.zeros(d_condition, d))
        self.scaling = _Affine(d)
        outputs = 2 * d + _CONTEXT
        self.register_buffer("trust", torch.ones(()))
        self.register_buffer("centre", torch.zeros(outputs))
        if d_condition:
            layers: list[nn.Module] = []
            for index in range(options.depth):
                layers += [nn.Linear(width if index else d_condition, width), nn.SiLU(), nn.Dropout(options.dropout)]
            head = nn.Linear(width, outputs)
            # Shift and log-scale start at 0: the Gaussian solution. The other outputs need not, because the spline
            # starts as the identity for any context.
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

    def center_on(self, u: Tensor) -> None:
        rows = torch.split(u.to(self.centre.dtype), _ROWS_AT_ONCE)
        self.centre.copy_(sum(self.says(part).double().sum(dim=0) for part in rows) / u.shape[0])

    def forward(self, u: Tensor, w: Tensor) -> Tensor:
        if self.d_condition:
            outputs = torch.lerp(self.centre, self.says(u), self.trust)
        else:
            outputs = self.constant.expand(w.shape[0], -1)
        shift, log_scale, context = outputs[:, : self.d], outputs[:, self.d : 2 * self.d], outputs[:, 2 * self.d :]
        log_scale = log_scale / (1 + log_scale.abs() / _LOG_SCALE_LIMIT)
        residual, volume = self.scaling(w - u @ self.slope)
        residual = (residual - shift) * torch.exp(-log_scale)
        residual, bent = self.bend(context).call_and_ladj(residual)
        normal = -0.5 * residual.square().sum(dim=1) - 0.5 * self.d * math.log(2 * math.pi)
        density: Tensor = normal + bent + volume - log_scale.sum(dim=1)
        return density


def _regression(u: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return slope, whitening root of the residual and mean of the regression of ``w`` on ``u``, in float64.

    The joint covariance is shrunk toward its diagonal by the amount that predicts every fifth row best from the others.
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
    # A constant column has no variance to shrink to; it gets 1 and predicts nothing.
    covariance = (1 - amount) * covariance + torch.diag(torch.where(variance > 0, amount * variance, 1.0))
    slope = torch.linalg.solve(covariance[:k, :k], covariance[:k, k:])
    left = covariance[k:, k:] - covariance[k:, :k] @ slope
    # The inverse of a Cholesky factor is triangular: its log-determinant is a sum over the diagonal.
    root = torch.linalg.inv(torch.linalg.cholesky((left + left.T) / 2))
    return slope, root, mean[k:] - mean[:k] @ slope


def _spline(d: int, context: int, *, backwards: bool = False) -> nn.Module:
    """Return zuko's autoregressive rational-quadratic spline transform of ``d`` columns; it starts as the identity."""
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
    # Splines whose parameters are all 0 are the identity.
    with torch.no_grad():
        for parameter in layers[-1].parameters() if layers else transform.parameters():
            parameter.zero_()
    return transform


def _zuko_parts() -> tuple[Any, Any]:
    """Return zuko's autoregressive transform and its spline; leave torch's distributions unchanged.

    When it is imported, zuko disables the validation of all of torch's distributions. Only its transforms are used
    here, and they do not depend on that.
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
