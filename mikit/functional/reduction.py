"""From thousands of columns to the few directions in which two samples say something of each other.

Each side is standardised and turned to its principal axes; regularised canonical correlations among the leading axes,
and among simple functions of them, propose pairs of codes. How many axes, how much regularisation, which functions and
how many pairs is decided on other rows, by how well the codes tell a row's own partner from those of all other rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from mikit.errors import InputError
from mikit.functional.axes import PrincipalAxes, leading_subspace
from mikit.inputs import refuse_non_finite
from mikit.rows import require_paired

__all__ = ["CodeMap", "Reduction", "contrast_evidence", "informative_directions"]

# Ridges in units of the variance of one standardised column; a column of noise makes an axis of variance near 1.
_RIDGES = (1e-3, 0.1, 3.0, 30.0)
_FEATURE_RIDGES = (0.03, 0.3, 2.0)
_FEATURE_AXES = (2, 4, 8, 16)
_FEATURES = 256
_SLOPE = 0.1
# Select rows that take part in the contrast; more would only cost time.
_CONTRASTED = 1200
_STRIP = 1024
_STRONGEST = 1 - 1e-7


@final
@dataclass(frozen=True)
class CodeMap:
    """What turns the rows of one side into codes: an affine map, or one hidden layer of fixed features on top of it.

    Attributes:
        mean: Column means ``(d,)``.
        axes: ``(d, q)``: principal axes in the units of the columns; for a linear map the directions themselves.
        weight: ``(q, h)``: of the features; ``h = 0`` for a linear map.
        bias: ``(h,)``.
        centre: ``(q + h,)``: what is subtracted before the directions; zeros for a linear map.
        directions: ``(q + h, k)``; codes of the fit rows have about unit variance.
    """

    mean: Tensor
    axes: Tensor
    weight: Tensor
    bias: Tensor
    centre: Tensor
    directions: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the codes ``(n, k)``, float64, of rows ``(n, d)``.

        Raises:
            InputError: If the rows are not as wide as those the map was found on.
        """
        if rows.ndim != 2 or rows.shape[1] != self.mean.shape[0]:
            raise InputError(
                f"The rows have shape {tuple(rows.shape)}, but this reduction was found on rows of width "
                f"{self.mean.shape[0]}. Find it on rows of the layer it is used on."
            )
        axes = self.axes.double()
        strips = range(0, max(rows.shape[0], 1), _STRIP)
        inner = torch.cat([(rows[i : i + _STRIP].detach().double() - self.mean) @ axes for i in strips])
        return (
            _with_features(inner, self.weight.double(), self.bias.double()) - self.centre
        ) @ self.directions.double()


@final
@dataclass(frozen=True)
class Reduction:
    """A pair of code maps and the evidence by which they were chosen.

    Attributes:
        map_x: The student's map.
        map_y: The teacher's map.
        correlations: Of the pairs of codes on the select rows, ``(k,)``.
        evidence: The contrast on the select rows, in nats; see :func:`contrast_evidence`.
        description: What was chosen, in words.
    """

    map_x: CodeMap
    map_y: CodeMap
    correlations: Tensor
    evidence: float
    description: str

    @property
    def pairs(self) -> int:
        """How many pairs of codes there are."""
        return int(self.correlations.shape[0])

    def codes(self, x: Tensor) -> Tensor:
        """Return the student's codes ``(n, k)``, float64."""
        return self.map_x(x)

    def codes_y(self, y: Tensor) -> Tensor:
        """Return the teacher's codes ``(n, k)``, float64."""
        return self.map_y(y)


