"""From thousands of columns to the few directions in which two samples say something of each other.

Each side is standardised and turned to its principal axes; regularised canonical correlations among the leading axes,
and among simple functions of them, propose pairs of codes. How many axes, how much regularisation, which functions and
how many pairs is decided on other rows, by how well the codes tell a row's own partner from those of all other rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.inputs import refuse_non_finite
from mikit.core.rows import require_paired
from mikit.functional.reduction.axes import PrincipalAxes
from mikit.functional.reduction.code_maps import Candidate, CodeMap, feature_candidates, linear_candidates, straightened

__all__ = ["Reduction", "contrast_evidence", "informative_directions"]

# Select rows that take part in the contrast; more would only cost time.
_CONTRASTED = 1200
_WIDEST_BESIDE_FEATURES = 64
_STRONGEST = 1 - 1e-7


@final
@dataclass(frozen=True)
class Reduction:
    """A pair of code maps and the evidence by which they were chosen.

    Attributes:
        map_x: The student's map.
        map_y: The teacher's map.
        correlations: Of the pairs of codes on the select rows, ``(k,)``, with directions from the fit rows alone.
        evidence: The contrast of these on the select rows, in nats; see :func:`contrast_evidence`.
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
    best of these codes straightened (:func:`~mikit.functional.reduction.code_maps.straightened`), and regularised
    canonical directions of the axes beside products, or rectified combinations, of the leading two to sixteen. ``q``,
    ``λ``, the features and the number of pairs ``k <= most`` maximise :func:`contrast_evidence` on the select rows; the
    directions are then found anew on the fit and select rows together. Of linear codes that do about equally well those
    of the fewest axes are taken, and features only where they do clearly better.

    Args:
        x_fit: Student rows that propose directions.
        y_fit: Teacher rows, paired with them.
        x_select: Other student rows, which choose.
        y_select: Their teacher rows.
        most: Pairs of codes at most; never more than a quarter of the select rows.
        nonlinear: Whether features that are not linear may be chosen.
        generator: Where the weights of the features, and the start of the subspace iteration for more than 1,200 rows
            and columns, come from; a generator with seed 0 if None.

    Returns:
        A frozen :class:`Reduction`; ``codes`` and ``codes_y`` map further rows. Only rows in neither part can be
        reported on: both parts have shaped the codes.

    Raises:
        InputError: If rows do not pair up or match in width, are fewer than 4, or hold NaN or infinity.

    Cost:
        ``O(n d min(n, d))`` time up to 1,200 rows or columns and ``O(512 n d)`` above, plus some seventy candidates of
        ``O(m²)`` on ``m <= 1,200`` select rows: about 3 seconds for 3,200 rows of 1,000 columns on one thread, 6 for
        4,096 columns. Memory: one float32 copy of a side at a time, and the coordinates.

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
    sides = [PrincipalAxes.of(rows, drawn) for rows in (x_fit, y_fit)]
    fit = [side.project(rows) for side, rows in zip(sides, (x_fit, y_fit), strict=True)]
    if min(side.rank for side in sides) == 0:
        chosen = next(linear_candidates(sides, fit, 0, drawn))
        maps = chosen.map_of(sides[0], 0), chosen.map_of(sides[1], 1)
        return Reduction(*maps, torch.zeros(0, dtype=torch.float64), 0.0, "nothing, since a side never varies")
    select = [side.project(rows) for side, rows in zip(sides, (x_select, y_select), strict=True)]
    contrasted = [rows[:_CONTRASTED] for rows in select]
    most = min(most, max(1, (x_select.shape[0] - 3) // 4))
    coarse = [k for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if k < most] + [most]

    def promise(candidate: Candidate) -> float:
        looks = [k for k in coarse if k < candidate.pairs] + [candidate.pairs]
        return max(contrast_evidence(*candidate.codes(contrasted), looks))

    def finely(candidate: Candidate) -> list[float]:
        return contrast_evidence(*candidate.codes(contrasted), range(1, candidate.pairs + 1))

    promises = [(promise(candidate), candidate) for candidate in linear_candidates(sides, fit, most, drawn)]
    margin = most / contrasted[0].shape[0]
    chosen = _narrowest_of_the_best(promises, margin)
    if nonlinear:
        straight = straightened(chosen.refitted(fit, 1 + _place_of_largest(finely(chosen)), drawn), fit, drawn)
        width = min(chosen.width, _WIDEST_BESIDE_FEATURES)
        chosen = max(chosen, straight, key=promise)
        featured = max(feature_candidates(sides, fit, most, width, drawn), key=promise)
        chosen = featured if promise(featured) > promise(chosen) + margin else chosen
    evidence = finely(chosen)
    k = 1 + _place_of_largest(evidence)
    a, b = chosen.codes(contrasted)
    correlations = _correlations(a[:, :k], b[:, :k])[2]
    chosen = chosen.refitted([torch.cat(rows) for rows in zip(fit, select, strict=True)], k, drawn)
    return Reduction(
        chosen.map_of(sides[0], 0), chosen.map_of(sides[1], 1), correlations, evidence[k - 1], chosen.description
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


def _narrowest_of_the_best(promises: list[tuple[float, Candidate]], margin: float) -> Candidate:
    """Return the best candidate of the least width at which one comes within ``margin`` of the best of all.

    More axes overfit more than the select rows, which choose among them, can tell.
    """
    highest = max(promise for promise, _ in promises)
    width = min(candidate.width for promise, candidate in promises if promise >= highest - margin)
    return max((pair for pair in promises if pair[1].width == width), key=itemgetter(0))[1]


def _place_of_largest(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _correlations(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return both sides with standardised columns, and the correlation of each pair."""
    a, b = (code.double() - code.double().mean(dim=0) for code in (a, b))
    a, b = (code / code.square().mean(dim=0).sqrt().clamp(min=1e-150) for code in (a, b))
    return a, b, (a * b).mean(dim=0).clamp(-_STRONGEST, _STRONGEST)


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
