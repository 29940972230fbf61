"""Sinkhorn divergences of many small groups of rows at once, such as the classes of a batch.

A class of a few rows takes as long as the calls its iterations are made of. Groups of about one size are padded to the
largest of them and iterate together, in logarithms to base 2, until all are within the tolerance. Padding weighs
nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.core.errors import ConvergenceWarning, InputError
from mikit.functional.engine.operators import closed_form, unwanted
from mikit.functional.engine.samples import require_one_device, require_rows, require_same_width, working_dtype

__all__ = ["grouped_sinkhorn_divergence"]

# Groups iterate together while the largest has at most so many rows for a row of the smallest, and so many more.
_TIMES, _MORE = 2, 16
_MOST_SELF_ITERATIONS = 100


def grouped_sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    counts_x: Sequence[int],
    counts_y: Sequence[int],
    *,
    shares: Sequence[float],
    epsilon: float,
    relative: bool = False,
    tolerance: float = 3e-4,
    max_iterations: int = 1000,
) -> Tensor:
    r"""Weighted sum over groups of the debiased entropic transport cost between the rows of each.

    .. math:: \sum_k w_k\, S_{\varepsilon_k}(x^{(k)}, y^{(k)})

    with :math:`S_\varepsilon` as in :func:`mikit.functional.sinkhorn_divergence`.

    Args:
        x: Rows of the first sample, group after group, ``(n, d)``.
        y: Rows of the second, likewise, ``(m, d)``.
        counts_x: Rows of each group in ``x``, at least 1.
        counts_y: Rows of each group in ``y``.
        shares: ``w``, what each group counts.
        epsilon: Strength of the entropy, in the unit of the cost, which is half of a squared distance.
        relative: Whether ``epsilon`` is a share of each group's mean cost instead, a constant for the gradient.
        tolerance: As in :func:`mikit.functional.sinkhorn_divergence`, for every group.
        max_iterations: Likewise.

    Returns:
        0-dim tensor in the common dtype of the samples, float32 at least, differentiable once in both. Unit: that of
        the features, squared. Kind: a discrepancy, as the divergence of one group.

    Raises:
        InputError: If a sample is not ``(n, d)``, widths or devices differ, counts do not add up or are 0, or
            ``epsilon`` or ``tolerance`` is not positive; with ``relative``, if all rows of a group are equal.

    Warns:
        ConvergenceWarning: If a group does not reach the tolerance.

    Cost:
        For groups of up to n_k and m_k rows O(n_k m_k d) once and O(n_k m_k) an iteration each, all held in memory;
        padding at most doubles the sides. Sizes and errors are read on the host.

    Pitfalls:
        As :func:`mikit.functional.sinkhorn_divergence`. For small groups: the updates are not over-relaxed, and a large
        group is better solved by itself.

    Source:
        As :func:`mikit.functional.sinkhorn_divergence`.

    Example:
        >>> from mikit.functional import sinkhorn_divergence
        >>> x, y = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
        >>> both = grouped_sinkhorn_divergence(x, y, [2, 7], [5, 4], shares=[0.5, 0.5], epsilon=0.5)
        >>> alone = sinkhorn_divergence(x[:2], y[:5], epsilon=0.5) + sinkhorn_divergence(x[2:], y[5:], epsilon=0.5)
        >>> torch.allclose(both, alone / 2, rtol=1e-3)
        True
    """
    require_rows(x, "x")
    require_rows(y, "y")
    require_same_width(x, y)
    require_one_device(x, y)
    for name, rows, counts in (("x", x, counts_x), ("y", y, counts_y)):
        if len(counts) != len(shares) or min(counts, default=0) < 1 or sum(counts) != len(rows):
            raise InputError(
                f"counts_{name} names {len(counts)} groups of {sum(counts)} rows in all; pass one count of at least 1 "
                f"for each of the {len(shares)} shares, adding up to the {len(rows)} rows of {name}."
            )
    if not 0 < epsilon < math.inf:
        raise InputError(f"epsilon is {epsilon}; it must be positive and finite.")
    if not tolerance > 0 or max_iterations < 1:
        raise InputError(f"tolerance is {tolerance} and max_iterations {max_iterations}; both must be positive.")
    dtype = working_dtype(x, y)
    value = _total(
        x.to(dtype),
        y.to(dtype),
        list(counts_x),
        list(counts_y),
        list(shares),
        float(epsilon),
        relative,
        float(tolerance),
        max_iterations,
    )
    return value.to(dtype)


@closed_form
def _total(
    wants: Sequence[bool],
    x: Tensor,
    y: Tensor,
    counts_x: list[int],
    counts_y: list[int],
    shares: list[float],
    epsilon: float,
    relative: bool,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    total, worst = x.new_zeros((), dtype=torch.float64), 0.0
    gradients = [torch.zeros_like(rows) if want else unwanted(rows) for rows, want in zip((x, y), wants, strict=True)]
    # One point for all groups, so that what is left of the offset does not cost digits of their means.
    centre = y.mean(dim=0)
    of_x, of_y = _Layout(counts_x, x.device), _Layout(counts_y, y.device)
    for groups in _alike(counts_x, counts_y):
        left, right = of_x.padded(x, groups, centre), of_y.padded(y, groups, centre)
        shift = left.mean - right.mean
        units = _units(left, right, shift, epsilon, relative)
        worth = torch.tensor([shares[group] for group in groups], dtype=torch.float64, device=x.device)
        plan = _solved(left, right, units, tolerance, max_iterations)
        selves = [_self_solved(side, units, tolerance) for side in (left, right)]
        worst = max(worst, *(one.error for one in (plan, *selves)), key=lambda error: (math.isnan(error), error))
        half = 0.5 * shift.double().square().sum(dim=1)
        total += worth @ (plan.value + half - 0.5 * (selves[0].value + selves[1].value))
        for which, (layout, side, own) in enumerate(zip((of_x, of_y), (left, right), selves, strict=True)):
            if not wants[which]:
                continue
            moves = own.image_x(side) - (plan.image_y(left) if which else plan.image_x(right))
            # What moves all rows alike acts through the mean, whose exact share is the shift.
            moves += ((-shift if which else shift) - side.average(moves))[:, None]
            moves *= (side.weights * worth[:, None].to(moves.dtype))[:, :, None]
            layout.collect(moves, groups, gradients[which])
    if not worst <= tolerance:
        warnings.warn(
            f"The Sinkhorn divergence of a group stopped with a marginal error of {worst:.1e}, above the tolerance of "
            f"{tolerance:.1e}; its gradient may be off by some multiple of that. Raise epsilon, max_iterations or the "
            "tolerance, or pass float64.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return total, gradients[0], gradients[1]


def _alike(counts_x: Sequence[int], counts_y: Sequence[int]) -> Iterator[list[int]]:
    """Yield the groups that iterate together, of about one size."""
    sizes = [max(pair) for pair in zip(counts_x, counts_y, strict=True)]
    together: list[int] = []
    for group in sorted(range(len(sizes)), key=sizes.__getitem__):
        if together and sizes[group] > _TIMES * sizes[together[0]] + _MORE:
            yield together
            together = []
        together.append(group)
    yield together


# ---------------------------------------------------------------------------------------------------------- padding


@final
class _Padded(NamedTuple):
    """The rows of several groups around the mean of each, padded with rows of zeros that weigh nothing."""

    rows: Tensor  # (k, n, d)
    weights: Tensor  # (k, n)
    mean: Tensor  # (k, d)

    def average(self, values: Tensor) -> Tensor:
        """Return the mean over each group's rows."""
        return torch.bmm(self.weights[:, None], values)[:, 0]

    @property
    def half_squares(self) -> Tensor:
        """Half of the squared length of each row, float64."""
        return 0.5 * self.rows.square().sum(dim=2, dtype=torch.float64)

    @property
    def logarithms(self) -> Tensor:
        """To base 2, of the weights."""
        return self.weights.log2()


