"""Sinkhorn's matrix scaling, the iteration of entropic transport, with the kernel kept in memory or computed in blocks.

Both samples are centered first. The squared distance of the means is split off exactly, because the part of the cost
that mixes means and residuals only shifts the potentials; the remaining costs are small whatever the offset of the
samples. Exponentials are powers of two: on a CPU these are several times as fast as powers of e, and underflow costs
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.functional.engine.operators import unwanted
from mikit.functional.engine.pairwise import scores, squared_distances

__all__ = ["EntropicProblem", "Plan", "Points", "Settings", "centered_points", "self_transport", "soft_minimum"]

# Scalings of a kept kernel stay within 2^±40. Entries lost to underflow, below 2^-126, then weigh less than 2^-46.
_LARGEST_SCALING = 2.0**40
# A column whose mass is further than this factor from its target is updated in logarithms.
_SMALLEST_MASS = 2.0**-60
# Largest change of a potential, in powers of 2, for which the previous potential can replace the maximum of a block.
_STEADY = 20.0
# Fewest iterations over which the rate of convergence is measured, and the upper limit of the over-relaxation.
_WINDOW, _STRONGEST = 3, 1.95
_MOST_SELF_ITERATIONS = 100


@final
@dataclass(frozen=True)
class Settings:
    """The problem's ``epsilon``, when to stop, and how much memory to use; see :func:`mikit.functional.sinkhorn`."""

    epsilon: float
    tolerance: float
    max_iterations: int
    held_entries: int
    strip: int | None

    @property
    def unit(self) -> float:
        """A cost that halves an entry of the kernel: epsilon log 2."""
        return self.epsilon * math.log(2)


@final
class Points(NamedTuple):
    """A weighted sample, centered; ``mean`` was subtracted from ``rows``."""

    rows: Tensor
    weights: Tensor
    mean: Tensor

    def kept(self) -> Points:
        """Return the sample without the rows of weight 0."""
        weigh = self._weigh
        if weigh.all():
            return self
        return Points(self.rows[weigh], self.weights[weigh], self.mean)

    def gradient(self, kept: Points, moves: Tensor, shift: Tensor) -> Tensor:
        """Return the gradient in all rows from the mean ``moves`` of those kept and from the ``shift`` of the means."""
        weights = kept.weights.to(moves.dtype)
        # The common part of all moves acts through the mean. Its exact value is the shift, so the common part with its
        # rounding and convergence error is replaced by it.
        moves = (moves + (shift - kept.weights @ moves.double()).to(moves.dtype)) * weights[:, None]
        if len(moves) == len(self.rows):
            return moves
        return self.rows.new_zeros(self.rows.shape).masked_scatter_(self._weigh[:, None], moves)

    @property
    def _weigh(self) -> Tensor:
        """Which rows have a weight that the dtype of the rows distinguishes from 0."""
        return self.weights > torch.finfo(self.rows.dtype).tiny


def centered_points(sample: Tensor, weights: Tensor) -> Points:
    """Return a sample around its weighted mean."""
    mean = weights @ sample.double()
    return Points((sample - mean).to(sample.dtype), weights, mean)


@final
class Plan(NamedTuple):
    """Results of a plan between centered points; potentials are float64.

    ``value`` is the dual value, 0-dim float64, and ``marginal_error`` the sum of absolute differences of the marginals
    and the weights. ``image_x``, ``(n, d)``, is the mean of the ``y`` that each row of ``x`` is sent to, and
    ``image_y`` the reverse; images that were not asked for are empty.
    """

    value: Tensor
    marginal_error: float
    potential_x: Tensor
    potential_y: Tensor
    image_x: Tensor
    image_y: Tensor


