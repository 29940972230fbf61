"""Contrastive bounds on mutual information, streamed in strips of rows so that no n x n tensor is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.bounds.infonce_scores import infonce_row_terms, require_pairs
from mikit.functional.engine.operators import closed_form, full_precision
from mikit.functional.engine.pairwise import Gradient, Scratch, exp_, scores
from mikit.functional.engine.samples import require_one_device, require_rows, working_dtype

__all__ = [
    "anchored_infonce",
    "dot_critic",
    "infonce",
    "infonce_pointwise",
]


def infonce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    both_directions: bool = False,
    strip: int | None = None,
) -> Tensor:
    """Return the InfoNCE bound for the dot-product critic ``s_ij = x_i . y_j / temperature``.

    Formula: ``(1/n) Σ_i [ s_ii - log (1/n) Σ_j exp s_ij ] <= log n``. With ``both_directions`` the mean of this and the
    same expression for the transposed scores.

    Args:
        x: Embeddings ``(n, d)``; row ``i`` belongs to row ``i`` of ``y``.
        y: Embeddings ``(n, d)``.
        temperature: What scores are divided by; a positive number or a 0-dim tensor, which may be learned.
        both_directions: Whether to average the choice of ``y`` given ``x`` with that of ``x`` given ``y``.
        strip: Rows of scores held at once; chosen from the device by default. It changes memory, not the value.

    Returns:
        0-dim, in nats. The loss to minimise is its negative.

    Unit: nats.

    Kind: lower bound on ``I(x; y)``, in expectation, on rows that did not choose the embeddings. On rows that did, it
    bounds nothing.

    Raises:
        InputError: If the shapes are not two equal ``(n, d)`` with ``n >= 2``, or the temperature is not positive.

    Cost:
        ``O(n² d)`` time in three matrix products for value and gradients together (four for both directions), no
        second pass in ``backward``; ``O(strip · n + n d)`` memory. Second derivatives are refused.

    Pitfalls:
        The value cannot pass ``log n`` and is biased low well before it. It depends on ``n``, so values from different
        batch sizes do not compare. The positive is among the ``n`` candidates.

    Source:
        van den Oord, Li, Vinyals, 2018, written as a bound. The gradient is formed strip by strip in ``forward``: a
        strip of rows holds its whole softmax.

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

    A row's positive is sought among ``K = n - 1`` candidates, and a set of ``K`` negatives is told apart from all of
    these. With the anchor :math:`\nu` and the set :math:`P_i` of row i's positive and n - 2 of its negatives (all but
    that of row i + 1), :math:`N_i` of all its n - 1 negatives,

    .. math:: \frac{K}{K + \nu} \frac1n \sum_i \log \frac{e^{s_{ii}}}{\nu + \sum_{j \in P_i} e^{s_{ij}}}
              + \frac{\nu}{K + \nu} \frac1n \sum_i \log \frac{\nu}{\nu + \sum_{j \in N_i} e^{s_{ij}}}

    InfoNCE fixes a critic only up to a function of x. The second term fixes that as well: the best critic is the
    logarithm of the density ratio, so ``s_ii`` averaged over rows that did not fit it estimates the information.

    Args:
        x: Embeddings ``(n, d)``; row ``i`` belongs to row ``i`` of ``y``.
        y: Embeddings ``(n, d)``.
        anchor: The constant ``ν > 0``. Small: towards the Donsker-Varadhan objective; large: towards that of Nguyen,
            Wainwright and Jordan.
        temperature: What scores are divided by; a positive number or a 0-dim tensor, which may be learned.
        strip: Rows of scores held at once; chosen from the device by default.

    Returns:
        0-dim, to be maximised, below 0; the loss to minimise is its negative.

    Unit: nats, of a classification's log-likelihood.

    Kind: training objective. It is no estimate of information; the mean of ``s_ii`` is, neither from below nor above.

    Raises:
        InputError: If the shapes are not two equal ``(n, d)`` with ``n >= 3``, or the temperature or the anchor is not
            positive.

    Cost:
        As :func:`infonce` in one direction.

    Pitfalls:
        The mean of ``s_ii`` on rows that fitted the critic is inflated without limit.

    Source:
        InfoNCE with an anchor class; the objective derived here, with its gradient in closed form.

    Example:
        >>> x = torch.eye(4)
        >>> loss = -anchored_infonce(10 * x, x)
        >>> loss.item() < -anchored_infonce(x, x).item()  # a critic that knows the pairs does better
        True
    """
    a, b = dot_critic(x, y, temperature, fewest=3)
    if not 0 < anchor < math.inf:
        raise InputError(f"anchor is {anchor}; it must be positive and finite.")
    return _anchored(a, b, anchor, strip).to(a.dtype)


def infonce_pointwise(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    both_directions: bool = False,
    strip: int | None = None,
) -> Tensor:
    """Return the rows' terms of :func:`infonce`, ``s_ii - log (1/n) Σ_j exp s_ij``; their mean is the bound.

    Args:
        x: Embeddings ``(n, d)``.
        y: Embeddings ``(n, d)``.
        temperature: What scores are divided by.
        both_directions: Whether to average both directions.
        strip: Rows of scores held at once.

    Returns:
        ``(n,)``, in nats.

    Unit: nats.

    Kind: terms of a lower bound; see :func:`infonce`.

    Raises:
        InputError: As :func:`infonce`.

    Cost:
        ``O(n² d)`` time, twice that for both directions; ``O(strip · n)`` memory. Without gradient: differentiate
        :func:`infonce`.

    Pitfalls:
        The terms share their negatives, so their spread is not the sampling error of the mean:
        :func:`infonce_influence` is.

    Source:
        As :func:`infonce`.

    Example:
        >>> x = torch.eye(3)
        >>> bool(torch.allclose(infonce_pointwise(x, x).mean(), infonce(x, x)))
        True
    """
    a, b = (rows.detach() for rows in dot_critic(x, y, temperature))
    with full_precision(a.device):
        terms = _row_terms_of(a, b, strip)
        return 0.5 * (terms + _row_terms_of(b, a, strip)) if both_directions else terms


@closed_form
def _one_direction(wants: Sequence[bool], a: Tensor, b: Tensor, strip: int | None) -> tuple[Tensor, Tensor, Tensor]:
    n = a.shape[0]
    # What all candidates share cancels in a row's softmax; without it the scores keep their digits.
    b = (b - b.mean(dim=0, dtype=torch.float64)).to(b.dtype)
    gradient = Gradient(a, b, wants)
    terms = []
    for part in scores(a, b, strip=strip):
        positive = part.own_of(part.values).clone()
        peak = part.values.amax(dim=1, keepdim=True)
        exponentials = exp_(part.values.sub_(peak))
        total = exponentials.sum(dim=1, keepdim=True)
        terms.append((positive - (peak + total.log())[:, 0]).sum(dtype=torch.float64))
        if any(wants):
            gradient.add(part, exponentials, per_row=-1 / (n * total))
    return _with_positives(torch.stack(terms).sum() / n + math.log(n), gradient, a, b, wants, 1 / n)


@closed_form
def _two_directions(wants: Sequence[bool], a: Tensor, b: Tensor, strip: int | None) -> tuple[Tensor, Tensor, Tensor]:
    n = a.shape[0]
    # Scores up to a constant, from parts without a common offset: a . (b - mean b) + (a - mean a) . mean b.
    centre = b.mean(dim=0, dtype=torch.float64)
    offsets = ((a - a.mean(dim=0, dtype=torch.float64)) @ centre).to(a.dtype)
    left = torch.cat([a, offsets[:, None]], dim=1)
    right = torch.cat([(b - centre).to(b.dtype), b.new_ones(n, 1)], dim=1)
    positives, row_peaks, row_totals = (a.new_empty(n, 1) for _ in range(3))
    column_peaks, column_totals = a.new_full((n,), -math.inf), a.new_zeros(n)
    scratch = Scratch()
    for part in scores(left, right, strip=strip):
        (spare,) = scratch.shaped(part.values)
        positives[part.rows, 0] = part.own_of(part.values)
        row_peaks[part.rows] = part.values.amax(dim=1, keepdim=True)
        row_totals[part.rows] = exp_(torch.sub(part.values, row_peaks[part.rows], out=spare)).sum(dim=1, keepdim=True)
        known, column_peaks = column_peaks, torch.maximum(column_peaks, part.values.amax(dim=0))
        column_totals = column_totals.mul_((known - column_peaks).exp_())
        column_totals += exp_(part.values.sub_(column_peaks)).sum(dim=0)
    spread = positives - (row_peaks + row_totals.log() + (column_peaks + column_totals.log())[:, None]) / 2
    value = spread.mean(dtype=torch.float64) + math.log(n)
    gradient = Gradient(a, b, wants)
    if any(wants):
        row_shares, column_shares = -0.5 / (n * row_totals), -0.5 / (n * column_totals)
        for part in scores(left, right, strip=strip):
            of_rows = exp_(torch.sub(part.values, row_peaks[part.rows], out=scratch.shaped(part.values)[0]))
            of_columns = exp_(part.values.sub_(column_peaks)).mul_(column_shares)
            gradient.add(part, of_columns.addcmul_(of_rows, row_shares[part.rows]))
    return _with_positives(value, gradient, a, b, wants, 1 / n)


@closed_form
def _anchored(
    wants: Sequence[bool], a: Tensor, b: Tensor, anchor: float, strip: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    n = a.shape[0]
    share = (n - 1) / (n - 1 + anchor)
    gradient = Gradient(a, b, wants)
    terms = []
    for part in scores(a, b, strip=strip):
        rows = torch.arange(part.values.shape[0], device=a.device)
        own = rows + part.rows.start
        following = (own + 1) % n
        positive, left_out = part.values[rows, own], part.values[rows, following]
        part.values[rows, own] = -math.inf
        part.values[rows, following] = -math.inf
        peak = part.values.amax(dim=1).clamp_(min=0)
        exponentials = exp_(part.values.sub_(peak[:, None]))
        shared = (exponentials.sum(dim=1) + anchor * (-peak).exp()).log() + peak
        with_positive, negatives = torch.logaddexp(shared, positive), torch.logaddexp(shared, left_out)
        found, absent = positive - with_positive, math.log(anchor) - negatives
        terms.append((share * found + (1 - share) * absent).sum(dtype=torch.float64))
        if any(wants):
            slope = share * (peak - with_positive).exp() + (1 - share) * (peak - negatives).exp()
            exponentials *= slope[:, None]
            exponentials[rows, own] = share * (positive - with_positive).exp()
            exponentials[rows, following] = (1 - share) * (left_out - negatives).exp()
            gradient.add(part, exponentials.mul_(-1 / n))
    return _with_positives(torch.stack(terms).sum() / n, gradient, a, b, wants, share / n)


def _with_positives(
    value: Tensor, gradient: Gradient, a: Tensor, b: Tensor, wants: Sequence[bool], weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value with its gradients, to which those of ``weight`` times the sum of all ``s_ii`` are added."""
    of_a, of_b = gradient.both()
    if wants[0]:
        of_a.add_(b, alpha=weight)
    if wants[1]:
        of_b.add_(a, alpha=weight)
    return value, of_a, of_b


