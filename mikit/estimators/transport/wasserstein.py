"""Transport distances between the distributions of two representations, as losses and as estimators."""

from __future__ import annotations

import math
from functools import partial
from typing import final

import torch
from torch import Tensor

from mikit.core import require
from mikit.core.measurement import Check
from mikit.core.rows import require_common_groups
from mikit.estimators.base import clustered_standard_error
from mikit.estimators.discrepancy import Discrepancy
from mikit.estimators.jackknife import jackknife_standard_error
from mikit.functional.transport.exact import identity_fraction, wasserstein, wasserstein2
from mikit.functional.transport.max_sliced import max_sliced_wasserstein2
from mikit.functional.transport.plans import require_order, transport_potentials
from mikit.functional.transport.sliced import (
    directions_of_draw,
    generator_of_draw,
    sliced_wasserstein,
    sliced_wasserstein2,
)

__all__ = ["SlicedWasserstein", "Wasserstein"]

_IN_DISGUISE = 0.5


@final
class Wasserstein(Discrepancy):
    """Wasserstein distance between the distributions of ``x``, ``(n, d)``, and ``y``, ``(m, d)``, squared by default.

    Formula: ``W_p = (min_P Σ_ij P_ij |x_i - y_j|^p)^(1/p)`` over couplings ``P``, solved exactly; see
    :func:`mikit.functional.wasserstein`. As a loss it moves each student row towards the teacher row that it is
    matched with.

    Args:
        p: The order, at least 1.
        squared: Whether the value is ``W_p²`` rather than ``W_p``. The square is smooth where the distance is 0.
        debias: Whether to subtract the distance between halves of one sample.

    Shapes:
        ``x`` is ``(n, d)`` and ``y`` is ``(m, d)``, of equal width; samples may be weighted.

    Unit: feature² if ``squared``, else feature.

    Kind: discrepancy. 0 for equal samples, and too large on small ones: two samples of size 128 from ``N(0, I)`` have
    ``W₂²`` 14 in 16 dimensions and 900 in 512. ``debias`` removes that; for equal distributions the value is then
    negative about half of the time, and never clipped.

    Checks: ``pointwise in disguise`` warns if the optimal plan matches more than half of paired rows with their
    partner: the value is then a paired distance, and not one of distributions.

    Raises:
        InputError: If the widths differ, ``p`` is below 1, there are fewer than four samples to debias with, or POT is
            missing (``pip install 'mikit[transport]'``) and sizes or weights differ, as those of the halves of an odd
            number of samples do.

    Cost:
        On one core about a millisecond at 128 samples, 20 at 512, 100 at 1,000, growing nearly as the cube; on the CPU
        whatever the device. O(n m) memory. ``debias`` solves four problems with half of the samples.

    Pitfalls:
        Blind to pairing: shuffling the rows of one side does not change the value, so a small value does not mean that
        one network contains the information of the other. Biased upwards in mini-batches, by more than most signals
        if there are as many features as samples. Compare values at the same sample size only, unless debiased.

    Source:
        Kantorovich (1942); Villani (2009), "Optimal Transport: Old and New". The standard error is that of the
        Kantorovich potentials; for equal distributions it is up to 1.7 times too large.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 256, 4, generator=generator)
        >>> plain, debiased = Wasserstein(), Wasserstein(debias=True)
        >>> plain.estimate(x, y).item() > 0.4 > abs(debiased.estimate(x, y).item()) * 4
        True
        >>> 3.5 < debiased.estimate(x, y + 1).item() < 4.5  # a shift by 1 in each of four columns
        True
    """

    name = "wasserstein"
    unit = "feature²"
    weighted = True

    def __init__(self, p: float = 2.0, *, squared: bool = True, debias: bool = False) -> None:
        super().__init__(debias=debias)
        require_order(p)
        self.p = float(p)
        self.squared = squared
        self.unit = "feature²" if squared else "feature"

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        return f"p={self.p:g}, squared={self.squared}, debias={self.debias}"

    def between_laws(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the distance of the two samples, or its square."""
        if self.p == 2 and self.squared:
            return wasserstein2(x, y, weights_x=weights_x, weights_y=weights_y)
        distance = wasserstein(x, y, p=self.p, weights_x=weights_x, weights_y=weights_y)
        return distance.square() if self.squared else distance

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the standard error from the spread of the Kantorovich potentials; None at distance 0.

        Samples of equal size are assumed to be paired, and samples of different sizes to be independent.
        """
        self.require_samples(x, y)
        n, m = x.shape[0], y.shape[0]
        require_common_groups(x, y, groups)
        moves = self._moves_debiased(x, y) if self.debias else self._moves(x, y)
        if moves is None:
            return None
        if n == m:
            return clustered_standard_error(moves[0] + moves[1], groups)
        return math.hypot(*(clustered_standard_error(move) for move in moves))

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Check whether the optimal plan matches each row with its partner."""
        name, threshold = "pointwise in disguise", _IN_DISGUISE
        if x.shape[0] != y.shape[0]:
            sentence = "The samples differ in size, so they are not paired."
            return (Check.not_applicable(name, sentence, threshold=threshold),)
        if self.debias:
            sentence = "The halves that are compared contain different inputs, so no sample can match its partner."
            return (Check.not_applicable(name, sentence, threshold=threshold),)
        share, chance = identity_fraction(x, y, p=self.p)
        sentence = (
            f"The optimal plan matches {share:.0%} of the samples with their partner; by chance it is {chance:.1%}."
        )
        if share <= threshold:
            return (Check.passed(name, sentence, share, threshold),)
        sentence += " The distance is then a paired regression in disguise. Use more samples or fewer features."
        return (Check.warned(name, sentence, share, threshold),)

    def _moves(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the influence of each row on the value, around its mean; None at distance 0, which has no slope."""
        # Potentials are derivatives of W_p^p in the weights of the rows; the chain rule gives those of the value.
        of_x, of_y = transport_potentials(x.detach(), y.detach(), p=self.p)
        power = float(of_x.mean() + of_y.mean())
        if not power > 0:
            return None
        order = (2 if self.squared else 1) / self.p
        slope = order * power ** (order - 1)
        return slope * (of_x - of_x.mean()), slope * (of_y - of_y.mean())

    def _moves_debiased(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the influence of each row on the debiased value, from those on its four distances."""
        totals = tuple(torch.zeros(len(sample), dtype=torch.float64, device=sample.device) for sample in (x, y))
        # The halves are views, so that adding to a half adds to the whole.
        (x1, x2), (y1, y2), (of_x1, of_x2), (of_y1, of_y2) = ((rows[::2], rows[1::2]) for rows in (x, y, *totals))
        for first, second, of_first, of_second, sign in (
            (x1, y2, of_x1, of_y2, 0.5),
            (x2, y1, of_x2, of_y1, 0.5),
            (x1, x2, of_x1, of_x2, -0.5),
            (y1, y2, of_y1, of_y2, -0.5),
        ):
            moves = self._moves(first, second)
            if moves is None:
                return None
            for half, move, whole in ((of_first, moves[0], first), (of_second, moves[1], second)):
                rows = len(x) if whole is x1 or whole is x2 else len(y)
                half += sign * move * (rows / len(move))
        return totals[0], totals[1]


@final
class SlicedWasserstein(Discrepancy):
    """Sliced 2-Wasserstein distance, squared by default, of the distributions of ``(n, d)`` and ``(m, d)`` samples.

    Formula: ``SW₂² = mean over unit vectors θ of W₂²(<θ, x>, <θ, y>)``; with ``maximum`` the largest over ``θ``. See
    :func:`mikit.functional.sliced_wasserstein2` and :func:`mikit.functional.max_sliced_wasserstein2`.

    Args:
        projections: Number of directions to draw; with ``maximum`` the number of starts of the ascent.
        maximum: Whether to use the direction of largest distance instead of the mean over directions.
        squared: Whether the value is the square, which is smooth where the distance is 0.
        seed: Seed of the directions. :meth:`estimate` always draws the same ones, so that values are comparable. In
            training mode every call of the loss draws new ones, counted in the buffer ``draws``; in evaluation mode the
            loss draws those of :meth:`estimate`.
        debias: Whether to subtract the distance between halves of one sample.

    Shapes:
        ``x`` is ``(n, d)`` and ``y`` is ``(m, d)``, of equal width.

    Unit: feature² if ``squared``, else feature.

    Kind: discrepancy. 0 for equal samples, too large on small ones, much less so than the exact distance. The mean over
    directions is at most ``W₂² / d``; the maximum is at most ``W₂²``, and too low if only a local maximum was found.

    Raises:
        InputError: If the widths differ, there is no direction, samples are weighted, or there are fewer than four
            samples to debias with.

    Cost:
        O(L (n + m) (d + log(n + m))) time for ``L`` projections; a maximum fifty times that, for which 8 starts are
        enough. O(L + (n + m) d) memory. The standard error takes twenty times that.

    Pitfalls:
        Blind to pairing. The value depends on the directions of the seed: with few directions and many features,
        another seed gives another value, which the standard error does not include. With many features, a maximum finds
        a direction in which any two samples differ.

    Source:
        Bonneel, Rabin, Peyré and Pfister (2015), "Sliced and Radon Wasserstein Barycenters of Measures"; Deshpande et
        al. (2019), "Max-Sliced Wasserstein Distance and its use for GANs".

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 256, 4, generator=generator)
        >>> sliced = SlicedWasserstein()
        >>> sliced.estimate(x, y).item() < 0.1 < 0.8 < sliced.estimate(x, y + 1).item() < 1.3
        True
        >>> SlicedWasserstein(8, maximum=True).estimate(x, y + 1).item() > 3  # along the shift
        True
    """

    name = "sliced_wasserstein"
    unit = "feature²"

    def __init__(
        self,
        projections: int = 128,
        *,
        maximum: bool = False,
        squared: bool = True,
        seed: int = 0,
        debias: bool = False,
    ) -> None:
        super().__init__(debias=debias)
        require.at_least(projections, "projections")
        self.projections = projections
        self.maximum = maximum
        self.squared = squared
        self.seed = seed
        self.unit = "feature²" if squared else "feature"
        self.draws: Tensor
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        return (
            f"{self.projections}, maximum={self.maximum}, squared={self.squared}, seed={self.seed}, "
            f"debias={self.debias}"
        )

    def forward(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the distance along new directions in training mode, along those of the seed otherwise."""
        if not self.training:
            return super().forward(x, y, weights_x=weights_x, weights_y=weights_y)
        self.draws += 1
        along = partial(self._along, self.draws)
        return self.compared(along, x, y.detach(), weights_x=weights_x, weights_y=weights_y)

    def between_laws(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        """Return the distance of the two samples along the directions of the seed, or its square."""
        return self._along(torch.zeros_like(self.draws), x, y)

    def _along(
        self,
        draw: Tensor,
        x: Tensor,
        y: Tensor,
        *,
        weights_x: Tensor | None = None,
        weights_y: Tensor | None = None,
    ) -> Tensor:
        if self.maximum:
            generator = generator_of_draw(draw, self.seed)
            furthest = max_sliced_wasserstein2(x, y, starts=self.projections, generator=generator)
            if self.squared:
                return furthest
            at_zero = furthest == 0  # the gradient there is 0, the smallest subgradient of the root
            return torch.where(at_zero, 0.0, torch.where(at_zero, 1.0, furthest).sqrt())
        sliced = sliced_wasserstein2 if self.squared else sliced_wasserstein
        return sliced(x, y, directions=directions_of_draw(draw, self.seed, self.projections, x.shape[1]))

    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float | None:
        """Return the standard error for these directions, from estimates each without a twentieth of the samples."""
        self.require_samples(x, y)
        return jackknife_standard_error(self.estimate, x, y, groups=groups, fewest=4 if self.debias else 2)