@final
class EntropicProblem:
    """Sinkhorn's iteration between two centered samples, with a kernel that is kept in memory or computed in blocks.

    The plan is ``a_i 2^p_i K_ij v_j`` with ``K_ij = 2^(s_ij + q_j)``. The scores ``s`` are ``x . y`` in units of
    ``epsilon log 2``, and ``q`` contains the weight of ``y_j`` and the rest of its cost. A kept kernel is not computed
    again for each ``q``: ``v`` accumulates the changes until it grows too large. Blocks of the kernel are divided by
    a power of two for each row, ``2^base``.
    """

    def __init__(self, x: Points, y: Points, settings: Settings) -> None:
        self._x, self._y, self._settings, self._unit = x, y, settings, settings.unit
        rows = x.rows
        n, m, dtype = rows.shape[0], y.rows.shape[0], rows.dtype
        self._left = torch.cat([(rows.double() / self._unit).to(dtype), rows.new_ones(n, 1)], dim=1)
        self._half_x, self._half_y = (0.5 * p.rows.double().square().sum(dim=1) / self._unit for p in (x, y))
        self._weights_x, self._weights_y = x.weights.to(dtype), y.weights.to(dtype)
        self._p = rows.new_zeros(n)
        self._q = (y.weights.log2() - self._half_y).to(dtype)
        self._v = rows.new_ones(m)
        self._held = rows.new_empty(n, m) if n * m <= settings.held_entries else None
        self._base = rows.new_zeros(n)
        self._current = self._steady = False

    def solve(self) -> int:
        """Iterate until the marginals are within the tolerance; return the number of iterations."""
        # Over-relaxed updates converge much faster if the relaxation suits the problem, and diverge if it is too
        # strong. It starts at 1 and is set from the observed rate of convergence, measured over enough iterations for
        # the last change to take effect: the stronger the relaxation, the longer that takes. An error that grows
        # halves the distance to 1.
        tolerance, most = self._settings.tolerance, self._settings.max_iterations
        relaxation, held_back, reference, since = 1.0, 1.0, math.inf, 0
        for iteration in range(1, most + 1):
            error = self._sweep(relaxation)
            since += 1
            if math.isnan(error):
                return iteration
            if error <= tolerance:
                if relaxation == 1:
                    return iteration
                # One sweep without relaxation, so that the error is that of a plan with one exact marginal.
                held_back, relaxation = relaxation, 1.0
                continue
            if held_back > 1:
                relaxation, held_back, reference, since = held_back, 1.0, error, 0
            if since < max(_WINDOW, 1 / (2 - relaxation)):
                continue
            if error < reference < math.inf:
                relaxation = _relaxed(relaxation, (error / reference) ** (1 / since))
            elif reference < math.inf:
                relaxation = 0.5 * (1 + relaxation)
            reference, since = error, 0
        return most

    def _sweep(self, relaxation: float) -> float:
        """Update both potentials and return the errors of the marginals before their updates."""
        row_error = self._p.new_zeros(())
        columns = torch.zeros_like(self._v)
        largest = self._p.new_zeros(())
        for rows, kernel, base in self._blocks():
            a = self._weights_x[rows]
            off = (kernel @ self._v).log2_().add_(base).add_(self._p[rows])
            largest = torch.maximum(largest, off.abs().amax())
            row_error += (off.exp2() - 1).abs_() @ a
            self._p[rows] -= off.mul_(relaxation)
            columns.addmv_(kernel.T, (self._p[rows] + base).exp2_().mul_(a))
        columns.mul_(self._v).div_(self._weights_y)
        column_error = (columns - 1).abs_() @ self._weights_y
        scaling = self._v / (columns if relaxation == 1 else columns**relaxation)
        low, high = torch.aminmax(scaling)
        # One copy to the CPU for all numbers that decide how to continue; on a GPU each copy waits for the device.
        numbers = torch.stack([row_error + column_error, largest, columns.amin(), low, high])
        error, largest_change, least_mass, smallest_scaling, largest_scaling = numbers.tolist()
        self._steady = largest_change < _STEADY
        if least_mass < _SMALLEST_MASS or smallest_scaling == 0:
            self._update_columns_in_logarithms()
        elif self._held is None or max(largest_scaling, 1 / smallest_scaling) > _LARGEST_SCALING:
            self._q += scaling.log2_()
            self._v.fill_(1)
            self._current = False
        else:
            self._v = scaling
        return float(error)

    def plan(self, wants: Sequence[bool]) -> Plan:
        """Make the marginal of ``x`` exact and return value, error, potentials and images of the plan."""
        x, y = self._x.rows, self._y.rows
        columns = torch.zeros_like(self._v)
        image_x = torch.empty_like(x) if wants[0] else unwanted(x)
        image_y = torch.zeros_like(y) if wants[1] else unwanted(y)
        scaled = y * self._v[:, None] if wants[0] else y
        for rows, kernel, base in self._blocks():
            sums = kernel @ self._v
            if wants[0]:
                torch.mm(kernel, scaled, out=image_x[rows]).div_(sums[:, None])
            weights = self._weights_x[rows] / sums
            columns.addmv_(kernel.T, weights)
            if wants[1]:
                image_y.addmm_(kernel.T, x[rows] * weights[:, None])
            self._p[rows] = sums.log2_().add_(base).neg_()
        if wants[1]:
            image_y.div_(columns[:, None])
        mass = columns.double() * self._v
        error = float((mass - self._y.weights).abs().sum())
        # One more exact update of y, in the potentials only. The dual value then has its maximum in the potential of y,
        # so that its error is of second order in that of the marginals.
        f = (self._p.double() + self._half_x) * self._unit
        g = (self._q.double() - columns.double().log2() + self._half_y) * self._unit
        value = self._x.weights @ f + self._y.weights @ g
        return Plan(value, error, f, g, image_x, image_y)

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows, their part of the kernel, and the logarithm of the factor taken out of each row."""
        if self._held is not None and self._current:
            yield slice(0, len(self._p)), self._held, self._base
            return
        right = torch.cat([self._y.rows, self._q[:, None]], dim=1)
        for rows, _, exponents in scores(self._left, right, strip=self._settings.strip):
            # The factor keeps the powers of two in range. While p changes little, the row sums are close to 2^-p, so
            # that -p takes the place of the maximum and saves a pass over the block.
            base = -self._p[rows] if self._steady else exponents.amax(dim=1)
            exponents -= base[:, None]
            if self._held is None:
                yield rows, exponents.exp2_(), base
            else:
                self._base[rows] = base
                yield rows, torch.exp2(exponents, out=self._held[rows]), base
        self._current = True

    def _update_columns_in_logarithms(self) -> None:
        """Update the potential of y with a maximum per column, where sums of powers of two would underflow."""
        self._q = torch.empty_like(self._q)
        turned = torch.cat([self._x.rows, (self._p + self._x.weights.log2())[:, None]], dim=1).to(self._q.dtype)
        left = torch.cat([self._y.rows / self._unit, self._q.new_ones(len(self._q), 1)], dim=1)
        for rows, _, exponents in scores(left, turned, strip=self._settings.strip):
            base = exponents.amax(dim=1)
            self._q[rows] = (exponents - base[:, None]).exp2_().sum(dim=1).log2_().add_(base).neg_()
        self._q += self._y.weights.log2().to(self._q.dtype)
        self._v.fill_(1)
        self._current = self._steady = False


def _relaxed(relaxation: float, rate: float) -> float:
    """Return the over-relaxation that suits a problem, from the rate of convergence observed under another one."""
    # Young's relation for successive over-relaxation: with relaxation w, the rate r and the rate l without relaxation
    # satisfy (r + w - 1)² = w² l r while w is below the best one, 2 / (1 + √(1 - l)), which gives r = w - 1.
    if rate <= relaxation - 1 + 1e-3:
        return relaxation
    plain = (rate + relaxation - 1) ** 2 / (relaxation**2 * rate)
    return min(2 / (1 + math.sqrt(max(1 - plain, 0.0))), _STRONGEST)


def soft_minimum(rows: Tensor, others: Points, potential: Tensor, settings: Settings) -> Tensor:
    """Return the potential at any rows that follows from the potential of the others, in float64."""
    unit = settings.unit
    half = 0.5 * others.rows.double().square().sum(dim=1)
    last = ((potential - half) / unit + others.weights.log2()).to(rows.dtype)
    left = torch.cat([rows / unit, rows.new_ones(len(rows), 1)], dim=1)
    out = []
    for _, _, exponents in scores(left, torch.cat([others.rows, last[:, None]], dim=1), strip=settings.strip):
        base = exponents.amax(dim=1)
        out.append((exponents - base[:, None]).exp2_().sum(dim=1).double().log2() + base)
    return 0.5 * rows.double().square().sum(dim=1) - torch.cat(out) * unit


def self_transport(points: Points, settings: Settings, wanted: bool) -> Plan:
    """Return the plan of a sample with itself, ``a_i z_i K_ij z_j a_j`` with one scaling ``z``."""
    x = points.rows
    a = points.weights.to(x.dtype)
    times = _self_products(x, settings)
    z = torch.ones_like(a)
    for _ in range(_MOST_SELF_ITERATIONS):
        sums = times(a * z)
        off = sums * z
        error = float((off.double() - 1).abs() @ points.weights)
        if error <= settings.tolerance:
            break
        # The full update z -> 1 / K(a z) oscillates, because both sides of a symmetric plan move at once. The geometric
        # mean of z and that update converges in a few steps. Scalings stay between 1 and a^-1/2, so nothing overflows.
        z = z / off.sqrt()
    f = z.double().log2() * settings.unit
    # Neither marginal is exact here, so the dual value includes the term for a plan whose mass is not 1.
    value = 2 * (points.weights @ f) - settings.epsilon * (points.weights @ (off.double() - 1))
    image = times((a * z)[:, None] * x).div_(sums[:, None]) if wanted else unwanted(x)
    return Plan(value, error, f, f, image, image)


def _self_products(x: Tensor, settings: Settings) -> Callable[[Tensor], Tensor]:
    """Return the function that multiplies by the kernel of ``x`` with itself, visiting each unordered pair once."""
    n = x.shape[0]
    kept: list[tuple[slice, slice, Tensor, Tensor]] = []
    keeps = n * (n + 1) // 2 <= settings.held_entries

    def blocks() -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        if kept:
            yield from kept
            return
        formed = []
        for part in squared_distances(x, x, scale=-0.5 / settings.unit, symmetric=True, strip=settings.strip):
            kernel = part.values.exp2() if keeps else part.values.exp2_()
            one = (part.rows, slice(part.rows.stop, n), kernel, kernel[:, part.beyond :])
            yield one
            if keeps:
                formed.append(one)
        kept.extend(formed)

    def times(vector: Tensor) -> Tensor:
        out = torch.zeros_like(vector)
        for rows, beyond, kernel, others in blocks():
            out[rows] += kernel @ vector[rows.start :]
            out[beyond] += others.T @ vector[rows]
        return out

    return times
