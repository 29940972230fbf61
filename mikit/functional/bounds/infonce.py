"""Contrastive bounds on mutual information, computed in blocks of rows so that no n x n tensor is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.functional.bounds.infonce_scores import require_pairs
from mikit.functional.engine.epilogues import Scratch, exp_
from mikit.functional.engine.operators import closed_form
from mikit.functional.engine.pairwise import Gradient, scores
from mikit.functional.engine.samples import require_one_device, require_rows, working_dtype

__all__ = ["anchored_infonce", "dot_critic", "infonce"]


def infonce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    both_directions: bool = False,
    strip: int | None = None,
) -> Tensor:
    """Return the InfoNCE bound for the dot-product critic ``s_ij = x_i . y_j / temperature``.

    Formula: ``(1/n) Σ_i [ s_ii - log (1/n) Σ_j exp s_ij ] <= log n``. With ``both_directions`` the mean of this and of
    the same expression for the transposed scores.

    Args:
        x: Embeddings ``(n, d)``; row ``i`` belongs to row ``i`` of ``y``.
        y: Embeddings ``(n, d)``.
        temperature: Divisor of the scores; a positive number or a 0-dim tensor, which may be learned.
        both_directions: Whether to average the prediction of ``y`` from ``x`` with that of ``x`` from ``y``.
        strip: Rows of scores in memory at a time; None chooses by the device. It changes memory, not the value.

    Returns:
        0-dim, in nats. The loss to minimize is its negative.

    Unit: nats.

    Kind: lower bound on ``I(x; y)``, in expectation, on rows that the embeddings were not fitted to. On the training
    rows it bounds nothing.

    Raises:
        InputError: If the shapes are not two equal ``(n, d)`` with ``n >= 2``, or the temperature is not positive.

    Cost:
        ``O(n² d)`` time in three matrix products for value and gradients together (four for both directions), without
        a second pass in ``backward``; ``O(strip · n + n d)`` memory. Second derivatives raise an error.

    Pitfalls:
        The value cannot exceed ``log n`` and is biased low well below that. It depends on ``n``, so values from
        different batch sizes are not comparable. The positive is among the ``n`` candidates.

    Source:
        van den Oord, Li, Vinyals, 2018, written as a bound. The gradient is computed block by block in ``forward``: a
        block of rows contains the complete softmax of each row.

    Example:
        >>> x = torch.eye(4) * 100  # every row finds its partner with certainty
        >>> round(float(infonce(x, x)), 4) == round(math.log(4), 4)
        True
    """
    a, b = dot_critic(x, y, temperature)
    if both_directions:
        return _two_directions(a, b, strip).to(a.dtype)
    return _one_direction(a, b, strip).to(a.dtype)


def anchored_infonce(
    x: Tensor, y: Tensor, *, anchor: float = 1.0, temperature: float | Tensor = 1.0, strip: int | None = None
) -> Tensor:
    r"""Return the anchored InfoNCE objective for the dot-product critic ``s_ij = x_i . y_j / temperature``.

    A classifier must find the positive of a row among ``K = n - 1`` candidates, or recognize that ``K`` candidates
    contain no positive. Let :math:`\nu` be the anchor, :math:`P_i` the positive of row i with n - 2 of its negatives
    (all but that of row i + 1), and :math:`N_i` all its n - 1 negatives:

    .. math:: \frac{K}{K + \nu} \frac1n \sum_i \log \frac{e^{s_{ii}}}{\nu + \sum_{j \in P_i} e^{s_{ij}}}
              + \frac{\nu}{K + \nu} \frac1n \sum_i \log \frac{\nu}{\nu + \sum_{j \in N_i} e^{s_{ij}}}

    InfoNCE determines a critic only up to a function of x. The second term determines this function as well: the
    optimal critic is the logarithm of the density ratio, so the mean of ``s_ii`` over rows that it was not fitted to
    estimates the information.

    Args:
        x: Embeddings ``(n, d)``; row ``i`` belongs to row ``i`` of ``y``.
        y: Embeddings ``(n, d)``.
        anchor: The constant ``ν > 0``. Small values approach the Donsker-Varadhan objective, large ones that of Nguyen,
            Wainwright and Jordan.
        temperature: Divisor of the scores; a positive number or a 0-dim tensor, which may be learned.
        strip: Rows of scores in memory at a time; None chooses by the device.

    Returns:
        0-dim, to be maximized, below 0; the loss to minimize is its negative.

    Unit: nats, of a classification's log-likelihood.

    Kind: training objective. It does not estimate information; the mean of ``s_ii`` does, and is not a bound.

    Raises:
        InputError: If the shapes are not two equal ``(n, d)`` with ``n >= 3``, or the temperature or the anchor is not
            positive.

    Cost:
        As :func:`infonce` in one direction.

    Pitfalls:
        The mean of ``s_ii`` on the rows that the critic was fitted to is inflated without limit.

    Source:
        InfoNCE with an anchor class; the objective derived here, with its gradient in closed form.

    Example:
        >>> x = torch.eye(4)
        >>> loss = -anchored_infonce(10 * x, x)
        >>> loss.item() < -anchored_infonce(x, x).item()  # a critic that knows the pairs does better
        True
    """
    a, b = dot_critic(x, y, temperature, fewest=3)
    require.positive(anchor, "anchor")
    return _anchored(a, b, anchor, strip).to(a.dtype)


@closed_form
def _one_direction(wants: Sequence[bool], a: Tensor, b: Tensor, strip: int | None) -> tuple[Tensor, Tensor, Tensor]:
    n = a.shape[0]
    # A shift of b adds one constant to all scores of a row, which its softmax ignores. Subtracting the mean keeps the
    # digits in which the scores differ.
    b = (b - b.mean(dim=0, dtype=torch.float64)).to(b.dtype)
    gradient = Gradient(a, b, wants)
    terms = []
    for block in scores(a, b, strip=strip):
        positive = block.diagonal_of(block.values).clone()
        peak = block.values.amax(dim=1, keepdim=True)
        exponentials = exp_(block.values.sub_(peak))
        total = exponentials.sum(dim=1, keepdim=True)
        terms.append((positive - (peak + total.log())[:, 0]).sum(dtype=torch.float64))
        if any(wants):
            # The softmax is the exponentials over their total. The division goes into the thin factors of the product.
            gradient.add(block, exponentials, per_row=-1 / (n * total))
    return _with_positives(torch.stack(terms).sum() / n + math.log(n), gradient, a, b, wants, 1 / n)


@closed_form
def _two_directions(wants: Sequence[bool], a: Tensor, b: Tensor, strip: int | None) -> tuple[Tensor, Tensor, Tensor]:
    n = a.shape[0]
    # Neither sample can simply be centered: a shift of b cancels in the softmax of a row, but not in that of a column.
    # a . b = a . (b - mean b) + (a - mean a) . mean b + constant has no large common offset, and the constant cancels
    # in both.
    center = b.mean(dim=0, dtype=torch.float64)
    offsets = ((a - a.mean(dim=0, dtype=torch.float64)) @ center).to(a.dtype)
    left = torch.cat([a, offsets[:, None]], dim=1)
    right = torch.cat([(b - center).to(b.dtype), b.new_ones(n, 1)], dim=1)
    positives, row_peaks, row_totals = (a.new_empty(n, 1) for _ in range(3))
    column_peaks, column_totals = a.new_full((n,), -math.inf), a.new_zeros(n)
    scratch = Scratch()
    for block in scores(left, right, strip=strip):
        (spare,) = scratch.shaped(block.values)
        positives[block.rows, 0] = block.diagonal_of(block.values)
        row_peaks[block.rows] = block.values.amax(dim=1, keepdim=True)
        exponentials = exp_(torch.sub(block.values, row_peaks[block.rows], out=spare))
        row_totals[block.rows] = exponentials.sum(dim=1, keepdim=True)
        # A column is complete only after the last block, so its sum is relative to the largest score met so far.
        known, column_peaks = column_peaks, torch.maximum(column_peaks, block.values.amax(dim=0))
        column_totals = column_totals.mul_((known - column_peaks).exp_())
        column_totals += exp_(block.values.sub_(column_peaks)).sum(dim=0)
    spread = positives - (row_peaks + row_totals.log() + (column_peaks + column_totals.log())[:, None]) / 2
    value = spread.mean(dtype=torch.float64) + math.log(n)
    gradient = Gradient(a, b, wants)
    if any(wants):
        # The softmax over columns needs their final sums, hence a second pass, which one direction does not need.
        row_shares, column_shares = -0.5 / (n * row_totals), -0.5 / (n * column_totals)
        for block in scores(left, right, strip=strip):
            of_rows = exp_(torch.sub(block.values, row_peaks[block.rows], out=scratch.shaped(block.values)[0]))
            of_columns = exp_(block.values.sub_(column_peaks)).mul_(column_shares)
            gradient.add(block, of_columns.addcmul_(of_rows, row_shares[block.rows]))
    return _with_positives(value, gradient, a, b, wants, 1 / n)


@closed_form
def _anchored(
    wants: Sequence[bool], a: Tensor, b: Tensor, anchor: float, strip: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    n = a.shape[0]
    share = (n - 1) / (n - 1 + anchor)
    gradient = Gradient(a, b, wants)
    terms = []
    for block in scores(a, b, strip=strip):
        rows = torch.arange(block.values.shape[0], device=a.device)
        diagonal = rows + block.rows.start
        following = (diagonal + 1) % n
        positive, left_out = block.values[rows, diagonal], block.values[rows, following]
        # Both normalizers share all scores except these two: one sum without them serves both, and either is added
        # back in the logarithm, which cannot overflow.
        block.values[rows, diagonal] = -math.inf
        block.values[rows, following] = -math.inf
        peak = block.values.amax(dim=1).clamp_(min=0)  # the anchor counts as a score of about 0
        exponentials = exp_(block.values.sub_(peak[:, None]))
        shared = (exponentials.sum(dim=1) + anchor * (-peak).exp()).log() + peak
        with_positive, negatives = torch.logaddexp(shared, positive), torch.logaddexp(shared, left_out)
        found, absent = positive - with_positive, math.log(anchor) - negatives
        terms.append((share * found + (1 - share) * absent).sum(dtype=torch.float64))
        if any(wants):
            slope = share * (peak - with_positive).exp() + (1 - share) * (peak - negatives).exp()
            exponentials *= slope[:, None]
            exponentials[rows, diagonal] = share * (positive - with_positive).exp()
            exponentials[rows, following] = (1 - share) * (left_out - negatives).exp()
            gradient.add(block, exponentials.mul_(-1 / n))
    return _with_positives(torch.stack(terms).sum() / n, gradient, a, b, wants, share / n)


def _with_positives(
    value: Tensor, gradient: Gradient, a: Tensor, b: Tensor, wants: Sequence[bool], weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value and its gradients, to which those of ``weight`` times the sum of all ``s_ii`` are added."""
    of_a, of_b = gradient.both()
    if wants[0]:
        of_a.add_(b, alpha=weight)
    if wants[1]:
        of_b.add_(a, alpha=weight)
    return value, of_a, of_b