@final
class _Layout:
    """Where the rows of each group stand in a sample and in its padded form."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self._counts = torch.tensor(counts, device=device)
        self._starts = self._counts.cumsum(0) - self._counts

    def padded(self, rows: Tensor, groups: Sequence[int], centre: Tensor) -> _Padded:
        index, there, counts = self._index(groups)
        # Padding repeats some row until it is made 0.
        picked = rows.index_select(0, index.flatten()).view(*index.shape, -1).sub_(centre)
        weights = there.to(rows.dtype) / counts[:, None]
        mean = torch.bmm(weights[:, None], picked)
        return _Padded(picked.sub_(mean).mul_(there[:, :, None]), weights, mean[:, 0])

    def collect(self, moves: Tensor, groups: Sequence[int], out: Tensor) -> None:
        """Write what belongs to each row to its place."""
        index, there, _ = self._index(groups)
        out[index[there]] = moves[there]

    def _index(self, groups: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.tensor(groups, device=self._counts.device)
        counts, starts = self._counts[chosen], self._starts[chosen]
        steps = torch.arange(int(counts.max()), device=counts.device)
        there = steps < counts[:, None]
        return starts[:, None] + torch.where(there, steps, 0), there, counts


# -------------------------------------------------------------------------------------------------------- iterations


@final
class _Plans(NamedTuple):
    """What each group's plan is: ``weights_i 2^exponents_ij`` of whole rows, and the dual values."""

    value: Tensor  # (k,), float64
    error: float
    kernel: Tensor  # (k, n, m), rows add up to 1
    weights: Tensor  # (k, n)

    def image_x(self, right: _Padded) -> Tensor:
        """Return the mean of what each row on the left is sent to."""
        return torch.bmm(self.kernel, right.rows)

    def image_y(self, left: _Padded) -> Tensor:
        """Return the mean of what is sent to each row on the right."""
        joint = self.kernel * self.weights[:, :, None]
        sums = joint.sum(dim=1)[:, :, None]
        return torch.bmm(joint.mT, left.rows) / torch.where(sums > 0, sums, 1.0)


