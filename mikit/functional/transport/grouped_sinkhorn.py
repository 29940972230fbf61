"""Sinkhorn divergences of many small groups of samples at once, such as the classes of a batch.

For a group of a few samples the number of calls per iteration determines the time. Groups of similar size are therefore
padded to the largest of them and iterate together, in logarithms to base 2, until all are within the tolerance. Padding
has weight 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import ConvergenceWarning, InputError
from mikit.functional.engine.operators import closed_form, unwanted
from mikit.functional.engine.samples import require_one_device, require_rows, require_same_width, working_dtype

__all__ = ["grouped_sinkhorn_divergence"]

# Groups iterate together while the largest has at most `_TIMES` the rows of the smallest, plus `_MORE`.
_TIMES, _MORE = 2, 16
_MOST_SELF_ITERATIONS = 100


def grouped_sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    counts: Sequence[tuple[int, int]],
    *,
    shares: Sequence[float],
    epsilon: float,
    relative: bool = False,
    tolerance: float = 3e-4,
    max_iterations: int = 1000,
) -> Tensor:
    """Return the sum over groups of ``shares`` times :func:`mikit.functional.sinkhorn_divergence`, 0-dim.

    The samples are the groups one after the other, with ``counts`` rows of ``x`` and of ``y`` each. With ``relative``
    ``epsilon`` is a fraction of each group's mean cost, which the gradient treats as a constant. Warns with
    ConvergenceWarning if a group does not reach the tolerance.

    Cost: O(n_k m_k d) once and O(n_k m_k) per iteration and group, all in memory; padding at most doubles the sides.
    Large groups are better solved one at a time, because the updates here are not over-relaxed.
    """
    require_rows(x, "x")
    require_rows(y, "y")
    require_same_width(x, y)
    require_one_device(x, y)
    counts_x, counts_y = [of_x for of_x, _ in counts], [of_y for _, of_y in counts]
    for name, rows, sizes in (("x", x, counts_x), ("y", y, counts_y)):
        if len(sizes) != len(shares) or min(sizes, default=0) < 1 or sum(sizes) != len(rows):
            raise InputError(
                f"The counts describe {len(sizes)} groups with {sum(sizes)} rows of {name} in total. Pass counts of at "
                f"least 1 for each of the {len(shares)} shares, adding up to the {len(rows)} rows of {name}."
            )
    require.positive(epsilon, "epsilon")
    if not tolerance > 0 or max_iterations < 1:
        raise InputError(f"tolerance is {tolerance} and max_iterations {max_iterations}; both must be positive.")
    dtype = working_dtype(x, y)
    # An operator of torch takes no pairs and few arguments, so related numbers are passed as one list.
    sizes, accuracy = [*counts_x, *counts_y], [float(epsilon), float(tolerance)]
    return _total(x.to(dtype), y.to(dtype), sizes, list(shares), accuracy, relative, max_iterations).to(dtype)


@closed_form
def _total(
    wants: Sequence[bool],
    x: Tensor,
    y: Tensor,
    sizes: list[int],
    shares: list[float],
    accuracy: list[float],
    relative: bool,
    max_iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum and its gradients; ``sizes`` are those of the groups of x and of y, ``accuracy`` two settings."""
    epsilon, tolerance = accuracy
    counts_x, counts_y = sizes[: len(shares)], sizes[len(shares) :]
    total, worst = x.new_zeros((), dtype=torch.float64), 0.0
    gradients = [torch.zeros_like(rows) if want else unwanted(rows) for rows, want in zip((x, y), wants, strict=True)]
    # One center for all groups, so that a large common offset does not cost digits of the groups' means.
    center = y.mean(dim=0)
    of_x, of_y = _Layout(counts_x, x.device), _Layout(counts_y, y.device)
    for groups in _alike(counts_x, counts_y):
        left, right = of_x.padded(x, groups, center), of_y.padded(y, groups, center)
        shift = left.mean - right.mean
        units = _units(left, right, shift, epsilon, relative)
        worth = torch.tensor([shares[group] for group in groups], dtype=torch.float64, device=x.device)
        plan = _solved(left, right, units, tolerance, max_iterations)
        selves = [_self_solved(side, units, tolerance) for side in (left, right)]
        worst = max(worst, *(one.error for one in (plan, *selves)), key=lambda error: (math.isnan(error), error))
        half = 0.5 * shift.double().square().sum(dim=1)
        total += worth @ (plan.value + half - 0.5 * (selves[0].value + selves[1].value))
        for which, (layout, side, alone) in enumerate(zip((of_x, of_y), (left, right), selves, strict=True)):
            if not wants[which]:
                continue
            moves = alone.image_x(side) - (plan.image_y(left) if which else plan.image_x(right))
            # The common part of all moves acts through the mean, and its exact value is the shift.
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
    """Yield the groups that iterate together, of similar size."""
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
    """The rows of several groups, each around its mean, padded with rows of zeros that have weight 0."""

    rows: Tensor  # (k, n, d)
    weights: Tensor  # (k, n)
    mean: Tensor  # (k, d)

    def average(self, values: Tensor) -> Tensor:
        """Return the weighted mean over each group's rows."""
        return torch.bmm(self.weights[:, None], values)[:, 0]

    @property
    def half_squares(self) -> Tensor:
        """Half of the squared length of each row, float64."""
        return 0.5 * self.rows.square().sum(dim=2, dtype=torch.float64)

    @property
    def logarithms(self) -> Tensor:
        """Logarithms of the weights to base 2."""
        return self.weights.log2()