def dot_critic(x: Tensor, y: Tensor, temperature: float | Tensor, *, fewest: int = 2) -> tuple[Tensor, Tensor]:
    """Return rows whose products are the scores ``x_i . y_j / temperature``, in float32 at least and with gradient."""
    require_rows(x, "x")
    require_rows(y, "y")
    if x.shape != y.shape:
        raise InputError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; the dot-product critic needs two equal (n, d). "
            "Bring both to one width with a critic from mikit.critics."
        )
    require_one_device(x, y)
    require_pairs(x.shape[0], fewest)
    if isinstance(temperature, Tensor) and temperature.ndim:
        raise InputError(f"temperature has shape {tuple(temperature.shape)}; pass one number, a 0-dim tensor.")
    # Checking a temperature on a GPU, or in a compiled graph, would make the loss wait for it.
    at_hand = not isinstance(temperature, Tensor) or temperature.device.type == "cpu"
    if at_hand and not torch.compiler.is_compiling() and not temperature > 0:
        raise InputError(f"temperature is {float(temperature)}; it must be positive.")
    dtype = working_dtype(x, y)
    a, b = x.to(dtype), y.to(dtype)
    # Dividing by 1 is skipped because it would copy all rows.
    return (a if isinstance(temperature, float | int) and temperature == 1 else a / temperature), b