def _row_terms_of(a: Tensor, b: Tensor, strip: int | None) -> Tensor:
    return torch.cat([infonce_row_terms(part.values, part.rows.start) for part in scores(a, b, strip=strip)])


def dot_critic(x: Tensor, y: Tensor, temperature: float | Tensor, *, fewest: int = 2) -> tuple[Tensor, Tensor]:
    """Return rows whose products are the scores ``x_i . y_j / temperature``, float32 at least.

    Args:
        x: Embeddings ``(n, d)``.
        y: Embeddings ``(n, d)``.
        temperature: What scores are divided by; a positive number or a 0-dim tensor.
        fewest: Pairs needed at least.

    Returns:
        Two tensors ``(n, d)`` of one dtype, with the gradient of their inputs.

    Raises:
        InputError: If the shapes or devices do not fit, there are too few pairs, or the temperature is not positive.
    """
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
    # A temperature on a GPU, or in a compiled graph, is not looked at: the loss would have to wait for it.
    at_hand = not isinstance(temperature, Tensor) or temperature.device.type == "cpu"
    if at_hand and not torch.compiler.is_compiling() and not temperature > 0:
        raise InputError(f"temperature is {float(temperature)}; it must be positive.")
    dtype = working_dtype(x, y)
    a, b = x.to(dtype), y.to(dtype)
    # Unlike a product, a division by 1 is worth skipping: it would copy all rows.
    return (a if isinstance(temperature, float | int) and temperature == 1 else a / temperature), b
