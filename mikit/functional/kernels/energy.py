"""The energy distance of two samples, computed a block of pairs at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine.epilogues import Scratch
from mikit.functional.engine.operators import closed_form
from mikit.functional.engine.pairwise import Gradient, squared_distances, sum_over_pairs
from mikit.functional.engine.samples import centered, sample_weights
from mikit.functional.kernels.mmd import require_samples
from mikit.functional.kernels.mmd_error import contributions_of, standard_error_of
from mikit.functional.kernels.pair_kernels import PairKernel

__all__ = ["energy_distance2", "energy_distance2_pointwise", "energy_distance2_standard_error"]


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
    r"""Squared energy distance of two samples; there is no bandwidth to choose.

    .. math:: D^2 = 2 E\,\|X - Y\| - E\,\|X - X'\| - E\,\|Y - Y'\|

    It is twice the squared MMD under the kernel :math:`-\tfrac12 \|a - b\|`. The unbiased form leaves the distance of a
    row from itself out of the last two means. With ``paired`` it also leaves :math:`\|x_i - y_i\|` out of the first,
    which makes it unbiased when row i of both samples depend on each other.

    Args:
        x: First sample, ``(n, d)``.
        y: Second sample, ``(m, d)``; ``m`` may differ from ``n`` unless ``paired``.
        unbiased: Whether to leave out the pairs of a row with itself. Otherwise the V-statistic, which is never
            negative and too large by about ``E|X - X'| / n + E|Y - Y'| / m``; ``paired`` makes no difference to it.
        paired: Whether row i of ``x`` and of ``y`` belong together.
        weights_x: Weights of the rows of ``x``, ``(n,)``, not negative; divided by their sum. None: equal. Constants
            for the gradient.
        weights_y: Likewise for ``y``, ``(m,)``.
        strip: Rows processed at a time; None chooses. The value does not depend on it, up to rounding.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Pairs of rows
        that coincide do not contribute to the gradient. Unit: that of the features. Kind: a discrepancy, 0 if and only
        if the distributions are equal. The unbiased form is never clipped, and is negative about half of the time when
        they are equal.

    Raises:
        InputError: If a sample is not ``(n, d)``, the widths or devices differ, the numbers of rows differ under
            ``paired``, or there are fewer than two rows for the unbiased form. Also if weights have another shape, are
            negative, not finite or all 0, and for the unbiased form if they are positive for one row only or passed
            with ``paired``.

    Cost:
        O((n + m)² d) time, two to three times that with gradients, which are computed in the same pass;
        O((n + m) d) memory and one block of pairs. Second derivatives raise an error.

    Pitfalls:
        - Although it is called squared, its unit is that of the features, not their square. Its square root is a
          metric.
        - Blind to pairing: shuffling the rows of one sample changes nothing but rounding.
        - Needs a finite mean of both distributions. Outliers weigh more than in an MMD with a Gaussian kernel.
        - In float32 a distance below about a thousandth of the norms of its rows is lost in rounding.

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
    require_samples(x, y, unbiased=unbiased, paired=paired)
    weights = sample_weights(x, weights_x, "x"), sample_weights(y, weights_y, "y")
    for name, given in zip("xy", weights, strict=True):
        if given is None or not unbiased:
            continue
        if paired:
            raise InputError("The unbiased paired form takes no weights; leave out either the weights or paired.")
        if bool((given == 1).any()):
            raise InputError(
                f"weights_{name} are positive for one sample only, so the unbiased form has no pair of samples. Use "
                "unbiased=False."
            )
    a, b = centered(x, y)
    return _energy(a, b, *weights, unbiased, paired, strip).to(a.dtype)


def energy_distance2_pointwise(x: Tensor, y: Tensor, *, paired: bool = False, strip: int | None = None) -> Tensor:
    """Return the contribution of every row to the unbiased energy distance, ``(n,)`` without gradient.

    Row i contributes its mean distances across the samples, minus its mean distance from the other rows of each. The
    mean is the value. The contributions share every row and are not independent: their standard deviation over root n
    is about half of the standard error.
    """
    require_samples(x, y, unbiased=True, paired=True)
    a, b = centered(x.detach(), y.detach())
    return contributions_of(_NEGATIVE_DISTANCE, a, b, paired, strip)


def energy_distance2_standard_error(x: Tensor, y: Tensor, *, strip: int | None = None) -> float:
    """Return the standard error of the unbiased energy distance, infinity below four rows.

    It is that of an MMD with the kernel ``-|a - b|``; see
    :func:`~mikit.functional.kernels.mmd_error.mmd2_standard_error`. For equal distributions it is too large: by a fifth
    on average in three columns, by up to a half in one.
    """
    require_samples(x, y, unbiased=True, paired=False)
    a, b = centered(x.detach(), y.detach())
    return standard_error_of(_NEGATIVE_DISTANCE, a, b, strip)


def _distance(entries: Tensor, spare: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
    """Compute ``√u`` of every squared distance ``u``, and the derivative ``1 / 2√u``, set to 0 at ``u = 0``."""
    if not slopes:
        terms = entries.sqrt_()
        return terms, terms
    terms = torch.sqrt(entries, out=spare)
    derivatives = torch.div(0.5, terms, out=entries)
    return terms, derivatives.masked_fill_(terms == 0, 0.0)


def _negative_distance(entries: Tensor, spare: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
    terms = entries.sqrt_().neg_()
    return terms, terms


_NEGATIVE_DISTANCE = PairKernel(_negative_distance, 1.0)  # the kernel for which the MMD is the energy distance


class _Sample(NamedTuple):
    """Rows and their weights; None: equal."""

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
            first.rows, second.rows, _distance, wants=wants, scale=1.0, symmetric=symmetric, hollow=hollow, strip=strip
        )
        pairs = n * (m - 1) if hollow else n * m
        return total / pairs, gradients[0].div_(pairs), gradients[1].div_(pairs)
    left, right = _filled(first), _filled(second)
    # Without the pairs (i, i) the weights of the remaining pairs no longer sum to 1.
    mass = 1 - left.square().sum() if hollow else torch.ones((), dtype=torch.float64, device=left.device)
    left, right = left.to(first.rows.dtype), right.to(second.rows.dtype)
    gradient = Gradient(first.rows, second.rows, wants, scale=1.0, symmetric=symmetric)
    sums = []
    spare = Scratch()
    for block in squared_distances(first.rows, second.rows, symmetric=symmetric, strip=strip):
        terms, slopes = _distance(block.values, spare.shaped(block.values)[0], any(wants))
        pair_weights = left[block.rows, None] * right[None, block.columns]
        terms.mul_(pair_weights)
        if any(wants):
            slopes.mul_(pair_weights)
        # With symmetric pairs the diagonal is exactly 0 already, so hollow only changes the mass.
        sums.append(terms.sum(dim=1).sum(dtype=torch.float64))
        if symmetric:
            sums.append(terms[:, block.beyond :].sum(dim=1).sum(dtype=torch.float64))
        if any(wants):
            gradient.add(block, slopes)
    found = gradient.both()
    return torch.stack(sums).sum() / mass, found[0].div_(mass), found[1].div_(mass)


def _filled(sample: _Sample) -> Tensor:
    n = sample.rows.shape[0]
    if sample.weights is None:
        return torch.full((n,), 1 / n, dtype=torch.float64, device=sample.rows.device)
    return sample.weights