@final
class _Layout:
    """The places of the rows of each group in a sample and in its padded form."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self._counts = torch.tensor(counts, device=device)
        self._starts = self._counts.cumsum(0) - self._counts

    def padded(self, rows: Tensor, groups: Sequence[int], center: Tensor) -> _Padded:
        index, there, counts = self._index(groups)
        # Padding is a copy of the group's first row until the last line sets it to 0.
        picked = rows.index_select(0, index.flatten()).view(*index.shape, -1).sub_(center)
        weights = there.to(rows.dtype) / counts[:, None]
        mean = torch.bmm(weights[:, None], picked)
        return _Padded(picked.sub_(mean).mul_(there[:, :, None]), weights, mean[:, 0])

    def collect(self, moves: Tensor, groups: Sequence[int], out: Tensor) -> None:
        """Write the moves of each row, without padding, to its place in the sample."""
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
    """The plan of each group, by the distribution that each row is sent to, and the dual values."""

    value: Tensor  # (k,), float64
    error: float
    kernel: Tensor  # (k, n, m), rows add up to 1
    weights: Tensor  # (k, n)

    def image_x(self, right: _Padded) -> Tensor:
        """Return the mean of the rows on the right that each row on the left is sent to."""
        return torch.bmm(self.kernel, right.rows)

    def image_y(self, left: _Padded) -> Tensor:
        """Return the mean of the rows on the left that are sent to each row on the right."""
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
        raise InputError(
            "All rows of a group are equal, so a fraction of their mean cost is 0. Pass an absolute epsilon, in the "
            "unit of half a squared distance."
        )
    # With NaNs any epsilon gives NaN.
    return torch.where(costs.isfinite(), epsilon * costs, 1.0) * math.log(2)


def _solved(left: _Padded, right: _Padded, units: Tensor, tolerance: float, max_iterations: int) -> _Plans:
    """Return the plans between the groups of two samples."""
    # Logarithms rather than scalings: for small groups an iteration costs its number of calls and not its exponentials,
    # and there is no underflow to watch for, which would need a decision per group.
    dtype = left.rows.dtype
    scores = torch.bmm(left.rows / units[:, None, None].to(dtype), right.rows.mT)
    half_x, half_y = (side.half_squares / units[:, None] for side in (left, right))
    of_x, of_y = left.logarithms, right.logarithms
    q = of_y - half_y.to(dtype)
    converged = False
    for iteration in range(1, max_iterations + 1):
        p = _log_sum(scores + q[:, None], 2).neg_()
        exponents = scores + p[:, :, None]
        columns = _log_sum(exponents + of_x[:, :, None], 1).add_(q)  # of a plan whose row marginals are exact
        error = float((columns.exp2() - right.weights).abs_().sum(dim=1).amax())
        if converged or iteration == max_iterations:
            break
        converged = not error > tolerance  # one more update follows, which costs little and reduces the error further
        q = torch.where(right.weights > 0, q + of_y - columns, q)
    kernel = (exponents + q[:, None]).exp2_()
    # The potentials after one more exact update of the right side, in float64. With exact column marginals the dual
    # value has an error of second order only.
    f = (p.double() + half_x) * units[:, None]
    last = torch.where(right.weights > 0, q.double() - columns.double(), 0.0)
    g = (last + half_y) * units[:, None]
    value = (left.weights * f).sum(dim=1) + (right.weights * g).sum(dim=1)
    return _Plans(value, error, kernel, left.weights)


def _self_solved(side: _Padded, units: Tensor, tolerance: float) -> _Plans:
    """Return the plans of groups with themselves."""
    # As in `scaling.self_transport`: an update to the geometric mean, half of the way in logarithms, does not
    # oscillate.
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
    """Return the logarithm of the sum of powers of two; overwrites ``exponents``."""
    base = exponents.amax(dim=dim, keepdim=True)
    return exponents.sub_(base).exp2_().sum(dim=dim).log2_().add_(base.squeeze(dim))