def informative_directions(
    x_fit: Tensor,
    y_fit: Tensor,
    x_select: Tensor,
    y_select: Tensor,
    *,
    most: int = 16,
    nonlinear: bool = True,
    generator: torch.Generator | None = None,
) -> Reduction:
    r"""Find the few pairs of directions in which wide rows ``(n, d_x)``, ``(n, d_y)`` say something of each other.

    Formula: with the leading ``q`` principal axes of each side, of variances :math:`s_i`, the singular vectors of
    :math:`\operatorname{diag}(s_x + λ)^{-1/2} C_{xy} \operatorname{diag}(s_y + λ)^{-1/2}`; with ``nonlinear`` also the
    regularised canonical directions of leaky-ReLU features of the leading axes. ``q``, ``λ``, the kind and the number
    of pairs ``k <= most`` maximise :func:`contrast_evidence` on the select rows.

    Args:
        x_fit: Student rows that propose directions.
        y_fit: Teacher rows, paired with them.
        x_select: Other student rows, which choose.
        y_select: Their teacher rows.
        most: Pairs of codes at most.
        nonlinear: Whether features that are not linear may be chosen.
        generator: Where the weights of the features, and the start of the subspace iteration for more than 1,200 rows
            and columns, come from; a generator with seed 0 if None.

    Returns:
        A frozen :class:`Reduction`; ``codes`` and ``codes_y`` map further rows. Of the directions proposed by the fit
        rows all are functions of those rows alone, so the codes of rows in neither part are as good as new.

    Raises:
        InputError: If rows do not pair up or match in width, are fewer than 4, or hold NaN or infinity.

    Cost:
        ``O(n d min(n, d))`` time up to 1,200 rows or columns and ``O(512 n d)`` above, plus some forty candidates of
        ``O(m²)`` on ``m <= 1,200`` select rows: about 2 seconds for 3,200 rows of 1,000 columns on one thread, 8 for
        4,096 columns. Memory: one float32 copy of each side.

    Pitfalls:
        Directions of little variance beyond the leading 512 axes are not seen where there are more than 1,200 rows and
        columns. The evidence is the best of many candidates, hence a little high: quote what other rows say. Pairs
        uncorrelated with each other need not be independent.

    Source:
        Hotelling's canonical correlations with a ridge (Vinod, 1976) on principal axes; random features after Rahimi
        and Recht (2008); the use, codes that a nonparametric estimator reads, after Gowri et al. (2024), "Approximating
        mutual information of high-dimensional variables using learned representations". The choice by a contrast is
        ours.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.randn(600, 2, generator=g)
        >>> w = 0.8 * z + 0.6 * torch.randn(600, 2, generator=g)
        >>> x = z @ torch.randn(2, 50, generator=g) + torch.randn(600, 50, generator=g)
        >>> y = w @ torch.randn(2, 40, generator=g) + torch.randn(600, 40, generator=g)
        >>> found = informative_directions(x[:400], y[:400], x[400:], y[400:], generator=g)
        >>> found.pairs, found.codes(x).shape
        (2, torch.Size([600, 2]))
    """
    _require(x_fit, y_fit, x_select, y_select, most)
    drawn = torch.Generator().manual_seed(0) if generator is None else generator
    sides = [PrincipalAxes.of(fit, drawn) for fit in (x_fit, y_fit)]
    if min(side.rank for side in sides) == 0:
        map_x, map_y = (_linear(side, side.mean.new_zeros(0, 0)) for side in sides)
        return Reduction(map_x, map_y, torch.zeros(0, dtype=torch.float64), 0.0, "a side that never varies")
    fit = [side.project(rows) for side, rows in zip(sides, (x_fit, y_fit), strict=True)]
    select = [side.project(rows[:_CONTRASTED]) for side, rows in zip(sides, (x_select, y_select), strict=True)]
    coarse = [k for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if k < most] + [most]
    best: tuple[float, _Candidate] | None = None
    for candidate in _candidates(sides, fit, most, nonlinear, drawn):
        evidence = contrast_evidence(*candidate.codes(select), coarse)
        highest = max(evidence) if evidence else -math.inf
        if best is None or highest > best[0]:
            best = (highest, candidate)
    assert best is not None
    candidate = best[1]
    a, b = candidate.codes(select)
    evidence = contrast_evidence(a, b, range(1, a.shape[1] + 1))
    k = 1 + max(range(len(evidence)), key=evidence.__getitem__)
    return Reduction(
        candidate.map_of(sides[0], 0, k),
        candidate.map_of(sides[1], 1, k),
        _correlations(a[:, :k], b[:, :k])[2],
        evidence[k - 1],
        f"{candidate.description}, {k} {'pair' if k == 1 else 'pairs'}",
    )


