"""Maps from wide rows to a few codes, and the candidates among which a reduction chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.reduction.axes import PrincipalAxes, leading_subspace

__all__ = ["Candidate", "CodeMap", "feature_candidates", "linear_candidates", "straightened"]

# Ridges in units of the variance of a standardized column; columns of noise give axes of variance near 1.
_RIDGES = (1e-3, 0.1, 3.0, 30.0)
_FEATURE_RIDGES = (0.3, 1.0, 3.0, 10.0)
_FEATURE_AXES = (2, 4, 8, 16)
_FEATURES = 256
_SLOPE = 0.1
_REACH = 5.0  # factors of products are clipped to ±5 standard deviations: outliers would dominate their covariance
_ROWS_AT_A_TIME = 1024
_DENSE = 160
_SHARED = 150
_TURNING_RIDGE = 1e-3


@final
@dataclass(frozen=True)
class CodeMap:
    """The map from the rows of one side to codes: ``[z, f(z)] D - c`` with the axes ``z = (row - mean) A``.

    Attributes:
        mean: ``(d,)``.
        axes: ``A``, ``(d, q)``, in the units of the columns.
        weight: ``W``, ``(q, h)``, of the features ``f``; ``h = 0`` for linear codes.
        bias: ``b``, ``(h,)``.
        second: ``V``, ``(q, h)`` for the products ``(z W + b) (z V)``, or ``(q, 0)`` for leaky rectified ``z W + b``.
        directions: ``D``, ``(q + h, k)``.
        centre: ``c``, ``(k,)``. The field names are those of the saved state of ``ReducedKSG``.
    """

    mean: Tensor
    axes: Tensor
    weight: Tensor
    bias: Tensor
    second: Tensor
    directions: Tensor
    centre: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the codes ``(n, k)``, float64, of rows ``(n, d)``."""
        if rows.ndim != 2 or rows.shape[1] != self.mean.shape[0]:
            raise InputError(
                f"The samples have shape {tuple(rows.shape)}, but this reduction was fitted to samples of width "
                f"{self.mean.shape[0]}. Fit it to samples of the layer it is applied to."
            )
        layer = _Layer(self.weight.double(), self.bias.double(), self.second.double())
        mean, axes = self.mean.double(), self.axes.double()
        starts = range(0, max(rows.shape[0], 1), _ROWS_AT_A_TIME)
        parts = [layer((rows[i : i + _ROWS_AT_A_TIME].detach().double() - mean) @ axes) for i in starts]
        return torch.cat(parts) @ self.directions.double() - self.centre.double()