def _units(left: _Padded, right: _Padded, shift: Tensor, epsilon: float, relative: bool) -> Tensor:
    """Return epsilon log 2 of each group, ``(k,)`` float64."""
    if not relative:
        return torch.full((len(shift),), epsilon * math.log(2), dtype=torch.float64, device=shift.device)
    costs = 0.5 * shift.double().square().sum(dim=1)
    for side in (left, right):
        costs += (side.weights.double() * side.half_squares).sum(dim=1)
    if bool((costs == 0).any()):
        raise InputError("All rows of a group are equal, so no share of their cost is positive; pass epsilon.")
    # Among NaNs any epsilon gives NaN.
    return torch.where(costs.isfinite(), epsilon * costs, 1.0) * math.log(2)


def _solved(left: _Padded, right: _Padded, units: Tensor, tolerance: float, max_iterations: int) -> _Plans:
    dtype = left.rows.dtype
    scores = torch.bmm(left.rows / units[:, None, None].to(dtype), right.rows.mT)
    half_x, half_y = (side.half_squares / units[:, None] for side in (left, right))
    of_x, of_y = left.logarithms, right.logarithms
    q = of_y - half_y.to(dtype)
    converged = False
    for iteration in range(1, max_iterations + 1):
        p = _log_sum(scores + q[:, None], 2).neg_()
        exponents = scores + p[:, :, None]
        columns = _log_sum(exponents + of_x[:, :, None], 1).add_(q)  # of the plan, whose rows are exact
        error = float((columns.exp2() - right.weights).abs_().sum(dim=1).amax())
        if converged or iteration == max_iterations:
            break
        converged = not error > tolerance  # and one more update, which costs little and gains much
        q = torch.where(right.weights > 0, q + of_y - columns, q)
    kernel = (exponents + q[:, None]).exp2_()
    # The potentials after one more update of the right side, exact, in float64.
    f = (p.double() + half_x) * units[:, None]
    last = torch.where(right.weights > 0, q.double() - columns.double(), 0.0)
    g = (last + half_y) * units[:, None]
    value = (left.weights * f).sum(dim=1) + (right.weights * g).sum(dim=1)
    return _Plans(value, error, kernel, left.weights)


def _self_solved(side: _Padded, units: Tensor, tolerance: float) -> _Plans:
    """Return the plans of groups with themselves: every update goes half of the way, which takes a few steps."""
    dtype = side.rows.dtype
    lengths = side.half_squares.to(dtype)
    scores = torch.bmm(side.rows, side.rows.mT).sub_(lengths[:, :, None]).sub_(lengths[:, None]).clamp_(max=0)
    scores.diagonal(dim1=1, dim2=2).zero_()
    scores.div_(units[:, None, None].to(dtype)).add_(side.logarithms[:, None])
    p = torch.zeros_like(side.weights)
    for _ in range(_MOST_SELF_ITERATIONS):
        sums = _log_sum(scores + p[:, None], 2)
        off = sums + p
        error = float(((off.exp2() - 1).abs_() * side.weights).sum(dim=1).amax())
        if not error > tolerance:
            break
        p = p - 0.5 * off
    kernel = (scores + p[:, None] - sums[:, :, None]).exp2_()
    f = p.double() * units[:, None]
    excess = (off.double().exp2() - 1) * units[:, None] / math.log(2)
    return _Plans((side.weights * (2 * f - excess)).sum(dim=1), error, kernel, side.weights)


def _log_sum(exponents: Tensor, dim: int) -> Tensor:
    """Return the logarithm of the sum of powers of two; overwrites."""
    base = exponents.amax(dim=dim, keepdim=True)
    return exponents.sub_(base).exp2_().sum(dim=dim).log2_().add_(base.squeeze(dim))