def contrast_evidence(a: Tensor, b: Tensor, pairs: Sequence[int]) -> list[float]:
    r"""How well the first ``k`` pairs of codes tell a row's own partner from all others, for each ``k`` in ``pairs``.

    Formula: InfoNCE in both directions with the Gaussian score :math:`\sum_{i\le k} [ρ_i a_i b_i -
    ρ_i^2 (a_i^2 + b_i^2)/2] / (1 - ρ_i^2)` on standardised codes, less ``k / n`` for the ``k`` correlations, which come
    from the same rows. A pair that repeats what others say, as a code and its square do, lowers it: the sum of the
    pairs' own informations would count it twice.

    Args:
        a: Codes ``(n, k)`` of rows that did not shape them.
        b: Their partners' codes ``(n, k)``.
        pairs: Rising numbers of pairs; those above ``k`` are left out.

    Returns:
        One value in nats for each, at most ``log n``.

    Raises:
        InputError: If the codes differ in shape.

    Cost:
        ``O(n² (k + len(pairs)))`` time and ``O(n²)`` memory.

    Pitfalls:
        A lower bound on the information of the codes up to the reuse of the rows for ``ρ``; pressed together near
        ``log n``. It ranks reductions and is not meant as the estimate.

    Source:
        van den Oord, Li, Vinyals, 2018, for the bound; the Gaussian score is the log-ratio of canonical pairs.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> a = torch.randn(500, 2, generator=g)
        >>> b = torch.cat([0.9 * a[:, :1] + 0.436 * torch.randn(500, 1, generator=g), a[:, 1:].flip(0)], dim=1)
        >>> one, two = contrast_evidence(a, b, (1, 2))  # the second pair is independent; the truth is 0.83 nats
        >>> 0.7 < one < 0.9, two < one + 0.01
        (True, True)
    """
    if a.shape != b.shape or a.ndim != 2:
        raise InputError(f"The codes have shapes {tuple(a.shape)} and {tuple(b.shape)}; they must be equal, (n, k).")
    n = a.shape[0]
    a, b, rho = _correlations(a, b)
    gain = (rho / (1 - rho.square())).float()
    loss = -0.5 * rho.float() * gain
    a, b = a.float(), b.float()
    scores, done, found = torch.zeros(n, n, device=a.device), 0, []
    for k in (k for k in pairs if k <= a.shape[1]):
        new_a, new_b = a[:, done:k], b[:, done:k]
        scores.addmm_(new_a * gain[done:k], new_b.T)
        scores += (new_a.square() @ loss[done:k])[:, None] + new_b.square() @ loss[done:k]
        normalisers = torch.logsumexp(scores, 0) + torch.logsumexp(scores, 1)
        found.append(float((scores.diagonal() - 0.5 * normalisers).double().mean()) + math.log(n) - k / n)
        done = k
    return found


@final
@dataclass(frozen=True)
class _Candidate:
    """Directions for both sides, among the leading axes and possibly features of them."""

    directions: tuple[Tensor, Tensor]
    features: tuple[CodeMap, CodeMap] | None
    description: str

    def codes(self, projected: list[Tensor]) -> tuple[Tensor, Tensor]:
        found = []
        for side in (0, 1):
            inner = projected[side].double()
            if self.features is not None:
                shape = self.features[side]
                inner = _with_features(inner[:, : shape.weight.shape[0]], shape.weight, shape.bias) - shape.centre
            found.append(inner[:, : self.directions[side].shape[0]] @ self.directions[side])
        return found[0], found[1]

    def map_of(self, side: PrincipalAxes, index: int, k: int) -> CodeMap:
        directions = self.directions[index][:, :k]
        if self.features is None:
            return _linear(side, directions)
        shape = self.features[index]
        return replace(shape, mean=side.mean, axes=side.axes[:, : shape.weight.shape[0]], directions=directions)