@final
@dataclass(frozen=True)
class Candidate:
    """One way to compute codes from both sides' principal coordinates.

    Attributes:
        width: Number of leading axes that enter linearly.
        ridge: Added to the variances before the directions are computed.
        layers: The features beside the axes, one layer per side.
        directions: Of both sides, ``(width + h, k)``.
        centers: Of both sides, ``(k,)``.
        description: In words.
        base: The linear candidate that was straightened into this one, if any; see :func:`straightened`.
    """

    width: int
    ridge: float
    layers: tuple[_Layer, _Layer]
    directions: tuple[Tensor, Tensor]
    centers: tuple[Tensor, Tensor]
    description: str
    base: Candidate | None = None

    @property
    def pairs(self) -> int:
        """Number of pairs of codes."""
        return int(self.directions[0].shape[1])

    def codes(self, coordinates: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the codes ``(n, k)`` of both sides from their principal coordinates."""
        a, b = (
            layer(rows[:, : self.width].double()) @ directions - center
            for rows, layer, directions, center in zip(
                coordinates, self.layers, self.directions, self.centers, strict=True
            )
        )
        return a, b

    def refitted(self, coordinates: Sequence[Tensor], pairs: int, generator: torch.Generator) -> Candidate:
        """Return this candidate with its leading ``pairs`` directions refitted to these rows."""
        if self.base is not None:
            whole = straightened(self.base.refitted(coordinates, self.base.pairs, generator), coordinates, generator)
            return replace(
                whole,
                directions=(whole.directions[0][:, :pairs], whole.directions[1][:, :pairs]),
                centers=(whole.centers[0][:pairs], whole.centers[1][:pairs]),
            )
        solver = _Solver(coordinates, self.width, self.layers, pairs, generator)
        directions, centers = solver.directions(self.ridge)
        return Candidate(self.width, self.ridge, self.layers, directions, centers, self.description)

    def map_of(self, axes: PrincipalAxes, side: int) -> CodeMap:
        """Return the map of one side from raw rows; a linear one as a single matrix."""
        layer, directions, center = self.layers[side], self.directions[side], self.centers[side]
        leading = axes.axes[:, : self.width]
        if layer.features:
            return CodeMap(axes.mean, leading, layer.weight, layer.bias, layer.second, directions, center)
        k = directions.shape[1]
        none = directions.new_zeros(k, 0)
        unit = torch.eye(k, dtype=torch.float64, device=none.device)
        return CodeMap(axes.mean, leading @ directions, none, none.new_zeros(0), none, unit, center)


def linear_candidates(
    sides: Sequence[PrincipalAxes], fit: Sequence[Tensor], most: int, generator: torch.Generator
) -> Iterator[Candidate]:
    """Yield regularized canonical directions of 2, 4, 8 ... leading axes, for four ridges each."""
    n = fit[0].shape[0]
    cross = (fit[0].T @ fit[1]).double() / n
    widest = max(side.rank for side in sides)
    # The directions are the singular vectors of diag(s_x + λ)^-½ C diag(s_y + λ)^-½, with variances s. Principal
    # coordinates are uncorrelated, so there is no matrix to invert, and every width takes a leading block of one C.
    for width in sorted({min(2**power, widest) for power in range(1, 11)}):
        for ridge in _RIDGES:
            w_x, w_y = ((side.variances[:width] + ridge).rsqrt() for side in sides)
            u, v = _singular(w_x[:, None] * cross[:width, :width] * w_y, most, generator)
            directions = (w_x[:, None] * u, w_y[:, None] * v)
            layers = (_Layer.empty(u), _Layer.empty(v))
            centers = (u.new_zeros(u.shape[1]), v.new_zeros(v.shape[1]))
            yield Candidate(width, ridge, layers, directions, centers, f"linear, {width} axes, ridge {ridge:g}")


def feature_candidates(
    sides: Sequence[PrincipalAxes], fit: Sequence[Tensor], most: int, width: int, generator: torch.Generator
) -> Iterator[Candidate]:
    """Yield canonical directions of ``width`` axes beside products or rectified combinations of the leading ones."""
    widest = max(side.rank for side in sides)
    for read in _FEATURE_AXES:
        if read > _FEATURE_AXES[0] and read // 2 >= widest:
            return
        beside = max(width, read)
        for kind in ("products", "rectified combinations"):
            make = _Layer.products if kind == "products" else _Layer.rectified
            first, second = (make(side.variances[:beside], read, generator) for side in sides)
            solved = _Solver(fit, beside, (first, second), most, generator)
            for ridge in _FEATURE_RIDGES:
                description = f"{beside} axes and {kind} of {read}, ridge {ridge:g}"
                yield Candidate(beside, ridge, (first, second), *solved.directions(ridge), description)


def straightened(linear: Candidate, coordinates: Sequence[Tensor], generator: torch.Generator) -> Candidate:
    r"""Return linear codes with the quadratic part of each side removed.

    A smooth map of Gaussian latents shows in the codes as ``a_i ≈ z_i`` plus quadratic terms, and these in the third
    moments :math:`κ_{ijl}` of the white codes: :math:`a_i - \tfrac16 \sum_{jl} κ_{ijl} (a_j a_l - δ_{jl})` removes them
    to first order. Each side is straightened from its rows alone; then the pairs are refitted.
    """
    bends: list[tuple[_Layer, Tensor]] = []
    straight: list[Tensor] = []
    for rows, directions in zip(coordinates, linear.directions, strict=True):
        z = rows[:, : linear.width].double()
        values, vectors = torch.linalg.eigh((z @ directions).T @ (z @ directions) / z.shape[0])
        # Symmetric whitening stays closest to the codes, so that code i remains an estimate of latent i.
        white = directions @ (vectors * values.clamp(min=1e-300).rsqrt()) @ vectors.T
        codes = z @ white
        k = codes.shape[1]
        i, j = torch.triu_indices(k, k)
        layer = _Layer(white[:, i], white.new_zeros(i.shape[0]), white[:, j])
        clipped = codes.clamp(-_REACH, _REACH)
        products = clipped[:, i] * clipped[:, j]
        third = products.T @ codes / z.shape[0]
        # Products with i < j stand for two terms of the sum.
        shift = third * torch.where(i == j, 1.0, 2.0)[:, None].to(third) / -6.0
        bends.append((layer, torch.cat([white, shift])))
        straight.append(codes + products @ shift)
    no_layers = _Layer.empty(straight[0][0]), _Layer.empty(straight[1][0])
    turns, _ = _Solver(straight, straight[0].shape[1], no_layers, linear.pairs, generator).directions(_TURNING_RIDGE)
    (layer_x, map_x), (layer_y, map_y) = bends
    layers = (layer_x, layer_y)
    centers = (straight[0].mean(dim=0) @ turns[0], straight[1].mean(dim=0) @ turns[1])
    turned = (map_x @ turns[0], map_y @ turns[1])
    return Candidate(linear.width, linear.ridge, layers, turned, centers, f"{linear.description}, straightened", linear)


@final
@dataclass(frozen=True)
class _Layer:
    """Features of the leading axes: ``z -> [z, f(z)]``."""

    weight: Tensor
    bias: Tensor
    second: Tensor

    @property
    def features(self) -> int:
        return int(self.weight.shape[1])

    @classmethod
    def empty(cls, like: Tensor) -> _Layer:
        none = like.new_zeros(like.shape[0], 0)
        return cls(none, none.new_zeros(0), none)

    @classmethod
    def products(cls, variances: Tensor, read: int, generator: torch.Generator) -> _Layer:
        """Return all products of two of the first ``read`` axes at unit variance, without random numbers."""
        axes = min(read, variances.shape[0])
        i, j = torch.triu_indices(axes, axes)
        unit = torch.diag(variances.rsqrt())
        return cls(unit[:, i], variances.new_zeros(i.shape[0]), unit[:, j])

    @classmethod
    def rectified(cls, variances: Tensor, read: int, generator: torch.Generator) -> _Layer:
        """Return leaky rectified random combinations of the first ``read`` axes at unit variance."""
        axes = min(read, variances.shape[0])
        drawn = torch.randn(axes + 1, _FEATURES, generator=generator, dtype=torch.float64).to(variances.device)
        weight = variances.new_zeros(variances.shape[0], _FEATURES)
        weight[:axes] = drawn[:axes] / (axes * variances[:axes, None]).sqrt()
        return cls(weight, 0.5 * drawn[axes], variances.new_zeros(variances.shape[0], 0))

    def __call__(self, z: Tensor) -> Tensor:
        if not self.features:
            return z
        inner = (z @ self.weight + self.bias).clamp(-_REACH, _REACH)
        if self.second.shape[1]:
            return torch.cat([z, inner * (z @ self.second).clamp(-_REACH, _REACH)], dim=1)
        return torch.cat([z, torch.nn.functional.leaky_relu(inner, _SLOPE)], dim=1)


@final
class _Solver:
    """Canonical directions of axes and features for any ridge, factored once.

    The linear part of the axes is removed from the features, and the rest is scaled as a whole, so that a ridge affects
    axes and features alike and the number of features does not matter.
    """

    def __init__(
        self,
        coordinates: Sequence[Tensor],
        width: int,
        layers: tuple[_Layer, _Layer],
        most: int,
        generator: torch.Generator,
    ) -> None:
        self.most = most
        self.generator = generator
        self.means: list[Tensor] = []
        self.mixes: list[Tensor] = []
        self.values: list[Tensor] = []
        self.vectors: list[Tensor] = []
        rotated = []
        for rows, layer in zip(coordinates, layers, strict=True):
            inner = layer(rows[:, :width].double())
            mean = inner.mean(dim=0)
            inner = inner - mean
            mix = _without_linear_part(inner, layer.features)
            inner = inner @ mix
            values, vectors = torch.linalg.eigh(inner.T @ inner / inner.shape[0])
            rotated.append(inner @ vectors)
            self.means.append(mean)
            self.mixes.append(mix)
            self.values.append(values.clamp(min=0))
            self.vectors.append(vectors)
        self.cross = rotated[0].T @ rotated[1] / rotated[0].shape[0]

    def directions(self, ridge: float) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        w_x, w_y = ((values + ridge).rsqrt() for values in self.values)
        found = _singular(w_x[:, None] * self.cross * w_y, self.most, self.generator)
        x, y = (
            mix @ (vectors @ (w[:, None] * directions))
            for mix, vectors, w, directions in zip(self.mixes, self.vectors, (w_x, w_y), found, strict=True)
        )
        return (x, y), (self.means[0] @ x, self.means[1] @ y)


def _without_linear_part(inner: Tensor, features: int) -> Tensor:
    """Return the matrix that leaves the axes unchanged and replaces features by their residuals given the axes."""
    width = inner.shape[1] - features
    mix = torch.eye(inner.shape[1], dtype=inner.dtype, device=inner.device)
    if not features:
        return mix
    axes, rest = inner[:, :width], inner[:, width:]
    spread = axes.square().mean(dim=0).sqrt().clamp(min=1e-150)
    unit = axes / spread
    gram = unit.T @ unit / inner.shape[0] + 1e-6 * torch.eye(width, dtype=inner.dtype, device=inner.device)
    slopes = torch.linalg.solve(gram, unit.T @ rest / inner.shape[0])
    residuals = rest - unit @ slopes
    # The total variance is that of as many axes of noise, at most _SHARED. Otherwise many features would outweigh the
    # axes, and one ridge could not suit both.
    scale = (min(features, _SHARED) / residuals.square().mean(dim=0).sum().clamp(min=1e-150)).sqrt()
    mix[:width, width:] = -scale * slopes / spread[:, None]
    mix[width:, width:] *= scale
    return mix


def _singular(matrix: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the leading ``most`` left and right singular vectors."""
    if min(matrix.shape) <= _DENSE:
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :most], v[:most].T
    basis = leading_subspace(matrix, most + 8, generator)
    u, _, v = torch.linalg.svd(matrix @ basis, full_matrices=False)
    return u[:, :most], basis @ v[:most].T
