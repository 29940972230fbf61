"""The energy distance of two samples, a strip of pairs at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.operators import closed_form
from mikit.functional.engine.pairwise import Gradient, Scratch, squared_distances, sum_over_pairs
from mikit.functional.engine.samples import (
    centred,
    require_one_device,
    require_paired,
    require_rows,
    require_same_width,
    sample_weights,
)
from mikit.functional.kernels.mmd import PairKernel
from mikit.functional.kernels.mmd_error import contributions_of, standard_error_of

__all__ = ["distance", "energy_distance2", "energy_distance2_pointwise", "energy_distance2_standard_error"]


def energy_distance2(
    x: Tensor,
    y: Tensor,
    *,
    unbiased: bool = True,
    paired: bool = False,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    strip: int | None = None,
) -> Tensor:
    r"""Squared energy distance of two samples, which has no bandwidth to choose.

    .. math:: D^2 = 2 E\,\|X - Y\| - E\,\|X - X'\| - E\,\|Y - Y'\|

    It is twice the squared MMD under the kernel :math:`-\tfrac12 \|a - b\|`. The unbiased form leaves a row's distance
    from itself out of the last two means; with ``paired`` it also leaves :math:`\|x_i - y_i\|` out of the first, which
    makes it unbiased when row i of both samples depend on each other.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``; ``m`` may differ from ``n`` unless ``paired``.
        unbiased: Whether to leave out the pairs of a row with itself. Otherwise the V-statistic, which is never
            negative and too large by about ``E|X - X'| / n + E|Y - Y'| / m``; ``paired`` makes no difference to it.
        paired: Whether row i of ``x`` and of ``y`` belong together.
        weights_x: Weights of the rows of ``x``, ``(n,)``, not negative; divided by their sum. None: equal. Constants
            for the gradient.
        weights_y: Likewise for ``y``, ``(m,)``.
        strip: Rows handled at a time; None chooses. Values do not depend on it, up to rounding.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. The gradient at
        rows that coincide leaves their pair out. Unit: that of the features. Kind: a discrepancy, 0 for equal laws and
        for no others; the unbiased form is never clipped and negative about half of the time when the laws are equal.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths or devices differ, rows differ under ``paired``, there are
            fewer than two rows for the unbiased form, weights do not fit, are negative, not finite or all 0, leave only
            one row for the unbiased form, or come with ``paired``.

    Cost:
        O((n + m)² d) time, two to three times that with gradients, which are formed in the same pass;
        O((n + m) d) memory and one strip. Second derivatives are refused.

    Pitfalls:
        - "Squared" is a name: the unit is that of the features, not its square. Its root is the metric.
        - Blind to pairing: shuffling the rows of one sample changes nothing but rounding.
        - Needs a finite mean of both laws. Rows far out weigh more than in an MMD with a Gaussian kernel.
        - A distance is lost in rounding where it is below about a thousandth of the rows' length (float32).

    Source:
        Székely and Rizzo (2013), "Energy statistics: A class of statistics based on distances". In one dimension the
        biased form is the square of ``scipy.stats.energy_distance``.

    Example:
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])
        >>> energy_distance2(x, y, unbiased=False).item()  # 2 · 3 - 1 - 1
        4.0
        >>> energy_distance2(x, y).item()  # 2 · 3 - 2 - 2
        2.0
    """
    _require(x, y, unbiased, paired)
    given = sample_weights(x, weights_x, "x"), sample_weights(y, weights_y, "y")
    for name, own in zip("xy", given, strict=True):
        if own is None or not unbiased:
            continue
        if paired:
            raise InputError("The unbiased paired form takes no weights; leave out either the weights or paired.")
        if bool((own == 1).any()):
            raise InputError(
                f"weights_{name} leave one row only, so the unbiased form has no pair of them. Use unbiased=False."
            )
    a, b = centred(x, y)
    return _energy(a, b, *given, unbiased, paired, strip).to(a.dtype)


def energy_distance2_pointwise(x: Tensor, y: Tensor, *, paired: bool = False, strip: int | None = None) -> Tensor:
    """Contribution of every row to the unbiased :func:`energy_distance2`, whose mean is the value.

    Row i contributes its mean distances across the samples, less its mean distance from the other rows of each.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(n, d)``.
        paired: As in :func:`energy_distance2`.
        strip: As in :func:`energy_distance2`.

    Returns:
        Tensor ``(n,)``, in the unit of the features, without gradient. Kind: contributions to a discrepancy.

    Raises:
        InputError: As :func:`energy_distance2`, and if the samples have different numbers of rows.

    Cost:
        As the value of :func:`energy_distance2`.

    Pitfalls:
        The contributions share every row and are not independent: their standard deviation over root n is about half
        of the standard error.

    Source:
        As :func:`energy_distance2`.

    Example:
        >>> x, y = torch.eye(4), 2 * torch.eye(4)
        >>> torch.allclose(energy_distance2_pointwise(x, y).mean(), energy_distance2(x, y))
        True
    """
    _require(x, y, True, True)
    a, b = centred(x.detach(), y.detach())
    return contributions_of(_NEGATIVE_DISTANCE, a, b, paired, strip)


def energy_distance2_standard_error(x: Tensor, y: Tensor, *, strip: int | None = None) -> float:
    """Sampling standard error of the unbiased :func:`energy_distance2`.

    By the formula of :func:`mmd2_standard_error`, with the kernel ``-|a - b|``.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``. If ``m`` equals ``n`` row i of both may depend on each other; if not, the
            samples are taken to be independent.
        strip: As in :func:`energy_distance2`.

    Returns:
        The standard error, in the unit of the features; infinity below four rows.

    Raises:
        InputError: As :func:`energy_distance2`.

    Cost:
        O((n + m)² d) time, O(strip (n + m)) memory.

    Pitfalls:
        For equal laws the value is not normally distributed, and the error is too large: by a fifth on
        average in three columns, by up to a half in one.

    Source:
        The variance of a U-statistic of order two (Hoeffding 1948).

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(300, 2, generator=generator), torch.randn(300, 2, generator=generator)
        >>> 0 < energy_distance2_standard_error(x, y) < 0.02
        True
    """
    _require(x, y, True, False)
    a, b = centred(x.detach(), y.detach())
    return standard_error_of(_NEGATIVE_DISTANCE, a, b, strip)


def distance(entries: Tensor, spare: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
    """Make ``√u`` of every squared distance ``u``, and the derivative ``1 / 2√u``, which is set to 0 at ``u = 0``."""
    if not slopes:
        terms = entries.sqrt_()
        return terms, terms
    terms = torch.sqrt(entries, out=spare)
    derivatives = torch.div(0.5, terms, out=entries)
    return terms, derivatives.masked_fill_(terms == 0, 0.0)


def _negative_distance(entries: Tensor, spare: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
    terms = entries.sqrt_().neg_()
    return terms, terms


_NEGATIVE_DISTANCE = PairKernel(_negative_distance, 1.0)  # of two samples it makes the energy distance an MMD


class _Sample(NamedTuple):
    """Rows and what each counts."""

    rows: Tensor
    weights: Tensor | None


@closed_form
def _energy(
    wants: Sequence[bool],
    a: Tensor,
    b: Tensor,
    weights_a: Tensor | None,
    weights_b: Tensor | None,
    unbiased: bool,
    paired: bool,
    strip: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    value = a.new_zeros((), dtype=torch.float64)
    gradients = []
    for sample, want in ((_Sample(a, weights_a), wants[0]), (_Sample(b, weights_b), wants[1])):
        total, gradient, _ = _mean(sample, sample, (want, False), symmetric=True, hollow=unbiased, strip=strip)
        value -= total
        gradients.append(gradient.neg_())
    total, *across = _mean(
        _Sample(a, weights_a),
        _Sample(b, weights_b),
        wants,
        symmetric=False,
        hollow=unbiased and paired,
        strip=strip,
    )
    for gradient, part in zip(gradients, across, strict=True):
        gradient.add_(part, alpha=2)
    return value + 2 * total, gradients[0], gradients[1]


def _mean(
    first: _Sample, second: _Sample, wants: Sequence[bool], *, symmetric: bool, hollow: bool, strip: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted mean distance over pairs, and its gradients."""
    n, m = first.rows.shape[0], second.rows.shape[0]
    if first.weights is None and second.weights is None:
        total, *gradients = sum_over_pairs(
            first.rows, second.rows, distance, wants=wants, scale=1.0, symmetric=symmetric, hollow=hollow, strip=strip
        )
        pairs = n * (m - 1) if hollow else n * m
        return total / pairs, gradients[0].div_(pairs), gradients[1].div_(pairs)
    own, other = _filled(first), _filled(second)
    mass = 1 - own.square().sum() if hollow else torch.ones((), dtype=torch.float64, device=own.device)
    own, other = own.to(first.rows.dtype), other.to(second.rows.dtype)
    gradient = Gradient(first.rows, second.rows, wants, scale=1.0, symmetric=symmetric)
    sums = []
    spare = Scratch()
    for part in squared_distances(first.rows, second.rows, symmetric=symmetric, strip=strip):
        terms, slopes = distance(part.values, spare.shaped(part.values)[0], any(wants))
        weigh = own[part.rows, None] * other[None, part.columns]
        terms.mul_(weigh)
        if any(wants):
            slopes.mul_(weigh)
        # With symmetric pairs the diagonal is exactly 0 already, so hollow only changes the mass.
        sums.append(terms.sum(dim=1).sum(dtype=torch.float64))
        if symmetric:
            sums.append(terms[:, part.beyond :].sum(dim=1).sum(dtype=torch.float64))
        if any(wants):
            gradient.add(part, slopes)
    found = gradient.both()
    return torch.stack(sums).sum() / mass, found[0].div_(mass), found[1].div_(mass)


def _filled(sample: _Sample) -> Tensor:
    n = sample.rows.shape[0]
    if sample.weights is None:
        return torch.full((n,), 1 / n, dtype=torch.float64, device=sample.rows.device)
    return sample.weights


def _require(x: Tensor, y: Tensor, unbiased: bool, paired: bool) -> None:
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name)
    require_same_width(x, y)
    require_one_device(x, y)
    if paired:
        require_paired(x, y)
    for rows, name in ((x, "x"), (y, "y")):
        require_rows(rows, name, fewest=2 if unbiased else 1)