def _candidates(
    sides: list[PrincipalAxes], fit: list[Tensor], most: int, nonlinear: bool, generator: torch.Generator
) -> Iterator[_Candidate]:
    n = fit[0].shape[0]
    first, second = sides
    cross = (fit[0].T @ fit[1]).double() / n
    widest = max(first.rank, second.rank)
    for q in sorted({min(2**power, widest) for power in range(1, 11)}):
        for ridge in _RIDGES:
            s_x, s_y = first.variances[:q], second.variances[:q]
            w_x, w_y = (s_x + ridge).rsqrt(), (s_y + ridge).rsqrt()
            u, v = _singular(w_x[:, None] * cross[:q, :q] * w_y, most, generator)
            description = f"linear codes of {q} axes, ridge {ridge:g}"
            yield _Candidate((w_x[:, None] * u, w_y[:, None] * v), None, description)
    if not nonlinear:
        return
    for q in _FEATURE_AXES:
        if q > 2 and q // 2 >= widest:
            return
        layers = [_features(side, projected[:, :q], generator) for side, projected in zip(sides, fit, strict=True)]
        inner = [
            _with_features(projected[:, :q].double(), layer.weight, layer.bias) - layer.centre
            for projected, layer in zip(fit, layers, strict=True)
        ]
        own = [torch.linalg.eigh(one.T @ one / n) for one in inner]
        cross_features = own[0][1].T @ (inner[0].T @ inner[1] / n) @ own[1][1]
        for ridge in _FEATURE_RIDGES:
            whiten = [vectors * (values.clamp(min=0) + ridge).rsqrt() for values, vectors in own]
            w = [(values.clamp(min=0) + ridge).rsqrt() for values, _ in own]
            u, v = _singular(w[0][:, None] * cross_features * w[1], most, generator)
            description = f"codes of {_FEATURES} features of {q} axes, ridge {ridge:g}"
            yield _Candidate((whiten[0] @ u, whiten[1] @ v), (layers[0], layers[1]), description)


def _linear(side: PrincipalAxes, directions: Tensor) -> CodeMap:
    """Return the linear map with these directions among the leading axes, multiplied out."""
    axes = side.axes[:, : directions.shape[0]] @ directions
    k = axes.shape[1]
    unit = torch.eye(k, dtype=torch.float64, device=axes.device)
    return CodeMap(side.mean, axes, axes.new_zeros(k, 0), axes.new_zeros(0), axes.new_zeros(k), unit)


def _features(side: PrincipalAxes, projected: Tensor, generator: torch.Generator) -> CodeMap:
    """Return random leaky-ReLU features of the leading axes, brought to unit variance."""
    q = projected.shape[1]
    weight = torch.randn(q, _FEATURES, generator=generator, dtype=torch.float64) / q**0.5
    bias = 0.5 * torch.randn(_FEATURES, generator=generator, dtype=torch.float64)
    weight = weight.to(projected.device) / side.variances[:q, None].sqrt()
    bias = bias.to(projected.device)
    centre = _with_features(projected.double(), weight, bias).mean(dim=0)
    return CodeMap(side.mean, side.axes[:, :0], weight, bias, centre, weight.new_zeros(q + _FEATURES, 0))


def _with_features(inner: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.shape[1] == 0:
        return inner
    return torch.cat([inner, torch.nn.functional.leaky_relu(inner @ weight + bias, _SLOPE)], dim=1)


def _correlations(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return both sides with standardised columns, and the correlation of each pair."""
    a, b = (code.double() - code.double().mean(dim=0) for code in (a, b))
    a, b = (code / code.square().mean(dim=0).sqrt().clamp(min=1e-150) for code in (a, b))
    return a, b, (a * b).mean(dim=0).clamp(-_STRONGEST, _STRONGEST)


def _singular(matrix: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the leading ``most`` left and right singular vectors."""
    if min(matrix.shape) <= 160:
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :most], v[:most].T
    basis = leading_subspace(matrix, most + 8, generator)
    u, _, v = torch.linalg.svd(matrix @ basis, full_matrices=False)
    return u[:, :most], basis @ v[:most].T


def _require(x_fit: Tensor, y_fit: Tensor, x_select: Tensor, y_select: Tensor, most: int) -> None:
    if most < 1:
        raise InputError(f"most is {most}; a reduction keeps at least 1 pair of codes.")
    for name, rows in (("x_fit", x_fit), ("y_fit", y_fit), ("x_select", x_select), ("y_select", y_select)):
        if rows.ndim != 2:
            raise InputError(f"{name} has shape {tuple(rows.shape)}, but directions are found in rows of shape (n, d).")
        refuse_non_finite(rows, name)
    for name, fit, select in (("x", x_fit, x_select), ("y", y_fit, y_select)):
        if fit.shape[1] != select.shape[1]:
            raise InputError(
                f"{name}_fit has {fit.shape[1]} columns and {name}_select has {select.shape[1]}; both must come from "
                "one layer."
            )
    require_paired(x_fit, y_fit, minimum=4)
    require_paired(x_select, y_select, minimum=4)
